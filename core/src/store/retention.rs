//! What goes when: past its time, or because the store is full and it is the oldest.
//!
//! Must never remove a response that is not over, nor a conversation that one is made in.

use super::rows::{Key, Look, Rows, Scan, Table};
use super::tables::{self, load};
use super::types::*;
use super::{bodies, conversations, once, responses};
use crate::limits;

/// Removes what is past its time, a bounded number of it.
pub(super) fn expire<R: Rows + ?Sized>(
    rows: &mut R,
    now_ms: u64,
) -> Result<StoreOutcome, <R as Look>::Error> {
    let mut objects = sweep(rows, |at_ms| at_ms <= now_ms)?;
    if tables::total(rows, tables::STORED_BYTES)? > limits::STORE_BYTES {
        objects += sweep(rows, |_| true)?;
    }
    Ok(StoreOutcome::Removed { objects })
}

/// Whether `bytes` more fit, after the oldest objects were removed if they did not (a bounded
/// number of them).
pub(super) fn make_room<R: Rows + ?Sized>(rows: &mut R, bytes: u64) -> Result<bool, R::Error> {
    let fits = |rows: &R| -> Result<bool, R::Error> {
        Ok(tables::total(rows, tables::STORED_BYTES)?.saturating_add(bytes) <= limits::STORE_BYTES)
    };
    if fits(rows)? {
        return Ok(true);
    }
    sweep(rows, |_| true)?;
    fits(rows)
}

/// Removes objects in the order of their time, while `due` says so.
fn sweep<R: Rows + ?Sized>(rows: &mut R, due: impl Fn(u64) -> bool) -> Result<u64, R::Error> {
    let found = rows.scan(Table::Expiry, &Scan::of(Key::new(), limits::EXPIRE_PER_COMMAND))?;
    let mut removed = 0;
    for (key, _) in found {
        let mut parts = key.parts();
        let (at_ms, kind) = (parts.number(), parts.byte().and_then(Kind::from_number));
        let (tenant, id) = (parts.text(), parts.text());
        let (Some(at_ms), Some(kind), Some(tenant), Some(id)) = (at_ms, kind, tenant, id) else {
            return Err(tables::damaged(Table::Expiry, "not a key of this table").into());
        };
        if !due(at_ms) {
            break;
        }
        let target = Target { tenant: tenant.to_owned(), id: id.to_owned() };
        if remove(rows, kind, &target)? {
            rows.remove(Table::Expiry, &key)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// True if the object is gone now.
fn remove<R: Rows + ?Sized>(rows: &mut R, kind: Kind, target: &Target) -> Result<bool, R::Error> {
    match kind {
        Kind::Response => {
            responses::delete(rows, target)?;
        }
        Kind::Conversation => {
            let found: Option<Conversation> = load(rows, Table::Conversations, &tables::object(target))?;
            if found.is_some_and(|conversation| conversation.busy.is_some()) {
                return Ok(false);
            }
            conversations::delete(rows, target)?;
        }
        Kind::Once => once::forget(rows, &target.tenant, &target.id)?,
        Kind::Upload => bodies::expire_upload(rows, target)?,
    }
    Ok(true)
}

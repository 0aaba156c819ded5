//! Idempotency keys: the same key makes the same object, on every node, for a day.
//!
//! Must never forget a key before its time, nor answer for another tenant's.

use super::rows::{Look, Rows, Table};
use super::tables::{self, load, save};
use super::types::*;
use crate::limits;

/// What the key made before; `None` if it made nothing (any more).
pub(super) fn find<L: Look + ?Sized>(
    rows: &L,
    tenant: &str,
    asked: Option<&Once>,
    now_ms: u64,
) -> Result<Option<StoreOutcome>, L::Error> {
    let Some(asked) = asked else { return Ok(None) };
    let Some(made) = load::<OnceRow, L>(rows, Table::Once, &tables::once(tenant, &asked.key))? else {
        return Ok(None);
    };
    if made.expires_ms <= now_ms {
        return Ok(None);
    }
    if made.fingerprint != asked.fingerprint {
        return Ok(Some(StoreOutcome::Refused(Refused::KeyReused)));
    }
    Ok(Some(StoreOutcome::Exists { id: made.id }))
}

/// The key made `target`.
pub(super) fn put<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    kind: Kind,
    asked: Option<&Once>,
    now_ms: u64,
) -> Result<(), R::Error> {
    let Some(asked) = asked else { return Ok(()) };
    forget(rows, &target.tenant, &asked.key)?;
    let expires_ms = now_ms.saturating_add(limits::IDEMPOTENCY_MS);
    let row = OnceRow { fingerprint: asked.fingerprint, kind, id: target.id.clone(), expires_ms };
    save(rows, Table::Once, &tables::once(&target.tenant, &asked.key), &row)?;
    rows.put(Table::Expiry, &expiry(&target.tenant, &asked.key, expires_ms), &[])
}

/// Removes the key, if it is there.
pub(super) fn forget<R: Rows + ?Sized>(rows: &mut R, tenant: &str, key: &str) -> Result<(), R::Error> {
    let place = tables::once(tenant, key);
    let Some(row) = load::<OnceRow, R>(rows, Table::Once, &place)? else { return Ok(()) };
    rows.remove(Table::Expiry, &expiry(tenant, key, row.expires_ms))?;
    rows.remove(Table::Once, &place)
}

fn expiry(tenant: &str, key: &str, at_ms: u64) -> super::rows::Key {
    let target = Target { tenant: tenant.to_owned(), id: key.to_owned() };
    tables::expiry(at_ms, Kind::Once, &target)
}

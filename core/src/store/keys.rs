//! API keys: made, revoked. Only their hashes are known here.
//!
//! Must never remove a key: a revoked one stays listed, with its usage.

use super::check;
use super::rows::{Key, Look, Rows, Table};
use super::tables::{self, load, save};
use super::types::*;
use crate::limits;

pub(super) fn create<R: Rows + ?Sized>(
    rows: &mut R,
    id: &str,
    key: &ApiKey,
) -> Result<StoreOutcome, <R as Look>::Error> {
    if let Err(why) = check::id(id).and_then(|()| check::tenant(&key.tenant)) {
        return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
    }
    if key.name.len() > limits::KEY_NAME_BYTES {
        let why = format!("a key's name has at most {} bytes", limits::KEY_NAME_BYTES);
        return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
    }
    let place = Key::new().text(id);
    if rows.get(Table::Keys, &place)?.is_some() {
        return Ok(StoreOutcome::Unchanged);
    }
    if tables::total(rows, tables::API_KEYS)? >= limits::API_KEYS {
        let why = format!("the cluster keeps at most {} API keys", limits::API_KEYS);
        return Ok(StoreOutcome::Refused(Refused::TooMuch(why)));
    }
    tables::shift_total(rows, tables::API_KEYS, 0, 1)?;
    save(rows, Table::Keys, &place, key)?;
    Ok(StoreOutcome::Done)
}

pub(super) fn revoke<R: Rows + ?Sized>(
    rows: &mut R,
    id: &str,
    now_ms: u64,
) -> Result<StoreOutcome, <R as Look>::Error> {
    let place = Key::new().text(id);
    let Some(mut key) = load::<ApiKey, R>(rows, Table::Keys, &place)? else {
        return Ok(StoreOutcome::Refused(Refused::ItemNotFound));
    };
    if key.revoked_ms.is_some() {
        return Ok(StoreOutcome::Unchanged);
    }
    key.revoked_ms = Some(now_ms);
    save(rows, Table::Keys, &place, &key)?;
    Ok(StoreOutcome::Done)
}

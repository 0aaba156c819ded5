//! Typed rows: how each object is found, read and written.
//!
//! Must never decide: rules are in the files of the commands.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rows::{Damaged, Key, Look, Rows, Table};
use super::types::*;

pub(super) fn encode<T: Serialize>(table: Table, value: &T) -> Result<Vec<u8>, Damaged> {
    postcard::to_stdvec(value).map_err(|error| Damaged { table: table.name(), why: error.to_string() })
}

pub(super) fn decode<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, Damaged> {
    postcard::from_bytes(bytes).map_err(|error| Damaged { table: table.name(), why: error.to_string() })
}

pub(super) fn damaged(table: Table, why: &str) -> Damaged {
    Damaged { table: table.name(), why: why.to_owned() }
}

pub(super) fn load<T: DeserializeOwned, L: Look + ?Sized>(
    rows: &L,
    table: Table,
    key: &Key,
) -> Result<Option<T>, L::Error> {
    let Some(bytes) = rows.get(table, key)? else { return Ok(None) };
    Ok(Some(decode(table, &bytes)?))
}

pub(super) fn save<T: Serialize, R: Rows + ?Sized>(
    rows: &mut R,
    table: Table,
    key: &Key,
    value: &T,
) -> Result<(), R::Error> {
    let bytes = encode(table, value)?;
    rows.put(table, key, &bytes)
}

/// Key of an object in its own table.
pub fn object(target: &Target) -> Key {
    Key::new().text(&target.tenant).text(&target.id)
}

pub(super) fn bodies(target: &Target) -> Key {
    object(target)
}

pub(super) fn chunk(target: &Target, part: u32, chunk: u32) -> Key {
    bodies(target).number(u64::from(part)).number(u64::from(chunk))
}

pub(super) fn items(target: &Target, list: ItemList) -> Key {
    object(target).byte(list as u8)
}

pub(super) fn item_number(target: &Target, list: ItemList, id: &str) -> Key {
    items(target, list).text(id)
}

pub(super) fn listed(tenant: &str, kind: Kind) -> Key {
    Key::new().text(tenant).byte(kind as u8)
}

pub(super) fn list_entry(target: &Target, kind: Kind, created_ms: u64) -> Key {
    listed(&target.tenant, kind).number(created_ms).text(&target.id)
}

pub(super) fn unfinished(created_ms: u64, target: &Target) -> Key {
    Key::new().number(created_ms).text(&target.tenant).text(&target.id)
}

pub(super) fn expiry(at_ms: u64, kind: Kind, target: &Target) -> Key {
    Key::new().number(at_ms).byte(kind as u8).text(&target.tenant).text(&target.id)
}

pub(super) fn once(tenant: &str, key: &str) -> Key {
    Key::new().text(tenant).text(key)
}

pub(super) fn usage(owner: &Owner) -> Key {
    Key::new().text(&owner.tenant).text(&owner.key)
}

/// Names in `Totals`.
pub(super) const STORED_BYTES: &str = "stored_bytes";
pub(super) const UNFINISHED_RUNS: &str = "unfinished_runs";
pub(super) const API_KEYS: &str = "api_keys";

pub(super) fn total<L: Look + ?Sized>(rows: &L, name: &str) -> Result<u64, L::Error> {
    Ok(load(rows, Table::Totals, &Key::new().text(name))?.unwrap_or_default())
}

/// Changes a total by the difference of two values.
pub(super) fn shift_total<R: Rows + ?Sized>(
    rows: &mut R,
    name: &str,
    minus: u64,
    plus: u64,
) -> Result<(), R::Error> {
    let value = total(rows, name)?.saturating_sub(minus).saturating_add(plus);
    save(rows, Table::Totals, &Key::new().text(name), &value)
}

/// Changes what a key used.
pub(super) fn shift_usage<R: Rows + ?Sized>(
    rows: &mut R,
    owner: &Owner,
    change: impl FnOnce(&mut Usage),
) -> Result<(), R::Error> {
    let key = usage(owner);
    let mut usage: Usage = load(rows, Table::Usage, &key)?.unwrap_or_default();
    change(&mut usage);
    save(rows, Table::Usage, &key, &usage)
}

/// Counts stored bytes, for the owner and for the store.
pub(super) fn shift_bytes<R: Rows + ?Sized>(
    rows: &mut R,
    owner: &Owner,
    minus: u64,
    plus: u64,
) -> Result<(), R::Error> {
    shift_total(rows, STORED_BYTES, minus, plus)?;
    shift_usage(rows, owner, |usage| {
        usage.stored_bytes = usage.stored_bytes.saturating_sub(minus).saturating_add(plus);
    })
}

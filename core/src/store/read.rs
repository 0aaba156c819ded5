//! What can be asked of the store: single objects, and pages of lists.
//!
//! Must never give an object of another tenant: the tenant is part of every key.

use super::rows::{Key, Look, Order, Scan, Table};
use super::tables::{self, load};
use super::types::*;
use super::{bodies, types};
use crate::limits;

/// Which page of a list: behind an object or item of this id, if it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub after: Option<String>,
    pub order: Order,
    /// At most `limits::PAGE_ITEMS`.
    pub limit: usize,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    pub rows: Vec<T>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

pub fn response<L: Look + ?Sized>(rows: &L, target: &Target) -> Result<Option<Response>, L::Error> {
    load(rows, Table::Responses, &tables::object(target))
}

pub fn conversation<L: Look + ?Sized>(rows: &L, target: &Target) -> Result<Option<Conversation>, L::Error> {
    load(rows, Table::Conversations, &tables::object(target))
}

pub fn body<L: Look + ?Sized>(rows: &L, target: &Target, body: &Body) -> Result<Vec<u8>, L::Error> {
    bodies::read(rows, target, body)
}

/// One item by its id.
pub fn item<L: Look + ?Sized>(
    rows: &L,
    target: &Target,
    list: ItemList,
    id: &str,
) -> Result<Option<Item>, L::Error> {
    let number: Option<u64> = load(rows, Table::ItemNumbers, &tables::item_number(target, list, id))?;
    let Some(number) = number else { return Ok(None) };
    load(rows, Table::Items, &tables::items(target, list).number(number))
}

/// A page of an object's items; `None` if `after` is not one of them.
pub fn items<L: Look + ?Sized>(
    rows: &L,
    target: &Target,
    list: ItemList,
    page: &Page,
) -> Result<Option<Found<Item>>, L::Error> {
    let prefix = tables::items(target, list);
    let beyond = match &page.after {
        None => None,
        Some(id) => {
            let number: Option<u64> = load(rows, Table::ItemNumbers, &tables::item_number(target, list, id))?;
            let Some(number) = number else { return Ok(None) };
            Some(prefix.clone().number(number))
        }
    };
    let found = scan(rows, Table::Items, (prefix, beyond), page)?;
    let decoded: Result<Vec<Item>, _> =
        found.rows.iter().map(|(_, row)| tables::decode(Table::Items, row)).collect();
    Ok(Some(Found { rows: decoded?, more: found.more }))
}

/// Every item of a list, in order: at most `limits::CONVERSATION_ITEMS`.
pub fn all_items<L: Look + ?Sized>(rows: &L, target: &Target, list: ItemList) -> Result<Vec<Item>, L::Error> {
    let scan = Scan::of(tables::items(target, list), limits::CONVERSATION_ITEMS as usize);
    let found = rows.scan(Table::Items, &scan)?;
    let decoded: Result<Vec<Item>, _> =
        found.iter().map(|(_, row)| tables::decode(Table::Items, row)).collect();
    Ok(decoded?)
}

/// A page of the ids of a tenant's objects by the time they were made; `None` if `after` is not one.
pub fn list<L: Look + ?Sized>(
    rows: &L,
    tenant: &str,
    kind: Kind,
    page: &Page,
) -> Result<Option<Found<String>>, L::Error> {
    let beyond = match &page.after {
        None => None,
        Some(id) => {
            let target = Target { tenant: tenant.to_owned(), id: id.clone() };
            let created_ms = match kind {
                Kind::Response => response(rows, &target)?.map(|found| found.created_ms),
                Kind::Conversation => conversation(rows, &target)?.map(|found| found.created_ms),
                Kind::Once | Kind::Upload => None,
            };
            let Some(created_ms) = created_ms else { return Ok(None) };
            Some(tables::list_entry(&target, kind, created_ms))
        }
    };
    let found = scan(rows, Table::Lists, (tables::listed(tenant, kind), beyond), page)?;
    let mut ids = Vec::with_capacity(found.rows.len());
    for (key, _) in found.rows {
        let mut parts = key.parts();
        let _of_prefix = (parts.text(), parts.byte(), parts.number());
        let id = parts.text().ok_or_else(|| tables::damaged(Table::Lists, "not a key of this table"))?;
        ids.push(id.to_owned());
    }
    Ok(Some(Found { rows: ids, more: found.more }))
}

fn scan<L: Look + ?Sized>(
    rows: &L,
    table: Table,
    place: (Key, Option<Key>),
    page: &Page,
) -> Result<Found<super::rows::Row>, L::Error> {
    let limit = page.limit.min(limits::PAGE_ITEMS);
    let (prefix, beyond) = place;
    let mut found = rows.scan(table, &Scan { prefix, beyond, order: page.order, limit: limit + 1 })?;
    let more = found.len() > limit;
    found.truncate(limit);
    Ok(Found { rows: found, more })
}

/// Runs that are not over, oldest first, behind a key that an earlier call gave.
pub fn unfinished<L: Look + ?Sized>(
    rows: &L,
    behind: Option<Key>,
    limit: usize,
) -> Result<Vec<(Key, Target)>, L::Error> {
    let scan = Scan { prefix: Key::new(), beyond: behind, order: Order::Ascending, limit };
    let mut runs = Vec::new();
    for (key, _) in rows.scan(Table::Unfinished, &scan)? {
        let mut parts = key.parts();
        let _created_ms = parts.number();
        let (Some(tenant), Some(id)) = (parts.text(), parts.text()) else {
            return Err(tables::damaged(Table::Unfinished, "not a key of this table").into());
        };
        let target = Target { tenant: tenant.to_owned(), id: id.to_owned() };
        runs.push((key, target));
    }
    Ok(runs)
}

pub fn api_key<L: Look + ?Sized>(rows: &L, id: &str) -> Result<Option<ApiKey>, L::Error> {
    load(rows, Table::Keys, &Key::new().text(id))
}

/// True if any API key was ever made: from then on requests need one.
pub fn has_api_keys<L: Look + ?Sized>(rows: &L) -> Result<bool, L::Error> {
    Ok(tables::total(rows, tables::API_KEYS)? > 0)
}

/// All API keys by id.
pub fn api_keys<L: Look + ?Sized>(rows: &L) -> Result<Vec<(String, ApiKey)>, L::Error> {
    let found = rows.scan(Table::Keys, &Scan::of(Key::new(), limits::API_KEYS as usize))?;
    let mut keys = Vec::with_capacity(found.len());
    for (key, row) in found {
        let id = key.parts().text().unwrap_or_default().to_owned();
        keys.push((id, tables::decode(Table::Keys, &row)?));
    }
    Ok(keys)
}

/// What every key used, behind an owner, in the order of tenants.
pub fn usage<L: Look + ?Sized>(
    rows: &L,
    behind: Option<&types::Owner>,
    limit: usize,
) -> Result<Vec<(Owner, Usage)>, L::Error> {
    let scan = Scan { prefix: Key::new(), beyond: behind.map(tables::usage), order: Order::Ascending, limit };
    let mut all = Vec::new();
    for (key, row) in rows.scan(Table::Usage, &scan)? {
        let mut parts = key.parts();
        let (Some(tenant), Some(id)) = (parts.text(), parts.text()) else {
            return Err(tables::damaged(Table::Usage, "not a key of this table").into());
        };
        let owner = Owner { tenant: tenant.to_owned(), key: id.to_owned() };
        all.push((owner, tables::decode(Table::Usage, &row)?));
    }
    Ok(all)
}

/// Whether `Expire` would find anything to remove.
pub fn is_due<L: Look + ?Sized>(rows: &L, now_ms: u64) -> Result<bool, L::Error> {
    let first = rows.scan(Table::Expiry, &Scan::of(Key::new(), 1))?;
    let at_ms = first.first().and_then(|(key, _)| key.parts().number());
    Ok(at_ms.is_some_and(|at_ms| at_ms <= now_ms) || totals(rows)?.0 > limits::STORE_BYTES)
}

/// Bytes of all stored objects, and runs that are not over.
pub fn totals<L: Look + ?Sized>(rows: &L) -> Result<(u64, u64), L::Error> {
    Ok((tables::total(rows, tables::STORED_BYTES)?, tables::total(rows, tables::UNFINISHED_RUNS)?))
}

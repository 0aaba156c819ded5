//! Lists of items: by number, and by id.
//!
//! Must never give a number a second time within a list.

use super::bodies;
use super::rows::{Rows, Table};
use super::tables::{self, load, save};
use super::types::*;

pub(super) fn put<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    list: ItemList,
    number: u64,
    item: &Item,
) -> Result<(), R::Error> {
    save(rows, Table::Items, &tables::items(target, list).number(number), item)?;
    save(rows, Table::ItemNumbers, &tables::item_number(target, list, &item.id), &number)
}

/// Removes one item; the bytes of it, or `None` if it is not there.
pub(super) fn remove<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    list: ItemList,
    id: &str,
) -> Result<Option<u64>, R::Error> {
    let by_id = tables::item_number(target, list, id);
    let Some(number) = load::<u64, R>(rows, Table::ItemNumbers, &by_id)? else { return Ok(None) };
    let key = tables::items(target, list).number(number);
    let item: Option<Item> = load(rows, Table::Items, &key)?;
    let item = item.ok_or_else(|| tables::damaged(Table::Items, "an item is missing"))?;
    bodies::remove(rows, target, &item.body)?;
    rows.remove(Table::Items, &key)?;
    rows.remove(Table::ItemNumbers, &by_id)?;
    Ok(Some(item.body.bytes()))
}

//! Conversations: lists of items that outlive the responses that were made with them.
//!
//! Must never let two responses write into one conversation at a time.

use super::rows::{Look, Rows, Scan, Table};
use super::tables::{self, load, save};
use super::types::*;
use super::{bodies, check, once, retention};
use crate::journal::Phase;
use crate::limits;

type Answer<R> = Result<StoreOutcome, <R as Look>::Error>;

fn find<L: Look + ?Sized>(rows: &L, target: &Target) -> Result<Option<Conversation>, L::Error> {
    load(rows, Table::Conversations, &tables::object(target))
}

fn keep<R: Rows + ?Sized>(rows: &mut R, target: &Target, value: &Conversation) -> Result<(), R::Error> {
    save(rows, Table::Conversations, &tables::object(target), value)
}

fn missing() -> StoreOutcome {
    StoreOutcome::Refused(Refused::NotFound(Kind::Conversation))
}

/// Its time to live begins anew.
fn touch<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    conversation: &mut Conversation,
    now_ms: u64,
) -> Result<(), R::Error> {
    let expiry = |used_ms: u64| {
        tables::expiry(used_ms.saturating_add(limits::RETENTION_MS), Kind::Conversation, target)
    };
    rows.remove(Table::Expiry, &expiry(conversation.used_ms))?;
    conversation.used_ms = conversation.used_ms.max(now_ms);
    rows.put(Table::Expiry, &expiry(conversation.used_ms), &[])
}

pub(super) fn create<R: Rows + ?Sized>(rows: &mut R, new: &NewConversation) -> Answer<R> {
    let names = || -> Result<(), String> {
        check::owner(&new.owner)?;
        check::id(&new.id)?;
        check::once(new.once.as_ref())?;
        check::metadata(&new.metadata)
    };
    if let Err(why) = names() {
        return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
    }
    let target = Target { tenant: new.owner.tenant.clone(), id: new.id.clone() };
    if find(rows, &target)?.is_some() {
        return Ok(StoreOutcome::Unchanged);
    }
    if let Some(made) = once::find(rows, &target.tenant, new.once.as_ref(), new.now_ms)? {
        return Ok(made);
    }
    let mut conversation = Conversation {
        owner: new.owner.clone(),
        created_ms: new.now_ms,
        used_ms: new.now_ms,
        metadata: new.metadata.clone(),
        items: 0,
        next_item: 0,
        next_part: 0,
        busy: None,
        bytes: new.metadata.len() as u64,
    };
    if let Some(refused) = room(rows, &target, &conversation, &new.items)? {
        return Ok(StoreOutcome::Refused(refused));
    }
    tables::shift_bytes(rows, &new.owner, 0, conversation.bytes)?;
    add(rows, &target, &mut conversation, &new.items)?;
    touch(rows, &target, &mut conversation, new.now_ms)?;
    keep(rows, &target, &conversation)?;
    rows.put(Table::Lists, &tables::list_entry(&target, Kind::Conversation, new.now_ms), &[])?;
    tables::shift_usage(rows, &new.owner, |usage| usage.requests += 1)?;
    once::put(rows, &target, Kind::Conversation, new.once.as_ref(), new.now_ms)?;
    Ok(StoreOutcome::Done)
}

/// Why items can't be added; `None` if they can. Makes room for them.
fn room<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    conversation: &Conversation,
    new: &NewItems,
) -> Result<Option<Refused>, R::Error> {
    let bytes = match check::items(&new.items) {
        Ok(bytes) => bytes,
        Err(why) => return Ok(Some(Refused::Malformed(why))),
    };
    if conversation.items.saturating_add(new.items.len() as u64) > limits::CONVERSATION_ITEMS {
        let why = format!("a conversation has at most {} items", limits::CONVERSATION_ITEMS);
        return Ok(Some(Refused::TooMuch(why)));
    }
    if conversation.bytes.saturating_add(bytes) > limits::CONVERSATION_BYTES {
        let why = format!("a conversation has at most {} bytes", limits::CONVERSATION_BYTES);
        return Ok(Some(Refused::TooMuch(why)));
    }
    let from = upload(target, new);
    for item in &new.items {
        if !bodies::is_whole(rows, &from, &item.body)? {
            return Ok(Some(Refused::Malformed("a chunk of an item is not there".to_owned())));
        }
        let known = tables::item_number(target, ItemList::Conversation, &item.id);
        if rows.get(Table::ItemNumbers, &known)?.is_some() {
            return Ok(Some(Refused::Malformed(format!("item {} is in the conversation already", item.id))));
        }
    }
    Ok(if retention::make_room(rows, bytes)? { None } else { Some(Refused::Full) })
}

fn upload(target: &Target, new: &NewItems) -> Target {
    let id = new.upload.as_ref().unwrap_or(&target.id).clone();
    Target { tenant: target.tenant.clone(), id }
}

/// Adds items that fit (`room` was asked).
fn add<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    conversation: &mut Conversation,
    new: &NewItems,
) -> Result<(), R::Error> {
    let from = upload(target, new);
    for item in &new.items {
        append(rows, target, conversation, (&from, item))?;
    }
    if new.upload.is_some() {
        bodies::drop_upload(rows, &from)?;
    }
    Ok(())
}

/// Copies one item of `from` to the end of the conversation.
fn append<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    conversation: &mut Conversation,
    source: (&Target, &Item),
) -> Result<(), R::Error> {
    let (from, item) = source;
    let (body, copied) = bodies::copy(rows, (from, &item.body), target, conversation.next_part)?;
    conversation.next_part += u32::from(copied);
    let bytes = body.bytes();
    let item = Item { id: item.id.clone(), body };
    super::items::put(rows, target, ItemList::Conversation, conversation.next_item, &item)?;
    conversation.next_item += 1;
    conversation.items += 1;
    conversation.bytes += bytes;
    tables::shift_bytes(rows, &conversation.owner, 0, bytes)
}

pub(super) fn update<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    metadata: &[u8],
    now_ms: u64,
) -> Answer<R> {
    if let Err(why) = check::metadata(metadata) {
        return Ok(StoreOutcome::Refused(Refused::TooMuch(why)));
    }
    let Some(mut conversation) = find(rows, target)? else { return Ok(missing()) };
    let (old, new) = (conversation.metadata.len() as u64, metadata.len() as u64);
    conversation.metadata = metadata.to_vec();
    conversation.bytes = conversation.bytes.saturating_sub(old).saturating_add(new);
    tables::shift_bytes(rows, &conversation.owner, old, new)?;
    touch(rows, target, &mut conversation, now_ms)?;
    keep(rows, target, &conversation)?;
    Ok(StoreOutcome::Done)
}

pub(super) fn add_items<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    new: &NewItems,
    stamp: (u64, Option<&Once>),
) -> Answer<R> {
    let (now_ms, once) = stamp;
    if let Err(why) = check::once(once) {
        return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
    }
    let Some(mut conversation) = find(rows, target)? else { return Ok(missing()) };
    if let Some(made) = once::find(rows, &target.tenant, once, now_ms)? {
        return Ok(made);
    }
    // A repeat of the very command: its items are there, all of them.
    let first = new.items.first().map(|item| tables::item_number(target, ItemList::Conversation, &item.id));
    if let Some(first) = first
        && rows.get(Table::ItemNumbers, &first)?.is_some()
    {
        return Ok(StoreOutcome::Unchanged);
    }
    if let Some(response) = &conversation.busy {
        return Ok(StoreOutcome::Refused(Refused::Busy { response: response.clone() }));
    }
    if let Some(refused) = room(rows, target, &conversation, new)? {
        return Ok(StoreOutcome::Refused(refused));
    }
    add(rows, target, &mut conversation, new)?;
    touch(rows, target, &mut conversation, now_ms)?;
    keep(rows, target, &conversation)?;
    once::put(rows, target, Kind::Conversation, once, now_ms)?;
    Ok(StoreOutcome::Done)
}

pub(super) fn delete_item<R: Rows + ?Sized>(rows: &mut R, target: &Target, item: &str) -> Answer<R> {
    let Some(mut conversation) = find(rows, target)? else { return Ok(missing()) };
    let Some(bytes) = super::items::remove(rows, target, ItemList::Conversation, item)? else {
        return Ok(StoreOutcome::Refused(Refused::ItemNotFound));
    };
    conversation.items = conversation.items.saturating_sub(1);
    conversation.bytes = conversation.bytes.saturating_sub(bytes);
    tables::shift_bytes(rows, &conversation.owner, bytes, 0)?;
    keep(rows, target, &conversation)?;
    Ok(StoreOutcome::Done)
}

pub(super) fn delete<R: Rows + ?Sized>(rows: &mut R, target: &Target) -> Answer<R> {
    let Some(conversation) = find(rows, target)? else { return Ok(missing()) };
    let at_ms = conversation.used_ms.saturating_add(limits::RETENTION_MS);
    rows.remove(Table::Expiry, &tables::expiry(at_ms, Kind::Conversation, target))?;
    rows.remove(Table::Conversations, &tables::object(target))?;
    rows.remove(Table::Lists, &tables::list_entry(target, Kind::Conversation, conversation.created_ms))?;
    bodies::remove_all(rows, Table::Bodies, &tables::bodies(target))?;
    bodies::remove_all(rows, Table::Items, &tables::object(target))?;
    bodies::remove_all(rows, Table::ItemNumbers, &tables::object(target))?;
    tables::shift_bytes(rows, &conversation.owner, conversation.bytes, 0)?;
    Ok(StoreOutcome::Done)
}

/// A response with `input` (items, bytes) begins in the conversation; why it can't, if it can't.
/// What it may answer must find room in the end, so it is counted now.
pub(super) fn begin<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    response: &str,
    input: (u64, u64),
) -> Result<Option<Refused>, R::Error> {
    let Some(mut conversation) = find(rows, target)? else {
        return Ok(Some(Refused::NotFound(Kind::Conversation)));
    };
    if let Some(busy) = conversation.busy {
        return Ok(Some(Refused::Busy { response: busy }));
    }
    let items = conversation.items.saturating_add(input.0).saturating_add(limits::OUTPUT_ITEMS);
    let bytes = conversation.bytes.saturating_add(input.1).saturating_add(limits::OUTPUT_BYTES);
    if items > limits::CONVERSATION_ITEMS || bytes > limits::CONVERSATION_BYTES {
        let why = format!(
            "the conversation has no room for another answer: at most {} items and {} bytes",
            limits::CONVERSATION_ITEMS,
            limits::CONVERSATION_BYTES
        );
        return Ok(Some(Refused::TooMuch(why)));
    }
    conversation.busy = Some(response.to_owned());
    keep(rows, target, &conversation)?;
    Ok(None)
}

/// The response is gone or over; nothing of it is added.
pub(super) fn release<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    response: &str,
) -> Result<(), R::Error> {
    let Some(mut conversation) = find(rows, target)? else { return Ok(()) };
    if conversation.busy.as_deref() == Some(response) {
        conversation.busy = None;
        keep(rows, target, &conversation)?;
    }
    Ok(())
}

/// The response is over: what was asked and answered becomes part of the conversation, save what
/// is in it. One that failed or was cancelled leaves nothing.
pub(super) fn finish<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    from: &Target,
    response: &Response,
) -> Result<(), R::Error> {
    release(rows, target, &from.id)?;
    if !matches!(response.run.phase, Phase::Completed | Phase::Incomplete(_)) {
        return Ok(());
    }
    let Some(mut conversation) = find(rows, target)? else { return Ok(()) };
    for list in [ItemList::Input, ItemList::Output] {
        let scan = Scan::of(tables::items(from, list), limits::ITEMS_PER_RESPONSE);
        for (_, row) in rows.scan(Table::Items, &scan)? {
            let item: Item = tables::decode(Table::Items, &row)?;
            let known = tables::item_number(target, ItemList::Conversation, &item.id);
            if rows.get(Table::ItemNumbers, &known)?.is_none() {
                append(rows, target, &mut conversation, (from, &item))?;
            }
        }
    }
    touch(rows, target, &mut conversation, response.ended_ms)?;
    keep(rows, target, &conversation)
}

//! Responses: accepted, computed item by item, deleted.
//!
//! Must never count a token twice: usage rides on the journal entry that is taken, and on no other.

use super::rows::{Rows, Table};
use super::tables::{self, load, save};
use super::types::*;
use super::{bodies, check, conversations, once, retention};
use crate::journal::{Effect, Entry, Run};
use crate::limits;

type Answer<R> = Result<StoreOutcome, <R as super::rows::Look>::Error>;

pub(super) fn accept<R: Rows + ?Sized>(rows: &mut R, accept: &Accept) -> Answer<R> {
    let bytes = match check_accept(accept) {
        Ok(bytes) => bytes,
        Err(refused) => return Ok(StoreOutcome::Refused(refused)),
    };
    let target = Target { tenant: accept.owner.tenant.clone(), id: accept.id.clone() };
    if rows.get(Table::Responses, &tables::object(&target))?.is_some() {
        return Ok(StoreOutcome::Unchanged);
    }
    if let Some(made) = once::find(rows, &target.tenant, accept.once.as_ref(), accept.created_ms)? {
        return Ok(made);
    }
    if let Some(refused) = fits(rows, accept, &target)? {
        return Ok(StoreOutcome::Refused(refused));
    }
    if !retention::make_room(rows, bytes)? {
        return Ok(StoreOutcome::Refused(Refused::Full));
    }
    if let Some(conversation) = &accept.conversation {
        let place = Target { tenant: target.tenant.clone(), id: conversation.clone() };
        let input = (accept.input.len() as u64, accept.input.iter().map(|item| item.body.bytes()).sum());
        if let Some(refused) = conversations::begin(rows, &place, &accept.id, input)? {
            return Ok(StoreOutcome::Refused(refused));
        }
    }
    put_response(rows, accept, &target, bytes)?;
    once::put(rows, &target, Kind::Response, accept.once.as_ref(), accept.created_ms)?;
    Ok(StoreOutcome::Done)
}

fn check_accept(accept: &Accept) -> Result<u64, Refused> {
    let names = || -> Result<u64, String> {
        check::owner(&accept.owner)?;
        check::id(&accept.id)?;
        check::once(accept.once.as_ref())?;
        check::body(&accept.record)?;
        check::body(&accept.request)?;
        let items = check::items(&accept.input)?;
        Ok(items.saturating_add(accept.record.bytes()).saturating_add(accept.request.bytes()))
    };
    let bytes = names().map_err(Refused::Malformed)?;
    if accept.previous.is_some() && accept.conversation.is_some() {
        return Err(Refused::Malformed("a response follows another one or a conversation".to_owned()));
    }
    if bytes > limits::OBJECT_BYTES {
        return Err(Refused::TooMuch(format!("a response has at most {} bytes", limits::OBJECT_BYTES)));
    }
    if accept.input.len() > limits::ITEMS_PER_RESPONSE {
        return Err(Refused::TooMuch(format!("an input has at most {} items", limits::ITEMS_PER_RESPONSE)));
    }
    Ok(bytes)
}

/// Whether what the command builds on is there.
fn fits<R: Rows + ?Sized>(rows: &R, accept: &Accept, target: &Target) -> Result<Option<Refused>, R::Error> {
    let bodies = accept.input.iter().map(|item| &item.body).chain([&accept.record, &accept.request]);
    for body in bodies {
        if !bodies::is_whole(rows, target, body)? {
            return Ok(Some(Refused::Malformed("a chunk of the input is not there".to_owned())));
        }
    }
    if tables::total(rows, tables::UNFINISHED_RUNS)? >= limits::RUNS_UNFINISHED {
        let why = format!("at most {} answers can be waited for at a time", limits::RUNS_UNFINISHED);
        return Ok(Some(Refused::TooMuch(why)));
    }
    let Some(previous) = &accept.previous else { return Ok(None) };
    let previous = Target { tenant: target.tenant.clone(), id: previous.clone() };
    let found: Option<Response> = load(rows, Table::Responses, &tables::object(&previous))?;
    Ok(match found {
        None => Some(Refused::PreviousNotFound),
        Some(response) if !response.run.is_over() => Some(Refused::PreviousNotOver),
        Some(_) => None,
    })
}

fn put_response<R: Rows + ?Sized>(
    rows: &mut R,
    accept: &Accept,
    target: &Target,
    bytes: u64,
) -> Result<(), R::Error> {
    bodies::adopt(rows, target)?;
    for (number, item) in accept.input.iter().enumerate() {
        super::items::put(rows, target, ItemList::Input, number as u64, item)?;
    }
    let response = Response {
        owner: accept.owner.clone(),
        model: accept.model.clone(),
        background: accept.background,
        created_ms: accept.created_ms,
        ended_ms: 0,
        previous: accept.previous.clone(),
        conversation: accept.conversation.clone(),
        record: accept.record.clone(),
        request: accept.request.clone(),
        input_items: accept.input.len() as u64,
        run: Run::accepted(),
        bytes,
        output_bytes: 0,
    };
    save(rows, Table::Responses, &tables::object(target), &response)?;
    rows.put(Table::Lists, &tables::list_entry(target, Kind::Response, response.created_ms), &[])?;
    rows.put(Table::Unfinished, &tables::unfinished(response.created_ms, target), &[])?;
    tables::shift_total(rows, tables::UNFINISHED_RUNS, 0, 1)?;
    tables::shift_bytes(rows, &response.owner, 0, bytes)?;
    tables::shift_usage(rows, &response.owner, |usage| usage.requests += 1)
}

/// A journal entry with the time it is stamped with.
pub(super) struct Stamped<'a> {
    pub entry: &'a Entry,
    pub item: Option<&'a Item>,
    /// Where a chunked body of the item lies.
    pub upload: Option<&'a str>,
    pub now_ms: u64,
}

pub(super) fn journal<R: Rows + ?Sized>(rows: &mut R, target: &Target, stamped: &Stamped<'_>) -> Answer<R> {
    let key = tables::object(target);
    let Some(mut response) = load::<Response, R>(rows, Table::Responses, &key)? else {
        return Ok(StoreOutcome::Refused(Refused::NotFound(Kind::Response)));
    };
    let with_item = matches!(stamped.entry, Entry::ItemComplete { .. });
    if with_item != stamped.item.is_some() {
        return Ok(StoreOutcome::Refused(Refused::Malformed("an item comes with its entry".to_owned())));
    }
    let number = u64::from(response.run.items);
    let tokens = match response.run.apply(stamped.entry) {
        Effect::Repeat => return Ok(StoreOutcome::Unchanged),
        Effect::Misfit(why) => return Ok(StoreOutcome::Refused(Refused::Malformed(why))),
        Effect::Taken(tokens) => tokens,
    };
    if let Some(item) = stamped.item
        && let Some(refused) = put_output(rows, target, &mut response, (number, item, stamped.upload))?
    {
        return Ok(StoreOutcome::Refused(refused));
    }
    if tokens != crate::journal::Tokens::default() {
        tables::shift_usage(rows, &response.owner, |usage| usage.tokens.add(&tokens))?;
    }
    if response.run.is_over() {
        end(rows, target, &mut response, stamped.now_ms)?;
    }
    save(rows, Table::Responses, &key, &response)?;
    Ok(StoreOutcome::Done)
}

fn put_output<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    response: &mut Response,
    output: (u64, &Item, Option<&str>),
) -> Result<Option<Refused>, R::Error> {
    let (number, item, upload) = output;
    if let Err(why) = check::items(std::slice::from_ref(item)) {
        return Ok(Some(Refused::Malformed(why)));
    }
    let output = response.output_bytes.saturating_add(item.body.bytes());
    if number >= limits::OUTPUT_ITEMS || output > limits::OUTPUT_BYTES {
        let most = (limits::OUTPUT_ITEMS, limits::OUTPUT_BYTES);
        let why = format!("an answer has at most {} items and {} bytes", most.0, most.1);
        return Ok(Some(Refused::TooMuch(why)));
    }
    let from = Target { tenant: target.tenant.clone(), id: upload.unwrap_or(&target.id).to_owned() };
    if !bodies::is_whole(rows, &from, &item.body)? {
        return Ok(Some(Refused::Malformed("a chunk of the item is not there".to_owned())));
    }
    // Parts of the input are numbered from 0, so an output item has a part that no input uses.
    let part = limits::ITEMS_PER_RESPONSE as u32 + 16 + number as u32;
    let (body, copied) = bodies::copy(rows, (&from, &item.body), target, part)?;
    if copied {
        bodies::drop_upload(rows, &from)?;
    }
    let bytes = body.bytes();
    super::items::put(rows, target, ItemList::Output, number, &Item { id: item.id.clone(), body })?;
    response.bytes += bytes;
    response.output_bytes += bytes;
    tables::shift_bytes(rows, &response.owner, 0, bytes)?;
    Ok(None)
}

/// The run is over: its time to live begins, and a conversation gets what was said.
fn end<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    response: &mut Response,
    now_ms: u64,
) -> Result<(), R::Error> {
    response.ended_ms = now_ms.max(response.created_ms);
    rows.remove(Table::Unfinished, &tables::unfinished(response.created_ms, target))?;
    tables::shift_total(rows, tables::UNFINISHED_RUNS, 1, 0)?;
    let at_ms = response.ended_ms.saturating_add(limits::RETENTION_MS);
    rows.put(Table::Expiry, &tables::expiry(at_ms, Kind::Response, target), &[])?;
    if let Some(conversation) = &response.conversation {
        let place = Target { tenant: target.tenant.clone(), id: conversation.clone() };
        conversations::finish(rows, &place, target, response)?;
    }
    Ok(())
}

pub(super) fn delete<R: Rows + ?Sized>(rows: &mut R, target: &Target) -> Answer<R> {
    let key = tables::object(target);
    let Some(response) = load::<Response, R>(rows, Table::Responses, &key)? else {
        return Ok(StoreOutcome::Refused(Refused::NotFound(Kind::Response)));
    };
    if response.run.is_over() {
        let at_ms = response.ended_ms.saturating_add(limits::RETENTION_MS);
        rows.remove(Table::Expiry, &tables::expiry(at_ms, Kind::Response, target))?;
    } else {
        rows.remove(Table::Unfinished, &tables::unfinished(response.created_ms, target))?;
        tables::shift_total(rows, tables::UNFINISHED_RUNS, 1, 0)?;
        if let Some(conversation) = &response.conversation {
            let place = Target { tenant: target.tenant.clone(), id: conversation.clone() };
            conversations::release(rows, &place, &target.id)?;
        }
    }
    rows.remove(Table::Responses, &key)?;
    rows.remove(Table::Lists, &tables::list_entry(target, Kind::Response, response.created_ms))?;
    bodies::remove_all(rows, Table::Bodies, &tables::bodies(target))?;
    bodies::remove_all(rows, Table::Items, &tables::object(target))?;
    bodies::remove_all(rows, Table::ItemNumbers, &tables::object(target))?;
    tables::shift_bytes(rows, &response.owner, response.bytes, 0)?;
    Ok(StoreOutcome::Done)
}

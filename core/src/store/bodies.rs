//! Large bodies, which come in chunks before the object they belong to.
//!
//! Must never let a body be named that is not there whole.

use super::rows::{Key, Look, Rows, Scan, Table};
use super::tables::{self, load, save};
use super::types::*;
use crate::limits;

/// What has come of an object that does not exist yet; its chunks are swept after a while.
#[derive(serde::Serialize, serde::Deserialize)]
struct Upload {
    bytes: u64,
    expires_ms: u64,
}

/// A part number no body has: where the upload's own row stands among the bodies.
const UPLOAD_PART: u32 = u32::MAX;

fn upload_key(target: &Target) -> Key {
    tables::chunk(target, UPLOAD_PART, 0)
}

pub(super) fn put_chunk<R: Rows + ?Sized>(
    rows: &mut R,
    target: &Target,
    at: (u32, u32),
    bytes: &[u8],
    now_ms: u64,
) -> Result<StoreOutcome, R::Error> {
    let (part, chunk) = at;
    if let Err(why) = super::check::id(&target.id).and_then(|()| super::check::tenant(&target.tenant)) {
        return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
    }
    if bytes.len() > limits::STORE_CHUNK_BYTES || part == UPLOAD_PART {
        let why = format!("a chunk has at most {} bytes", limits::STORE_CHUNK_BYTES);
        return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
    }
    let key = tables::chunk(target, part, chunk);
    if rows.get(Table::Bodies, &key)?.is_some() {
        return Ok(StoreOutcome::Unchanged);
    }
    let exists = [Table::Responses, Table::Conversations];
    for table in exists {
        if rows.get(table, &tables::object(target))?.is_some() {
            let why = "chunks come before their object".to_owned();
            return Ok(StoreOutcome::Refused(Refused::Malformed(why)));
        }
    }
    let mut upload = load(rows, Table::Bodies, &upload_key(target))?
        .unwrap_or(Upload { bytes: 0, expires_ms: now_ms.saturating_add(limits::UPLOAD_MS) });
    upload.bytes += bytes.len() as u64;
    if upload.bytes > limits::OBJECT_BYTES {
        let why = format!("an object has at most {} bytes", limits::OBJECT_BYTES);
        return Ok(StoreOutcome::Refused(Refused::TooMuch(why)));
    }
    rows.put(Table::Bodies, &key, bytes)?;
    save(rows, Table::Bodies, &upload_key(target), &upload)?;
    rows.put(Table::Expiry, &tables::expiry(upload.expires_ms, Kind::Upload, target), &[])?;
    Ok(StoreOutcome::Done)
}

/// The object of an upload is made: its chunks live as long as it does.
pub(super) fn adopt<R: Rows + ?Sized>(rows: &mut R, target: &Target) -> Result<(), R::Error> {
    let Some(upload) = load::<Upload, R>(rows, Table::Bodies, &upload_key(target))? else {
        return Ok(());
    };
    rows.remove(Table::Expiry, &tables::expiry(upload.expires_ms, Kind::Upload, target))?;
    rows.remove(Table::Bodies, &upload_key(target))
}

/// True if the body is there whole.
pub(super) fn is_whole<L: Look + ?Sized>(rows: &L, target: &Target, body: &Body) -> Result<bool, L::Error> {
    let Body::Chunked { part, chunks, bytes } = body else { return Ok(true) };
    if u64::from(*chunks) > limits::OBJECT_BYTES / limits::STORE_CHUNK_BYTES as u64 + 1 {
        return Ok(false);
    }
    let mut found = 0;
    for number in 0..*chunks {
        let Some(chunk) = rows.get(Table::Bodies, &tables::chunk(target, *part, number))? else {
            return Ok(false);
        };
        found += chunk.len() as u64;
    }
    Ok(found == *bytes)
}

/// The bytes of a body.
pub(super) fn read<L: Look + ?Sized>(rows: &L, target: &Target, body: &Body) -> Result<Vec<u8>, L::Error> {
    let (part, chunks) = match body {
        Body::Inline(bytes) => return Ok(bytes.clone()),
        Body::Chunked { part, chunks, .. } => (*part, *chunks),
    };
    let mut bytes = Vec::new();
    for number in 0..chunks {
        let chunk = rows.get(Table::Bodies, &tables::chunk(target, part, number))?;
        bytes.extend(chunk.ok_or_else(|| tables::damaged(Table::Bodies, "a chunk is missing"))?);
    }
    Ok(bytes)
}

/// Writes a chunked body under another object as `part`. True: the part was used.
pub(super) fn copy<R: Rows + ?Sized>(
    rows: &mut R,
    from: (&Target, &Body),
    to: &Target,
    part: u32,
) -> Result<(Body, bool), R::Error> {
    let (source, body) = from;
    let Body::Chunked { part: old, chunks, bytes } = body else { return Ok((body.clone(), false)) };
    for number in 0..*chunks {
        let chunk = rows.get(Table::Bodies, &tables::chunk(source, *old, number))?;
        let chunk = chunk.ok_or_else(|| tables::damaged(Table::Bodies, "a chunk is missing"))?;
        rows.put(Table::Bodies, &tables::chunk(to, part, number), &chunk)?;
    }
    Ok((Body::Chunked { part, chunks: *chunks, bytes: *bytes }, true))
}

pub(super) fn remove<R: Rows + ?Sized>(rows: &mut R, target: &Target, body: &Body) -> Result<(), R::Error> {
    let Body::Chunked { part, chunks, .. } = body else { return Ok(()) };
    for number in 0..*chunks {
        rows.remove(Table::Bodies, &tables::chunk(target, *part, number))?;
    }
    Ok(())
}

/// Removes everything whose key begins with `prefix`.
pub(super) fn remove_all<R: Rows + ?Sized>(rows: &mut R, table: Table, prefix: &Key) -> Result<(), R::Error> {
    loop {
        let found = rows.scan(table, &Scan::of(prefix.clone(), limits::STORE_SCAN_ROWS))?;
        for (key, _) in &found {
            rows.remove(table, key)?;
        }
        if found.len() < limits::STORE_SCAN_ROWS {
            return Ok(());
        }
    }
}

/// The chunks of an upload were copied to where they belong.
pub(super) fn drop_upload<R: Rows + ?Sized>(rows: &mut R, target: &Target) -> Result<(), R::Error> {
    adopt(rows, target)?;
    remove_all(rows, Table::Bodies, &tables::bodies(target))
}

/// An upload whose object never came.
pub(super) fn expire_upload<R: Rows + ?Sized>(rows: &mut R, target: &Target) -> Result<(), R::Error> {
    if load::<Upload, R>(rows, Table::Bodies, &upload_key(target))?.is_some() {
        remove_all(rows, Table::Bodies, &tables::bodies(target))?;
    }
    Ok(())
}

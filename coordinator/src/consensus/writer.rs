//! The one thread that writes the log file: whatever was queued while the disk was busy goes into
//! the next transaction, and everybody waiting is told after its single durable commit.
//!
//! Must never reorder writes, nor report one as durable before `commit` has returned.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use caravan_core::limits;
use redb::{Database, Table};

use super::store::{LOG, META, Shared, Write, last_id, last_row};
use super::types::{LogId, Vote};

/// Runs until the file is closed or every handle is gone.
pub(super) fn run(shared: &Arc<Shared>, queue: &Receiver<Write>) {
    let mut failed: Option<String> = None;
    loop {
        let (batch, gone) = next_batch(queue);
        let closing = gone || batch.iter().any(|write| matches!(write, Write::Close { .. }));
        let result = match &failed {
            Some(why) => Err(why.clone()),
            None => commit(shared, &batch),
        };
        if let Err(why) = &result
            && failed.is_none()
        {
            tracing::error!(error = %why, "the consensus log can't be written: this coordinator stops");
            failed = Some(why.clone());
        }
        if closing {
            // The file is released before anybody is told that it is closed.
            drop(shared.database.write().unwrap_or_else(PoisonError::into_inner).take());
        }
        for write in batch {
            acknowledge(shared, write, &result);
        }
        if closing {
            return;
        }
    }
}

/// Waits for writes and takes all that are there. True: nobody can send any more.
fn next_batch(queue: &Receiver<Write>) -> (Vec<Write>, bool) {
    let Ok(first) = queue.recv() else { return (Vec::new(), true) };
    let mut bytes = size(&first);
    let mut batch = vec![first];
    if matches!(batch[0], Write::Committed) {
        // Not urgent: give it a chance to ride on a write that needs a commit anyway.
        match queue.recv_timeout(Duration::from_millis(limits::LOG_COMMITTED_FLUSH_MS)) {
            Ok(write) => {
                bytes += size(&write);
                batch.push(write);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return (batch, true),
        }
    }
    while bytes < limits::LOG_BATCH_BYTES {
        let Ok(write) = queue.try_recv() else { break };
        bytes += size(&write);
        batch.push(write);
    }
    (batch, false)
}

fn size(write: &Write) -> usize {
    match write {
        Write::Append { rows, .. } => rows.iter().map(|(_, row)| row.len()).sum(),
        _ => 0,
    }
}

/// Values of the `meta` table that a batch leaves behind.
#[derive(Default)]
struct Marks {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    truncated: bool,
}

/// One transaction with one durable commit for the whole batch.
fn commit(shared: &Shared, batch: &[Write]) -> Result<(), String> {
    let guard = shared.database.read().unwrap_or_else(PoisonError::into_inner);
    let Some(database) = guard.as_ref() else { return Err("the consensus log is closed".to_owned()) };
    let mut marks = Marks::default();
    {
        let mut memory = shared.memory();
        if std::mem::take(&mut memory.committed_dirty) {
            marks.committed = memory.committed;
        }
    }
    if marks.committed.is_none() && batch.iter().all(|write| matches!(write, Write::Committed)) {
        return Ok(());
    }
    write_all(database, batch, &mut marks).map_err(|error| error.to_string())?;
    let newest = match marks.truncated {
        true => Some(last_row(database).map_err(|error| error.to_string())?),
        false => None,
    };
    remember(shared, &marks, newest).map_err(|error| error.to_string())
}

fn write_all(database: &Database, batch: &[Write], marks: &mut Marks) -> Result<(), redb::Error> {
    // The default durability of a transaction is `Immediate`: `commit` returns after the fsync.
    let transaction = database.begin_write()?;
    {
        let mut log = transaction.open_table(LOG)?;
        for write in batch {
            write_one(&mut log, write, marks)?;
        }
        let mut meta = transaction.open_table(META)?;
        if let Some(vote) = &marks.vote {
            meta.insert("vote", bytes(vote)?.as_slice())?;
        }
        if let Some(committed) = &marks.committed {
            meta.insert("committed", bytes(committed)?.as_slice())?;
        }
        if let Some(purged) = &marks.purged {
            meta.insert("purged", bytes(purged)?.as_slice())?;
        }
    }
    Ok(transaction.commit()?)
}

fn write_one(log: &mut Table<'_, u64, &[u8]>, write: &Write, marks: &mut Marks) -> Result<(), redb::Error> {
    match write {
        Write::Append { rows, .. } => {
            for (at, row) in rows {
                log.insert(at, row.as_ref())?;
            }
        }
        Write::Vote { vote, .. } => marks.vote = Some(*vote),
        Write::Truncate { from, .. } => {
            log.retain_in(*from.., |_, _| false)?;
            marks.truncated = true;
        }
        Write::Purge { upto, .. } => {
            log.retain_in(..=upto.index, |_, _| false)?;
            marks.purged = Some(*upto);
        }
        Write::Committed | Write::Close { .. } => {}
    }
    Ok(())
}

fn bytes<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    postcard::to_stdvec(value).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

/// What is durable now, for the readers. `newest` is the last row where the log was cut.
fn remember(
    shared: &Shared,
    marks: &Marks,
    newest: Option<Option<Vec<u8>>>,
) -> Result<(), super::types::Failure> {
    let mut memory = shared.memory();
    memory.vote = marks.vote.or(memory.vote);
    memory.purged = marks.purged.or(memory.purged);
    if let Some(row) = newest {
        memory.last = last_id(row.as_deref(), memory.purged)?;
    }
    memory.last = memory.last.max(memory.purged);
    Ok(())
}

fn acknowledge(shared: &Shared, write: Write, result: &Result<(), String>) {
    match write {
        Write::Append { rows, done } => {
            let mut memory = shared.memory();
            for (at, row) in rows {
                if memory.pending.get(&at).is_some_and(|queued| Arc::ptr_eq(queued, &row)) {
                    memory.pending.remove(&at);
                }
            }
            drop(memory);
            done.log_io_completed(result.clone().map_err(std::io::Error::other));
        }
        Write::Vote { done, .. }
        | Write::Truncate { done, .. }
        | Write::Purge { done, .. }
        | Write::Close { done } => {
            // Nobody waits any more: the node is being stopped.
            let _ = done.send(result.clone());
        }
        Write::Committed => {}
    }
}

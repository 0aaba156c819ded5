//! The durable log and vote of one coordinator: redb tables behind one writer thread.
//!
//! Must never acknowledge a write before the commit that holds it is on disk, and never write
//! again after a failed commit (a later write could leave a hole in the log).

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, mpsc};

use caravan_core::limits;
use openraft::storage::LogFlushed;
use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use tokio::sync::oneshot;

use super::types::{Entry, Failure, LogId, NodeId, TypeConfig, Vote, decode, encode};
use super::writer;

pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Layout of the tables and encoding of what is in them.
const FORMAT: u32 = 2;

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the consensus log can't be opened: {0}; is another process using the data directory?")]
    Redb(Box<redb::Error>),
    #[error("the consensus log can't be read: {0}")]
    Read(Box<Failure>),
    #[error("the data directory belongs to coordinator {found}, not {expected}: start it with its own")]
    OtherNode { found: NodeId, expected: NodeId },
    #[error("the consensus log has format {found}, this build reads {FORMAT}: use the build that wrote it")]
    Format { found: u32 },
    #[error("the consensus log's writer thread can't start: {0}")]
    Thread(std::io::Error),
}

/// A write and whom to tell when it is durable.
pub(super) enum Write {
    Append {
        rows: Vec<(u64, Arc<[u8]>)>,
        done: LogFlushed<TypeConfig>,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    Truncate {
        from: u64,
        done: Done,
    },
    Purge {
        upto: LogId,
        done: Done,
    },
    /// The committed index in memory is newer than on disk. Not urgent, nobody waits.
    Committed,
    /// Commits what is left and closes the file.
    Close {
        done: Done,
    },
}

pub(super) type Done = oneshot::Sender<Result<(), String>>;

/// What has been asked for and may not be durable yet; reads see it at once.
#[derive(Default)]
pub(super) struct Memory {
    /// Encoded entries whose commit is under way.
    pub pending: BTreeMap<u64, Arc<[u8]>>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// `committed` is newer than on disk. It rides on the next commit: losing it costs only that a
    /// restarted node waits for its leader before it applies the last entries again.
    pub committed_dirty: bool,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
}

pub(super) struct Shared {
    /// `None` after `close`.
    pub database: RwLock<Option<Database>>,
    pub memory: Mutex<Memory>,
}

impl Shared {
    /// A thread that panicked while it held the lock left nothing half done: every critical section
    /// is a few assignments.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Handle to the store. The file is closed when the last handle is gone, or by `close`.
#[derive(Clone)]
pub(super) struct Store {
    pub shared: Arc<Shared>,
    writes: mpsc::SyncSender<Write>,
}

impl Store {
    /// Opens or makes `file`, which belongs to coordinator `me`.
    pub fn open(file: &Path, me: NodeId) -> Result<Store, OpenError> {
        let database = redb::Builder::new()
            .set_cache_size(limits::LOG_CACHE_BYTES)
            .create(file)
            .map_err(|error| OpenError::Redb(Box::new(error.into())))?;
        Store::with_database(database, me)
    }

    pub fn with_database(database: Database, me: NodeId) -> Result<Store, OpenError> {
        check_owner(&database, me)?;
        let memory = load(&database).map_err(|error| OpenError::Read(Box::new(error)))?;
        let shared = Arc::new(Shared { database: RwLock::new(Some(database)), memory: Mutex::new(memory) });
        let (writes, queue) = mpsc::sync_channel(limits::LOG_WRITES);
        let for_writer = shared.clone();
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer::run(&for_writer, &queue))
            .map_err(OpenError::Thread)?;
        Ok(Store { shared, writes })
    }

    /// Queues a write. The queue is far longer than what can be under way at a time (the library
    /// waits for each); a full one means that the disk hangs.
    pub fn send(&self, write: Write) -> Result<(), Failure> {
        self.writes.try_send(write).map_err(|_| {
            let why = AnyError::error("the consensus log is closed, or its disk does not answer");
            StorageIOError::write(why).into()
        })
    }

    /// Queues a write and waits until it is durable.
    pub async fn write(
        &self,
        subject: ErrorSubject<NodeId>,
        make: impl FnOnce(Done) -> Write,
    ) -> Result<(), Failure> {
        let (done, durable) = oneshot::channel();
        self.send(make(done))?;
        let why = match durable.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => "the consensus log was closed".to_owned(),
        };
        Err(StorageIOError::new(subject, ErrorVerb::Write, AnyError::error(why)).into())
    }

    /// Flushes and closes the file; every later use of any handle is refused.
    pub async fn close(&self) -> Result<(), Failure> {
        self.write(ErrorSubject::Store, |done| Write::Close { done }).await
    }

    /// Runs a read on a thread where it may block.
    pub async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Failure> {
        let shared = self.shared.clone();
        let read = tokio::task::spawn_blocking(move || {
            let guard = shared.database.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            match guard.as_ref() {
                Some(database) => job(database).map_err(|error| AnyError::new(&error)),
                None => Err(AnyError::error("the consensus log is closed")),
            }
        });
        match read.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(StorageIOError::read(error).into()),
            Err(error) => Err(StorageIOError::read(AnyError::new(&error)).into()),
        }
    }

    /// Entries of `range` in order, up to `max_bytes` of them but at least one; those queued too.
    pub async fn entries(
        &self,
        range: impl RangeBounds<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, Failure> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(&range) {
            return Ok(Vec::new());
        }
        // Before the disk: an entry leaves `pending` only once it can be read there.
        let pending: Vec<(u64, Arc<[u8]>)> =
            self.shared.memory().pending.range(range).map(|(at, row)| (*at, row.clone())).collect();
        let queued_from = pending.first().map_or(u64::MAX, |(at, _)| *at);
        let mut rows = self.read(move |database| rows(database, range, queued_from, max_bytes)).await?;
        let mut bytes: usize = rows.iter().map(|row| row.len()).sum();
        for (_, row) in pending {
            if bytes >= max_bytes && !rows.is_empty() {
                break;
            }
            bytes += row.len();
            rows.push(row);
        }
        rows.iter().map(|row| decode(row)).collect()
    }
}

fn is_empty(range: &(Bound<u64>, Bound<u64>)) -> bool {
    let first = match range.0 {
        Bound::Included(at) => at,
        Bound::Excluded(at) => at.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match range.1 {
        Bound::Included(at) => first > at,
        Bound::Excluded(at) => first >= at,
        Bound::Unbounded => false,
    }
}

/// Rows below index `before`, until `max_bytes` are reached.
fn rows(
    database: &Database,
    range: (Bound<u64>, Bound<u64>),
    before: u64,
    max_bytes: usize,
) -> Result<Vec<Arc<[u8]>>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(LOG) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    let mut bytes = 0;
    for row in table.range::<u64>(range)? {
        let (at, value) = row?;
        if at.value() >= before || bytes >= max_bytes {
            break;
        }
        bytes += value.value().len();
        found.push(Arc::from(value.value()));
    }
    Ok(found)
}

/// Marks a new file, refuses one of another node or format.
fn check_owner(database: &Database, me: NodeId) -> Result<(), OpenError> {
    let mark = || -> Result<Option<Vec<u8>>, redb::Error> {
        let transaction = database.begin_write()?;
        let mut table = transaction.open_table(META)?;
        let found = table.get("owner")?.map(|value| value.value().to_vec());
        if found.is_none() {
            let owner = postcard::to_stdvec(&(FORMAT, me))
                .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            table.insert("owner", owner.as_slice())?;
        }
        drop(table);
        transaction.open_table(LOG)?;
        transaction.commit()?;
        Ok(found)
    };
    let found = mark().map_err(|error| OpenError::Redb(Box::new(error)))?;
    let Some(owner) = found else { return Ok(()) };
    let (format, rest): (u32, &[u8]) = postcard::take_from_bytes(&owner)
        .map_err(|error| OpenError::Redb(Box::new(redb::Error::Corrupted(error.to_string()))))?;
    if format != FORMAT {
        return Err(OpenError::Format { found: format });
    }
    let node: NodeId = decode(rest).map_err(|error| OpenError::Read(Box::new(error)))?;
    if node != me {
        return Err(OpenError::OtherNode { found: node, expected: me });
    }
    Ok(())
}

/// What `Memory` holds right after opening.
fn load(database: &Database) -> Result<Memory, Failure> {
    let fail = |error: redb::Error| -> Failure { StorageIOError::read(AnyError::new(&error)).into() };
    let get = |name: &'static str| -> Result<Option<Vec<u8>>, redb::Error> {
        let table = database.begin_read()?.open_table(META)?;
        Ok(table.get(name)?.map(|value| value.value().to_vec()))
    };
    let vote = get("vote").map_err(fail)?.map(|bytes| decode(&bytes)).transpose()?;
    let committed = get("committed").map_err(fail)?.map(|bytes| decode(&bytes)).transpose()?;
    let purged: Option<LogId> = get("purged").map_err(fail)?.map(|bytes| decode(&bytes)).transpose()?;
    let last = last_row(database).map_err(fail)?;
    Ok(Memory { vote, committed, purged, last: last_id(last.as_deref(), purged)?, ..Memory::default() })
}

/// The newest row of the log, encoded.
pub(super) fn last_row(database: &Database) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = database.begin_read()?.open_table(LOG)?;
    Ok(table.last()?.map(|(_, value)| value.value().to_vec()))
}

/// The id of the newest entry, or of the last purged one where none is left.
pub(super) fn last_id(row: Option<&[u8]>, purged: Option<LogId>) -> Result<Option<LogId>, Failure> {
    let Some(row) = row else { return Ok(purged) };
    let entry: Entry = decode(row)?;
    Ok(Some(entry.log_id).max(purged))
}

/// Encoded entries by index.
pub(super) type Rows = Vec<(u64, Arc<[u8]>)>;

/// Encodes entries for `Write::Append`; the id of the last one.
pub(super) fn encode_rows(entries: impl Iterator<Item = Entry>) -> Result<(Rows, Option<LogId>), Failure> {
    let mut rows = Vec::new();
    let mut last = None;
    for entry in entries {
        rows.push((entry.log_id.index, Arc::from(encode(&entry)?)));
        last = Some(entry.log_id);
    }
    Ok((rows, last))
}

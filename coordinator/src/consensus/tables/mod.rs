//! The applied state in a file of its own: the store's rows, the cluster state, and the log position
//! that both stand at, changed together.
//!
//! A transaction is synced only now and then: what a power cut takes is applied again from the log,
//! which is compacted only up to a synced position.
//!
//! Must never hold rows and a position that do not belong together.

mod body;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use caravan_core::cluster::{ClusterState, Outcome};
use caravan_core::limits;
use caravan_core::store::{self, ApiKey, Key, Look, StoreCommand, Table};
use openraft::{AnyError, EntryPayload, ErrorSubject, ErrorVerb, StorageIOError};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{
    Answer, Entry, Failure, LogId, NodeId, Proposal, SnapshotMeta, StoredMembership, decode, encode,
};

pub use body::Body;
pub use rows::{RowsError, View};

use body::Part;
use rows::{Change, definition};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
/// Layout of the tables and encoding of what is in them.
const FORMAT: u32 = 1;

const OWNER: &str = "owner";
const APPLIED: &str = "applied";
const MEMBERSHIP: &str = "membership";
const CLUSTER: &str = "cluster";
/// Position up to which the log may be compacted.
const SNAPSHOT: &str = "snapshot";
/// Index of the last entry that took something away for good.
const DELETED: &str = "deleted";

/// Handle to the file.
#[derive(Clone)]
pub(super) struct Tables {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` after `close`.
    database: RwLock<Option<Database>>,
    synced: Mutex<Instant>,
    /// Where snapshots on their way are written, without a name.
    folder: PathBuf,
}

/// The small part of the state, which is kept in memory too.
#[derive(Clone, Default)]
pub(super) struct Position {
    pub state: Arc<ClusterState>,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    pub deleted: u64,
    /// API keys by id: every request needs them.
    pub keys: Arc<BTreeMap<String, ApiKey>>,
}

/// What applying entries did.
pub(super) struct Applied {
    pub position: Position,
    pub answers: Vec<Vec<Answer>>,
    /// Responses that were written or removed: keys of their table.
    pub responses: BTreeSet<Key>,
    pub cluster_changed: bool,
}

impl Tables {
    /// Opens or makes the file of coordinator `me`. Snapshots pass through `folder`.
    pub fn open(file: &Path, folder: &Path, me: NodeId) -> Result<Tables, RowsError> {
        let database = redb::Builder::new().set_cache_size(limits::STATE_CACHE_BYTES).create(file)?;
        Tables::with_database(database, folder, me)
    }

    pub fn with_database(database: Database, folder: &Path, me: NodeId) -> Result<Tables, RowsError> {
        mark(&database, me)?;
        let shared = Shared {
            database: RwLock::new(Some(database)),
            synced: Mutex::new(Instant::now()),
            folder: folder.to_owned(),
        };
        Ok(Tables { shared: Arc::new(shared) })
    }

    /// What the file stands at.
    pub async fn position(&self) -> Result<Position, Failure> {
        self.blocking(|shared| shared.with(|database| position(&View::new(database.begin_read()?)))).await
    }

    /// Applies entries in one transaction.
    pub async fn apply(&self, from: Position, entries: Vec<Entry>) -> Result<Applied, Failure> {
        self.blocking(move |shared| shared.apply(from, &entries)).await
    }

    /// Makes all that was applied durable, and notes that the log up to `meta` may go.
    pub async fn keep(&self, meta: SnapshotMeta) -> Result<(), Failure> {
        self.blocking(move |shared| {
            shared.sync(|transaction| {
                let mut table = transaction.open_table(META)?;
                let known = table.get(SNAPSHOT)?.map(|value| from_bytes::<SnapshotMeta>(value.value()));
                // One that was asked for earlier may come later.
                if known.transpose()?.is_none_or(|known| known.last_log_id <= meta.last_log_id) {
                    table.insert(SNAPSHOT, bytes(&meta)?.as_slice())?;
                }
                Ok(())
            })
        })
        .await
    }

    /// The rows as they are now, for as long as the view is held.
    pub async fn view(&self) -> Result<View, Failure> {
        self.blocking(|shared| shared.with(|database| Ok(View::new(database.begin_read()?)))).await
    }

    /// Runs a read on a thread where it may block.
    pub async fn look<T: Send + 'static>(
        &self,
        job: impl FnOnce(&View) -> Result<T, RowsError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.blocking(move |shared| shared.with(|database| job(&View::new(database.begin_read()?)))).await
    }

    /// The position that the log may be compacted to; `None` before the first.
    pub async fn kept(&self) -> Result<Option<SnapshotMeta>, Failure> {
        self.look(|view| meta(view, SNAPSHOT)).await
    }

    /// An empty snapshot to receive into.
    pub fn receiving(&self) -> Result<Body, Failure> {
        Body::receiving(&self.shared.folder).map_err(|error| StorageIOError::write(&error).into())
    }

    /// The snapshot as a file that can be sent.
    pub async fn to_file(&self, body: Body) -> Result<File, Failure> {
        match body {
            Body::File(file) => Ok(file.into_std().await),
            Body::Frozen(view) => self.blocking(move |shared| Body::write(&view, &shared.folder)).await,
        }
    }

    /// Replaces everything by the snapshot's rows, in one transaction.
    pub async fn install(&self, meta: SnapshotMeta, body: Body) -> Result<Position, Failure> {
        let mut file = self.to_file(body).await?;
        self.blocking(move |shared| {
            shared.sync(|transaction| replace(transaction, &meta, &mut file))?;
            shared.with(|database| position(&View::new(database.begin_read()?)))
        })
        .await
    }

    /// Makes all durable and closes the file; every later use of any handle is refused.
    pub async fn close(&self) -> Result<(), Failure> {
        self.blocking(|shared| {
            shared.sync(|_| Ok(()))?;
            drop(shared.database.write().unwrap_or_else(PoisonError::into_inner).take());
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Shared) -> Result<T, RowsError> + Send + 'static,
    ) -> Result<T, Failure> {
        let shared = self.shared.clone();
        let why = match tokio::task::spawn_blocking(move || job(&shared)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => AnyError::new(&error),
            Err(error) => AnyError::new(&error),
        };
        Err(StorageIOError::new(ErrorSubject::StateMachine, ErrorVerb::Write, why).into())
    }
}

impl Shared {
    fn with<T>(&self, job: impl FnOnce(&Database) -> Result<T, RowsError>) -> Result<T, RowsError> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match guard.as_ref() {
            Some(database) => job(database),
            None => Err(std::io::Error::other("the state's file is closed").into()),
        }
    }

    /// A transaction that is on disk when this returns.
    fn sync(&self, job: impl FnOnce(&WriteTransaction) -> Result<(), RowsError>) -> Result<(), RowsError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            // A restart after a crash must not walk the whole file.
            transaction.set_quick_repair(true);
            job(&transaction)?;
            Ok(transaction.commit()?)
        })?;
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }

    fn apply(&self, mut position: Position, entries: &[Entry]) -> Result<Applied, RowsError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let due = synced.elapsed() >= Duration::from_millis(limits::STATE_SYNC_MS);
        let (answers, responses, cluster_changed) = self.with(|database| {
            let mut transaction = database.begin_write()?;
            match due {
                true => transaction.set_quick_repair(true),
                false => transaction.set_durability(Durability::None)?,
            }
            let before = (position.state.clone(), position.membership.log_id().to_owned());
            let mut change = Change::new(&transaction)?;
            // A transaction that is dropped before its commit changes nothing.
            let answers = entries
                .iter()
                .map(|entry| apply_entry(&mut position, &mut change, entry))
                .collect::<Result<Vec<_>, RowsError>>()?;
            let responses = std::mem::take(&mut change.responses);
            if entries.iter().any(changes_keys) {
                position.keys = keys(&change)?;
            }
            drop(change);
            let cluster_changed = !Arc::ptr_eq(&before.0, &position.state);
            let changed = (cluster_changed, before.1 != *position.membership.log_id());
            note(&transaction, &position, changed)?;
            transaction.commit()?;
            Ok((answers, responses, cluster_changed))
        })?;
        if due {
            *synced = Instant::now();
        }
        Ok(Applied { position, answers, responses, cluster_changed })
    }
}

fn apply_entry(
    position: &mut Position,
    rows: &mut Change<'_>,
    entry: &Entry,
) -> Result<Vec<Answer>, RowsError> {
    position.applied = Some(entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => Ok(Vec::new()),
        EntryPayload::Membership(membership) => {
            position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            Ok(Vec::new())
        }
        EntryPayload::Normal(group) => {
            let mut apply = |proposal: &Proposal| -> Result<Answer, RowsError> {
                match proposal {
                    Proposal::Cluster(command) => {
                        Ok(Answer::Cluster(apply_cluster(&mut position.state, command)))
                    }
                    Proposal::Store(command) => {
                        if command.deletes() {
                            position.deleted = entry.log_id.index;
                        }
                        Ok(Answer::Store(store::apply(rows, command)?))
                    }
                }
            };
            group.0.iter().map(&mut apply).collect()
        }
    }
}

fn changes_keys(entry: &Entry) -> bool {
    let EntryPayload::Normal(group) = &entry.payload else { return false };
    group.0.iter().any(|proposal| {
        matches!(proposal, Proposal::Store(StoreCommand::CreateKey { .. } | StoreCommand::RevokeKey { .. }))
    })
}

fn keys<L: Look<Error = RowsError>>(rows: &L) -> Result<Arc<BTreeMap<String, ApiKey>>, RowsError> {
    Ok(Arc::new(store::read::api_keys(rows)?.into_iter().collect()))
}

/// The state is copied only if the command changes it: watchers hold the one before.
fn apply_cluster(state: &mut Arc<ClusterState>, command: &caravan_core::cluster::Command) -> Outcome {
    let mut next = state.as_ref().clone();
    let outcome = next.apply(command);
    if outcome == Outcome::Done {
        *state = Arc::new(next);
    }
    outcome
}

/// Writes the position. `changed`: the cluster state, the membership.
fn note(transaction: &WriteTransaction, position: &Position, changed: (bool, bool)) -> Result<(), RowsError> {
    let mut table = transaction.open_table(META)?;
    table.insert(APPLIED, bytes(&position.applied)?.as_slice())?;
    table.insert(DELETED, bytes(&position.deleted)?.as_slice())?;
    if changed.0 {
        table.insert(CLUSTER, bytes(position.state.as_ref())?.as_slice())?;
    }
    if changed.1 {
        table.insert(MEMBERSHIP, bytes(&position.membership)?.as_slice())?;
    }
    Ok(())
}

/// Marks a new file, refuses one of another node or format.
fn mark(database: &Database, me: NodeId) -> Result<(), RowsError> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let found = {
        let mut table = transaction.open_table(META)?;
        let found: Option<Vec<u8>> = table.get(OWNER)?.map(|value| value.value().to_vec());
        if found.is_none() {
            table.insert(OWNER, bytes(&(FORMAT, me))?.as_slice())?;
        }
        found
    };
    transaction.commit()?;
    match found {
        None => Ok(()),
        Some(owner) if owner == bytes(&(FORMAT, me))? => Ok(()),
        Some(_) => {
            let why = "the state's file is another coordinator's, or of another version of caravan";
            Err(std::io::Error::other(why).into())
        }
    }
}

fn position(view: &View) -> Result<Position, RowsError> {
    Ok(Position {
        state: Arc::new(meta(view, CLUSTER)?.unwrap_or_default()),
        applied: meta::<Option<LogId>>(view, APPLIED)?.flatten(),
        membership: meta(view, MEMBERSHIP)?.unwrap_or_default(),
        deleted: meta(view, DELETED)?.unwrap_or_default(),
        keys: keys(view)?,
    })
}

/// A value of the table of names.
fn meta<T: DeserializeOwned>(view: &View, name: &str) -> Result<Option<T>, RowsError> {
    let table = view.transaction().open_table(META)?;
    let Some(value) = table.get(name)? else { return Ok(None) };
    from_bytes(value.value()).map(Some)
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RowsError> {
    decode(bytes).map_err(|error: Failure| std::io::Error::other(error.to_string()).into())
}

/// The encoded cluster state, if there is one.
fn cluster_bytes(view: &View) -> Result<Option<Vec<u8>>, RowsError> {
    let table = view.transaction().open_table(META)?;
    Ok(table.get(CLUSTER)?.map(|value| value.value().to_vec()))
}

fn bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, RowsError> {
    encode(value).map_err(|error| std::io::Error::other(error.to_string()).into())
}

/// Every row gives way to those of a snapshot.
fn replace(transaction: &WriteTransaction, meta: &SnapshotMeta, file: &mut File) -> Result<(), RowsError> {
    for table in Table::ALL {
        transaction.delete_table(definition(table))?;
    }
    let mut change = Change::new(transaction)?;
    let mut cluster = ClusterState::default();
    body::read(file, |part| match part {
        Part::Cluster(encoded) => {
            cluster = from_bytes(&encoded)?;
            Ok(())
        }
        Part::Row(table, key, value) => change.put_quietly(table, &Key(key), &value),
    })?;
    drop(change);
    let position = Position {
        state: Arc::new(cluster),
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
        // The log behind a snapshot is gone, with all that was deleted before.
        deleted: 0,
        // Only what `note` writes matters here.
        keys: Arc::default(),
    };
    note(transaction, &position, (true, true))?;
    transaction.open_table(META)?.insert(SNAPSHOT, bytes(meta)?.as_slice())?;
    Ok(())
}

//! Applies committed commands to the cluster state and keeps its snapshots.
//!
//! The state lives in memory. On disk are the last snapshot and the log after it: a restarted node
//! loads the one and applies the other again, so that no state is written twice.
//!
//! Must never change the state by anything but a committed command or an installed snapshot.

use std::io::Cursor;
use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Outcome};
use caravan_core::limits;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, ErrorSubject, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use tokio::sync::watch;

use super::store::{Store, Write};
use super::types::{
    Entry, Failure, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, decode, encode,
};

pub(super) struct StateMachine {
    store: Store,
    state: Arc<ClusterState>,
    applied: Option<LogId>,
    membership: StoredMembership,
    publish_state: watch::Sender<Arc<ClusterState>>,
    publish_applied: watch::Sender<Option<u64>>,
}

/// What the rest of the coordinator watches.
pub(super) struct Watches {
    pub state: watch::Receiver<Arc<ClusterState>>,
    /// Index of the newest applied entry; `state` holds at least that.
    pub applied: watch::Receiver<Option<u64>>,
}

impl StateMachine {
    /// Loads the last snapshot; the library then applies the log after it.
    pub async fn open(store: Store) -> Result<(StateMachine, Watches), Failure> {
        let found = store.snapshot().await?;
        let (state, applied, membership) = match found {
            Some((meta, data)) => (decode(&data)?, meta.last_log_id, meta.last_membership),
            None => (ClusterState::default(), None, StoredMembership::default()),
        };
        let state = Arc::new(state);
        let (publish_state, state_seen) = watch::channel(state.clone());
        let (publish_applied, applied_seen) = watch::channel(applied.map(|id| id.index));
        let machine = StateMachine { store, state, applied, membership, publish_state, publish_applied };
        Ok((machine, Watches { state: state_seen, applied: applied_seen }))
    }

    fn apply_entry(&mut self, entry: Entry) -> Outcome {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcome::Unchanged,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Unchanged
            }
            EntryPayload::Normal(command) => Arc::make_mut(&mut self.state).apply(&command),
        }
    }

    /// Tells the watchers, the state first: whoever sees the index finds the state there.
    fn publish(&self, changed: bool) {
        if changed {
            self.publish_state.send_replace(self.state.clone());
        }
        self.publish_applied.send_replace(self.applied.map(|id| id.index));
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), Failure> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, Failure>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes: Vec<Outcome> = entries.into_iter().map(|entry| self.apply_entry(entry)).collect();
        self.publish(outcomes.contains(&Outcome::Done));
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            store: self.store.clone(),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let data = Arc::new(snapshot.into_inner());
        check_digest(meta, &data)?;
        let state: ClusterState = decode(&data)?;
        let kept = Box::new(meta.clone());
        self.store.write(subject(meta), |done| Write::Snapshot { meta: kept, data, done }).await?;
        self.state = Arc::new(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish(true);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, Failure> {
        let found = self.store.snapshot().await?;
        Ok(found.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

fn subject(meta: &SnapshotMeta) -> ErrorSubject<u64> {
    ErrorSubject::Snapshot(Some(meta.signature()))
}

/// A state as it was when the builder was asked for.
pub(super) struct Builder {
    store: Store,
    state: Arc<ClusterState>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, Failure> {
        let state = self.state.clone();
        let encoded = tokio::task::spawn_blocking(move || encode(state.as_ref())).await;
        let data = encoded.map_err(|error| StorageIOError::read_state_machine(&error))??;
        if data.len() > limits::SNAPSHOT_BYTES {
            // Restarts still work; a follower that misses the log will say why it can't catch up.
            tracing::error!(bytes = data.len(), "the cluster state outgrew the limit of a snapshot");
        }
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: snapshot_id(self.applied, &data),
        };
        let (kept, shared) = (Box::new(meta.clone()), Arc::new(data.clone()));
        self.store.write(subject(&meta), |done| Write::Snapshot { meta: kept, data: shared, done }).await?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

/// Equal ids mean equal bytes, so chunks of one snapshot may come from several leaders.
fn snapshot_id(applied: Option<LogId>, data: &[u8]) -> String {
    let at = applied.map_or(0, |id| id.index);
    format!("{at}-{}", blake3::hash(data).to_hex())
}

/// Refuses a snapshot that lost or gained bytes on its way.
fn check_digest(meta: &SnapshotMeta, data: &[u8]) -> Result<(), Failure> {
    if meta.snapshot_id == snapshot_id(meta.last_log_id, data) {
        return Ok(());
    }
    let why = AnyError::error("the snapshot received does not have the digest in its name");
    Err(StorageIOError::read_snapshot(Some(meta.signature()), why).into())
}

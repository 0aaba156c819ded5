//! Applies committed commands to the tables, and tells who watches.
//!
//! Must never change the state by anything but a committed command or an installed snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caravan_core::cluster::ClusterState;
use caravan_core::limits;
use caravan_core::store::{ApiKey, Key};
use openraft::storage::RaftStateMachine;
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{broadcast, watch};

use super::tables::{Body, Position, Tables, View};
use super::types::{Answer, Entry, Failure, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};

pub(super) struct StateMachine {
    tables: Tables,
    position: Position,
    publish_state: watch::Sender<Arc<ClusterState>>,
    publish_applied: watch::Sender<Option<u64>>,
    publish_deleted: watch::Sender<u64>,
    publish_keys: watch::Sender<Arc<BTreeMap<String, ApiKey>>>,
    publish_responses: broadcast::Sender<Arc<BTreeSet<Key>>>,
}

/// What the rest of the coordinator watches.
pub(super) struct Watches {
    pub state: watch::Receiver<Arc<ClusterState>>,
    /// Index of the newest applied entry; state and rows hold at least that.
    pub applied: watch::Receiver<Option<u64>>,
    /// Index of the newest entry that took something away for good.
    pub deleted: watch::Receiver<u64>,
    /// API keys by id.
    pub keys: watch::Receiver<Arc<BTreeMap<String, ApiKey>>>,
    /// Responses that were written or removed.
    pub responses: broadcast::Sender<Arc<BTreeSet<Key>>>,
}

impl StateMachine {
    /// Goes on where the tables end; the library then applies the log after it.
    pub async fn open(tables: Tables) -> Result<(StateMachine, Watches), Failure> {
        let position = tables.position().await?;
        let (publish_state, state) = watch::channel(position.state.clone());
        let (publish_applied, applied) = watch::channel(position.applied.map(|id| id.index));
        let (publish_deleted, deleted) = watch::channel(position.deleted);
        let (publish_keys, keys) = watch::channel(position.keys.clone());
        let publish_responses = broadcast::Sender::new(limits::STORE_CHANGES);
        let watches = Watches { state, applied, deleted, keys, responses: publish_responses.clone() };
        let machine = StateMachine {
            tables,
            position,
            publish_state,
            publish_applied,
            publish_deleted,
            publish_keys,
            publish_responses,
        };
        Ok((machine, watches))
    }

    /// Tells the watchers, the state first: whoever sees the index finds the state there.
    fn publish(&self, cluster_changed: bool, responses: BTreeSet<Key>) {
        if cluster_changed {
            self.publish_state.send_replace(self.position.state.clone());
        }
        let keys = &self.position.keys;
        self.publish_keys.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(known, keys);
            known.clone_from(keys);
            changed
        });
        self.publish_applied.send_replace(self.position.applied.map(|id| id.index));
        let deleted = self.position.deleted;
        self.publish_deleted.send_if_modified(|known| std::mem::replace(known, deleted) != deleted);
        if !responses.is_empty() {
            // Nobody listens: nobody runs anything here.
            let _ = self.publish_responses.send(Arc::new(responses));
        }
    }

    fn meta(&self) -> SnapshotMeta {
        meta(self.position.applied, &self.position.membership)
    }
}

/// The rows at a position are the same everywhere, so chunks of one snapshot may come from several
/// leaders.
fn meta(applied: Option<LogId>, membership: &StoredMembership) -> SnapshotMeta {
    let at = applied.map_or_else(|| "0".to_owned(), |id| format!("{}-{}", id.leader_id.term, id.index));
    SnapshotMeta { last_log_id: applied, last_membership: membership.clone(), snapshot_id: at }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), Failure> {
        Ok((self.position.applied, self.position.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Vec<Answer>>, Failure>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let applied = self.tables.apply(self.position.clone(), entries).await?;
        self.position = applied.position;
        self.publish(applied.cluster_changed, applied.responses);
        Ok(applied.answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { tables: self.tables.clone(), view: self.tables.view().await, meta: self.meta() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Body>, Failure> {
        Ok(Box::new(self.tables.receiving()?))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<Body>) -> Result<(), Failure> {
        self.position = self.tables.install(meta.clone(), *snapshot).await?;
        self.publish(true, BTreeSet::new());
        Ok(())
    }

    /// The rows as they are now: always newer than what was promised to be kept.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, Failure> {
        if self.tables.kept().await?.is_none() {
            return Ok(None);
        }
        let snapshot = Box::new(Body::Frozen(Box::new(self.tables.view().await?)));
        Ok(Some(Snapshot { meta: self.meta(), snapshot }))
    }
}

/// Rows as they were when the builder was asked for.
pub(super) struct Builder {
    tables: Tables,
    view: Result<View, Failure>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    /// There is nothing to build: the tables are the snapshot, once they are on disk.
    async fn build_snapshot(&mut self) -> Result<Snapshot, Failure> {
        self.tables.keep(self.meta.clone()).await?;
        let again = self.tables.view().await;
        let view = std::mem::replace(&mut self.view, again)?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(Body::Frozen(Box::new(view))) })
    }
}

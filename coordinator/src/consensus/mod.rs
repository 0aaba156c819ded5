//! Raft behind one handle: propose a command, watch the applied state. Nothing else names the
//! library.
//!
//! Must never let a type of the library, or the way to the leader, be seen outside this folder.

// The library's errors are large; they are rare, and its traits fix the type.
#![allow(clippy::result_large_err)]

mod groups;
mod log_store;
mod measure;
mod membership;
mod network;
mod propose;
mod scrub;
mod service;
mod state_machine;
mod status;
mod store;
mod tables;
mod types;
mod writer;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod objects_tests;
#[cfg(test)]
mod partition_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tables_tests;
#[cfg(test)]
mod testkit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use caravan_core::cluster::ClusterState;
use caravan_core::error::Refusal;
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use caravan_core::store::{ApiKey, Key};
use caravan_proto::wire::raft_server::RaftServer;
use openraft::error::{InitializeError, RaftError};
use openraft::{BasicNode, Config, SnapshotPolicy};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinHandle;

pub use measure::{StoreFigures, StoreLoad, measure_store};
pub use service::RaftService;
pub use store::OpenError;
pub use tables::{RowsError, View};

use network::{Network, Peers};
use state_machine::StateMachine;
use store::Store;
use tables::Tables;
use types::{NodeId, Raft};

/// Names of the files in the data directory: the log, and what applying it gave.
const FILE: &str = "consensus.redb";
const STATE_FILE: &str = "state.redb";

pub struct ConsensusConfig {
    pub me: CoordinatorId,
    /// Folder of this coordinator's log and state.
    pub data_dir: PathBuf,
    /// gRPC `host:port` of every first member, this one included. Addresses given here win over
    /// those in the stored membership, so that a cluster may move to other ports. A coordinator
    /// that is not among them founds nothing: it waits until it is added.
    pub peers: BTreeMap<CoordinatorId, String>,
}

/// How often the log is compacted; the defaults are those of `limits`.
#[derive(Clone, Copy, Debug)]
pub struct Compaction {
    /// Entries after which a snapshot is taken.
    pub every: u64,
    /// Entries kept before the snapshot, for followers that lag a little.
    pub keep: u64,
    /// How long the log may still hold what was deleted.
    pub scrub_ms: u64,
}

impl Default for Compaction {
    fn default() -> Compaction {
        Compaction {
            every: limits::SNAPSHOT_EVERY_ENTRIES,
            keep: limits::LOG_KEEP_ENTRIES,
            scrub_ms: limits::SCRUB_MS,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads, and a majority has confirmed it within the last election timeout.
    Leader,
    Follower,
    /// Seeks votes, or leads by name only: its majority has not answered lately.
    Candidate,
    Learner,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusStatus {
    pub me: CoordinatorId,
    pub role: Role,
    pub leader: Option<CoordinatorId>,
    pub term: u64,
    pub applied: u64,
    /// Voters and learners, with whether this node could reach them lately (true for itself).
    pub members: BTreeMap<CoordinatorId, bool>,
}

/// API keys by id.
pub type ApiKeys = Arc<BTreeMap<String, ApiKey>>;

/// Handle to this coordinator's Raft node.
#[derive(Clone)]
pub struct Consensus {
    state: watch::Receiver<Arc<ClusterState>>,
    status: watch::Receiver<ConsensusStatus>,
    applied: watch::Receiver<Option<u64>>,
    keys: watch::Receiver<ApiKeys>,
    inner: Arc<Inner>,
}

/// What the handles and the gRPC service share.
struct Inner {
    raft: Raft,
    peers: Arc<Peers>,
    store: Store,
    tables: Tables,
    status: watch::Receiver<ConsensusStatus>,
    proposals: Semaphore,
    groups: mpsc::Sender<groups::Waiting>,
    responses: broadcast::Sender<Arc<BTreeSet<Key>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Consensus {
    /// Opens log and state, joins or founds the cluster. Returns before a leader is known. The
    /// caller mounts `service()` on its gRPC server.
    ///
    /// Errors: the data directory can't be used (another process, another coordinator's, another
    /// build's, a broken disk).
    pub async fn start(config: ConsensusConfig) -> anyhow::Result<Consensus> {
        Consensus::start_with(config, Compaction::default()).await
    }

    /// `start` with another compaction than the default.
    pub async fn start_with(config: ConsensusConfig, compaction: Compaction) -> anyhow::Result<Consensus> {
        let me = config.me.0;
        let addresses: BTreeMap<NodeId, String> =
            config.peers.into_iter().map(|(id, addr)| (id.0, addr)).collect();
        let (store, tables) = open(config.data_dir, me).await?;
        let (machine, watches) = StateMachine::open(tables.clone()).await.context(UNREADABLE)?;
        let peers = Peers::new(me, addresses.clone());
        let network = Network { peers: peers.clone(), tables: tables.clone() };
        let raft = Raft::new(me, Arc::new(raft_config(compaction)?), network, store.clone(), machine)
            .await
            .context(UNREADABLE)?;
        let (groups, queue) = mpsc::channel(limits::PROPOSALS);
        let metrics = raft.metrics();
        let now = status::read(&metrics.borrow(), &peers, Duration::ZERO);
        let (publish, status) = watch::channel(now);
        let tasks = vec![
            tokio::spawn(status::run(metrics.clone(), peers.clone(), publish)),
            tokio::spawn(status::probe(metrics, peers.clone())),
            tokio::spawn(found(raft.clone(), me, addresses)),
            tokio::spawn(groups::run(raft.clone(), queue)),
            tokio::spawn(scrub::run(raft.clone(), watches.deleted, compaction.scrub_ms)),
        ];
        let inner = Inner {
            raft,
            peers,
            store,
            tables,
            status: status.clone(),
            proposals: Semaphore::new(limits::PROPOSALS),
            groups,
            responses: watches.responses,
            tasks: Mutex::new(tasks),
        };
        let (state, applied, keys) = (watches.state, watches.applied, watches.keys);
        Ok(Consensus { state, status, applied, keys, inner: Arc::new(inner) })
    }

    /// The state applied here; changes are watched. May lag behind the leader.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    pub fn status(&self) -> watch::Receiver<ConsensusStatus> {
        self.status.clone()
    }

    /// Reads rows as they are applied here; `linearize` first, where nothing acknowledged may be
    /// missing.
    pub async fn look<T: Send + 'static>(
        &self,
        job: impl FnOnce(&View) -> Result<T, RowsError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.inner.tables.look(job).await.map_err(propose::stopped)
    }

    /// The API keys applied here, revoked ones too.
    pub fn api_keys(&self) -> watch::Receiver<ApiKeys> {
        self.keys.clone()
    }

    /// Responses that are written or removed here from now on: keys of their table. A receiver that
    /// lags behind is told so, and looks at the rows again.
    pub fn changed_responses(&self) -> broadcast::Receiver<Arc<BTreeSet<Key>>> {
        self.inner.responses.subscribe()
    }

    /// The service that the other coordinators call; to be mounted on this node's gRPC server.
    pub fn service(&self) -> RaftServer<RaftService> {
        RaftServer::new(RaftService(self.inner.clone()))
            .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
            .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES)
    }

    /// Stops taking part and closes the files. The other coordinators go on.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(JoinHandle::abort);
        if let Err(error) = self.inner.store.close().await {
            tracing::warn!(%error, "the consensus log was not closed cleanly");
        }
        if let Err(error) = self.inner.tables.close().await {
            tracing::warn!(%error, "the state's file was not closed cleanly");
        }
    }
}

/// Why what a data folder holds may not be what this build reads.
const UNREADABLE: &str = "the coordinator's data folder can't be read: another version of caravan wrote it, or it is damaged; \
    use that version, or move the folders of all coordinators away, which forgets the cluster (retrying won't help)";

async fn open(data_dir: PathBuf, me: NodeId) -> anyhow::Result<(Store, Tables)> {
    let opening = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&data_dir)
            .with_context(|| format!("can't make the data directory {}", data_dir.display()))?;
        let file = data_dir.join(FILE);
        let store = Store::open(&file, me).with_context(|| format!("can't open {}", file.display()))?;
        let file = data_dir.join(STATE_FILE);
        let tables = Tables::open(&file, &data_dir, me);
        Ok((store, tables.with_context(|| format!("can't open {}", file.display()))?))
    });
    opening.await?
}

fn raft_config(compaction: Compaction) -> anyhow::Result<Config> {
    let config = Config {
        cluster_name: "caravan".to_owned(),
        heartbeat_interval: limits::RAFT_HEARTBEAT_MS,
        election_timeout_min: limits::RAFT_ELECTION_MIN_MS,
        election_timeout_max: limits::RAFT_ELECTION_MAX_MS,
        max_payload_entries: limits::RAFT_APPEND_ENTRIES,
        install_snapshot_timeout: limits::SNAPSHOT_CHUNK_MS,
        snapshot_max_chunk_size: limits::SNAPSHOT_CHUNK_BYTES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.every),
        max_in_snapshot_log_to_keep: compaction.keep,
        // A learner this close to the leader may become a voter.
        replication_lag_threshold: limits::RAFT_APPEND_ENTRIES,
        ..Config::default()
    };
    Ok(config.validate()?)
}

/// Writes the first membership into an empty log. Every first member may do it, since all write
/// the same; the lowest does it at once and the others only if they hear nothing, because each
/// founder also stands for election.
async fn found(raft: Raft, me: NodeId, first: BTreeMap<NodeId, String>) {
    if !first.contains_key(&me) {
        return;
    }
    if first.keys().next() != Some(&me) {
        tokio::time::sleep(Duration::from_millis(2 * limits::RAFT_ELECTION_MAX_MS)).await;
    }
    if !matches!(raft.is_initialized().await, Ok(false)) {
        return;
    }
    let members: BTreeMap<NodeId, BasicNode> =
        first.into_iter().map(|(id, addr)| (id, BasicNode::new(addr))).collect();
    match raft.initialize(members).await {
        // `NotAllowed`: the leader was faster.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => tracing::error!(%error, "the cluster can't be founded"),
    }
}

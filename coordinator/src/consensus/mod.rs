//! Raft behind one handle: propose a command, watch the applied state. Nothing else names the library.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Command, Outcome};
use caravan_core::error::Refusal;
use caravan_core::ids::CoordinatorId;
use tokio::sync::watch;

pub struct ConsensusConfig {
    pub me: CoordinatorId,
    /// Folder of this coordinator's log and state.
    pub data_dir: PathBuf,
    /// gRPC `host:port` of every first member, this one included. Addresses given here win over
    /// those in the stored membership, so that a cluster may move to other ports.
    pub peers: BTreeMap<CoordinatorId, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
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

/// Handle to this coordinator's Raft node.
#[derive(Clone)]
pub struct Consensus {
    state: watch::Receiver<Arc<ClusterState>>,
    status: watch::Receiver<ConsensusStatus>,
}

impl Consensus {
    /// Opens log and state, joins or founds the cluster. Returns before a leader is known.
    pub async fn start(_config: ConsensusConfig) -> anyhow::Result<Consensus> {
        todo!()
    }

    /// Commits a command, through the leader wherever it is. A `Refusal` with a safe retry means
    /// that it may or may not have been committed (no quorum, deadline).
    pub async fn propose(&self, _command: Command) -> Result<Outcome, Refusal> {
        todo!()
    }

    /// The state applied here; changes are watched. May lag behind the leader.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    pub fn status(&self) -> watch::Receiver<ConsensusStatus> {
        self.status.clone()
    }

    /// After this returns, `state()` holds everything acknowledged before the call.
    pub async fn linearize(&self) -> Result<(), Refusal> {
        todo!()
    }

    /// Adds a coordinator as learner, then as voter. On the leader only.
    pub async fn add_member(&self, _id: CoordinatorId, _grpc: String) -> Result<(), Refusal> {
        todo!()
    }

    /// Removes a coordinator from the voters. On the leader only.
    pub async fn remove_member(&self, _id: CoordinatorId) -> Result<(), Refusal> {
        todo!()
    }
}

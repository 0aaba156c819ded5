//! The types that the consensus library is instantiated with, and how they become bytes.
//!
//! Must never leave this folder: the rest of the coordinator sees commands, outcomes and ids.

use std::fmt;

use caravan_core::cluster::{Command, Outcome};
use caravan_core::store::{StoreCommand, StoreOutcome};
use openraft::error::RaftError;
use openraft::{BasicNode, StorageError, StorageIOError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// Groups of commands in, an answer to each out; a node is known by its gRPC `host:port`.
    pub TypeConfig:
        D = Group,
        R = Vec<Answer>,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = super::tables::Body,
);

/// One command of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Proposal {
    Cluster(Command),
    Store(StoreCommand),
}

/// What one command of an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Cluster(Outcome),
    Store(StoreOutcome),
}

/// Commands that share an entry, and so a sync of the disk.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Group(pub Vec<Proposal>);

/// Without what is in them: bodies are people's words, and do not belong into logs.
impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.0.len())
    }
}

pub(super) type NodeId = u64;
pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type StoredMembership = openraft::StoredMembership<NodeId, BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, BasicNode>;
pub(super) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(super) type RaftMetrics = openraft::RaftMetrics<NodeId, BasicNode>;
pub(super) type Failure = StorageError<NodeId>;
pub(super) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(super) type AppendResponse = openraft::raft::AppendEntriesResponse<NodeId>;
pub(super) type VoteRequest = openraft::raft::VoteRequest<NodeId>;
pub(super) type VoteResponse = openraft::raft::VoteResponse<NodeId>;
pub(super) type ChunkRequest = openraft::raft::InstallSnapshotRequest<TypeConfig>;
pub(super) type ChunkResponse = openraft::raft::InstallSnapshotResponse<NodeId>;
pub(super) type RpcError<E = openraft::error::Infallible> =
    openraft::error::RPCError<NodeId, BasicNode, RaftError<NodeId, E>>;

/// What travels between coordinators. The names of both ends are inside because addresses can move:
/// a vote meant for one coordinator but delivered to another would be counted twice.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope<T> {
    pub from: NodeId,
    pub to: NodeId,
    pub body: T,
}

/// The leader's answer to a command that another coordinator handed to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Forwarded {
    /// Committed and applied at this log index.
    Done {
        answer: Answer,
        index: u64,
    },
    /// Not appended here: ask another one.
    NotLeader,
    Refused(caravan_core::error::Refusal),
}

/// Bytes for the log store.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    postcard::to_stdvec(value).map_err(|error| StorageIOError::write(&error).into())
}

/// The reverse of `encode`; fails on bytes that another version or a broken disk left.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    postcard::from_bytes(bytes).map_err(|error| StorageIOError::read(&error).into())
}

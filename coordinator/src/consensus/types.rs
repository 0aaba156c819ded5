//! The types that the consensus library is instantiated with, and how they become bytes.
//!
//! Must never leave this folder: the rest of the coordinator sees commands, outcomes and ids.

use std::io::Cursor;

use caravan_core::cluster::{Command, Outcome};
use openraft::error::RaftError;
use openraft::{BasicNode, StorageError, StorageIOError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// Commands in, outcomes out; a node is known by its gRPC `host:port`.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

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
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Forwarded {
    /// Committed and applied at this log index.
    Done {
        outcome: Outcome,
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

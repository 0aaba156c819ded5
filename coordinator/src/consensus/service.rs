//! What this coordinator answers to the other coordinators.
//!
//! Must never act on a message that names another receiver, nor forward a command a second time.

use std::sync::Arc;
use std::time::Duration;

use caravan_core::limits;
use caravan_proto::wire::raft_server;
use caravan_proto::wire::{RaftPayload, ReadIndexReply, ReadIndexRequest};
use caravan_proto::{pack, unpack};
use openraft::error::{CheckIsLeaderError, InstallSnapshotError, RaftError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status};

use super::Inner;
use super::types::{AppendRequest, ChunkRequest, ChunkResponse, Envelope, Forwarded, Proposal, VoteRequest};

/// The `Raft` service of one coordinator.
pub struct RaftService(pub(super) Arc<Inner>);

impl RaftService {
    /// Checks that the message is meant for this coordinator.
    fn open<T: DeserializeOwned>(&self, request: Request<RaftPayload>) -> Result<T, Status> {
        let envelope: Envelope<T> = unpack(&request.into_inner().data, "data")?;
        let me = self.0.peers.me;
        if envelope.to != me {
            let why = format!("this is coordinator {me}, not {}: an address has moved", envelope.to);
            return Err(Status::failed_precondition(why));
        }
        self.0.peers.hear(envelope.from);
        Ok(envelope.body)
    }
}

fn reply<T: Serialize>(body: &T) -> Result<Response<RaftPayload>, Status> {
    Ok(Response::new(RaftPayload { data: pack(body)? }))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this coordinator's consensus has stopped: {error}"))
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append(&self, request: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        let rpc: AppendRequest = self.open(request)?;
        reply(&self.0.raft.append_entries(rpc).await.map_err(stopped)?)
    }

    async fn vote(&self, request: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        let rpc: VoteRequest = self.open(request)?;
        reply(&self.0.raft.vote(rpc).await.map_err(stopped)?)
    }

    async fn snapshot(&self, request: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        let rpc: ChunkRequest = self.open(request)?;
        let end = rpc.offset.saturating_add(rpc.data.len() as u64);
        if end > limits::SNAPSHOT_BYTES {
            return Err(Status::resource_exhausted("the snapshot is larger than one may be"));
        }
        let answer: Result<ChunkResponse, InstallSnapshotError> =
            match self.0.raft.install_snapshot(rpc).await {
                Ok(response) => Ok(response),
                Err(RaftError::APIError(error)) => Err(error),
                Err(RaftError::Fatal(error)) => return Err(stopped(error)),
            };
        reply(&answer)
    }

    async fn propose(&self, request: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        let proposal: Proposal = self.open(request)?;
        let limit = Duration::from_millis(limits::PROPOSE_MS);
        match tokio::time::timeout(limit, self.0.append_here(proposal)).await {
            Ok(forwarded) => reply(&forwarded),
            Err(_) => reply(&Forwarded::Refused(super::propose::no_quorum())),
        }
    }

    async fn read_index(
        &self,
        _request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        let index = match self.0.raft.get_read_log_id().await {
            Ok((read, _applied)) => read.map(|id| id.index),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {
                return Err(Status::failed_precondition("this coordinator does not lead"));
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error))) => {
                return Err(Status::aborted(error.to_string()));
            }
            Err(RaftError::Fatal(error)) => return Err(stopped(error)),
        };
        let reply = ReadIndexReply { index: index.unwrap_or(0), empty: index.is_none() };
        Ok(Response::new(reply))
    }
}

//! Messages to the other coordinators, over connections that nothing else uses.
//!
//! Must never be the only bound of a wait: the callers give up by their own deadlines.

use std::collections::BTreeMap;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use caravan_core::limits;
use caravan_proto::wire::raft_client::RaftClient;
use caravan_proto::wire::{RaftPayload, ReadIndexRequest};
use caravan_proto::{pack, unpack};
use openraft::error::{Fatal, ReplicationClosed, StreamingError};
use openraft::error::{InstallSnapshotError, NetworkError, RaftError, RemoteError, Unreachable};
use openraft::network::snapshot_transport::{Chunked, SnapshotTransport};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::SnapshotResponse;
use openraft::{BasicNode, OptionalSend, RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::tables::{Body, Tables};
use super::types::{
    AppendRequest, AppendResponse, ChunkRequest, ChunkResponse, Envelope, LogId, NodeId, RpcError, Snapshot,
    TypeConfig, Vote, VoteRequest, VoteResponse,
};

type Client = RaftClient<Channel>;

/// The connections to one other coordinator.
struct Link {
    addr: String,
    /// Heartbeats, log entries and votes: nothing large may stand before a heartbeat.
    vital: Client,
    /// Snapshot chunks, forwarded commands, questions.
    bulk: Client,
}

/// All other coordinators: their addresses, connections, and when they were last heard from.
pub(super) struct Peers {
    pub me: NodeId,
    /// Addresses that win over those in the stored membership.
    fixed: BTreeMap<NodeId, String>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    heard: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Peers {
    pub fn new(me: NodeId, fixed: BTreeMap<NodeId, String>) -> Arc<Peers> {
        Arc::new(Peers { me, fixed, links: Mutex::default(), heard: Mutex::default() })
    }

    /// The coordinator answered, or sent a message itself.
    pub fn hear(&self, id: NodeId) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }

    /// True for itself and for those heard from within `within`.
    pub fn reachable(&self, id: NodeId, within: Duration) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        id == self.me || heard.get(&id).is_some_and(|at| at.elapsed() <= within)
    }

    fn link(&self, id: NodeId, stored: &str) -> Result<Arc<Link>, Status> {
        let addr = self.fixed.get(&id).map_or(stored, String::as_str);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&id)
            && link.addr == addr
        {
            return Ok(link.clone());
        }
        let (vital, bulk) = (client(addr)?, client(addr)?);
        let link = Arc::new(Link { addr: addr.to_owned(), vital, bulk });
        links.insert(id, link.clone());
        Ok(link)
    }

    /// Any answer of the peer itself, a refusal too, shows that it is there.
    fn note<T>(&self, id: NodeId, result: &Result<T, Status>) {
        let answered = match result {
            Ok(_) => true,
            Err(status) => matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument),
        };
        if answered {
            self.hear(id);
        }
    }

    /// Hands a command to `id`; the answer is a `Forwarded` in bytes.
    pub async fn propose<T, R>(&self, id: NodeId, stored: &str, body: T) -> Result<R, Status>
    where
        T: Serialize,
        R: DeserializeOwned,
    {
        let mut client = self.link(id, stored)?.bulk.clone();
        let result = client.propose(self.seal(id, body)?).await;
        self.note(id, &result);
        Ok(unpack(&result?.into_inner().data, "answer")?)
    }

    /// Asks `id` for the log index that makes a read here linearizable.
    pub async fn read_index(&self, id: NodeId, stored: &str) -> Result<Option<u64>, Status> {
        let mut client = self.link(id, stored)?.bulk.clone();
        let result = client.read_index(ReadIndexRequest {}).await;
        self.note(id, &result);
        let reply = result?.into_inner();
        Ok((!reply.empty).then_some(reply.index))
    }

    fn seal<T: Serialize>(&self, to: NodeId, body: T) -> Result<Request<RaftPayload>, Status> {
        let data = pack(&Envelope { from: self.me, to, body })?;
        Ok(Request::new(RaftPayload { data }))
    }
}

/// Connects when first used, and again whenever the connection broke.
fn client(addr: &str) -> Result<Client, Status> {
    let bad = |error| Status::internal(format!("`{addr}` is not a coordinator's host:port: {error}"));
    let channel = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(bad)?
        .connect_timeout(Duration::from_millis(limits::CONNECT_MS))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_millis(limits::KEEPALIVE_MS))
        .keep_alive_timeout(Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS))
        .keep_alive_while_idle(true)
        .connect_lazy();
    Ok(RaftClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES))
}

/// Makes the library's connections.
pub(super) struct Network {
    pub peers: Arc<Peers>,
    pub tables: Tables,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Connection {
        Connection {
            peers: self.peers.clone(),
            tables: self.tables.clone(),
            target,
            stored: node.addr.clone(),
            under_way: None,
        }
    }
}

/// What names a replication message: the leader's vote, the entry before it and its last entry.
type AppendName = (Vote, Option<LogId>, Option<LogId>);
type AppendTask = JoinHandle<Result<AppendResponse, Status>>;

/// One connection of the library to one coordinator.
pub(super) struct Connection {
    peers: Arc<Peers>,
    tables: Tables,
    target: NodeId,
    stored: String,
    /// The library gives a replication message one heartbeat interval and then sends the same
    /// entries again. Entries that need longer would never arrive if giving up cancelled them, so
    /// they go on in a task, and the second try waits for the first.
    under_way: Option<(AppendName, AppendTask)>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some((_, task)) = self.under_way.take() {
            task.abort();
        }
    }
}

impl Connection {
    fn send(
        &self,
        rpc: &AppendRequest,
    ) -> Result<impl Future<Output = Result<AppendResponse, Status>> + Send + use<>, Status> {
        let mut client = self.peers.link(self.target, &self.stored)?.vital.clone();
        let request = self.peers.seal(self.target, rpc)?;
        let (peers, target) = (self.peers.clone(), self.target);
        Ok(async move {
            let result = client.append(request).await;
            peers.note(target, &result);
            Ok(unpack(&result?.into_inner().data, "answer")?)
        })
    }

    async fn append(&mut self, rpc: AppendRequest) -> Result<AppendResponse, Status> {
        let Some(last) = rpc.entries.last() else { return self.send(&rpc)?.await };
        let name = (rpc.vote, rpc.prev_log_id, Some(last.log_id));
        if self.under_way.as_ref().is_none_or(|(running, _)| *running != name) {
            if let Some((_, overtaken)) = self.under_way.take() {
                overtaken.abort();
            }
            let limit = Duration::from_millis(limits::RAFT_APPEND_MS);
            let sending = tokio::time::timeout(limit, self.send(&rpc)?);
            let task = tokio::spawn(async move {
                sending.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
            });
            self.under_way = Some((name, task));
        }
        let Some((_, task)) = self.under_way.as_mut() else {
            return Err(Status::internal("no message is under way"));
        };
        let result = task.await;
        self.under_way = None;
        result.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }

    async fn ask_vote(&self, rpc: &VoteRequest) -> Result<VoteResponse, Status> {
        let mut client = self.peers.link(self.target, &self.stored)?.vital.clone();
        let result = client.vote(self.peers.seal(self.target, rpc)?).await;
        self.peers.note(self.target, &result);
        Ok(unpack(&result?.into_inner().data, "answer")?)
    }

    async fn chunk(&self, rpc: &ChunkRequest) -> Result<Result<ChunkResponse, InstallSnapshotError>, Status> {
        let mut client = self.peers.link(self.target, &self.stored)?.bulk.clone();
        let result = client.snapshot(self.peers.seal(self.target, rpc)?).await;
        self.peers.note(self.target, &result);
        Ok(unpack(&result?.into_inner().data, "answer")?)
    }
}

/// `Unreachable` makes the library pause before the next try, `Network` does not.
fn rpc_error<E: std::error::Error>(status: &Status) -> RpcError<E> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::InvalidArgument => {
            Unreachable::new(status).into()
        }
        _ => NetworkError::new(status).into(),
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        _option: RPCOption,
    ) -> Result<AppendResponse, RpcError> {
        self.append(rpc).await.map_err(|status| rpc_error(&status))
    }

    async fn install_snapshot(
        &mut self,
        rpc: ChunkRequest,
        _option: RPCOption,
    ) -> Result<ChunkResponse, RpcError<InstallSnapshotError>> {
        if rpc.offset.saturating_add(rpc.data.len() as u64) > limits::SNAPSHOT_BYTES {
            let why = Status::resource_exhausted("the cluster state is larger than a snapshot may be");
            return Err(NetworkError::new(&why).into());
        }
        let answer = self.chunk(&rpc).await.map_err(|status| rpc_error(&status))?;
        answer.map_err(|error| RemoteError::new(self.target, RaftError::APIError(error)).into())
    }

    /// A snapshot's rows are written to a file only now that somebody needs them.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let Snapshot { meta, snapshot } = snapshot;
        let file = self.tables.to_file(*snapshot).await.map_err(StreamingError::StorageError)?;
        let snapshot = Box::new(Body::File(tokio::fs::File::from_std(file)));
        Chunked::send_snapshot(self, vote, Snapshot { meta, snapshot }, cancel, option).await
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        // Coordinators that start together: the others may listen some milliseconds later, and
        // without their votes the next election is a whole timeout away.
        let started = Instant::now();
        loop {
            match self.ask_vote(&rpc).await {
                Err(status)
                    if status.code() == Code::Unavailable && started.elapsed() < option.hard_ttl() =>
                {
                    tokio::time::sleep(Duration::from_millis(limits::RAFT_VOTE_RETRY_MS)).await;
                }
                result => return result.map_err(|status| rpc_error(&status)),
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(limits::RAFT_RETRY_MS)))
    }
}

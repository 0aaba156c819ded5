//! The connection to a coordinator that is slow, deaf or not there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use caravan_proto::wire::raft_server::{Raft, RaftServer};
use caravan_proto::wire::{RaftPayload, ReadIndexReply, ReadIndexRequest};
use openraft::error::RPCError;
use openraft::network::RPCOption;
use openraft::{BasicNode, RaftNetwork, RaftNetworkFactory};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::network::{Connection, Network, Peers};
use super::testkit::entry;
use super::types::*;

/// Takes 250 ms for each replication message and counts them.
#[derive(Clone, Default)]
struct Slow {
    appends: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl Raft for Slow {
    async fn append(&self, _: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(250)).await;
        let data = caravan_proto::pack(&AppendResponse::Success).unwrap();
        Ok(Response::new(RaftPayload { data }))
    }

    async fn vote(&self, _: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        let data = caravan_proto::pack(&VoteResponse::new(Vote::new(1, 1), None, true)).unwrap();
        Ok(Response::new(RaftPayload { data }))
    }

    async fn snapshot(&self, _: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn propose(&self, _: Request<RaftPayload>) -> Result<Response<RaftPayload>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexReply>, Status> {
        Err(Status::failed_precondition("does not lead"))
    }
}

fn serve(listener: TcpListener, service: Slow) {
    let server = tonic::transport::Server::builder().add_service(RaftServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
}

async fn connect(addr: &str) -> (Arc<Peers>, Connection) {
    let peers = Peers::new(1, BTreeMap::new());
    let connection = Network(peers.clone()).new_client(2, &BasicNode::new(addr)).await;
    (peers, connection)
}

fn append(last: u64) -> AppendRequest {
    AppendRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: None,
        entries: (0..=last).map(|index| entry(1, index)).collect(),
        leader_commit: None,
    }
}

#[tokio::test]
async fn entries_that_take_longer_than_a_try_arrive_once_all_the_same() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let slow = Slow::default();
    serve(listener, slow.clone());
    let (_, mut connection) = connect(&addr).await;
    let ttl = Duration::from_millis(100);
    let option = RPCOption::new(ttl);
    let mut tries = 0;
    let response = loop {
        tries += 1;
        let sent = connection.append_entries(append(3), option.clone());
        if let Ok(result) = tokio::time::timeout(ttl, sent).await {
            break result.unwrap();
        }
        assert!(tries < 10, "it never arrives");
    };
    assert_eq!(response, AppendResponse::Success);
    assert!(tries > 1);
    assert_eq!(slow.appends.load(Ordering::SeqCst), 1, "sent once");
    // Other entries are another message.
    connection.append_entries(append(4), option).await.unwrap();
    assert_eq!(slow.appends.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_vote_waits_for_one_that_listens_a_little_later() {
    let reserved = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = reserved.local_addr().unwrap();
    drop(reserved);
    let (peers, mut connection) = connect(&addr.to_string()).await;
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        serve(TcpListener::bind(addr).await.unwrap(), Slow::default());
    });
    let option = RPCOption::new(Duration::from_millis(2_000));
    let response = connection.vote(VoteRequest::new(Vote::new(1, 1), None), option).await.unwrap();
    assert!(response.vote_granted);
    assert!(peers.reachable(2, Duration::from_secs(1)));
}

#[tokio::test]
async fn one_that_is_not_there_is_unreachable_in_bounded_time() {
    let reserved = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = reserved.local_addr().unwrap().to_string();
    drop(reserved);
    let (peers, mut connection) = connect(&addr).await;
    let started = Instant::now();
    let option = RPCOption::new(Duration::from_millis(100));
    let error = connection.append_entries(append(0), option.clone()).await.unwrap_err();
    assert!(matches!(error, RPCError::Unreachable(_)), "{error:?}");
    let error = connection.vote(VoteRequest::new(Vote::new(1, 1), None), option).await.unwrap_err();
    assert!(matches!(error, RPCError::Unreachable(_)), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(!peers.reachable(2, Duration::from_secs(60)));
    // A refusal is a sign of life.
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    serve(listener, Slow::default());
    assert!(peers.read_index(2, &addr).await.is_err());
    assert!(peers.reachable(2, Duration::from_secs(60)));
}

#[tokio::test]
async fn an_address_that_is_none_is_an_error() {
    let (_, mut connection) = connect("not an address").await;
    let option = RPCOption::new(Duration::from_millis(100));
    assert!(connection.append_entries(append(0), option).await.is_err());
}

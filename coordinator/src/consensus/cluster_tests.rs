//! Whole coordinators' consensus over real gRPC on loopback. Each node has its own runtime, so that
//! dropping it kills everything of the node at once, as `kill -9` would.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use caravan_core::cluster::{Command, Outcome};
use caravan_core::error::{Fault, Retry};
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

use super::store_tests::command;
use super::types::Envelope;
use super::{Compaction, Consensus, ConsensusConfig, Role};

const SMALL: Compaction = Compaction { every: 20, keep: 5 };

struct Node {
    runtime: Option<Runtime>,
    consensus: Option<Consensus>,
}

impl Node {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    fn consensus(&self) -> &Consensus {
        self.consensus.as_ref().unwrap()
    }

    fn propose(&self, number: u64) {
        let outcome = self.run(self.consensus().propose(command(number)));
        assert_eq!(outcome, Ok(Outcome::Done), "command {number}");
    }

    fn has(&self, number: u64) -> bool {
        self.consensus().state().borrow().coordinators.contains_key(&CoordinatorId(number))
    }

    fn role(&self) -> Role {
        self.consensus().status().borrow().role
    }

    fn leader(&self) -> Option<u64> {
        self.consensus().status().borrow().leader.map(|id| id.0)
    }

    /// Everything of the node ends at once; nothing is flushed or said good-bye to.
    fn kill(mut self) {
        drop(self.consensus.take());
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(5));
    }

    fn stop(self) {
        self.run(self.consensus().shutdown());
        self.kill();
    }
}

struct Cluster {
    dirs: BTreeMap<u64, TempDir>,
    addresses: BTreeMap<u64, String>,
    first: Vec<u64>,
    nodes: BTreeMap<u64, Node>,
    compaction: Compaction,
}

impl Cluster {
    /// Ports for `all`, of which `first` found the cluster. Nothing runs yet.
    fn new(all: u64, first: u64, compaction: Compaction) -> Cluster {
        let listeners: Vec<TcpListener> =
            (0..all).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string());
        Cluster {
            dirs: (1..=all).map(|id| (id, tempfile::tempdir().unwrap())).collect(),
            addresses: (1..=all).zip(addresses).collect(),
            first: (1..=first).collect(),
            nodes: BTreeMap::new(),
            compaction,
        }
    }

    fn started(count: u64, compaction: Compaction) -> Cluster {
        let mut cluster = Cluster::new(count, count, compaction);
        (1..=count).for_each(|id| cluster.start(id));
        cluster
    }

    fn start(&mut self, id: u64) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let addr = self.addresses[&id].clone();
        let consensus = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(&addr).await.unwrap();
            let consensus = self.open(id).await;
            let server = tonic::transport::Server::builder().add_service(consensus.service());
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            consensus
        });
        self.nodes.insert(id, Node { runtime: Some(runtime), consensus: Some(consensus) });
    }

    /// The log's thread of a killed node closes the file a moment after the node is gone.
    async fn open(&self, id: u64) -> Consensus {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let peers = self.first.iter().map(|id| (CoordinatorId(*id), self.addresses[id].clone()));
            let config = ConsensusConfig {
                me: CoordinatorId(id),
                data_dir: self.dirs[&id].path().to_owned(),
                peers: peers.collect(),
            };
            match Consensus::start_with(config, self.compaction).await {
                Ok(consensus) => return consensus,
                Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn kill(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill();
    }

    fn stop(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stop();
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    /// The one that leads and says so itself.
    fn leader(&self) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some((id, _)) = self.nodes.iter().find(|(_, node)| node.role() == Role::Leader) {
                return *id;
            }
            assert!(Instant::now() < deadline, "no leader");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.nodes.keys().find(|id| **id != leader).unwrap()
    }
}

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_single_coordinator_leads_at_once_and_keeps_its_state() {
    let started = Instant::now();
    let mut cluster = Cluster::started(1, Compaction::default());
    cluster.leader();
    println!("a single coordinator led after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(1));
    (100..110).for_each(|number| cluster.node(1).propose(number));
    assert_eq!(
        cluster.node(1).run(cluster.node(1).consensus().propose(command(100))),
        Ok(Outcome::Unchanged)
    );
    for kill in [true, false] {
        if kill {
            cluster.kill(1)
        } else {
            cluster.stop(1)
        }
        let started = Instant::now();
        cluster.start(1);
        let node = cluster.node(1);
        node.run(node.consensus().linearize()).unwrap();
        println!("a restarted single coordinator was current after {:?}", started.elapsed());
        assert!((100..110).all(|number| node.has(number)));
    }
}

#[test]
fn a_stopped_coordinator_refuses_with_words() {
    let cluster = Cluster::started(1, Compaction::default());
    cluster.leader();
    let node = cluster.node(1);
    node.run(node.consensus().shutdown());
    let started = Instant::now();
    let refusal = node.run(node.consensus().propose(command(1))).unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.fault), ("consensus_stopped", Fault::Operator));
    assert!(node.run(node.consensus().linearize()).is_err());
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn three_coordinators_survive_what_they_should() {
    let started = Instant::now();
    let mut cluster = Cluster::started(3, Compaction::default());
    let leader = cluster.leader();
    println!("three coordinators had a leader after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(5));

    // Through a follower; read there and elsewhere.
    let follower = cluster.follower();
    cluster.node(follower).propose(100);
    assert!(cluster.node(follower).has(100), "the proposer sees its own command");
    cluster.node(leader).propose(101);
    for node in cluster.nodes.values() {
        node.run(node.consensus().linearize()).unwrap();
        assert!(node.has(100) && node.has(101));
    }
    eventually("everybody is seen by everybody", || {
        cluster.nodes.values().all(|node| {
            let status = node.consensus().status().borrow().clone();
            status.members.len() == 3 && status.members.values().all(|there| *there)
        })
    });

    // Without its leader.
    cluster.kill(leader);
    let died = Instant::now();
    cluster.node(follower).propose(102);
    println!("a command was committed {:?} after the leader's death", died.elapsed());
    assert_ne!(cluster.leader(), leader);
    eventually("the dead one counts as down", || {
        let status = cluster.node(follower).consensus().status().borrow().clone();
        status.members.get(&CoordinatorId(leader)) == Some(&false)
    });

    // The dead one comes back.
    cluster.start(leader);
    eventually("caught up", || (100..=102).all(|number| cluster.node(leader).has(number)));
    cluster.node(leader).propose(103);

    // All stop and start.
    for id in 1..=3 {
        cluster.kill(id);
    }
    (1..=3).for_each(|id| cluster.start(id));
    for node in cluster.nodes.values() {
        node.run(node.consensus().linearize()).unwrap();
        assert!((100..=103).all(|number| node.has(number)));
    }
}

#[test]
fn one_of_three_alone_refuses_and_does_not_hang() {
    let mut cluster = Cluster::started(3, Compaction::default());
    let leader = cluster.leader();
    cluster.node(leader).propose(1);
    let others: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    cluster.kill(others[0]);
    cluster.node(leader).propose(2);
    cluster.kill(others[1]);
    let node = cluster.node(leader);
    let started = Instant::now();
    let refusal = node.run(node.consensus().propose(command(3))).unwrap_err();
    let waited = started.elapsed();
    assert!(waited < Duration::from_millis(limits::PROPOSE_MS + 500), "{waited:?}");
    assert_eq!(refusal.code, "no_quorum");
    assert_eq!(refusal.fault, Fault::Cluster);
    assert!(matches!(refusal.retry, Retry::AfterMs(_)));
    assert!(refusal.message.contains("may or may not"), "{}", refusal.message);
    assert_ne!(node.role(), Role::Leader, "it has no majority");
    assert_eq!(node.leader(), None);
    let refusal = node.run(node.consensus().linearize()).unwrap_err();
    assert_eq!(refusal.code, "no_quorum");
    // With company it works again, and what was refused can be sent again.
    cluster.start(others[0]);
    let node = cluster.node(leader);
    let outcome = node.run(node.consensus().propose(command(3))).unwrap();
    assert!(matches!(outcome, Outcome::Done | Outcome::Unchanged));
    assert!(node.has(3));
}

#[test]
fn a_coordinator_that_missed_the_compacted_log_catches_up_by_snapshot() {
    let mut cluster = Cluster::started(3, SMALL);
    let away = cluster.follower();
    cluster.node(cluster.leader()).propose(1);
    cluster.kill(away);
    let leader = cluster.leader();
    (1000..1100).for_each(|number| cluster.node(leader).propose(number));
    let metrics =
        |cluster: &Cluster, id: u64| cluster.node(id).consensus().inner.raft.metrics().borrow().clone();
    eventually("the log was compacted", || metrics(&cluster, leader).purged.is_some_and(|id| id.index > 60));
    cluster.start(away);
    eventually("caught up", || (1000..1100).all(|number| cluster.node(away).has(number)));
    let snapshot = metrics(&cluster, away).snapshot.expect("it came by snapshot");
    assert!(snapshot.index > 60);
    // And from its own disk after another restart.
    cluster.node(leader).propose(2000);
    cluster.stop(away);
    cluster.start(away);
    let node = cluster.node(away);
    node.run(node.consensus().linearize()).unwrap();
    assert!(node.has(1) && node.has(2000) && (1000..1100).all(|number| node.has(number)));
}

#[test]
fn members_come_and_go() {
    let mut cluster = Cluster::new(3, 1, SMALL);
    (1..=3).for_each(|id| cluster.start(id));
    let leader = cluster.leader();
    assert_eq!(leader, 1, "the others found nothing");
    (100..150).for_each(|number| cluster.node(1).propose(number));
    for id in [2, 3, 3] {
        let node = cluster.node(1);
        let grpc = cluster.addresses[&id].clone();
        node.run(node.consensus().add_member(CoordinatorId(id), grpc)).unwrap();
    }
    eventually("the new ones have the state", || {
        (2..=3).all(|id| (100..150).all(|number| cluster.node(id).has(number)))
    });
    cluster.node(3).propose(200);
    let follower = cluster.node(2);
    let refusal = follower.run(follower.consensus().remove_member(CoordinatorId(3))).unwrap_err();
    assert_eq!(refusal.code, "not_leader");
    assert!(refusal.message.contains("coordinator 1"), "{}", refusal.message);

    // Two voters have no majority without each other: the living one must not be removed.
    cluster.kill(3);
    let node = cluster.node(1);
    eventually("3 is seen to be down", || {
        node.consensus().status().borrow().members.get(&CoordinatorId(3)) == Some(&false)
    });
    let refusal = node.run(node.consensus().remove_member(CoordinatorId(2))).unwrap_err();
    assert_eq!(refusal.code, "no_majority_left");
    node.run(node.consensus().remove_member(CoordinatorId(3))).unwrap();
    node.run(node.consensus().remove_member(CoordinatorId(3))).unwrap();
    assert_eq!(node.consensus().status().borrow().members.len(), 2);
    node.propose(201);
    node.run(node.consensus().remove_member(CoordinatorId(2))).unwrap();
    cluster.kill(2);
    // Alone it is a majority, also after a restart.
    cluster.node(1).propose(202);
    cluster.stop(1);
    cluster.start(1);
    let node = cluster.node(1);
    node.run(node.consensus().linearize()).unwrap();
    assert!(node.has(200) && node.has(201) && node.has(202));
}

#[test]
fn large_commands_travel_and_too_large_ones_are_refused() {
    let cluster = Cluster::started(3, Compaction::default());
    let sized = |number: u64, bytes: usize| {
        let Command::RegisterCoordinator { id, mut coordinator } = command(number) else { unreachable!() };
        coordinator.http = "x".repeat(bytes);
        Command::RegisterCoordinator { id, coordinator }
    };
    let node = cluster.node(cluster.follower());
    let outcome = node.run(node.consensus().propose(sized(1, limits::COMMAND_BYTES - 1000)));
    assert_eq!(outcome, Ok(Outcome::Done));
    eventually("everybody has it", || cluster.nodes.values().all(|node| node.has(1)));
    let refusal = node.run(node.consensus().propose(sized(2, limits::COMMAND_BYTES))).unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.retry), ("command_too_large", Retry::Never));
    cluster.node(cluster.leader()).propose(3);
}

#[test]
fn many_at_once_are_all_committed_once() {
    let cluster = Cluster::started(3, SMALL);
    let node = cluster.node(cluster.follower());
    let consensus = node.consensus();
    let started = Instant::now();
    let all = (0..400).map(|number| consensus.propose(command(10_000 + number)));
    let outcomes = node.run(futures::future::join_all(all));
    println!("400 commands at once through a follower: {:?}", started.elapsed());
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Outcome::Done)), "{outcomes:?}");
    assert_eq!(node.consensus().state().borrow().coordinators.len(), 400);
}

#[test]
fn a_message_for_another_coordinator_is_refused() {
    use caravan_proto::wire::{RaftPayload, raft_client::RaftClient};
    let cluster = Cluster::started(1, Compaction::default());
    cluster.leader();
    let node = cluster.node(1);
    node.run(async {
        let mut client = RaftClient::connect(format!("http://{}", cluster.addresses[&1])).await.unwrap();
        let data = caravan_proto::pack(&Envelope { from: 3, to: 2, body: command(1) }).unwrap();
        let status = client.propose(RaftPayload { data }).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
        for method in 0..4 {
            let garbage = RaftPayload { data: vec![0xff; 40].into() };
            let answer = match method {
                0 => client.append(garbage).await,
                1 => client.vote(garbage).await,
                2 => client.snapshot(garbage).await,
                _ => client.propose(garbage).await,
            };
            assert_eq!(answer.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    });
    assert!(!node.has(1));
    node.propose(2);
}

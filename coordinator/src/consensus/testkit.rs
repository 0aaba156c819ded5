//! A cluster for the tests: each node has its own runtime, so that dropping it kills everything of
//! the node at once, as `kill -9` would.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use caravan_core::cluster::{Command, Outcome, WorkerProfile};
use caravan_core::ids::{CoordinatorId, Digest, WorkerId};
use caravan_core::journal::{self, Tokens, TurnEnd};
use caravan_core::model::{Family, ModelConfig, ModelSpec, Place, TensorSpec, TensorType};
use caravan_core::store::{Accept, Body, Item, Owner, StoreCommand, Target};
use openraft::EntryPayload;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

use super::types::{Entry, Group, LogId, Proposal};
use super::{Compaction, Consensus, ConsensusConfig, Role};

/// Small generator with a fixed seed: a failure can be run again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    openraft::testing::log_id(term, 1, index)
}

pub(super) fn entry(term: u64, index: u64) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(group(command(index))) }
}

pub(super) fn group(command: Command) -> Group {
    Group(vec![Proposal::Cluster(command)])
}

pub(super) fn store_entry(term: u64, index: u64, commands: Vec<StoreCommand>) -> Entry {
    let group = Group(commands.into_iter().map(Proposal::Store).collect());
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(group) }
}

pub fn target(number: u64) -> Target {
    Target { tenant: "t1".to_owned(), id: format!("resp_{number}") }
}

fn item(id: String, text: String) -> Item {
    Item { id, body: Body::Inline(text.into_bytes()) }
}

/// A response of its own is accepted.
pub fn accept(number: u64) -> StoreCommand {
    let Target { tenant, id } = target(number);
    StoreCommand::AcceptResponse(Box::new(Accept {
        owner: Owner { tenant, key: "k1".to_owned() },
        id,
        model: "toy".to_owned(),
        background: true,
        created_ms: 1_000 + number,
        previous: None,
        conversation: None,
        record: Body::Inline(vec![7; 200]),
        request: Body::Inline(b"{}".to_vec()),
        input: vec![item(format!("msg_in_{number}"), format!("question {number}"))],
        once: None,
    }))
}

/// It is answered.
pub fn answered(number: u64) -> StoreCommand {
    let tokens = Tokens { prompt: 9, cached: 0, output: 5, reasoning: 0 };
    StoreCommand::Journal {
        target: target(number),
        entry: journal::Entry::ItemComplete { item: 0, tokens, end: Some(TurnEnd::Answered) },
        item: Some(item(format!("msg_out_{number}"), format!("answer {number}"))),
        upload: None,
        now_ms: 2_000 + number,
    }
}

pub fn worker(number: u64) -> WorkerId {
    WorkerId(format!("w{number}"))
}

/// A command that leaves a trace of its own. At most `limits::WORKERS` of them fit into a state.
pub fn command(number: u64) -> Command {
    let profile = WorkerProfile {
        grpc: format!("127.0.0.1:{number}"),
        device: "cpu".to_owned(),
        threads: 1,
        memory_bytes: 1 << 30,
        kv_bytes: 1 << 20,
        numerics: "test".to_owned(),
    };
    Command::JoinWorker { id: worker(number), incarnation: number, profile, now_ms: 0 }
}

/// A command of about `bytes` bytes, a little more.
pub fn large(number: u64, bytes: usize) -> Command {
    let tensor = TensorSpec {
        name: "x".repeat(bytes),
        dims: vec![1],
        kind: TensorType::F32,
        place: Place::Shared,
        offset: 0,
        bytes: 4,
        digest: Digest([7; 32]),
    };
    let config = ModelConfig {
        family: Family::Llama,
        layers: 1,
        hidden: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        rope_dim: 1,
        rope_base: 1.0,
        norm_eps: 1.0,
        ffn: 1,
        vocab: 1,
        context: 1,
        tied: true,
        ..ModelConfig::default()
    };
    let spec = ModelSpec {
        name: format!("model-{number}"),
        digest: Digest([1; 32]),
        header: Digest([2; 32]),
        header_bytes: 1,
        config,
        tensors: vec![tensor],
    };
    Command::AddModel { spec: Box::new(spec) }
}

pub const SMALL: Compaction = Compaction { every: 20, keep: 5, scrub_ms: 200 };

pub struct Node {
    runtime: Option<Runtime>,
    consensus: Option<Consensus>,
}

impl Node {
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.runtime.as_ref().unwrap().spawn(task)
    }

    pub fn consensus(&self) -> &Consensus {
        self.consensus.as_ref().unwrap()
    }

    pub fn propose(&self, number: u64) {
        let outcome = self.run(self.consensus().propose(command(number)));
        assert_eq!(outcome, Ok(Outcome::Done), "command {number}");
    }

    pub fn has(&self, number: u64) -> bool {
        self.consensus().state().borrow().workers.contains_key(&worker(number))
    }

    pub fn role(&self) -> Role {
        self.consensus().status().borrow().role
    }

    pub fn leader(&self) -> Option<u64> {
        self.consensus().status().borrow().leader.map(|id| id.0)
    }

    /// Everything of the node ends at once; nothing is flushed or said good-bye to.
    pub fn kill(mut self) {
        drop(self.consensus.take());
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(5));
    }

    pub fn stop(self) {
        self.run(self.consensus().shutdown());
        self.kill();
    }
}

pub struct Cluster {
    pub dirs: BTreeMap<u64, TempDir>,
    pub addresses: BTreeMap<u64, String>,
    /// Of those that have not started yet: nobody else gets their ports.
    listeners: BTreeMap<u64, TcpListener>,
    first: Vec<u64>,
    /// Where a coordinator (first number) finds another one (second), if not at its address.
    pub detours: BTreeMap<(u64, u64), String>,
    pub nodes: BTreeMap<u64, Node>,
    compaction: Compaction,
}

impl Cluster {
    /// Ports for `all`, of which `first` found the cluster. Nothing runs yet.
    pub fn new(all: u64, first: u64, compaction: Compaction) -> Cluster {
        // Not 127.0.0.1: outgoing connections take their ports there, and one could get the port of
        // a node that is down just now.
        let listeners: Vec<TcpListener> =
            (0..all).map(|_| TcpListener::bind("127.0.0.2:0").unwrap()).collect();
        let addresses: Vec<String> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        Cluster {
            dirs: (1..=all).map(|id| (id, tempfile::tempdir().unwrap())).collect(),
            addresses: (1..=all).zip(addresses).collect(),
            listeners: (1..=all).zip(listeners).collect(),
            first: (1..=first).collect(),
            detours: BTreeMap::new(),
            nodes: BTreeMap::new(),
            compaction,
        }
    }

    pub fn started(count: u64, compaction: Compaction) -> Cluster {
        let mut cluster = Cluster::new(count, count, compaction);
        (1..=count).for_each(|id| cluster.start(id));
        cluster
    }

    pub fn start(&mut self, id: u64) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let reserved = self.listeners.remove(&id);
        let consensus = runtime.block_on(async {
            let listener = reserved.unwrap_or_else(|| TcpListener::bind(&self.addresses[&id]).unwrap());
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let consensus = self.open(id).await;
            let server = tonic::transport::Server::builder().add_service(consensus.service());
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            consensus
        });
        self.nodes.insert(id, Node { runtime: Some(runtime), consensus: Some(consensus) });
    }

    fn way(&self, from: u64, to: u64) -> String {
        self.detours.get(&(from, to)).unwrap_or(&self.addresses[&to]).clone()
    }

    /// The log's thread of a killed node closes the file a moment after the node is gone.
    async fn open(&self, id: u64) -> Consensus {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let peers = self.first.iter().map(|to| (CoordinatorId(*to), self.way(id, *to)));
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

    pub fn kill(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill();
    }

    pub fn stop(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stop();
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    /// The one that leads and says so itself.
    pub fn leader(&self) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some((id, _)) = self.nodes.iter().find(|(_, node)| node.role() == Role::Leader) {
                return *id;
            }
            assert!(Instant::now() < deadline, "no leader");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.nodes.keys().find(|id| **id != leader).unwrap()
    }
}

#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

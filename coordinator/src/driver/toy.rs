//! A toy worker behind real gRPC, and a cluster state to go with it. It computes a hash chain from
//! what lies in its pages, so that a wrong page, row or order changes tokens.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caravan_core::cluster::*;
use caravan_core::error::{Fault, Refusal};
use caravan_core::ids::*;
use caravan_core::limits;
use caravan_core::model::{Family, ModelConfig, ModelSpec};
use caravan_core::plan::{Pipeline, Plan, Slice, Stage};
use caravan_core::request::{RequestRecord, SampleFault, SampleOutcome, Sampling};
use caravan_proto::{sampled_token, unpack, wire};
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Cluster, DriverConfig, Drivers};

pub(crate) const VOCAB: u32 = 60;
pub(crate) const CONTEXT: u32 = 500;
pub(crate) const PAGES: u32 = 64;
pub(crate) const ME: CoordinatorId = CoordinatorId(1);
pub(crate) const MODEL: &str = "toy";
/// No token can be sampled for a record of this seed once its second chunk is there.
pub(crate) const SICK: u64 = 999;

fn next_token(tokens: impl Iterator<Item = u32>, seed: u64) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ seed;
    for token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 31;
    }
    (hash % u64::from(VOCAB)) as u32
}

/// The answer of a record that nothing ever disturbed.
pub(crate) fn undisturbed(record: &RequestRecord) -> Vec<u32> {
    let mut tokens = record.prompt.clone();
    while tokens.len() < record.prompt.len() + record.max_tokens as usize {
        tokens.push(next_token(tokens.iter().copied(), record.sampling.seed));
    }
    tokens.split_off(record.prompt.len())
}

pub(crate) fn record(seed: u64, prompt: usize, max_tokens: u32) -> RequestRecord {
    RequestRecord {
        id: format!("request-{seed}"),
        model: MODEL.into(),
        prompt: (0..prompt as u64).map(|i| ((i * 5 + seed) % u64::from(VOCAB)) as u32).collect(),
        emitted: Vec::new(),
        sampling: Sampling { seed, ..Sampling::default() },
        stop_tokens: Vec::new(),
        max_tokens,
        accepted_ms: seed,
        deadline_ms: u64::MAX,
    }
}

/// A cluster of one coordinator whose proposals are applied at once.
#[derive(Clone)]
pub(crate) struct FakeCluster {
    pub state: watch::Sender<Arc<ClusterState>>,
}

impl Cluster for FakeCluster {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.subscribe()
    }

    fn propose(&self, command: Command) -> BoxFuture<'static, Result<Outcome, Refusal>> {
        let Command::PipelineReady { epoch, .. } = command else { panic!("drivers propose nothing else") };
        self.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            if state.plan.epoch == epoch {
                state.plan.pipelines[0].ready = true;
            }
        });
        Box::pin(async { Ok(Outcome::Done) })
    }
}

impl FakeCluster {
    /// A state with the model and one worker, and no plan yet.
    pub(crate) fn new(worker: SocketAddr) -> FakeCluster {
        let mut state = ClusterState::default();
        state.models.insert(MODEL.into(), spec());
        let profile = WorkerProfile {
            grpc: worker.to_string(),
            device: "cpu".into(),
            threads: 1,
            memory_bytes: 1,
            kv_bytes: 1,
            numerics: String::new(),
        };
        let worker = Worker {
            profile,
            incarnation: 1,
            state: WorkerState::Active,
            layer_times: BTreeMap::new(),
            links: BTreeMap::new(),
            since_ms: 0,
        };
        state.workers.insert(WorkerId("w".into()), worker);
        FakeCluster { state: watch::Sender::new(Arc::new(state)) }
    }

    /// Commits the next plan: one pipeline of three stages.
    pub(crate) fn plan(&self, epoch: u64, driver: CoordinatorId) {
        self.state.send_modify(|state| {
            let stage = |first| Stage {
                worker: WorkerId("w".into()),
                incarnation: 1,
                slice: Slice { first, end: first + 1 },
            };
            let pipeline = Pipeline {
                id: PipelineId("toy/0".into()),
                model: MODEL.into(),
                driver,
                stages: (0..3).map(stage).collect(),
                kv_pages: PAGES,
                ready: false,
                predicted_tokens_per_s: 1.0,
            };
            Arc::make_mut(state).plan = Plan { epoch: Epoch(epoch), pipelines: vec![pipeline] };
        });
    }

    /// Waits until the pipeline is ready at this epoch.
    pub(crate) async fn ready(&self, epoch: u64) {
        let mut state = self.state.subscribe();
        let ready = |s: &Arc<ClusterState>| s.plan.epoch.0 == epoch && s.plan.pipelines[0].ready;
        tokio::time::timeout(Duration::from_secs(10), state.wait_for(ready)).await.unwrap().unwrap();
    }
}

pub(crate) fn spec() -> ModelSpec {
    let config = ModelConfig {
        family: Family::Llama,
        layers: 3,
        hidden: 4,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        rope_dim: 4,
        rope_base: 1.0,
        norm_eps: 1.0,
        ffn: 4,
        vocab: VOCAB,
        context: CONTEXT,
        tied: true,
        ..ModelConfig::default()
    };
    let digest = Digest([0; 32]);
    ModelSpec { name: MODEL.into(), digest, header: digest, header_bytes: 0, config, tensors: Vec::new() }
}

/// Drivers of one coordinator with their gRPC service, entered in the cluster's state.
pub(crate) async fn start_drivers(
    me: CoordinatorId,
    cluster: &FakeCluster,
    patience: Duration,
) -> (Drivers, SocketAddr) {
    let config = DriverConfig { me, prefill_chunk_tokens: 16, step_rows: 64, waiting_sequences: 40 };
    let drivers = Drivers::start_with(config, Arc::new(cluster.clone()), patience);
    let (incoming, addr) = listen().await;
    let service = drivers.service();
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let coordinator = Coordinator { grpc: addr.to_string(), http: String::new(), holds: Vec::new() };
    cluster.state.send_modify(|state| {
        Arc::make_mut(state).coordinators.insert(me, coordinator);
    });
    (drivers, addr)
}

#[derive(Default)]
pub(crate) struct Control {
    /// Of each step.
    pub delay_ms: AtomicU64,
    /// Steps after which the worker breaks its edges; 0 is never.
    pub break_after: AtomicU64,
    /// The first edges are answered UNAVAILABLE.
    pub not_ready: AtomicU64,
    /// Steps are taken and never answered.
    pub hang: AtomicBool,
    pub steps: AtomicU64,
    pub most_in_flight: AtomicU64,
}

/// All stages of the toy pipeline in one: takes the driver's edge, and opens the one for results.
pub(crate) struct ToyWorker {
    driver: Arc<Mutex<SocketAddr>>,
    pub control: Arc<Control>,
}

pub(crate) struct ToyHandle {
    pub addr: SocketAddr,
    pub driver: Arc<Mutex<SocketAddr>>,
    pub control: Arc<Control>,
}

pub(crate) async fn listen() -> (TcpListenerStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (TcpListenerStream::new(listener), addr)
}

pub(crate) async fn start_worker() -> ToyHandle {
    let (incoming, addr) = listen().await;
    let driver = Arc::new(Mutex::new(addr));
    let control = Arc::new(Control::default());
    let worker = ToyWorker { driver: driver.clone(), control: control.clone() };
    let service = wire::stage_server::StageServer::new(worker);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    ToyHandle { addr, driver, control }
}

#[tonic::async_trait]
impl wire::stage_server::Stage for ToyWorker {
    type EdgeStream = ReceiverStream<Result<wire::EdgeReady, Status>>;

    async fn edge(
        &self,
        request: Request<Streaming<wire::EdgeFrame>>,
    ) -> Result<Response<Self::EdgeStream>, Status> {
        let mut frames = request.into_inner();
        let Some(wire::edge_frame::Frame::Hello(hello)) = frames.message().await?.unwrap().frame else {
            panic!("no hello")
        };
        if self.control.not_ready.load(Ordering::SeqCst) > 0 {
            self.control.not_ready.fetch_sub(1, Ordering::SeqCst);
            return Err(Status::unavailable("not there yet"));
        }
        let driver = *self.driver.lock().unwrap();
        let (results, queue) = mpsc::channel(64);
        let _replies = open_results(driver, hello.epoch, &hello.pipeline, &results, queue).await?;
        let (replies, stream) = mpsc::channel(2);
        replies.send(Ok(wire::EdgeReady { epoch: hello.epoch })).await.unwrap();
        let control = self.control.clone();
        tokio::spawn(async move {
            let why = compute(&control, frames, results).await;
            let _ = replies.send(Err(Status::aborted(why))).await;
            drop(_replies);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn ping(&self, _: Request<wire::PingRequest>) -> Result<Response<wire::PingReply>, Status> {
        Err(Status::unimplemented("no links here"))
    }
}

/// The edge from the last stage to the driver, accepted.
pub(crate) async fn open_results(
    driver: SocketAddr,
    epoch: u64,
    pipeline: &str,
    frames: &mpsc::Sender<wire::ResultFrame>,
    queue: mpsc::Receiver<wire::ResultFrame>,
) -> Result<Streaming<wire::EdgeReady>, Status> {
    let address = format!("http://{driver}");
    let client = wire::driver_client::DriverClient::connect(address).await;
    let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
    let hello = wire::EdgeHello {
        protocol_version: limits::PROTOCOL_VERSION,
        epoch,
        pipeline: pipeline.into(),
        stage: 3,
    };
    frames.send(wire::ResultFrame { frame: Some(wire::result_frame::Frame::Hello(hello)) }).await.unwrap();
    let mut replies = client.results(ReceiverStream::new(queue)).await?.into_inner();
    match replies.message().await? {
        Some(ready) => assert_eq!(ready.epoch, epoch),
        None => return Err(Status::unavailable("no ready")),
    }
    Ok(replies)
}

async fn compute(
    control: &Control,
    mut frames: Streaming<wire::EdgeFrame>,
    results: mpsc::Sender<wire::ResultFrame>,
) -> String {
    // Steps wait here as they would in the stages.
    let (queue, mut waiting) = mpsc::unbounded_channel();
    let in_flight = Arc::new(AtomicU64::new(0));
    let counter = in_flight.clone();
    tokio::spawn(async move {
        while let Ok(Some(frame)) = frames.message().await {
            counter.fetch_add(1, Ordering::SeqCst);
            if queue.send(frame).is_err() {
                return;
            }
        }
    });
    let mut pages = vec![[u32::MAX; limits::PAGE_TOKENS as usize]; PAGES as usize];
    let mut seeds = BTreeMap::new();
    while let Some(frame) = waiting.recv().await {
        let Some(wire::edge_frame::Frame::Step(step)) = frame.frame else { panic!("no step") };
        tokio::time::sleep(Duration::from_millis(control.delay_ms.load(Ordering::SeqCst))).await;
        control.most_in_flight.fetch_max(in_flight.load(Ordering::SeqCst), Ordering::SeqCst);
        let tokens = run_step(&step, &mut pages, &mut seeds);
        let steps = control.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if steps == control.break_after.load(Ordering::SeqCst) {
            return "the worker was told to break".into();
        }
        if control.hang.load(Ordering::SeqCst) {
            continue;
        }
        in_flight.fetch_sub(1, Ordering::SeqCst);
        let result = wire::StepResult { epoch: step.epoch, step: step.step, tokens };
        let frame = wire::ResultFrame { frame: Some(wire::result_frame::Frame::Result(result)) };
        if results.send(frame).await.is_err() {
            return "the driver takes no results".into();
        }
    }
    "the driver closed the edge".into()
}

fn run_step(
    step: &wire::Step,
    pages: &mut [[u32; limits::PAGE_TOKENS as usize]],
    seeds: &mut BTreeMap<u64, u64>,
) -> Vec<wire::SampledToken> {
    let size = limits::PAGE_TOKENS as usize;
    let mut tokens = Vec::new();
    for chunk in &step.chunks {
        if let Some(open) = &chunk.open {
            seeds.insert(chunk.sequence, unpack::<Sampling>(&open.sampling, "sampling").unwrap().seed);
        }
        let start = chunk.start as usize;
        for (row, token) in chunk.tokens.iter().enumerate() {
            pages[chunk.pages[(start + row) / size] as usize][(start + row) % size] = *token;
        }
        if chunk.sample {
            let rows = (0..start + chunk.tokens.len())
                .map(|row| pages[chunk.pages[row / size] as usize][row % size]);
            let token = match seeds[&chunk.sequence] {
                SICK if chunk.start > 0 => {
                    let why = "its logits are no numbers".into();
                    sampled_token(SampleOutcome::Failed(SampleFault { fault: Fault::Operator, why }))
                }
                seed => wire::SampledToken { token: next_token(rows, seed), ..Default::default() },
            };
            tokens.push(wire::SampledToken { sequence: chunk.sequence, ..token });
        }
    }
    for closed in &step.closed {
        assert!(seeds.remove(closed).is_some(), "closed what was not open");
    }
    tokens
}

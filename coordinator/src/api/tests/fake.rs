//! A coordinator that answers as a test says, token by token.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use caravan_core::cluster::{
    ClusterState, Coordinator, LayerTime, Outcome, Worker, WorkerProfile, WorkerState,
};
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, Digest, Epoch, PipelineId, WorkerId};
use caravan_core::model::{Family, ModelConfig, ModelSpec};
use caravan_core::plan::{Pipeline, Plan, Slice, Stage};
use caravan_core::request::{Finish, GenerateEvent, RequestRecord, Sampled, TokenLogprob};
use caravan_core::store::{Refused, StoreCommand, StoreOutcome};
use caravan_proto::wire;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use crate::api::auth::Peer;
use crate::api::backend::{Backend, Text};
use crate::api::{Waits, build};
use crate::consensus::{ApiKeys, ConsensusStatus, Role};
use crate::driver::PipelineStats;
use crate::fleet::WorkerRuntime;
use crate::text::ChatMessage;

pub const END: u32 = 256;
pub const VOCAB: u32 = 260;
pub const CONTEXT: u32 = 64;

/// Tokens 0 to 255 are bytes, 256 ends the text, 257 to 259 are words.
pub struct Bytes {
    bytes: Vec<u8>,
}

impl Text for Bytes {
    fn chat_tokens(&self, messages: &[ChatMessage], most: usize) -> Result<Vec<u32>, Refusal> {
        let text: String =
            messages.iter().map(|one| format!("{}:{}\n", &one.role[..1], one.content)).collect();
        let long =
            || Refusal::client("context_length_exceeded", "messages", format!("messages: over {most}"));
        self.raw_tokens(&text, most).ok_or_else(long)
    }

    fn raw_tokens(&self, text: &str, most: usize) -> Option<Vec<u32>> {
        (text.len() <= most).then(|| text.bytes().map(u32::from).collect())
    }

    fn bos(&self) -> Option<u32> {
        None
    }

    fn stop_tokens(&self) -> Vec<u32> {
        vec![END]
    }

    fn token_bytes(&self, token: u32) -> &[u8] {
        match token {
            0..=255 => &self.bytes[token as usize..=token as usize],
            257 => b"one ",
            258 => b"two ",
            259 => b"three ",
            _ => b"",
        }
    }
}

/// Puts the sender's address in, as the listener does.
async fn local(mut request: Request, next: Next) -> Response {
    if request.extensions().get::<Peer>().is_none() {
        request.extensions_mut().insert(Peer(([127, 0, 0, 1], 40_000).into()));
    }
    next.run(request).await
}

/// What the fake does next for a record.
#[derive(Clone, Debug)]
pub enum Beat {
    Say(GenerateEvent),
    Wait(u64),
    Hang,
}

type Script = dyn Fn(&RequestRecord) -> Vec<Beat> + Send + Sync;

pub struct Fake {
    pub keys: Mutex<ApiKeys>,
    pub commands: Mutex<Vec<StoreCommand>>,
    pub state: watch::Sender<Arc<ClusterState>>,
    pub status: watch::Sender<ConsensusStatus>,
    script: Box<Script>,
    pub records: Mutex<Vec<RequestRecord>>,
    /// Streams that were dropped before their end, and those that are open.
    pub cancelled: Arc<AtomicUsize>,
    pub open: Arc<AtomicUsize>,
    pub leads: bool,
    /// The driver here has had a token through its pipeline.
    pub serving: AtomicBool,
    pub quorum: Mutex<Result<(), Refusal>>,
}

/// Tokens of the bytes of `text`.
pub fn say(text: &str) -> Vec<Beat> {
    text.bytes().map(|byte| Beat::Say(token(u32::from(byte)))).collect()
}

pub fn token(token: u32) -> GenerateEvent {
    GenerateEvent::Token(Sampled { token, logprob: None, top: Vec::new() })
}

pub fn done(finish: Finish) -> Beat {
    Beat::Say(GenerateEvent::Finished(finish))
}

/// Says `text`, as far as the record's `max_tokens` goes, with log-probabilities if asked.
pub fn speak(record: &RequestRecord, text: &str) -> Vec<Beat> {
    let top = record.sampling.logprobs;
    let sampled = |byte: u8| Sampled {
        token: u32::from(byte),
        logprob: top.map(|_| -0.5),
        top: (0..u32::from(top.unwrap_or(0)))
            .map(|i| TokenLogprob { token: 97 + i, logprob: -1.0 })
            .collect(),
    };
    let bytes = text.bytes().take(record.max_tokens as usize);
    let mut beats: Vec<Beat> = bytes.map(|byte| Beat::Say(GenerateEvent::Token(sampled(byte)))).collect();
    let full = beats.len() < text.len();
    beats.push(done(if full { Finish::Length } else { Finish::Stop }));
    beats
}

impl Fake {
    pub fn new(script: impl Fn(&RequestRecord) -> Vec<Beat> + Send + Sync + 'static) -> Fake {
        Fake {
            state: watch::channel(Arc::new(state())).0,
            status: watch::channel(status(1, Some(1))).0,
            script: Box::new(script),
            keys: Mutex::default(),
            commands: Mutex::default(),
            records: Mutex::default(),
            cancelled: Arc::default(),
            open: Arc::default(),
            serving: AtomicBool::new(true),
            leads: true,
            quorum: Mutex::new(Ok(())),
        }
    }

    pub fn following(mut self, leader: Option<u64>) -> Fake {
        self.status.send_replace(status(2, leader));
        self.leads = false;
        self
    }

    pub fn edit(&self, edit: impl FnOnce(&mut ClusterState)) {
        let mut state = (**self.state.borrow()).clone();
        edit(&mut state);
        self.state.send_replace(Arc::new(state));
    }

    pub fn router(self: &Arc<Fake>) -> Router {
        // As from this machine; a test of another origin says so itself.
        build(self.clone(), waits()).layer(middleware::from_fn(local))
    }
}

/// A door on a fake that says `text` to everything.
pub fn speaking(text: &'static str) -> (Arc<Fake>, Router) {
    scripted(move |record| speak(record, text))
}

pub fn scripted(script: impl Fn(&RequestRecord) -> Vec<Beat> + Send + Sync + 'static) -> (Arc<Fake>, Router) {
    let fake = Arc::new(Fake::new(script));
    let router = fake.router();
    (fake, router)
}

/// Short enough for tests.
pub fn waits() -> Waits {
    Waits {
        ready_ms: 200,
        first_event_ms: 100,
        keepalive_ms: 60,
        stall_ms: 400,
        body_ms: 500,
        ..Waits::default()
    }
}

pub fn status(me: u64, leader: Option<u64>) -> ConsensusStatus {
    ConsensusStatus {
        me: CoordinatorId(me),
        role: if leader == Some(me) { Role::Leader } else { Role::Follower },
        leader: leader.map(CoordinatorId),
        term: 3,
        applied: 17,
        members: [(1, true), (2, true), (3, false)].map(|(id, up)| (CoordinatorId(id), up)).into(),
    }
}

fn worker(port: u16) -> Worker {
    let time = LayerTime { decode_ms: 0.5, prefill_short_ms: 0.25, prefill_long_ms: 0.125, head_ms: 1.0 };
    Worker {
        profile: WorkerProfile {
            grpc: format!("127.0.0.1:{port}"),
            device: "cpu".into(),
            threads: 2,
            memory_bytes: 1 << 30,
            kv_bytes: 1 << 20,
            numerics: "i16-2/i16".into(),
        },
        incarnation: 7,
        state: WorkerState::Active,
        layer_times: [("tiny".to_owned(), time)].into(),
        links: BTreeMap::new(),
        since_ms: 5,
    }
}

pub fn model(name: &str) -> ModelSpec {
    ModelSpec {
        name: name.into(),
        digest: Digest([7; 32]),
        header: Digest([8; 32]),
        header_bytes: 10,
        config: ModelConfig {
            family: Family::Llama,
            layers: 30,
            hidden: 8,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            rope_dim: 4,
            rope_base: 10_000.0,
            norm_eps: 1e-5,
            ffn: 16,
            vocab: VOCAB,
            context: CONTEXT,
            tied: true,
            ..ModelConfig::default()
        },
        tensors: Vec::new(),
    }
}

/// Three coordinators, two workers, one model with a ready pipeline of two stages, epoch 7.
pub fn state() -> ClusterState {
    let coordinator = |id: u64| Coordinator {
        grpc: format!("127.0.0.1:{}", 9000 + id),
        http: format!("127.0.0.1:{}", 8000 + id),
        holds: Vec::new(),
    };
    let stage = |name: &str, first, end| Stage {
        worker: WorkerId(name.into()),
        incarnation: 7,
        slice: Slice { first, end },
    };
    let pipeline = Pipeline {
        id: PipelineId("tiny/0".into()),
        model: "tiny".into(),
        driver: CoordinatorId(1),
        stages: vec![stage("w1", 0, 14), stage("w2", 14, 30)],
        kv_pages: 12,
        ready: true,
        predicted_tokens_per_s: 40.0,
    };
    ClusterState {
        coordinators: [1, 2, 3].map(|id| (CoordinatorId(id), coordinator(id))).into(),
        workers: [("w1", 9101), ("w2", 9102)].map(|(id, port)| (WorkerId(id.into()), worker(port))).into(),
        models: [("tiny".to_owned(), model("tiny"))].into(),
        plan: Plan { epoch: Epoch(7), pipelines: vec![pipeline] },
    }
}

/// Counts a stream as cancelled unless it was read to its end.
struct Guard {
    finished: bool,
    cancelled: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Backend for Fake {
    fn default_model(&self) -> Option<String> {
        Some("tiny".into())
    }

    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.subscribe()
    }

    fn status(&self) -> watch::Receiver<ConsensusStatus> {
        self.status.subscribe()
    }

    fn linearize(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        let quorum = self.quorum.lock().unwrap().clone();
        async move { quorum }.boxed()
    }

    fn api_keys(&self) -> ApiKeys {
        self.keys.lock().unwrap().clone()
    }

    fn store(&self, command: StoreCommand) -> BoxFuture<'_, Result<StoreOutcome, Refusal>> {
        let mut keys = self.keys.lock().unwrap();
        let outcome = match &command {
            StoreCommand::CreateKey { id, key } => {
                Arc::make_mut(&mut keys).insert(id.clone(), key.clone());
                StoreOutcome::Done
            }
            StoreCommand::RevokeKey { id, now_ms } => match Arc::make_mut(&mut keys).get_mut(id) {
                Some(key) => {
                    key.revoked_ms = Some(*now_ms);
                    StoreOutcome::Done
                }
                None => StoreOutcome::Refused(Refused::ItemNotFound),
            },
            other => panic!("{other:?}"),
        };
        self.commands.lock().unwrap().push(command);
        async { Ok(outcome) }.boxed()
    }

    fn text(&self, _spec: Arc<ModelSpec>) -> BoxFuture<'_, Result<Arc<dyn Text>, Refusal>> {
        async { Ok(Arc::new(Bytes { bytes: (0..=255).collect() }) as Arc<dyn Text>) }.boxed()
    }

    fn generate(&self, record: RequestRecord) -> BoxStream<'static, GenerateEvent> {
        let beats = (self.script)(&record);
        self.records.lock().unwrap().push(record);
        self.open.fetch_add(1, Ordering::SeqCst);
        let guard = Guard { finished: false, cancelled: self.cancelled.clone(), open: self.open.clone() };
        stream::unfold((beats.into_iter(), guard), |(mut beats, mut guard)| async move {
            loop {
                match beats.next() {
                    Some(Beat::Say(event)) => {
                        guard.finished |= !matches!(event, GenerateEvent::Token(_));
                        return Some((event, (beats, guard)));
                    }
                    Some(Beat::Wait(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    Some(Beat::Hang) => futures::future::pending().await,
                    None => return None,
                }
            }
        })
        .boxed()
    }

    fn stats(&self) -> Vec<(PipelineId, PipelineStats)> {
        let stats = PipelineStats {
            serving: self.serving.load(Ordering::Relaxed),
            running: 2,
            pages: 12,
            tokens_per_s: 33.5,
            ..Default::default()
        };
        vec![(PipelineId("tiny/0".into()), stats)]
    }

    fn runtime(&self) -> BTreeMap<WorkerId, WorkerRuntime> {
        if !self.leads {
            return BTreeMap::new();
        }
        let report = |state: &str, progress| wire::StageStatus {
            epoch: 7,
            pipeline: "tiny/0".into(),
            state: state.into(),
            progress,
            error: String::new(),
        };
        let beat = |report: wire::StageStatus| WorkerRuntime {
            attached: true,
            heard_ms_ago: 12,
            heartbeat: wire::Heartbeat {
                epoch: 7,
                memory_used_bytes: 1_000,
                stages: vec![report],
                fenced_messages: 0,
                blob_bytes_received: 99,
            },
        };
        [("w1", report("loading", 0.5)), ("w2", report("ready", 1.0))]
            .map(|(id, report)| (WorkerId(id.into()), beat(report)))
            .into()
    }

    fn drain(&self, worker: WorkerId) -> BoxFuture<'_, Result<Outcome, Refusal>> {
        self.edit(|state| state.workers.get_mut(&worker).unwrap().state = WorkerState::Draining);
        async { Ok(Outcome::Done) }.boxed()
    }

    fn rebalance(&self, dry_run: bool) -> BoxFuture<'_, Result<Plan, Refusal>> {
        let mut plan = self.state.borrow().plan.clone();
        plan.epoch = Epoch(8);
        plan.pipelines[0].ready = false;
        plan.pipelines[0].stages.remove(1);
        plan.pipelines[0].stages[0].slice.end = 30;
        if !dry_run {
            self.edit(|state| state.plan = plan.clone());
        }
        async { Ok(plan) }.boxed()
    }
}

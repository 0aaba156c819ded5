//! Drivers: the step loops of the pipelines that the plan gives to this coordinator.
//!
//! Must never decide a plan: a pipeline that broke is reported, and the next epoch comes from above.

mod cluster;
mod head;
mod meter;
mod pipeline;
mod serve;
mod service;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toy;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, Epoch, PipelineId};
use caravan_core::limits;
use caravan_core::request::{GenerateEvent, RequestRecord};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) use self::cluster::Cluster;
use self::meter::Meter;
pub(crate) use self::serve::now_ms;
use self::service::ResultsEdge;
use crate::consensus::Consensus;

/// Code of a refusal: the plan gives the model's pipeline to another coordinator.
pub const NOT_DRIVER: &str = "not_driver";
/// Code of a refusal: the pipeline is driven here, and no token has gone through it yet.
pub const NOT_READY: &str = "pipeline_not_ready";

#[derive(Clone, Debug)]
pub struct DriverConfig {
    pub me: CoordinatorId,
    pub prefill_chunk_tokens: u32,
    pub step_rows: u32,
    pub waiting_sequences: usize,
}

/// What a driver measured of late; for status, metrics and plan pages.
#[derive(Clone, Debug, Default)]
pub struct PipelineStats {
    /// A token has gone through every stage in this life of this driver, and the edges still hold.
    pub serving: bool,
    pub running: usize,
    pub waiting: usize,
    pub free_pages: u32,
    pub pages: u32,
    pub steps_in_flight: usize,
    pub tokens_total: u64,
    pub prefill_tokens_total: u64,
    /// Tokens emitted a second over the last 10 seconds of work.
    pub tokens_per_s: f64,
}

/// Called with a pipeline that broke while its epoch is still the current one.
pub type OnBroken = Arc<dyn Fn(Epoch, PipelineId) + Send + Sync>;

/// Handle to the drivers of this coordinator; they end when the last handle is dropped.
#[derive(Clone)]
pub struct Drivers {
    shared: Arc<Shared>,
    _watcher: Arc<AbortOnDrop>,
}

/// A record on its way to a driver's loop, and where the answer goes.
struct Submission {
    record: RequestRecord,
    reply: oneshot::Sender<Result<mpsc::Receiver<GenerateEvent>, Refusal>>,
}

/// The ways into one pipeline's task.
#[derive(Clone)]
struct Entry {
    model: String,
    results: mpsc::Sender<ResultsEdge>,
    requests: mpsc::Sender<Submission>,
    /// A token has gone through every stage, and the edges still hold.
    serving: Arc<AtomicBool>,
    /// Sequences that run or wait.
    load: Arc<AtomicUsize>,
}

/// The pipelines driven here in the newest epoch known here.
#[derive(Default)]
struct Roster {
    epoch: Epoch,
    here: BTreeMap<PipelineId, Entry>,
}

struct Shared {
    config: DriverConfig,
    patience: Duration,
    cluster: Arc<dyn Cluster>,
    roster: watch::Sender<Roster>,
    meters: Mutex<BTreeMap<PipelineId, Meter>>,
    on_broken: Mutex<Option<OnBroken>>,
    fenced: AtomicU64,
}

/// Ends a task with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drivers {
    /// Watches the plan and runs a driver for each pipeline whose driver is `me`.
    pub fn start(config: DriverConfig, consensus: Consensus) -> Drivers {
        Drivers::start_with(config, Arc::new(consensus), Duration::from_millis(limits::STEP_PROGRESS_MS))
    }

    /// `patience`: how long a step in flight may be without a result.
    pub(crate) fn start_with(config: DriverConfig, cluster: Arc<dyn Cluster>, patience: Duration) -> Drivers {
        let shared = Arc::new(Shared {
            config,
            patience,
            cluster,
            roster: watch::Sender::new(Roster::default()),
            meters: Mutex::default(),
            on_broken: Mutex::default(),
            fenced: AtomicU64::new(0),
        });
        let watcher = AbortOnDrop(tokio::spawn(watch_plan(shared.clone())));
        Drivers { shared, _watcher: Arc::new(watcher) }
    }

    /// Who is told of a pipeline that broke under its current epoch. The call must not block.
    pub fn on_broken(&self, callback: OnBroken) {
        *lock(&self.shared.on_broken) = Some(callback);
    }

    /// The gRPC service `Driver`, with the message limits of this build.
    pub fn service(&self) -> caravan_proto::wire::driver_server::DriverServer<service::DriverService> {
        service::server(self.clone())
    }

    /// Submits to a local driver of the record's model. Events come in order until Finished,
    /// Refused or Interrupted; dropping the receiver cancels. The channel holds the whole answer,
    /// so a slow reader delays nobody.
    pub async fn submit(&self, record: RequestRecord) -> Result<mpsc::Receiver<GenerateEvent>, Refusal> {
        let requests = {
            let roster = self.shared.roster.borrow();
            let mut driven = roster.here.values().filter(|entry| entry.model == record.model).peekable();
            if driven.peek().is_none() {
                return Err(not_driver(&record.model));
            }
            let serving = driven.filter(|entry| entry.serving.load(Ordering::Acquire));
            let least = serving.min_by_key(|entry| entry.load.load(Ordering::Relaxed));
            least.map(|entry| entry.requests.clone()).ok_or_else(|| not_ready(&record.model))?
        };
        let model = record.model.clone();
        let (reply, answer) = oneshot::channel();
        requests.try_send(Submission { record, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::cluster(
                "queue_full",
                limits::RETRY_AFTER_MS,
                "too many requests arrive at once; send this one again a little later",
            ),
            mpsc::error::TrySendError::Closed(_) => not_ready(&model),
        })?;
        answer.await.unwrap_or_else(|_| Err(not_ready(&model)))
    }

    /// Stats of the pipelines driven here.
    pub fn stats(&self) -> Vec<(PipelineId, PipelineStats)> {
        let serving = |entry: &Entry| entry.serving.load(Ordering::Acquire);
        let here: Vec<(PipelineId, bool)> =
            self.shared.roster.borrow().here.iter().map(|(id, entry)| (id.clone(), serving(entry))).collect();
        let meters = lock(&self.shared.meters);
        here.into_iter()
            .map(|(id, serving)| {
                let stats = meters.get(&id).map(Meter::stats).unwrap_or_default();
                (id, PipelineStats { serving, ..stats })
            })
            .collect()
    }

    /// Messages of an older epoch that were refused here since the start.
    pub fn fenced_messages(&self) -> u64 {
        self.shared.fenced.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn epoch(&self) -> Epoch {
        self.roster.borrow().epoch
    }

    /// Resolves when a newer epoch than `epoch` is known here.
    async fn overtaken(&self, epoch: Epoch) {
        // The sender is in `self`, so waiting can't fail.
        let _ = self.roster.subscribe().wait_for(|roster| roster.epoch > epoch).await;
    }

    fn with_meter<T>(&self, id: &PipelineId, act: impl FnOnce(&mut Meter) -> T) -> T {
        act(lock(&self.meters).entry(id.clone()).or_default())
    }
}

/// Follows the plan: one task for each pipeline driven here, in each epoch. Tasks of an older epoch
/// end by themselves when they see the roster's epoch pass theirs.
async fn watch_plan(shared: Arc<Shared>) {
    let mut state = shared.cluster.state();
    let mut tasks = JoinSet::new();
    loop {
        let now = state.borrow_and_update().clone();
        if now.plan.epoch > shared.epoch() {
            let mut here = BTreeMap::new();
            for pipeline in now.plan.pipelines.iter().filter(|p| p.driver == shared.config.me) {
                let Some(job) = pipeline::Job::new(&now, pipeline) else {
                    tracing::error!(epoch = %now.plan.epoch, pipeline = %pipeline.id,
                        "the plan names a worker or model that the cluster does not have");
                    continue;
                };
                let (entry, inbox) = pipeline::entry(&pipeline.model);
                here.insert(pipeline.id.clone(), entry);
                tasks.spawn(pipeline::run(shared.clone(), job, inbox));
            }
            lock(&shared.meters).retain(|id, _| now.plan.pipeline(id).is_some());
            shared.roster.send_replace(Roster { epoch: now.plan.epoch, here });
        }
        while tasks.try_join_next().is_some() {}
        if state.changed().await.is_err() {
            return;
        }
    }
}

fn not_driver(model: &str) -> Refusal {
    let message = format!("model `{model}` is driven by another coordinator, or by none yet; send it again");
    Refusal::cluster(NOT_DRIVER, limits::RESUBMIT_MAX_MS, message)
}

fn not_ready(model: &str) -> Refusal {
    let message = format!("no pipeline of model `{model}` is ready at the moment; send it again");
    Refusal::cluster(NOT_READY, limits::RESUBMIT_MAX_MS, message)
}

/// A panic elsewhere must not spread: every critical section here leaves the value whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

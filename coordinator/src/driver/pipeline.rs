//! One pipeline in one epoch: both edges, the probe, the serving, the end.
//!
//! Must never outlive its epoch, and never open an edge twice in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use caravan_core::batch::BatchConfig;
use caravan_core::cluster::ClusterState;
use caravan_core::ids::{Epoch, PipelineId};
use caravan_core::limits;
use caravan_core::plan::Pipeline;
use caravan_proto::wire;
use tokio::sync::mpsc;
use tonic::Status;

use super::head::{self, Head, words};
use super::serve::Serving;
use super::service::{Replies, ResultsEdge};
use super::{Entry, Shared, Submission, lock};

/// What the plan says of the pipeline, with the address of its first stage.
pub(super) struct Job {
    pub epoch: Epoch,
    pub id: PipelineId,
    head: String,
    stages: u32,
    kv_pages: u32,
    vocab: u32,
    pub context: u32,
}

/// What comes in from the roster's entry.
pub(super) struct Inbox {
    results: mpsc::Receiver<ResultsEdge>,
    pub requests: mpsc::Receiver<Submission>,
    pub serving: Arc<AtomicBool>,
    pub load: Arc<AtomicUsize>,
}

/// Both ends of the way into a pipeline's task.
pub(super) fn entry(model: &str) -> (Entry, Inbox) {
    let (results, results_in) = mpsc::channel(1);
    let (requests, requests_in) = mpsc::channel(limits::SUBMISSIONS);
    let entry =
        Entry { model: model.to_owned(), results, requests, serving: Arc::default(), load: Arc::default() };
    let inbox = Inbox {
        results: results_in,
        requests: requests_in,
        serving: entry.serving.clone(),
        load: entry.load.clone(),
    };
    (entry, inbox)
}

impl Job {
    pub(super) fn new(state: &ClusterState, pipeline: &Pipeline) -> Option<Job> {
        let first = pipeline.stages.first()?;
        let config = &state.models.get(&pipeline.model)?.config;
        Some(Job {
            epoch: state.plan.epoch,
            id: pipeline.id.clone(),
            head: state.workers.get(&first.worker)?.profile.grpc.clone(),
            stages: u32::try_from(pipeline.stages.len()).ok()?,
            kv_pages: pipeline.kv_pages,
            vocab: config.vocab,
            context: config.context,
        })
    }

    pub(super) fn batch(&self, shared: &Shared) -> BatchConfig {
        BatchConfig {
            stages: self.stages,
            pages: self.kv_pages,
            page_tokens: limits::PAGE_TOKENS,
            vocab: self.vocab,
            context: self.context,
            prefill_chunk_tokens: share_of_chunk(shared.config.prefill_chunk_tokens, self.stages),
            step_rows: shared.config.step_rows.min(limits::STEP_ROWS),
            waiting: shared.config.waiting_sequences,
            running: limits::RUNNING_SEQUENCES,
        }
    }
}

/// Rows of prefill in one step of a pipeline of `stages`. A prompt of n such chunks keeps stages busy
/// for n of n + stages - 1 turns.
pub(super) fn share_of_chunk(chunk: u32, stages: u32) -> u32 {
    let share = (chunk / stages.max(1)).max(limits::PREFILL_SHARE_TOKENS);
    share.min(chunk).min(limits::STEP_ROWS)
}

/// Runs the pipeline until its epoch is overtaken or it breaks, and reports the latter.
pub(super) async fn run(shared: Arc<Shared>, job: Job, inbox: Inbox) {
    let mut tail = None;
    let serving = inbox.serving.clone();
    let end = tokio::select! {
        () = shared.overtaken(job.epoch) => None,
        why = drive(&shared, &job, inbox, &mut tail) => Some(why),
    };
    // From here on nothing is admitted; `drive` has told every sequence that it was interrupted.
    serving.store(false, Ordering::Release);
    shared.with_meter(&job.id, |meter| meter.rest(Instant::now()));
    let status = match &end {
        None => Status::failed_precondition(format!("epoch {} is over", job.epoch)),
        Some(why) => Status::aborted(format!("the pipeline broke: {why}")),
    };
    if let Some(tail) = tail {
        // Full or closed: then the last stage knows already.
        let _ = Replies::try_send(&tail, Err(status));
    }
    if let Some(why) = end.filter(|_| shared.epoch() == job.epoch) {
        tracing::warn!(epoch = %job.epoch, pipeline = %job.id, why, "pipeline broke");
        let callback = lock(&shared.on_broken).clone();
        if let Some(callback) = callback {
            callback(job.epoch, job.id);
        }
    }
}

/// Opens both edges and serves; says why that ended. `tail` gets the way to answer the last stage.
async fn drive(shared: &Arc<Shared>, job: &Job, mut inbox: Inbox, tail: &mut Option<Replies>) -> String {
    let (head, results) = match open(shared, job, &mut inbox, tail).await {
        Ok(edges) => edges,
        Err(why) => return why,
    };
    Serving::new(shared.clone(), job, inbox).run(head, results).await
}

type Results = tonic::Streaming<wire::ResultFrame>;

/// Waits for the last stage's edge and opens the one to the first stage. The first can only be
/// ready after the last was accepted, so both go on at once.
async fn open(
    shared: &Shared,
    job: &Job,
    inbox: &mut Inbox,
    tail: &mut Option<Replies>,
) -> Result<(Head, Results), String> {
    let hello = wire::EdgeHello {
        protocol_version: limits::PROTOCOL_VERSION,
        epoch: job.epoch.0,
        pipeline: job.id.0.clone(),
        stage: 0,
    };
    let depth = job.batch(shared).depth();
    let opening = head::open(&job.head, &hello, depth);
    tokio::pin!(opening);
    let mut head = None;
    let mut results: Option<Results> = None;
    loop {
        tokio::select! {
            opened = &mut opening, if head.is_none() => head = Some(opened?),
            Some(edge) = inbox.results.recv(), if results.is_none() => {
                if let Some((frames, replies)) = edge.accept(job.epoch) {
                    results = Some(frames);
                    *tail = Some(replies);
                    // One edge in each epoch: later ones find nobody here.
                    inbox.results.close();
                }
            }
            why = too_early(&mut results), if results.is_some() => return Err(why),
            why = head_ended(&mut head), if head.is_some() => return Err(why),
        }
        if head.is_some()
            && let Some(results) = results.take()
            && let Some(head) = head.take()
        {
            return Ok((head, results));
        }
    }
}

/// Nothing is due on the results' edge before a step was sent.
async fn too_early(results: &mut Option<Results>) -> String {
    match results {
        None => std::future::pending().await,
        Some(results) => match results.message().await {
            Ok(Some(_)) => "the last stage sent a result before any step".to_owned(),
            Ok(None) => "the last stage closed its edge".to_owned(),
            Err(status) => format!("the edge from the last stage ended: {}", words(&status)),
        },
    }
}

async fn head_ended(head: &mut Option<Head>) -> String {
    match head {
        None => std::future::pending().await,
        Some(head) => head.ended().await,
    }
}

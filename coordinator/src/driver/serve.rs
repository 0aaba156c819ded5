//! The step loop of one pipeline in one epoch: the scheduler between two edges and its clients.
//!
//! Must never wait for a client: every channel holds the whole answer. Whatever ends the loop, even
//! being dropped, tells every sequence that it was interrupted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use caravan_core::batch::{PlannedChunk, PlannedStep, Scheduler, Submitted};
use caravan_core::cluster::Command;
use caravan_core::error::{Refusal, Retry};
use caravan_core::ids::{Epoch, PipelineId, SequenceId, StepId};
use caravan_core::limits;
use caravan_core::request::{GenerateEvent, RequestRecord, Sampling};
use caravan_proto::{WireError, pack, sample_outcome, wire};
use tokio::sync::mpsc;
use tonic::Streaming;
use wire::result_frame::Frame;

use super::head::{Head, words};
use super::pipeline::{Inbox, Job};
use super::{AbortOnDrop, Shared, Submission};

/// Events at the end of an answer: Finished or Refused, and Interrupted.
const LAST_EVENTS: usize = 2;

pub(super) struct Serving {
    shared: Arc<Shared>,
    epoch: Epoch,
    id: PipelineId,
    context: u32,
    scheduler: Scheduler,
    inbox: Inbox,
    clients: BTreeMap<SequenceId, mpsc::Sender<GenerateEvent>>,
    /// The first sequence of the epoch, until its one token came through every stage.
    probe: Option<SequenceId>,
    /// When a step in flight last came back, or the first one was sent.
    progress: Instant,
    announcer: Option<AbortOnDrop>,
}

impl Serving {
    pub(super) fn new(shared: Arc<Shared>, job: &Job, inbox: Inbox) -> Serving {
        Serving {
            scheduler: Scheduler::new(job.batch(&shared)),
            shared,
            epoch: job.epoch,
            id: job.id.clone(),
            context: job.context,
            inbox,
            clients: BTreeMap::new(),
            probe: None,
            progress: Instant::now(),
            announcer: None,
        }
    }

    /// Until something breaks; says what.
    pub(super) async fn run(mut self, mut head: Head, mut results: Streaming<wire::ResultFrame>) -> String {
        match self.scheduler.submit(probe_record(), now_ms()) {
            Ok(Submitted::Queued(id)) => self.probe = Some(id),
            Ok(Submitted::Finished(_)) => return "the probe had nothing to do".to_owned(),
            Err(refusal) => return format!("the probe was refused: {refusal}"),
        }
        let mut tick = tokio::time::interval(Duration::from_millis(limits::DRIVER_TICK_MS));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.forget_the_gone();
            if let Err(why) = self.send_steps(&head) {
                return why;
            }
            self.observe();
            tokio::select! {
                frame = results.message() => {
                    let done = match frame {
                        Ok(Some(frame)) => self.take_result(frame),
                        Ok(None) => Err("the last stage closed its edge".to_owned()),
                        Err(status) => Err(format!("the edge from the last stage ended: {}", words(&status))),
                    };
                    if let Err(why) = done {
                        return why;
                    }
                }
                why = head.ended() => return why,
                Some(submission) = self.inbox.requests.recv(), if self.probe.is_none() => {
                    self.submit(submission);
                    // What came together goes into one step.
                    while let Ok(submission) = self.inbox.requests.try_recv() {
                        self.submit(submission);
                    }
                }
                _ = tick.tick() => if let Err(why) = self.look_at_the_time() {
                    return why;
                },
            }
        }
    }

    /// Clients that dropped their receiver cancelled.
    fn forget_the_gone(&mut self) {
        let scheduler = &mut self.scheduler;
        self.clients.retain(|id, events| {
            if events.is_closed() {
                scheduler.cancel(*id);
            }
            !events.is_closed()
        });
    }

    fn send_steps(&mut self, head: &Head) -> Result<(), String> {
        while let Some(step) = self.scheduler.next_step() {
            if self.scheduler.stats().steps_in_flight == 1 {
                self.progress = Instant::now();
            }
            if self.probe.is_none() {
                let rows = u64::from(step.prefill_rows);
                self.shared.with_meter(&self.id, |meter| meter.prefilled(rows));
            }
            let step = to_wire(self.epoch, step).map_err(|error| error.to_string())?;
            let frame = wire::EdgeFrame { frame: Some(wire::edge_frame::Frame::Step(step)) };
            // The channel has room for every step that can be in flight.
            head.frames.try_send(frame).map_err(|_| "the first stage takes no more steps".to_owned())?;
        }
        Ok(())
    }

    fn take_result(&mut self, frame: wire::ResultFrame) -> Result<(), String> {
        let Some(Frame::Result(result)) = frame.frame else {
            return Err("the last stage sent a second hello".to_owned());
        };
        if result.epoch != self.epoch.0 {
            self.shared.fenced.fetch_add(u64::from(result.epoch < self.epoch.0), Ordering::Relaxed);
            return Err(format!(
                "the last stage sent a result of epoch {} in epoch {}",
                result.epoch, self.epoch
            ));
        }
        let outcomes = result.tokens.into_iter();
        let outcomes = outcomes.map(|token| (SequenceId(token.sequence), sample_outcome(token))).collect();
        let events =
            self.scheduler.step_done(StepId(result.step), outcomes).map_err(|error| error.to_string())?;
        self.progress = Instant::now();
        for (id, event) in &events {
            // A pipeline that can't give one token is not ready, though it answers.
            if let (true, GenerateEvent::Refused(refusal)) = (self.probe == Some(*id), event) {
                return Err(format!("no token came of the probe: {refusal}"));
            }
        }
        self.deliver(events);
        Ok(())
    }

    fn deliver(&mut self, events: Vec<(SequenceId, GenerateEvent)>) {
        let tokens = |(id, event): &&(SequenceId, GenerateEvent)| {
            self.probe != Some(*id) && matches!(event, GenerateEvent::Token(_))
        };
        // Counted before anybody can have seen them.
        match events.iter().filter(tokens).count() as u64 {
            0 => {}
            emitted => self.shared.with_meter(&self.id, |meter| meter.emitted(emitted)),
        }
        for (id, event) in events {
            let last = !matches!(event, GenerateEvent::Token(_));
            if self.probe == Some(id) {
                if last {
                    self.begin_to_serve();
                }
                continue;
            }
            let Some(client) = self.clients.get(&id) else { continue };
            // It holds the whole answer, so this fails only for a client that has gone.
            if client.try_send(event).is_err() {
                self.scheduler.cancel(id);
                self.clients.remove(&id);
            } else if last {
                self.clients.remove(&id);
            }
        }
    }

    /// A token went through every stage.
    fn begin_to_serve(&mut self) {
        self.probe = None;
        self.inbox.serving.store(true, Ordering::Release);
        tracing::info!(epoch = %self.epoch, pipeline = %self.id, "pipeline ready");
        let announce = announce(self.shared.clone(), self.epoch, self.id.clone());
        self.announcer = Some(AbortOnDrop(tokio::spawn(announce)));
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { record, reply } = submission;
        let id = record.id.clone();
        let prompt = u32::try_from(record.prompt.len()).unwrap_or(u32::MAX);
        let room = self.context.saturating_sub(prompt).min(record.max_tokens) as usize;
        let answer = self.scheduler.submit(record, now_ms()).map(|submitted| {
            let (events, receiver) = mpsc::channel(room + LAST_EVENTS);
            match submitted {
                Submitted::Queued(sequence) => {
                    self.clients.insert(sequence, events);
                }
                Submitted::Finished(finish) => {
                    // An empty channel has room.
                    let _ = events.try_send(GenerateEvent::Finished(finish));
                }
            }
            receiver
        });
        if let Err(refusal) = &answer {
            tracing::debug!(request = id, code = refusal.code, "record refused");
        }
        // If nobody waits for the answer the receiver is dropped here, which cancels.
        let _ = reply.send(answer);
    }

    fn look_at_the_time(&mut self) -> Result<(), String> {
        let events = self.scheduler.expire(now_ms());
        self.deliver(events);
        let silent = self.progress.elapsed();
        let steps = self.scheduler.stats().steps_in_flight;
        if steps > 0 && silent > self.shared.patience {
            return Err(format!("{steps} steps are in flight and none came back for {} s", silent.as_secs()));
        }
        Ok(())
    }

    fn observe(&self) {
        let stats = self.scheduler.stats();
        self.inbox.load.store(stats.running + stats.waiting, Ordering::Relaxed);
        self.shared.with_meter(&self.id, |meter| meter.observe(Instant::now(), stats));
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.inbox.serving.store(false, Ordering::Release);
        for (id, event) in self.scheduler.interrupt_all() {
            if let Some(client) = self.clients.get(&id) {
                // A client that has gone needs no telling.
                let _ = client.try_send(event);
            }
        }
    }
}

/// One token through every stage, sampled at the end. Token 0 exists in every vocabulary.
fn probe_record() -> RequestRecord {
    RequestRecord {
        id: "probe".to_owned(),
        model: String::new(),
        prompt: vec![0],
        emitted: Vec::new(),
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        max_tokens: 1,
        accepted_ms: 0,
        deadline_ms: u64::MAX,
    }
}

/// Tells the cluster, again and again while there is no quorum. Ends with the epoch.
async fn announce(shared: Arc<Shared>, epoch: Epoch, pipeline: PipelineId) {
    loop {
        let command = Command::PipelineReady { epoch, pipeline: pipeline.clone() };
        match shared.cluster.propose(command).await {
            Ok(_) => return,
            Err(Refusal { retry: Retry::Never, message, .. }) => {
                tracing::error!(%epoch, %pipeline, message, "the cluster won't hear that the pipeline is ready");
                return;
            }
            Err(refusal) => {
                tracing::debug!(%epoch, %pipeline, why = %refusal, "could not say that the pipeline is ready");
                tokio::time::sleep(Duration::from_millis(limits::READY_RETRY_MS)).await;
            }
        }
    }
}

fn to_wire(epoch: Epoch, step: PlannedStep) -> Result<wire::Step, WireError> {
    Ok(wire::Step {
        epoch: epoch.0,
        step: step.step.0,
        chunks: step.chunks.into_iter().map(chunk_to_wire).collect::<Result<_, _>>()?,
        activations: bytes::Bytes::new(),
        closed: step.closed.into_iter().map(|sequence| sequence.0).collect(),
    })
}

fn chunk_to_wire(chunk: PlannedChunk) -> Result<wire::Chunk, WireError> {
    let open = chunk.open.map(|open| {
        let sampling = pack(&open.sampling)?;
        Ok::<_, WireError>(wire::SequenceOpen { sampling, prompt_tokens: open.prompt_tokens })
    });
    Ok(wire::Chunk {
        sequence: chunk.sequence.0,
        start: chunk.start,
        tokens: chunk.tokens,
        pages: chunk.pages,
        sample: chunk.sample,
        open: open.transpose()?,
    })
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

//! The one seam that every mode uses: a request record in, tokens out, over any failure.
//!
//! Must never give a token twice or leave one out: whatever happens to drivers and pipelines, the
//! record is submitted again with exactly the tokens that were given. Must never go on with an answer
//! in another numerics profile than it began in. Must never wait beyond the record's deadline.

mod link;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use caravan_core::cluster::ClusterState;
use caravan_core::error::{Fault, Refusal, Retry};
use caravan_core::ids::{CoordinatorId, Epoch};
use caravan_core::limits;
use caravan_core::plan::Pipeline;
use caravan_core::request::{GenerateEvent, RequestRecord};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::link::{Link, Links, Submitted};
use crate::consensus::Consensus;
use crate::driver::{Drivers, now_ms};

/// A year. Clocks can't count to every deadline that can be written down.
const LONGEST_MS: u64 = 366 * 24 * 3_600_000;

/// Finds the driver of a record's pipeline, here or on another coordinator, and submits the record
/// again with the tokens emitted so far whenever driver or pipeline go away.
#[derive(Clone)]
pub struct Generator {
    state: watch::Receiver<Arc<ClusterState>>,
    link: Arc<dyn Link>,
}

/// Tokens of one sequence. Dropping it cancels the sequence.
pub struct GenerateStream {
    events: mpsc::Receiver<GenerateEvent>,
}

/// Where a record is submitted: a ready pipeline of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    epoch: Epoch,
    driver: CoordinatorId,
    /// Of its workers, who all have the same.
    numerics: Option<String>,
}

/// How one submission ended.
enum Attempt {
    /// The client has its last event, or has gone.
    Over,
    /// The pipeline or its driver went away.
    Lost,
    /// Refused for now.
    NotNow(Refusal),
}

impl Generator {
    pub fn new(me: CoordinatorId, consensus: Consensus, drivers: Drivers) -> Generator {
        let state = consensus.state();
        Generator { link: Arc::new(Links::new(me, state.clone(), drivers)), state }
    }

    #[cfg(test)]
    fn with_link(state: watch::Receiver<Arc<ClusterState>>, link: Arc<dyn Link>) -> Generator {
        Generator { state, link }
    }

    /// Starts to generate. Waits for a ready pipeline, within the record's deadline, if there is none.
    /// To be called in a tokio runtime.
    pub fn generate(&self, record: RequestRecord) -> GenerateStream {
        let (events, receiver) = mpsc::channel(limits::GENERATE_EVENTS);
        let left_ms = record.deadline_ms.saturating_sub(now_ms()).min(LONGEST_MS);
        let job = Job {
            state: self.state.clone(),
            link: self.link.clone(),
            deadline: Instant::now() + Duration::from_millis(left_ms),
            numerics: None,
            record,
            client: events,
        };
        tokio::spawn(job.run());
        GenerateStream { events: receiver }
    }
}

impl GenerateStream {
    /// The next event: `Token`s, then one `Finished` or `Refused`, then `None`. Never `Interrupted`.
    pub async fn next(&mut self) -> Option<GenerateEvent> {
        self.events.recv().await
    }
}

/// One record until its last event.
struct Job {
    state: watch::Receiver<Arc<ClusterState>>,
    link: Arc<dyn Link>,
    deadline: Instant,
    /// With every token that the client was given, and no other.
    record: RequestRecord,
    /// The numerics profile that the tokens so far were computed in.
    numerics: Option<String>,
    client: mpsc::Sender<GenerateEvent>,
}

impl Job {
    async fn run(mut self) {
        let client = self.client.clone();
        let deadline = self.deadline;
        let last = tokio::select! {
            biased;
            () = client.closed() => return,
            last = self.submit_until_over() => last,
            () = tokio::time::sleep_until(deadline) => Some(late()),
        };
        if let Some(refusal) = last {
            // A client that has gone needs no telling; one that is slow is waited for.
            let _ = client.send(GenerateEvent::Refused(refusal)).await;
        }
    }

    /// Submits again and again; gives the refusal that is the client's, if that is the end.
    async fn submit_until_over(&mut self) -> Option<Refusal> {
        let mut failures = 0;
        loop {
            let before = self.record.emitted.len();
            let place = match self.ready_place().await {
                Ok(place) => place,
                Err(refusal) => return Some(refusal),
            };
            if let Err(refusal) = self.same_numerics(&place) {
                return Some(refusal);
            }
            tracing::debug!(request = self.record.id, epoch = %place.epoch, driver = %place.driver,
                emitted = before, "submitting");
            let mut state = self.state.clone();
            let model = self.record.model.clone();
            // Of an attempt that is given up nothing is kept but the tokens that the client has.
            let attempt = tokio::select! {
                biased;
                () = newer_ready(&mut state, &model, place.epoch) => Attempt::Lost,
                attempt = self.attempt(&place) => attempt,
            };
            let pause = match attempt {
                Attempt::Over => return None,
                Attempt::Lost => None,
                Attempt::NotNow(refusal) => match self.how_long(&refusal, failures) {
                    Some(pause) => Some(pause),
                    None => return Some(refusal),
                },
            };
            failures = if self.record.emitted.len() > before { 0 } else { failures + 1 };
            self.pause(place.epoch, pause.unwrap_or_else(|| back_off(failures))).await;
        }
    }

    /// An answer that has begun goes on only where its next token is the one that would have come.
    fn same_numerics(&mut self, place: &Place) -> Result<(), Refusal> {
        if self.record.emitted.is_empty() || self.numerics.is_none() {
            self.numerics = place.numerics.clone();
        }
        match (&self.numerics, &place.numerics) {
            (Some(begun), Some(now)) if begun != now => {
                let message = format!(
                    "the workers that began this answer are gone, and those that serve the model now compute with \
                     other numerics ({now}, not {begun}), so it can't go on to the bit; send the request again for a \
                     whole answer"
                );
                Err(Refusal::cluster("numerics_changed", limits::RETRY_AFTER_MS, message))
            }
            _ => Ok(()),
        }
    }

    /// How long to wait before a refused record is submitted again; `None` if the refusal is final.
    fn how_long(&self, refusal: &Refusal, failures: u32) -> Option<Duration> {
        let Retry::AfterMs(after_ms) = refusal.retry else { return None };
        if refusal.fault != Fault::Cluster || refusal.code == "deadline" {
            return None;
        }
        // Only one that was never accepted may be sent away for a full queue.
        if refusal.code == "queue_full" && failures == 0 && self.record.emitted.is_empty() {
            return None;
        }
        Some(Duration::from_millis(after_ms).min(back_off(failures + 1)))
    }

    /// Waits for a ready pipeline of the record's model in the state applied here.
    async fn ready_place(&mut self) -> Result<Place, Refusal> {
        loop {
            {
                let state = self.state.borrow_and_update();
                let begun = self.numerics.as_deref().filter(|_| !self.record.emitted.is_empty());
                if let Some(place) = place(&state, &self.record.model, &self.record.id, begun) {
                    return Ok(place);
                }
                // A coordinator that has applied nothing yet can't say what exists.
                let empty = state.coordinators.is_empty() && state.models.is_empty();
                if !empty && !state.models.contains_key(&self.record.model) {
                    return Err(unknown_model(&self.record.model));
                }
            }
            if self.state.changed().await.is_err() {
                return Err(Refusal::cluster(
                    "stopping",
                    limits::RETRY_AFTER_MS,
                    "this coordinator is stopping",
                ));
            }
        }
    }

    /// Until `for_long`, or until the plan is newer than `epoch` or ready anew.
    async fn pause(&mut self, epoch: Epoch, for_long: Duration) {
        let mut state = self.state.clone();
        tokio::select! {
            () = newer_ready(&mut state, &self.record.model, epoch) => {}
            () = tokio::time::sleep(for_long) => {}
        }
    }

    /// One submission: passes tokens on until it ends. May be dropped at any point.
    async fn attempt(&mut self, place: &Place) -> Attempt {
        let answer = tokio::time::timeout(
            Duration::from_millis(limits::SUBMIT_MS),
            self.link.submit(place.driver, place.epoch, self.record.clone()),
        );
        let mut events = match answer.await {
            Ok(Submitted::Events(events)) => events,
            Ok(Submitted::Refused(refusal)) => return Attempt::NotNow(refusal),
            Ok(Submitted::Lost(why)) => {
                tracing::debug!(request = self.record.id, driver = %place.driver, why, "submission failed");
                return Attempt::Lost;
            }
            Err(_) => return Attempt::Lost,
        };
        loop {
            let event = match events.next().await {
                Some(GenerateEvent::Refused(refusal)) => return Attempt::NotNow(refusal),
                Some(GenerateEvent::Interrupted) | None => return Attempt::Lost,
                Some(event) => event,
            };
            let Ok(room) = self.client.reserve().await else { return Attempt::Over };
            // No await from here on: a token is noted and given, or neither.
            let last = match &event {
                GenerateEvent::Token(sampled) => {
                    self.record.emitted.push(sampled.token);
                    false
                }
                _ => true,
            };
            room.send(event);
            if last {
                return Attempt::Over;
            }
        }
    }
}

/// A ready pipeline of the model, one that computes with the numerics `wanted` if there is one. Of several
/// each record has its own, so that they share the load.
fn place(state: &ClusterState, model: &str, request: &str, wanted: Option<&str>) -> Option<Place> {
    let numerics_of = |pipeline: &Pipeline| {
        let first = pipeline.stages.first().and_then(|stage| state.workers.get(&stage.worker));
        first.map(|worker| worker.profile.numerics.clone())
    };
    let ready = state.plan.pipelines_of(model).filter(|pipeline| pipeline.ready);
    let mut ready: Vec<_> = ready.map(|pipeline| (pipeline.driver, numerics_of(pipeline))).collect();
    if ready.iter().any(|(_, numerics)| numerics.as_deref() == wanted) {
        ready.retain(|(_, numerics)| wanted.is_none() || numerics.as_deref() == wanted);
    }
    let sum = request.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let (driver, numerics) = ready.get(sum % ready.len().max(1))?.clone();
    Some(Place { epoch: state.plan.epoch, driver, numerics })
}

/// Resolves when the model has a ready pipeline in a newer epoch. Until then an old driver, even a
/// deposed one, may go on: its tokens are the same.
async fn newer_ready(state: &mut watch::Receiver<Arc<ClusterState>>, model: &str, epoch: Epoch) {
    let ready = |state: &Arc<ClusterState>| {
        state.plan.epoch > epoch && state.plan.pipelines_of(model).any(|pipeline| pipeline.ready)
    };
    if state.wait_for(ready).await.is_err() {
        // The state changes no more: the stream in hand is all there is.
        std::future::pending::<()>().await;
    }
}

fn back_off(failures: u32) -> Duration {
    let ms = limits::RESUBMIT_MIN_MS << failures.min(16);
    Duration::from_millis(ms.min(limits::RESUBMIT_MAX_MS))
}

fn unknown_model(model: &str) -> Refusal {
    let message = format!("the cluster does not serve model `{model}`; GET /v1/models lists those it does");
    Refusal::client("model_not_found", "model", message)
}

fn late() -> Refusal {
    Refusal::cluster(
        "deadline",
        limits::RETRY_AFTER_MS,
        "the request's deadline passed before its answer was complete; it may be sent again",
    )
}

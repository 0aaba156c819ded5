//! Keeps this worker attached to whoever leads: finds the leader, reports to it, takes its directives.
//!
//! Must never decide anything about the plan, and never give up on a coordinator: only a refusal in
//! words (another protocol version, …) ends it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use caravan_core::limits;
use caravan_proto::wire;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use wire::directive::Directive as Order;
use wire::fleet_client::FleetClient;
use wire::worker_report::Report;

use crate::assign::Assigner;
use crate::blobs::BlobCache;
use crate::compute::Compute;
use crate::engine::Engine;
use crate::links::{self, Keepalive};
use crate::machine;
use crate::stages::Stages;

/// Addresses of coordinators, and which to try next.
#[derive(Clone, Debug)]
pub struct Contacts {
    join: Vec<String>,
    learnt: Vec<String>,
    next: usize,
    hint: Option<String>,
}

impl Contacts {
    /// `join`: what the operator gave.
    pub fn new(join: Vec<String>) -> Contacts {
        Contacts { join, learnt: Vec::new(), next: 0, hint: None }
    }

    /// The hint if there is one, else every known address in turn.
    pub fn pick(&mut self) -> Option<String> {
        if let Some(hint) = self.hint.take() {
            return Some(hint);
        }
        let known: Vec<&String> = self.learnt.iter().chain(&self.join).collect();
        let addr = (*known.get(self.next % known.len().max(1))?).clone();
        self.next = self.next.wrapping_add(1);
        Some(addr)
    }

    /// Try this one next.
    pub fn hint(&mut self, addr: String) {
        self.hint = Some(addr);
    }

    /// The coordinators there are now. The operator's own addresses stay known.
    pub fn learn(&mut self, addrs: Vec<String>) {
        let mut seen: BTreeSet<String> = self.join.iter().cloned().collect();
        self.learnt = addrs
            .into_iter()
            .filter(|addr| seen.insert(addr.clone()))
            .take(limits::COORDINATOR_ADDRESSES)
            .collect();
    }
}

/// How an attempt to attach ended.
#[derive(Debug)]
enum Outcome {
    Refused(String),
    /// Ask there; `None`: that coordinator does not know the leader.
    Redirected(Option<String>),
    Lost(String),
}

/// Pause before attempt `failures + 1`: grows by half each time, to a bound, give or take a quarter.
fn backoff(failures: u32, random: u64) -> Duration {
    let grown = limits::ATTACH_BACKOFF_MIN_MS as f64 * 1.5f64.powi(failures.min(30) as i32);
    let bounded = grown.min(limits::ATTACH_BACKOFF_MAX_MS as f64 * 0.8);
    let jitter = 0.75 + (random % 1024) as f64 / 2048.0;
    Duration::from_secs_f64(bounded * jitter / 1e3)
}

/// The worker's side of `Fleet.Attach`.
pub struct Attach<C: Compute> {
    pub hello: wire::WorkerHello,
    pub contacts: Contacts,
    pub stages: Arc<Stages>,
    pub cache: Arc<BlobCache>,
    pub assigner: Arc<Assigner<C>>,
    pub measurer: Measurer,
    /// Results of measurements, for whoever leads when they are there.
    pub measured: mpsc::Receiver<wire::Measured>,
}

impl<C: Compute> Attach<C> {
    /// Runs until a coordinator refuses this worker for good.
    pub async fn run(mut self) -> anyhow::Error {
        let (mut failures, mut hops) = (0u32, 0u32);
        loop {
            let Some(addr) = self.contacts.pick() else {
                return anyhow::anyhow!("no coordinator to join: give this worker an address with --join");
            };
            let begun = Instant::now();
            let outcome = self.session(&addr).await;
            if begun.elapsed() >= Duration::from_millis(limits::KEEPALIVE_MS) {
                failures = 0;
            }
            match outcome {
                Outcome::Refused(why) => {
                    tracing::error!(coordinator = addr, why, "the cluster refused this worker");
                    return anyhow::anyhow!("the coordinator at {addr} refused this worker: {why}");
                }
                Outcome::Redirected(Some(leader)) if leader != addr && hops < 4 => {
                    hops += 1;
                    self.contacts.hint(leader);
                    continue;
                }
                Outcome::Redirected(_) => {}
                Outcome::Lost(why) => {
                    tracing::debug!(coordinator = addr, why, "not attached");
                    if failures == 0
                        && hops == 0
                        && begun.elapsed() >= Duration::from_millis(limits::KEEPALIVE_MS)
                    {
                        // A stream that worked: most likely the same leader takes it up again.
                        self.contacts.hint(addr);
                        hops += 1;
                        continue;
                    }
                }
            }
            hops = 0;
            tokio::time::sleep(backoff(failures, machine::process_number())).await;
            failures = failures.saturating_add(1);
        }
    }

    async fn session(&mut self, addr: &str) -> Outcome {
        let (reports, queue) = mpsc::channel(limits::REPORTS);
        let mut hello = self.hello.clone();
        hello.epoch = self.stages.epoch();
        if reports.try_send(report(Report::Hello(hello))).is_err() {
            return Outcome::Lost("no room for a hello".to_owned());
        }
        let call = async {
            let channel = links::connect(addr, Keepalive::LEADER).await.map_err(|error| error.to_string())?;
            let mut client = FleetClient::new(channel)
                .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
                .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES);
            let answer = client.attach(ReceiverStream::new(queue)).await;
            answer.map(|answer| answer.into_inner()).map_err(|status| status.to_string())
        };
        let limit = Duration::from_millis(limits::ATTACH_ANSWER_MS);
        let mut directives = match tokio::time::timeout(limit, call).await {
            Ok(Ok(directives)) => directives,
            Ok(Err(why)) => return Outcome::Lost(why),
            Err(_) => return Outcome::Lost("no answer".to_owned()),
        };
        let mut beat = tokio::time::interval(Duration::from_millis(limits::HEARTBEAT_MS));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = directives.message() => match message {
                    Ok(Some(wire::Directive { directive: Some(order) })) => {
                        if let Some(outcome) = self.take(order) {
                            return outcome;
                        }
                    }
                    // A directive of a newer build: nothing this one could do about it.
                    Ok(Some(wire::Directive { directive: None })) => {}
                    Ok(None) => return Outcome::Lost("the coordinator ended the stream".to_owned()),
                    Err(status) => return Outcome::Lost(status.to_string()),
                },
                // A full queue is a leader that does not read; keepalive finds out which.
                _ = beat.tick() => drop(reports.try_send(report(Report::Heartbeat(self.heartbeat())))),
                Some(measured) = self.measured.recv(), if reports.capacity() > 0 => {
                    drop(reports.try_send(report(Report::Measured(measured))));
                }
            }
        }
    }

    /// `Some` ends the session.
    fn take(&mut self, order: Order) -> Option<Outcome> {
        match order {
            Order::Redirect(redirect) => {
                Some(Outcome::Redirected(Some(redirect.grpc).filter(|addr| !addr.is_empty())))
            }
            Order::Refused(refused) => Some(Outcome::Refused(refused.why)),
            Order::Measure(measure) => {
                self.measurer.offer(measure);
                None
            }
            Order::Assignments(assignments) => {
                self.assigner.offer(assignments);
                None
            }
            Order::Coordinators(coordinators) => {
                self.contacts.learn(coordinators.grpc);
                None
            }
        }
    }

    fn heartbeat(&self) -> wire::Heartbeat {
        wire::Heartbeat {
            epoch: self.stages.epoch(),
            memory_used_bytes: machine::memory_used_bytes(),
            stages: self.stages.statuses(),
            fenced_messages: self.stages.fenced(),
            blob_bytes_received: self.cache.received(),
        }
    }
}

fn report(report: Report) -> wire::WorkerReport {
    wire::WorkerReport { report: Some(report) }
}

/// Takes the leader's wishes for measurements; asked twice for a model, it measures once.
#[derive(Clone)]
pub struct Measurer {
    queue: mpsc::Sender<wire::Measure>,
    under_way: Arc<Mutex<BTreeSet<String>>>,
}

impl Measurer {
    /// The measurer and the future that does its work: layers on the engine's thread, then links.
    pub fn start<C: Compute>(
        engine: Engine<C>,
        results: mpsc::Sender<wire::Measured>,
    ) -> (Measurer, impl Future<Output = ()>) {
        let (queue, mut wishes) = mpsc::channel::<wire::Measure>(limits::MEASURES_WAITING);
        let under_way = Arc::new(Mutex::new(BTreeSet::new()));
        let done = under_way.clone();
        let work = async move {
            while let Some(wish) = wishes.recv().await {
                let model = wish.model.as_ref().map(|model| model.name.clone()).unwrap_or_default();
                match measure(&engine, wish).await {
                    // Nobody attached any more: the process is ending.
                    Ok(measured) => drop(results.send(measured).await),
                    Err(error) => tracing::error!(model, "measuring failed: {error:#}"),
                }
                done.lock().unwrap_or_else(PoisonError::into_inner).remove(&model);
            }
        };
        (Measurer { queue, under_way }, work)
    }

    pub fn offer(&self, wish: wire::Measure) {
        let model = wish.model.as_ref().map(|model| model.name.clone()).unwrap_or_default();
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if !under_way.insert(model.clone()) {
            return;
        }
        if self.queue.try_send(wish).is_err() {
            under_way.remove(&model);
            tracing::warn!(model, "too many measurements wanted at once; ignored one");
        }
    }
}

async fn measure<C: Compute>(engine: &Engine<C>, wish: wire::Measure) -> anyhow::Result<wire::Measured> {
    let shape = wish.model.ok_or(caravan_proto::WireError::Missing("model"))?;
    let config = caravan_proto::unpack(&shape.config, "config")?;
    let tensors = caravan_proto::unpack(&shape.tensors, "tensors")?;
    let time = engine.measure(config, tensors).await?;
    let links = links::measure(wish.peers).await;
    Ok(wire::Measured {
        model: shape.name,
        decode_ms: time.decode_ms,
        prefill_short_ms: time.prefill_short_ms,
        prefill_long_ms: time.prefill_long_ms,
        head_ms: time.head_ms,
        links,
    })
}

#[cfg(test)]
mod tests;

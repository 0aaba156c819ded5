//! Who is to measure which model, and when: one worker of a host at a time, so that workers of one
//! machine don't measure each other.
//!
//! Must never judge a measurement; the cluster state checks the numbers, placement weighs them.

use std::collections::{BTreeMap, BTreeSet};

use caravan_core::cluster::{Command, LayerTime, LinkTime};
use caravan_core::ids::WorkerId;
use caravan_core::limits;
use caravan_core::model::{ModelSpec, Place, TensorSpec};
use caravan_proto::{WireError, pack, wire};

use super::machine::{Action, Connection, Machine, Now, Ticket, send};

#[derive(Default)]
pub(super) struct Measuring {
    /// Measurements that are awaited.
    asked: BTreeMap<WorkerId, Asked>,
    /// When each worker was asked last: those that fail don't keep the others from their turn.
    last_ms: BTreeMap<WorkerId, u64>,
}

struct Asked {
    host: String,
    until_ms: u64,
}

impl Measuring {
    pub fn forget(&mut self, worker: &WorkerId) {
        self.asked.remove(worker);
        self.last_ms.remove(worker);
    }
}

impl Machine {
    /// Asks workers for the measurements that the log lacks.
    pub(super) fn measure(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.measuring.asked.retain(|_, asked| now.ms < asked.until_ms);
        let mut busy: BTreeSet<String> =
            self.measuring.asked.values().map(|asked| asked.host.clone()).collect();
        let mut wanted: Vec<(u64, WorkerId, Connection, String)> = self
            .present()
            .filter_map(|(id, attached, worker)| {
                let lacking = self.state.models.keys().find(|model| {
                    let ticket = Ticket::Measure(id.clone(), (*model).clone());
                    !worker.layer_times.contains_key(*model) && !self.in_flight(now, &ticket)
                })?;
                let last_ms = self.measuring.last_ms.get(id).copied().unwrap_or(0);
                Some((last_ms, id.clone(), attached.connection, lacking.clone()))
            })
            .collect();
        wanted.sort();
        for (_, id, connection, model) in wanted {
            let host = host(&self.state.workers[&id].profile.grpc).to_owned();
            if busy.contains(&host) {
                continue;
            }
            let Some(spec) = self.state.models.get(&model) else { continue };
            match self.request(&id, spec) {
                Ok(request) => actions.push(send(connection, wire::directive::Directive::Measure(request))),
                Err(error) => {
                    tracing::error!(worker = %id, model, "the model's shape can't be written: {error}");
                    continue;
                }
            }
            busy.insert(host.clone());
            self.measuring.last_ms.insert(id.clone(), now.ms);
            self.measuring.asked.insert(id, Asked { host, until_ms: now.ms + limits::MEASURE_MS });
        }
    }

    fn request(&self, worker: &WorkerId, spec: &ModelSpec) -> Result<wire::Measure, WireError> {
        let shape: Vec<&TensorSpec> = spec
            .tensors
            .iter()
            .filter(|tensor| !matches!(tensor.place, Place::Layer(layer) if layer > 0))
            .collect();
        let peers = self
            .present()
            .filter(|(id, ..)| *id != worker)
            .map(|(id, attached, _)| wire::Peer { worker: id.0.clone(), grpc: attached.profile.grpc.clone() })
            .collect();
        let (config, tensors) = (pack(&spec.config)?, pack(&shape)?);
        let model = wire::ModelShape { name: spec.name.clone(), config, tensors };
        Ok(wire::Measure { model: Some(model), peers })
    }

    pub(super) fn measured(
        &mut self,
        now: Now,
        connection: Connection,
        measured: wire::Measured,
        actions: &mut Vec<Action>,
    ) {
        let Some(id) = self.worker_of(connection).cloned() else { return };
        let Some(incarnation) = self.attached.get(&id).map(|attached| attached.incarnation) else { return };
        self.measuring.asked.remove(&id);
        self.planner.progress(now.ms);
        let time = LayerTime {
            decode_ms: measured.decode_ms,
            prefill_short_ms: measured.prefill_short_ms,
            prefill_long_ms: measured.prefill_long_ms,
            head_ms: measured.head_ms,
        };
        let link = |link: wire::MeasuredLink| {
            (WorkerId(link.worker), LinkTime { latency_ms: link.latency_ms, bytes_per_s: link.bytes_per_s })
        };
        let links = measured.links.into_iter().take(limits::WORKERS).map(link).collect();
        let model = measured.model;
        if !self.state.models.contains_key(&model) {
            tracing::warn!(worker = %id, "a worker measured a model that nobody asked for");
            return;
        }
        tracing::debug!(worker = %id, model, decode_ms = time.decode_ms, head_ms = time.head_ms, "measured");
        let ticket = Ticket::Measure(id.clone(), model.clone());
        let command = Command::MeasureWorker { id, incarnation, model, time, links };
        self.propose(now, ticket, command, actions);
    }
}

/// The host of `host:port`.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

//! Why a model has no place, with the numbers an operator needs.
//!
//! Must never advise what the numbers do not show.

use std::collections::BTreeMap;
use std::fmt;

use super::Policy;
use super::inventory::{kv_share, most_layers, page_bytes, weight_bytes};
use super::problem::loaded_bytes;
use crate::cluster::{ClusterState, WorkerState};
use crate::ids::WorkerId;
use crate::model::ModelSpec;
use crate::plan::Slice;

/// No arrangement of the present workers holds the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFit {
    pub model: String,
    /// Bytes of all its weights, loaded.
    pub needed_bytes: u64,
    /// KV bytes of the fewest pages allowed, over all layers.
    pub needed_kv_bytes: u64,
    /// Active workers that were measured for this model.
    pub workers: Vec<Room>,
    /// Workers that are not active or not measured yet.
    pub waiting: usize,
}

/// What a worker could take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    pub worker: WorkerId,
    /// Bytes for weights, beside its KV budget, the process and other models.
    pub weight_bytes: u64,
    pub kv_bytes: u64,
    /// Layers for which its KV budget is enough.
    pub most_layers: u32,
}

pub(super) fn no_fit(
    state: &ClusterState,
    spec: &ModelSpec,
    policy: &Policy,
    used: &BTreeMap<WorkerId, u64>,
) -> NoFit {
    let able = |worker: &crate::cluster::Worker| {
        worker.state == WorkerState::Active && worker.layer_times.contains_key(&spec.name)
    };
    let room = state.workers.iter().filter(|(_, worker)| able(worker)).map(|(id, worker)| Room {
        worker: id.clone(),
        weight_bytes: weight_bytes(worker, used.get(id).copied().unwrap_or(0), policy),
        kv_bytes: kv_share(worker, state),
        most_layers: most_layers(worker, state, spec, policy),
    });
    let layers = spec.config.layers;
    let set = page_bytes(spec).saturating_mul(u64::from(policy.kv_pages_min.max(1)));
    NoFit {
        model: spec.name.clone(),
        needed_bytes: loaded_bytes(spec.bytes_of(Slice { first: 0, end: layers })),
        needed_kv_bytes: set.saturating_mul(u64::from(layers)),
        workers: room.collect(),
        waiting: state
            .workers
            .values()
            .filter(|worker| worker.state != WorkerState::Lost && !able(worker))
            .count(),
    }
}

impl fmt::Display for NoFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(
            f,
            "model {} needs {} MiB for weights and at least {} MiB of KV cache; ",
            self.model,
            mib(self.needed_bytes),
            mib(self.needed_kv_bytes)
        )?;
        if self.workers.is_empty() {
            return write!(
                f,
                "no active worker is measured for it ({} are joining or draining)",
                self.waiting
            );
        }
        f.write_str("workers have room for weights beside their KV budget: ")?;
        for (i, room) in self.workers.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}{} {} MiB (KV {} MiB, enough for {} layers)",
                room.worker,
                room.weight_bytes >> 20,
                room.kv_bytes >> 20,
                room.most_layers
            )?;
        }
        f.write_str(". Add workers, give them more memory, or set their KV budgets otherwise")
    }
}

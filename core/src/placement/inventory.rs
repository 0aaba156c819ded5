//! From the cluster state to the numbers of one model's placement, a problem for each numerics profile.
//!
//! Must never choose: it only says who may hold what.

use std::collections::BTreeMap;

use super::Policy;
use super::problem::{Hop, Node, Problem, loaded_bytes};
use crate::cluster::{ClusterState, Worker, WorkerState};
use crate::ids::WorkerId;
use crate::limits;
use crate::model::{ModelSpec, Place};
use crate::plan::{Pipeline, Slice};

/// A hop between workers with one host address: what is measured there is how busy the machine was,
/// so it is not looked at.
const SAME_HOST: Hop = Hop { latency_ms: 0.02, transfer_ms: 0.0 };
/// A link that nobody has measured: an ordinary local network.
const UNKNOWN_LATENCY_MS: f64 = 0.5;
const UNKNOWN_BYTES_PER_S: f64 = 1e8;
/// Times of 0 would make a worker infinitely fast.
const LEAST_MS: f64 = 1e-6;
const LEAST_BYTES_PER_S: f64 = 1e3;

/// Workers of one numerics profile that may hold layers of one model.
pub(super) struct Inventory<'a> {
    /// Names of the nodes of `problem`, in the same order.
    pub ids: Vec<&'a WorkerId>,
    pub workers: Vec<&'a Worker>,
    pub problem: Problem,
}

/// Bytes for weights that a worker has beside its KV budget and the process itself, not counting
/// `used` (weights of other models, as loaded).
pub(super) fn weight_bytes(worker: &Worker, used: u64, policy: &Policy) -> u64 {
    let fixed = worker.profile.kv_bytes.saturating_add(policy.overhead_bytes).saturating_add(used);
    worker.profile.memory_bytes.saturating_sub(fixed)
}

/// KV bytes that a worker has for each model of the catalogue.
pub(super) fn kv_share(worker: &Worker, state: &ClusterState) -> u64 {
    worker.profile.kv_bytes / state.models.len().max(1) as u64
}

/// Bytes of one KV page of one layer.
pub(super) fn page_bytes(spec: &ModelSpec) -> u64 {
    (u64::from(limits::PAGE_TOKENS) * spec.config.kv_bytes_per_token_layer()).max(1)
}

/// Layers of `spec` for which a worker's KV budget has the fewest pages that are allowed.
pub(super) fn most_layers(worker: &Worker, state: &ClusterState, spec: &ModelSpec, policy: &Policy) -> u32 {
    let set = page_bytes(spec).saturating_mul(u64::from(policy.kv_pages_min.max(1)));
    u32::try_from(kv_share(worker, state) / set).unwrap_or(u32::MAX)
}

/// Measured active workers, by numerics profile. `used`: loaded bytes of other models by worker.
/// `held`: the pipeline whose slices are there now.
pub(super) fn inventories<'a>(
    state: &'a ClusterState,
    spec: &ModelSpec,
    policy: &Policy,
    used: &BTreeMap<WorkerId, u64>,
    held: Option<&Pipeline>,
) -> Vec<Inventory<'a>> {
    let mut groups: BTreeMap<&str, Vec<(&WorkerId, &Worker)>> = BTreeMap::new();
    for (id, worker) in &state.workers {
        if worker.state == WorkerState::Active && worker.layer_times.contains_key(&spec.name) {
            groups.entry(&worker.profile.numerics).or_default().push((id, worker));
        }
    }
    let build = |members: Vec<(&'a WorkerId, &'a Worker)>| {
        let nodes = members.iter().filter_map(|(id, worker)| {
            let time = worker.layer_times.get(&spec.name)?;
            Some(Node {
                layer_ms: time.decode_ms.max(LEAST_MS),
                head_ms: time.head_ms,
                weight_bytes: weight_bytes(worker, used.get(*id).copied().unwrap_or(0), policy),
                most_layers: most_layers(worker, state, spec, policy),
                held: held.and_then(|pipeline| held_slice(pipeline, id, worker)),
            })
        });
        let problem = problem(spec, nodes.collect(), hops(spec, &members), policy);
        let (ids, workers) = members.into_iter().unzip();
        Inventory { ids, workers, problem }
    };
    groups.into_values().map(build).collect()
}

fn held_slice(pipeline: &Pipeline, id: &WorkerId, worker: &Worker) -> Option<Slice> {
    let mut stages = pipeline.stages.iter();
    stages
        .find(|stage| &stage.worker == id && stage.incarnation == worker.incarnation)
        .map(|stage| stage.slice)
}

fn problem(spec: &ModelSpec, nodes: Vec<Node>, hops: Vec<Vec<Hop>>, policy: &Policy) -> Problem {
    let layers = spec.config.layers;
    let mut per_layer = vec![0u64; layers as usize];
    let (mut embed, mut head, mut shared) = (0, 0, 0);
    for tensor in &spec.tensors {
        match tensor.place {
            Place::Embed => embed += tensor.bytes,
            Place::Head => head += tensor.bytes,
            Place::Shared => shared += tensor.bytes,
            Place::Layer(layer) => {
                if let Some(bytes) = per_layer.get_mut(layer as usize) {
                    *bytes += tensor.bytes;
                }
            }
        }
    }
    let sums = std::iter::once(0)
        .chain(per_layer.iter().scan(0u64, |sum, bytes| {
            *sum += bytes;
            Some(*sum)
        }))
        .collect();
    let sequences = policy.load_sequences;
    Problem { layers, sums, embed, head, shared, tied: spec.config.tied, nodes, hops, sequences }
}

fn hops(spec: &ModelSpec, members: &[(&WorkerId, &Worker)]) -> Vec<Vec<Hop>> {
    let bytes = f64::from(spec.config.hidden) * 4.0;
    let hop = |from: &(&WorkerId, &Worker), to: &(&WorkerId, &Worker)| {
        if host(&from.1.profile.grpc) == host(&to.1.profile.grpc) {
            return SAME_HOST;
        }
        let link = from.1.links.get(to.0).or_else(|| to.1.links.get(from.0));
        let (latency_ms, rate) = link
            .map_or((UNKNOWN_LATENCY_MS, UNKNOWN_BYTES_PER_S), |link| (link.latency_ms, link.bytes_per_s));
        Hop { latency_ms, transfer_ms: bytes / rate.max(LEAST_BYTES_PER_S) * 1e3 }
    };
    members.iter().map(|from| members.iter().map(|to| hop(from, to)).collect()).collect()
}

/// The host of `host:port`.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// Loaded bytes of a pipeline's slices, added up by worker.
pub(super) fn add_used(used: &mut BTreeMap<WorkerId, u64>, spec: &ModelSpec, pipeline: &Pipeline) {
    for stage in &pipeline.stages {
        let sum = used.entry(stage.worker.clone()).or_default();
        *sum = sum.saturating_add(loaded_bytes(spec.bytes_of(stage.slice)));
    }
}

/// KV pages that every stage can have, and no more than its sequences could ever use.
pub(super) fn kv_pages(spec: &ModelSpec, stages: impl Iterator<Item = (u64, u32)>) -> u32 {
    let context = u64::from(spec.config.context.div_ceil(limits::PAGE_TOKENS).max(1));
    let useful = context * limits::RUNNING_SEQUENCES as u64;
    let pages = stages
        .map(|(kv_bytes, layers)| kv_bytes / (page_bytes(spec) * u64::from(layers.max(1))))
        .fold(useful, u64::min);
    u32::try_from(pages).unwrap_or(u32::MAX)
}

//! Properties of placement, against brute force on small instances, and examples of every verdict.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod brute;
mod examples;
mod properties;

use std::collections::BTreeMap;

use super::*;
use crate::cluster::{Coordinator, LayerTime, LinkTime, Worker, WorkerProfile, WorkerState};
use crate::ids::{Digest, WorkerId};
use crate::model::{Family, ModelConfig, ModelSpec, Place, TensorSpec, TensorType};
use crate::plan::Pipeline;

pub(super) const LEADER: CoordinatorId = CoordinatorId(1);
const MIB: u64 = 1 << 20;

/// A worker of a test: times in ms, memory for weights in MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub layer_ms: f64,
    pub head_ms: f64,
    pub weight_mib: u64,
}

pub(super) const PLAIN: Spec = Spec { layer_ms: 1.0, head_ms: 0.0, weight_mib: 1 << 20 };

pub(super) fn name(i: usize) -> WorkerId {
    WorkerId(format!("w{i}"))
}

/// A model with 10 MiB a layer (13 loaded), 10 MiB of embedding, tied.
pub(super) fn model(name: &str, layers: u32) -> ModelSpec {
    let config = ModelConfig {
        family: Family::Llama,
        layers,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rope_dim: 64,
        rope_base: 1e4,
        norm_eps: 1e-5,
        ffn: 1536,
        vocab: 49152,
        context: 2048,
        tied: true,
        ..ModelConfig::default()
    };
    let tensor = |place| TensorSpec {
        name: format!("{place:?}"),
        dims: vec![32],
        kind: TensorType::Q8_0,
        place,
        offset: 0,
        bytes: 10 * MIB,
        digest: Digest([0; 32]),
    };
    let tensors = (0..layers).map(Place::Layer).chain([Place::Embed]).map(tensor).collect();
    let (digest, header) = (Digest([1; 32]), Digest([2; 32]));
    ModelSpec { name: name.to_owned(), digest, header, header_bytes: 1, config, tensors }
}

/// Active workers `w0…` on machines of their own, linked by `latency_ms`, and one model `m`.
pub(super) fn cluster(layers: u32, workers: &[Spec], latency_ms: f64) -> ClusterState {
    let mut state = ClusterState::default();
    let coordinator = Coordinator { grpc: "c:1".into(), http: "c:2".into(), holds: Vec::new() };
    state.coordinators.insert(LEADER, coordinator);
    state.models.insert("m".into(), model("m", layers));
    for (i, worker) in workers.iter().enumerate() {
        add_worker(&mut state, i, *worker, latency_ms);
    }
    state
}

pub(super) fn add_worker(state: &mut ClusterState, i: usize, spec: Spec, latency_ms: f64) {
    let profile = WorkerProfile {
        grpc: format!("host{i}:1"),
        device: "cpu".into(),
        threads: 1,
        memory_bytes: (spec.weight_mib + 80 + 64) * MIB,
        kv_bytes: 64 * MIB,
        numerics: "n".into(),
    };
    let time = LayerTime {
        decode_ms: spec.layer_ms,
        prefill_short_ms: spec.layer_ms / 2.0,
        prefill_long_ms: spec.layer_ms / 2.0,
        head_ms: spec.head_ms,
    };
    let layer_times = state.models.keys().map(|model| (model.clone(), time)).collect();
    let links = (0..16).map(|peer| (name(peer), LinkTime { latency_ms, bytes_per_s: 1e9 })).collect();
    let worker =
        Worker { profile, incarnation: 1, state: WorkerState::Active, layer_times, links, since_ms: 0 };
    state.workers.insert(name(i), worker);
}

pub(super) fn lose(state: &mut ClusterState, worker: usize) {
    state.workers.get_mut(&name(worker)).unwrap().state = WorkerState::Lost;
}

/// Plans and commits; the state's own rules must accept every plan.
pub(super) fn settle(state: &mut ClusterState) -> Decision {
    let decision = next_plan(state, LEADER, &Policy::default());
    if let Some(plan) = &decision.plan {
        let command = crate::cluster::Command::SetPlan { plan: plan.clone() };
        assert_eq!(state.apply(&command), crate::cluster::Outcome::Done, "{plan:?}");
    }
    decision
}

pub(super) fn layers(pipeline: &Pipeline) -> BTreeMap<String, u32> {
    pipeline.stages.iter().map(|stage| (stage.worker.0.clone(), stage.slice.layers())).collect()
}

/// All layers once and in order; memory and KV pages within every worker's budget.
pub(super) fn check(state: &ClusterState, plan: &Plan, policy: &Policy) {
    let mut used: BTreeMap<&WorkerId, u64> = BTreeMap::new();
    for pipeline in &plan.pipelines {
        let spec = &state.models[&pipeline.model];
        let mut next = 0;
        for stage in &pipeline.stages {
            assert_eq!(stage.slice.first, next);
            assert!(stage.slice.end > next);
            next = stage.slice.end;
            let worker = &state.workers[&stage.worker];
            assert_eq!(worker.incarnation, stage.incarnation);
            *used.entry(&stage.worker).or_default() += problem::loaded_bytes(spec.bytes_of(stage.slice));
            let page = 32 * spec.config.kv_bytes_per_token_layer() * u64::from(stage.slice.layers());
            let share = worker.profile.kv_bytes / state.models.len() as u64;
            assert!(u64::from(pipeline.kv_pages) * page <= share);
        }
        assert_eq!(next, spec.config.layers);
        assert!(pipeline.kv_pages >= policy.kv_pages_min && !pipeline.ready);
    }
    for (id, bytes) in used {
        let profile = &state.workers[id].profile;
        assert!(bytes + profile.kv_bytes + policy.overhead_bytes <= profile.memory_bytes, "{id} is over");
    }
}

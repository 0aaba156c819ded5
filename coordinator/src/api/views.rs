//! Cluster, workers and plan as the admin API shows them. Names and shapes are the public contract.
//!
//! Must never ask anyone: what they show is given to them.

use std::collections::{BTreeMap, BTreeSet};

use caravan_core::cluster::{ClusterState, Worker, WorkerState};
use caravan_core::ids::{CoordinatorId, PipelineId, WorkerId};
use caravan_core::model::ModelSpec;
use caravan_core::plan::{Pipeline, Plan, Slice, Stage};
use caravan_proto::wire;
use serde_json::{Value, json};

use crate::consensus::ConsensusStatus;
use crate::driver::PipelineStats;
use crate::fleet::WorkerRuntime;

/// What the leader's fleet knows of workers at the moment.
pub type Runtime = BTreeMap<WorkerId, WorkerRuntime>;

/// `GET /admin/v1/cluster`, as this coordinator sees it.
pub fn cluster(state: &ClusterState, status: &ConsensusStatus) -> Value {
    let ids: BTreeSet<CoordinatorId> =
        state.coordinators.keys().chain(status.members.keys()).copied().collect();
    let coordinators = ids.into_iter().map(|id| {
        let known = state.coordinators.get(&id);
        let reached = id == status.me || status.members.get(&id).copied().unwrap_or(false);
        let role = match reached {
            true if status.leader == Some(id) => "leader",
            true => "follower",
            false => "down",
        };
        json!({
            "id": id.to_string(),
            "http": known.map(|known| known.http.as_str()),
            "grpc": known.map(|known| known.grpc.as_str()),
            "state": role,
        })
    });
    json!({
        "leader": status.leader.map(|leader| leader.to_string()),
        "term": status.term,
        "epoch": state.plan.epoch.0,
        "answered_by": status.me.to_string(),
        "applied": status.applied,
        "coordinators": coordinators.collect::<Vec<Value>>(),
    })
}

pub fn worker_state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Joining => "joining",
        WorkerState::Active => "active",
        WorkerState::Draining => "draining",
        WorkerState::Lost => "lost",
    }
}

fn layers(slice: Slice) -> Value {
    json!([slice.first, slice.end])
}

/// `GET /admin/v1/workers`.
pub fn workers(state: &ClusterState, runtime: &Runtime) -> Value {
    state.workers.iter().map(|(id, known)| worker(state, id, known, runtime.get(id))).collect()
}

fn worker(state: &ClusterState, id: &WorkerId, known: &Worker, runtime: Option<&WorkerRuntime>) -> Value {
    let held = state.plan.pipelines.iter().flat_map(|pipeline| {
        let stages = pipeline.stages.iter().filter(|stage| &stage.worker == id);
        stages.map(|stage| json!({"model": pipeline.model, "layers": layers(stage.slice)}))
    });
    // The times for the model it holds, else for any it was measured with.
    let model =
        state.plan.pipelines.iter().find(|pipeline| holds(pipeline, id)).map(|pipeline| &pipeline.model);
    let time = model.and_then(|model| known.layer_times.get(model)).or(known.layer_times.values().next());
    let beat = runtime.map(|runtime| &runtime.heartbeat);
    json!({
        "id": id.0,
        "addr": known.profile.grpc,
        "state": worker_state(known.state),
        "device": known.profile.device,
        "threads": known.profile.threads,
        "memory_bytes": {
            "total": known.profile.memory_bytes,
            "used": beat.map_or(0, |beat| beat.memory_used_bytes),
        },
        "slices": held.collect::<Vec<Value>>(),
        "ms_per_layer": {
            "decode": time.map_or(0.0, |time| time.decode_ms),
            "prefill": time.map_or(0.0, |time| time.prefill_long_ms),
        },
        "numerics": known.profile.numerics,
        "kv_bytes": known.profile.kv_bytes,
        "incarnation": known.incarnation.to_string(),
        "since_ms": known.since_ms,
        "attached": runtime.is_some_and(|runtime| runtime.attached),
        "heard_ms_ago": runtime.map(|runtime| runtime.heard_ms_ago),
        "epoch": beat.map(|beat| beat.epoch),
        "fenced_messages": beat.map(|beat| beat.fenced_messages),
        "blob_bytes_received": beat.map(|beat| beat.blob_bytes_received),
    })
}

fn holds(pipeline: &Pipeline, worker: &WorkerId) -> bool {
    pipeline.stages.iter().any(|stage| &stage.worker == worker)
}

/// The last report of a stage, if it is of this plan's epoch.
pub fn stage_status<'a>(
    plan: &Plan,
    pipeline: &PipelineId,
    stage: &Stage,
    runtime: &'a Runtime,
) -> Option<&'a wire::StageStatus> {
    let beat = &runtime.get(&stage.worker)?.heartbeat;
    beat.stages.iter().find(|status| status.epoch == plan.epoch.0 && status.pipeline == pipeline.0)
}

/// `GET /admin/v1/plan`: every model of the catalogue, with the pipelines that `plan` gives it.
pub fn plan(
    state: &ClusterState,
    plan: &Plan,
    runtime: &Runtime,
    stats: &[(PipelineId, PipelineStats)],
) -> Value {
    let models = state.models.values().map(|spec| {
        let pipelines = plan.pipelines_of(&spec.name).map(|one| pipeline(plan, (spec, one), runtime, stats));
        json!({
            "model": spec.name,
            "layers": spec.config.layers,
            "pipelines": pipelines.collect::<Vec<Value>>(),
        })
    });
    json!({"epoch": plan.epoch.0, "models": models.collect::<Vec<Value>>()})
}

fn pipeline(
    plan: &Plan,
    (spec, pipeline): (&ModelSpec, &Pipeline),
    runtime: &Runtime,
    stats: &[(PipelineId, PipelineStats)],
) -> Value {
    let stages = pipeline.stages.iter().map(|stage| {
        let report = stage_status(plan, &pipeline.id, stage, runtime);
        let state = match report {
            // A ready pipeline has had a token through every stage: reports may lag behind.
            _ if pipeline.ready && report.is_none_or(|report| report.state != "failed") => "ready",
            Some(report) => report.state.as_str(),
            None => "unknown",
        };
        json!({
            "worker": stage.worker.0,
            "layers": layers(stage.slice),
            "tensor_bytes": spec.bytes_of(stage.slice),
            "state": state,
            "progress": report.map(|report| report.progress),
            "error": report.map(|report| report.error.as_str()).filter(|error| !error.is_empty()),
        })
    });
    let measured = stats.iter().find(|(id, _)| id == &pipeline.id).map(|(_, stats)| stats);
    json!({
        "id": pipeline.id.0,
        "driver": pipeline.driver.to_string(),
        "ready": pipeline.ready,
        "kv_pages": pipeline.kv_pages,
        "stages": stages.collect::<Vec<Value>>(),
        "predicted_tokens_per_s": pipeline.predicted_tokens_per_s,
        "measured_tokens_per_s": measured.map_or(0.0, |stats| stats.tokens_per_s),
    })
}

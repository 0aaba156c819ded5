//! `/livez`, `/readyz`: alive means that this process answers; ready, that the cluster does.
//!
//! Must never say ready before a token has gone through every stage of the plan's epoch.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use caravan_core::cluster::{ClusterState, WorkerState};
use caravan_core::limits;
use caravan_core::plan::{Pipeline, Plan};
use caravan_proto::wire;
use serde_json::{Value, json};

use super::App;
use super::backend::Backend;
use super::errors::json_response;
use super::views::{self, Runtime};

/// How far the cluster is.
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    pub ready: bool,
    /// `ready`, or what it is busy with: `no_leader`, `no_model`, `waiting_for_workers`, `measuring`,
    /// `planning`, `starting`, `fetching`, `loading`, `connecting`, `probing`, `failed`.
    pub phase: &'static str,
    /// 0 to 1, over the stages of the first pipeline.
    pub progress: f64,
    /// In words.
    pub detail: String,
}

impl Readiness {
    fn busy(phase: &'static str, progress: f64, detail: impl Into<String>) -> Readiness {
        Readiness { ready: false, phase, progress, detail: detail.into() }
    }
}

/// From the applied state, and the stages' reports if this coordinator leads.
pub fn readiness(backend: &dyn Backend) -> Readiness {
    let state = backend.state().borrow().clone();
    let (leader, members) = {
        let status = backend.status();
        let status = status.borrow();
        (status.leader, status.members.len())
    };
    let alive = state.workers.values().filter(|worker| worker.state != WorkerState::Lost).count();
    if leader.is_none() {
        let detail = format!("no coordinator leads; more than half of {members} must reach each other");
        return Readiness::busy("no_leader", 0.0, detail);
    }
    if let Some(pipeline) = state.plan.pipelines.iter().find(|pipeline| driven(backend, pipeline)) {
        let detail = format!("pipeline {} of {} stages answers", pipeline.id, pipeline.stages.len());
        return Readiness { ready: true, phase: "ready", progress: 1.0, detail };
    }
    if state.models.is_empty() {
        return Readiness::busy("no_model", 0.0, "no model has been added to the catalogue yet");
    }
    if alive == 0 {
        return Readiness::busy("waiting_for_workers", 0.0, "no worker has joined, or all were lost");
    }
    if state.plan.pipelines.is_empty() {
        let joining = state.workers.values().filter(|worker| worker.state == WorkerState::Joining).count();
        return match joining {
            0 => Readiness::busy(
                "planning",
                0.0,
                format!(
                    "the plan for {alive} workers is being made, or no model fits their memory: see the leader's log"
                ),
            ),
            _ => {
                Readiness::busy("measuring", 0.0, format!("{joining} of {alive} workers are being measured"))
            }
        };
    }
    starting(&state.plan, &backend.runtime())
}

/// Ready by the log, and its driver is there to prove it. The log remembers the plan of processes that
/// have died since: until the next leader makes its own, a driver that is away, or that started
/// again and has sent no token through yet, must not be taken for one that answers.
fn driven(backend: &dyn Backend, pipeline: &Pipeline) -> bool {
    if !pipeline.ready {
        return false;
    }
    let status = backend.status().borrow().clone();
    if pipeline.driver == status.me {
        return backend.stats().iter().any(|(id, stats)| id == &pipeline.id && stats.serving);
    }
    status.members.get(&pipeline.driver).copied().unwrap_or(false)
}

/// How far the stages of the first pipeline are.
fn starting(plan: &Plan, runtime: &Runtime) -> Readiness {
    let Some(pipeline) = plan.pipelines.first() else {
        return Readiness::busy("planning", 0.0, "there is no plan yet");
    };
    let reports: Vec<Option<&wire::StageStatus>> =
        pipeline.stages.iter().map(|stage| views::stage_status(plan, &pipeline.id, stage, runtime)).collect();
    if let Some(failed) = reports.iter().flatten().find(|report| report.state == "failed") {
        return Readiness::busy(
            "failed",
            0.0,
            format!("a stage of {} failed: {}", pipeline.id, failed.error),
        );
    }
    let count = reports.len().max(1) as f64;
    let progress = reports.iter().map(|report| report.map_or(0.0, share)).sum::<f64>() / count;
    let order = ["fetching", "loading", "connecting"];
    let rank = |report: &Option<&wire::StageStatus>| match report {
        None => 0,
        Some(report) => {
            order.iter().position(|state| *state == report.state).map_or(order.len() + 1, |at| at + 1)
        }
    };
    let phase = match reports.iter().map(rank).min().unwrap_or(0) {
        0 => "starting",
        1 => "fetching",
        2 => "loading",
        3 => "connecting",
        _ => "probing",
    };
    let detail =
        format!("epoch {}: pipeline {} of {} stages is {phase}", plan.epoch, pipeline.id, reports.len());
    Readiness::busy(phase, progress, detail)
}

/// A stage's part of the way: half of it fetching, half loading.
fn share(report: &wire::StageStatus) -> f64 {
    let within = if report.progress.is_finite() { report.progress.clamp(0.0, 1.0) } else { 0.0 };
    match report.state.as_str() {
        "fetching" => within / 2.0,
        "loading" => 0.5 + within / 2.0,
        "connecting" | "ready" => 1.0,
        _ => 0.0,
    }
}

/// Workers and their stages, for the progress of `/readyz`.
fn workers(state: &ClusterState, runtime: &Runtime) -> Value {
    let one = |(id, worker): (&caravan_core::ids::WorkerId, &caravan_core::cluster::Worker)| {
        let reports = runtime.get(id).map(|runtime| runtime.heartbeat.stages.as_slice()).unwrap_or_default();
        let stages = reports.iter().filter(|report| report.epoch == state.plan.epoch.0).map(|report| {
            json!({
                "pipeline": report.pipeline,
                "state": report.state,
                "progress": report.progress,
                "error": Some(report.error.as_str()).filter(|error| !error.is_empty()),
            })
        });
        json!({
            "id": id.0,
            "state": views::worker_state(worker.state),
            "stages": stages.collect::<Vec<Value>>(),
        })
    };
    state.workers.iter().map(one).collect()
}

pub async fn livez() -> Response {
    json_response(StatusCode::OK, &json!({"alive": true}), None)
}

pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    let readiness = readiness(&*app.backend);
    let state = app.state();
    let ready_models: std::collections::BTreeSet<&str> =
        state.plan.pipelines.iter().filter(|one| one.ready).map(|one| one.model.as_str()).collect();
    let body = json!({
        "ready": readiness.ready,
        "phase": readiness.phase,
        "progress": readiness.progress,
        "detail": readiness.detail,
        "epoch": state.plan.epoch.0,
        "models": ready_models,
        "workers": workers(&state, &app.backend.runtime()),
    });
    match readiness.ready {
        true => json_response(StatusCode::OK, &body, None),
        false => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &body,
            Some(limits::RETRY_AFTER_MS.div_ceil(1_000)),
        ),
    }
}

//! A worker joined, or came back with the same or another incarnation.
//!
//! Must never give a worker slices: only a plan does.

use std::collections::BTreeMap;

use super::*;
use crate::ids::WorkerId;
use crate::limits;

/// Measurements are kept over a restart if the machine computes as before (device, threads,
/// numerics); its address and its memory may have changed. So a restarted worker is quick.
/// A new incarnation also ends draining: someone started the worker again.
pub(super) fn apply(
    state: &mut ClusterState,
    id: &WorkerId,
    incarnation: u64,
    profile: &WorkerProfile,
    now_ms: u64,
) -> Outcome {
    if let Err(why) = check(id, profile) {
        return Outcome::Refused(why);
    }
    let Some(worker) = state.workers.get_mut(id) else {
        return first_time(state, id, incarnation, profile, now_ms);
    };
    let same_life = worker.incarnation == incarnation;
    if same_life && worker.profile == *profile && worker.state != WorkerState::Lost {
        return Outcome::Unchanged;
    }
    if !same_speed(&worker.profile, profile) {
        worker.layer_times.clear();
        worker.links.clear();
    }
    let old = std::mem::replace(&mut worker.incarnation, incarnation);
    worker.state = match worker.state {
        WorkerState::Draining if same_life => WorkerState::Draining,
        _ if worker.layer_times.is_empty() => WorkerState::Joining,
        _ => WorkerState::Active,
    };
    worker.profile = profile.clone();
    worker.since_ms = now_ms;
    if !same_life {
        state.unready(id, old);
    }
    Outcome::Done
}

fn first_time(
    state: &mut ClusterState,
    id: &WorkerId,
    incarnation: u64,
    profile: &WorkerProfile,
    now_ms: u64,
) -> Outcome {
    if state.workers.len() >= limits::WORKERS && !forget_one_lost(state) {
        return Outcome::Refused(format!("the cluster has {} workers already", limits::WORKERS));
    }
    state.workers.insert(
        id.clone(),
        Worker {
            profile: profile.clone(),
            incarnation,
            state: WorkerState::Joining,
            layer_times: BTreeMap::new(),
            links: BTreeMap::new(),
            since_ms: now_ms,
        },
    );
    Outcome::Done
}

/// Makes room: the worker that has been lost for longest and is in no plan is forgotten.
fn forget_one_lost(state: &mut ClusterState) -> bool {
    let planned = |id: &WorkerId| {
        state.plan.pipelines.iter().any(|pipeline| pipeline.stages.iter().any(|stage| &stage.worker == id))
    };
    let oldest = state
        .workers
        .iter()
        .filter(|(id, worker)| worker.state == WorkerState::Lost && !planned(id))
        .min_by_key(|(_, worker)| worker.since_ms)
        .map(|(id, _)| id.clone());
    let Some(oldest) = oldest else { return false };
    state.workers.remove(&oldest);
    for worker in state.workers.values_mut() {
        worker.links.remove(&oldest);
    }
    true
}

fn same_speed(old: &WorkerProfile, new: &WorkerProfile) -> bool {
    old.device == new.device && old.threads == new.threads && old.numerics == new.numerics
}

/// The name stands in addresses of the admin API, so it has no slash, space or control character.
fn check(id: &WorkerId, profile: &WorkerProfile) -> Result<(), String> {
    let name = &id.0;
    if name.is_empty() || name.len() > limits::WORKER_ID_BYTES {
        return Err(format!("a worker's id has 1 to {} bytes, not {}", limits::WORKER_ID_BYTES, name.len()));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte)) {
        return Err(format!("the worker id {name:?} may hold letters, digits and - _ . : @ only"));
    }
    let texts = [&profile.grpc, &profile.device, &profile.numerics];
    if profile.grpc.is_empty() || texts.iter().any(|text| text.len() > limits::ADDRESS_BYTES) {
        return Err(format!(
            "worker {name}: address, device and numerics have at most {} bytes, and the address is not empty",
            limits::ADDRESS_BYTES
        ));
    }
    Ok(())
}

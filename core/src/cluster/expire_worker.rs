//! The leader has not heard from a worker for its lease.
//!
//! Must never touch another incarnation than the one the leader waited for.

use super::*;
use crate::ids::WorkerId;

pub(super) fn apply(state: &mut ClusterState, id: &WorkerId, incarnation: u64, now_ms: u64) -> Outcome {
    match state.workers.get_mut(id) {
        Some(worker) if worker.incarnation == incarnation && worker.state != WorkerState::Lost => {
            worker.state = WorkerState::Lost;
            worker.since_ms = now_ms;
            state.unready(id, incarnation);
            Outcome::Done
        }
        _ => Outcome::Unchanged,
    }
}

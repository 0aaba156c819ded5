//! An operator wants a worker emptied.
//!
//! Must never move slices itself: placement gives a draining worker none in the next plan.

use super::*;
use crate::ids::WorkerId;

pub(super) fn apply(state: &mut ClusterState, id: &WorkerId) -> Outcome {
    let Some(worker) = state.workers.get_mut(id) else {
        return Outcome::Refused(format!("there is no worker {id}; `caravan status` lists them"));
    };
    match worker.state {
        WorkerState::Draining | WorkerState::Lost => Outcome::Unchanged,
        WorkerState::Joining | WorkerState::Active => {
            worker.state = WorkerState::Draining;
            Outcome::Done
        }
    }
}

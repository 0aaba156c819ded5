//! A token went through every stage of a pipeline.
//!
//! Must never make a pipeline of another epoch ready, nor one whose worker is gone.

use super::*;
use crate::ids::{Epoch, PipelineId};

pub(super) fn apply(state: &mut ClusterState, epoch: Epoch, id: &PipelineId) -> Outcome {
    if epoch != state.plan.epoch {
        return Outcome::Unchanged;
    }
    let workers = &state.workers;
    let Some(pipeline) = state.plan.pipelines.iter_mut().find(|pipeline| &pipeline.id == id) else {
        return Outcome::Refused(format!("epoch {epoch} has no pipeline {id}"));
    };
    let whole = pipeline.stages.iter().all(|stage| {
        workers.get(&stage.worker).is_some_and(|worker| {
            worker.incarnation == stage.incarnation && worker.state != WorkerState::Lost
        })
    });
    if pipeline.ready || !whole {
        return Outcome::Unchanged;
    }
    pipeline.ready = true;
    Outcome::Done
}

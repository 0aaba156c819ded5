//! The next plan, checked against the state it meets in the log.
//!
//! Must never accept a plan that was computed for another epoch or for workers of another life:
//! the proposer's view may be older than the log.

use std::collections::BTreeSet;

use super::*;
use crate::limits;
use crate::plan::{Pipeline, Plan};

pub(super) fn apply(state: &mut ClusterState, plan: &Plan) -> Outcome {
    if let Err(why) = check(state, plan) {
        return Outcome::Refused(why);
    }
    state.plan = plan.clone();
    for pipeline in &mut state.plan.pipelines {
        // Only a token that went through in this epoch makes it ready.
        pipeline.ready = false;
    }
    Outcome::Done
}

fn check(state: &ClusterState, plan: &Plan) -> Result<(), String> {
    let current = state.plan.epoch;
    if Some(plan.epoch.0) != current.0.checked_add(1) {
        return Err(format!("the plan is for epoch {}, but the current epoch is {current}", plan.epoch));
    }
    if plan.pipelines.len() > limits::MODELS * limits::PIPELINES_PER_MODEL {
        return Err(format!("the plan has {} pipelines", plan.pipelines.len()));
    }
    let ids: BTreeSet<_> = plan.pipelines.iter().map(|pipeline| &pipeline.id).collect();
    if ids.len() != plan.pipelines.len() {
        return Err("two pipelines of the plan have one id".to_owned());
    }
    plan.pipelines.iter().try_for_each(|pipeline| check_pipeline(state, pipeline))
}

fn check_pipeline(state: &ClusterState, pipeline: &Pipeline) -> Result<(), String> {
    let id = &pipeline.id;
    let Some(model) = state.models.get(&pipeline.model) else {
        return Err(format!("pipeline {id} is for {:?}, which is not in the catalogue", pipeline.model));
    };
    if !state.coordinators.contains_key(&pipeline.driver) {
        return Err(format!("pipeline {id}: its driver, coordinator {}, is not registered", pipeline.driver));
    }
    if !pipeline.predicted_tokens_per_s.is_finite() || pipeline.kv_pages == 0 {
        return Err(format!("pipeline {id} has no KV pages or no finite prediction"));
    }
    let mut workers = BTreeSet::new();
    let mut numerics = BTreeSet::new();
    let mut next = 0;
    for stage in &pipeline.stages {
        if stage.slice.first != next || stage.slice.end <= next {
            return Err(format!(
                "pipeline {id}: the stage of {} does not begin at layer {next}",
                stage.worker
            ));
        }
        next = stage.slice.end;
        let Some(worker) = state.workers.get(&stage.worker) else {
            return Err(format!("pipeline {id}: there is no worker {}", stage.worker));
        };
        if worker.incarnation != stage.incarnation || worker.state == WorkerState::Lost {
            return Err(format!("pipeline {id}: worker {} was restarted or lost meanwhile", stage.worker));
        }
        if !workers.insert(&stage.worker) {
            return Err(format!("pipeline {id}: worker {} has two stages", stage.worker));
        }
        numerics.insert(&worker.profile.numerics);
    }
    if next != model.config.layers {
        return Err(format!("pipeline {id} ends at layer {next} of {}", model.config.layers));
    }
    if numerics.len() > 1 {
        return Err(format!("pipeline {id} mixes numerics profiles: {numerics:?}"));
    }
    Ok(())
}

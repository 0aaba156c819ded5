//! When the plan changes: what forces it, what is worth it, and what is left alone.
//!
//! Must never leave a pipeline with a worker that is lost, or take a working one down for nothing.

use std::collections::BTreeMap;

use super::choose::{Choice, Slack, choose};
use super::inventory::{Inventory, add_used, inventories, kv_pages, kv_share};
use super::no_fit::no_fit;
use super::orders::orders;
use super::{Decision, Policy};
use crate::cluster::{ClusterState, WorkerState};
use crate::ids::{CoordinatorId, Epoch, PipelineId, WorkerId};
use crate::model::ModelSpec;
use crate::plan::{Pipeline, Plan, Slice, Stage};

const SAME: f64 = 1e-9;

/// How a model's pipeline of the current plan stands.
enum Standing {
    Missing,
    /// Can't go on; says why.
    Broken(String),
    /// Works, but a worker is to be emptied.
    Draining(String),
    Whole,
}

/// What becomes of one model's pipeline.
enum Verdict {
    Keep,
    Change { pipeline: Pipeline, urgent: bool, why: String },
    Drop { why: String },
}

struct Context<'a> {
    state: &'a ClusterState,
    driver: CoordinatorId,
    policy: &'a Policy,
    /// What nothing forces is changed too, if it is better at all.
    free: bool,
}

pub(super) fn next_plan(state: &ClusterState, driver: CoordinatorId, policy: &Policy) -> Decision {
    plan(&Context { state, driver, policy, free: false })
}

pub(super) fn best_plan(state: &ClusterState, driver: CoordinatorId, policy: &Policy) -> Decision {
    plan(&Context { state, driver, policy, free: true })
}

fn plan(context: &Context<'_>) -> Decision {
    let state = context.state;
    let mut decision = Decision { plan: None, urgent: false, why: Vec::new(), no_fit: Vec::new() };
    if !state.coordinators.contains_key(&context.driver) {
        return decision;
    }
    // Large models first: small ones fit into what is left more easily.
    let mut specs: Vec<&ModelSpec> = state.models.values().collect();
    let size = |spec: &ModelSpec| spec.bytes_of(Slice { first: 0, end: spec.config.layers });
    specs.sort_by_cached_key(|spec| (std::cmp::Reverse(size(spec)), spec.name.clone()));
    let mut pipelines: BTreeMap<&str, Pipeline> = BTreeMap::new();
    for spec in &specs {
        if let Some(pipeline) = current(state, spec)
            && !matches!(standing(state, Some(pipeline)), Standing::Broken(_))
        {
            pipelines.insert(&spec.name, pipeline.clone());
        }
    }
    for spec in specs {
        let used = used_by_others(state, &pipelines, spec);
        match verdict(context, spec, &used, &mut decision) {
            Verdict::Keep => {}
            Verdict::Change { pipeline, urgent, why } => {
                decision.urgent |= urgent;
                decision.why.push(why);
                pipelines.insert(&spec.name, pipeline);
            }
            Verdict::Drop { why } => {
                decision.why.push(why);
                pipelines.remove(spec.name.as_str());
            }
        }
    }
    if !decision.why.is_empty() {
        let mut pipelines: Vec<Pipeline> = pipelines.into_values().collect();
        for pipeline in &mut pipelines {
            pipeline.driver = context.driver;
            pipeline.ready = false;
            // The share of a worker's KV budget shrinks when a model is added.
            pipeline.kv_pages = pages_now(state, pipeline).unwrap_or(pipeline.kv_pages).max(1);
        }
        decision.plan = Some(Plan { epoch: Epoch(state.plan.epoch.0 + 1), pipelines });
    }
    decision
}

fn current<'a>(state: &'a ClusterState, spec: &ModelSpec) -> Option<&'a Pipeline> {
    state.plan.pipelines.iter().find(|pipeline| pipeline.model == spec.name)
}

fn used_by_others(
    state: &ClusterState,
    pipelines: &BTreeMap<&str, Pipeline>,
    spec: &ModelSpec,
) -> BTreeMap<WorkerId, u64> {
    let mut used = BTreeMap::new();
    for (model, pipeline) in pipelines {
        if let Some(other) = state.models.get(*model).filter(|other| other.name != spec.name) {
            add_used(&mut used, other, pipeline);
        }
    }
    used
}

fn standing(state: &ClusterState, pipeline: Option<&Pipeline>) -> Standing {
    let Some(pipeline) = pipeline else { return Standing::Missing };
    let mut draining = None;
    for stage in &pipeline.stages {
        let id = &stage.worker;
        match state.workers.get(id) {
            None => return Standing::Broken(format!("worker {id} is gone")),
            Some(worker) if worker.state == WorkerState::Lost => {
                return Standing::Broken(format!("worker {id} is lost"));
            }
            Some(worker) if worker.incarnation != stage.incarnation => {
                return Standing::Broken(format!("worker {id} was restarted"));
            }
            Some(worker) if worker.state == WorkerState::Draining => {
                draining = Some(format!("worker {id} is draining"));
            }
            Some(_) => {}
        }
    }
    draining.map_or(Standing::Whole, Standing::Draining)
}

fn verdict(
    context: &Context<'_>,
    spec: &ModelSpec,
    used: &BTreeMap<WorkerId, u64>,
    decision: &mut Decision,
) -> Verdict {
    let Context { state, policy, .. } = *context;
    let held = current(state, spec);
    let groups = inventories(state, spec, policy, used, held);
    let standing = standing(state, held);
    if let (Standing::Whole, Some(pipeline)) = (&standing, held) {
        return whole(context, spec, pipeline, &groups);
    }
    let share = if held.is_some() { policy.move_slack } else { policy.near_tie };
    let slack = Slack { share, cap_ms: f64::INFINITY };
    let best = best(context, spec, &groups, slack);
    if best.is_none() {
        decision.no_fit.push(no_fit(state, spec, policy, used));
    }
    let name = &spec.name;
    match (standing, best, held) {
        (Standing::Broken(why), Some((pipeline, _)), _) => {
            Verdict::Change { pipeline, urgent: true, why: format!("{name}: {why}") }
        }
        (Standing::Broken(why), None, _) => {
            Verdict::Drop { why: format!("{name}: {why}, and the others have no room for its layers") }
        }
        (Standing::Draining(why), Some((pipeline, _)), _) => {
            Verdict::Change { pipeline, urgent: true, why: format!("{name}: {why}") }
        }
        // The others have no room: a draining worker serves on rather than nobody.
        (Standing::Draining(_), None, Some(pipeline)) if pipeline.driver != context.driver => {
            other_driver(pipeline)
        }
        (_, Some((pipeline, _)), _) => {
            Verdict::Change { pipeline, urgent: false, why: format!("{name} can be served") }
        }
        (_, None, _) => Verdict::Keep,
    }
}

/// A pipeline with nothing wrong: is there a better one, worth the interruption?
fn whole(context: &Context<'_>, spec: &ModelSpec, pipeline: &Pipeline, groups: &[Inventory<'_>]) -> Verdict {
    let policy = context.policy;
    let period = groups.iter().find_map(|group| period_now(group, pipeline)).unwrap_or(f64::INFINITY);
    let share = if context.free { policy.near_tie } else { policy.move_slack };
    let found = best(context, spec, groups, Slack { share, cap_ms: period });
    let Some((better, better_ms)) = found.filter(|(better, _)| better.stages != pipeline.stages) else {
        return if pipeline.driver == context.driver { Verdict::Keep } else { other_driver(pipeline) };
    };
    let name = &spec.name;
    let newcomer = better
        .stages
        .iter()
        .find(|stage| pipeline.stages.iter().all(|old| old.worker != stage.worker))
        .map(|stage| stage.worker.clone());
    let not_slower = better_ms <= period * (1.0 + SAME);
    let gain = period / better_ms - 1.0;
    if let Some(worker) = newcomer.filter(|_| not_slower) {
        return Verdict::Change {
            pipeline: better,
            urgent: false,
            why: format!("{name}: worker {worker} joined"),
        };
    }
    if gain >= policy.improvement || (context.free && not_slower) {
        let why = format!("{name}: {:.0} % more tokens per second", gain * 100.0);
        return Verdict::Change { pipeline: better, urgent: false, why };
    }
    if pipeline.driver == context.driver { Verdict::Keep } else { other_driver(pipeline) }
}

fn other_driver(pipeline: &Pipeline) -> Verdict {
    Verdict::Change {
        pipeline: pipeline.clone(),
        urgent: true,
        why: format!("{}: coordinator {} no longer leads", pipeline.model, pipeline.driver),
    }
}

/// Period of the present stages by the present measurements, if all are in this group.
fn period_now(group: &Inventory<'_>, pipeline: &Pipeline) -> Option<f64> {
    let node = |stage: &Stage| group.ids.iter().position(|id| **id == stage.worker);
    let order: Vec<usize> = pipeline.stages.iter().map(node).collect::<Option<_>>()?;
    let counts: Vec<u32> = pipeline.stages.iter().map(|stage| stage.slice.layers()).collect();
    Some(group.problem.cost(&order, &counts).period_ms)
}

/// The best pipeline over all numerics profiles, with its period.
fn best(
    context: &Context<'_>,
    spec: &ModelSpec,
    groups: &[Inventory<'_>],
    slack: Slack,
) -> Option<(Pipeline, f64)> {
    groups
        .iter()
        .filter_map(|group| {
            let orders = orders(&group.problem, context.policy.exact_workers);
            let choice = choose(&group.problem, &orders, slack)?;
            Some((pipeline(context, spec, group, &choice), choice.cost.period_ms))
        })
        .reduce(|best, next| if next.1 < best.1 { next } else { best })
}

fn pages_now(state: &ClusterState, pipeline: &Pipeline) -> Option<u32> {
    let spec = state.models.get(&pipeline.model)?;
    let budget =
        |stage: &Stage| Some((kv_share(state.workers.get(&stage.worker)?, state), stage.slice.layers()));
    let budgets: Vec<(u64, u32)> = pipeline.stages.iter().map(budget).collect::<Option<_>>()?;
    Some(kv_pages(spec, budgets.into_iter()))
}

fn pipeline(context: &Context<'_>, spec: &ModelSpec, group: &Inventory<'_>, choice: &Choice) -> Pipeline {
    let mut first = 0;
    let mut stages = Vec::with_capacity(choice.order.len());
    for (&node, &layers) in choice.order.iter().zip(&choice.counts) {
        stages.push(Stage {
            worker: group.ids[node].clone(),
            incarnation: group.workers[node].incarnation,
            slice: Slice { first, end: first + layers },
        });
        first += layers;
    }
    let budgets = choice.order.iter().map(|&node| kv_share(group.workers[node], context.state));
    Pipeline {
        id: PipelineId(format!("{}/0", spec.name)),
        model: spec.name.clone(),
        driver: context.driver,
        stages,
        kv_pages: kv_pages(spec, budgets.zip(choice.counts.iter().copied())),
        ready: false,
        predicted_tokens_per_s: 1e3 / choice.cost.period_ms,
    }
}

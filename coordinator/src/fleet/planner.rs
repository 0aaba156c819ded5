//! When a plan is committed: at once for what was lost, after a moment of quiet for what came, and again
//! with growing pauses for pipelines that break though nobody was lost.
//!
//! Must never choose stages; `core::placement` does.

use std::collections::BTreeMap;
use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Command, WorkerState};
use caravan_core::ids::{Epoch, PipelineId};
use caravan_core::limits;
use caravan_core::placement::{Decision, NoFit, next_plan, repeated_plan};
use caravan_core::plan::{Pipeline, Plan};

use super::machine::{Action, Machine, Now, Ticket};

/// From the break of a pipeline to its next epoch, if nobody was lost.
const GRACE_MS: u64 = limits::RECONNECT_GRACE_MS + limits::PLAN_COMMIT_MS;
/// Broken pipelines that are remembered.
const BROKEN: usize = limits::MODELS * limits::PIPELINES_PER_MODEL;

#[derive(Default)]
pub(super) struct Planner {
    /// Placement's answer for this very state.
    decided: Option<(Arc<ClusterState>, Decision)>,
    /// Since when a plan that is not urgent has been wanted.
    wanted_since: Option<u64>,
    /// When a worker last attached, joined, was measured or lost.
    progress_ms: u64,
    /// The newest epoch that was committed from here.
    committed: Epoch,
    /// Pipelines that broke. A driver may say so of an epoch that is not applied here yet, or before
    /// the machine knows that it leads.
    broken: BTreeMap<PipelineId, Broken>,
    reopened: BTreeMap<PipelineId, Reopened>,
    ready_since: BTreeMap<PipelineId, u64>,
    /// What was said last, so that it is said once.
    said: Vec<NoFit>,
}

#[derive(Clone, Copy)]
struct Broken {
    epoch: Epoch,
    at_ms: u64,
}

/// How often a pipeline was opened again of late.
#[derive(Clone, Copy, Default)]
struct Reopened {
    times: u32,
    last_ms: u64,
}

impl Planner {
    /// The planner of a new term: only what is known to be broken is kept. `orphaned`: pipelines that
    /// nobody drives though the plan names this coordinator, so that they are opened at once.
    pub fn new_term(&mut self, now_ms: u64, epoch: Epoch, orphaned: Vec<PipelineId>) {
        let broken = std::mem::take(&mut self.broken);
        *self = Planner { broken, progress_ms: now_ms, ..Planner::default() };
        let at_ms = now_ms.saturating_sub(GRACE_MS);
        self.broken.extend(orphaned.into_iter().map(|id| (id, Broken { epoch, at_ms })));
    }

    pub fn progress(&mut self, now_ms: u64) {
        self.progress_ms = now_ms;
    }

    pub fn committed(&mut self, epoch: Epoch) {
        self.committed = self.committed.max(epoch);
    }

    /// A state was applied: `old` and `new` are its plans before and after.
    pub fn applied(&mut self, now_ms: u64, old: &Plan, new: &Plan, leads: bool) {
        if old.epoch != new.epoch {
            self.broken.retain(|_, broken| broken.epoch >= new.epoch);
            self.wanted_since = None;
            if leads {
                tracing::info!(epoch = new.epoch.0, stages = describe(new), "the plan changed");
            }
        }
        let ready: Vec<&PipelineId> =
            new.pipelines.iter().filter(|pipeline| pipeline.ready).map(|pipeline| &pipeline.id).collect();
        let lasted: Vec<PipelineId> = self
            .ready_since
            .iter()
            .filter(|(id, since)| !ready.contains(id) && now_ms >= **since + limits::REOPEN_FORGET_MS)
            .map(|(id, _)| id.clone())
            .collect();
        for id in lasted {
            self.reopened.remove(&id);
        }
        self.ready_since.retain(|id, _| ready.contains(&id));
        for id in ready {
            self.ready_since.entry(id.clone()).or_insert(now_ms);
        }
        let exists = |id: &PipelineId| new.pipeline(id).is_some();
        self.reopened.retain(|id, _| exists(id));
    }

    /// When a broken pipeline may be opened again.
    fn due_ms(&self, id: &PipelineId, broken_ms: u64) -> u64 {
        // The loss of a worker, if that is what broke it, has its own plan by then.
        let grace = broken_ms + GRACE_MS;
        let Some(reopened) = self.reopened.get(id).filter(|reopened| reopened.times > 0) else {
            return grace;
        };
        let pause = limits::REOPEN_MIN_MS << (reopened.times - 1).min(16);
        grace.max(reopened.last_ms + pause.min(limits::REOPEN_MAX_MS))
    }
}

impl Machine {
    /// A pipeline of the current epoch (or of one that is not applied here yet) can't go on.
    pub(super) fn pipeline_broken(&mut self, now: Now, epoch: Epoch, id: PipelineId, why: &str) {
        let leads = self.leads();
        let planner = &mut self.planner;
        let known = planner.broken.get(&id).is_some_and(|broken| broken.epoch >= epoch);
        if epoch < self.state.plan.epoch || known || planner.broken.len() >= BROKEN {
            return;
        }
        let lasted = |since: &u64| now.ms >= since + limits::REOPEN_FORGET_MS;
        if planner.ready_since.get(&id).is_some_and(lasted) {
            planner.reopened.remove(&id);
        }
        if leads {
            let pause_ms = planner.due_ms(&id, now.ms).saturating_sub(now.ms);
            tracing::warn!(
                epoch = epoch.0, pipeline = %id, pause_ms,
                "a pipeline broke and will be opened again under a new epoch: {why}"
            );
        }
        planner.broken.insert(id, Broken { epoch, at_ms: now.ms });
    }

    /// Commits the next plan if one is due.
    pub(super) fn plan(&mut self, now: Now, actions: &mut Vec<Action>) {
        let applied = self.state.plan.epoch >= self.planner.committed;
        if !applied || self.plan_in_flight(now) {
            return;
        }
        self.decide();
        let Some((_, decision)) = &self.planner.decided else { return };
        let broken = self.broken_due(now);
        let next = match &decision.plan {
            Some(plan) => {
                let since = *self.planner.wanted_since.get_or_insert(now.ms);
                if !(decision.urgent || broken || self.quiet(now, since)) {
                    return;
                }
                plan.clone()
            }
            None => {
                self.planner.wanted_since = None;
                if !broken {
                    return;
                }
                repeated_plan(&self.state, self.me)
            }
        };
        // A worker that is not here will come back or lose its lease; either way the plan is looked at
        // again. A plan that waits for nobody opens at once.
        if !self.all_here(&next) {
            return;
        }
        self.commit(now, next, actions);
    }

    fn commit(&mut self, now: Now, plan: Plan, actions: &mut Vec<Action>) {
        let why = match &self.planner.decided {
            Some((_, decision)) if decision.plan.is_some() => decision.why.join("; "),
            _ => "a pipeline broke".to_owned(),
        };
        let broken: Vec<PipelineId> = self.broken_now().map(|(id, _)| id.clone()).collect();
        let (epoch, stages) = (plan.epoch, describe(&plan));
        if self.propose(now, Ticket::Plan(epoch), Command::SetPlan { plan }, actions) {
            tracing::info!(epoch = epoch.0, stages, "proposing a plan: {why}");
            for id in broken {
                let reopened = self.planner.reopened.entry(id).or_default();
                *reopened = Reopened { times: reopened.times.saturating_add(1), last_ms: now.ms };
            }
        }
    }

    /// Asks placement once for each state.
    fn decide(&mut self) {
        if self.planner.decided.as_ref().is_some_and(|(state, _)| Arc::ptr_eq(state, &self.state)) {
            return;
        }
        let decision = next_plan(&self.state, self.me, &self.policy);
        if decision.no_fit != self.planner.said {
            for no_fit in decision.no_fit.iter().filter(|no_fit| !no_fit.workers.is_empty()) {
                tracing::warn!(model = no_fit.model, "{no_fit}");
            }
            self.planner.said.clone_from(&decision.no_fit);
        }
        self.planner.decided = Some((Arc::clone(&self.state), decision));
    }

    fn broken_due(&self, now: Now) -> bool {
        self.broken_now().any(|(id, broken)| now.ms >= self.planner.due_ms(id, broken.at_ms))
    }

    /// Broken pipelines of the current plan.
    fn broken_now(&self) -> impl Iterator<Item = (&PipelineId, &Broken)> {
        let plan = &self.state.plan;
        let broken = self.planner.broken.iter();
        broken.filter(|(id, broken)| broken.epoch == plan.epoch && plan.pipeline(id).is_some())
    }

    /// Whether those that came are all that come: nobody joins, or it takes too long.
    fn quiet(&self, now: Now, wanted_since: u64) -> bool {
        let idle = now.ms.saturating_sub(self.planner.progress_ms);
        let joining = self.attached.iter().any(|(id, attached)| {
            self.state.workers.get(id).is_none_or(|worker| {
                worker.incarnation != attached.incarnation
                    || matches!(worker.state, WorkerState::Joining | WorkerState::Lost)
            })
        });
        (!joining && idle >= limits::PLAN_SETTLE_MS)
            || idle >= limits::PLAN_WAIT_MS
            || now.ms >= wanted_since + limits::PLAN_WAIT_MAX_MS
    }

    fn all_here(&self, plan: &Plan) -> bool {
        plan.pipelines.iter().flat_map(|pipeline| &pipeline.stages).all(|stage| {
            self.attached.get(&stage.worker).is_some_and(|attached| attached.incarnation == stage.incarnation)
        })
    }
}

/// `m/0: w1 0..14, w2 14..30`, for the log.
fn describe(plan: &Plan) -> String {
    let pipeline = |pipeline: &Pipeline| {
        let stages = pipeline.stages.iter();
        let stages: Vec<String> = stages
            .map(|stage| format!("{} {}..{}", stage.worker, stage.slice.first, stage.slice.end))
            .collect();
        format!("{}: {}", pipeline.id, stages.join(", "))
    };
    plan.pipelines.iter().map(pipeline).collect::<Vec<_>>().join("; ")
}

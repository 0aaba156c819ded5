//! Placement: policy + measured inventory + current plan -> next plan. Pure.
//!
//! Must never commit or execute anything, nor depend on the order in which facts became known.
//!
//! The cost that is made small, and the standard load it is predicted for, stand in `problem`; the order
//! of preferences in `choose`; when a plan that works is left alone in `decide`.

mod choose;
mod decide;
mod inventory;
mod no_fit;
mod orders;
mod period;
mod problem;

pub use no_fit::{NoFit, Room};

use crate::cluster::ClusterState;
use crate::ids::{CoordinatorId, Epoch};
use crate::plan::Plan;

/// What placement may weigh, with the defaults of the product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Sequences of the standard load (at least two for each stage are assumed).
    pub load_sequences: u32,
    /// A plan that works is left only for one whose predicted throughput is better by this share
    /// (or for one that takes in a new worker and is not slower). The default is a little more than
    /// measurements that are 5 % off on both sides can feign: `1.02 x 1.05 / 0.95`.
    pub improvement: f64,
    /// Share by which a fresh plan's period may be longer than the least one, for better balance and
    /// shorter hops.
    pub near_tie: f64,
    /// The same where layers are held already, for fewer moves. Less than `improvement`.
    pub move_slack: f64,
    /// Up to so many workers all orders of all subsets are looked at.
    pub exact_workers: usize,
    /// Memory of a worker that is neither weights nor KV cache.
    pub overhead_bytes: u64,
    /// KV pages that a pipeline has at least.
    pub kv_pages_min: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            load_sequences: 8,
            improvement: 0.13,
            near_tie: 0.02,
            move_slack: 0.05,
            exact_workers: 6,
            overhead_bytes: 80 << 20,
            kv_pages_min: 1,
        }
    }
}

/// What placement answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The next plan, or `None` if the current one stays.
    pub plan: Option<Plan>,
    /// A pipeline that can't answer will answer again by this plan: don't wait for better news.
    pub urgent: bool,
    /// Why the plan changes, in words for the log.
    pub why: Vec<String>,
    /// Models that have no place now.
    pub no_fit: Vec<NoFit>,
}

/// The next plan, if one is wanted: forced by what was lost, drained or led elsewhere, or better enough.
/// `driver` is the leader. `Decision::plan` is `None` if nothing has to change.
pub fn next_plan(state: &ClusterState, driver: CoordinatorId, policy: &Policy) -> Decision {
    decide::next_plan(state, driver, policy)
}

/// The plan that would be chosen if nothing kept the current one; of about equal ones that which moves
/// least. `Decision::plan` is `None` if these are the stages that are there already.
pub fn best_plan(state: &ClusterState, driver: CoordinatorId, policy: &Policy) -> Decision {
    decide::best_plan(state, driver, policy)
}

/// The same stages under the next epoch: opens broken pipelines again.
pub fn repeated_plan(state: &ClusterState, driver: CoordinatorId) -> Plan {
    let mut plan = state.plan.clone();
    plan.epoch = Epoch(plan.epoch.0 + 1);
    for pipeline in &mut plan.pipelines {
        pipeline.driver = driver;
        pipeline.ready = false;
    }
    plan
}

#[cfg(test)]
mod tests;

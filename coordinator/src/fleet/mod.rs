//! The fleet: workers' streams, leases, measurements, and the execution of plans. Acts on the leader only.

use std::collections::BTreeMap;

use caravan_core::cluster::Outcome;
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, WorkerId};
use caravan_core::plan::Plan;
use caravan_proto::wire;

use crate::consensus::Consensus;

/// What the leader knows of a worker beyond the replicated state: its last heartbeat.
#[derive(Clone, Debug)]
pub struct WorkerRuntime {
    pub attached: bool,
    pub heard_ms_ago: u64,
    pub heartbeat: wire::Heartbeat,
}

#[derive(Clone, Debug)]
pub struct FleetConfig {
    pub me: CoordinatorId,
    pub lease_ms: u64,
}

#[derive(Clone)]
pub struct Fleet {}

impl Fleet {
    pub fn start(_config: FleetConfig, _consensus: Consensus) -> Fleet {
        todo!()
    }

    /// Empty unless this coordinator leads.
    pub fn runtime(&self) -> BTreeMap<WorkerId, WorkerRuntime> {
        todo!()
    }

    pub async fn drain(&self, _worker: WorkerId) -> Result<Outcome, Refusal> {
        todo!()
    }

    /// The plan that placement would choose now if nothing kept the current one; committed unless `dry_run`.
    pub async fn rebalance(&self, _dry_run: bool) -> Result<Plan, Refusal> {
        todo!()
    }
}

//! The fleet: workers' streams, leases, measurements, and the execution of plans. Acts on the leader only.
//!
//! Must never keep anything that matters beyond this process: what is decided goes through the log.
//! `machine` decides, `run` acts, `service` is the workers' door.

mod assignments;
mod door;
mod machine;
mod measuring;
mod planner;
mod run;
mod service;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use caravan_core::cluster::{ClusterState, Command, Outcome};
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, Epoch, PipelineId, WorkerId};
use caravan_core::limits;
use caravan_core::placement::{Policy, best_plan};
use caravan_core::plan::Plan;
use caravan_proto::wire;
use caravan_proto::wire::fleet_server::FleetServer;
use tokio::sync::{mpsc, watch};

use crate::consensus::{Consensus, ConsensusStatus, Role};
use machine::{Event, Machine, Now};
use run::Links;

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

/// Handle to this coordinator's fleet; also the gRPC service that workers attach to.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
}

/// What the loop, the handles and the streams share. Locks are held for moments, never over a wait.
struct Shared {
    me: CoordinatorId,
    started: Instant,
    consensus: Consensus,
    machine: Mutex<Machine>,
    links: Mutex<Links>,
    /// Whether the machine leads: a little later than the consensus role says so.
    leading: watch::Sender<bool>,
}

impl Fleet {
    /// Starts the leader's loop; it ends with the consensus node.
    pub fn start(config: FleetConfig, consensus: Consensus) -> Fleet {
        let (events, inbox) = mpsc::channel(limits::FLEET_EVENTS);
        let shared = Arc::new(Shared {
            me: config.me,
            started: Instant::now(),
            consensus,
            machine: Mutex::new(Machine::new(config.me, config.lease_ms)),
            links: Mutex::new(Links::default()),
            leading: watch::Sender::new(false),
        });
        tokio::spawn(run::run(Arc::clone(&shared), events.clone(), inbox));
        Fleet { shared, events }
    }

    /// The gRPC service for workers, with its message bound.
    pub fn service(&self) -> FleetServer<Fleet> {
        FleetServer::new(self.clone()).max_decoding_message_size(limits::FLEET_REPORT_BYTES)
    }

    /// Empty unless this coordinator leads.
    pub fn runtime(&self) -> BTreeMap<WorkerId, WorkerRuntime> {
        self.shared.machine().runtime(self.shared.now().ms)
    }

    /// Empties a worker: it gets no new slices and those it has move away if the others have room.
    pub async fn drain(&self, worker: WorkerId) -> Result<Outcome, Refusal> {
        self.shared.consensus.propose(Command::DrainWorker { id: worker }).await
    }

    /// The plan that placement would choose now if nothing kept the current one; committed unless `dry_run`.
    /// The current plan if that is the best one. Refused on a follower and where a model has no place.
    pub async fn rebalance(&self, dry_run: bool) -> Result<Plan, Refusal> {
        self.shared.leader()?;
        self.shared.consensus.linearize().await?;
        let state = self.shared.state();
        let decision = best_plan(&state, self.shared.me, &Policy::default());
        let Some(plan) = decision.plan else {
            return match decision.no_fit.first() {
                Some(no_fit) => Err(Refusal::operator("model_does_not_fit", no_fit.to_string())),
                None => Ok(state.plan.clone()),
            };
        };
        if dry_run {
            return Ok(plan);
        }
        match self.shared.consensus.propose(Command::SetPlan { plan: plan.clone() }).await? {
            Outcome::Done | Outcome::Unchanged => Ok(plan),
            Outcome::Refused(why) => Err(Refusal::cluster(
                "plan_overtaken",
                limits::RETRY_AFTER_MS,
                format!("the cluster changed meanwhile: {why}. A retry is safe"),
            )),
        }
    }

    /// The driver lost a pipeline's edges or could not open them in time. The same stages are committed
    /// under a new epoch unless the loss of a worker brings another plan first. Says nothing new for
    /// an epoch that is over. Never waits.
    pub fn pipeline_broken(&self, epoch: Epoch, pipeline: &PipelineId) {
        let event = Event::Broken { epoch, pipeline: pipeline.clone() };
        let now = self.shared.now();
        let actions = self.shared.machine().handle(now, event);
        run::act(&self.shared, &self.events, actions);
    }
}

impl Shared {
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now { ms: self.started.elapsed().as_millis() as u64, unix_ms: unix.as_millis() as u64 }
    }

    /// A panic elsewhere leaves the machine as it was between two events, so its lock is not poison.
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> Arc<ClusterState> {
        self.consensus.state().borrow().clone()
    }

    fn status(&self) -> ConsensusStatus {
        self.consensus.status().borrow().clone()
    }

    /// gRPC address of the leader, if another coordinator leads and it is known.
    fn leader_grpc(&self) -> String {
        let Some(leader) = self.status().leader.filter(|leader| *leader != self.me) else {
            return String::new();
        };
        self.state().coordinators.get(&leader).map(|leader| leader.grpc.clone()).unwrap_or_default()
    }

    fn leader(&self) -> Result<(), Refusal> {
        if self.status().role == Role::Leader {
            return Ok(());
        }
        Err(Refusal::cluster(
            "not_leader",
            limits::RETRY_AFTER_MS,
            "this coordinator does not lead; ask the leader, or here again when one is elected",
        ))
    }
}

#[cfg(test)]
mod tests;

//! The leader's fleet as a pure machine: what happened in, what to do out. It compares what the log says
//! with who is connected and asks for the difference, again and again; no event is an order.
//!
//! Must never read a clock, touch a socket or wait: times are arguments, the shell (`run`) acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Command, Outcome, Worker, WorkerProfile, WorkerState};
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, Epoch, PipelineId, WorkerId};
use caravan_core::limits;
use caravan_core::placement::Policy;
use caravan_core::plan::Plan;
use caravan_proto::wire;

use super::WorkerRuntime;
use super::measuring::Measuring;
use super::planner::Planner;

/// Two clocks of the leader: one for waiting, one for the log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now {
    /// Milliseconds since any fixed moment; never goes back.
    pub ms: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// A worker's stream, numbered by the shell.
pub(super) type Connection = u64;

#[derive(Debug)]
pub(super) enum Event {
    /// The applied state changed.
    State(Arc<ClusterState>),
    /// This coordinator leads and has applied all that was committed before; or leads no longer.
    Leading(bool),
    Hello {
        connection: Connection,
        hello: wire::WorkerHello,
    },
    Heartbeat {
        connection: Connection,
        heartbeat: wire::Heartbeat,
    },
    Measured {
        connection: Connection,
        measured: wire::Measured,
    },
    Detached {
        connection: Connection,
    },
    /// What became of a proposal.
    Proposed {
        ticket: Ticket,
        result: Result<Outcome, Refusal>,
    },
    /// The driver lost a pipeline's edges, or could not open them.
    Broken {
        epoch: Epoch,
        pipeline: PipelineId,
    },
    Tick,
}

#[derive(Debug)]
pub(super) enum Action {
    Propose { ticket: Ticket, command: Command },
    Send { connection: Connection, directive: wire::directive::Directive },
    Close { connection: Connection },
}

/// What a proposal is about; one of each is on its way at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ticket {
    Join(WorkerId),
    Measure(WorkerId, String),
    Expire(WorkerId),
    Plan(Epoch),
}

/// A worker that is connected.
#[derive(Debug)]
pub(super) struct Attached {
    pub connection: Connection,
    pub incarnation: u64,
    pub profile: WorkerProfile,
    pub heard_ms: u64,
    pub heartbeat: wire::Heartbeat,
    /// The epoch whose assignments it was sent.
    pub sent_epoch: Option<Epoch>,
    /// The coordinators it was told of.
    pub sent_coordinators: Vec<String>,
}

/// A worker whose stream broke.
#[derive(Debug)]
pub(super) struct Detached {
    pub incarnation: u64,
    pub since_ms: u64,
    pub heard_ms: u64,
    pub heartbeat: wire::Heartbeat,
}

pub(super) struct Machine {
    pub(super) me: CoordinatorId,
    lease_ms: u64,
    pub(super) policy: Policy,
    pub(super) state: Arc<ClusterState>,
    /// The plan before the current one: its workers may still hold tensors.
    pub(super) previous: Plan,
    leading_since: Option<u64>,
    pub(super) attached: BTreeMap<WorkerId, Attached>,
    pub(super) connections: BTreeMap<Connection, WorkerId>,
    pub(super) detached: BTreeMap<WorkerId, Detached>,
    /// Proposals on their way (`None`), or answered and not to be repeated before a time.
    flights: BTreeMap<Ticket, Option<u64>>,
    pub(super) measuring: Measuring,
    pub(super) planner: Planner,
}

impl Machine {
    pub fn new(me: CoordinatorId, lease_ms: u64) -> Machine {
        Machine {
            me,
            lease_ms,
            policy: Policy::default(),
            state: Arc::default(),
            previous: Plan::default(),
            leading_since: None,
            attached: BTreeMap::new(),
            connections: BTreeMap::new(),
            detached: BTreeMap::new(),
            flights: BTreeMap::new(),
            measuring: Measuring::default(),
            planner: Planner::default(),
        }
    }

    /// Takes in what happened and says what to do now.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::State(state) => self.state_changed(now, state),
            Event::Leading(leading) => self.leading_changed(now, leading, &mut actions),
            Event::Hello { connection, hello } => self.hello(now, connection, hello, &mut actions),
            Event::Heartbeat { connection, heartbeat } => self.heartbeat(now, connection, heartbeat),
            Event::Measured { connection, measured } => {
                self.measured(now, connection, measured, &mut actions);
            }
            Event::Detached { connection } => self.detach(now, connection),
            Event::Proposed { ticket, result } => self.proposed(now, ticket, result, &mut actions),
            Event::Broken { epoch, pipeline } => {
                self.pipeline_broken(now, epoch, pipeline, "its driver lost it or could not open it");
            }
            Event::Tick => {}
        }
        if let Some(since) = self.leading_since {
            self.join(now, &mut actions);
            self.expire(now, since, &mut actions);
            self.inform(&mut actions);
            self.measure(now, &mut actions);
            self.plan(now, &mut actions);
        }
        actions
    }

    pub fn leads(&self) -> bool {
        self.leading_since.is_some()
    }

    /// Last heartbeats, by worker.
    pub fn runtime(&self, now_ms: u64) -> BTreeMap<WorkerId, WorkerRuntime> {
        let runtime = |attached, heard_ms: u64, heartbeat: &wire::Heartbeat| WorkerRuntime {
            attached,
            heard_ms_ago: now_ms.saturating_sub(heard_ms),
            heartbeat: heartbeat.clone(),
        };
        let gone =
            self.detached.iter().map(|(id, it)| (id.clone(), runtime(false, it.heard_ms, &it.heartbeat)));
        let here =
            self.attached.iter().map(|(id, it)| (id.clone(), runtime(true, it.heard_ms, &it.heartbeat)));
        gone.chain(here).collect()
    }

    fn state_changed(&mut self, now: Now, state: Arc<ClusterState>) {
        let old = std::mem::replace(&mut self.state, state);
        if old.plan.epoch != self.state.plan.epoch {
            self.previous = old.plan.clone();
        }
        let (workers, models) = (&self.state.workers, &self.state.models);
        if old.models.len() != models.len() || changed_states(&old.workers, workers) {
            self.planner.progress(now.ms);
        }
        let leads = self.leads();
        self.planner.applied(now.ms, &old.plan, &self.state.plan, leads);
    }

    fn leading_changed(&mut self, now: Now, leading: bool, actions: &mut Vec<Action>) {
        if leading == self.leads() {
            return;
        }
        self.leading_since = leading.then_some(now.ms);
        let grpc = String::new();
        for connection in std::mem::take(&mut self.connections).into_keys() {
            actions.push(send(
                connection,
                wire::directive::Directive::Redirect(wire::Redirect { grpc: grpc.clone() }),
            ));
            actions.push(Action::Close { connection });
        }
        self.attached.clear();
        self.detached.clear();
        self.flights.clear();
        self.measuring = Measuring::default();
        self.planner = Planner::default();
        self.planner.progress(now.ms);
        // Whoever holds slices of the plan that was led elsewhere can be a source for the next one.
        self.previous = self.state.plan.clone();
    }

    fn proposed(
        &mut self,
        now: Now,
        ticket: Ticket,
        result: Result<Outcome, Refusal>,
        actions: &mut Vec<Action>,
    ) {
        if self.flights.get(&ticket) != Some(&None) {
            return;
        }
        // The state that this changed may be seen a moment later; don't ask twice meanwhile.
        self.flights.insert(ticket.clone(), Some(now.ms + limits::PROPOSE_AGAIN_MS));
        match (&ticket, &result) {
            (Ticket::Join(id), Ok(Outcome::Refused(why))) => {
                tracing::warn!(worker = %id, "a worker was refused: {why}");
                if let Some(attached) = self.attached.remove(id) {
                    let connection = attached.connection;
                    self.connections.remove(&connection);
                    let refused = wire::Refused { why: why.clone() };
                    actions.push(send(connection, wire::directive::Directive::Refused(refused)));
                    actions.push(Action::Close { connection });
                }
            }
            (Ticket::Plan(epoch), Ok(Outcome::Done)) => {
                self.planner.committed(*epoch);
                self.flights.remove(&ticket);
            }
            (_, Ok(Outcome::Refused(why))) => {
                tracing::warn!(?ticket, "the cluster state refused a command of the fleet: {why}");
            }
            (_, Err(refusal)) => {
                tracing::warn!(?ticket, "a command of the fleet was not committed: {refusal}")
            }
            _ => {}
        }
    }

    /// Workers that are attached but not in the log as they are now.
    fn join(&mut self, now: Now, actions: &mut Vec<Action>) {
        let strangers: Vec<Command> = self
            .attached
            .iter()
            .filter(|(id, attached)| !joined(&self.state, id, attached))
            .map(|(id, attached)| Command::JoinWorker {
                id: id.clone(),
                incarnation: attached.incarnation,
                profile: attached.profile.clone(),
                now_ms: now.unix_ms,
            })
            .collect();
        for command in strangers {
            if let Command::JoinWorker { id, .. } = &command {
                self.propose(now, Ticket::Join(id.clone()), command, actions);
            }
        }
    }

    /// Workers of the log whose lease has ended.
    fn expire(&mut self, now: Now, leading_since: u64, actions: &mut Vec<Action>) {
        let state = Arc::clone(&self.state);
        self.detached.retain(|id, it| {
            state.workers.get(id).is_some_and(|worker| {
                worker.state != WorkerState::Lost && worker.incarnation == it.incarnation
            })
        });
        for (id, worker) in state.workers.iter().filter(|(_, worker)| worker.state != WorkerState::Lost) {
            let due = match (self.attached.get(id), self.detached.get(id)) {
                (Some(attached), _) if attached.incarnation != worker.incarnation => continue,
                (Some(attached), _) => attached.heard_ms + self.lease_ms,
                (None, Some(detached)) => detached.since_ms + limits::RECONNECT_GRACE_MS,
                // Known from a former leader: a whole lease to find this one.
                (None, None) => leading_since + self.lease_ms,
            };
            if now.ms < due {
                continue;
            }
            if let Some(attached) = self.attached.get(id) {
                let connection = attached.connection;
                tracing::warn!(worker = %id, "no heartbeat within the lease");
                self.detach(now, connection);
                actions.push(Action::Close { connection });
            }
            let command = Command::ExpireWorker {
                id: id.clone(),
                incarnation: worker.incarnation,
                now_ms: now.unix_ms,
            };
            self.propose(now, Ticket::Expire(id.clone()), command, actions);
        }
    }

    /// Tells every worker of the coordinators and of its stages, once for each change.
    fn inform(&mut self, actions: &mut Vec<Action>) {
        let coordinators: Vec<String> =
            self.state.coordinators.values().map(|coordinator| coordinator.grpc.clone()).collect();
        let epoch = self.state.plan.epoch;
        let behind: Vec<WorkerId> = self
            .attached
            .iter()
            .filter(|(id, attached)| {
                joined(&self.state, id, attached) && attached.sent_epoch.is_none_or(|sent| sent < epoch)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in behind {
            let assignments = self.assignments_of(&id);
            let Some(attached) = self.attached.get_mut(&id) else { continue };
            match assignments {
                Ok(assignments) => {
                    attached.sent_epoch = Some(epoch);
                    let directive = wire::directive::Directive::Assignments(assignments);
                    actions.push(send(attached.connection, directive));
                }
                Err(error) => tracing::error!(worker = %id, "its assignments can't be written: {error}"),
            }
        }
        for attached in self.attached.values_mut() {
            if attached.sent_coordinators != coordinators {
                attached.sent_coordinators.clone_from(&coordinators);
                let list = wire::Coordinators { grpc: coordinators.clone() };
                actions.push(send(attached.connection, wire::directive::Directive::Coordinators(list)));
            }
        }
    }

    /// Asks for a command to be committed, unless one with the same ticket is on its way or has just been.
    pub(super) fn propose(
        &mut self,
        now: Now,
        ticket: Ticket,
        command: Command,
        actions: &mut Vec<Action>,
    ) -> bool {
        if self.in_flight(now, &ticket) {
            return false;
        }
        self.flights.retain(|_, until| until.is_none_or(|until| now.ms < until));
        self.flights.insert(ticket.clone(), None);
        actions.push(Action::Propose { ticket, command });
        true
    }

    pub(super) fn in_flight(&self, now: Now, ticket: &Ticket) -> bool {
        self.flights.get(ticket).is_some_and(|until| until.is_none_or(|until| now.ms < until))
    }

    pub(super) fn plan_in_flight(&self, now: Now) -> bool {
        let plans = self.flights.iter().filter(|(ticket, _)| matches!(ticket, Ticket::Plan(_)));
        plans.into_iter().any(|(_, until)| until.is_none_or(|until| now.ms < until))
    }

    /// Name of the worker behind a connection.
    pub(super) fn worker_of(&self, connection: Connection) -> Option<&WorkerId> {
        self.connections.get(&connection)
    }

    /// Attached workers that the log has as they are.
    pub(super) fn present(&self) -> impl Iterator<Item = (&WorkerId, &Attached, &Worker)> {
        self.attached.iter().filter_map(|(id, attached)| {
            let worker = self.state.workers.get(id)?;
            joined(&self.state, id, attached).then_some((id, attached, worker))
        })
    }
}

pub(super) fn joined(state: &ClusterState, id: &WorkerId, attached: &Attached) -> bool {
    state.workers.get(id).is_some_and(|worker| {
        worker.incarnation == attached.incarnation
            && worker.profile == attached.profile
            && worker.state != WorkerState::Lost
    })
}

fn changed_states(old: &BTreeMap<WorkerId, Worker>, new: &BTreeMap<WorkerId, Worker>) -> bool {
    let states = |workers: &BTreeMap<WorkerId, Worker>| -> BTreeSet<(WorkerId, u64, u8)> {
        workers.iter().map(|(id, worker)| (id.clone(), worker.incarnation, worker.state as u8)).collect()
    };
    states(old) != states(new)
}

pub(super) fn send(connection: Connection, directive: wire::directive::Directive) -> Action {
    Action::Send { connection, directive }
}

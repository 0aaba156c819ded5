//! A cluster in a few structs: the machine, the state its proposals are applied to, and workers that
//! answer what they are asked. Time passes only when a test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Command, Coordinator, Outcome, WorkerState};
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, Digest, Epoch, PipelineId, WorkerId};
use caravan_core::limits;
use caravan_core::model::{Family, ModelConfig, ModelSpec, Place, TensorSpec, TensorType};
use caravan_core::plan::Plan;
use caravan_proto::wire;
use caravan_proto::wire::directive::Directive;

use crate::fleet::machine::{Action, Connection, Event, Machine, Now};

pub const LEASE_MS: u64 = 2_000;
pub const ME: CoordinatorId = CoordinatorId(1);

/// A worker's process, as a test plays it.
#[derive(Clone, Debug)]
pub struct Process {
    pub name: String,
    pub incarnation: u64,
    /// Sends heartbeats.
    pub alive: bool,
    pub layer_ms: f64,
    pub host: String,
    /// When it will have measured, and what.
    measures: Option<(u64, String)>,
}

pub struct World {
    pub machine: Machine,
    pub state: ClusterState,
    pub now: Now,
    pub processes: BTreeMap<Connection, Process>,
    pub sent: BTreeMap<Connection, Vec<Directive>>,
    pub closed: BTreeSet<Connection>,
    /// Commands that were committed, with their time and outcome.
    pub log: Vec<(u64, Command, Outcome)>,
    /// Whether the log commits; if not, proposals end with an error.
    pub commits: bool,
    pub measure_ms: u64,
    /// Most measurements at a time on one host, ever.
    pub measured_together: usize,
    next: Connection,
}

impl World {
    /// A leader of a cluster with one model of 30 layers and no workers.
    pub fn new() -> World {
        let mut state = ClusterState::default();
        for number in [1, 2] {
            let holds = if number == 1 { vec![Digest([7; 32])] } else { Vec::new() };
            let coordinator =
                Coordinator { grpc: format!("c{number}:1"), http: format!("c{number}:2"), holds };
            state.apply(&Command::RegisterCoordinator { id: CoordinatorId(number), coordinator });
        }
        assert_eq!(state.apply(&Command::AddModel { spec: Box::new(model()) }), Outcome::Done);
        let mut world = World {
            machine: Machine::new(ME, LEASE_MS),
            state,
            now: Now { ms: 1_000, unix_ms: 1_000_000 },
            processes: BTreeMap::new(),
            sent: BTreeMap::new(),
            closed: BTreeSet::new(),
            log: Vec::new(),
            commits: true,
            measure_ms: 100,
            measured_together: 0,
            next: 0,
        };
        world.lead();
        world
    }

    /// As `new`, with workers that are measured and planned; the log begins anew.
    pub fn serving(workers: usize) -> World {
        let mut world = World::new();
        for i in 0..workers {
            world.start(&format!("w{i}"), 1);
        }
        world.pass(3_000);
        assert_eq!(world.stages().len(), workers);
        world.ready();
        world.log.clear();
        world
    }

    pub fn lead(&mut self) {
        self.feed(Event::State(Arc::new(self.state.clone())));
        self.feed(Event::Leading(true));
    }

    /// Another coordinator's machine takes over the same state; all streams are gone.
    pub fn fail_over(&mut self, me: CoordinatorId) {
        self.machine = Machine::new(me, LEASE_MS);
        self.closed.extend(self.processes.keys());
        self.log.clear();
        self.lead();
    }

    pub fn start(&mut self, name: &str, incarnation: u64) -> Connection {
        let process = Process {
            name: name.to_owned(),
            incarnation,
            alive: true,
            layer_ms: 1.0,
            host: format!("host-{name}"),
            measures: None,
        };
        self.attach(process)
    }

    pub fn attach(&mut self, process: Process) -> Connection {
        let hello = hello(&process);
        self.attach_as(process, hello)
    }

    pub fn attach_as(&mut self, process: Process, hello: wire::WorkerHello) -> Connection {
        self.next += 1;
        self.processes.insert(self.next, Process { measures: None, ..process });
        self.feed(Event::Hello { connection: self.next, hello });
        self.next
    }

    /// The process and its stream are gone.
    pub fn kill(&mut self, connection: Connection) -> Process {
        let process = self.processes.remove(&connection).unwrap();
        self.feed(Event::Detached { connection });
        process
    }

    pub fn connection(&self, name: &str) -> Connection {
        let open = self.processes.iter().filter(|(connection, _)| !self.closed.contains(connection));
        open.filter(|(_, process)| process.name == name)
            .map(|(connection, _)| *connection)
            .next_back()
            .unwrap()
    }

    /// The driver's probe went through.
    pub fn ready(&mut self) {
        let epoch = self.state.plan.epoch;
        self.apply(&Command::PipelineReady { epoch, pipeline: pipeline() });
        self.feed(Event::State(Arc::new(self.state.clone())));
    }

    pub fn broken(&mut self) {
        self.feed(Event::Broken { epoch: self.state.plan.epoch, pipeline: pipeline() });
    }

    /// Time passes in ticks; living workers send heartbeats and finish measurements.
    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms / limits::FLEET_TICK_MS {
            self.now.ms += limits::FLEET_TICK_MS;
            self.now.unix_ms += limits::FLEET_TICK_MS;
            for (connection, process) in self.processes.clone() {
                if self.closed.contains(&connection) || !process.alive {
                    continue;
                }
                if let Some((_, model)) = process.measures.filter(|(due, _)| *due <= self.now.ms) {
                    self.processes.get_mut(&connection).unwrap().measures = None;
                    let measured = wire::Measured {
                        model,
                        decode_ms: process.layer_ms,
                        prefill_short_ms: process.layer_ms,
                        prefill_long_ms: process.layer_ms,
                        head_ms: process.layer_ms,
                        links: Vec::new(),
                    };
                    self.feed(Event::Measured { connection, measured });
                }
                if self.now.ms.is_multiple_of(limits::HEARTBEAT_MS) {
                    self.feed(Event::Heartbeat { connection, heartbeat: wire::Heartbeat::default() });
                }
            }
            self.feed(Event::Tick);
        }
    }

    pub fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        // What follows from an event comes after all that it made the machine do, as in the shell.
        while let Some(event) = events.pop_front() {
            for action in self.machine.handle(self.now, event) {
                match action {
                    Action::Propose { ticket, command } => {
                        let result = if self.commits {
                            let outcome = self.apply(&command);
                            events.push_back(Event::State(Arc::new(self.state.clone())));
                            Ok(outcome)
                        } else {
                            Err(Refusal::cluster("no_quorum", 100, "no quorum"))
                        };
                        events.push_back(Event::Proposed { ticket, result });
                    }
                    Action::Send { connection, directive } => self.deliver(connection, directive),
                    Action::Close { connection } => {
                        self.closed.insert(connection);
                        // The shell's reader reports the end of every stream, whoever closed it.
                        events.push_back(Event::Detached { connection });
                    }
                }
            }
        }
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        let outcome = self.state.apply(command);
        self.log.push((self.now.ms, command.clone(), outcome.clone()));
        outcome
    }

    fn deliver(&mut self, connection: Connection, directive: Directive) {
        assert!(!self.closed.contains(&connection), "{directive:?} on a closed stream");
        if let Directive::Measure(measure) = &directive {
            let due = self.now.ms + self.measure_ms;
            let process = self.processes.get_mut(&connection).unwrap();
            process.measures = Some((due, measure.model.clone().unwrap().name));
            let host = process.host.clone();
            let together = self.processes.values().filter(|other| other.measures.is_some());
            let together = together.filter(|other| other.host == host).count();
            self.measured_together = self.measured_together.max(together);
        }
        self.sent.entry(connection).or_default().push(directive);
    }

    /// Plans that were committed since the log began, with their times.
    pub fn plans(&self) -> Vec<(u64, &Plan)> {
        self.log
            .iter()
            .filter_map(|(ms, command, outcome)| match command {
                Command::SetPlan { plan } if *outcome == Outcome::Done => Some((*ms, plan)),
                _ => None,
            })
            .collect()
    }

    /// (worker, layers) of the one pipeline; empty if there is none.
    pub fn stages(&self) -> Vec<(String, u32)> {
        let stages = self.state.plan.pipelines.iter().flat_map(|pipeline| &pipeline.stages);
        stages.map(|stage| (stage.worker.0.clone(), stage.slice.layers())).collect()
    }

    pub fn worker_state(&self, name: &str) -> WorkerState {
        self.state.workers[&WorkerId(name.to_owned())].state
    }

    pub fn assignments(&self, connection: Connection) -> Option<&wire::Assignments> {
        self.sent.get(&connection)?.iter().rev().find_map(|directive| match directive {
            Directive::Assignments(assignments) => Some(assignments),
            _ => None,
        })
    }

    pub fn epoch(&self) -> Epoch {
        self.state.plan.epoch
    }
}

pub fn pipeline() -> PipelineId {
    PipelineId("m/0".to_owned())
}

pub fn hello(process: &Process) -> wire::WorkerHello {
    wire::WorkerHello {
        protocol_version: limits::PROTOCOL_VERSION,
        worker: process.name.clone(),
        incarnation: process.incarnation,
        grpc: format!("{}:{}", process.host, process.incarnation),
        device: "cpu".to_owned(),
        threads: 1,
        memory_bytes: 4 << 30,
        kv_bytes: 64 << 20,
        numerics: "n".to_owned(),
        epoch: 0,
    }
}

fn model() -> ModelSpec {
    let config = ModelConfig {
        family: Family::Llama,
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rope_dim: 64,
        rope_base: 1e4,
        norm_eps: 1e-5,
        ffn: 1536,
        vocab: 49152,
        context: 2048,
        tied: true,
        ..ModelConfig::default()
    };
    let tensor = |place| TensorSpec {
        name: format!("{place:?}"),
        dims: vec![32],
        kind: TensorType::Q8_0,
        place,
        offset: 0,
        bytes: 1 << 20,
        digest: Digest([3; 32]),
    };
    let tensors = (0..30).map(Place::Layer).chain([Place::Embed, Place::Head]).map(tensor).collect();
    let (digest, header) = (Digest([7; 32]), Digest([8; 32]));
    ModelSpec { name: "m".to_owned(), digest, header, header_bytes: 1, config, tensors }
}

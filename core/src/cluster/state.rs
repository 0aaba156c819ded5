//! What every coordinator knows after applying the log.
//!
//! Must never hold what is not replicated (connections, heartbeats, measured rates of the moment).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{CoordinatorId, Digest, Epoch, PipelineId, WorkerId};
use crate::model::ModelSpec;
use crate::plan::Plan;

/// A coordinator's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinator {
    /// `host:port` for gRPC between nodes.
    pub grpc: String,
    /// `host:port` of its HTTP front door.
    pub http: String,
    /// Digests of models whose whole file this coordinator can serve.
    pub holds: Vec<Digest>,
}

/// What a worker says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerProfile {
    /// `host:port` of its gRPC service.
    pub grpc: String,
    /// `cpu`, `cuda:0`, …
    pub device: String,
    pub threads: u32,
    pub memory_bytes: u64,
    /// Bytes it may spend on KV cache.
    pub kv_bytes: u64,
    /// Kernel version and activation precision; workers of different values never share a pipeline.
    pub numerics: String,
}

/// Milliseconds that one layer of a model takes on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerTime {
    /// One token, batch 1.
    pub decode_ms: f64,
    /// One token of a prefill of 32.
    pub prefill_short_ms: f64,
    /// One token of a prefill of 256.
    pub prefill_long_ms: f64,
    /// Output head, one token.
    pub head_ms: f64,
}

/// A link to another worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkTime {
    pub latency_ms: f64,
    pub bytes_per_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// Joined, not yet measured.
    Joining,
    /// May hold slices.
    Active,
    /// Gets no new slices; leaves when it holds none.
    Draining,
    /// Its lease ended. Kept so that it is recognised when it comes back.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    pub profile: WorkerProfile,
    /// Random number of the process; a new one means that its memory is gone.
    pub incarnation: u64,
    pub state: WorkerState,
    /// By model name.
    pub layer_times: BTreeMap<String, LayerTime>,
    pub links: BTreeMap<WorkerId, LinkTime>,
    /// When it joined or was lost, milliseconds since 1970, by the leader's clock.
    pub since_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    pub coordinators: BTreeMap<CoordinatorId, Coordinator>,
    pub workers: BTreeMap<WorkerId, Worker>,
    /// The catalogue of models the cluster serves.
    pub models: BTreeMap<String, ModelSpec>,
    pub plan: Plan,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A coordinator says where it is and which model files it holds.
    RegisterCoordinator { id: CoordinatorId, coordinator: Coordinator },
    /// A worker joined, or came back (with the same or another incarnation).
    JoinWorker { id: WorkerId, incarnation: u64, profile: WorkerProfile, now_ms: u64 },
    /// Measurements of a worker for one model; makes a joining worker active.
    MeasureWorker {
        id: WorkerId,
        incarnation: u64,
        model: String,
        time: LayerTime,
        links: BTreeMap<WorkerId, LinkTime>,
    },
    /// The leader has not heard from a worker for its lease. Ignored for another incarnation.
    ExpireWorker { id: WorkerId, incarnation: u64, now_ms: u64 },
    /// An operator wants a worker emptied.
    DrainWorker { id: WorkerId },
    /// A model enters the catalogue (or is put there again: no change).
    AddModel { spec: Box<ModelSpec> },
    /// The next plan. Refused unless `plan.epoch` is the current epoch + 1.
    SetPlan { plan: Plan },
    /// A token went through every stage of a pipeline. Ignored for another epoch.
    PipelineReady { epoch: Epoch, pipeline: PipelineId },
}

/// What applying a command answers. The same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The state changed.
    Done,
    /// Nothing to change: a repeat, or overtaken by events.
    Unchanged,
    /// The command does not fit the state; says why.
    Refused(String),
}

//! The plan: which slices, stages and pipelines exist now. Replicated; numbered by the epoch.
//!
//! Must never say how a plan is reached: `placement` decides it, the fleet executes it.

use serde::{Deserialize, Serialize};

use crate::ids::{CoordinatorId, Epoch, PipelineId, WorkerId};

/// Layers `[first, end)` of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slice {
    pub first: u32,
    pub end: u32,
}

impl Slice {
    pub fn layers(self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    pub fn contains(self, layer: u32) -> bool {
        self.first <= layer && layer < self.end
    }
}

/// A slice in its place in a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    pub worker: WorkerId,
    /// Which life of the worker: a restarted process has lost its KV cache.
    pub incarnation: u64,
    pub slice: Slice,
}

/// Ordered stages that together hold every layer of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    pub id: PipelineId,
    pub model: String,
    /// The one coordinator that runs its step loop.
    pub driver: CoordinatorId,
    pub stages: Vec<Stage>,
    /// KV pages that every stage has, numbered from 0.
    pub kv_pages: u32,
    /// A token has gone through every stage in this epoch.
    pub ready: bool,
    pub predicted_tokens_per_s: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub epoch: Epoch,
    pub pipelines: Vec<Pipeline>,
}

impl Plan {
    pub fn pipeline(&self, id: &PipelineId) -> Option<&Pipeline> {
        self.pipelines.iter().find(|pipeline| &pipeline.id == id)
    }

    pub fn pipelines_of<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a Pipeline> {
        self.pipelines.iter().filter(move |pipeline| pipeline.model == model)
    }
}

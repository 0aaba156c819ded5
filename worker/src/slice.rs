//! A loaded slice: weights of its layers, its KV pages, and the forward pass over one micro-batch.

use std::sync::Arc;

use caravan_core::model::{ModelConfig, TensorSpec};
use caravan_core::plan::Slice;

/// What to load.
#[derive(Clone, Debug)]
pub struct SliceSpec {
    pub config: ModelConfig,
    pub slice: Slice,
    /// Tensors of the slice (`ModelSpec::tensors_of`).
    pub tensors: Vec<TensorSpec>,
    pub kv_pages: u32,
    pub page_tokens: u32,
}

/// Gives the verified bytes of a tensor, e.g. a memory map of the blob cache.
pub trait TensorSource: Sync {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>>;
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub start: u32,
    pub tokens: Vec<u32>,
    /// Pages of the sequence in order, enough for start + tokens.
    pub pages: Vec<u32>,
    /// Logits of the last row are wanted (at the last stage).
    pub sample: bool,
}

/// What a stage gets: tokens only (it embeds them), or the activations of the stage before.
pub enum StageInput {
    Tokens,
    /// rows x hidden
    Activations(Vec<f32>),
}

/// What a stage gives.
pub enum StageOutput {
    /// rows x hidden, for the next stage
    Activations(Vec<f32>),
    /// (chunks with `sample`) x vocab, in chunk order
    Logits(Vec<f32>),
}

pub struct LoadedSlice {}

impl LoadedSlice {
    /// Loads and packs. Layers that `reuse` already holds (same tensor digests) are shared, not read.
    /// Refuses tensors that are missing or of wrong type or shape, by name, and NaN scales. `progress`: 0 to 1.
    pub fn load(
        _spec: SliceSpec,
        _source: &dyn TensorSource,
        _reuse: Option<&LoadedSlice>,
        _progress: &dyn Fn(f64),
    ) -> anyhow::Result<LoadedSlice> {
        todo!()
    }

    /// One micro-batch. Checks positions, pages and tokens against its bounds first: a bad chunk is
    /// an error and changes nothing. Deterministic to the bit whatever shares the batch.
    pub fn forward(
        &mut self,
        _team: &mut caravan_kernels::Team,
        _chunks: &[Chunk],
        _input: StageInput,
    ) -> anyhow::Result<StageOutput> {
        todo!()
    }
}

/// Keeps `Arc` in the signature of shared layers.
pub type Shared<T> = Arc<T>;

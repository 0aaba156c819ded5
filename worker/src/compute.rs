//! The seam between the worker process and the arithmetic: what the engine asks of it, and the real one.
//!
//! Must never know of epochs, edges or messages.

use caravan_core::cluster::LayerTime;
use caravan_core::model::{ModelConfig, TensorSpec};
use caravan_core::request::{Sampled, Sampling};
use caravan_kernels::Team;

use crate::measure::measure_layers;
use crate::sampler::{SampleError, SequenceSampler};
use crate::slice::{Chunk, LoadedSlice, SliceSpec, StageInput, StageOutput, TensorSource};

/// Chooses the tokens of one sequence.
pub trait Sampler {
    /// The token at `position`, of the prompt or of the answer. Twice the same position counts once.
    fn see(&mut self, position: u32, token: u32);

    /// The token that comes at `position`. `logits`: one for each token of the vocabulary.
    fn sample(&mut self, position: u32, logits: &mut [f32]) -> Result<Sampled, SampleError>;
}

/// Loads slices and runs them. Lives on the engine's thread; only `load` runs elsewhere.
pub trait Compute: 'static {
    type Slice: Send + 'static;
    type Sampler: Sampler;

    /// See `LoadedSlice::load`.
    fn load(
        spec: SliceSpec,
        source: &dyn TensorSource,
        reuse: Option<&Self::Slice>,
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<Self::Slice>;

    /// See `LoadedSlice::forward`.
    fn forward(
        &mut self,
        slice: &mut Self::Slice,
        chunks: &[Chunk],
        input: StageInput,
    ) -> anyhow::Result<StageOutput>;

    /// Milliseconds for each layer of this shape, at `throttle` of full speed.
    fn measure(
        &mut self,
        config: &ModelConfig,
        tensors: &[TensorSpec],
        throttle: f64,
    ) -> anyhow::Result<LayerTime>;

    fn sampler(sampling: Sampling, prompt_tokens: u32) -> Self::Sampler;

    /// After a panic inside: drop what may be in a bad state.
    fn renew(&mut self);
}

/// The kernels of this machine.
pub struct Native {
    threads: usize,
    team: Team,
}

impl Native {
    /// `threads` >= 1.
    pub fn new(threads: usize) -> Native {
        Native { threads, team: Team::new(threads) }
    }
}

impl Compute for Native {
    type Slice = LoadedSlice;
    type Sampler = SequenceSampler;

    fn load(
        spec: SliceSpec,
        source: &dyn TensorSource,
        reuse: Option<&LoadedSlice>,
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<LoadedSlice> {
        LoadedSlice::load(spec, source, reuse, progress)
    }

    fn forward(
        &mut self,
        slice: &mut LoadedSlice,
        chunks: &[Chunk],
        input: StageInput,
    ) -> anyhow::Result<StageOutput> {
        slice.forward(&mut self.team, chunks, input)
    }

    fn measure(
        &mut self,
        config: &ModelConfig,
        tensors: &[TensorSpec],
        throttle: f64,
    ) -> anyhow::Result<LayerTime> {
        measure_layers(config, tensors, &mut self.team, throttle)
    }

    fn sampler(sampling: Sampling, prompt_tokens: u32) -> SequenceSampler {
        SequenceSampler::new(sampling, prompt_tokens)
    }

    fn renew(&mut self) {
        self.team = Team::new(self.threads);
    }
}

impl Sampler for SequenceSampler {
    fn see(&mut self, position: u32, token: u32) {
        SequenceSampler::see(self, position, token);
    }

    fn sample(&mut self, position: u32, logits: &mut [f32]) -> Result<Sampled, SampleError> {
        SequenceSampler::sample(self, position, logits)
    }
}

//! A loaded slice: weights of its layers, its KV pages, and the forward pass over one micro-batch.
//!
//! Must never let one chunk's content or error change another chunk's bits.

use anyhow::{bail, ensure};
use caravan_core::limits;
use caravan_core::model::{ModelConfig, RopeFactors, RopeScaling, TensorSpec};
use caravan_core::plan::Slice;
use caravan_kernels::Team;
use caravan_kernels::attention::Sight;

use crate::kv::KvCache;
use crate::models::{self, Batch, Model, Scratch};
use crate::weights::{Form, Loader};

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

pub struct LoadedSlice {
    config: ModelConfig,
    slice: Slice,
    model: Model,
    kv: KvCache,
    scratch: Scratch,
    all_logits: bool,
}

/// What decides the bits of this build's answers, besides the weights: kernel version and the
/// precision of activations.
pub fn numerics() -> String {
    format!("{}/i16", limits::KERNEL_VERSION)
}

impl LoadedSlice {
    /// Loads and packs. Layers that `reuse` already holds (same tensor digests) are shared, not read.
    /// Refuses tensors that are missing or of wrong type or shape, by name, and NaN scales. `progress`: 0 to 1.
    pub fn load(
        spec: SliceSpec,
        source: &dyn TensorSource,
        reuse: Option<&LoadedSlice>,
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<LoadedSlice> {
        LoadedSlice::load_form(spec, source, reuse, Form::File, progress)
    }

    /// As `load`, with the weights in another form. The forms share no layers: `reuse` must be of the same.
    pub fn load_form(
        spec: SliceSpec,
        source: &dyn TensorSource,
        reuse: Option<&LoadedSlice>,
        form: Form,
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<LoadedSlice> {
        check_config(&spec)?;
        let loader = Loader::new(&spec.tensors, source, progress).in_form(form);
        let model = Model::load(&spec.config, spec.slice, &loader, reuse.map(|old| &old.model))?;
        loader.finish()?;
        progress(1.0);
        let shape = models::kv_shape(&spec.config, spec.page_tokens);
        Ok(LoadedSlice {
            kv: KvCache::new(shape, spec.kv_pages, spec.slice.layers() as usize),
            config: spec.config,
            slice: spec.slice,
            model,
            scratch: Scratch::default(),
            all_logits: false,
        })
    }

    /// One micro-batch. Checks positions, pages and tokens against its bounds first: a bad chunk is
    /// an error and changes nothing. Deterministic to the bit whatever shares the batch.
    pub fn forward(
        &mut self,
        team: &mut Team,
        chunks: &[Chunk],
        input: StageInput,
    ) -> anyhow::Result<StageOutput> {
        let count = self.check(chunks, &input)?;
        let hidden = self.config.hidden as usize;
        let mut rows = match input {
            StageInput::Activations(rows) => rows,
            StageInput::Tokens => {
                let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| &chunk.tokens).copied().collect();
                let mut rows = vec![0.0; count * hidden];
                self.model.embed(&tokens, &mut rows)?;
                rows
            }
        };
        if count > 0 {
            let batch = lay_out(chunks, self.kv.page_tokens());
            self.model.layers(team, &batch, &mut self.kv, &mut self.scratch, &mut rows);
        }
        if self.slice.end < self.config.layers {
            return Ok(StageOutput::Activations(rows));
        }
        let sampled = self.sampled_rows(chunks, &rows);
        if sampled.is_empty() {
            return Ok(StageOutput::Logits(Vec::new()));
        }
        Ok(StageOutput::Logits(self.model.head(team, &mut self.scratch, &sampled)?))
    }

    /// With `on`, a chunk with `sample` gives the logits of all its rows, not of the last only: for
    /// evaluation.
    pub fn all_logits(&mut self, on: bool) {
        self.all_logits = on;
    }

    /// Bytes of packed weights (shared ones too) and of the whole KV cache.
    pub fn memory_bytes(&self) -> u64 {
        self.model.memory_bytes() + self.kv.memory_bytes()
    }

    pub fn slice(&self) -> Slice {
        self.slice
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Counts the rows, or says which chunk is wrong.
    fn check(&self, chunks: &[Chunk], input: &StageInput) -> anyhow::Result<usize> {
        let mut rows = 0;
        for (i, chunk) in chunks.iter().enumerate() {
            let end = u64::from(chunk.start) + chunk.tokens.len() as u64;
            let reach = chunk.pages.len() as u64 * u64::from(self.kv.page_tokens());
            ensure!(!chunk.tokens.is_empty(), "chunk {i} has no tokens{FAULT}");
            ensure!(
                end <= u64::from(self.config.context),
                "chunk {i} ends at {end}, beyond the context{FAULT}"
            );
            ensure!(end <= reach, "chunk {i} ends at {end}, beyond its {reach} positions of pages{FAULT}");
            let page = chunk.pages.iter().find(|page| **page >= self.kv.pages());
            ensure!(page.is_none(), "chunk {i} names page {page:?} of {}{FAULT}", self.kv.pages());
            let token = chunk.tokens.iter().find(|token| **token >= self.config.vocab);
            ensure!(token.is_none(), "chunk {i} has token {token:?} of {}{FAULT}", self.config.vocab);
            rows += chunk.tokens.len();
        }
        let limit = limits::STEP_ROWS as usize;
        ensure!(rows <= limit, "the step has {rows} rows, more than {limit}{FAULT}");
        match input {
            StageInput::Tokens => ensure!(self.slice.first == 0, "only the first stage takes tokens{FAULT}"),
            StageInput::Activations(values) => {
                ensure!(self.slice.first > 0, "the first stage takes no activations{FAULT}");
                let want = rows * self.config.hidden as usize;
                ensure!(values.len() == want, "{} activations instead of {want}{FAULT}", values.len());
            }
        }
        Ok(rows)
    }

    /// The rows whose logits are wanted.
    fn sampled_rows(&self, chunks: &[Chunk], rows: &[f32]) -> Vec<f32> {
        let hidden = self.config.hidden as usize;
        let mut sampled = Vec::new();
        let mut end = 0;
        for chunk in chunks {
            let start = end;
            end += chunk.tokens.len();
            if chunk.sample {
                let first = if self.all_logits { start } else { end - 1 };
                sampled.extend_from_slice(&rows[first * hidden..end * hidden]);
            }
        }
        sampled
    }
}

/// What every error about a chunk ends in.
const FAULT: &str = " (the driver's fault; the step changed nothing, the same step will fail again)";

/// Refuses dimensions that no model has, before anything is multiplied with them.
fn check_config(spec: &SliceSpec) -> anyhow::Result<()> {
    let config = &spec.config;
    let sizes = [
        config.hidden,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.ffn,
        config.vocab,
        spec.page_tokens,
    ];
    let sane = sizes.iter().all(|size| (1..1 << 22).contains(size))
        && config.heads.is_multiple_of(config.kv_heads)
        && u64::from(config.heads) * u64::from(config.head_dim) < 1 << 22
        && config.rope_dim <= config.head_dim
        && config.rope_dim.is_multiple_of(2)
        && config.norm_eps.is_finite()
        && config.window.is_none_or(|window| window.tokens > 0)
        && config.experts.is_none_or(|experts| {
            (1..=limits::EXPERTS).contains(&experts.count) && (1..=experts.count).contains(&experts.used)
        })
        && constants_are_sane(config);
    if !sane {
        bail!("the model's dimensions make no sense: use a sound file, retrying won't help ({config:?})");
    }
    let Slice { first, end } = spec.slice;
    ensure!(
        first < end && end <= config.layers,
        "layers {first}..{end} are not in a model of {}",
        config.layers
    );
    Ok(())
}

/// What is multiplied or divided by must be finite and above 0.
fn constants_are_sane(config: &ModelConfig) -> bool {
    let scaling = match &config.rope_scaling {
        RopeScaling::None => &[][..],
        RopeScaling::Linear { factor } => std::slice::from_ref(factor),
        RopeScaling::Factors { magnitude, factors: RopeFactors::Tensor(_) } => {
            std::slice::from_ref(magnitude)
        }
        RopeScaling::Factors { magnitude, factors: RopeFactors::Given(factors) } => {
            if factors.len() != config.rope_dim as usize / 2 || !(magnitude.is_finite() && *magnitude > 0.0) {
                return false;
            }
            factors
        }
    };
    let local_base = config.window.and_then(|window| window.rope_base);
    let optional = [local_base, config.attention_scale, config.attention_cap, config.logit_cap];
    let given = scaling.iter().copied().chain(optional.into_iter().flatten());
    given.chain([config.rope_base]).all(|constant| constant.is_finite() && constant > 0.0)
}

/// Where every row of the step looks and is stored. The chunks are checked.
fn lay_out(chunks: &[Chunk], page_tokens: u32) -> Batch<'_> {
    let mut batch = Batch { sights: Vec::new(), slots: Vec::new() };
    for chunk in chunks {
        for position in chunk.start..chunk.start + chunk.tokens.len() as u32 {
            let page = chunk.pages[(position / page_tokens) as usize];
            batch.sights.push(Sight { pages: &chunk.pages, position });
            batch.slots.push((page, position % page_tokens));
        }
    }
    batch
}

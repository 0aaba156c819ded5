//! The Llama family: pre-norm attention with rotated, grouped heads, then a gated feed-forward.
//!
//! Tensor names are GGUF's. The files hold query and key rows in the order that makes rotation act
//! on neighbouring pairs. Must never compute a row differently because of its neighbours: that is
//! kept by using nothing but the kernels.

use std::sync::Arc;

use anyhow::Context;
use caravan_core::model::ModelConfig;
use caravan_core::plan::Slice;
use caravan_kernels::attention::attend;
use caravan_kernels::rows::{rms_norm, rope, rope_angles, rope_steps};
use caravan_kernels::{Matrix, Product, Store, Team, gated, multiply};

use super::{Batch, Held, Scratch, reuse_or_load};
use crate::kv::KvCache;
use crate::weights::Loader;

/// One layer's weights.
#[derive(Clone)]
pub struct Layer {
    attn_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

const LAYER_TENSORS: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
const OUTPUT_NORM: &str = "output_norm.weight";
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The layers of a slice, with the ends it has.
pub struct Llama {
    config: ModelConfig,
    layers: Vec<Arc<Held<Layer>>>,
    embedding: Option<Arc<Held<Matrix>>>,
    /// Norm and output matrix; the matrix is `embedding` if the model is tied.
    head_norm: Option<Vec<f32>>,
    output: Option<Arc<Held<Matrix>>>,
    rope_steps: Vec<f64>,
}

impl Layer {
    /// Loads layer `index` of the model.
    pub fn load(config: &ModelConfig, index: u32, loader: &Loader<'_>) -> anyhow::Result<Layer> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let (hidden, ffn) = (config.hidden, config.ffn);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok(Layer {
            attn_norm: loader.vector(&name("attn_norm"), hidden)?,
            query: loader.matrix(&name("attn_q"), hidden, q)?,
            key: loader.matrix(&name("attn_k"), hidden, kv)?,
            value: loader.matrix(&name("attn_v"), hidden, kv)?,
            output: loader.matrix(&name("attn_output"), q, hidden)?,
            ffn_norm: loader.vector(&name("ffn_norm"), hidden)?,
            gate: loader.matrix(&name("ffn_gate"), hidden, ffn)?,
            up: loader.matrix(&name("ffn_up"), hidden, ffn)?,
            down: loader.matrix(&name("ffn_down"), ffn, hidden)?,
        })
    }

    pub fn memory_bytes(&self) -> u64 {
        let matrices = [&self.query, &self.key, &self.value, &self.output, &self.gate, &self.up, &self.down];
        let norms = 4 * (self.attn_norm.len() + self.ffn_norm.len());
        (matrices.iter().map(|matrix| matrix.memory_bytes()).sum::<usize>() + norms) as u64
    }

    /// `rows` (rows x hidden) through this layer, in place. `index` counts the layers of `kv`.
    pub fn forward(
        &self,
        config: &ModelConfig,
        team: &mut Team,
        (batch, index): (&Batch<'_>, usize),
        (kv, scratch): (&mut KvCache, &mut Scratch),
        rows: &mut [f32],
    ) {
        let count = batch.sights.len();
        let s = scratch;
        resize(&mut s.normed, rows.len());
        for (buffer, matrix) in
            [(&mut s.query, &self.query), (&mut s.key, &self.key), (&mut s.value, &self.value)]
        {
            resize(buffer, count * matrix.n());
        }
        rms_norm(team, rows, &self.attn_norm, config.norm_eps, &mut s.normed);
        let mut products = [
            Product { matrix: &self.query, out: &mut s.query, store: Store::Set },
            Product { matrix: &self.key, out: &mut s.key, store: Store::Set },
            Product { matrix: &self.value, out: &mut s.value, store: Store::Set },
        ];
        multiply(team, &mut s.sums, count, &s.normed, &mut products);
        let dim = config.head_dim as usize;
        rope(team, &mut s.query, dim, self.query.n(), &s.angles);
        rope(team, &mut s.key, dim, self.key.n(), &s.angles);
        kv.put(index, &batch.slots, &s.key, &s.value);
        resize(&mut s.mixed, s.query.len());
        attend(team, kv.layer(index), &batch.sights, &s.query, &mut s.mixed, &mut s.scores);
        let mut products = [Product { matrix: &self.output, out: rows, store: Store::Add }];
        multiply(team, &mut s.sums, count, &s.mixed, &mut products);
        rms_norm(team, rows, &self.ffn_norm, config.norm_eps, &mut s.normed);
        resize(&mut s.gate, count * self.gate.n());
        resize(&mut s.up, count * self.up.n());
        gated(team, &mut s.sums, (count, &s.normed), [&self.gate, &self.up], [&mut s.gate, &mut s.up]);
        let mut products = [Product { matrix: &self.down, out: rows, store: Store::Add }];
        multiply(team, &mut s.sums, count, &s.gate, &mut products);
    }
}

/// Changes the length only; what the buffer holds is overwritten by its next user.
fn resize(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

impl Llama {
    pub fn load(
        config: &ModelConfig,
        slice: Slice,
        loader: &Loader<'_>,
        reuse: Option<&Llama>,
    ) -> anyhow::Result<Llama> {
        // Parts made for other dimensions are of no use, whatever their bytes.
        let reuse = reuse.filter(|old| old.config == *config);
        let mut layers = Vec::new();
        for index in slice.first..slice.end {
            let names = LAYER_TENSORS.map(|part| format!("blk.{index}.{part}.weight"));
            let old = reuse.iter().flat_map(|old| &old.layers);
            layers.push(reuse_or_load(loader, &names, old, || Layer::load(config, index, loader))?);
        }
        let (first, last) = (slice.first == 0, slice.end == config.layers);
        let matrix = |name: &str| {
            let old = reuse.iter().flat_map(|old| old.embedding.iter().chain(&old.output));
            let load = || loader.matrix(name, config.hidden, config.vocab);
            reuse_or_load(loader, &[name.to_owned()], old, load)
        };
        let embedding = if first || (last && config.tied) { Some(matrix(EMBEDDING)?) } else { None };
        let output = match (last, config.tied) {
            (false, _) => None,
            (true, true) => embedding.clone(),
            (true, false) => Some(matrix(OUTPUT)?),
        };
        let head_norm = if last { Some(loader.vector(OUTPUT_NORM, config.hidden)?) } else { None };
        let mut rope_steps = rope_steps(config.rope_base, config.rope_dim as usize);
        if loader.has(ROPE_FACTORS) {
            let factors = loader.vector(ROPE_FACTORS, config.rope_dim / 2)?;
            for (step, factor) in rope_steps.iter_mut().zip(factors) {
                *step /= f64::from(factor);
            }
        }
        Ok(Llama { config: config.clone(), layers, embedding, head_norm, output, rope_steps })
    }

    /// See `Model::embed`. Tokens must be below the vocabulary's size.
    pub fn embed(&self, tokens: &[u32], out: &mut [f32]) -> anyhow::Result<()> {
        let embedding =
            self.embedding.as_ref().context("this stage has no embedding: it is not the first")?;
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(self.config.hidden as usize)) {
            embedding.part.row(*token as usize, out);
        }
        Ok(())
    }

    /// See `Model::layers`.
    pub fn layers(
        &self,
        team: &mut Team,
        batch: &Batch<'_>,
        kv: &mut KvCache,
        scratch: &mut Scratch,
        rows: &mut [f32],
    ) {
        set_angles(team, &self.rope_steps, batch, scratch);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.part.forward(&self.config, team, (batch, index), (kv, scratch), rows);
        }
    }

    /// See `Model::head`.
    pub fn head(&self, team: &mut Team, scratch: &mut Scratch, rows: &[f32]) -> anyhow::Result<Vec<f32>> {
        let (Some(norm), Some(output)) = (&self.head_norm, &self.output) else {
            anyhow::bail!("this stage has no output head: it is not the last");
        };
        let count = rows.len() / norm.len();
        resize(&mut scratch.normed, rows.len());
        rms_norm(team, rows, norm, self.config.norm_eps, &mut scratch.normed);
        let mut logits = vec![0.0; count * output.part.n()];
        let mut products = [Product { matrix: &output.part, out: &mut logits, store: Store::Set }];
        multiply(team, &mut scratch.sums, count, &scratch.normed, &mut products);
        Ok(logits)
    }

    pub fn memory_bytes(&self) -> u64 {
        let mut ends: Vec<&Arc<Held<Matrix>>> = self.embedding.iter().chain(&self.output).collect();
        ends.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let layers: u64 = self.layers.iter().map(|layer| layer.part.memory_bytes()).sum();
        layers + ends.iter().map(|end| end.part.memory_bytes() as u64).sum::<u64>()
    }
}

/// Rotation of every row of the step, computed once for all layers.
pub fn set_angles(team: &mut Team, steps: &[f64], batch: &Batch<'_>, scratch: &mut Scratch) {
    scratch.angles.resize(batch.sights.len() * steps.len(), [0.0; 2]);
    if steps.is_empty() {
        return;
    }
    team.each_piece(&mut scratch.angles, steps.len() * 8, |part, angles| {
        for (i, angles) in angles.chunks_exact_mut(steps.len()).enumerate() {
            rope_angles(steps, batch.sights[part * 8 + i].position, angles);
        }
    });
}

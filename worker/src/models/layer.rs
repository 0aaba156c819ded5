//! One decoder layer, made of the parts that its family has.
//!
//! Must never compute a row differently because of its neighbours: that is kept by using nothing
//! but the kernels.

use caravan_core::model::{self, ModelConfig};
use caravan_kernels::attention::Scoring;
use caravan_kernels::rows::{add_bias, head_norm, rms_norm, rms_norm_add, rope};
use caravan_kernels::{Gate, Matrix, Product, Store, Team, gated, multiply};

use super::experts::Experts;
use super::{Batch, Scratch, Traits, resize, rotation};
use crate::kv::{KvCache, Looks};
use crate::weights::Loader;

/// One layer's weights.
#[derive(Clone)]
pub struct Layer {
    attn_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    /// Of query, key and value.
    biases: Option<[Vec<f32>; 3]>,
    /// Of each head of query and key.
    head_norms: Option<[Vec<f32>; 2]>,
    output: Matrix,
    ffn_norm: Vec<f32>,
    feed_forward: FeedForward,
    /// Of what attention and feed-forward give.
    post_norms: Option<[Vec<f32>; 2]>,
}

#[derive(Clone)]
enum FeedForward {
    Dense(Dense),
    Experts(Experts),
}

/// A gated feed-forward part.
#[derive(Clone)]
pub struct Dense {
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

/// Where a layer stands in its model.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// In the whole model.
    pub layer: u32,
    /// In the cache of the slice.
    pub cache: usize,
}

/// Names of one layer's tensors, loaded.
struct Parts<'a, 'b> {
    index: u32,
    loader: &'a Loader<'b>,
}

impl Parts<'_, '_> {
    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.index)
    }

    fn vector(&self, part: &str, len: u32) -> anyhow::Result<Vec<f32>> {
        self.loader.vector(&self.name(part), len)
    }

    fn matrix(&self, part: &str, k: u32, n: u32) -> anyhow::Result<Matrix> {
        self.loader.matrix(&self.name(part), k, n)
    }

    /// N matrices of one tensor, one behind the other.
    fn fused<const N: usize>(&self, part: &str, k: u32, rows: [u32; N]) -> anyhow::Result<[Matrix; N]> {
        self.loader.fused(&self.name(part), k, rows)
    }

    fn dense(&self, config: &ModelConfig) -> anyhow::Result<Dense> {
        let (hidden, ffn) = (config.hidden, config.ffn);
        let [gate, up] = if config.family.is_fused() {
            self.fused("ffn_up.weight", hidden, [ffn, ffn])?
        } else {
            [self.matrix("ffn_gate.weight", hidden, ffn)?, self.matrix("ffn_up.weight", hidden, ffn)?]
        };
        Ok(Dense { gate, up, down: self.matrix("ffn_down.weight", ffn, hidden)? })
    }

    fn experts(&self, config: &ModelConfig, choice: model::Experts) -> anyhow::Result<Experts> {
        let (hidden, ffn, count) = (config.hidden, config.ffn, choice.count);
        let router = self.matrix("ffn_gate_inp.weight", hidden, count)?;
        let stack = |part: &str, k, n| self.loader.stack(&self.name(part), (k, n), count);
        let gates = stack("ffn_gate_exps.weight", hidden, ffn)?;
        let ups = stack("ffn_up_exps.weight", hidden, ffn)?;
        let downs = stack("ffn_down_exps.weight", ffn, hidden)?;
        let parts = gates.into_iter().zip(ups).zip(downs);
        let experts = parts.map(|((gate, up), down)| Dense { gate, up, down }).collect();
        Ok(Experts { choice, router, experts })
    }
}

impl Layer {
    /// Loads layer `index` of the model.
    pub fn load(config: &ModelConfig, index: u32, loader: &Loader<'_>) -> anyhow::Result<Layer> {
        let parts = Parts { index, loader };
        let family = config.family;
        let hidden = config.hidden;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let [query, key, value] = if family.is_fused() {
            parts.fused("attn_qkv.weight", hidden, [q, kv, kv])?
        } else {
            [
                parts.matrix("attn_q.weight", hidden, q)?,
                parts.matrix("attn_k.weight", hidden, kv)?,
                parts.matrix("attn_v.weight", hidden, kv)?,
            ]
        };
        let biases = if family.has_qkv_bias() {
            let bias = |part, len| parts.vector(part, len);
            Some([bias("attn_q.bias", q)?, bias("attn_k.bias", kv)?, bias("attn_v.bias", kv)?])
        } else {
            None
        };
        let norm = |part: &str, len| loader.norm(&parts.name(part), len, config);
        let pair = |on: bool, names: [&str; 2], len| -> anyhow::Result<Option<[Vec<f32>; 2]>> {
            Ok(if on { Some([norm(names[0], len)?, norm(names[1], len)?]) } else { None })
        };
        let heads = ["attn_q_norm.weight", "attn_k_norm.weight"];
        let posts = ["post_attention_norm.weight", "post_ffw_norm.weight"];
        Ok(Layer {
            attn_norm: norm("attn_norm.weight", hidden)?,
            query,
            key,
            value,
            biases,
            head_norms: pair(family.has_head_norms(), heads, config.head_dim)?,
            output: parts.matrix("attn_output.weight", q, hidden)?,
            ffn_norm: norm("ffn_norm.weight", hidden)?,
            feed_forward: match config.experts {
                None => FeedForward::Dense(parts.dense(config)?),
                Some(choice) => FeedForward::Experts(parts.experts(config, choice)?),
            },
            post_norms: pair(family.has_post_norms(), posts, hidden)?,
        })
    }

    pub fn memory_bytes(&self) -> u64 {
        let matrices = [&self.query, &self.key, &self.value, &self.output];
        let vectors = [&self.attn_norm, &self.ffn_norm].into_iter();
        let vectors = vectors.chain(self.biases.iter().flatten());
        let vectors = vectors.chain(self.head_norms.iter().flatten());
        let vectors = vectors.chain(self.post_norms.iter().flatten());
        let floats: usize = vectors.map(Vec::len).sum();
        let own = matrices.iter().map(|matrix| matrix.memory_bytes()).sum::<usize>() + 4 * floats;
        let feed_forward = match &self.feed_forward {
            FeedForward::Dense(dense) => dense.memory_bytes(),
            FeedForward::Experts(experts) => experts.memory_bytes(),
        };
        (own + feed_forward) as u64
    }

    /// `rows` (rows x hidden) through this layer, in place.
    pub fn forward(
        &self,
        config: &ModelConfig,
        team: &mut Team,
        (batch, spot): (&Batch<'_>, Spot),
        (kv, s): (&mut KvCache, &mut Scratch),
        rows: &mut [f32],
    ) {
        let count = batch.sights.len();
        resize(&mut s.normed, rows.len());
        rms_norm(team, rows, &self.attn_norm, config.norm_eps, &mut s.normed);
        self.project(config, team, (count, spot), s);
        kv.put(spot.cache, &batch.slots, &s.key, &s.value);
        resize(&mut s.mixed, s.query.len());
        let looks = Looks {
            scoring: scoring(config, spot.layer),
            sights: &batch.sights,
            query: &s.query,
            out: &mut s.mixed,
            scratch: &mut s.scores,
        };
        kv.attend(spot.cache, team, looks);
        match &self.post_norms {
            None => {
                let mut products = [Product { matrix: &self.output, out: rows, store: Store::Add }];
                multiply(team, &mut s.acts, count, &s.mixed, &mut products);
            }
            Some([norm, _]) => {
                resize(&mut s.outcome, rows.len());
                let mut products = [Product { matrix: &self.output, out: &mut s.outcome, store: Store::Set }];
                multiply(team, &mut s.acts, count, &s.mixed, &mut products);
                rms_norm_add(team, &s.outcome, norm, config.norm_eps, rows);
            }
        }
        rms_norm(team, rows, &self.ffn_norm, config.norm_eps, &mut s.normed);
        match &self.post_norms {
            None => self.feed_forward(config, team, s, (rows, Store::Add)),
            Some([_, norm]) => {
                // Taken out for a moment, because the part needs the rest of the scratch.
                let mut outcome = std::mem::take(&mut s.outcome);
                self.feed_forward(config, team, s, (&mut outcome, Store::Set));
                rms_norm_add(team, &outcome, norm, config.norm_eps, rows);
                s.outcome = outcome;
            }
        }
    }

    /// Query, key and value of the normed rows, ready for attention.
    fn project(&self, config: &ModelConfig, team: &mut Team, (count, spot): (usize, Spot), s: &mut Scratch) {
        for (buffer, matrix) in
            [(&mut s.query, &self.query), (&mut s.key, &self.key), (&mut s.value, &self.value)]
        {
            resize(buffer, count * matrix.n());
        }
        let mut products = [
            Product { matrix: &self.query, out: &mut s.query, store: Store::Set },
            Product { matrix: &self.key, out: &mut s.key, store: Store::Set },
            Product { matrix: &self.value, out: &mut s.value, store: Store::Set },
        ];
        multiply(team, &mut s.acts, count, &s.normed, &mut products);
        if let Some(biases) = &self.biases {
            for (rows, bias) in [&mut s.query, &mut s.key, &mut s.value].into_iter().zip(biases) {
                add_bias(team, rows, bias);
            }
        }
        if let Some([query, key]) = &self.head_norms {
            head_norm(team, &mut s.query, self.query.n(), query, config.norm_eps);
            head_norm(team, &mut s.key, self.key.n(), key, config.norm_eps);
        }
        let (dim, pairing) = (config.head_dim as usize, rotation::pairing(config));
        let angles = &s.angles[rotation::angles_of(config, spot.layer)];
        rope(team, pairing, &mut s.query, (dim, self.query.n()), angles);
        rope(team, pairing, &mut s.key, (dim, self.key.n()), angles);
    }

    fn feed_forward(
        &self,
        config: &ModelConfig,
        team: &mut Team,
        s: &mut Scratch,
        target: (&mut [f32], Store),
    ) {
        let gate = Traits::of(config.family).gate;
        match &self.feed_forward {
            FeedForward::Experts(experts) => experts.forward(gate, team, s, target),
            FeedForward::Dense(dense) => {
                let input = std::mem::take(&mut s.normed);
                dense.forward(gate, team, (&input, s), target);
                s.normed = input;
            }
        }
    }
}

impl Dense {
    /// `input` (rows x hidden) through the part, into `target` (as large).
    pub fn forward(
        &self,
        gate: Gate,
        team: &mut Team,
        (input, s): (&[f32], &mut Scratch),
        (target, store): (&mut [f32], Store),
    ) {
        let count = input.len() / self.gate.k();
        resize(&mut s.gate, count * self.gate.n());
        resize(&mut s.up, count * self.up.n());
        let buffers = [&mut s.gate[..], &mut s.up[..]];
        gated(team, &mut s.acts, (count, input), [&self.gate, &self.up], buffers, gate);
        let mut products = [Product { matrix: &self.down, out: target, store }];
        multiply(team, &mut s.acts, count, &s.gate, &mut products);
    }

    pub fn memory_bytes(&self) -> usize {
        [&self.gate, &self.up, &self.down].iter().map(|matrix| matrix.memory_bytes()).sum()
    }
}

/// How `layer` makes scores, and how far back it sees.
fn scoring(config: &ModelConfig, layer: u32) -> Scoring {
    Scoring {
        scale: config.attention_scale.unwrap_or(1.0 / (config.head_dim as f32).sqrt()),
        cap: config.attention_cap,
        window: config.window_of(layer).map(|window| window.tokens),
    }
}

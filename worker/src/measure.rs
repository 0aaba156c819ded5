//! How long a layer of a model takes on this machine, measured on weights of the right shape and
//! type that hold zeros: arithmetic takes the same time whatever the numbers are, save where rows
//! choose what is computed.
//!
//! Must never take long (about half a second for small models): a joining worker waits for it.

use std::time::{Duration, Instant};

use anyhow::Context;
use caravan_core::cluster::LayerTime;
use caravan_core::model::{ModelConfig, Place, TensorSpec, TensorType};
use caravan_kernels::{Activations, Matrix, Product, Store, Team, multiply};

use crate::kv::KvCache;
use crate::models::layer::{Layer, Spot};
use crate::models::rotation::Rotation;
use crate::models::{self, Batch, Scratch};
use crate::slice::TensorSource;
use crate::weights::Loader;

/// Bytes of layers to go through in a round, so that weights come from memory as in real decoding,
/// not from the cache.
const ROUND_BYTES: u64 = 48 << 20;
const ROUNDS: usize = 5;
/// Time for each of the four figures.
const BUDGET: Duration = Duration::from_millis(90);
/// Output columns of the head that are measured; the time is scaled to all of them.
const HEAD_COLUMNS: u32 = 8_192;
const PAGE_TOKENS: u32 = 32;

/// Gives zeros for every tensor. Only a router, and the norm before it, get numbers: rows that all
/// chose the same experts would be computed sooner than rows of a text.
struct Blank;

impl TensorSource for Blank {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        let mut bytes = vec![0u8; usize::try_from(tensor.bytes)?];
        let router = tensor.name.ends_with(".ffn_gate_inp.weight");
        if router || tensor.name.ends_with(".ffn_norm.weight") {
            let number = |i: usize| if router { mixed(i as u32) } else { 1.0 };
            match tensor.kind {
                TensorType::F32 => {
                    let numbers = bytes.as_chunks_mut::<4>().0.iter_mut().enumerate();
                    numbers.for_each(|(i, bytes)| *bytes = number(i).to_le_bytes());
                }
                TensorType::F16 | TensorType::Bf16 => {
                    let numbers = bytes.as_chunks_mut::<2>().0.iter_mut().enumerate();
                    numbers.for_each(|(i, bytes)| *bytes = short(number(i), tensor.kind).to_le_bytes());
                }
                // Other types have their numbers in blocks; a router of theirs is measured with zeros.
                _ => {}
            }
        }
        Ok(Box::new(bytes))
    }
}

/// A number in -1..=1 in 16 bits, cut off; in F16 what is too small for a normal number is 0.
fn short(number: f32, kind: TensorType) -> u16 {
    let bits = number.to_bits();
    if kind == TensorType::Bf16 {
        return (bits >> 16) as u16;
    }
    let exponent = (bits >> 23 & 0xff).saturating_sub(112);
    let magnitude = if exponent == 0 { 0 } else { exponent << 10 | bits >> 13 & 0x3ff };
    (bits >> 16 & 0x8000 | magnitude) as u16
}

/// A fixed sequence of numbers in -1..1 that looks random.
fn mixed(index: u32) -> f32 {
    let x = (index ^ 0x9e37_79b9).wrapping_mul(0x85eb_ca6b);
    let x = (x ^ (x >> 15)).wrapping_mul(0xc2b2_ae35);
    (x >> 8) as f32 / 8_388_608.0 - 1.0
}

/// Milliseconds of one layer and of the head for one token. `tensors`: at least those of one layer
/// and of the output head (the embedding if tied). `throttle`: 1 is full speed, 0.5 reports twice
/// the time. Fails if a tensor is missing or of a wrong shape.
pub fn measure_layers(
    config: &ModelConfig,
    tensors: &[TensorSpec],
    team: &mut Team,
    throttle: f64,
) -> anyhow::Result<LayerTime> {
    let index = tensors.iter().find_map(|tensor| match tensor.place {
        Place::Layer(index) => Some(index),
        _ => None,
    });
    let index = index.context("no layer among the tensors to measure: a fault of the coordinator")?;
    let loader = Loader::new(tensors, &Blank, &|_| {});
    let mut layers = vec![Layer::load(config, index, &loader)?];
    let bytes = layers[0].memory_bytes().max(1);
    let count = (ROUND_BYTES / bytes).clamp(1, u64::from(config.layers)) as usize;
    layers.resize(count, layers[0].clone());
    let mut bench = Bench { config, layers, index, scratch: Scratch::default() };
    let decode_ms = bench.per_token(team, 1);
    let prefill_short_ms = bench.per_token(team, 32);
    // A large model's long prefill alone would take longer than everything else together.
    let long = prefill_short_ms * 256.0 * bench.layers.len() as f64;
    let prefill_long_ms =
        if long > 400.0 { bench.cut_to_one().per_token(team, 256) } else { bench.per_token(team, 256) };
    let head_ms = head(config, tensors, team)?;
    let slow = 1.0 / throttle.clamp(0.001, 1.0);
    Ok(LayerTime {
        decode_ms: decode_ms * slow,
        prefill_short_ms: prefill_short_ms * slow,
        prefill_long_ms: prefill_long_ms * slow,
        head_ms: head_ms * slow,
    })
}

struct Bench<'a> {
    config: &'a ModelConfig,
    layers: Vec<Layer>,
    index: u32,
    scratch: Scratch,
}

impl Bench<'_> {
    fn cut_to_one(&mut self) -> &mut Self {
        self.layers.truncate(1);
        self
    }

    /// Milliseconds of one layer for each of `rows` tokens of one sequence; the median of some runs.
    fn per_token(&mut self, team: &mut Team, rows: u32) -> f64 {
        let pages: Vec<u32> = (0..rows.div_ceil(PAGE_TOKENS)).collect();
        let sights = (0..rows).map(|position| caravan_kernels::attention::Sight { pages: &pages, position });
        let batch = Batch {
            sights: sights.collect(),
            slots: (0..rows).map(|position| (position / PAGE_TOKENS, position % PAGE_TOKENS)).collect(),
        };
        let shape = models::kv_shape(self.config, PAGE_TOKENS);
        let mut kv = KvCache::new(shape, self.config.kv, pages.len() as u32, 1);
        let mut x: Vec<f32> = (0..(rows * self.config.hidden)).map(mixed).collect();
        Rotation::still(self.config).set_angles(team, &batch, &mut self.scratch);
        let layers = &self.layers;
        let scratch = &mut self.scratch;
        let spot = Spot { layer: self.index, cache: 0 };
        let total = median(|| {
            for layer in layers {
                layer.forward(self.config, team, (&batch, spot), (&mut kv, scratch), &mut x);
            }
        });
        total / (layers.len() as f64 * f64::from(rows))
    }
}

/// Milliseconds of the output head for one token.
fn head(config: &ModelConfig, tensors: &[TensorSpec], team: &mut Team) -> anyhow::Result<f64> {
    let name = if config.tied { "token_embd.weight" } else { "output.weight" };
    let tensor = tensors.iter().find(|tensor| tensor.name == name);
    let tensor = tensor.with_context(|| format!("`{name}` is not among the tensors to measure"))?;
    let columns = config.vocab.min(HEAD_COLUMNS);
    let part = TensorSpec {
        dims: vec![u64::from(config.hidden), u64::from(columns)],
        bytes: tensor.bytes / u64::from(config.vocab.max(1)) * u64::from(columns),
        ..tensor.clone()
    };
    let part = [part];
    let matrix: Matrix = Loader::new(&part, &Blank, &|_| {}).matrix(name, config.hidden, columns)?;
    let input = vec![0.0; config.hidden as usize];
    let (mut out, mut acts) = (vec![0.0; columns as usize], Activations::default());
    let ms = median(|| {
        let mut products = [Product { matrix: &matrix, out: &mut out, store: Store::Set }];
        multiply(team, &mut acts, 1, &input, &mut products);
    });
    Ok(ms * f64::from(config.vocab) / f64::from(columns))
}

/// The median time of `work` in milliseconds, over a few runs after a first one.
fn median(mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut times = Vec::new();
    let mut first = true;
    while times.is_empty() || (times.len() < ROUNDS && begin.elapsed() < BUDGET) {
        let start = Instant::now();
        work();
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        // The first run touches memory for the first time; it counts only if there is no time for more.
        if !first || begin.elapsed() >= BUDGET {
            times.push(ms);
        }
        first = false;
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

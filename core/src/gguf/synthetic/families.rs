//! Whole models of any family from a configuration: random weights, a tokenizer that knows every
//! byte. For tests of every crate; nothing else.
//!
//! Must never be used by the product itself.

use super::{GgufWriter, SyntheticTensor, TINY_CONTROL, TINY_MERGES, TINY_TEMPLATE, mixed, tiny_tokens};
use crate::model::{Family, ModelConfig, RopeFactors, RopeScaling, TensorType};

/// A model as a file holds it.
#[derive(Clone, Debug)]
pub struct SyntheticModel {
    pub config: ModelConfig,
    /// Types of the matrices, by layer in turn; the embedding has the first. Where a type's blocks
    /// don't divide a row it is Q8_0, or F16. Vectors and routers are F32.
    pub kinds: Vec<TensorType>,
    pub seed: u64,
}

/// Layers so large that products stay near 1, whatever the widths.
const GAIN: f32 = 1.0;

impl SyntheticModel {
    /// The file as a writer, so that a test can spoil it. What the reader of headers makes of it is
    /// `config`.
    pub fn writer(&self) -> GgufWriter {
        let config = &self.config;
        let (hidden, vocab) = (u64::from(config.hidden), u64::from(config.vocab));
        let mut out = self.tensor(self.metadata(), "token_embd.weight", &[hidden, vocab], 0);
        for name in self.factor_tensors() {
            out = self.tensor(out, name, &[u64::from(config.rope_dim / 2)], 0);
        }
        for layer in 0..config.layers {
            for part in config.layer_tensors() {
                out = self.tensor(out, &part.name(layer), &part.dims, layer as usize);
            }
        }
        out = self.tensor(out, "output_norm.weight", &[hidden], 0);
        if config.tied { out } else { self.tensor(out, "output.weight", &[hidden, vocab], 1) }
    }

    fn factor_tensors(&self) -> &'static [&'static str] {
        match &self.config.rope_scaling {
            RopeScaling::Factors { factors: RopeFactors::Tensor(name), .. }
                if name == "rope_freqs.weight" =>
            {
                &["rope_freqs.weight"]
            }
            RopeScaling::Factors { factors: RopeFactors::Tensor(_), .. } => {
                &["rope_factors_short.weight", "rope_factors_long.weight"]
            }
            _ => &[],
        }
    }

    fn tensor(&self, out: GgufWriter, name: &str, dims: &[u64], layer: usize) -> GgufWriter {
        let wanted = self.kinds[layer % self.kinds.len()];
        let fits = |kind: &TensorType| dims[0].is_multiple_of(kind.block().0);
        let kind = match dims.len() {
            1 => TensorType::F32,
            _ if name.contains("ffn_gate_inp") => TensorType::F32,
            _ => [wanted, TensorType::Q8_0].into_iter().find(fits).unwrap_or(TensorType::F16),
        };
        let data = spread(name, dims, kind, self.seed);
        let (name, dims) = (name.to_owned(), dims.to_vec());
        out.raw_tensor(SyntheticTensor { name, dims, kind: kind.gguf_number(), data, offset: None })
    }

    fn metadata(&self) -> GgufWriter {
        let config = &self.config;
        let arch = match config.family {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3moe",
            Family::Gemma3 => "gemma3",
            Family::Phi3 => "phi3",
        };
        let key = |name: &str| format!("{arch}.{name}");
        let mut out = tokenizer(config.vocab as usize)
            .text("general.architecture", arch)
            .u32(&key("block_count"), config.layers)
            .u32(&key("context_length"), config.context)
            .u32(&key("embedding_length"), config.hidden)
            .u32(&key("feed_forward_length"), config.ffn)
            .u32(&key("attention.head_count"), config.heads)
            .u32(&key("attention.head_count_kv"), config.kv_heads)
            .u32(&key("attention.key_length"), config.head_dim)
            .u32(&key("attention.value_length"), config.head_dim)
            .u32(&key("rope.dimension_count"), config.rope_dim)
            .f32(&key("rope.freq_base"), config.rope_base)
            .f32(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
        if let Some(window) = config.window {
            out = out.u32(&key("attention.sliding_window"), window.tokens);
            if let Some(base) = window.rope_base {
                out = out
                    .u32(&key("attention.sliding_window_pattern"), window.global_every)
                    .f32(&key("rope.freq_base_swa"), base);
            }
        } else if config.family == Family::Gemma3 {
            out = out.u32(&key("attention.sliding_window"), 0);
        }
        if let Some(experts) = config.experts {
            out = out
                .u32(&key("expert_count"), experts.count)
                .u32(&key("expert_used_count"), experts.used)
                .u32(&key("expert_feed_forward_length"), config.ffn);
        }
        let optional = [
            ("attention.scale", config.attention_scale),
            ("attn_logit_softcapping", config.attention_cap),
            ("final_logit_softcapping", config.logit_cap),
        ];
        for (name, value) in optional {
            out = value.into_iter().fold(out, |out, value| out.f32(&key(name), value));
        }
        match &config.rope_scaling {
            RopeScaling::None => out,
            RopeScaling::Linear { factor } => {
                out.text(&key("rope.scaling.type"), "linear").f32(&key("rope.scaling.factor"), *factor)
            }
            RopeScaling::Factors { magnitude, factors } => {
                let long = *factors == RopeFactors::Tensor("rope_factors_long.weight".into());
                let first = if long { config.context / 2 } else { config.context };
                out.u32(&key("rope.scaling.original_context_length"), first)
                    .f32(&key("rope.scaling.attn_factor"), *magnitude)
            }
        }
    }
}

/// Byte-level tokens, filled up to `vocab`.
fn tokenizer(vocab: usize) -> GgufWriter {
    let mut tokens = tiny_tokens();
    (tokens.len()..vocab).for_each(|token| tokens.push(format!("<filler {token}>")));
    tokens.truncate(vocab);
    let kind = |token: usize| if token < TINY_CONTROL.len() { 3 } else { 1 };
    let kinds: Vec<i32> = (0..vocab).map(kind).collect();
    GgufWriter::default()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", &TINY_MERGES)
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .bool("tokenizer.ggml.add_bos_token", false)
        .text("tokenizer.chat_template", TINY_TEMPLATE)
}

/// Uniform in -1..1 from 24 bits.
fn number(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// The nearest half towards 0, for numbers below 65,504.
fn half(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 112;
    let magnitude = match exponent {
        // Subnormal halves count in units of 2^-24.
        ..=0 => (x.abs() * 16_777_216.0) as u16,
        _ => (exponent.min(30) as u16) << 10 | (bits >> 13 & 0x3ff) as u16,
    };
    ((bits >> 16 & 0x8000) as u16 | magnitude).to_le_bytes()
}

/// Bytes of a tensor whose products with rows near 1 are near `GAIN`. Norms are near 1, biases
/// near 0, factors of the rotation from 1 to 4.
pub(crate) fn spread(name: &str, dims: &[u64], kind: TensorType, seed: u64) -> Vec<u8> {
    let start = name.bytes().fold(seed, |hash, byte| mixed(hash ^ u64::from(byte)));
    let elements: u64 = dims.iter().product();
    let (block, block_bytes) = kind.block();
    let deviation = if dims.len() == 1 { 0.3 } else { GAIN / (dims[0] as f32).sqrt() };
    let centre = match name {
        _ if name.contains("norm") => 1.0,
        _ if name.contains("rope") => 2.5,
        _ => 0.0,
    };
    // A uniform number in -1..1 deviates by 0.577.
    let width = if name.contains("rope") { 1.5 } else { deviation / 0.577 };
    let mut out = Vec::with_capacity((elements / block * block_bytes) as usize);
    for index in 0..elements / block {
        let noise = mixed(start.wrapping_add(index));
        let weight = centre + width * number(noise);
        match kind {
            TensorType::F32 => out.extend(weight.to_le_bytes()),
            TensorType::F16 => out.extend(half(weight)),
            TensorType::Bf16 => out.extend(&weight.to_le_bytes()[2..]),
            _ => {
                let at = out.len();
                while out.len() < at + block_bytes as usize {
                    let next = mixed(noise.wrapping_add(out.len() as u64));
                    out.extend(next.to_le_bytes());
                }
                out.truncate(at + block_bytes as usize);
                // Blocks differ in size, as those of real files do.
                scale(&mut out[at..], kind, deviation * (1.0 + 0.3 * number(noise)));
            }
        }
    }
    out
}

/// Sets the scales of a block of random numbers so that its weights deviate by about `deviation`.
fn scale(block: &mut [u8], kind: TensorType, deviation: f32) {
    // (deviation of the whole numbers, where scale and minimum are, minimum in units of the scale)
    let (numbers, scale, minimum): (f32, usize, Option<f32>) = match kind {
        TensorType::Q4_0 => (4.6, 0, None),
        TensorType::Q5_0 => (9.2, 0, None),
        TensorType::Q8_0 => (73.9, 0, None),
        TensorType::Q4_1 => (4.6, 0, Some(-7.5)),
        TensorType::Q5_1 => (9.2, 0, Some(-15.5)),
        // Six-bit scales of 31.5 on average; the minimum is subtracted.
        TensorType::Q4K => (31.5 * 6.0, 0, Some(7.5)),
        TensorType::Q5K => (31.5 * 12.0, 0, Some(15.5)),
        TensorType::Q6K => (73.9 * 18.5, 208, None),
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 => return,
    };
    let d = deviation / numbers;
    block[scale..scale + 2].copy_from_slice(&half(d));
    if let Some(minimum) = minimum {
        block[2..4].copy_from_slice(&half(d * minimum));
    }
}

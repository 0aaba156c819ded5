//! Shapes of real models, with few layers and a small vocabulary.
//!
//! Must never lose what sets a shape apart: head sizes, heads per key head, odd widths.

#![allow(dead_code)]

use caravan_core::model::{Experts, Family, ModelConfig, RopeFactors, RopePairing, RopeScaling, Window};

const VOCAB: u32 = 331;

/// By what the widths of the largest models are divided.
fn divisor() -> u32 {
    if std::env::var("CARAVAN_TEST_SHAPES").as_deref() == Ok("real") { 1 } else { 4 }
}

fn factors(name: &str, magnitude: f32) -> RopeScaling {
    RopeScaling::Factors { factors: RopeFactors::Tensor(name.into()), magnitude }
}

/// Llama 3.2 1B.
pub fn llama_3_2() -> ModelConfig {
    let by = divisor();
    ModelConfig {
        layers: 2,
        hidden: 2_048 / by,
        heads: 32 / by,
        kv_heads: 8 / by,
        head_dim: 64,
        rope_dim: 64,
        rope_base: 500_000.0,
        ffn: 8_192 / by,
        vocab: VOCAB,
        context: 131_072,
        rope_scaling: factors("rope_freqs.weight", 1.0),
        ..ModelConfig::default()
    }
}

/// SmolLM2 135M, narrower.
pub fn small_llama() -> ModelConfig {
    ModelConfig {
        layers: 3,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        ffn: 512,
        vocab: VOCAB,
        context: 2_048,
        ..ModelConfig::default()
    }
}

/// Mistral 7B v0.1, with a window that is passed soon.
pub fn mistral() -> ModelConfig {
    let by = divisor();
    ModelConfig {
        layers: 2,
        hidden: 4_096 / by,
        heads: 32 / by,
        kv_heads: 8 / by,
        head_dim: 128,
        rope_dim: 128,
        ffn: 14_336 / by,
        vocab: VOCAB,
        context: 32_768,
        tied: false,
        window: Some(Window { tokens: 21, global_every: 0, rope_base: None }),
        ..ModelConfig::default()
    }
}

/// Qwen2.5 0.5B.
pub fn qwen_2_5() -> ModelConfig {
    let by = divisor().min(2);
    ModelConfig {
        family: Family::Qwen2,
        layers: 3,
        hidden: 896 / by,
        heads: 14 / by,
        kv_heads: 2 / by,
        rope_base: 1_000_000.0,
        norm_eps: 1e-6,
        ffn: 4_864 / by,
        vocab: VOCAB,
        context: 32_768,
        rope_pairing: RopePairing::Halves,
        ..ModelConfig::default()
    }
}

/// Qwen3 0.6B.
pub fn qwen3() -> ModelConfig {
    let by = divisor();
    ModelConfig {
        family: Family::Qwen3,
        layers: 3,
        hidden: 1_024 / by,
        heads: 16 / by,
        kv_heads: 8 / by,
        head_dim: 128,
        rope_dim: 128,
        rope_base: 1_000_000.0,
        norm_eps: 1e-6,
        ffn: 3_072 / by,
        vocab: VOCAB,
        context: 40_960,
        rope_pairing: RopePairing::Halves,
        ..ModelConfig::default()
    }
}

/// As Qwen3 30B-A3B, with a quarter of its width and of its experts.
pub fn qwen3_moe() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3Moe,
        layers: 3,
        hidden: 512,
        heads: 8,
        kv_heads: 1,
        ffn: 192,
        tied: false,
        experts: Some(Experts { count: 32, used: 8, normalised: true }),
        ..qwen3()
    }
}

/// Gemma 3 270M, with a window that is passed soon and a global layer that comes early.
pub fn gemma_3() -> ModelConfig {
    ModelConfig {
        family: Family::Gemma3,
        layers: 4,
        hidden: 640,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        rope_dim: 256,
        rope_base: 1_000_000.0,
        norm_eps: 1e-6,
        ffn: 2_048,
        vocab: VOCAB,
        context: 32_768,
        rope_pairing: RopePairing::Halves,
        window: Some(Window { tokens: 13, global_every: 2, rope_base: Some(10_000.0) }),
        ..ModelConfig::default()
    }
}

/// Phi-3 mini 128k.
pub fn phi_3() -> ModelConfig {
    let by = divisor();
    ModelConfig {
        family: Family::Phi3,
        layers: 2,
        hidden: 3_072 / by,
        heads: 32 / by,
        kv_heads: 32 / by,
        head_dim: 96,
        rope_dim: 96,
        ffn: 8_192 / by,
        vocab: VOCAB,
        context: 131_072,
        tied: false,
        rope_pairing: RopePairing::Halves,
        rope_scaling: factors("rope_factors_long.weight", 1.190_238),
        ..ModelConfig::default()
    }
}

pub fn phi_3_small() -> ModelConfig {
    ModelConfig {
        layers: 3,
        hidden: 256,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        rope_dim: 64,
        ffn: 512,
        ..phi_3()
    }
}

/// One of each family, small, with rows that every type's blocks divide.
pub fn all_small() -> Vec<ModelConfig> {
    let small = |config: ModelConfig| ModelConfig {
        layers: 3,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rope_dim: 64,
        ffn: 512,
        ..config
    };
    vec![
        small_llama(),
        small(qwen_2_5()),
        small(qwen3()),
        ModelConfig {
            ffn: 256,
            experts: Some(Experts { count: 6, used: 2, normalised: true }),
            ..small(qwen3_moe())
        },
        small(gemma_3()),
        phi_3_small(),
    ]
}

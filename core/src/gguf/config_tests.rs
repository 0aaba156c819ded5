//! What a Llama file must have, and what it may not have.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::synthetic::{GgufWriter, SyntheticModel, SyntheticTensor, TinyLlama};
use super::*;
use crate::model::{Experts, Family, Place, RopeFactors, RopePairing, RopeScaling, Window};
use crate::plan::Slice;

fn config(writer: GgufWriter) -> Result<ModelConfig, GgufError> {
    let bytes = writer.finish();
    Gguf::parse(&bytes, bytes.len() as u64).unwrap().config()
}

fn tiny() -> GgufWriter {
    TinyLlama::default().writer()
}

fn refused(writer: GgufWriter, what: &str) {
    match config(writer) {
        Err(GgufError::Bad(why)) => assert!(why.contains(what), "{why:?} should mention {what:?}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn a_tiny_model_is_understood() {
    let config = config(tiny()).unwrap();
    assert_eq!(
        config,
        ModelConfig {
            family: Family::Llama,
            layers: 3,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            rope_dim: 16,
            rope_base: 10_000.0,
            norm_eps: 1e-5,
            ffn: 96,
            vocab: 267,
            context: 512,
            tied: true,
            ..ModelConfig::default()
        }
    );
}

#[test]
fn an_output_matrix_unties_the_head() {
    assert!(!config(TinyLlama { tied: false, ..TinyLlama::default() }.writer()).unwrap().tied);
}

#[test]
fn optional_keys_have_their_defaults() {
    let config = config(tiny().without("llama.rope.freq_base").u32("llama.rope.dimension_count", 8)).unwrap();
    assert_eq!((config.rope_base, config.rope_dim), (10_000.0, 8));
}

#[test]
fn missing_and_impossible_keys_are_named() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
    ] {
        refused(tiny().without(key), key);
        refused(tiny().bool(key, true), key);
    }
    for key in ["block_count", "context_length", "embedding_length", "attention.head_count"] {
        let key = format!("llama.{key}");
        refused(tiny().u32(&key, 0), &key);
        refused(tiny().u32(&key, u32::MAX), &key);
        refused(tiny().raw(&key, 5, &(-1i32).to_le_bytes()), &key);
        refused(tiny().i32s(&key, &[3, 3]), &key);
    }
    refused(tiny().u32("llama.block_count", limits::LAYERS + 1), "llama.block_count");
    refused(tiny().u32("llama.block_count", 4), "\"blk.3.attn_norm.weight\"");
    refused(tiny().u32("llama.block_count", 2), "\"blk.2.");
    refused(tiny().u32("llama.attention.head_count", 5), "heads don't divide");
    refused(tiny().u32("llama.attention.head_count_kv", 3), "don't divide");
    refused(tiny().u32("llama.attention.head_count", 64), "must be even");
    refused(tiny().u32("llama.rope.dimension_count", 17), "llama.rope.dimension_count");
    refused(tiny().u32("llama.rope.dimension_count", 7), "odd");
    refused(tiny().u32("llama.attention.value_length", 8), "value_length");
    refused(tiny().u32("llama.vocab_size", 266), "must agree");
    for bad in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        refused(tiny().f32("llama.attention.layer_norm_rms_epsilon", bad), "layer_norm_rms_epsilon");
        refused(tiny().f32("llama.rope.freq_base", bad), "rope.freq_base");
    }
}

#[test]
fn what_this_build_would_ignore_is_refused() {
    refused(tiny().text("general.architecture", "gemma2"), "\"gemma2\"");
    refused(tiny().text("general.architecture", "llama4"), "llama");
    refused(tiny().text("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type");
    refused(tiny().text("llama.rope.scaling.type", "longrope"), "rope_factors_short.weight");
    let off = tiny().text("llama.rope.scaling.type", "none");
    refused(off.clone().f32("llama.rope.scaling.factor", 8.0), "llama.rope.scaling.factor");
    refused(tiny().f32("llama.rope.scaling.attn_factor", 1.2), "llama.rope.scaling.attn_factor");
    refused(tiny().u32("llama.expert_count", 8), "llama.expert_count");
    refused(tiny().f32("llama.logit_scale", 0.5), "llama.logit_scale");
    refused(tiny().u32("llama.rope.freq_base_swa", 1), "llama.rope.freq_base_swa");
    config(off.f32("llama.rope.scaling.factor", 1.0)).unwrap();
    config(tiny().u32("llama.expert_count", 0).text("gemma3.rope.scaling.type", "yarn")).unwrap();
    let extra = |name: &str| tiny().tensor(name, &[16], TensorType::F32, 1);
    refused(extra("rope_freqs.weight"), "\"rope_freqs.weight\"");
    refused(extra("blk.0.attn_q.bias"), "\"blk.0.attn_q.bias\"");
    refused(extra("blk.3.attn_norm.weight"), "\"blk.3.attn_norm.weight\"");
}

#[test]
fn shapes_are_exact() {
    for name in ["token_embd.weight", "output_norm.weight", "blk.2.ffn_down.weight", "blk.0.attn_k.weight"] {
        refused(tiny().without_tensor(name), name);
        let transposed = |tensor: &mut SyntheticTensor| {
            // Both dimensions of the tiny model's matrices hold whole blocks, save the vocabulary.
            match tensor.dims[..] {
                [_, 267] | [_] => tensor.dims = vec![tensor.data.len() as u64 / 34 / 2 * 32, 2],
                _ => tensor.dims.reverse(),
            }
            if tensor.kind == 0 {
                tensor.dims = vec![tensor.data.len() as u64 / 8];
            }
        };
        let bytes = tiny().edit_tensor(name, transposed).finish();
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        assert!(gguf.config().unwrap_err().to_string().contains("must"), "{name}");
    }
    let fewer = tiny().texts("tokenizer.ggml.tokens", &["a", "b"]);
    refused(fewer, "2 tokens");
}

#[test]
fn the_spec_addresses_every_tensor_once() {
    let bytes = tiny().finish();
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    let digests: Vec<Digest> = (0..gguf.tensors.len()).map(|index| Digest([index as u8; 32])).collect();
    let spec = gguf.spec("tiny", Digest([9; 32]), &digests, Digest([8; 32])).unwrap();
    assert_eq!((spec.name.as_str(), spec.header_bytes), ("tiny", gguf.data_offset));
    assert_eq!((spec.header, spec.digest), (Digest([9; 32]), Digest([8; 32])));
    assert!(spec.tensors.windows(2).all(|pair| pair[0].offset < pair[1].offset));
    for (info, digest) in gguf.tensors.iter().zip(&digests) {
        let tensor = spec.tensors.iter().find(|tensor| tensor.name == info.name).unwrap();
        assert_eq!((tensor.digest, tensor.offset, tensor.bytes), (*digest, info.offset, info.bytes));
    }
    let count = |first, end| spec.tensors_of(Slice { first, end }).count();
    // Tied: the embedding is both the first and the last stage's.
    assert_eq!((count(0, 1), count(1, 2), count(2, 3), count(0, 3)), (10, 9, 11, 29));
    let place = |name: &str| spec.tensors.iter().find(|tensor| tensor.name == name).unwrap().place;
    assert_eq!(place("token_embd.weight"), Place::Embed);
    assert_eq!(place("output_norm.weight"), Place::Head);
    assert_eq!(place("blk.2.ffn_up.weight"), Place::Layer(2));
    assert!(gguf.spec("tiny", Digest([9; 32]), &digests[1..], Digest([8; 32])).is_err());
}

#[test]
fn constants_of_attention_and_rotation_are_read() {
    let linear = tiny().f32("llama.rope.scaling.factor", 8.0);
    assert_eq!(config(linear.clone()).unwrap().rope_scaling, RopeScaling::Linear { factor: 8.0 });
    let typed = linear.text("llama.rope.scaling.type", "linear");
    assert_eq!(config(typed).unwrap().rope_scaling, RopeScaling::Linear { factor: 8.0 });
    let old = tiny().f32("llama.rope.scale_linear", 2.0);
    assert_eq!(config(old).unwrap().rope_scaling, RopeScaling::Linear { factor: 2.0 });

    let factors = |name: &str| tiny().tensor(name, &[8], TensorType::F32, 1);
    let wanted =
        |name: &str, magnitude| RopeScaling::Factors { factors: RopeFactors::Tensor(name.into()), magnitude };
    let read = config(factors("rope_freqs.weight")).unwrap();
    assert_eq!(read.rope_scaling, wanted("rope_freqs.weight", 1.0));
    let both =
        factors("rope_factors_short.weight").tensor("rope_factors_long.weight", &[8], TensorType::F32, 2);
    refused(both.clone(), "llama.rope.scaling.original_context_length");
    refused(
        factors("rope_factors_short.weight").u32("llama.rope.scaling.original_context_length", 9),
        "long",
    );
    // The context of the tiny model is 512.
    for (first, name) in [(512, "rope_factors_short.weight"), (511, "rope_factors_long.weight")] {
        let writer = both
            .clone()
            .u32("llama.rope.scaling.original_context_length", first)
            .f32("llama.rope.scaling.attn_factor", 1.25);
        assert_eq!(config(writer.clone()).unwrap().rope_scaling, wanted(name, 1.25));
        // Only the one that is used is a tensor of the model.
        let bytes = writer.finish();
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        let digests = vec![Digest([1; 32]); gguf.tensors.len()];
        let spec = gguf.spec("m", Digest([0; 32]), &digests, Digest([2; 32])).unwrap();
        let shared: Vec<&str> =
            spec.tensors.iter().filter(|t| t.place == Place::Shared).map(|t| t.name.as_str()).collect();
        assert_eq!(shared, [name]);
        assert_eq!(spec.tensors_of(Slice { first: 1, end: 2 }).count(), 10);
    }

    let read = config(
        tiny()
            .u32("llama.attention.sliding_window", 100)
            .f32("llama.attention.scale", 0.25)
            .f32("llama.attn_logit_softcapping", 50.0)
            .f32("llama.final_logit_softcapping", 0.0),
    )
    .unwrap();
    assert_eq!(read.window, Some(Window { tokens: 100, global_every: 0, rope_base: None }));
    assert_eq!((read.attention_scale, read.attention_cap, read.logit_cap), (Some(0.25), Some(50.0), None));
    for tokens in [0, 512, 4_096] {
        assert_eq!(config(tiny().u32("llama.attention.sliding_window", tokens)).unwrap().window, None);
    }
    refused(tiny().f32("llama.attn_logit_softcapping", f32::NAN), "llama.attn_logit_softcapping");
    refused(tiny().text("llama.attention.sliding_window", "all"), "llama.attention.sliding_window");
}

/// A tiny model of each family.
fn families() -> Vec<ModelConfig> {
    use Family::*;
    let of = |family| ModelConfig {
        family,
        layers: 4,
        heads: 2,
        head_dim: 32,
        rope_dim: 32,
        vocab: 300,
        context: 256,
        rope_pairing: if family == Llama { RopePairing::Neighbours } else { RopePairing::Halves },
        window: (family == Gemma3).then_some(Window {
            tokens: 16,
            global_every: 2,
            rope_base: Some(10_000.0),
        }),
        experts: (family == Qwen3Moe).then_some(Experts { count: 4, used: 2, normalised: true }),
        ..ModelConfig::default()
    };
    [Llama, Qwen2, Qwen3, Qwen3Moe, Gemma3, Phi3].map(of).to_vec()
}

fn written(config: &ModelConfig) -> GgufWriter {
    SyntheticModel { config: config.clone(), kinds: vec![TensorType::Q8_0], seed: 1 }.writer()
}

#[test]
fn every_family_is_read_as_it_was_written_and_misses_nothing() {
    for wanted in families() {
        assert_eq!(config(written(&wanted)).unwrap(), wanted);
        for part in wanted.layer_tensors() {
            let name = part.name(2);
            refused(written(&wanted).without_tensor(&name), &name);
            let wider = |tensor: &mut SyntheticTensor| {
                let row = tensor.data.len() / tensor.dims.last().map_or(1, |n| *n as usize);
                tensor.data.truncate(tensor.data.len() - row);
                *tensor.dims.last_mut().unwrap() -= 1;
            };
            // A vector of one element less may not be aligned any more, which is refused by name too.
            refused(written(&wanted).edit_tensor(&name, wider), &name);
        }
        let bias = "blk.1.attn_output.bias";
        refused(written(&wanted).tensor(bias, &[64], TensorType::F32, 1), bias);
    }
}

#[test]
fn keys_that_a_family_needs_are_named() {
    let of = |family| families().into_iter().find(|config| config.family == family).unwrap();
    let (moe, gemma, phi) = (of(Family::Qwen3Moe), of(Family::Gemma3), of(Family::Phi3));
    for key in ["expert_count", "expert_used_count", "expert_feed_forward_length"] {
        let key = format!("qwen3moe.{key}");
        refused(written(&moe).without(&key), &key);
        refused(written(&moe).u32(&key, 0), &key);
    }
    refused(written(&moe).u32("qwen3moe.expert_used_count", 5), "qwen3moe.expert_used_count");
    refused(written(&moe).u32("qwen3moe.expert_gating_func", 2), "qwen3moe.expert_gating_func");
    refused(written(&gemma).without("gemma3.attention.sliding_window"), "gemma3.attention.sliding_window");
    refused(written(&phi).without("phi3.feed_forward_length"), "phi3.feed_forward_length");

    let pattern = "gemma3.attention.sliding_window_pattern";
    let window = |writer: GgufWriter| config(writer).unwrap().window.unwrap();
    let plain = window(written(&gemma).without(pattern).without("gemma3.rope.freq_base_swa"));
    assert_eq!((plain.global_every, plain.rope_base), (6, Some(10_000.0)));
    let bools = |local: &[u8]| {
        let mut bytes = 7u32.to_le_bytes().to_vec();
        bytes.extend((local.len() as u64).to_le_bytes());
        bytes.extend(local);
        written(&gemma).raw(pattern, 9, &bytes)
    };
    assert_eq!(window(bools(&[1, 0, 1, 0])).global_every, 2);
    assert_eq!(window(bools(&[1, 1, 1, 1])).global_every, 0);
    for odd in [&[1, 0, 0, 1][..], &[1, 0, 1], &[]] {
        refused(bools(odd), pattern);
    }
    assert_eq!(config(written(&gemma).u32("gemma3.attention.sliding_window", 0)).unwrap().window, None);
    let large = ModelConfig { layers: 62, ..gemma };
    assert_eq!(config(written(&large)).unwrap().attention_scale, Some(1.0 / 32f32.sqrt()));
}

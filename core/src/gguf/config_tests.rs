//! What a Llama file must have, and what it may not have.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::synthetic::{GgufWriter, SyntheticTensor, TinyLlama};
use super::*;
use crate::model::{Family, Place};
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
    refused(tiny().text("general.architecture", "gemma3"), "\"gemma3\"");
    refused(tiny().text("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type");
    refused(tiny().f32("llama.rope.scaling.factor", 8.0), "llama.rope.scaling.factor");
    refused(tiny().u32("llama.expert_count", 8), "llama.expert_count");
    refused(tiny().f32("llama.logit_scale", 0.5), "llama.logit_scale");
    config(tiny().text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 1.0)).unwrap();
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

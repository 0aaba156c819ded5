//! The engine against an outside implementation: candle-transformers' Llama on the same file's
//! weights dequantised to f32, over two thousand positions of running text (`data/prose.txt`,
//! tokenised once with the file's own tokenizer into `data/prose.tokens.json`).
//!
//! Set `CARAVAN_TEST_MODEL` to the SmolLM2-135M-Instruct file; without it the test says that it is
//! skipped, with a bad file it fails.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashMap;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use caravan_core::model::ModelConfig;
use caravan_kernels::Team;
use common::{TestModel, all_logits};

const WINDOWS: usize = 7;
const WINDOW: usize = 303;

fn prose() -> Vec<u32> {
    let text = include_str!("data/prose.tokens.json");
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    numbers.map(|number| number.parse().unwrap()).collect()
}

/// The file's query and key rows stand for neighbouring pairs (head, pair, side); candle rotates
/// halves (head, side, pair).
fn unpair(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, width) = tensor.dims2().unwrap();
    let pairs = tensor.reshape((heads, rows / heads / 2, 2, width)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, width)).unwrap()
}

fn candle_config(config: &ModelConfig) -> Config {
    Config {
        hidden_size: config.hidden as usize,
        intermediate_size: config.ffn as usize,
        vocab_size: config.vocab as usize,
        num_hidden_layers: config.layers as usize,
        num_attention_heads: config.heads as usize,
        num_key_value_heads: config.kv_heads as usize,
        use_flash_attn: false,
        rms_norm_eps: f64::from(config.norm_eps),
        rope_theta: config.rope_base,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: WINDOW,
        tie_word_embeddings: config.tied,
    }
}

fn candle_model(path: &std::path::Path, model: &TestModel) -> (Llama, Cache) {
    let device = Device::Cpu;
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut tensors = HashMap::new();
    for spec in &model.tensors {
        let tensor = content.tensor(&mut file, &spec.name, &device).unwrap().dequantize(&device).unwrap();
        let parts: Vec<&str> = spec.name.split('.').collect();
        let (name, tensor) = match parts[..] {
            ["token_embd", ..] => ("model.embed_tokens.weight".to_owned(), tensor),
            ["output_norm", ..] => ("model.norm.weight".to_owned(), tensor),
            ["output", ..] => ("lm_head.weight".to_owned(), tensor),
            ["blk", layer, part, "weight"] => {
                let (part, tensor) = match part {
                    "attn_q" => ("self_attn.q_proj", unpair(&tensor, model.config.heads as usize)),
                    "attn_k" => ("self_attn.k_proj", unpair(&tensor, model.config.kv_heads as usize)),
                    "attn_v" => ("self_attn.v_proj", tensor),
                    "attn_output" => ("self_attn.o_proj", tensor),
                    "attn_norm" => ("input_layernorm", tensor),
                    "ffn_norm" => ("post_attention_layernorm", tensor),
                    "ffn_gate" => ("mlp.gate_proj", tensor),
                    "ffn_up" => ("mlp.up_proj", tensor),
                    "ffn_down" => ("mlp.down_proj", tensor),
                    other => panic!("unknown tensor {other}"),
                };
                (format!("model.layers.{layer}.{part}.weight"), tensor)
            }
            _ => panic!("unknown tensor {}", spec.name),
        };
        tensors.insert(name, tensor);
    }
    let config = candle_config(&model.config);
    let vars = VarBuilder::from_tensors(tensors, DType::F32, &device);
    (Llama::load(vars, &config).unwrap(), Cache::new(true, DType::F32, &config, &device).unwrap())
}

fn top(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

fn logprob(logits: &[f32], token: u32) -> f64 {
    let highest = f64::from(logits[top(logits)]);
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
    f64::from(logits[token as usize]) - highest - total.ln()
}

#[test]
fn log_probabilities_agree_with_candle() {
    let Some(path) = common::model_path() else { return };
    let model = TestModel::open(&path);
    let tokens = prose();
    assert!(tokens.len() >= WINDOWS * WINDOW);
    let windows: Vec<&[u32]> = tokens.chunks_exact(WINDOW).take(WINDOWS).collect();
    let mut slices = model.load(&[model.config.layers / 2], 128);
    let ours = all_logits(&mut slices, &mut Team::new(2), &windows, 50);
    drop(slices);
    let (llama, mut cache) = candle_model(&path, &model);
    let vocab = model.config.vocab as usize;
    let (mut agree, mut positions, mut differences) = (0, 0, Vec::new());
    // candle gives the last position's logits only, so it goes one position at a time.
    for position in 0..WINDOW {
        let column: Vec<u32> = windows.iter().map(|window| window[position]).collect();
        let input = Tensor::from_vec(column, (WINDOWS, 1), &Device::Cpu).unwrap();
        let theirs = llama.forward(&input, position, &mut cache).unwrap().to_vec2::<f32>().unwrap();
        for (window, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
            let ours = &ours[position * vocab..(position + 1) * vocab];
            positions += 1;
            agree += usize::from(top(ours) == top(theirs));
            if let Some(next) = windows[window].get(position + 1) {
                differences.push((logprob(ours, *next) - logprob(theirs, *next)).abs());
            }
        }
    }
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let most = differences.iter().copied().fold(0.0, f64::max);
    let agreement = f64::from(agree as u32) / f64::from(positions);
    println!(
        "positions {positions}, top-1 agreement {agreement:.5}, |Δlogprob| mean {mean:.3e}, most {most:.3e}"
    );
    assert!(positions >= 2_000 && agreement >= 0.96 && mean <= 0.05);
}

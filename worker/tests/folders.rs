//! Folders of safetensors files against an outside implementation (candle-transformers, which reads the same
//! folder by itself), and against themselves in other slices, chunks and shards.
//!
//! The models are random, of the shapes that the suite of the families has.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod outside;
mod shapes;

use std::path::Path;

use caravan_core::folder::synthetic::SyntheticFolder;
use caravan_core::model::{ModelConfig, RopeFactors, RopePairing, RopeScaling, TensorType, Window};
use caravan_core::plan::Slice;
use caravan_kernels::Team;
use caravan_worker::local::LocalModel;
use caravan_worker::slice::LoadedSlice;
use caravan_worker::weights::Form;
use common::{all_logits, same};
use outside::{Outside, distances, llama_3_2_factors, text};
use serde_json::{Value, json};

/// As a share of the logits' size: weights of 16 and 32 bits, so that only the order of sums differs.
const BOUND: f64 = 2e-5;
const KINDS: [TensorType; 3] = [TensorType::Bf16, TensorType::F16, TensorType::F32];

fn written(folder: &Path, synthetic: &SyntheticFolder) {
    for (name, bytes) in synthetic.files() {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

fn load(model: &LocalModel, cuts: &[u32]) -> Vec<LoadedSlice> {
    let mut first = 0;
    let ends = cuts.iter().copied().chain([model.whole().end]);
    ends.map(|end| {
        let mut slice = model.load(Slice { first, end }, 64, Form::File, &|_| {}).unwrap();
        first = end;
        slice.all_logits(true);
        slice
    })
    .collect()
}

/// `config`: what the reader must make of the folder.
fn check(name: &str, config: ModelConfig, extra: Vec<(&'static str, Value)>, len: usize) {
    let folder = tempfile::tempdir().unwrap();
    let synthetic =
        SyntheticFolder { config: config.clone(), kinds: KINDS.to_vec(), shards: 1, extra, seed: 7 };
    written(folder.path(), &synthetic);
    let model = LocalModel::open(folder.path()).unwrap();
    assert_eq!(*model.config(), config, "{name}");
    let tokens = text(3, len, config.vocab);
    let mut team = Team::new(2);
    let whole = all_logits(&mut load(&model, &[]), &mut team, &[&tokens], len).remove(0);
    let layers = config.layers;
    for (cuts, chunk) in [(vec![1], 17), ((1..layers).collect::<Vec<_>>(), 40)] {
        let other = text(9, len / 2, config.vocab);
        let got = all_logits(&mut load(&model, &cuts), &mut team, &[&other, &tokens], chunk);
        assert!(same(&got[1], &whole), "{name}: cuts {cuts:?}, chunks of {chunk}");
    }
    let magnitude = match config.rope_scaling {
        RopeScaling::Factors { magnitude, .. } => f64::from(magnitude),
        _ => 1.0,
    };
    let theirs = Outside::of_folder(folder.path(), magnitude).logits(&tokens);
    let (median, most) = distances(&whole, &theirs);
    println!("{name}: {} positions, distance median {median:.2e}, most {most:.2e}", theirs.len());
    let most_allowed = if config.experts.is_some() { f64::INFINITY } else { 5.0 * BOUND };
    assert!(median <= BOUND && most <= most_allowed, "{name}: {median:.2e}, {most:.2e}");
    let sharded = tempfile::tempdir().unwrap();
    written(sharded.path(), &SyntheticFolder { shards: 3, ..synthetic });
    let sharded = LocalModel::open(sharded.path()).unwrap();
    let got = all_logits(&mut load(&sharded, &[1]), &mut team, &[&tokens], 23);
    assert!(same(&got[0], &whole), "{name}: in three shards");
}

fn halves(config: ModelConfig) -> ModelConfig {
    ModelConfig { rope_pairing: RopePairing::Halves, ..config }
}

#[test]
fn llama_3_2_with_its_factors() {
    let config = halves(shapes::llama_3_2());
    let factors = RopeFactors::Given(llama_3_2_factors(&config));
    let config = ModelConfig { rope_scaling: RopeScaling::Factors { factors, magnitude: 1.0 }, ..config };
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    check("llama 3.2", config, vec![("rope_scaling", scaling)], 60);
}

#[test]
fn llama_untied() {
    check("llama", halves(ModelConfig { tied: false, ..shapes::small_llama() }), Vec::new(), 60);
}

#[test]
fn mistral_with_its_window() {
    check("mistral", halves(shapes::mistral()), Vec::new(), 70);
}

#[test]
fn qwen2_with_its_biases() {
    check("qwen2.5", shapes::qwen_2_5(), Vec::new(), 60);
}

#[test]
fn qwen3_with_its_head_norms() {
    check("qwen3", shapes::qwen3(), Vec::new(), 60);
}

#[test]
fn qwen3_moe_with_its_experts() {
    check("qwen3 moe", shapes::qwen3_moe(), Vec::new(), 60);
    let mut plain = shapes::qwen3_moe();
    plain.experts.as_mut().unwrap().normalised = false;
    check("qwen3 moe, weights of all experts", plain, Vec::new(), 60);
}

#[test]
fn gemma_3_with_its_norms_and_local_layers() {
    let config = shapes::gemma_3();
    let scale = Some((1.0 / f64::from(config.head_dim).sqrt()) as f32);
    let config = ModelConfig { norm_plus_one: true, attention_scale: scale, ..config };
    check("gemma 3", config.clone(), Vec::new(), 60);
    let window = config.window.map(|window| Window { global_every: 3, ..window });
    let kinds = json!(["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]);
    let config = ModelConfig { window, logit_cap: Some(1.5), ..config };
    let extra = vec![
        ("layer_types", kinds),
        ("final_logit_softcapping", json!(1.5)),
        ("sliding_window_pattern", json!(3)),
    ];
    check("gemma 3, layers by name", config, extra, 50);
}

#[test]
fn phi_3_with_long_factors() {
    let config = shapes::phi_3();
    let factors: Vec<f32> = (0..config.rope_dim / 2).map(|i| 1.0 + i as f32 / 7.0).collect();
    let short = vec![1.0; factors.len()];
    let magnitude = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt() as f32;
    let scaling = json!({"type": "longrope", "short_factor": short, "long_factor": factors});
    let factors = RopeFactors::Given(factors);
    let config = ModelConfig { rope_scaling: RopeScaling::Factors { factors, magnitude }, ..config };
    let extra = vec![("rope_scaling", scaling), ("original_max_position_embeddings", json!(4096))];
    check("phi 3", config, extra, 60);
}

#[test]
fn a_folder_that_can_not_be_used_is_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let why = |folder: &Path| format!("{:#}", LocalModel::open(folder).unwrap_err());
    assert!(why(folder.path()).contains("lacks config.json"));
    let synthetic = SyntheticFolder {
        config: halves(shapes::small_llama()),
        kinds: KINDS.to_vec(),
        shards: 2,
        extra: Vec::new(),
        seed: 1,
    };
    written(folder.path(), &synthetic);
    let shard = folder.path().join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let error = why(folder.path());
    let place = folder.path().display().to_string();
    for part in [&*place, "model-00002-of-00002.safetensors", "cut off"] {
        assert!(error.contains(part), "{error}");
    }
    std::fs::remove_file(&shard).unwrap();
    assert!(why(folder.path()).contains("lacks model-00002-of-00002.safetensors"));
    std::fs::write(&shard, b"").unwrap();
    assert!(why(folder.path()).contains("model-00002-of-00002.safetensors"));
}

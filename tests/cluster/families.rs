//! Random models of every family: served end to end, the same by one worker and by three.
//!
//! Must never use the model file of the other suites: these make their own.

use std::path::{Path, PathBuf};

use caravan_core::gguf::synthetic::{SyntheticModel, SyntheticTensor};
use caravan_core::model::{Experts, Family, ModelConfig, RopePairing, TensorType, Window};

use super::ask::{Answer, Question, ask, ask_all};
use super::harness::{Cluster, Options};

const VOCAB: u32 = 331;

fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        layers: 6,
        hidden: 256,
        heads: 4,
        kv_heads: if family == Family::Phi3 { 4 } else { 2 },
        ffn: 256,
        vocab: VOCAB,
        context: 512,
        tied: family != Family::Gemma3,
        rope_pairing: if family == Family::Llama { RopePairing::Neighbours } else { RopePairing::Halves },
        window: (family == Family::Gemma3).then_some(Window {
            tokens: 32,
            global_every: 3,
            rope_base: Some(10_000.0),
        }),
        experts: (family == Family::Qwen3Moe).then_some(Experts { count: 16, used: 4, normalised: true }),
        ..ModelConfig::default()
    }
}

fn synthetic(family: Family) -> SyntheticModel {
    let kinds = vec![TensorType::F32, TensorType::Q8_0, TensorType::Q4_1];
    SyntheticModel { config: config(family), kinds, seed: 3 }
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, bytes).expect("written");
    file
}

fn questions() -> Vec<Question> {
    let prompt = |seed: u32, len: u32| (0..len).map(|i| (seed * 97 + i * i * 31 + i * 7) % 300).collect();
    let lengths = [1, 5, 33, 100, 130];
    let questions = lengths.into_iter().enumerate().map(|(i, len)| Question {
        prompt: prompt(i as u32, len),
        max_tokens: 40,
        seed: i as u64,
        temperature: if i % 2 == 0 { 0.9 } else { 0.0 },
        top_p: 1.0,
    });
    questions.collect()
}

#[test]
fn every_family_answers_the_same_from_one_worker_and_from_three() {
    let folder = tempfile::tempdir().expect("a folder");
    use Family::*;
    for family in [Llama, Qwen2, Qwen3, Qwen3Moe, Gemma3, Phi3] {
        let file = written(folder.path(), "random.gguf", &synthetic(family).writer().finish());
        let mut answers: Vec<Vec<Answer>> = Vec::new();
        for workers in [1, 3] {
            let options = Options::new(workers, 1).model(&file).flag("--prefill-chunk", "48");
            let cluster = Cluster::start(options);
            answers.push(ask_all(std::slice::from_ref(&cluster.http), &questions(), 3));
        }
        assert!(answers[0].iter().all(|answer| answer.tokens.len() == 40), "{family:?}");
        assert_eq!(answers[0], answers[1], "{family:?}");
        // Not the same token again and again: the comparison would show nothing.
        let tokens: std::collections::BTreeSet<u64> = answers[0][2].tokens.iter().copied().collect();
        assert!(tokens.len() > 5, "{family:?}: {tokens:?}");
    }
}

/// A token whose embedding is so large that everything computed from it is no number.
const SICK: u32 = 310;

#[test]
fn a_request_whose_numbers_overflow_fails_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let spoil = |tensor: &mut SyntheticTensor| {
        let row = tensor.data.len() / VOCAB as usize;
        let numbers = tensor.data[SICK as usize * row..][..row].chunks_exact_mut(4);
        numbers.for_each(|number| number.copy_from_slice(&3e38f32.to_le_bytes()));
    };
    // Gemma multiplies embeddings, and this one is not tied to it.
    // With an output row of zeros the token is never the likeliest: no neighbour says it by itself.
    let mute = |tensor: &mut SyntheticTensor| {
        let row = tensor.data.len() / VOCAB as usize;
        tensor.data[SICK as usize * row..][..row].fill(0);
    };
    let writer = synthetic(Family::Gemma3).writer().edit_tensor("token_embd.weight", spoil);
    let bytes = writer.edit_tensor("output.weight", mute).finish();
    let file = written(folder.path(), "random.gguf", &bytes);
    let cluster = Cluster::start(Options::new(2, 1).model(&file));
    let epoch = || cluster.admin("cluster")["epoch"].as_u64().expect("an epoch");
    let greedy = |question: Question| Question { temperature: 0.0, ..question };
    let well: Vec<Question> = questions().into_iter().map(greedy).collect();
    let (before, want) = (epoch(), ask_all(std::slice::from_ref(&cluster.http), &well, 1));
    let sick = Question { prompt: vec![5, 6, SICK, 7], ..questions()[1].clone() };
    std::thread::scope(|scope| {
        let neighbours = scope.spawn(|| ask_all(std::slice::from_ref(&cluster.http), &well, 3));
        for _ in 0..5 {
            let error = ask(&cluster.http, &sick, |_| {}).err().expect("it can't be answered");
            assert!(error.starts_with("500") && error.contains("not a finite number"), "{error}");
        }
        assert_eq!(neighbours.join().expect("neighbours are answered"), want);
    });
    assert_eq!(epoch(), before, "the pipeline went on");
}

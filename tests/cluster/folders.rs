//! A model as a folder of safetensors files: served end to end, the same by one worker and by three.
//!
//! Must never use the model file of the other suites: these make their own.

use std::path::Path;
use std::process::Command;

use caravan_core::folder::synthetic::SyntheticFolder;
use caravan_core::model::{Experts, Family, ModelConfig, RopePairing, TensorType, Window};
use serde_json::{Value, json};

use super::ask::{Answer, Question, ask_all, model};
use super::harness::{Cluster, Options};

fn synthetic(family: Family, shards: usize) -> SyntheticFolder {
    let config = ModelConfig {
        family,
        layers: 6,
        hidden: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        rope_dim: 32,
        ffn: 128,
        vocab: 331,
        context: 512,
        tied: family == Family::Gemma3,
        rope_pairing: RopePairing::Halves,
        norm_plus_one: family == Family::Gemma3,
        window: (family == Family::Gemma3).then_some(Window {
            tokens: 32,
            global_every: 3,
            rope_base: Some(10_000.0),
        }),
        experts: (family == Family::Qwen3Moe).then_some(Experts { count: 8, used: 2, normalised: true }),
        ..ModelConfig::default()
    };
    let kinds = vec![TensorType::Bf16, TensorType::F16, TensorType::F32];
    SyntheticFolder { config, kinds, shards, extra: Vec::new(), seed: 3 }
}

fn written(folder: &Path, synthetic: &SyntheticFolder) {
    std::fs::create_dir_all(folder).expect("a folder");
    for (name, bytes) in synthetic.files() {
        std::fs::write(folder.join(name), bytes).expect("written");
    }
}

fn questions() -> Vec<Question> {
    let prompt = |seed: u32, len: u32| (0..len).map(|i| (seed * 97 + i * i * 31 + i * 7) % 300).collect();
    let lengths = [1, 5, 60, 130];
    let questions = lengths.into_iter().enumerate().map(|(i, len)| Question {
        prompt: prompt(i as u32, len),
        max_tokens: 40,
        seed: i as u64,
        temperature: if i % 2 == 0 { 0.9 } else { 0.0 },
        top_p: 1.0,
    });
    questions.collect()
}

fn chat(http: &str) -> Value {
    let body = json!({
        "model": model(http), "max_tokens": 8, "temperature": 0, "seed": 1,
        "messages": [{"role": "user", "content": "hello wor <|im_end|>"}],
    });
    let mut response = ureq::post(format!("{http}/v1/chat/completions")).send_json(body).expect("an answer");
    response.body_mut().read_json().expect("JSON")
}

#[test]
fn a_folder_answers_the_same_from_one_worker_and_from_three() {
    let folder = tempfile::tempdir().expect("a folder");
    for family in [Family::Llama, Family::Qwen3Moe, Family::Gemma3] {
        let mut answers: Vec<(Vec<Answer>, Value, Value)> = Vec::new();
        for (workers, shards) in [(1, 1), (3, 4)] {
            let path = folder.path().join(format!("{family:?}-{shards}"));
            written(&path, &synthetic(family, shards));
            let cluster = Cluster::start(Options::new(workers, 1).model(&path));
            assert_eq!(model(&cluster.http), format!("{family:?}-{shards}").to_lowercase());
            let streamed = ask_all(std::slice::from_ref(&cluster.http), &questions(), 3);
            let said = chat(&cluster.http);
            let text = said["choices"][0]["message"]["content"].clone();
            // Control tokens of the template count one each; those in the message are text.
            assert!(said["usage"]["prompt_tokens"].as_u64() > Some(20), "{said}");
            answers.push((streamed, text, said["system_fingerprint"].clone()));
        }
        assert!(answers[0].0.iter().all(|answer| answer.tokens.len() == 40), "{family:?}");
        // Tensors in other files are the same model, to the fingerprint.
        assert_eq!(answers[0], answers[1], "{family:?}");
        let tokens: std::collections::BTreeSet<u64> = answers[0].0[2].tokens.iter().copied().collect();
        assert!(tokens.len() > 5, "{family:?}: {tokens:?}");
    }
}

#[test]
fn a_folder_is_inspected_and_a_spoilt_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    written(&path, &synthetic(Family::Qwen3Moe, 2));
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_caravan")).args(args).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let place = path.to_string_lossy().into_owned();
    let (fine, out, error) = run(&["model", "inspect", &place, "--json"]);
    assert!(fine, "{error}");
    let facts: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (&facts["can be served"], &facts["architecture"]),
        (&json!("yes"), &json!("qwen3moe")),
        "{facts}"
    );
    let bench = [
        "bench",
        "engine",
        "--model",
        &place,
        "--threads",
        "1",
        "--prompt",
        "8",
        "--generate",
        "0",
        "--json",
    ];
    let (fine, out, error) = run(&bench);
    assert!(fine && out.contains("\"prefill\""), "{out}{error}");
    std::fs::remove_file(path.join("model-00002-of-00002.safetensors")).expect("removed");
    for args in [&["model", "inspect", &place][..], &bench] {
        let (fine, _, error) = run(args);
        assert!(
            !fine && error.contains(&place) && error.contains("model-00002-of-00002.safetensors"),
            "{error}"
        );
    }
}

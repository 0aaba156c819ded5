//! `bench engine` and `eval` from outside, on tiny models made here: what they print, and figures that are
//! known beforehand.
//!
//! Must never assert on wall-clock speed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use caravan_core::gguf::synthetic::{TinyLlama, tiny_tokens};
use caravan_core::model::TensorType;
use serde_json::Value;

fn run(folder: &Path, words: &str) -> (Option<i32>, Vec<Value>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caravan"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARAVAN_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", folder).current_dir(folder).stdin(Stdio::null());
    let output = command.args(["--config", ""]).args(words.split_whitespace()).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let lines =
        out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line))).collect();
    (output.status.code(), lines, String::from_utf8(output.stderr).unwrap())
}

fn write(folder: &Path, name: &str, bytes: Vec<u8>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn tiny(kind: TensorType) -> TinyLlama {
    TinyLlama { kind, ..TinyLlama::default() }
}

/// Five hundred different-looking bytes.
fn text() -> String {
    (0..500u32).map(|i| char::from(b' ' + (i * i * 7 % 89) as u8)).collect()
}

#[test]
fn bench_engine_prints_a_line_for_every_shape() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "m.gguf", tiny(TensorType::Q8_0).writer().finish());
    let words = "bench engine --model m.gguf --threads 2 --prompt 40 --generate 6 --batch 1,3 --depth 0,33 --repeat 2 --json";
    let (code, lines, said) = run(folder.path(), words);
    assert_eq!(code, Some(0), "{said}");
    let mut shapes = Vec::new();
    for line in &lines {
        let rate = |key: &str| line["tokens_per_s"][key].as_f64().unwrap();
        assert!(
            rate("min") > 0.0 && rate("min") <= rate("median") && rate("median") <= rate("max"),
            "{line}"
        );
        assert_eq!((&line["runs"], &line["threads"]), (&Value::from(2), &Value::from(2)));
        assert_eq!(line["layers"], serde_json::json!([0, 3]));
        let number = |key: &str| line[key].as_u64().unwrap();
        shapes.push((line["test"].as_str().unwrap(), number("depth"), number("batch"), number("tokens")));
    }
    let both =
        |test, tokens| [(0, 1), (0, 3), (33, 1), (33, 3)].map(|(depth, batch)| (test, depth, batch, tokens));
    assert_eq!(shapes, [both("prefill", 40), both("decode", 6)].concat());
}

#[test]
fn slices_are_measured_wherever_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "m.gguf", tiny(TensorType::Q4_1).writer().finish());
    for layers in ["0..1", "1..2", "2..3", "1..3"] {
        let words = format!(
            "bench engine --model m.gguf --threads 1 --layers {layers} --chunk 7 --repeat 1 \
                             --prompt 20 --generate 3 --batch 2 --depth 9 --json"
        );
        let (code, lines, said) = run(folder.path(), &words);
        assert_eq!((code, lines.len()), (Some(0), 2), "{layers}: {said}");
    }
    let (code, _, said) = run(folder.path(), "bench engine --model m.gguf --layers 1..4 --repeat 1");
    assert!(code == Some(2) && said.contains("3 layers"), "{said}");
    let (code, _, said) = run(folder.path(), "bench engine --model m.gguf --prompt 600 --repeat 1");
    assert!(code == Some(1) && said.contains("512"), "beyond the context: {said}");
    let (code, lines, said) =
        run(folder.path(), "bench engine --model m.gguf --prompt 0 --generate 3 --repeat 1");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        lines.iter().any(|line| line.as_str().is_some_and(|line| line.starts_with("decode"))),
        "{lines:?}"
    );
}

fn eval(folder: &Path, more: &str) -> Value {
    let (code, lines, said) = run(folder, &format!("eval t.txt --model m.gguf --threads 2 {more} --json"));
    assert_eq!(code, Some(0), "{said}");
    lines.last().unwrap().clone()
}

#[test]
fn a_model_of_f32_is_its_own_reference() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "m.gguf", tiny(TensorType::F32).writer().finish());
    write(folder.path(), "t.txt", text().into_bytes());
    let found = eval(folder.path(), "--positions 300 --context 100");
    assert_eq!(found["positions"], 300);
    assert_eq!(found["perplexity"], found["reference_perplexity"]);
    assert_eq!((&found["mean_kl"], &found["top1_agreement"]), (&Value::from(0.0), &Value::from(1.0)));
}

#[test]
fn a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() {
    let folder = tempfile::tempdir().unwrap();
    let writer =
        tiny(TensorType::Q8_0).writer().edit_tensor("output_norm.weight", |tensor| tensor.data.fill(0));
    write(folder.path(), "m.gguf", writer.finish());
    write(folder.path(), "t.txt", text().into_bytes());
    let perplexity = eval(folder.path(), "--positions 50 --context 20")["perplexity"].as_f64().unwrap();
    assert!((perplexity - tiny_tokens().len() as f64).abs() < 1e-9, "{perplexity}");
}

#[test]
fn quantised_models_are_near_their_own_unpacked_weights() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "t.txt", text().into_bytes());
    for kind in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1, TensorType::Q5_1, TensorType::F16] {
        write(folder.path(), "m.gguf", tiny(kind).writer().finish());
        let found = eval(folder.path(), "--positions 200 --context 64");
        let kl = found["mean_kl"].as_f64().unwrap();
        // The bar for real models; a wrong scale or a wrong block would be far beyond it.
        assert!(kl < 0.001, "{kind:?}: {found}");
        assert!(found["top1_agreement"].as_f64().unwrap() > 0.9, "{kind:?}: {found}");
    }
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "m.gguf", tiny(TensorType::Q8_0).writer().finish());
    write(folder.path(), "t.txt", b"only a few".to_vec());
    let (code, lines, said) = run(folder.path(), "eval t.txt --model m.gguf --json");
    assert_eq!((code, lines), (Some(1), Vec::new()));
    assert!(said.contains("positions, not 6000") && said.contains("--positions"), "{said}");
}

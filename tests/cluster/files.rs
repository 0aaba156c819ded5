//! Bar 8, files: damaged GGUF files are refused with words, and a chat template that loops harms nobody.
//!
//! Must never alter the model file itself: every damage is done to a copy.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::ask::{Question, ask, model, prose};
use super::harness::{Cluster, Options, model_file, post};

fn inspect(file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_caravan"))
        .args(["model", "inspect"])
        .arg(file)
        .output()
        .expect("caravan runs")
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, bytes).expect("written");
    file
}

/// Refused: exit code 1 (not a panic's 101, not a signal), and a sentence.
fn assert_refused(output: &Output, what: &str) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {words}");
    assert!(words.len() > 20 && !words.contains("panicked"), "{what}: {words}");
}

#[test]
fn truncated_and_overlong_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(model_file()).expect("the model file");
    for length in [0, 3, 4, 23, 24, 100, 10_000, 1_000_000, 1_785_663, 2_000_000, whole.len() - 1] {
        let file = written(folder.path(), "cut.gguf", &whole[..length]);
        assert_refused(&inspect(&file), &format!("cut to {length}"));
    }
    // Counts (tensors at byte 8, metadata at byte 16) far beyond what the file can hold.
    for (at, what) in [(8, "tensor count"), (16, "metadata count")] {
        let mut bytes = whole[..3_000_000].to_vec();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let file = written(folder.path(), "count.gguf", &bytes);
        assert_refused(&inspect(&file), what);
    }
    let up = Command::new(env!("CARGO_BIN_EXE_caravan"))
        .args(["up", "--workers", "1", "--http", "127.0.0.1:0", "--data"])
        .arg(folder.path().join("data"))
        .arg("--model")
        .arg(written(folder.path(), "half.gguf", &whole[..whole.len() / 2]))
        .output()
        .expect("caravan runs");
    assert_refused(&up, "`up` with half a file");
}

#[test]
fn flipped_bits_never_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(model_file()).expect("the model file");
    let (mut refused, mut read) = (0, 0);
    for round in 0u64..150 {
        let mut bytes = whole.clone();
        let hash = round.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        // A third in the first kilobyte, where counts and types are; the others anywhere in the header.
        let range = if round % 3 == 0 { 1_000 } else { 1_785_000 };
        bytes[(hash % range) as usize] ^= 1 << (hash >> 60 & 7);
        let file = written(folder.path(), "flipped.gguf", &bytes);
        let output = inspect(&file);
        match output.status.code() {
            Some(0) => read += 1,
            _ => {
                assert_refused(&output, &format!("round {round}"));
                refused += 1;
            }
        }
    }
    eprintln!(
        "files: 150 flipped bits: {refused} refused, {read} read (in a text or a number without a rule)"
    );
    assert!(refused > 0);
}

/// A copy of the model whose chat template runs as good as for ever; same length, so nothing moves.
fn with_looping_template(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(model_file()).expect("the model file");
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("a template") + key.len();
    // Type (4 bytes), length (8 bytes), text.
    let length = u64::from_le_bytes(bytes[at + 4..at + 12].try_into().expect("8 bytes")) as usize;
    let mut template = "{% for a in range(9000) %}{% for b in range(9000) %}{% for c in range(9000) %}x\
        {% endfor %}{% endfor %}{% endfor %}"
        .to_owned();
    template.push_str(&" ".repeat(length - template.len()));
    bytes[at + 12..at + 12 + length].copy_from_slice(template.as_bytes());
    written(folder, "looping.gguf", &bytes)
}

#[test]
fn a_looping_template_is_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = with_looping_template(folder.path());
    let cluster = Cluster::start(Options::new(1, 1).model(&file));
    let canary =
        Question { prompt: prose()[..30].to_vec(), max_tokens: 32, seed: 1, temperature: 0.0, top_p: 1.0 };
    let expected = ask(&cluster.http, &canary, |_| {}).expect("undisturbed").answer;
    let model = model(&cluster.http);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| ask(&cluster.http, &canary, |_| {}).expect("the canary").answer);
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
        let (status, text) =
            post(&format!("{}/v1/chat/completions", cluster.http), body.as_bytes()).expect("an answer");
        assert!((400..=500).contains(&status), "{status}: {text}");
        let error: Value = serde_json::from_str(&text).expect("an error body");
        let message = error["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("template"), "{text}");
        assert_eq!(expected, beside.join().expect("the canary"));
    });
}

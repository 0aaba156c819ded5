//! `caravan model`: fetches, lists and inspects model files.
//!
//! Must never read the weights to inspect a file: its header says it all.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use caravan_core::gguf::{Gguf, Value};
use serde_json::json;

use crate::catalogue::{Cache, Catalogue, as_file, obtain};
use crate::cli::ModelCommand;
use crate::term::{Term, print, size, table};

pub fn run(command: ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::Pull { name, from, data } => pull(&name, from.as_deref(), &data),
        ModelCommand::List { data, json } => list(&data, json),
        ModelCommand::Inspect { model, data, json } => inspect(&model, &data, json),
    }
}

/// Prints the path on standard output, alone.
fn pull(name: &str, from: Option<&str>, data: &Path) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(data)?;
    let path = obtain(catalogue.find(name)?, &Cache::of(data), from, &Term::new())?;
    print(&format!("{}\n", path.display()))
}

fn list(data: &Path, as_json: bool) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(data)?;
    let cache = Cache::of(data);
    let head = ["MODEL", "SIZE", "LICENCE", "CACHED", "SOURCES"];
    let mut rows = vec![head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>()];
    for model in catalogue.models() {
        let record = cache.find(model);
        let sources: Vec<String> = model.sources.iter().map(ToString::to_string).collect();
        if as_json {
            let cached = record.as_ref().map(|_| cache.file(model));
            let line = json!({"name": model.name, "aliases": model.aliases, "bytes": model.bytes, "sha256": model.sha256,
                    "licence": model.licence, "path": cached, "sources": sources});
            print(&format!("{line}\n"))?;
        }
        rows.push(vec![
            model.name.clone(),
            size(model.bytes),
            model.licence.clone(),
            record.map_or("no".to_owned(), |record| format!("yes, from {}", record.source)),
            sources.join("; "),
        ]);
    }
    if as_json { Ok(()) } else { print(&table(&rows)) }
}

fn inspect(text: &str, data: &Path, as_json: bool) -> anyhow::Result<()> {
    let (path, sha256) = match as_file(text)? {
        Some(file) => (file.path, None),
        None => {
            let catalogue = Catalogue::load(data)?;
            let model = catalogue.find(text)?;
            let cache = Cache::of(data);
            let record = cache.find(model).with_context(|| {
                format!("{} is not cached; fetch it first: caravan model pull {}", model.name, model.name)
            })?;
            (cache.file(model), Some(record.sha256))
        }
    };
    let (header, bytes) = caravan_coordinator::model_files::inspect(&path)?;
    let what = if path.is_dir() { "folder" } else { "file" };
    let mut facts = vec![(what, path.display().to_string()), ("size", size(bytes))];
    facts.extend(sha256.map(|digest| ("sha256", digest)));
    facts.extend(header_facts(&header));
    if as_json {
        let object: serde_json::Map<String, serde_json::Value> =
            facts.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        return print(&format!("{}\n", serde_json::Value::Object(object)));
    }
    let rows: Vec<Vec<String>> =
        facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    print(&table(&rows))
}

/// What a header says, in words.
fn header_facts(header: &Gguf) -> Vec<(&'static str, String)> {
    let architecture = shown(header.metadata.get("general.architecture"));
    let own = |key: &str| shown(header.metadata.get(&format!("{architecture}.{key}")));
    let mut kinds: BTreeMap<&'static str, (usize, u64)> = BTreeMap::new();
    for tensor in &header.tensors {
        let entry = kinds.entry(tensor.kind.name()).or_default();
        *entry = (entry.0 + 1, entry.1.saturating_add(tensor.bytes));
    }
    let kinds: Vec<String> =
        kinds.iter().map(|(kind, (count, bytes))| format!("{count} {kind} ({})", size(*bytes))).collect();
    let served = match header.config() {
        Ok(_) => "yes".to_owned(),
        Err(error) => format!("no: {error}"),
    };
    vec![
        ("name", shown(header.metadata.get("general.name"))),
        ("architecture", architecture.clone()),
        ("can be served", served),
        ("layers", own("block_count")),
        ("hidden", own("embedding_length")),
        ("feed-forward", own("feed_forward_length")),
        (
            "heads",
            format!(
                "{} ({} for keys and values)",
                own("attention.head_count"),
                own("attention.head_count_kv")
            ),
        ),
        ("context", format!("{} tokens", own("context_length"))),
        ("tensors", kinds.join(", ")),
        ("tokenizer", tokenizer(header)),
        ("chat template", template(header)),
        ("licence", shown(header.metadata.get("general.license"))),
        ("header", size(header.data_offset)),
    ]
}

fn tokenizer(header: &Gguf) -> String {
    let of = |key: &str| header.metadata.get(&format!("tokenizer.ggml.{key}"));
    let tokens = match of("tokens") {
        Some(Value::Texts(tokens)) => tokens.len().to_string(),
        _ => "no".to_owned(),
    };
    format!("{} ({}), {tokens} tokens", shown(of("model")), shown(of("pre")))
}

fn template(header: &Gguf) -> String {
    match header.metadata.get("tokenizer.chat_template") {
        Some(Value::Text(text)) => format!("{} characters", text.chars().count()),
        _ => "none: only completions, no chat".to_owned(),
    }
}

/// Text without the quotes that it has in errors.
fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::Text(text)) => text.clone(),
        other => other.map_or_else(|| "-".to_owned(), ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_header_is_told_in_words() {
        let text = |text: &str| Value::Text(text.to_owned());
        let metadata = BTreeMap::from([
            ("general.architecture".to_owned(), text("llama")),
            ("llama.block_count".to_owned(), Value::U64(30)),
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            ("tokenizer.chat_template".to_owned(), text("{{ x }}")),
        ]);
        let header = Gguf { metadata, tensors: Vec::new(), data_offset: 1_800_000 };
        let facts: BTreeMap<&str, String> = header_facts(&header).into_iter().collect();
        assert_eq!(facts["architecture"], "llama");
        assert_eq!(facts["layers"], "30");
        assert_eq!(facts["chat template"], "7 characters");
        assert_eq!(facts["tokenizer"], "gpt2 (-), no tokens");
        assert!(facts["can be served"].starts_with("no: "), "it has no tensors");
    }
}

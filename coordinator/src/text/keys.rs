//! The tokenizer's keys in a model file's header, checked.
//!
//! Must never let through a value of another type or a token that the vocabulary does not have.

use anyhow::{Context, bail, ensure};
use caravan_core::gguf::{Gguf, Texts, Value};

/// `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const BYTE: i64 = 6;
}

pub(super) fn texts<'a>(gguf: &'a Gguf, key: &str) -> anyhow::Result<&'a Texts> {
    let value = gguf.metadata.get(key).with_context(|| format!("the file lacks `{key}`"))?;
    value.as_texts().with_context(|| format!("`{key}` must be an array of strings"))
}

pub(super) fn text<'a>(gguf: &'a Gguf, key: &str) -> anyhow::Result<&'a str> {
    let value = gguf.metadata.get(key).with_context(|| format!("the file lacks `{key}`"))?;
    value.as_text().with_context(|| format!("`{key}` must be a string"))
}

/// A token id of the file, checked; `None` if the key is not there.
pub(super) fn id(gguf: &Gguf, key: &str, vocab: usize) -> anyhow::Result<Option<u32>> {
    let Some(value) = gguf.metadata.get(key) else {
        return Ok(None);
    };
    let id = value.as_u64().filter(|id| *id < vocab as u64).and_then(|id| u32::try_from(id).ok());
    id.map(Some).with_context(|| format!("`{key}` = {value} is not one of the {vocab} tokens"))
}

/// A list of token ids, checked; `None` if the key is not there.
pub(super) fn ids<'a>(gguf: &'a Gguf, key: &str, vocab: usize) -> anyhow::Result<Option<&'a [u64]>> {
    match gguf.metadata.get(key) {
        None => Ok(None),
        Some(Value::Uints(ids)) if ids.iter().all(|id| *id < vocab as u64) => Ok(Some(ids)),
        Some(_) => bail!("`{key}` must be a list of the file's {vocab} tokens"),
    }
}

/// The type of each token; all normal if the file has none.
pub(super) fn token_types(gguf: &Gguf, count: usize) -> anyhow::Result<Vec<i64>> {
    let types = match gguf.metadata.get("tokenizer.ggml.token_type") {
        None => vec![1; count],
        Some(Value::Ints(types)) => types.clone(),
        Some(Value::Uints(types)) => types.iter().map(|kind| i64::try_from(*kind).unwrap_or(0)).collect(),
        Some(_) => bail!("`tokenizer.ggml.token_type` must be an array of integers"),
    };
    ensure!(types.len() == count, "{} token types for {count} tokens", types.len());
    if let Some(kind) = types.iter().find(|kind| !(1..=6).contains(*kind)) {
        bail!("`tokenizer.ggml.token_type` has an unknown type {kind}");
    }
    Ok(types)
}

/// A truth value of the file; `default` if the key is not there.
pub(super) fn flag(gguf: &Gguf, key: &str, default: bool) -> anyhow::Result<bool> {
    match gguf.metadata.get(key) {
        None => Ok(default),
        Some(value) => value.as_bool().with_context(|| format!("`{key}` must be true or false")),
    }
}

/// The score of each token, finite.
pub(super) fn scores(gguf: &Gguf, count: usize) -> anyhow::Result<&[f64]> {
    let key = "tokenizer.ggml.scores";
    let Some(Value::Floats(scores)) = gguf.metadata.get(key) else {
        bail!("the file lacks `{key}`, or it is no array of numbers");
    };
    ensure!(scores.len() == count, "{} scores for {count} tokens", scores.len());
    ensure!(scores.iter().all(|score| score.is_finite()), "`{key}` has a score that is not a number");
    Ok(scores)
}

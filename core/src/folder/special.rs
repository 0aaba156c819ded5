//! What the smaller files say of a model's text: its first and last tokens, and its chat template.
//!
//! Must never name a token that the vocabulary does not have.

use serde_json::{Map, Value as Json};

use super::json::{self, Object};
use super::{
    CONFIG, Files, FolderError, GENERATION_CONFIG, Metadata, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, bad,
    config, shown,
};
use crate::gguf::Value;
use crate::limits;

/// Classes of tokenizers that put a first token by their own settings, whatever `tokenizer.json` says.
const SETTING_THEIR_OWN: [&str; 4] =
    ["LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"];

/// Adds to the tokenizer's keys. `config`: of `config.json`.
pub(super) fn add(
    files: &mut Files,
    config: &Map<String, Json>,
    metadata: &mut Metadata,
) -> Result<(), FolderError> {
    let mut read = |file: &str| match files.optional(file, limits::FOLDER_JSON_BYTES)? {
        None => Ok(Map::new()),
        Some(bytes) => json::parse(file, &bytes),
    };
    let (tokenizer, generation) = (read(TOKENIZER_CONFIG)?, read(GENERATION_CONFIG)?);
    let tokenizer = Object::new(TOKENIZER_CONFIG, &tokenizer);
    first(tokenizer, metadata)?;
    let own_end = named(tokenizer, "eos_token", metadata)?;
    let mut ends = match generation.get("eos_token_id").is_some_and(|value| !value.is_null()) {
        true => config::ends(GENERATION_CONFIG, &generation)?,
        false => config::ends(CONFIG, config)?,
    };
    let count = count(metadata);
    if let Some(id) = ends.iter().find(|id| **id >= count) {
        return bad(format!("\"eos_token_id\" {id} is not one of the model's {count} tokens"));
    }
    if let Some(end) = own_end.or(ends.first().copied()) {
        metadata.insert("tokenizer.ggml.eos_token_id".to_owned(), Value::U64(end));
    }
    ends.sort_unstable();
    ends.dedup();
    metadata.insert("tokenizer.caravan.stop_token_ids".to_owned(), Value::Uints(ends));
    if let Some(template) = template(files, tokenizer)? {
        metadata.insert("tokenizer.chat_template".to_owned(), Value::Text(template));
    }
    Ok(())
}

fn first(tokenizer: Object, metadata: &mut Metadata) -> Result<(), FolderError> {
    let id = "tokenizer.ggml.bos_token_id";
    let flag = "tokenizer.ggml.add_bos_token";
    let put = metadata.get(id).and_then(Value::as_u64);
    let named = named(tokenizer, "bos_token", metadata)?;
    match (put, named) {
        (Some(put), Some(named)) if put != named => {
            return bad(format!(
                "{TOKENIZER} begins a text with token {put}, and {TOKENIZER_CONFIG} names token {named} as \"bos_token\": \
                 they must agree"
            ));
        }
        (None, Some(named)) => {
            metadata.insert(id.to_owned(), Value::U64(named));
        }
        _ => {}
    }
    let class = tokenizer.text("tokenizer_class")?.unwrap_or_default();
    if SETTING_THEIR_OWN.contains(&class) && tokenizer.get("add_bos_token").is_some() {
        let wanted = tokenizer.flag("add_bos_token", true)?;
        if wanted && !metadata.contains_key(id) {
            return tokenizer.missing("bos_token");
        }
        metadata.insert(flag.to_owned(), Value::Bool(wanted));
    }
    Ok(())
}

/// The number of a token that is named by its text, or by an object with it.
fn named(tokenizer: Object, key: &str, metadata: &Metadata) -> Result<Option<u64>, FolderError> {
    let text = match tokenizer.get(key) {
        None => return Ok(None),
        Some(Json::String(text)) => text,
        Some(Json::Object(token)) => match token.get("content") {
            Some(Json::String(text)) => text,
            _ => return tokenizer.wrong(key, "a token's text, or an object with it"),
        },
        Some(_) => return tokenizer.wrong(key, "a token's text, or an object with it"),
    };
    let tokens = metadata.get("tokenizer.ggml.tokens").and_then(Value::as_texts);
    let found = tokens.and_then(|tokens| tokens.iter().position(|token| token == text));
    match found {
        Some(id) => Ok(Some(id as u64)),
        None => {
            bad(format!("{TOKENIZER_CONFIG}: {key:?} is {}, which {TOKENIZER} does not have", shown(text)))
        }
    }
}

fn count(metadata: &Metadata) -> u64 {
    let tokens = metadata.get("tokenizer.ggml.tokens").and_then(Value::as_texts);
    tokens.map_or(0, |tokens| tokens.len() as u64)
}

/// A file of its own, or the key of `tokenizer_config.json`: a string, or several with names.
fn template(files: &mut Files, tokenizer: Object) -> Result<Option<String>, FolderError> {
    if let Some(bytes) = files.optional(TEMPLATE, limits::TEMPLATE_SOURCE_BYTES as u64)? {
        return match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => bad(format!("{TEMPLATE} is not UTF-8: fetch it again")),
        };
    }
    let several = match tokenizer.get("chat_template") {
        None => return Ok(None),
        Some(Json::String(text)) => return Ok(Some(text.clone())),
        Some(Json::Array(several)) => several,
        Some(_) => return tokenizer.wrong("chat_template", "a string or a list"),
    };
    let field = |template: &Json, key: &str| template.get(key).and_then(Json::as_str).map(str::to_owned);
    let default = several.iter().find(|template| field(template, "name").as_deref() == Some("default"));
    match default.and_then(|template| field(template, "template")) {
        Some(text) => Ok(Some(text)),
        None => tokenizer.wrong("chat_template", "a string, or a list with one named \"default\""),
    }
}

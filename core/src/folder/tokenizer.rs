//! `tokenizer.json` to the tokenizer's keys of a header: byte-level BPE, and pieces that are merged by rank with
//! bytes for what the vocabulary lacks.
//!
//! Must never pass over a setting that changes a token.

use serde::Deserialize;
use serde_json::Value as Json;

use super::json::Object;
use super::normal::{self, First, Steps};
use super::vocabulary::{Added, Merge, Tokens, Vocab, tokens};
use super::{FolderError, Metadata, TOKENIZER, bad, shown};
use crate::gguf::{Texts, Value};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
    post_processor: Option<Json>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<Merge>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// `rows`: of the embedding; the vocabulary may be smaller.
pub(super) fn metadata(bytes: &[u8], rows: u32) -> Result<Metadata, FolderError> {
    let file: File = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(error) => return bad(format!("{TOKENIZER} can't be used ({error})")),
    };
    let steps = normal::steps(file.normalizer.as_ref(), file.pre_tokenizer.as_ref())?;
    let mut out = Metadata::new();
    let put = |out: &mut Metadata, key: &str, value: Value| out.insert(format!("tokenizer.{key}"), value);
    first_token(file.post_processor.as_ref(), &mut out)?;
    check_model(&file.model, &steps)?;
    check_added(&file.added_tokens, &steps)?;
    let Model { vocab: Vocab(Some(vocab)), merges, ignore_merges, .. } = file.model else {
        return bad(format!("{TOKENIZER}: the key \"vocab\" must be an object"));
    };
    let Tokens { texts, types, strip } = tokens(vocab, &file.added_tokens, rows, !steps.byte_level)?;
    let model = if steps.byte_level { "gpt2" } else { "caravan-pieces" };
    put(&mut out, "ggml.model", Value::Text(model.to_owned()));
    // Not one of the names that GGUF files have: the steps are written out.
    put(&mut out, "ggml.pre", Value::Text(TOKENIZER.to_owned()));
    put(&mut out, "ggml.tokens", Value::Texts(collected(texts.iter())?));
    put(&mut out, "ggml.token_type", Value::Ints(types));
    put(&mut out, "ggml.merges", Value::Texts(collected(merges.iter().map(|Merge(merge)| merge))?));
    put(&mut out, "caravan.strip_token_ids", Value::Uints(strip));
    put(&mut out, "caravan.composed", Value::Bool(steps.composed));
    if steps.byte_level {
        put(&mut out, "caravan.whole_words", Value::Bool(ignore_merges));
        put(&mut out, "caravan.splits", Value::Texts(collected(steps.splits.iter())?));
    } else {
        put(&mut out, "caravan.first_space", Value::Text(steps.first.name().to_owned()));
    }
    Ok(out)
}

fn collected<'a>(texts: impl Iterator<Item = &'a String>) -> Result<Texts, FolderError> {
    let mut all = Texts::default();
    for text in texts {
        all.push(text)?;
    }
    Ok(all)
}

fn check_model(model: &Model, steps: &Steps) -> Result<(), FolderError> {
    let asks = |what: &str| bad(format!("{TOKENIZER}: its model has {what}, which is not supported"));
    match model.kind.as_deref() {
        None | Some("BPE") => {}
        Some(kind) => return asks(&format!("the type {} (BPE is)", shown(kind))),
    }
    if model.dropout.is_some_and(|share| share != 0.0) {
        return asks("a \"dropout\"");
    }
    for (key, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
            return asks(&format!("a {key:?}"));
        }
    }
    match steps.byte_level {
        true if model.byte_fallback => asks("\"byte_fallback\" with a byte-level step"),
        true => Ok(()),
        false if !model.byte_fallback => asks("neither a byte-level step nor \"byte_fallback\""),
        false if model.ignore_merges => asks("\"ignore_merges\" without a byte-level step"),
        false if !steps.spaces => asks("pieces whose spaces are not replaced"),
        false => Ok(()),
    }
}

fn check_added(added: &[Added], steps: &Steps) -> Result<(), FolderError> {
    for token in added {
        let asks = |what: &str| {
            bad(format!(
                "{TOKENIZER}: the added token {} has {what:?}, which is not supported",
                shown(&token.content)
            ))
        };
        if token.single_word {
            return asks("single_word");
        }
        if token.lstrip {
            return asks("lstrip");
        }
        // Looked for in the normalised text, as which it would itself look otherwise.
        let changed = steps.spaces && token.content.contains(' ') || steps.first == First::Parts;
        if token.normalized && (changed || steps.composed && !token.content.is_ascii()) {
            return asks("normalized");
        }
    }
    Ok(())
}

/// The token that the post-processor puts before a text.
fn first_token(post_processor: Option<&Json>, out: &mut Metadata) -> Result<(), FolderError> {
    let mut first = None;
    for step in normal::flat(post_processor, "processors")? {
        let step = Object::new(TOKENIZER, step);
        match step.text("type")? {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => first = template(step)?,
            Some(_) => return step.unsupported("type"),
            None => return step.missing("type"),
        }
    }
    out.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(first.is_some()));
    if let Some(id) = first {
        out.insert("tokenizer.ggml.bos_token_id".to_owned(), Value::U64(id));
    }
    Ok(())
}

/// The one token before the text, if there is one.
fn template<'a>(step: Object<'a>) -> Result<Option<u64>, FolderError> {
    let Some(parts) = step.list("single")? else {
        return step.missing("single");
    };
    // The text itself is no special token.
    let name = |part: &'a Json| part.get("SpecialToken").map(|token| token.get("id").and_then(Json::as_str));
    let names: Vec<Option<Option<&str>>> = parts.iter().map(name).collect();
    match names[..] {
        [None] => Ok(None),
        [Some(Some(name)), None] => {
            let Some(tokens) = step.object("special_tokens")? else {
                return step.missing("special_tokens");
            };
            let Some(token) = tokens.object(name)? else {
                return tokens.missing(name);
            };
            match token.list("ids")?.map(|ids| ids.iter().map(Json::as_u64).collect::<Vec<_>>()).as_deref() {
                Some([Some(id)]) => Ok(Some(*id)),
                _ => token.wrong("ids", "a list of one token"),
            }
        }
        _ => step.unsupported("single"),
    }
}

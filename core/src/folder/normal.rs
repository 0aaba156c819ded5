//! What `tokenizer.json` does to a text before tokens are looked for: its `normalizer` and `pre_tokenizer`.
//!
//! Must never pass over a step that it does not know.

use serde_json::{Map, Value as Json, json};

use super::json::{Object, brief};
use super::{FolderError, TOKENIZER, bad, shown};

/// Stands for a space inside pieces.
pub(super) const SPACE: &str = "\u{2581}";
/// GPT-2's expression, which the step `ByteLevel` has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Steps before the model, whatever its kind.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Steps {
    /// Canonical composition (NFC).
    pub composed: bool,
    /// Spaces become `SPACE`.
    pub spaces: bool,
    /// Where a `SPACE` is put first.
    pub first: First,
    /// Bytes are written as characters: a byte-level vocabulary.
    pub byte_level: bool,
    /// What the text is cut by, one after the other: expressions, or the names `DIGITS` and `DIGIT_RUNS`.
    pub splits: Vec<String>,
}

/// Where a space is put first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum First {
    #[default]
    Never,
    /// Before every part of the text that is none of the added tokens.
    Parts,
    /// As `Parts`, unless the part begins with one.
    PartsWithout,
    /// Before the text, unless it begins with one or with an added token.
    TextWithout,
}

impl First {
    pub fn name(self) -> &'static str {
        match self {
            First::Never => "never",
            First::Parts => "parts",
            First::PartsWithout => "parts-without",
            First::TextWithout => "text-without",
        }
    }
}

pub(super) const DIGITS: &str = "digits";
pub(super) const DIGIT_RUNS: &str = "digit-runs";

/// Reads both; `null` is no step.
pub(super) fn steps(normalizer: Option<&Json>, pre_tokenizer: Option<&Json>) -> Result<Steps, FolderError> {
    let mut steps = Steps::default();
    for part in flat(normalizer, "normalizers")? {
        normalizer_step(Object::new(TOKENIZER, part), &mut steps)?;
    }
    for part in flat(pre_tokenizer, "pretokenizers")? {
        split_step(Object::new(TOKENIZER, part), &mut steps)?;
    }
    if steps.byte_level && (steps.spaces || steps.first != First::Never) {
        return bad(format!("{TOKENIZER} replaces spaces before a byte-level step, which is not supported"));
    }
    if !steps.byte_level && !steps.splits.is_empty() {
        return bad(format!(
            "{TOKENIZER} cuts the text by {} without a byte-level step, which is not supported",
            shown(&steps.splits[0])
        ));
    }
    Ok(steps)
}

/// One step, or those of a `Sequence`.
pub(super) fn flat<'a>(
    step: Option<&'a Json>,
    list: &str,
) -> Result<Vec<&'a Map<String, Json>>, FolderError> {
    let step = match step {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Object(step)) => step,
        Some(other) => return bad(format!("{TOKENIZER}: a step must be an object, not {}", brief(other))),
    };
    if step.get("type").and_then(Json::as_str) != Some("Sequence") {
        return Ok(vec![step]);
    }
    let Some(parts) = Object::new(TOKENIZER, step).list(list)? else {
        return Object::new(TOKENIZER, step).missing(list);
    };
    let mut found = Vec::new();
    for part in parts {
        match part {
            Json::Object(part) if part.get("type").and_then(Json::as_str) != Some("Sequence") => {
                found.push(part);
            }
            other => return bad(format!("{TOKENIZER}: a step inside a sequence can't be {}", brief(other))),
        }
    }
    Ok(found)
}

fn normalizer_step(step: Object, steps: &mut Steps) -> Result<(), FolderError> {
    match step.text("type")? {
        Some("NFC") => steps.composed = true,
        Some("Prepend") => {
            step.only("prepend", &json!(SPACE))?;
            steps.first = First::Parts;
        }
        Some("Replace") => {
            step.only("content", &json!(SPACE))?;
            step.only("pattern", &json!({"String": " "}))?;
            steps.spaces = true;
        }
        Some(_) => return step.unsupported("type"),
        None => return step.missing("type"),
    }
    Ok(())
}

fn split_step(step: Object, steps: &mut Steps) -> Result<(), FolderError> {
    if steps.byte_level {
        return bad(format!("{TOKENIZER} has a step behind the byte-level one, which is not supported"));
    }
    match step.text("type")? {
        Some("ByteLevel") => {
            step.only("add_prefix_space", &json!(false))?;
            if step.flag("use_regex", true)? {
                steps.splits.push(GPT2.to_owned());
            }
            steps.byte_level = true;
        }
        Some("Digits") => {
            let each = step.flag("individual_digits", false)?;
            steps.splits.push(if each { DIGITS } else { DIGIT_RUNS }.to_owned());
        }
        Some("Split") => return split(step, steps),
        Some("Metaspace") => return metaspace(step, steps),
        Some(_) => return step.unsupported("type"),
        None => return step.missing("type"),
    }
    Ok(())
}

fn split(step: Object, steps: &mut Steps) -> Result<(), FolderError> {
    let Some(pattern) = step.object("pattern")? else {
        return step.missing("pattern");
    };
    match (pattern.text("Regex")?, pattern.text("String")?) {
        // No space is left to cut at.
        (None, Some(" ")) if steps.spaces => Ok(()),
        (Some(regex), None) => {
            step.only("behavior", &json!("Isolated"))?;
            step.only("invert", &json!(false))?;
            steps.splits.push(regex.to_owned());
            Ok(())
        }
        _ => step.unsupported("pattern"),
    }
}

fn metaspace(step: Object, steps: &mut Steps) -> Result<(), FolderError> {
    step.only("replacement", &json!(SPACE))?;
    // Without cutting there; without the key it is cut.
    if step.flag("split", true)? {
        return step.unsupported("split");
    }
    let old = step.flag("add_prefix_space", true)?;
    steps.spaces = true;
    steps.first = match step.text("prepend_scheme")? {
        None if !old => First::Never,
        None | Some("always") => First::PartsWithout,
        Some("first") => First::TextWithout,
        Some("never") => First::Never,
        Some(_) => return step.unsupported("prepend_scheme"),
    };
    Ok(())
}

//! Items of a response's input: checked, kept in a form of their own, and made into messages.
//!
//! Must never drop an item that says something: what has no place in a prompt is refused by name.

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde::{Deserialize, Serialize};

use super::super::fields::{Field, Fields, clip, invalid, unsupported};
use super::super::params::one_of;
use crate::text::ChatMessage;

/// One item that a client sent, or that a response put out before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    Message { role: Role, parts: Vec<String> },
    Reasoning { summary: Vec<String>, content: Vec<String> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    User,
    Assistant,
    System,
    Developer,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::System => "system",
            Role::Developer => "developer",
        }
    }
}

/// The conversation that items make, in their order. Reasoning of earlier turns is not shown to the
/// model again, as the templates of models that reason have it.
pub fn messages(items: &[Item]) -> Vec<ChatMessage> {
    let mut messages = Vec::new();
    for item in items {
        match item {
            Item::Message { role, parts } => {
                let role = if *role == Role::Developer { Role::System } else { *role };
                messages.push(ChatMessage { role: role.name().to_owned(), content: parts.concat() });
            }
            Item::Reasoning { .. } => {}
        }
    }
    messages
}

/// `input`: a string, or a list of items.
pub fn input(field: Field) -> Result<Vec<Item>, Refusal> {
    let field = field.required()?;
    if field.is_string() {
        let text = field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
        return Ok(vec![Item::Message { role: Role::User, parts: vec![text] }]);
    }
    if !field.is_array() {
        return Err(field.mistyped("a string or an array of items"));
    }
    let path = field.path().to_owned();
    let items = field.array(limits::MESSAGES)?.unwrap_or_default();
    if items.is_empty() {
        return Err(invalid(&path, "must hold at least one item"));
    }
    let items = items.into_iter().map(item).collect::<Result<Vec<Item>, Refusal>>()?;
    if items.iter().all(|item| matches!(item, Item::Reasoning { .. })) {
        return Err(invalid(&path, "must hold at least one item that is not reasoning"));
    }
    Ok(items)
}

fn item(field: Field) -> Result<Item, Refusal> {
    let path = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Err(invalid(&path, "must be an object")) };
    let kind = fields.take("type");
    let kind_path = kind.path().to_owned();
    // Ids and states are the server's own words, sent back with what it put out.
    fields.take("id").string(limits::CLIENT_ID_BYTES)?;
    one_of(fields.take("status"), &["in_progress", "completed", "incomplete"])?;
    match kind.string(limits::HTTP_BODY_BYTES)?.as_deref() {
        None | Some("message") => message(fields),
        Some("reasoning") => reasoning(fields),
        Some("item_reference") => {
            Err(unsupported(&kind_path, "\"item_reference\" is not supported: this server keeps no items"))
        }
        Some(other) => {
            let why = format!("\"{}\" is not supported by this server yet", clip(other));
            Err(unsupported(&kind_path, why))
        }
    }
}

fn message(mut fields: Fields) -> Result<Item, Refusal> {
    let role = fields.take("role").required()?;
    let path = role.path().to_owned();
    let role = match role.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default().as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        "developer" => Role::Developer,
        other => {
            let why = "is not a role; there are system, developer, user and assistant";
            return Err(invalid(&path, format!("\"{}\" {why}", clip(other))));
        }
    };
    one_of(fields.take("phase"), &["commentary", "final_answer"])?;
    let parts = content(fields.take("content").required()?)?;
    fields.finish(&[])?;
    Ok(Item::Message { role, parts })
}

/// A string, or text parts.
fn content(field: Field) -> Result<Vec<String>, Refusal> {
    if field.is_string() {
        return Ok(field.string(limits::HTTP_BODY_BYTES)?.into_iter().collect());
    }
    if !field.is_array() {
        return Err(field.mistyped("a string or an array of text parts"));
    }
    let path = field.path().to_owned();
    let parts = field.array(limits::CONTENT_PARTS)?.unwrap_or_default();
    if parts.is_empty() {
        return Err(invalid(&path, "must hold at least one part"));
    }
    parts.into_iter().map(|part| text_part(part, &["input_text", "output_text", "text"])).collect()
}

/// The text of a part of one of these types.
fn text_part(part: Field, kinds: &[&str]) -> Result<String, Refusal> {
    let path = part.path().to_owned();
    let Some(mut fields) = part.object()? else { return Err(invalid(&path, "must be an object")) };
    let kind = fields.take("type").required()?;
    let kind_path = kind.path().to_owned();
    let kind = kind.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    if !kinds.contains(&kind.as_str()) {
        let why = format!("\"{}\" is not supported by this server yet, only {kinds:?}", clip(&kind));
        return Err(unsupported(&kind_path, why));
    }
    let text = fields.take("text").required()?.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    if kind == "output_text" {
        // What this server said of its own output; it is no part of the prompt.
        for own in ["annotations", "logprobs"] {
            fields.take(own).array(limits::CONTEXT_TOKENS as usize)?;
        }
    }
    fields.finish(&[])?;
    Ok(text)
}

fn reasoning(mut fields: Fields) -> Result<Item, Refusal> {
    let mut texts = |name: &str, kind: &str| -> Result<Vec<String>, Refusal> {
        let parts = fields.take(name).array(limits::CONTENT_PARTS)?.unwrap_or_default();
        parts.into_iter().map(|part| text_part(part, &[kind])).collect()
    };
    let summary = texts("summary", "summary_text")?;
    let content = texts("content", "reasoning_text")?;
    fields.take("encrypted_content").refuse("is not supported: this server encrypts nothing")?;
    fields.finish(&[])?;
    Ok(Item::Reasoning { summary, content })
}

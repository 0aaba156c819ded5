//! `POST /v1/chat/completions`: its parameters and the shapes of its answers.
//!
//! Must never tokenise or wait; `job` and `stream` do.

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Value, json};

use super::answer::{Piece, TokenInfo};
use super::fields::{Field, Fields, clip, invalid, unsupported};
use super::params::{self, Common, UNSUPPORTED};
use super::shape::{Shape, finite, token_ids};
use crate::text::ChatMessage;

/// A conversation to go on with, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub common: Common,
    pub messages: Vec<ChatMessage>,
}

impl ChatRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<ChatRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let mut common = params::common(&mut fields, 1)?;
        let messages = messages(fields.take("messages"))?;
        let logprobs = fields.take("logprobs").boolean()?.unwrap_or(false);
        let top = params::integer(fields.take("top_logprobs"), 0, i128::from(limits::TOP_LOGPROBS))?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            return Err(invalid("top_logprobs", "needs `logprobs`: true"));
        }
        if logprobs {
            common.sampling.logprobs = Some(top.and_then(|top| u8::try_from(top).ok()).unwrap_or(0));
        }
        fields.finish(UNSUPPORTED)?;
        Ok(ChatRequest { common, messages })
    }
}

/// `messages` of a chat.
pub fn messages(field: Field) -> Result<Vec<ChatMessage>, Refusal> {
    let items = field.required()?.array(limits::MESSAGES)?.unwrap_or_default();
    if items.is_empty() {
        return Err(invalid("messages", "must hold at least one message"));
    }
    items.into_iter().map(message).collect()
}

fn message(field: Field) -> Result<ChatMessage, Refusal> {
    let path = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Err(invalid(&path, "must be an object")) };
    let role = role(&path, fields.take("role").required()?)?;
    for name in ["tool_calls", "function_call", "tool_call_id"] {
        fields.take(name).refuse("is not supported by this server yet: it has no tools")?;
    }
    let content = content(fields.take("content").required()?)?;
    fields.finish(&["name", "refusal", "audio", "annotations", "reasoning_content", "prefix"])?;
    Ok(ChatMessage { role, content })
}

fn role(message: &str, field: Field) -> Result<String, Refusal> {
    let path = field.path().to_owned();
    let role = field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    match role.as_str() {
        "system" | "user" | "assistant" => Ok(role),
        "developer" => Ok("system".to_owned()),
        "tool" | "function" => {
            Err(unsupported(&path, format!("\"{role}\" is not supported by this server yet, see {message}")))
        }
        _ => {
            let why = "is not a role; there are system, developer, user and assistant";
            Err(invalid(&path, format!("\"{}\" {why}", clip(&role))))
        }
    }
}

/// A string, or text parts, which are put together as they stand.
fn content(field: Field) -> Result<String, Refusal> {
    if field.is_string() {
        return Ok(field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default());
    }
    if !field.is_array() {
        return Err(field.mistyped("a string or an array of text parts"));
    }
    let path = field.path().to_owned();
    let parts = field.array(limits::CONTENT_PARTS)?.unwrap_or_default();
    if parts.is_empty() {
        return Err(invalid(&path, "must hold at least one part"));
    }
    let mut text = String::new();
    for part in parts {
        let path = part.path().to_owned();
        let Some(mut fields) = part.object()? else { return Err(invalid(&path, "must be an object")) };
        let kind = fields.take("type").required()?;
        let kind_path = kind.path().to_owned();
        match kind.string(limits::HTTP_BODY_BYTES)?.as_deref() {
            Some("text") => {}
            Some(kind) => {
                let why = format!("\"{}\" is not supported by this server yet, only \"text\"", clip(kind));
                return Err(unsupported(&kind_path, why));
            }
            None => return Err(invalid(&kind_path, "must be \"text\"")),
        }
        text.push_str(&fields.take("text").required()?.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default());
        fields.finish(&["cache_control"])?;
    }
    Ok(text)
}

/// Shapes of chat answers. Source: the OpenAI API reference, chat completion objects.
pub struct ChatShape {
    pub logprobs: bool,
    pub token_ids: bool,
}

impl ChatShape {
    fn choice(&self, index: usize, mut body: Value, piece: &Piece, finish: Option<&str>) -> Value {
        body["logprobs"] = match self.logprobs && !piece.tokens.is_empty() {
            true => {
                let content: Vec<Value> = piece.tokens.iter().map(logprob).collect();
                json!({"content": content, "refusal": null})
            }
            false => Value::Null,
        };
        body["finish_reason"] = json!(finish);
        if self.token_ids {
            body["token_ids"] = token_ids(piece);
        }
        body["index"] = json!(index);
        body
    }
}

/// Log-probabilities of one token, as chats and responses show them.
pub fn logprob(token: &TokenInfo) -> Value {
    let top = token
        .top
        .iter()
        .map(|(name, logprob)| json!({"token": name.text, "logprob": finite(*logprob), "bytes": name.bytes}));
    json!({
        "token": token.name.text,
        "logprob": token.logprob.map(finite),
        "bytes": token.name.bytes,
        "top_logprobs": top.collect::<Vec<Value>>(),
    })
}

impl Shape for ChatShape {
    fn id_prefix(&self) -> &'static str {
        "chatcmpl-"
    }

    fn object(&self, stream: bool) -> &'static str {
        if stream { "chat.completion.chunk" } else { "chat.completion" }
    }

    fn opening(&self, index: usize) -> Option<Value> {
        let body = json!({"index": index, "delta": {"role": "assistant", "content": ""}});
        Some(self.choice(index, body, &Piece::default(), None))
    }

    fn delta(&self, index: usize, piece: &Piece) -> Value {
        let body = json!({"index": index, "delta": {"content": piece.text}});
        self.choice(index, body, piece, None)
    }

    fn last(&self, index: usize, tokens: &Piece, finish: &str) -> Value {
        self.choice(index, json!({"index": index, "delta": {}}), tokens, Some(finish))
    }

    fn whole(&self, index: usize, piece: &Piece, finish: &str) -> Value {
        let message = json!({"role": "assistant", "content": piece.text, "refusal": null});
        let mut choice = self.choice(index, json!({"index": index, "message": message}), piece, Some(finish));
        if self.logprobs && piece.tokens.is_empty() {
            choice["logprobs"] = json!({"content": [], "refusal": null});
        }
        choice
    }
}

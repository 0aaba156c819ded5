//! `POST /v1/chat/completions`: its parameters and the shapes of its answers.
//!
//! Must never tokenise or wait; `job` and `stream` do.

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Map, Value, json};

use super::answer::{Piece, TokenInfo};
use super::fields::{Field, Fields, clip, invalid, unsupported};
use super::params::{self, Common, UNSUPPORTED};
use super::shape::{Shape, finite, token_ids};
use super::tools::calls::CallDelta;
use super::tools::{self, Tools};
use crate::text::{ChatMessage, ToolCall};

/// A conversation to go on with, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub common: Common,
    pub messages: Vec<ChatMessage>,
    pub tools: Tools,
}

impl ChatRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<ChatRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let mut common = params::common(&mut fields)?;
        let messages = messages(fields.take("messages"))?;
        let tools = tools::chat_tools(&mut fields)?;
        let logprobs = fields.take("logprobs").boolean()?.unwrap_or(false);
        let top = params::integer(fields.take("top_logprobs"), 0, i128::from(limits::TOP_LOGPROBS))?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            return Err(invalid("top_logprobs", "needs `logprobs`: true"));
        }
        if logprobs {
            common.sampling.logprobs = Some(top.and_then(|top| u8::try_from(top).ok()).unwrap_or(0));
        }
        fields.finish(UNSUPPORTED)?;
        Ok(ChatRequest { common, messages, tools })
    }
}

fn messages(field: Field) -> Result<Vec<ChatMessage>, Refusal> {
    let items = field.required()?.array(limits::MESSAGES)?.unwrap_or_default();
    if items.is_empty() {
        return Err(invalid("messages", "must hold at least one message"));
    }
    items.into_iter().map(message).collect()
}

fn message(field: Field) -> Result<ChatMessage, Refusal> {
    let path = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Err(invalid(&path, "must be an object")) };
    let role = role(fields.take("role").required()?)?;
    fields.take("function_call").refuse("is not supported, only `tool_calls`")?;
    let (calls, id) = (fields.take("tool_calls"), fields.take("tool_call_id"));
    let tool_calls = match role.as_str() {
        "assistant" => tool_calls(calls)?,
        _ => {
            calls.refuse("is only allowed in a message of the assistant")?;
            Vec::new()
        }
    };
    let tool_call_id = match role.as_str() {
        "tool" => short(id.required()?)?,
        _ => {
            id.refuse("is only allowed in a message of role \"tool\"")?;
            None
        }
    };
    let name = match role.as_str() {
        "tool" => short(fields.take("name"))?,
        _ => None,
    };
    let text = fields.take("content");
    let content = match tool_calls.is_empty() {
        false if !text.present() => String::new(),
        _ => content(text.required()?)?,
    };
    fields.finish(&["name", "refusal", "audio", "annotations", "reasoning_content", "prefix"])?;
    Ok(ChatMessage { role, content, tool_calls, tool_call_id, name })
}

/// A name or an id.
fn short(field: Field) -> Result<Option<String>, Refusal> {
    field.string(limits::TOOL_ID_BYTES)
}

fn tool_calls(field: Field) -> Result<Vec<ToolCall>, Refusal> {
    let one = |field: Field| {
        let path = field.path().to_owned();
        let Some(mut fields) = field.object()? else { return Err(invalid(&path, "must be an object")) };
        let id = short(fields.take("id").required()?)?.unwrap_or_default();
        let kind = fields.take("type");
        if kind.present() && kind.text() != Some("function") {
            return Err(unsupported(kind.path(), "is not supported, only \"function\""));
        }
        let function = fields.take("function").required()?;
        let at = function.path().to_owned();
        let Some(mut function) = function.object()? else { return Err(invalid(&at, "must be an object")) };
        let name = short(function.take("name").required()?)?.unwrap_or_default();
        let arguments = function.take("arguments").required()?.string(limits::HTTP_BODY_BYTES)?;
        function.finish(&[])?;
        // Some clients send back the place that streams have.
        fields.take("index").integer_in(0..=i128::from(u32::MAX))?;
        fields.finish(&[])?;
        Ok(ToolCall { id, name, arguments: arguments.unwrap_or_default() })
    };
    field.array(limits::TOOLS)?.unwrap_or_default().into_iter().map(one).collect()
}

fn role(field: Field) -> Result<String, Refusal> {
    let path = field.path().to_owned();
    let role = field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    match role.as_str() {
        "system" | "user" | "assistant" | "tool" => Ok(role),
        "developer" => Ok("system".to_owned()),
        "function" => Err(unsupported(&path, "\"function\" is not supported, only \"tool\"")),
        _ => {
            let why = "is not a role; there are system, developer, user, assistant and tool";
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

/// A part of a tool call, as streams have it.
fn call_delta(delta: &CallDelta) -> Value {
    match &delta.head {
        Some(head) => {
            let function = json!({"name": head.name, "arguments": delta.arguments});
            json!({"index": delta.index, "id": head.id, "type": "function", "function": function})
        }
        None => json!({"index": delta.index, "function": {"arguments": delta.arguments}}),
    }
}

/// A whole tool call.
fn call(call: &CallDelta) -> Value {
    let mut value = call_delta(call);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("index");
    }
    value
}

fn logprob(token: &TokenInfo) -> Value {
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
        let mut delta = Map::new();
        if !piece.text.is_empty() || piece.calls.is_empty() {
            delta.insert("content".into(), json!(piece.text));
        }
        if !piece.calls.is_empty() {
            delta.insert("tool_calls".into(), piece.calls.iter().map(call_delta).collect());
        }
        self.choice(index, json!({"index": index, "delta": delta}), piece, None)
    }

    fn last(&self, index: usize, tokens: &Piece, finish: &str) -> Value {
        self.choice(index, json!({"index": index, "delta": {}}), tokens, Some(finish))
    }

    fn whole(&self, index: usize, piece: &Piece, finish: &str) -> Value {
        let mut message = json!({"role": "assistant", "content": piece.text, "refusal": null});
        if !piece.calls.is_empty() {
            if piece.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = piece.calls.iter().map(call).collect();
        }
        let mut choice = self.choice(index, json!({"index": index, "message": message}), piece, Some(finish));
        if self.logprobs && piece.tokens.is_empty() {
            choice["logprobs"] = json!({"content": [], "refusal": null});
        }
        choice
    }
}

//! The parameters of `POST /v1/messages` and `/v1/messages/count_tokens`, checked.
//!
//! Must never let a parameter pass unread: what is not supported is refused by name.

use caravan_core::error::Refusal;
use caravan_core::limits;

use super::super::fields::{Field, Fields, clip, invalid, unsupported};
use super::super::params::{self, Common, UNSUPPORTED};
use crate::text::ChatMessage;

/// Parameters of Anthropic's document that this server does not have.
const UNSUPPORTED_HERE: &[&str] = &[
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "mcp_servers",
    "output_config",
    "output_format",
    "prefill",
    "speed",
    "tool_choice",
    "tools",
    "user_profile_id",
    "workspace_id",
];

/// A conversation to go on with, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct MessagesRequest {
    pub common: Common,
    pub messages: Vec<ChatMessage>,
}

/// A conversation whose tokens are to be counted.
#[derive(Clone, Debug, PartialEq)]
pub struct CountRequest {
    pub model: String,
    pub messages: Vec<ChatMessage>,
}

impl MessagesRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<MessagesRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let model = params::model(fields.take("model"))?;
        let max = i128::from(limits::CONTEXT_TOKENS);
        let max_tokens = params::integer(fields.take("max_tokens").required()?, 1, max)?;
        let messages = conversation(&mut fields)?;
        let common = Common {
            model,
            n: 1,
            max_tokens: max_tokens.map(|most| (most, "max_tokens")),
            sampling: params::sampling(&mut fields)?,
            seed: params::seed(fields.take("seed"))?,
            stop: stop_sequences(fields.take("stop_sequences"))?,
            ignore_eos: fields.take("ignore_eos").boolean()?.unwrap_or(false),
            echo: false,
            stream: fields.take("stream").boolean()?.unwrap_or(false),
            include_usage: false,
            return_token_ids: false,
        };
        if let Some(mut metadata) = fields.take("metadata").object()? {
            metadata.take("user_id").string(limits::NOTE_BYTES)?;
            metadata.finish(&[])?;
        }
        params::only(fields.take("service_tier"), &["auto", "standard_only"])?;
        fields.finish(&[UNSUPPORTED, UNSUPPORTED_HERE].concat())?;
        Ok(MessagesRequest { common, messages })
    }
}

impl CountRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<CountRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let model = params::model(fields.take("model"))?;
        let messages = conversation(&mut fields)?;
        fields.finish(UNSUPPORTED_HERE)?;
        Ok(CountRequest { model, messages })
    }
}

/// Always a list, other than OpenAI's.
fn stop_sequences(field: Field) -> Result<Vec<String>, Refusal> {
    if field.is_string() { Err(field.mistyped("an array of strings")) } else { params::stop(field) }
}

/// `system` and `messages`, and what changes how they are shown to the model.
fn conversation(fields: &mut Fields) -> Result<Vec<ChatMessage>, Refusal> {
    cache_control(fields.take("cache_control"))?;
    if let Some(mut thinking) = fields.take("thinking").object()? {
        params::only(thinking.take("type").required()?, &["disabled"])?;
        thinking.finish(&["budget_tokens", "display"])?;
    }
    let mut all = Vec::new();
    let system = fields.take("system");
    if system.present() {
        all.push(ChatMessage { role: "system".to_owned(), content: content(system)? });
    }
    let items = fields.take("messages").required()?.array(limits::MESSAGES)?.unwrap_or_default();
    if items.is_empty() {
        return Err(invalid("messages", "must hold at least one message"));
    }
    for item in items {
        all.push(message(item)?);
    }
    match all.last() {
        Some(last) if last.role == "assistant" => {
            let why =
                "end with an assistant's message; going on with one is not supported by this server yet";
            Err(unsupported("messages", why))
        }
        _ => Ok(all),
    }
}

fn message(field: Field) -> Result<ChatMessage, Refusal> {
    let path = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Err(invalid(&path, "must be an object")) };
    let role = fields.take("role").required()?;
    let role_path = role.path().to_owned();
    let role = role.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    if !["user", "assistant", "system"].contains(&role.as_str()) {
        let why = "is not a role; there are user, assistant and system";
        return Err(invalid(&role_path, format!("\"{}\" {why}", clip(&role))));
    }
    let content = content(fields.take("content").required()?)?;
    fields.finish(&[])?;
    Ok(ChatMessage { role, content })
}

/// A string, or text blocks, which are put together as they stand.
fn content(field: Field) -> Result<String, Refusal> {
    if field.is_string() {
        return Ok(field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default());
    }
    if !field.is_array() {
        return Err(field.mistyped("a string or an array of text blocks"));
    }
    let path = field.path().to_owned();
    let blocks = field.array(limits::CONTENT_PARTS)?.unwrap_or_default();
    if blocks.is_empty() {
        return Err(invalid(&path, "must hold at least one block"));
    }
    let mut text = String::new();
    for block in blocks {
        let path = block.path().to_owned();
        let Some(mut fields) = block.object()? else { return Err(invalid(&path, "must be an object")) };
        let kind = fields.take("type").required()?;
        let kind_path = kind.path().to_owned();
        let kind = kind.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
        if kind != "text" {
            let why = format!("\"{}\" is not supported by this server yet, only \"text\"", clip(&kind));
            return Err(unsupported(&kind_path, why));
        }
        text.push_str(&fields.take("text").required()?.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default());
        cache_control(fields.take("cache_control"))?;
        fields.finish(&["citations"])?;
    }
    Ok(text)
}

/// A hint what to cache: checked, and of no effect on the answer.
fn cache_control(field: Field) -> Result<(), Refusal> {
    let Some(mut fields) = field.object()? else { return Ok(()) };
    params::only(fields.take("type").required()?, &["ephemeral"])?;
    params::only(fields.take("ttl"), &["5m", "1h"])?;
    fields.finish(&[])
}

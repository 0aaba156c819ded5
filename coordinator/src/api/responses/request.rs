//! The parameters of `POST /v1/responses`, checked.
//!
//! Must never let a parameter pass unread: what is not supported is refused by name.

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Map, Value, json};

use super::super::fields::{Field, Fields, invalid};
use super::super::params::{self, Common, UNSUPPORTED, one_of, only};
use super::items::{self, Item};

/// Parameters of OpenAI's document that this server does not have.
const UNSUPPORTED_HERE: &[&str] = &[
    "access_programs",
    "background_options",
    "context_management",
    "image",
    "max_tool_calls",
    "moderation",
    "prompt",
    "tool_choice",
    "tools",
];

/// Values of `include` that OpenAI knows.
pub const INCLUDABLE: &[&str] = &[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];

/// A response to create, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseRequest {
    pub common: Common,
    pub instructions: Option<String>,
    pub input: Vec<Item>,
    /// Old items may be left out to fit the context.
    pub truncate: bool,
    /// What the response object repeats, with defaults filled in.
    pub echo: Map<String, Value>,
}

impl ResponseRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<ResponseRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        stateless(&mut fields)?;
        let mut echo = Map::new();
        let instructions = fields.take("instructions").string(limits::HTTP_BODY_BYTES)?;
        let input = items::input(fields.take("input"))?;
        let common = common(&mut fields, &mut echo)?;
        let truncation = one_of(fields.take("truncation"), &["auto", "disabled"])?;
        let truncate = truncation.as_deref() == Some("auto");
        notes(&mut fields, &mut echo)?;
        let format = text(fields.take("text"))?;
        let mut reasoning = fields.take("reasoning").object()?.unwrap_or_default();
        for name in ["effort", "summary", "generate_summary", "context", "mode"] {
            reasoning.take(name).refuse("is not supported by this server yet")?;
        }
        reasoning.finish(&[])?;
        fields.take("parallel_tool_calls").boolean()?;
        fields.finish(&[UNSUPPORTED, UNSUPPORTED_HERE].concat())?;
        let more = json!({
            "background": false,
            "conversation": null,
            "instructions": instructions,
            "max_tool_calls": null,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "prompt": null,
            "reasoning": {"effort": null, "summary": null},
            "service_tier": "default",
            "store": false,
            "text": {"format": format},
            "tool_choice": "auto",
            "tools": [],
            "truncation": truncation.as_deref().unwrap_or("disabled"),
        });
        if let Value::Object(more) = more {
            echo.extend(more);
        }
        Ok(ResponseRequest { common, instructions, input, truncate, echo })
    }
}

/// What would have to be kept. An absent `store` counts as false, and the answer says so.
fn stateless(fields: &mut Fields) -> Result<(), Refusal> {
    let nothing_kept = "is not supported: this server keeps no responses yet; send the whole conversation";
    fields.take("store").only_false("true is not supported: this server keeps no responses yet")?;
    fields.take("background").only_false("true is not supported: this server keeps no responses yet")?;
    let previous = fields.take("previous_response_id");
    let conversation = fields.take("conversation");
    if previous.present() && conversation.present() {
        return Err(invalid("previous_response_id", "can't be used together with `conversation`"));
    }
    if !previous.present() || previous.is_string() {
        previous.refuse(nothing_kept)?;
    } else {
        return Err(previous.mistyped("a string"));
    }
    if !conversation.present() || conversation.is_string() || conversation.is_object() {
        conversation.refuse(nothing_kept)
    } else {
        Err(conversation.mistyped("a string or an object"))
    }
}

/// What decides the answer.
fn common(fields: &mut Fields, echo: &mut Map<String, Value>) -> Result<Common, Refusal> {
    let stream = fields.take("stream").boolean()?.unwrap_or(false);
    let model = params::model(fields.take("model"))?;
    if let Some(mut options) = fields.take("stream_options").object()? {
        options.take("include_obfuscation").only_false("true is not supported by this server")?;
        options.finish(&[])?;
        if !stream {
            return Err(invalid("stream_options", "is only allowed with `stream`: true"));
        }
    }
    let max = i128::from(limits::CONTEXT_TOKENS);
    let max_tokens = params::integer(fields.take("max_output_tokens"), 1, max)?;
    let temperature = fields.peek("temperature");
    let top_p = fields.peek("top_p");
    let mut sampling = params::sampling(fields)?;
    let top = params::integer(fields.take("top_logprobs"), 0, i128::from(limits::TOP_LOGPROBS))?.unwrap_or(0);
    let included = include(fields.take("include"))?;
    if included || top > 0 {
        sampling.logprobs = u8::try_from(top).ok();
    }
    echo.insert("max_output_tokens".into(), json!(max_tokens));
    echo.insert("temperature".into(), temperature.unwrap_or(json!(1.0)));
    echo.insert("top_p".into(), top_p.unwrap_or(json!(1.0)));
    echo.insert("top_logprobs".into(), json!(top));
    Ok(Common {
        model,
        n: 1,
        max_tokens: max_tokens.map(|most| (most, "max_output_tokens")),
        sampling,
        seed: params::seed(fields.take("seed"))?,
        stop: params::stop(fields.take("stop"))?,
        ignore_eos: fields.take("ignore_eos").boolean()?.unwrap_or(false),
        echo: false,
        stream,
        include_usage: false,
        return_token_ids: false,
    })
}

/// Whether log-probabilities are to be included. What this server never puts out can't be missing.
fn include(field: Field) -> Result<bool, Refusal> {
    let mut logprobs = false;
    for word in field.array(INCLUDABLE.len())?.unwrap_or_default() {
        let path = word.path().to_owned();
        let word = one_of(word.required()?, INCLUDABLE)?.unwrap_or_default();
        match word.as_str() {
            "message.output_text.logprobs" => logprobs = true,
            "reasoning.encrypted_content" => {
                return Err(super::super::fields::unsupported(
                    &path,
                    "\"reasoning.encrypted_content\" is not supported: this server encrypts nothing",
                ));
            }
            _ => {}
        }
    }
    Ok(logprobs)
}

/// The client's own notes, and hints of which any value is right for this server.
fn notes(fields: &mut Fields, echo: &mut Map<String, Value>) -> Result<(), Refusal> {
    let metadata = fields.peek("metadata").unwrap_or(json!({}));
    params::metadata(fields.take("metadata"))?;
    echo.insert("metadata".into(), metadata);
    for (name, value) in params::hints(fields)? {
        echo.insert(name.into(), json!(value));
    }
    only(fields.take("service_tier"), &["auto", "default"])
}

/// `text`; gives the format as the response repeats it.
fn text(field: Field) -> Result<Value, Refusal> {
    let mut fields = field.object()?.unwrap_or_default();
    only(fields.take("verbosity"), &["medium"])?;
    if let Some(mut format) = fields.take("format").object()? {
        only(format.take("type").required()?, &["text"])?;
        format.finish(&["description", "name", "schema", "strict"])?;
    }
    fields.finish(&[])?;
    Ok(json!({"type": "text"}))
}

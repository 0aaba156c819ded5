//! `POST /tokenize` and `/detokenize`: a model's tokens of a text or a conversation, and back.
//!
//! Must never start a sequence, nor need a ready pipeline.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Value, json};

use super::chat;
use super::completions::Prompt;
use super::errors::{ApiError, json_response};
use super::fields::{Field, Fields, invalid, unsupported};
use super::job::{self, Input};
use super::{App, body, params};

/// What to tokenise, checked.
struct TokenizeRequest {
    model: Option<String>,
    input: Input,
    special: bool,
    strings: bool,
}

impl TokenizeRequest {
    fn parse(body: &[u8]) -> Result<TokenizeRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let model = model(fields.take("model"))?;
        let (prompt, messages) = (fields.take("prompt"), fields.take("messages"));
        let special = fields.take("add_special_tokens").boolean()?;
        let strings = fields.take("return_token_strs").boolean()?.unwrap_or(false);
        let generation = fields.take("add_generation_prompt");
        let chat = messages.present();
        if chat && prompt.present() {
            return Err(invalid("messages", "can't be used together with `prompt`"));
        }
        let input = if chat {
            Input::Chat { messages: chat::messages(messages)?, truncate: false }
        } else {
            let text = prompt.required()?.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
            Input::Prompts(vec![Prompt::Text(text)])
        };
        match (generation.boolean()?, chat) {
            (Some(_), false) => return Err(invalid("add_generation_prompt", "needs `messages`")),
            (Some(false), true) => {
                let why = "false is not supported by this server: it shows what an answer is computed from";
                return Err(unsupported("add_generation_prompt", why));
            }
            _ => {}
        }
        if chat && special == Some(true) {
            let why = "true is not supported with `messages`: the template writes what is needed";
            return Err(unsupported("add_special_tokens", why));
        }
        fields.finish(&["chat_template", "chat_template_kwargs", "continue_final_message", "tools"])?;
        Ok(TokenizeRequest { model, input, special: special.unwrap_or(true), strings })
    }
}

/// A model that is not named is the first of `GET /v1/models`.
fn model(field: Field) -> Result<Option<String>, Refusal> {
    if field.present() { params::model(field).map(Some) } else { Ok(None) }
}

impl App {
    fn named_or_default(&self, model: Option<String>) -> Result<String, Refusal> {
        let default = || self.backend.default_model().or_else(|| self.state().models.keys().next().cloned());
        model.or_else(default).ok_or_else(|| {
            Refusal::cluster(
                "no_model",
                limits::RETRY_AFTER_MS,
                "no model has been added to this cluster yet",
            )
        })
    }
}

pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let request = body::parse(&app, request, TokenizeRequest::parse).await?;
    let model = app.named_or_default(request.model)?;
    let (spec, text) = job::find_text(&app, &model).await?;
    let chat = matches!(request.input, Input::Chat { .. });
    let mut tokens = job::tokens(&app, &model, request.input).await?.pop().unwrap_or_default();
    if !chat && !request.special && text.bos().is_some() && tokens.first().copied() == text.bos() {
        tokens.remove(0);
    }
    let strings: Vec<String> =
        tokens.iter().map(|token| String::from_utf8_lossy(text.token_bytes(*token)).into_owned()).collect();
    let body = json!({
        "count": tokens.len(),
        "max_model_len": spec.config.context,
        "tokens": tokens,
        "token_strs": if request.strings { json!(strings) } else { Value::Null },
    });
    Ok(json_response(StatusCode::OK, &body, None))
}

/// Tokens to show as text, checked.
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

impl DetokenizeRequest {
    fn parse(body: &[u8]) -> Result<DetokenizeRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let model = model(fields.take("model"))?;
        let tokens = fields.take("tokens").required()?.token_ids(limits::CONTEXT_TOKENS as usize)?;
        fields.finish(&[])?;
        Ok(DetokenizeRequest { model, tokens })
    }
}

pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let DetokenizeRequest { model, tokens } = body::parse(&app, request, DetokenizeRequest::parse).await?;
    let model = app.named_or_default(model)?;
    let (spec, text) = job::find_text(&app, &model).await?;
    if let Some(token) = tokens.iter().find(|token| **token >= spec.config.vocab) {
        let why = format!("holds token {token}, but model `{model}` has {} tokens", spec.config.vocab);
        return Err(invalid("tokens", why).into());
    }
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| text.token_bytes(*token)).copied().collect();
    let body = json!({"prompt": String::from_utf8_lossy(&bytes)});
    Ok(json_response(StatusCode::OK, &body, None))
}

//! `POST /v1/completions`: its parameters and the shapes of its answers.
//!
//! Must never tokenise or wait; `job` and `stream` do.

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Map, Value, json};

use super::answer::Piece;
use super::fields::{Field, Fields, invalid};
use super::params::{self, Common, UNSUPPORTED};
use super::shape::{Shape, finite, token_ids};

/// Length of an answer if the request does not say, as OpenAI documents.
pub const DEFAULT_MAX_TOKENS: u32 = 16;

/// A prompt as text, or as tokens that are taken as they are.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Prompts to go on with, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub common: Common,
    pub prompts: Vec<Prompt>,
}

impl CompletionRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<CompletionRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let mut common = params::common(&mut fields)?;
        let prompts = prompts(fields.take("prompt"))?;
        if prompts.len() * common.n as usize > limits::SEQUENCES_PER_REQUEST {
            let why = format!(
                "times the number of prompts makes {} answers; at most {} are allowed in one request",
                prompts.len() * common.n as usize,
                limits::SEQUENCES_PER_REQUEST
            );
            return Err(invalid("n", why));
        }
        let logprobs = params::integer(fields.take("logprobs"), 0, 5)?;
        common.sampling.logprobs = logprobs.and_then(|top| u8::try_from(top).ok());
        fields.take("echo").only_false("true is not supported by this server yet")?;
        let best_of = params::integer(fields.take("best_of"), 1, i128::from(limits::CHOICES))?;
        if best_of.is_some_and(|best_of| best_of != common.n) {
            return Err(invalid("best_of", "is only supported with the same value as `n`"));
        }
        fields.take("suffix").refuse("is not supported by this server yet")?;
        let chats = ["tools", "tool_choice", "parallel_tool_calls"];
        fields.finish(&[UNSUPPORTED, &chats].concat())?;
        Ok(CompletionRequest { common, prompts })
    }
}

/// A string, strings, tokens, or arrays of tokens.
fn prompts(field: Field) -> Result<Vec<Prompt>, Refusal> {
    let field = field.required()?;
    if field.is_string() {
        return Ok(vec![Prompt::Text(field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default())]);
    }
    if !field.is_array() {
        return Err(field.mistyped("a string, an array of strings, or an array of tokens"));
    }
    if field.holds_numbers() {
        return Ok(vec![Prompt::Tokens(field.token_ids(limits::CONTEXT_TOKENS as usize)?)]);
    }
    let items = field.array(limits::PROMPTS_PER_REQUEST)?.unwrap_or_default();
    let texts = match items.first() {
        None => return Err(invalid("prompt", "must not be empty")),
        Some(first) => first.is_string(),
    };
    items.into_iter().map(|item| one(item, texts)).collect()
}

/// One prompt of several; all have the type of the first.
fn one(item: Field, texts: bool) -> Result<Prompt, Refusal> {
    if texts {
        return Ok(Prompt::Text(item.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default()));
    }
    Ok(Prompt::Tokens(item.token_ids(limits::CONTEXT_TOKENS as usize)?))
}

/// Shapes of text answers. Source: the OpenAI API reference, completion object.
pub struct CompletionShape {
    pub logprobs: bool,
    pub token_ids: bool,
}

impl CompletionShape {
    fn choice(&self, index: usize, piece: &Piece, finish: Option<&str>) -> Value {
        let logprobs = match self.logprobs {
            true => logprobs(piece),
            false => Value::Null,
        };
        let mut choice =
            json!({"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish});
        if self.token_ids {
            choice["token_ids"] = token_ids(piece);
        }
        choice
    }
}

fn logprobs(piece: &Piece) -> Value {
    let tokens = &piece.tokens;
    let top = tokens.iter().map(|token| {
        let mut map = Map::new();
        for (name, logprob) in &token.top {
            // Parts of characters may share a name: the most probable one keeps it.
            map.entry(name.text.clone()).or_insert_with(|| json!(finite(*logprob)));
        }
        if let Some(logprob) = token.logprob {
            map.entry(token.name.text.clone()).or_insert_with(|| json!(finite(logprob)));
        }
        Value::Object(map)
    });
    json!({
        "tokens": tokens.iter().map(|token| token.name.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob.map(finite)).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

impl Shape for CompletionShape {
    fn id_prefix(&self) -> &'static str {
        "cmpl-"
    }

    fn object(&self, _stream: bool) -> &'static str {
        "text_completion"
    }

    fn opening(&self, _index: usize) -> Option<Value> {
        None
    }

    fn delta(&self, index: usize, piece: &Piece) -> Value {
        self.choice(index, piece, None)
    }

    fn last(&self, index: usize, tokens: &Piece, finish: &str) -> Value {
        self.choice(index, tokens, Some(finish))
    }

    fn whole(&self, index: usize, piece: &Piece, finish: &str) -> Value {
        self.choice(index, piece, Some(finish))
    }
}

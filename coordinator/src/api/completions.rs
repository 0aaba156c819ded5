//! `POST /v1/completions`: its parameters and the shapes of its answers.
//!
//! Must never tokenise or wait; `job` and `stream` do.

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Map, Value, json};

use super::answer::Piece;
use super::fields::{Field, Fields, invalid, unsupported};
use super::params::{self, Common, UNSUPPORTED};
use super::shape::{Shape, finite, token_ids};
use super::stream::Whole;

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
    /// Its `n` is the number of answers to generate for each prompt.
    pub common: Common,
    pub prompts: Vec<Prompt>,
    /// Of these the best ones that are told, if not all.
    pub best: Option<u32>,
    /// Log-probabilities are told, not only generated.
    pub logprobs: bool,
}

impl CompletionRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<CompletionRequest, Refusal> {
        let mut fields = Fields::parse(body)?;
        let mut common = params::common(&mut fields, 0)?;
        let prompts = prompts(fields.take("prompt"))?;
        let logprobs = params::integer(fields.take("logprobs"), 0, 5)?;
        common.sampling.logprobs = logprobs.and_then(|top| u8::try_from(top).ok());
        common.echo = fields.take("echo").boolean()?.unwrap_or(false);
        if !common.echo && common.max_tokens.is_some_and(|(most, _)| most == 0) {
            return Err(invalid("max_tokens", "can be 0 only with `echo`: true"));
        }
        if common.echo && logprobs.is_some() {
            return Err(unsupported("logprobs", "can't be combined with `echo`: true by this server yet"));
        }
        let told = common.n;
        let best_of = params::integer(fields.take("best_of"), 1, i128::from(limits::CHOICES))?;
        if let Some(best_of) = best_of.filter(|best_of| *best_of != told) {
            if best_of < told {
                return Err(invalid(
                    "best_of",
                    format!("is {best_of}, but `n` is {told}; it must not be less"),
                ));
            }
            if common.stream {
                return Err(invalid("best_of", "can't be greater than `n` with `stream`: true"));
            }
            common.n = best_of;
            // The best are found by them.
            common.sampling.logprobs = common.sampling.logprobs.or(Some(0));
        }
        check_count(&prompts, common.n, best_of.map_or("n", |_| "best_of"))?;
        fields.take("suffix").refuse("is not supported: this server's models can't fill in a middle")?;
        fields.finish(UNSUPPORTED)?;
        let best = (common.n != told).then_some(told);
        Ok(CompletionRequest { common, prompts, best, logprobs: logprobs.is_some() })
    }
}

fn check_count(prompts: &[Prompt], answers: u32, field: &str) -> Result<(), Refusal> {
    let all = prompts.len() * answers as usize;
    if all <= limits::SEQUENCES_PER_REQUEST {
        return Ok(());
    }
    let most = limits::SEQUENCES_PER_REQUEST;
    let why =
        format!("times the number of prompts makes {all} answers; at most {most} are allowed in one request");
    Err(invalid(field, why))
}

/// Of every `of` answers, those of the highest mean log-probability, best first; ties go to the earlier.
pub fn best(answers: Vec<Whole>, of: usize, keep: usize) -> Vec<Whole> {
    let mut answers = answers.into_iter();
    let mut kept = Vec::new();
    loop {
        let mut group: Vec<Whole> = answers.by_ref().take(of).collect();
        if group.is_empty() {
            return kept;
        }
        group.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
        group.truncate(keep);
        kept.extend(group);
    }
}

/// Of the answer's tokens; an answer without any is the worst.
fn mean_logprob(whole: &Whole) -> f64 {
    let generated = whole.piece.tokens.iter().filter(|token| !token.prompt);
    let logprobs: Vec<f64> = generated.filter_map(|token| token.logprob.map(f64::from)).collect();
    match logprobs.len() {
        0 => f64::NEG_INFINITY,
        count => logprobs.iter().sum::<f64>() / count as f64,
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

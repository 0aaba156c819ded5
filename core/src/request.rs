//! The request record: what is needed to compute one sequence again, from the start or from token N.
//!
//! Must never hold what the answer does not depend on, save the two times that bound the wait.

use serde::{Deserialize, Serialize};

use crate::error::Fault;

/// How the next token is chosen from the logits. Applied at the last stage, in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Added to the logit of a token, sorted by token, each token once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once for each time a token is in the answer.
    pub frequency_penalty: f32,
    /// Subtracted if a token is in the answer.
    pub presence_penalty: f32,
    /// 0 is greedy: the highest logit, ties to the lowest token.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 is off.
    pub top_k: u32,
    /// Keep the fewest most probable tokens whose probabilities add up to this; 1 is off.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; 0 is off.
    pub min_p: f32,
    /// Key of the counter-based random numbers, with the position as the counter.
    pub seed: u64,
    /// `Some(n)`: report the chosen token's log-probability and the n most probable ones
    /// (of the distribution after bias, penalties and constraint, and before temperature).
    pub logprobs: Option<u8>,
    /// What the answer's text has to match: tokens that can't go on so take no part in the choice.
    pub constraint: Option<Constraint>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            logprobs: None,
            constraint: None,
        }
    }
}

/// What an answer's text has to match, as text. Gateway and last stage compile it with the same
/// library and the same limits, so what one takes the other takes too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Constraint {
    pub kind: ConstraintKind,
    pub text: String,
    /// Tokens that end the answer, allowed only where it is complete. Ascending, at least one.
    pub ends: Vec<u32>,
    /// Control tokens that the grammar may name; a client's own text may name none. Ascending.
    pub control: Vec<u32>,
}

/// The language in which a constraint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConstraintKind {
    /// `lenient`: keywords that can't be enforced are passed over instead of refused.
    JsonSchema {
        lenient: bool,
    },
    Regex,
    /// A context-free grammar in Lark's notation.
    Lark,
}

/// One sequence to generate. An HTTP request with `n` choices makes `n` of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Unique over the cluster, made by the gateway; never taken from a client. Carried by logs.
    pub id: String,
    pub model: String,
    /// Prompt token ids, at least one.
    pub prompt: Vec<u32>,
    /// Tokens the client has already been given; the answer goes on behind them.
    pub emitted: Vec<u32>,
    pub sampling: Sampling,
    /// Tokens that end the answer (end-of-text and the like); never shown. Empty with `ignore_eos`.
    pub stop_tokens: Vec<u32>,
    /// Length of the answer at most, counted with `emitted`.
    pub max_tokens: u32,
    /// When the gateway accepted it, milliseconds since 1970; decides the order of service.
    pub accepted_ms: u64,
    /// When waiting ends with an error, milliseconds since 1970.
    pub deadline_ms: u64,
}

/// Log-probability of one token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    pub token: u32,
    pub logprob: f32,
}

/// A sampled token, as the last stage reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    pub token: u32,
    /// Present if the record asked for log-probabilities.
    pub logprob: Option<f32>,
    /// Most probable first, ties by token.
    pub top: Vec<TokenLogprob>,
}

/// What the last stage has for a sequence it was asked to sample from.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleOutcome {
    Token(Sampled),
    /// What the constraint allows is not known yet: the same row is to be computed again, which
    /// gives the same logits. Nobody else waits for it.
    Later,
    /// There is none, and would be none the next time: ends this sequence and no other.
    Failed(SampleFault),
}

/// Why no token could be sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleFault {
    /// The request's own (its constraint), or else the operator's (the weights).
    pub fault: Fault,
    pub why: String,
}

/// Why a sequence ended at the driver. (Stop strings are the gateway's, which has the text.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// A stop token was sampled (it is not shown).
    Stop,
    /// `max_tokens` or the context is full.
    Length,
}

/// What a driver tells the one who submitted a record, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GenerateEvent {
    Token(Sampled),
    Finished(Finish),
    /// The record can't go on: refused, or (with a safe retry) the pipeline is gone and the
    /// record must be submitted again with the tokens emitted so far.
    Refused(crate::error::Refusal),
    /// The pipeline ended under the sequence; submit the record again.
    Interrupted,
}

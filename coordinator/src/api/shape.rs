//! What chat and text answers have in common: envelope, usage, and the seam between the two.
//!
//! Must never know how an answer is computed or sent.

use serde_json::{Value, json};

use super::answer::Piece;

/// How one endpoint writes its choices.
pub trait Shape: Send + Sync + 'static {
    fn id_prefix(&self) -> &'static str;
    /// The `object` word.
    fn object(&self, stream: bool) -> &'static str;
    /// A choice of the first chunk, if the endpoint sends one before any text.
    fn opening(&self, index: usize) -> Option<Value>;
    /// A choice with more text.
    fn delta(&self, index: usize, piece: &Piece) -> Value;
    /// The last choice of a stream: no text, perhaps tokens that gave none, and `finish_reason`.
    fn last(&self, index: usize, tokens: &Piece, finish: &str) -> Value;
    /// A whole choice of an answer that is not streamed.
    fn whole(&self, index: usize, piece: &Piece, finish: &str) -> Value;
}

/// Tokens of a request, counted once for each prompt and over all choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u64,
    pub completion: u64,
}

impl Usage {
    pub fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// What every answer and chunk of a request carries.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// The numerics profile.
    pub fingerprint: String,
}

impl Envelope {
    pub fn wrap(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// JSON has no infinity: an impossible token gets OpenAI's -9999.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// The extension `token_ids`.
pub fn token_ids(piece: &Piece) -> Value {
    piece.tokens.iter().map(|token| token.id).collect()
}

//! What was generated, as endpoints that answer in typed parts see it: reasoning, text, function calls.
//!
//! Must never know a wire shape: `responses` and `messages` each write their own.

use super::answer::{Piece, TokenInfo};

/// A piece of what was generated, in the order of generation.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "calls and reasoning are rendered before any model's text is parsed for them"
    )
)]
pub enum Output {
    Reasoning(String),
    /// Text of the answer, with its tokens if log-probabilities were asked for.
    Text(String, Vec<TokenInfo>),
    /// A function call begins; its arguments follow.
    Call {
        name: String,
    },
    /// More of the arguments of the call that began last: a part of a JSON text.
    Arguments(String),
}

/// The outputs that a piece holds, in order.
pub fn outputs(piece: Piece) -> Vec<Output> {
    vec![Output::Text(piece.text, piece.tokens)]
}

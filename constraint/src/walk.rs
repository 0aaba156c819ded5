//! One sequence's way through a grammar: which tokens may come next, and the step over one of them.
//!
//! Must never take a token that was not allowed, nor skip the question which are: see the crate's doc.

use std::sync::Arc;

use llguidance::TokenParser;
use llguidance::api::StopReason;

use crate::ConstraintError;
use crate::error::line;

/// The tokens that may come next: a bit for each token of the vocabulary, at least one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    bits: Vec<u32>,
}

impl Allowed {
    pub fn contains(&self, token: u32) -> bool {
        let word = self.bits.get(token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    }

    /// 32 tokens a word, the first in the lowest bit. Tokens beyond the end are not allowed.
    pub fn bits(&self) -> &[u32] {
        &self.bits
    }
}

/// A sequence at some place in its grammar.
pub struct Walk {
    parser: TokenParser,
    ends: Arc<[u32]>,
    /// An end token was taken: nothing follows.
    ended: bool,
}

impl Walk {
    pub(crate) fn new(parser: TokenParser, ends: Arc<[u32]>) -> Walk {
        Walk { parser, ends, ended: false }
    }

    /// Which tokens may come next. Where the text is complete and nothing can be added, only the ends.
    pub fn allowed(&mut self) -> Result<Allowed, ConstraintError> {
        if self.ended {
            return Err(ConstraintError::Internal("asked for what follows the end".into()));
        }
        let trie = self.parser.token_env.clone();
        let set = match self.parser.stop_reason() {
            StopReason::NotStopped => {
                self.parser.compute_mask().map_err(|error| self.error(&error.to_string()))?
            }
            StopReason::NoExtension | StopReason::EndOfSentence => trie.tok_trie().eos_token_set(),
            _ => return Err(self.error("the walk is over")),
        };
        Ok(Allowed { bits: set.into() })
    }

    /// Steps over a token that was allowed.
    pub fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.ended || self.ends.contains(&token) {
            self.ended = true;
            return Ok(());
        }
        if self.parser.stopped() {
            return Err(ConstraintError::Internal(format!("token {token} behind the end of the text")));
        }
        let stepped = self.parser.consume_token(token).and_then(|_| self.parser.check_stop());
        stepped.map(drop).map_err(|error| self.error(&error.to_string()))
    }

    /// Whether an end token was taken.
    pub fn ended(&self) -> bool {
        self.ended
    }

    fn error(&self, why: &str) -> ConstraintError {
        let why = line(why);
        match self.parser.stop_reason() {
            _ if why.starts_with("panic") => ConstraintError::Internal(why),
            StopReason::LexerTooComplex | StopReason::ParserTooComplex | StopReason::MaxTokensTotal => {
                ConstraintError::TooComplex(why)
            }
            StopReason::NoExtensionBias => {
                ConstraintError::Invalid("no token of the model can go on with the text".into())
            }
            _ => ConstraintError::Internal(why),
        }
    }
}

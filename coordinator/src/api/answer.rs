//! From sampled tokens to the text of one choice: whole characters, stop strings, log-probabilities.
//!
//! Must never wait or know how pieces are sent; it is a machine: events in, pieces out.

use std::sync::Arc;

use caravan_core::request::{Finish, Sampled};

use super::backend::Text;
use crate::text::{Detokenizer, StopMatcher};

/// A token as answers show it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    pub id: u32,
    pub name: TokenName,
    /// If log-probabilities were asked for.
    pub logprob: Option<f32>,
    pub top: Vec<(TokenName, f32)>,
    /// Characters of the answer before this token.
    pub offset: usize,
    /// It is one of the prompt's, echoed.
    pub prompt: bool,
}

/// Text and bytes of a token. The text of a token that is part of a character is U+FFFD.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenName {
    pub text: String,
    pub bytes: Vec<u8>,
}

/// Text that may be shown, with all tokens that came since the last piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    pub text: String,
    pub tokens: Vec<TokenInfo>,
    /// The stop string that ended the choice; with its last piece.
    pub stop: Option<String>,
}

impl Piece {
    pub fn append(&mut self, other: Piece) {
        self.stop = other.stop.or(self.stop.take());
        self.text.push_str(&other.text);
        self.tokens.extend(other.tokens);
    }
}

/// What a token did to a choice.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Nothing to show yet.
    Nothing,
    Show(Piece),
    /// A stop string is complete: the choice ends here with `finish_reason` "stop".
    Stopped(Piece),
}

/// The text of one choice while it grows.
pub struct ChoiceText {
    text: Arc<dyn Text>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    keep_tokens: bool,
    /// The prompt, until it has been shown as the beginning of the text.
    echo: Option<Vec<u32>>,
    pending: Vec<TokenInfo>,
    characters: usize,
    /// Tokens so far, with the one that completed a stop string.
    pub tokens: u64,
}

impl ChoiceText {
    /// `keep_tokens`: pieces carry their tokens (for log-probabilities and token ids).
    pub fn new(text: Arc<dyn Text>, stops: Vec<String>, keep_tokens: bool) -> ChoiceText {
        ChoiceText {
            text,
            detokenizer: Detokenizer::default(),
            matcher: StopMatcher::new(stops),
            keep_tokens,
            echo: None,
            pending: Vec::new(),
            characters: 0,
            tokens: 0,
        }
    }

    /// The text begins with the prompt, which stop strings do not end.
    pub fn echoing(self, prompt: Vec<u32>) -> ChoiceText {
        ChoiceText { echo: Some(prompt), ..self }
    }

    /// The echo of the prompt, once.
    pub fn opening(&mut self) -> Option<Piece> {
        let prompt = self.echo.take()?;
        let mut piece = Piece::default();
        let mut detokenizer = Detokenizer::default();
        for token in prompt {
            if self.keep_tokens {
                piece.tokens.push(TokenInfo {
                    id: token,
                    name: self.name(token),
                    logprob: None,
                    top: Vec::new(),
                    offset: self.characters,
                    prompt: true,
                });
            }
            let fresh = detokenizer.push(self.text.token_bytes(token));
            self.characters += fresh.chars().count();
            piece.text.push_str(&fresh);
        }
        let rest = detokenizer.finish();
        self.characters += rest.chars().count();
        piece.text.push_str(&rest);
        Some(piece)
    }

    pub fn push(&mut self, sampled: Sampled) -> Turn {
        self.tokens += 1;
        let fresh = self.detokenizer.push(self.text.token_bytes(sampled.token));
        if self.keep_tokens {
            let info = self.describe(&sampled);
            self.pending.push(info);
        }
        self.characters += fresh.chars().count();
        if fresh.is_empty() {
            return Turn::Nothing;
        }
        match self.matcher.push(&fresh) {
            (text, true) => Turn::Stopped(self.piece(text)),
            (text, false) if text.is_empty() => Turn::Nothing,
            (text, false) => Turn::Show(self.piece(text)),
        }
    }

    /// What was held back, when the driver says that the choice ended, and its `finish_reason`.
    pub fn finish(&mut self, finish: Finish) -> (Piece, &'static str) {
        let rest = self.detokenizer.finish();
        let (mut text, stopped) = self.matcher.push(&rest);
        if !stopped {
            text.push_str(&self.matcher.finish());
        }
        let reason = match finish {
            Finish::Length if !stopped => "length",
            _ => "stop",
        };
        (self.piece(text), reason)
    }

    fn piece(&mut self, text: String) -> Piece {
        let stop = self.matcher.found().map(str::to_owned);
        Piece { text, tokens: std::mem::take(&mut self.pending), stop }
    }

    fn describe(&self, sampled: &Sampled) -> TokenInfo {
        TokenInfo {
            id: sampled.token,
            name: self.name(sampled.token),
            logprob: sampled.logprob,
            top: sampled.top.iter().map(|top| (self.name(top.token), top.logprob)).collect(),
            offset: self.characters,
            prompt: false,
        }
    }

    fn name(&self, token: u32) -> TokenName {
        let bytes = self.text.token_bytes(token).to_vec();
        TokenName { text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }
}

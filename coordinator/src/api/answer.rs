//! From sampled tokens to the text of one choice: whole characters, stop strings, log-probabilities.
//!
//! Must never wait or know how pieces are sent; it is a machine: events in, pieces out.

use std::sync::Arc;

use caravan_core::request::{Finish, Sampled};

use super::backend::Text;
use super::tools::calls::{CallDelta, CallParser, Parsed};
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
}

/// Text and bytes of a token. The text of a token that is part of a character is U+FFFD.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenName {
    pub text: String,
    pub bytes: Vec<u8>,
}

/// Text that may be shown, and parts of tool calls, with all tokens that came since the last piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    pub text: String,
    pub calls: Vec<CallDelta>,
    pub tokens: Vec<TokenInfo>,
}

impl Piece {
    pub fn append(&mut self, other: Piece) {
        self.text.push_str(&other.text);
        self.tokens.extend(other.tokens);
        for call in other.calls {
            match self.calls.iter_mut().find(|known| known.index == call.index) {
                Some(known) => known.arguments.push_str(&call.arguments),
                None => self.calls.push(call),
            }
        }
    }

    /// Nothing in it that a client would see.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty()
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

/// Finds the tool calls of a choice.
pub struct Calls {
    pub parser: CallParser,
    /// A control token that opens calls, and the text by which the parser knows it.
    pub marker: Option<(u32, &'static str)>,
}

/// The text of one choice while it grows.
pub struct ChoiceText {
    text: Arc<dyn Text>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    calls: Option<Calls>,
    keep_tokens: bool,
    pending: Vec<TokenInfo>,
    characters: usize,
    /// Tokens so far, with the one that completed a stop string.
    pub tokens: u64,
}

impl ChoiceText {
    /// `keep_tokens`: pieces carry their tokens (for log-probabilities and token ids). `calls`: if the
    /// answer may call tools.
    pub fn new(
        text: Arc<dyn Text>,
        stops: Vec<String>,
        keep_tokens: bool,
        calls: Option<Calls>,
    ) -> ChoiceText {
        ChoiceText {
            text,
            detokenizer: Detokenizer::default(),
            matcher: StopMatcher::new(stops),
            calls,
            keep_tokens,
            pending: Vec::new(),
            characters: 0,
            tokens: 0,
        }
    }

    pub fn push(&mut self, sampled: Sampled) -> Turn {
        self.tokens += 1;
        let marker = self.calls.as_ref().and_then(|calls| calls.marker);
        let bytes = match marker {
            Some((token, text)) if token == sampled.token => text.as_bytes(),
            _ => self.text.token_bytes(sampled.token),
        };
        let fresh = self.detokenizer.push(bytes);
        if self.keep_tokens {
            let info = self.describe(&sampled);
            self.pending.push(info);
        }
        self.characters += fresh.chars().count();
        if fresh.is_empty() {
            return Turn::Nothing;
        }
        let (text, stopped) = self.matcher.push(&fresh);
        let parsed = self.parse(text, stopped);
        match stopped {
            true => Turn::Stopped(self.piece(parsed)),
            false if parsed.text.is_empty() && parsed.calls.is_empty() => Turn::Nothing,
            false => Turn::Show(self.piece(parsed)),
        }
    }

    /// `finish_reason` of a choice that came to its end by itself or by a stop string.
    pub fn stop_reason(&self) -> &'static str {
        match self.calls.as_ref().is_some_and(|calls| calls.parser.called()) {
            true => "tool_calls",
            false => "stop",
        }
    }

    fn parse(&mut self, text: String, last: bool) -> Parsed {
        let Some(calls) = &mut self.calls else { return Parsed { text, calls: Vec::new() } };
        let mut parsed = calls.parser.push(&text);
        if last {
            let rest = calls.parser.finish();
            parsed.text.push_str(&rest.text);
            parsed.calls.extend(rest.calls);
        }
        parsed
    }

    /// What was held back, when the driver says that the choice ended, and its `finish_reason`.
    pub fn finish(&mut self, finish: Finish) -> (Piece, &'static str) {
        let rest = self.detokenizer.finish();
        let (mut text, stopped) = self.matcher.push(&rest);
        if !stopped {
            text.push_str(&self.matcher.finish());
        }
        let parsed = self.parse(text, true);
        let reason = match finish {
            Finish::Length if !stopped => "length",
            _ => self.stop_reason(),
        };
        (self.piece(parsed), reason)
    }

    fn piece(&mut self, parsed: Parsed) -> Piece {
        let Parsed { text, calls } = parsed;
        Piece { text, calls, tokens: std::mem::take(&mut self.pending) }
    }

    fn describe(&self, sampled: &Sampled) -> TokenInfo {
        TokenInfo {
            id: sampled.token,
            name: self.name(sampled.token),
            logprob: sampled.logprob,
            top: sampled.top.iter().map(|top| (self.name(top.token), top.logprob)).collect(),
            offset: self.characters,
        }
    }

    fn name(&self, token: u32) -> TokenName {
        let bytes = self.text.token_bytes(token).to_vec();
        TokenName { text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }
}

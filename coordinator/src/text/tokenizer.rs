//! The tokenizer of a model: its special tokens, and the kind of merging between them.
//!
//! Must never guess: a tokenizer of a kind that is not known is an error that names it. Must never spend
//! more than (nearly) linear time on a text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anyhow::{bail, ensure};
use caravan_core::gguf::{Gguf, Texts};

use super::bytes::ByteBpe;
use super::keys::{self, token_type};
use super::merges::MergedPieces;
use super::pieces::Pieces;
use super::special::SpecialTokens;

pub(super) struct Tokenizer {
    kind: Kind,
    special: SpecialTokens,
    control: BTreeMap<String, u32>,
    /// What all tokens stand for, one after the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    bos: Option<u32>,
    add_bos: bool,
    /// Special tokens take white space of any kind with them, not of ASCII alone.
    strip_any: bool,
    /// End of text, end of turn.
    stops: Vec<u32>,
}

/// How the text between special tokens is encoded.
enum Kind {
    Bytes(Box<ByteBpe>),
    Pieces(Box<Pieces>),
    Merged(Box<MergedPieces>),
}

/// How to encode a text.
#[derive(Clone, Copy)]
pub(super) struct Encoding {
    /// Control tokens written in the text become those tokens. (User-defined tokens always do.)
    pub special: bool,
    /// A character that is dropped after special tokens were looked for.
    pub drop: Option<char>,
    /// Tokens at most.
    pub most: usize,
}

impl Default for Encoding {
    fn default() -> Self {
        Encoding { special: false, drop: None, most: usize::MAX }
    }
}

impl Tokenizer {
    pub(super) fn from_gguf(gguf: &Gguf) -> anyhow::Result<Tokenizer> {
        let model = keys::text(gguf, "tokenizer.ggml.model")?;
        let tokens = keys::texts(gguf, "tokenizer.ggml.tokens")?;
        let count = tokens.len();
        let types = keys::token_types(gguf, count)?;
        // Of files that lack the key, these want the token.
        let (kind, first) = match model {
            "gpt2" => {
                (Kind::Bytes(Box::new(ByteBpe::from_gguf(gguf, &types)?)), ByteBpe::first_token_wanted(gguf))
            }
            "llama" => (Kind::Pieces(Box::new(Pieces::from_gguf(gguf, &types)?)), true),
            "caravan-pieces" => (Kind::Merged(Box::new(MergedPieces::from_gguf(gguf)?)), false),
            _ => bail!(
                "`tokenizer.ggml.model` is {model:?}: this build has `gpt2` (byte-level BPE) and `llama` (scored pieces)"
            ),
        };
        let strip_ids = keys::ids(gguf, "tokenizer.caravan.strip_token_ids", count)?;
        let (strip_any, strips) = (strip_ids.is_some(), strips(gguf));
        let strip = |token: u32, text: &str| match strip_ids {
            Some(ids) => ids.contains(&u64::from(token)),
            None => strips && !NEVER_STRIP.contains(&text),
        };
        let (special, control) = special_tokens(tokens, &types, &strip);
        let (bytes, ends) = token_bytes(&kind, tokens, &types);
        let key = |name: &str| keys::id(gguf, &format!("tokenizer.ggml.{name}_token_id"), count);
        let add_bos = keys::flag(gguf, "tokenizer.ggml.add_bos_token", first)?;
        let bos = key("bos")?;
        ensure!(
            bos.is_some() || !add_bos,
            "the file wants a first token and lacks `tokenizer.ggml.bos_token_id`"
        );
        let mut stops: Vec<u32> = [key("eos")?, key("eot")?].into_iter().flatten().collect();
        let further = keys::ids(gguf, "tokenizer.caravan.stop_token_ids", count)?.unwrap_or_default();
        stops.extend(further.iter().map(|id| *id as u32));
        Ok(Tokenizer { kind, special, control, bytes, ends, bos, add_bos, strip_any, stops })
    }

    /// Appends the tokens of `text`; false if there are more than `encoding.most` (then some are left out).
    pub(super) fn encode(&self, text: &str, encoding: Encoding, out: &mut Vec<u32>) -> bool {
        let mut rest = text;
        let mut start = true;
        while let Some(found) = self.special.find(rest, encoding.special) {
            if self.encode_plain(&rest[..found.start], start, encoding, out).is_break() {
                return false;
            }
            out.push(found.token);
            rest = &rest[found.end..];
            if found.strip {
                rest = match self.strip_any {
                    true => rest.trim_start(),
                    false => rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']),
                };
            }
            start = false;
        }
        self.encode_plain(rest, start, encoding, out).is_continue() && out.len() <= encoding.most
    }

    /// A special token stands before `text`, or at the `start` nothing.
    fn encode_plain(
        &self,
        text: &str,
        start: bool,
        encoding: Encoding,
        out: &mut Vec<u32>,
    ) -> ControlFlow<()> {
        let text = match encoding.drop {
            Some(mark) if text.contains(mark) => Cow::Owned(text.replace(mark, "")),
            _ => Cow::Borrowed(text),
        };
        match &self.kind {
            Kind::Bytes(bpe) => bpe.encode(&text, encoding.most, out),
            Kind::Pieces(pieces) => pieces.encode(&text, true, encoding.most, out),
            Kind::Merged(pieces) => pieces.encode(&text, start, encoding.most, out),
        }
    }

    /// The token of this text, if it is a control token.
    pub(super) fn control_token(&self, text: &str) -> Option<u32> {
        self.control.get(text).copied()
    }

    pub(super) fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Ends of text and turn by the file's own keys.
    pub(super) fn stops(&self) -> &[u32] {
        &self.stops
    }

    pub(super) fn bos_if_added(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    pub(super) fn vocab(&self) -> u32 {
        self.ends.len() as u32
    }

    pub(super) fn token_bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let end = self.ends.get(token).map_or(0, |end| *end as usize);
        let start =
            token.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }
}

/// Whether special tokens take the white space behind them with them. Files have no key for it; it is known
/// of the Phi-3 models (`rstrip` in their `tokenizer.json`), which name themselves.
fn strips(gguf: &Gguf) -> bool {
    let name = keys::text(gguf, "general.name").unwrap_or_default().to_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

/// Tokens of those models that leave white space alone.
const NEVER_STRIP: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// Control, unknown and user-defined tokens by their text, and the control tokens by name. `strip`: whether
/// one takes the white space behind it.
fn special_tokens(
    tokens: &Texts,
    types: &[i64],
    strip: &dyn Fn(u32, &str) -> bool,
) -> (SpecialTokens, BTreeMap<String, u32>) {
    let mut special = SpecialTokens::new();
    let mut control = BTreeMap::new();
    for ((token, text), kind) in (0u32..).zip(tokens.iter()).zip(types) {
        if *kind == token_type::CONTROL {
            control.insert(text.to_owned(), token);
        }
        // The unknown token is one that a message must not write either.
        let is_control = matches!(*kind, token_type::CONTROL | token_type::UNKNOWN);
        // A control token of one character could not be told from the same character in a message.
        let least = if is_control { 2 } else { 1 };
        if (is_control || *kind == token_type::USER_DEFINED) && text.chars().nth(least - 1).is_some() {
            special.insert(text, token, is_control, strip(token, text));
        }
    }
    (special, control)
}

/// What each token stands for.
fn token_bytes(kind: &Kind, tokens: &Texts, types: &[i64]) -> (Vec<u8>, Vec<u32>) {
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(tokens.len());
    for (text, token_type) in tokens.iter().zip(types) {
        match kind {
            Kind::Bytes(bpe) => bpe.spell(text, *token_type, &mut bytes),
            Kind::Pieces(_) | Kind::Merged(_) => Pieces::spell(text, *token_type, &mut bytes),
        }
        ends.push(bytes.len() as u32);
    }
    (bytes, ends)
}

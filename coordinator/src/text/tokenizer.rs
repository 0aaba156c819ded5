//! The tokenizer of a model: its special tokens, and the kind of merging between them.
//!
//! Must never guess: a tokenizer of a kind that is not known is an error that names it. Must never spend
//! more than (nearly) linear time on a text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anyhow::{bail, ensure};
use caravan_core::gguf::{Gguf, Texts, Vocabulary};

use super::bytes::ByteBpe;
use super::keys::{self, token_type};
use super::pieces::Pieces;
use super::special::SpecialTokens;

pub(super) struct Tokenizer {
    kind: Kind,
    special: SpecialTokens,
    control: BTreeMap<String, u32>,
    vocabulary: Vocabulary,
    bos: Option<u32>,
    add_bos: bool,
    /// End of text, end of turn.
    stops: Vec<u32>,
}

/// How the text between special tokens is encoded.
enum Kind {
    Bytes(Box<ByteBpe>),
    Pieces(Box<Pieces>),
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
            _ => bail!(
                "`tokenizer.ggml.model` is {model:?}: this build has `gpt2` (byte-level BPE) and `llama` (scored pieces)"
            ),
        };
        let (special, control) = special_tokens(tokens, &types, strips(gguf));
        let vocabulary = gguf.vocabulary()?;
        let key = |name: &str| keys::id(gguf, &format!("tokenizer.ggml.{name}_token_id"), count);
        let add_bos = keys::flag(gguf, "tokenizer.ggml.add_bos_token", first)?;
        let bos = key("bos")?;
        ensure!(
            bos.is_some() || !add_bos,
            "the file wants a first token and lacks `tokenizer.ggml.bos_token_id`"
        );
        let stops = [key("eos")?, key("eot")?].into_iter().flatten().collect();
        Ok(Tokenizer { kind, special, control, vocabulary, bos, add_bos, stops })
    }

    /// Appends the tokens of `text`; false if there are more than `encoding.most` (then some are left out).
    pub(super) fn encode(&self, text: &str, encoding: Encoding, out: &mut Vec<u32>) -> bool {
        let mut rest = text;
        let mut first = true;
        while let Some(found) = self.special.find(rest, encoding.special) {
            if self.encode_plain(&rest[..found.start], first, encoding, out).is_break() {
                return false;
            }
            out.push(found.token);
            rest = &rest[found.end..];
            if found.strip {
                rest = rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
            }
            first = true;
        }
        self.encode_plain(rest, first, encoding, out).is_continue() && out.len() <= encoding.most
    }

    /// `first`: nothing, or a special token, stands before `text`.
    fn encode_plain(
        &self,
        text: &str,
        first: bool,
        encoding: Encoding,
        out: &mut Vec<u32>,
    ) -> ControlFlow<()> {
        let text = match encoding.drop {
            Some(mark) if text.contains(mark) => Cow::Owned(text.replace(mark, "")),
            _ => Cow::Borrowed(text),
        };
        match &self.kind {
            Kind::Bytes(bpe) => bpe.encode(&text, encoding.most, out),
            Kind::Pieces(pieces) => pieces.encode(&text, first, encoding.most, out),
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

    /// What the tokens stand for.
    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

/// Whether special tokens take the white space behind them with them. Files have no key for it; it is known
/// of the Phi-3 models (`rstrip` in their `tokenizer.json`), which name themselves.
fn strips(gguf: &Gguf) -> bool {
    let name = keys::text(gguf, "general.name").unwrap_or_default().to_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

/// Control, unknown and user-defined tokens by their text, and the control tokens by name.
fn special_tokens(tokens: &Texts, types: &[i64], strips: bool) -> (SpecialTokens, BTreeMap<String, u32>) {
    const NEVER_STRIP: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
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
            special.insert(text, token, is_control, strips && !NEVER_STRIP.contains(&text));
        }
    }
    (special, control)
}

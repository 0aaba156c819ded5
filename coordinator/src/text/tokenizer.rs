//! The byte-level BPE of a model file: its tokens, merges and special tokens.
//!
//! Must never guess: a tokenizer of another kind, or a pre-tokenizer that is not known, is an error that
//! names it. Must never spend more than (nearly) linear time on a text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anyhow::{Context, bail, ensure};
use caravan_core::gguf::{Gguf, Texts, Value};
use caravan_core::limits;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::special::SpecialTokens;
use super::split::{self, Splitter};

/// `tokenizer.ggml.token_type`.
mod token_type {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
}

pub(super) struct Tokenizer {
    bpe: BPE,
    splitter: Splitter,
    alphabet: Alphabet,
    special: SpecialTokens,
    control: BTreeMap<String, u32>,
    /// What all tokens stand for, one after the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    bos: Option<u32>,
    add_bos: bool,
    /// End of text, end of turn.
    stops: Vec<u32>,
}

/// How to encode a text.
#[derive(Clone, Copy)]
pub(super) struct Encoding {
    /// Special tokens written in the text become those tokens.
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

/// The characters that stand for bytes in a byte-level vocabulary.
struct Alphabet {
    characters: [char; 256],
}

impl Alphabet {
    /// Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters
    /// from U+0100. Source: GPT-2's encoder.
    fn new() -> Alphabet {
        let mut characters = ['\0'; 256];
        let mut others = '\u{100}'..;
        for (byte, character) in (0u8..=255).zip(&mut characters) {
            *character = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
                _ => others.next().unwrap_or_default(),
            };
        }
        Alphabet { characters }
    }

    fn written(&self, text: &str) -> String {
        text.bytes().map(|byte| self.characters[usize::from(byte)]).collect()
    }

    /// The byte that a character stands for.
    fn bytes(&self) -> BTreeMap<char, u8> {
        self.characters.iter().copied().zip(0u8..=255).collect()
    }
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> anyhow::Result<&'a Texts> {
    let value = gguf.metadata.get(key).with_context(|| format!("the file lacks `{key}`"))?;
    value.as_texts().with_context(|| format!("`{key}` must be an array of strings"))
}

fn text<'a>(gguf: &'a Gguf, key: &str) -> anyhow::Result<&'a str> {
    let value = gguf.metadata.get(key).with_context(|| format!("the file lacks `{key}`"))?;
    value.as_text().with_context(|| format!("`{key}` must be a string"))
}

/// A token id of the file, checked; `None` if the key is not there.
fn id(gguf: &Gguf, key: &str, vocab: usize) -> anyhow::Result<Option<u32>> {
    let Some(value) = gguf.metadata.get(key) else {
        return Ok(None);
    };
    let id = value.as_u64().filter(|id| *id < vocab as u64).and_then(|id| u32::try_from(id).ok());
    id.map(Some).with_context(|| format!("`{key}` = {value} is not one of the {vocab} tokens"))
}

/// The type of each token; all normal if the file has none.
fn token_types(gguf: &Gguf, count: usize) -> anyhow::Result<Vec<i64>> {
    let types = match gguf.metadata.get("tokenizer.ggml.token_type") {
        None => vec![1; count],
        Some(Value::Ints(types)) => types.clone(),
        Some(Value::Uints(types)) => types.iter().map(|kind| i64::try_from(*kind).unwrap_or(0)).collect(),
        Some(_) => bail!("`tokenizer.ggml.token_type` must be an array of integers"),
    };
    ensure!(types.len() == count, "{} token types for {count} tokens", types.len());
    if let Some(kind) = types.iter().find(|kind| !(1..=6).contains(*kind)) {
        bail!("`tokenizer.ggml.token_type` has an unknown type {kind}");
    }
    Ok(types)
}

impl Tokenizer {
    pub(super) fn from_gguf(gguf: &Gguf) -> anyhow::Result<Tokenizer> {
        let model = text(gguf, "tokenizer.ggml.model")?;
        ensure!(
            model == "gpt2",
            "`tokenizer.ggml.model` is {model:?}: only `gpt2` (byte-level BPE) is supported by this build"
        );
        let pre = text(gguf, "tokenizer.ggml.pre")?;
        let splitter = Splitter::from_name(pre).with_context(|| {
            format!("`tokenizer.ggml.pre` is {pre:?}: this build does not know that pre-tokenizer")
        })?;
        split::prepare();
        let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
        let count = tokens.len();
        let types = token_types(gguf, count)?;
        let alphabet = Alphabet::new();
        let (special, control) = special_tokens(tokens, &types);
        let (bytes, ends) = token_bytes(tokens, &types, &alphabet);
        let bpe = bpe(tokens, &types, texts(gguf, "tokenizer.ggml.merges")?, splitter)?;
        let key = |name: &str| id(gguf, &format!("tokenizer.ggml.{name}_token_id"), count);
        let add_bos = match gguf.metadata.get("tokenizer.ggml.add_bos_token") {
            // The Llama 3 files that lack the key want the token.
            None => splitter == Splitter::Llama3,
            Some(value) => value.as_bool().context("`tokenizer.ggml.add_bos_token` must be true or false")?,
        };
        let bos = key("bos")?;
        ensure!(
            bos.is_some() || !add_bos,
            "the file wants a first token and lacks `tokenizer.ggml.bos_token_id`"
        );
        let stops = [key("eos")?, key("eot")?].into_iter().flatten().collect();
        Ok(Tokenizer { bpe, splitter, alphabet, special, control, bytes, ends, bos, add_bos, stops })
    }

    /// Appends the tokens of `text`; false if there are more than `encoding.most` (then some are left out).
    pub(super) fn encode(&self, text: &str, encoding: Encoding, out: &mut Vec<u32>) -> bool {
        let mut rest = text;
        let find = |text: &str| encoding.special.then(|| self.special.find(text)).flatten();
        while let Some(found) = find(rest) {
            if self.encode_plain(&rest[..found.start], encoding, out).is_break() {
                return false;
            }
            out.push(found.token);
            rest = &rest[found.end..];
        }
        self.encode_plain(rest, encoding, out).is_continue() && out.len() <= encoding.most
    }

    fn encode_plain(&self, text: &str, encoding: Encoding, out: &mut Vec<u32>) -> ControlFlow<()> {
        let text = match encoding.drop {
            Some(mark) if text.contains(mark) => Cow::Owned(text.replace(mark, "")),
            _ => Cow::Borrowed(text),
        };
        self.splitter.words(&text, |mut word| {
            // Merging takes memory and (a little more than linear) time by the length of the word.
            while word.len() > limits::TOKENIZER_WORD_BYTES {
                let (part, rest) = word.split_at(word.floor_char_boundary(limits::TOKENIZER_WORD_BYTES));
                self.merge(part, out);
                word = rest;
                if out.len() > encoding.most {
                    return ControlFlow::Break(());
                }
            }
            self.merge(word, out);
            match out.len() > encoding.most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    }

    fn merge(&self, word: &str, out: &mut Vec<u32>) {
        // Without an unknown token the model has no way to fail: it leaves out what it has no bytes for.
        let tokens = self.bpe.tokenize(&self.alphabet.written(word)).unwrap_or_default();
        out.extend(tokens.iter().map(|token| token.id));
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

/// Control and user-defined tokens by their text, and the control tokens by name.
fn special_tokens(tokens: &Texts, types: &[i64]) -> (SpecialTokens, BTreeMap<String, u32>) {
    let mut special = SpecialTokens::new();
    let mut control = BTreeMap::new();
    for ((token, text), kind) in (0u32..).zip(tokens.iter()).zip(types) {
        let is_control = *kind == token_type::CONTROL;
        if is_control {
            control.insert(text.to_owned(), token);
        }
        // A control token of one character could not be told from the same character in a message.
        let least = if is_control { 2 } else { 1 };
        if (is_control || *kind == token_type::USER_DEFINED) && text.chars().nth(least - 1).is_some() {
            special.insert(text, token, is_control);
        }
    }
    (special, control)
}

/// What each token stands for: bytes by the alphabet, or its text where it is not written in it.
fn token_bytes(tokens: &Texts, types: &[i64], alphabet: &Alphabet) -> (Vec<u8>, Vec<u32>) {
    let bytes_of = alphabet.bytes();
    let mut low = [None; 0x180];
    bytes_of.iter().for_each(|(character, byte)| low[*character as usize] = Some(*byte));
    let byte_of = |character: char| low.get(character as usize).copied().flatten();
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(tokens.len());
    for (text, kind) in tokens.iter().zip(types) {
        match *kind {
            token_type::CONTROL | token_type::UNKNOWN => {}
            token_type::USER_DEFINED => bytes.extend(text.bytes()),
            _ if text.chars().all(|character| byte_of(character).is_some()) => {
                bytes.extend(text.chars().filter_map(byte_of));
            }
            _ => bytes.extend(text.bytes()),
        }
        ends.push(bytes.len() as u32);
    }
    (bytes, ends)
}

fn bpe(tokens: &Texts, types: &[i64], merges: &Texts, splitter: Splitter) -> anyhow::Result<BPE> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for ((token, text), kind) in (0u32..).zip(tokens.iter()).zip(types) {
        if matches!(*kind, token_type::CONTROL | token_type::USER_DEFINED) {
            continue;
        }
        if let Some(other) = vocab.insert(text.to_owned(), token) {
            bail!("tokens {other} and {token} are both {text:?}");
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    let mut merged = String::new();
    for (rank, merge) in merges.iter().enumerate() {
        let parts = merge.split_once(' ').filter(|(one, other)| {
            merged.clear();
            merged.push_str(one);
            merged.push_str(other);
            // The builder trusts that the merged token is in the vocabulary, and panics if it is longer
            // than every token.
            vocab.contains_key(one as &str)
                && vocab.contains_key(other as &str)
                && vocab.contains_key(&merged)
        });
        let Some((one, other)) = parts else {
            bail!(
                "merge {rank} {:?} is not of tokens of the vocabulary",
                merge.chars().take(80).collect::<String>()
            );
        };
        pairs.push((one.to_owned(), other.to_owned()));
    }
    let builder = BPE::builder().vocab_and_merges(vocab, pairs);
    // Without the library's cache: it belongs to threads, and would grow with every one of them.
    let builder = builder.cache_capacity(0).ignore_merges(splitter == Splitter::Llama3);
    builder.build().map_err(|error| anyhow::anyhow!("the merges can't be used: {error}"))
}

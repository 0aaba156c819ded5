//! The vocabulary of `tokenizer.json`: tokens by number, merges, added tokens.
//!
//! Must never give one number to two tokens, or one text two numbers.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{FolderError, TOKENIZER, bad, shown};
use crate::limits;

/// Kinds of tokens, with the numbers of `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Every token with its number, as often as it is there; `None` where the file has no such table, as with
/// scored pieces.
pub(super) struct Vocab(pub Option<Vec<(String, u32)>>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens with their numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = map.next_entry()? {
                    tokens.push(token);
                }
                Ok(Vocab(Some(tokens)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocab(None))
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

/// Two tokens that become one, with a space between them.
pub(super) struct Merge(pub String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, in a list or with a space between them")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                match text.split(' ').count() {
                    2 => Ok(Merge(text.to_owned())),
                    _ => Err(E::custom(format!("the merge {} is not of two tokens", shown(text)))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let mut part = || seq.next_element::<String>();
                match (part()?, part()?, part()?) {
                    (Some(one), Some(other), None) => self.visit_str(&format!("{one} {other}")),
                    _ => Err(A::Error::custom("a merge is not of two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

/// A token that is looked for in a text before the others.
#[derive(Deserialize)]
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub special: bool,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
}

/// Tokens by number with their types, as many as the embedding has rows.
pub(super) struct Tokens {
    pub texts: Vec<String>,
    pub types: Vec<i64>,
    /// Those that take the white space behind them with them.
    pub strip: Vec<u64>,
}

/// `rows`: of the embedding. `bytes`: tokens such as `<0x0A>` stand for bytes.
pub(super) fn tokens(
    vocab: Vec<(String, u32)>,
    added: &[Added],
    rows: u32,
    bytes: bool,
) -> Result<Tokens, FolderError> {
    if u64::from(rows) > limits::GGUF_ARRAY_ENTRIES / 4 {
        return bad(format!("config.json: a vocabulary of {rows} tokens is larger than any model's"));
    }
    let mut found: Vec<Option<(String, i64)>> = vec![None; rows as usize];
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    for (text, number) in vocab {
        let kind = if bytes && is_byte(&text) { BYTE } else { NORMAL };
        if let Some(other) = numbers.insert(text.clone(), number) {
            return bad(format!("{TOKENIZER}: the token {} is there as {other} and {number}", shown(&text)));
        }
        match found.get_mut(number as usize) {
            None => {
                return bad(format!(
                    "{TOKENIZER}: the token {} has the number {number}, and the model {rows} tokens",
                    shown(&text)
                ));
            }
            Some(Some((other, _))) => return two(number, other, &text),
            Some(place) => *place = Some((text, kind)),
        }
    }
    let mut strip = Vec::new();
    for token in added {
        // Beyond the embedding there is nothing to compute with: such a token is never found in a text.
        let Some(place) = found.get_mut(token.id as usize) else {
            continue;
        };
        let known = numbers.insert(token.content.clone(), token.id);
        match place {
            Some((other, _)) if *other != token.content => return two(token.id, other, &token.content),
            None if known.is_some_and(|known| known != token.id) => {
                return bad(format!("{TOKENIZER}: the token {} has two numbers", shown(&token.content)));
            }
            _ => {}
        }
        *place = Some((token.content.clone(), if token.special { CONTROL } else { USER_DEFINED }));
        if token.rstrip {
            strip.push(u64::from(token.id));
        }
    }
    let (mut texts, mut types) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
    for (number, token) in found.into_iter().enumerate() {
        let (text, kind) = token.unwrap_or_else(|| (filler(number, &numbers), UNUSED));
        texts.push(text);
        types.push(kind);
    }
    Ok(Tokens { texts, types, strip })
}

fn two<T>(number: u32, one: &str, other: &str) -> Result<T, FolderError> {
    bad(format!("{TOKENIZER}: the tokens {} and {} both have the number {number}", shown(one), shown(other)))
}

/// A name for a row of the embedding that no token has.
fn filler(number: usize, taken: &BTreeMap<String, u32>) -> String {
    let mut name = format!("[PAD{number}]");
    while taken.contains_key(&name) {
        name.push(']');
    }
    name
}

/// A token like `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

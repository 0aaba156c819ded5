//! What the tokens of a model file stand for, as bytes.
//!
//! Must never guess: a tokenizer of a kind that is not known is an error that names it.

use super::{Gguf, GgufError, Texts, Value, bad};

/// `tokenizer.ggml.token_type`.
mod token_type {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const BYTE: i64 = 6;
}

/// Stands for a space in vocabularies of scored pieces.
const SPACE: char = '\u{2581}';

/// The characters that stand for bytes in a byte-level vocabulary.
#[derive(Clone, Debug)]
pub struct ByteAlphabet {
    characters: [char; 256],
    /// The other way round; no character of the alphabet is beyond it.
    bytes: [Option<u8>; 0x180],
}

impl Default for ByteAlphabet {
    /// Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters
    /// from U+0100. Source: GPT-2's encoder.
    fn default() -> ByteAlphabet {
        let mut characters = ['\0'; 256];
        let mut others = '\u{100}'..;
        for (byte, character) in (0u8..=255).zip(&mut characters) {
            *character = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
                _ => others.next().unwrap_or_default(),
            };
        }
        let mut bytes = [None; 0x180];
        for (byte, character) in (0u8..=255).zip(&characters) {
            bytes[*character as usize] = Some(byte);
        }
        ByteAlphabet { characters, bytes }
    }
}

impl ByteAlphabet {
    /// `text` as the vocabulary writes it.
    pub fn written(&self, text: &str) -> String {
        text.bytes().map(|byte| self.characters[usize::from(byte)]).collect()
    }

    /// The byte that a character stands for.
    fn byte(&self, character: char) -> Option<u8> {
        self.bytes.get(character as usize).copied().flatten()
    }

    /// Appends what a token stands for: bytes by the alphabet, or its text where it is not written in it.
    fn spell(&self, text: &str, out: &mut Vec<u8>) {
        if text.chars().all(|character| self.byte(character).is_some()) {
            out.extend(text.chars().filter_map(|character| self.byte(character)));
        } else {
            out.extend(text.bytes());
        }
    }
}

/// Every token's bytes, and which tokens control the model instead of standing for text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// What all tokens stand for, one after the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    /// Control tokens (the unknown token too) and their names, ascending.
    control: Vec<(u32, String)>,
}

impl Vocabulary {
    /// Tokens from 0 on: what each stands for, or the name of a control token.
    pub fn new(tokens: impl IntoIterator<Item = Result<Vec<u8>, String>>) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for token in tokens {
            match token {
                Ok(bytes) => vocabulary.bytes.extend(bytes),
                Err(name) => vocabulary.control.push((vocabulary.len(), name)),
            }
            vocabulary.ends.push(vocabulary.bytes.len() as u32);
        }
        vocabulary
    }

    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Vocabulary, GgufError> {
        let alphabet = match gguf.metadata.get("tokenizer.ggml.model").and_then(Value::as_text) {
            Some("gpt2") => Some(ByteAlphabet::default()),
            Some("llama") => None,
            other => {
                let name = other.unwrap_or_default();
                return bad(format!(
                    "`tokenizer.ggml.model` is {name:?}: this build has `gpt2` (byte-level BPE) and `llama` (scored pieces)"
                ));
            }
        };
        let Some(tokens) = gguf.metadata.get("tokenizer.ggml.tokens").and_then(Value::as_texts) else {
            return bad("the file lacks `tokenizer.ggml.tokens`, or it is no array of strings");
        };
        let mut vocabulary = Vocabulary::default();
        for ((token, text), kind) in (0u32..).zip(tokens.iter()).zip(token_types(gguf, tokens)?) {
            let out = &mut vocabulary.bytes;
            match (kind, &alphabet) {
                (token_type::CONTROL | token_type::UNKNOWN, _) => {
                    vocabulary.control.push((token, text.to_owned()));
                }
                (token_type::USER_DEFINED, _) => out.extend(text.bytes()),
                (_, Some(alphabet)) => alphabet.spell(text, out),
                (token_type::BYTE, None) => out.extend(byte_token(text)),
                (_, None) => out.extend(text.replace(SPACE, " ").bytes()),
            }
            // A header is far below 4 GiB.
            vocabulary.ends.push(vocabulary.bytes.len() as u32);
        }
        Ok(vocabulary)
    }

    /// Tokens.
    pub fn len(&self) -> u32 {
        self.ends.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes that a token stands for; empty for control tokens and for numbers beyond the vocabulary.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let end = self.ends.get(token).map_or(0, |end| *end as usize);
        let start =
            token.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// Control tokens with their names, ascending.
    pub fn control(&self) -> &[(u32, String)] {
        &self.control
    }

    /// The name of a control token.
    pub fn control_name(&self, token: u32) -> Option<&str> {
        let at = self.control.binary_search_by_key(&token, |(token, _)| *token).ok()?;
        self.control.get(at).map(|(_, name)| name.as_str())
    }
}

/// The type of each token; all normal if the file has none.
fn token_types(gguf: &Gguf, tokens: &Texts) -> Result<Vec<i64>, GgufError> {
    let types = match gguf.metadata.get("tokenizer.ggml.token_type") {
        None => vec![1; tokens.len()],
        Some(Value::Ints(types)) => types.clone(),
        Some(Value::Uints(types)) => types.iter().map(|kind| i64::try_from(*kind).unwrap_or(0)).collect(),
        Some(_) => return bad("`tokenizer.ggml.token_type` must be an array of integers"),
    };
    match types.len() == tokens.len() {
        true => Ok(types),
        false => bad(format!("{} token types for {} tokens", types.len(), tokens.len())),
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

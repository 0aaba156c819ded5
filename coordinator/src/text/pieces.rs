//! Scored pieces (`tokenizer.ggml.model` = `llama`): SentencePiece's BPE. Of all neighbours whose joined text
//! is a piece, those with the highest score are joined first, the leftmost of equal ones; a character that
//! ends in no piece is written as bytes.
//!
//! Must never join into a control, unknown or byte token: a text can't write them. Must never spend more
//! than (nearly) linear time on a text.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ops::ControlFlow;

use anyhow::{Context, bail};
use caravan_core::gguf::{Gguf, Texts};
use caravan_core::limits;

use super::keys::{self, token_type};

/// Stands for a space inside pieces.
const SPACE: char = '\u{2581}';

pub(super) struct Pieces {
    by_text: HashMap<Box<str>, Piece>,
    /// Of the longest piece.
    longest_bytes: usize,
    /// Characters that are neighbours inside some piece. Between two others nothing is ever joined, so a
    /// text can be cut there without changing its tokens.
    neighbours: HashSet<(char, char)>,
    /// The token of each byte.
    bytes: [u32; 256],
    /// A text, and what follows a special token, begins with a space more.
    space_first: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    token: u32,
    score: f64,
}

/// A part of the text that is joined so far; a chain.
struct Symbol {
    start: u32,
    /// 0 once it became part of the one before it.
    bytes: u32,
    before: u32,
    after: u32,
}

/// No symbol.
const NONE: u32 = u32::MAX;

/// Two neighbours that may be joined.
struct Candidate {
    score: f64,
    left: u32,
    right: u32,
    /// Of both; another length means that one of them has grown meanwhile.
    bytes: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Used for one segment after the other.
#[derive(Default)]
struct Work {
    segment: String,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl Pieces {
    pub(super) fn from_gguf(gguf: &Gguf, types: &[i64]) -> anyhow::Result<Pieces> {
        let tokens = keys::texts(gguf, "tokenizer.ggml.tokens")?;
        let scores = keys::scores(gguf, tokens.len())?;
        let mut by_text = HashMap::with_capacity(tokens.len());
        let mut neighbours = HashSet::new();
        let mut longest_bytes = 0;
        for (((token, text), kind), score) in (0u32..).zip(tokens.iter()).zip(types).zip(scores) {
            if matches!(*kind, token_type::CONTROL | token_type::UNKNOWN | token_type::BYTE) {
                continue;
            }
            if let Some(other) = by_text.insert(text.into(), Piece { token, score: *score }) {
                bail!("tokens {} and {token} are both {text:?}", other.token);
            }
            longest_bytes = longest_bytes.max(text.len());
            neighbours.extend(text.chars().zip(text.chars().skip(1)));
        }
        let space_first = keys::flag(gguf, "tokenizer.ggml.add_space_prefix", true)?;
        Ok(Pieces { by_text, longest_bytes, neighbours, bytes: bytes(tokens, types)?, space_first })
    }

    /// Appends the tokens of `text`; breaks off when there are more than `most` in `out`.
    /// `first`: nothing, or a special token, stands before it.
    pub(super) fn encode(&self, text: &str, first: bool, most: usize, out: &mut Vec<u32>) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut work = Work::default();
        let mut last = None;
        if first && self.space_first {
            work.segment.push(SPACE);
            last = Some(SPACE);
        }
        for character in text.chars() {
            let character = if character == ' ' { SPACE } else { character };
            let apart = last.is_some_and(|last| !self.neighbours.contains(&(last, character)));
            // Joining takes memory and (a little more than linear) time by the length of the segment.
            if apart || work.segment.len() >= limits::TOKENIZER_WORD_BYTES {
                self.segment(&mut work, out);
                if out.len() > most {
                    return ControlFlow::Break(());
                }
            }
            work.segment.push(character);
            last = Some(character);
        }
        self.segment(&mut work, out);
        match out.len() > most {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Appends the tokens of the segment, and clears it.
    fn segment(&self, work: &mut Work, out: &mut Vec<u32>) {
        let Work { segment, symbols, queue } = work;
        let count = segment.chars().count() as u32;
        symbols.clear();
        for (index, (start, character)) in (0u32..).zip(segment.char_indices()) {
            symbols.push(Symbol {
                start: start as u32,
                bytes: character.len_utf8() as u32,
                before: index.checked_sub(1).unwrap_or(NONE),
                after: if index + 1 == count { NONE } else { index + 1 },
            });
        }
        for right in 1..count {
            self.consider(segment, symbols, (right - 1, right), queue);
        }
        while let Some(Candidate { left, right, bytes, .. }) = queue.pop() {
            let (one, other) = (&symbols[left as usize], &symbols[right as usize]);
            if one.bytes == 0 || other.bytes == 0 || one.bytes + other.bytes != bytes {
                continue;
            }
            let (before, after) = (one.before, other.after);
            symbols[right as usize].bytes = 0;
            symbols[left as usize].bytes = bytes;
            symbols[left as usize].after = after;
            if let Some(next) = symbols.get_mut(after as usize) {
                next.before = left;
            }
            self.consider(segment, symbols, (before, left), queue);
            self.consider(segment, symbols, (left, after), queue);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.bytes > 0) {
            self.emit(symbol.of(segment), out);
        }
        segment.clear();
    }

    /// Queues two neighbours if their joined text is a piece.
    fn consider(
        &self,
        segment: &str,
        symbols: &[Symbol],
        (left, right): (u32, u32),
        queue: &mut BinaryHeap<Candidate>,
    ) {
        let (Some(one), Some(other)) = (symbols.get(left as usize), symbols.get(right as usize)) else {
            return;
        };
        let bytes = one.bytes + other.bytes;
        if bytes as usize > self.longest_bytes {
            return;
        }
        let joined = Symbol { bytes, ..*one };
        if let Some(piece) = self.by_text.get(joined.of(segment)) {
            queue.push(Candidate { score: piece.score, left, right, bytes });
        }
    }

    fn emit(&self, text: &str, out: &mut Vec<u32>) {
        match self.by_text.get(text) {
            Some(piece) => out.push(piece.token),
            None => out.extend(text.bytes().map(|byte| self.bytes[usize::from(byte)])),
        }
    }
}

impl Symbol {
    fn of<'a>(&self, segment: &'a str) -> &'a str {
        let start = self.start as usize;
        // Symbols begin and end at characters of the segment.
        segment.get(start..start + self.bytes as usize).unwrap_or_default()
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The token of every byte.
fn bytes(tokens: &Texts, types: &[i64]) -> anyhow::Result<[u32; 256]> {
    let mut found = [None; 256];
    for ((token, text), _) in
        (0u32..).zip(tokens.iter()).zip(types).filter(|(_, kind)| **kind == token_type::BYTE)
    {
        let byte =
            byte(text).with_context(|| format!("token {token} {text:?} is to be a byte and is none"))?;
        if let Some(other) = found[usize::from(byte)].replace(token) {
            bail!("tokens {other} and {token} are both the byte {text:?}");
        }
    }
    let mut bytes = [0; 256];
    for (byte, (place, token)) in bytes.iter_mut().zip(found).enumerate() {
        *place = token.with_context(|| {
            format!("the vocabulary has no token for the byte {byte:#04x}, which this build needs")
        })?;
    }
    Ok(bytes)
}

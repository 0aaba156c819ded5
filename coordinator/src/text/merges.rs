//! Pieces that are merged by rank (`tokenizer.ggml.model` = `caravan-pieces`): the BPE of `tokenizer.json` with
//! spaces written as a character of their own, and bytes for characters that the vocabulary lacks.
//!
//! Must never need more than (nearly) linear time, nor leave out a byte of a text.

use std::collections::HashSet;
use std::ops::ControlFlow;

use anyhow::{Context, bail, ensure};
use caravan_core::gguf::{Gguf, Texts};
use caravan_core::limits;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::keys::{self, text, texts};
use super::normal::composed;

/// Stands for a space inside pieces.
const SPACE: char = '\u{2581}';

/// Where a space is put first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Never,
    /// Before every part of a text between special tokens.
    Parts,
    /// The same, unless the part begins with one.
    PartsWithout,
    /// Before a text that begins with neither a space nor a special token.
    TextWithout,
}

pub(super) struct MergedPieces {
    bpe: BPE,
    /// Characters that are neighbours inside some piece. Between two others nothing is ever merged, so a
    /// text can be cut there without changing its tokens.
    neighbours: HashSet<(char, char)>,
    first: First,
    composed: bool,
}

impl MergedPieces {
    pub(super) fn from_gguf(gguf: &Gguf) -> anyhow::Result<MergedPieces> {
        let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
        let first = match text(gguf, "tokenizer.caravan.first_space")? {
            "never" => First::Never,
            "parts" => First::Parts,
            "parts-without" => First::PartsWithout,
            "text-without" => First::TextWithout,
            other => bail!("`tokenizer.caravan.first_space` is {other:?}, which this build does not know"),
        };
        let neighbours = tokens.iter().flat_map(|text| text.chars().zip(text.chars().skip(1))).collect();
        let composed = keys::flag(gguf, "tokenizer.caravan.composed", false)?;
        let bpe = bpe(tokens, texts(gguf, "tokenizer.ggml.merges")?)?;
        Ok(MergedPieces { bpe, neighbours, first, composed })
    }

    /// Appends the tokens of `text`; breaks off when there are more than `most` in `out`.
    /// `start`: nothing stands before it, not even a special token.
    pub(super) fn encode(&self, text: &str, start: bool, most: usize, out: &mut Vec<u32>) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        let text = composed(text, self.composed);
        let begins = text.starts_with([' ', SPACE]);
        let mut segment = String::new();
        let mut last = None;
        let spaced = match self.first {
            First::Never => false,
            First::Parts => true,
            First::PartsWithout => !begins,
            First::TextWithout => start && !begins,
        };
        if spaced {
            segment.push(SPACE);
            last = Some(SPACE);
        }
        for character in text.chars() {
            let character = if character == ' ' { SPACE } else { character };
            let apart = last.is_some_and(|last| !self.neighbours.contains(&(last, character)));
            // Merging takes memory and (a little more than linear) time by the length of the segment.
            if apart || segment.len() >= limits::TOKENIZER_WORD_BYTES {
                self.merge(&mut segment, out);
                if out.len() > most {
                    return ControlFlow::Break(());
                }
            }
            segment.push(character);
            last = Some(character);
        }
        self.merge(&mut segment, out);
        match out.len() > most {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Appends the tokens of the segment, and clears it.
    fn merge(&self, segment: &mut String, out: &mut Vec<u32>) {
        // It has no way to fail: every byte is in the vocabulary.
        let tokens = self.bpe.tokenize(segment).unwrap_or_default();
        out.extend(tokens.iter().map(|token| token.id));
        segment.clear();
    }
}

fn bpe(tokens: &Texts, merges: &Texts) -> anyhow::Result<BPE> {
    let vocab: Vocab = tokens.iter().map(str::to_owned).zip(0u32..).collect();
    ensure!(vocab.len() == tokens.len(), "two tokens have the same text");
    for byte in 0..=255u8 {
        let token = format!("<0x{byte:02X}>");
        ensure!(vocab.contains_key(&token), "the vocabulary lacks the byte {token:?}");
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let shown = || format!("merge {rank} {:?}", merge.chars().take(80).collect::<String>());
        let (one, other) = merge.split_once(' ').with_context(shown)?;
        // The builder panics where a merged token is longer than every token.
        let known = |text: &str| vocab.contains_key(text);
        ensure!(
            known(one) && known(other) && known(&format!("{one}{other}")),
            "{} is not of tokens of the vocabulary",
            shown()
        );
        pairs.push((one.to_owned(), other.to_owned()));
    }
    let builder = BPE::builder().vocab_and_merges(vocab, pairs).byte_fallback(true);
    // Without the library's cache: it belongs to threads, and would grow with every one of them.
    let built = builder.cache_capacity(0).build();
    built.map_err(|error| anyhow::anyhow!("the merges can't be used: {error}"))
}

//! Byte-level BPE (`tokenizer.ggml.model` = `gpt2`): words of bytes, merged by rank.
//!
//! Must never guess: a pre-tokenizer that is not known is an error that names it. Must never spend more than
//! (nearly) linear time on a text.

use std::ops::ControlFlow;

use anyhow::{Context, bail};
use caravan_core::gguf::{ByteAlphabet, Gguf, Texts};
use caravan_core::limits;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::keys::{text, texts, token_type};
use super::split::{self, Splitter};

pub(super) struct ByteBpe {
    bpe: BPE,
    splitter: Splitter,
    alphabet: ByteAlphabet,
}

impl ByteBpe {
    pub(super) fn from_gguf(gguf: &Gguf, types: &[i64]) -> anyhow::Result<ByteBpe> {
        let pre = text(gguf, "tokenizer.ggml.pre")?;
        let splitter = Splitter::from_name(pre).with_context(|| {
            format!("`tokenizer.ggml.pre` is {pre:?}: this build does not know that pre-tokenizer")
        })?;
        split::prepare(&splitter);
        let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
        let bpe = bpe(tokens, types, texts(gguf, "tokenizer.ggml.merges")?, split::whole_words(pre))?;
        Ok(ByteBpe { bpe, splitter, alphabet: ByteAlphabet::default() })
    }

    /// Whether a file that does not say so wants a first token.
    pub(super) fn first_token_wanted(gguf: &Gguf) -> bool {
        text(gguf, "tokenizer.ggml.pre").is_ok_and(split::first_token_wanted)
    }

    /// Appends the tokens of `text`; breaks off when there are more than `most` in `out`.
    pub(super) fn encode(&self, text: &str, most: usize, out: &mut Vec<u32>) -> ControlFlow<()> {
        self.splitter.words(text, |mut word| {
            // Merging takes memory and (a little more than linear) time by the length of the word.
            while word.len() > limits::TOKENIZER_WORD_BYTES {
                let (part, rest) = word.split_at(word.floor_char_boundary(limits::TOKENIZER_WORD_BYTES));
                self.merge(part, out);
                word = rest;
                if out.len() > most {
                    return ControlFlow::Break(());
                }
            }
            self.merge(word, out);
            match out.len() > most {
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
}

fn bpe(tokens: &Texts, types: &[i64], merges: &Texts, whole_words: bool) -> anyhow::Result<BPE> {
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
    let builder = builder.cache_capacity(0).ignore_merges(whole_words);
    builder.build().map_err(|error| anyhow::anyhow!("the merges can't be used: {error}"))
}

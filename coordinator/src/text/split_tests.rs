//! The scanners against the regular expressions that they stand for.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use super::split::Splitter;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn words(splitter: Splitter, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let flow = splitter.words(text, |word| {
        out.push(word.to_owned());
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    out
}

/// The expressions, compiled once.
static SPLITS: LazyLock<[Split; 3]> = LazyLock::new(|| {
    [GPT2, LLAMA3, QWEN2].map(|pattern| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap()
    })
});

fn wanted(splitter: Splitter, text: &str) -> Vec<String> {
    let split = match splitter {
        Splitter::Gpt2 | Splitter::Smollm => &SPLITS[0],
        Splitter::Llama3 => &SPLITS[1],
        Splitter::Qwen2 => &SPLITS[2],
    };
    let mut text = PreTokenizedString::from(text);
    if splitter == Splitter::Smollm {
        Digits::new(true).pre_tokenize(&mut text).unwrap();
    }
    split.pre_tokenize(&mut text).unwrap();
    let parts = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    parts.into_iter().map(|(word, ..)| word.to_owned()).filter(|word| !word.is_empty()).collect()
}

const ALL: [Splitter; 4] = [Splitter::Gpt2, Splitter::Smollm, Splitter::Llama3, Splitter::Qwen2];

#[test]
fn every_character_has_the_class_of_the_expressions() {
    // A character by itself, before a letter, and after a space shows its class in every expression.
    let mut text = String::new();
    for character in '\0'..=char::MAX {
        text.push(character);
        text.push('a');
    }
    for splitter in ALL {
        let (words, wanted) = (words(splitter, &text), wanted(splitter, &text));
        let differing = words.iter().zip(&wanted).find(|(word, wanted)| word != wanted);
        assert_eq!(differing, None, "{splitter:?}");
        assert_eq!(words.len(), wanted.len());
    }
}

#[test]
fn well_known_cases() {
    let text = "I've 123456 apples,\r\n\r\n  don'T you?   \u{a0}x ½ IV٣ \t end  ";
    for splitter in ALL {
        assert_eq!(words(splitter, text), wanted(splitter, text), "{splitter:?}");
        assert_eq!(words(splitter, ""), Vec::<String>::new());
    }
    assert_eq!(words(Splitter::Smollm, "a 12b"), ["a", " ", "1", "2", "b"]);
    assert_eq!(words(Splitter::Llama3, "12345'S 'S"), ["123", "45", "'S", " '", "S"]);
    assert_eq!(words(Splitter::Qwen2, "it'ſ"), wanted(Splitter::Qwen2, "it'ſ"));
}

#[test]
fn long_runs_are_cut_in_time_proportional_to_their_length() {
    for splitter in ALL {
        for part in [" ", "a", "1", "'", "\n", " \n", "a ", "'ll", "\u{3000}", "é1 ", " \t x"] {
            let text = part.repeat((4 << 20) / part.len());
            let start = Instant::now();
            let mut bytes = 0;
            let _ = splitter.words(&text, |word| {
                bytes += word.len();
                ControlFlow::Continue(())
            });
            assert_eq!(bytes, text.len());
            let spent = start.elapsed();
            assert!(spent < Duration::from_secs(30), "{splitter:?} took {spent:?} for {part:?}");
        }
    }
}

#[test]
fn the_consumer_can_stop() {
    let mut seen = 0;
    let flow = Splitter::Smollm.words("one two 3 four", |_| {
        seen += 1;
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(flow.is_break() && seen == 2);
}

fn character() -> impl Strategy<Value = char> {
    prop_oneof![
        4 => prop::sample::select(vec![' ', ' ', '\n', '\r', '\t', '\'', 's', 'T', 'l', 'L', 'e', 'r', 'V', 'ſ', '1', '.']),
        1 => prop::sample::select(vec!['\u{a0}', '\u{3000}', 'é', '½', '٣', 'ⅷ', '漢', '\u{301}', '🚚', '\u{200d}', '\0']),
        1 => any::<char>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8_000))]

    #[test]
    fn scanners_are_their_expressions(text in prop::collection::vec(character(), 0..24)) {
        let text: String = text.into_iter().collect();
        for splitter in ALL {
            prop_assert_eq!(words(splitter, &text), wanted(splitter, &text), "{:?}", splitter);
        }
    }
}

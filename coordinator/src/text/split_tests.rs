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
use super::stages;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn words(splitter: &Splitter, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let flow = splitter.words(text, |word| {
        out.push(word.to_owned());
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    out
}

/// A pre-tokenizer, and the expressions it stands for, run by the backtracking engine.
struct Case {
    name: &'static str,
    splitter: Splitter,
    digits: bool,
    splits: Vec<Split>,
}

impl Case {
    fn new(name: &'static str) -> Case {
        let one = |pattern: &str| vec![pattern.to_owned()];
        let expressions = match name {
            "gpt-2" | "smollm" => one(GPT2),
            "llama-bpe" => one(LLAMA3),
            "qwen2" => one(QWEN2),
            _ => stages::expressions(name),
        };
        let split = |pattern: String| {
            Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false).unwrap()
        };
        let splits = expressions.into_iter().map(split).collect();
        Case { name, splitter: Splitter::from_name(name).unwrap(), digits: name == "smollm", splits }
    }

    fn wanted(&self, text: &str) -> Vec<String> {
        let mut text = PreTokenizedString::from(text);
        if self.digits {
            Digits::new(true).pre_tokenize(&mut text).unwrap();
        }
        self.splits.iter().for_each(|split| split.pre_tokenize(&mut text).unwrap());
        let parts = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        parts.into_iter().map(|(word, ..)| word.to_owned()).filter(|word| !word.is_empty()).collect()
    }
}

/// All of them, compiled once; names that mean the same are taken once.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let names = ["gpt-2", "smollm", "llama-bpe", "qwen2"].into_iter().chain(stages::first_names());
    names.map(Case::new).collect()
});

#[test]
fn every_character_has_the_class_of_the_expressions() {
    // A character by itself, before a letter, and after a space shows its class in every expression.
    let mut text = String::new();
    for character in '\0'..=char::MAX {
        text.push(character);
        text.push('a');
    }
    for case in CASES.iter() {
        let (words, wanted) = (words(&case.splitter, &text), case.wanted(&text));
        let differing = words.iter().zip(&wanted).find(|(word, wanted)| word != wanted);
        assert_eq!(differing, None, "{}", case.name);
        assert_eq!(words.len(), wanted.len());
    }
}

#[test]
fn well_known_cases() {
    let text = "I've 123456 apples,\r\n\r\n  don'T you?   \u{a0}x ½ IV٣ \t end  ";
    for case in CASES.iter() {
        for text in [text, "it'ſ", "日本語12 かな", "ABCdef'Ll /\n/ \t\n\n x"] {
            assert_eq!(words(&case.splitter, text), case.wanted(text), "{}", case.name);
        }
        assert_eq!(words(&case.splitter, ""), Vec::<String>::new());
    }
    let by_name = |name: &str, text: &str| words(&Splitter::from_name(name).unwrap(), text);
    assert_eq!(by_name("smollm", "a 12b"), ["a", " ", "1", "2", "b"]);
    assert_eq!(by_name("llama-bpe", "12345'S 'S"), ["123", "45", "'S", " '", "S"]);
    assert_eq!(by_name("deepseek-v3", "a12345漢字 b"), ["a", "123", "45", "漢字", " b"]);
    assert_eq!(by_name("gpt-4o", "don't HTTPServer 12345"), ["don't", " HTTPServer", " ", "123", "45"]);
    assert_eq!(by_name("tekken", "don't 12"), ["don", "'t", " ", "1", "2"]);
}

#[test]
fn long_runs_are_cut_in_time_proportional_to_their_length() {
    for case in CASES.iter() {
        for part in [" ", "a", "1", "'", "\n", " \n", "a ", "'ll", "\u{3000}", "é1 ", " \t x"] {
            let text = part.repeat((1 << 20) / part.len());
            let start = Instant::now();
            let mut bytes = 0;
            let _ = case.splitter.words(&text, |word| {
                bytes += word.len();
                ControlFlow::Continue(())
            });
            assert_eq!(bytes, text.len());
            let spent = start.elapsed();
            assert!(spent < Duration::from_secs(30), "{} took {spent:?} for {part:?}", case.name);
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
        1 => prop::sample::select(vec!['\u{a0}', '\u{3000}', 'é', '한', 'ā', 'Ω', '/', '（', '½', '٣', 'ⅷ', '漢', '\u{301}', '🚚', '\u{200d}', '\0']),
        1 => any::<char>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn scanners_are_their_expressions(text in prop::collection::vec(character(), 0..24)) {
        let text: String = text.into_iter().collect();
        for case in CASES.iter() {
            prop_assert_eq!(words(&case.splitter, &text), case.wanted(&text), "{}", case.name);
        }
    }
}

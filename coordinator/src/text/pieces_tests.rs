//! Scored pieces against SentencePiece: a small vocabulary trained by it, and what it made of the corpus.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use caravan_core::gguf::Gguf;
use caravan_core::gguf::synthetic::{GgufWriter, TinyLlama};
use proptest::prelude::*;
use serde::Deserialize;

use super::corpus_tests::{by_hand, drawn, wrong_blocks};
use super::{ChatMessage, Detokenizer, TextModel};

/// The vocabulary as SentencePiece wrote it.
#[derive(Deserialize)]
struct Vocabulary {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
}

fn vocabulary() -> Vocabulary {
    serde_json::from_str(include_str!("testdata/pieces.json")).unwrap()
}

fn writer(vocabulary: &Vocabulary) -> GgufWriter {
    TinyLlama::default()
        .writer()
        .without("tokenizer.ggml.merges")
        .without("tokenizer.ggml.pre")
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &vocabulary.tokens)
        .f32s("tokenizer.ggml.scores", &vocabulary.scores)
        .i32s("tokenizer.ggml.token_type", &vocabulary.types)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .bool("tokenizer.ggml.add_space_prefix", false)
}

fn read(writer: &GgufWriter) -> anyhow::Result<TextModel> {
    let bytes = writer.finish();
    TextModel::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap())
}

fn model() -> TextModel {
    read(&writer(&vocabulary())).unwrap()
}

fn text(model: &TextModel, tokens: &[u32]) -> String {
    let mut detokenizer = Detokenizer::default();
    let mut text: String = tokens.iter().map(|token| detokenizer.push(model.token_bytes(*token))).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn tokens_are_those_of_sentencepiece() {
    let model = model();
    let mut count = 0;
    for line in include_str!("testdata/pieces.jsonl").lines() {
        let (text, tokens): (String, Vec<u32>) = serde_json::from_str(line).unwrap();
        assert_eq!(model.encode(&text, false), tokens, "{text:?}");
        count += 1;
    }
    assert_eq!(count, by_hand().len());
    let blocks = include_str!("testdata/pieces.blocks");
    assert_eq!(wrong_blocks(blocks, |text| model.encode(text, false)), [0usize; 0]);
}

#[test]
fn decoding_inverts_encoding() {
    let model = model();
    for original in by_hand().into_iter().chain(drawn().take(2_000)) {
        // A text that writes the sign for a space itself gets a space back, as in SentencePiece.
        let wanted = original.replace('\u{2581}', " ");
        assert_eq!(text(&model, &model.encode(&original, false)), wanted);
    }
}

#[test]
fn bytes_of_a_character_are_shown_together() {
    let model = model();
    let tokens = model.encode("🚚", false);
    assert_eq!(tokens.len(), 4, "four byte tokens");
    let mut detokenizer = Detokenizer::default();
    let shown: Vec<String> = tokens.iter().map(|token| detokenizer.push(model.token_bytes(*token))).collect();
    assert_eq!(shown, ["", "", "", "🚚"]);
}

#[test]
fn a_space_comes_first_where_the_file_wants_it() {
    let plain = model();
    // Files of this kind that say nothing want both the space and the first token.
    let silent = writer(&vocabulary())
        .without("tokenizer.ggml.add_space_prefix")
        .without("tokenizer.ggml.add_bos_token");
    let prefixed = read(&silent).unwrap();
    for text in ["worker", " worker", "\n", "x"] {
        let wanted = match text {
            // A user-defined token is no text; what follows one begins anew.
            "\n" => plain.encode("\n", false),
            _ => plain.encode(&format!(" {text}"), false),
        };
        assert_eq!(prefixed.encode(text, false), wanted, "{text:?}");
    }
    assert_eq!(prefixed.encode("", false), [0u32; 0]);
    let parts = [plain.encode(" a", false), vec![1], plain.encode(" b", false)].concat();
    assert_eq!(prefixed.encode("a<s>b", true), parts);
    assert_eq!(prefixed.bos(), Some(1));
}

#[test]
fn special_tokens_can_not_be_merged_into_being() {
    let vocabulary = vocabulary();
    let model = model();
    let kind = |token: &u32| vocabulary.types[*token as usize];
    for text in ["<s>", "</s>", "<unk>", "<0x0A>", "a<s>b</s>"] {
        let tokens = model.encode(text, false);
        assert!(tokens.iter().all(|token| !matches!(kind(token), 2 | 3)), "{text:?} gives {tokens:?}");
        let message = ChatMessage::new("user", text);
        let tokens = model.prompt_tokens(&vec![message].into()).unwrap();
        assert!(tokens.iter().all(|token| !matches!(kind(token), 2 | 3)), "{text:?} gives {tokens:?}");
    }
    assert_eq!(model.encode("<s>", true), [1]);
}

#[test]
fn damaged_vocabularies_are_named() {
    let refused = |writer: GgufWriter, what: &str| {
        let why = format!("{:#}", read(&writer).err().expect(what));
        assert!(why.contains(what), "{why:?} should mention {what:?}");
    };
    let good = vocabulary();
    refused(writer(&good).without("tokenizer.ggml.scores"), "tokenizer.ggml.scores");
    refused(writer(&good).f32s("tokenizer.ggml.scores", &[1.0]), "1 scores for 700 tokens");
    let mut scores = good.scores.clone();
    scores[400] = f32::NAN;
    refused(writer(&good).f32s("tokenizer.ggml.scores", &scores), "not a number");
    let mut types = good.types.clone();
    let byte = types.iter().position(|kind| *kind == 6).unwrap();
    types[byte] = 1;
    refused(writer(&good).i32s("tokenizer.ggml.token_type", &types), "0x00");
    let mut tokens = good.tokens.clone();
    tokens[byte] = "<0xZZ>".to_owned();
    refused(writer(&good).texts("tokenizer.ggml.tokens", &tokens), "<0xZZ>");
    let mut tokens = good.tokens.clone();
    tokens[500] = tokens[501].clone();
    refused(writer(&good).texts("tokenizer.ggml.tokens", &tokens), "are both");
}

#[test]
fn four_megabytes_of_anything_are_encoded_in_time() {
    let model = model();
    for part in ["a", " ", "ab", "\n", "é", "🚚", "banana ", "<s>", "=-", "漢"] {
        let text = part.repeat((4 << 20) / part.len());
        let start = Instant::now();
        let tokens = model.encode(&text, false).len();
        eprintln!("4 MiB of {part:?}: {tokens} tokens in {:?}", start.elapsed());
        // A quadratic tokenizer would take hours; the bound only has to tell the two apart on a busy machine.
        assert!(start.elapsed() < Duration::from_secs(60));
        assert_eq!(model.encode_within(&text, false, 1_000), None);
    }
}

/// The definition: join the neighbours whose joined text has the highest score, the leftmost of equals,
/// until no two are a piece.
fn naive(vocabulary: &Vocabulary, text: &str) -> Vec<String> {
    let score = |piece: &str| {
        let at = vocabulary.tokens.iter().position(|token| token == piece)?;
        matches!(vocabulary.types[at], 1 | 4).then_some(vocabulary.scores[at])
    };
    let mut parts: Vec<String> =
        text.chars().map(|character| character.to_string().replace(' ', "\u{2581}")).collect();
    loop {
        let mut best: Option<(usize, f32)> = None;
        for at in 1..parts.len() {
            if let Some(score) = score(&format!("{}{}", parts[at - 1], parts[at]))
                && best.is_none_or(|(_, highest)| score > highest)
            {
                best = Some((at, score));
            }
        }
        let Some((at, _)) = best else { return parts };
        let other = parts.remove(at);
        parts[at - 1].push_str(&other);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn joining_is_its_definition(text in "[abn the work ]{0,16}") {
        let vocabulary = vocabulary();
        let model = model();
        let wanted: Vec<u32> = naive(&vocabulary, &text).iter().map(|part| {
            vocabulary.tokens.iter().position(|token| token == part).expect("a piece") as u32
        }).collect();
        prop_assert_eq!(model.encode(&text, false), wanted);
    }
}

//! Real vocabularies against an outside tokenizer, llama.cpp's: `testdata/tokens.py` writes its numbers. The
//! files are not ours to ship: the environment names them. `CARAVAN_TEST_MODEL`: SmolLM2-135M-Instruct.
//! `CARAVAN_TEST_GEMMA`: gemma-3-270m-q4_k_m.gguf. `CARAVAN_TEST_VOCABS`: a folder with the
//! `ggml-vocab-*.gguf` of llama.cpp's source (`models/`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use caravan_core::gguf::Gguf;

use super::corpus_tests::{by_hand, digest, wrong_blocks};
use super::{Detokenizer, TextModel};

fn load(path: &Path) -> TextModel {
    let bytes = std::fs::read(path).unwrap();
    TextModel::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap()).unwrap()
}

/// What differs from the reference: 0 is the texts by hand, n the n-th hundred of the drawn ones.
/// The first line is the number of the texts by hand, the others of the drawn ones.
fn differing(model: &TextModel, numbers: &str) -> Vec<usize> {
    let (hand, drawn) = numbers.split_once('\n').unwrap();
    let tokens: Vec<Vec<u32>> = by_hand().iter().map(|text| model.encode(text, false)).collect();
    let blocks = wrong_blocks(drawn, |text| model.encode(text, false)).into_iter().map(|block| block + 1);
    let by_hand = (format!("{:016x}", digest(&tokens)) != hand).then_some(0);
    by_hand.into_iter().chain(blocks).collect()
}

#[test]
fn smollm2_gives_the_tokens_of_the_reference() {
    let Some(path) = std::env::var_os("CARAVAN_TEST_MODEL") else {
        eprintln!("skipped: CARAVAN_TEST_MODEL does not name SmolLM2-135M-Instruct");
        return;
    };
    assert_eq!(
        differing(&load(Path::new(&path)), include_str!("testdata/vocabularies/smollm2")),
        [0usize; 0]
    );
}

#[test]
fn gemma_gives_the_tokens_of_the_reference() {
    let Some(path) = std::env::var_os("CARAVAN_TEST_GEMMA") else {
        eprintln!("skipped: CARAVAN_TEST_GEMMA does not name gemma-3-270m-q4_k_m.gguf");
        return;
    };
    let model = load(Path::new(&path));
    assert_eq!((model.vocab(), model.bos(), model.stop_tokens()), (262_144, Some(2), &[1][..]));
    let mut texts = 0;
    for line in include_str!("testdata/gemma3.jsonl").lines() {
        let (text, special, tokens): (String, bool, Vec<u32>) = serde_json::from_str(line).unwrap();
        assert_eq!(model.encode(&text, special), tokens, "{text:?}");
        if !special {
            let mut detokenizer = Detokenizer::default();
            let shown: String =
                tokens.iter().map(|token| detokenizer.push(model.token_bytes(*token))).collect();
            assert_eq!(shown + &detokenizer.finish(), text.replace('\u{2581}', " "));
        }
        texts += 1;
    }
    assert!(texts > 280, "{texts}");
    assert_eq!(differing(&model, include_str!("testdata/vocabularies/gemma3")), [0usize; 0]);
}

#[test]
fn vocabularies_give_the_tokens_of_the_references() {
    let Some(folder) = std::env::var_os("CARAVAN_TEST_VOCABS") else {
        eprintln!("skipped: CARAVAN_TEST_VOCABS does not name a folder of vocabularies");
        return;
    };
    let all = [
        ("llama-spm", include_str!("testdata/vocabularies/llama-spm")),
        ("phi-3", include_str!("testdata/vocabularies/phi-3")),
        ("llama-bpe", include_str!("testdata/vocabularies/llama-bpe")),
        ("qwen2", include_str!("testdata/vocabularies/qwen2")),
        ("qwen35", include_str!("testdata/vocabularies/qwen35")),
        ("gpt-2", include_str!("testdata/vocabularies/gpt-2")),
        ("deepseek-llm", include_str!("testdata/vocabularies/deepseek-llm")),
        ("deepseek-coder", include_str!("testdata/vocabularies/deepseek-coder")),
        ("command-r", include_str!("testdata/vocabularies/command-r")),
        ("falcon", include_str!("testdata/vocabularies/falcon")),
        ("starcoder", include_str!("testdata/vocabularies/starcoder")),
        ("refact", include_str!("testdata/vocabularies/refact")),
        ("mpt", include_str!("testdata/vocabularies/mpt")),
    ];
    let mut wrong = Vec::new();
    for (name, numbers) in all {
        let model = load(&Path::new(&folder).join(format!("ggml-vocab-{name}.gguf")));
        let differing = differing(&model, numbers);
        eprintln!("{name}: {} of 101 differ", differing.len());
        if !differing.is_empty() {
            wrong.push((name, differing));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

//! `tokenizer.json` as folders have it, against the library that defines the format: every kind of steps that
//! is supported, with vocabularies trained here.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use caravan_core::folder::synthetic::SyntheticFolder;
use caravan_core::folder::{Folder, Reader, TOKENIZER};
use caravan_core::model::{ModelConfig, RopePairing, TensorType};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{PreTokenizerWrapper, Tokenizer};

use super::corpus_tests::{by_hand, drawn};
use super::{ChatMessage, TextModel};

struct Memory(BTreeMap<String, Vec<u8>>);

impl Reader for Memory {
    fn bytes(&mut self, file: &str) -> Result<Option<u64>, String> {
        Ok(self.0.get(file).map(|bytes| bytes.len() as u64))
    }

    fn read(&mut self, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
        Ok(self.0[file][offset as usize..(offset + bytes) as usize].to_vec())
    }
}

fn model(tokenizer: &Value) -> anyhow::Result<TextModel> {
    let config = ModelConfig {
        vocab: 4_000,
        rope_pairing: RopePairing::Halves,
        hidden: 2,
        heads: 1,
        head_dim: 2,
        rope_dim: 2,
        ffn: 2,
        ..ModelConfig::default()
    };
    let folder =
        SyntheticFolder { config, kinds: vec![TensorType::F32], shards: 1, extra: Vec::new(), seed: 1 };
    let mut files = folder.files();
    files.insert(TOKENIZER.to_owned(), tokenizer.to_string().into_bytes());
    // Its tokens are of the tokenizer that was replaced.
    files.remove("tokenizer_config.json");
    TextModel::from_gguf(&Folder::read(&mut Memory(files))?.gguf)
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

fn split(regex: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}, byte_level(false)]})
}

/// Tokens and merges learned from the corpus, cut by these steps.
fn trained(pre_tokenizer: &Value, alphabet: bool) -> (Vec<String>, Value) {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let steps: PreTokenizerWrapper = serde_json::from_value(pre_tokenizer.clone()).unwrap();
    tokenizer.with_pre_tokenizer(Some(steps));
    let trainer = BpeTrainer::builder().vocab_size(2_000).show_progress(false);
    let trainer = match alphabet {
        true => trainer.initial_alphabet(
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect(),
        ),
        false => trainer.limit_alphabet(300),
    };
    // Texts that write out what the file adds by itself would teach it as words, too.
    let texts = by_hand().into_iter().chain(drawn().skip(5_000).take(1_500));
    let texts: Vec<String> = texts.filter(|text| !text.contains('<')).collect();
    let mut trainer = TrainerWrapper::from(trainer.build());
    tokenizer.train(&mut trainer, texts.iter()).unwrap();
    let json: Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, String)> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.clone())).collect();
    tokens.sort();
    (tokens.into_iter().map(|(_, token)| token).collect(), json["model"]["merges"].clone())
}

fn added(id: usize, content: &str, special: bool, rstrip: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "rstrip": rstrip, "lstrip": false,
        "single_word": false, "normalized": false})
}

/// A file with tokens of its own behind the learned ones.
fn file(first: &[&str], learned: (Vec<String>, Value), steps: [Value; 2], bytes: bool) -> Value {
    let (tokens, merges) = learned;
    let of_bytes = (0..=255u8).filter(|_| bytes).map(|byte| format!("<0x{byte:02X}>"));
    let all: Vec<String> =
        first.iter().map(|token| (*token).to_owned()).chain(of_bytes).chain(tokens).collect();
    let vocab: serde_json::Map<String, Value> =
        all.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let end = all.len();
    let mut own: Vec<Value> =
        first.iter().enumerate().map(|(id, token)| added(id, token, true, false)).collect();
    own.push(added(end, "<|im_start|>", true, false));
    own.push(added(end + 1, "<|im_end|>", true, true));
    own.push(added(end + 2, "<tool>", false, false));
    let [normalizer, pre_tokenizer] = steps;
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": own,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": if bytes { json!("<unk>") } else { Value::Null },
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": bytes,
            "byte_fallback": bytes, "ignore_merges": false, "vocab": vocab, "merges": merges},
    })
}

/// Our tokens are the library's, with special tokens and without.
fn check(name: &str, file: &Value) {
    let ours = model(file).unwrap();
    let mut theirs = Tokenizer::from_bytes(file.to_string()).unwrap();
    let hostile = [
        "<|im_end|>  \u{2003}\n x",
        "a<tool>b <tool> c",
        "<|im_start|><|im_start|> x",
        "e\u{301}\u{1e9b}\u{323} \u{212b}",
        " <|im_end|>",
        "\u{2581}x \u{2581}",
    ];
    let texts = by_hand().into_iter().chain(hostile.map(str::to_owned)).chain(drawn().take(1_500));
    let mut count = 0;
    for text in texts {
        for special in [false, true] {
            theirs.set_encode_special_tokens(!special);
            let wanted = theirs.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(ours.encode(&text, special), wanted.get_ids(), "{name}, {special}: {text:?}");
            count += 1;
        }
    }
    assert!(count > 3_000, "{count}");
}

#[test]
fn byte_level_files_give_the_librarys_tokens() {
    let digits = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true}, byte_level(true)]});
    let tekken = super::stages::expressions("tekken").remove(0);
    let all = [
        ("gpt2", byte_level(true), Value::Null),
        ("gpt2, written out", split(GPT2), Value::Null),
        ("digits", digits, Value::Null),
        ("llama 3", split(LLAMA3), Value::Null),
        ("qwen 2", split(QWEN2), json!({"type": "NFC"})),
        ("tekken", split(&tekken), json!({"type": "Sequence", "normalizers": []})),
    ];
    for (name, steps, normalizer) in all {
        let learned = trained(&steps, true);
        let mut file = file(&[], learned, [normalizer, steps], false);
        check(name, &file);
        file["model"]["ignore_merges"] = true.into();
        check(name, &file);
    }
}

#[test]
fn files_of_pieces_give_the_librarys_tokens() {
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prepend =
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]});
    let gemma = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let cut =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let all = [
        ("prepended", [prepend, Value::Null]),
        ("first", [Value::Null, metaspace("first")]),
        ("always", [Value::Null, metaspace("always")]),
        ("never", [Value::Null, metaspace("never")]),
        ("gemma", [replace, gemma]),
    ];
    let learned = trained(&cut, false);
    for (name, steps) in all {
        check(name, &file(&["<unk>", "<s>", "</s>"], learned.clone(), steps, true));
    }
}

#[test]
fn steps_that_are_not_known_are_named() {
    let learned = trained(&byte_level(true), true);
    let file = file(&[], learned, [Value::Null, split(r"\p{L}+|x(?=y)")], false);
    let why = format!("{:#}", model(&file).err().unwrap());
    assert!(why.contains("x(?=y)") && why.contains("does not know"), "{why}");
}

#[test]
fn a_folders_model_talks() {
    let config = ModelConfig { vocab: 300, rope_pairing: RopePairing::Halves, ..ModelConfig::default() };
    let folder =
        SyntheticFolder { config, kinds: vec![TensorType::F32], shards: 1, extra: Vec::new(), seed: 1 };
    let model = TextModel::from_gguf(&Folder::read(&mut Memory(folder.files())).unwrap().gguf).unwrap();
    let message = ChatMessage { role: "user".into(), content: "hello".into() };
    let prompt = model.render_chat(&[message]).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!((model.vocab(), model.bos(), model.stop_tokens()), (300, None, &[0, 2][..]));
    let tokens = model.encode(&prompt, true);
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| model.token_bytes(*token).to_vec()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "user\nhello\nassistant\n");
}

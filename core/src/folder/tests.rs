//! Folders that are good, and every way to spoil one that came to mind.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::synthetic::{SyntheticFolder, safetensors};
use super::*;
use crate::gguf::Value;
use crate::ids::Digest;
use crate::model::{Experts, Family, ModelConfig, RopeFactors, RopePairing, RopeScaling, TensorType, Window};

type FilesByName = BTreeMap<String, Vec<u8>>;

struct Memory<'a>(&'a FilesByName);

impl Reader for Memory<'_> {
    fn bytes(&mut self, file: &str) -> Result<Option<u64>, String> {
        Ok(self.0.get(file).map(|bytes| bytes.len() as u64))
    }

    fn read(&mut self, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
        let file = self.0.get(file).ok_or("it is not there")?;
        Ok(file.get(offset as usize..(offset + bytes) as usize).ok_or("it is short")?.to_vec())
    }
}

fn read(files: &FilesByName) -> Result<Folder, FolderError> {
    Folder::read(&mut Memory(files))
}

fn base(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        layers: 2,
        hidden: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rope_dim: 8,
        rope_base: 50_000.0,
        ffn: 48,
        vocab: 290,
        context: 256,
        rope_pairing: RopePairing::Halves,
        norm_plus_one: family == Family::Gemma3,
        tied: family != Family::Phi3,
        window: (family == Family::Gemma3).then_some(Window {
            tokens: 16,
            global_every: 2,
            rope_base: Some(10_000.0),
        }),
        // 1 / sqrt(8), as Gemma's configuration says it.
        attention_scale: (family == Family::Gemma3).then_some((1.0 / 8f64.sqrt()) as f32),
        experts: (family == Family::Qwen3Moe).then_some(Experts { count: 3, used: 2, normalised: false }),
        ..ModelConfig::default()
    }
}

fn synthetic(family: Family) -> SyntheticFolder {
    let kinds = vec![TensorType::Bf16, TensorType::F16, TensorType::F32];
    SyntheticFolder { config: base(family), kinds, shards: 1, extra: Vec::new(), seed: 4 }
}

fn llama() -> FilesByName {
    synthetic(Family::Llama).files()
}

fn config(files: &FilesByName) -> ModelConfig {
    read(files).unwrap().gguf.config().unwrap()
}

const FAMILIES: [Family; 6] =
    [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Qwen3Moe, Family::Gemma3, Family::Phi3];

/// Why the folder, or the header that is made of it, is refused.
fn refusal(files: &FilesByName) -> String {
    let digests = |folder: &Folder| vec![Digest([1; 32]); folder.gguf.tensors.len()];
    let spec = read(files).map_err(|error| error.to_string()).and_then(|folder| {
        let spec = folder.gguf.spec("x", Digest([0; 32]), &digests(&folder), Digest([0; 32]));
        spec.map_err(|error| error.to_string())
    });
    spec.expect_err("it was taken")
}

fn refused(files: &FilesByName, what: &str) {
    let why = refusal(files);
    assert!(why.contains(what), "{why:?} should mention {what:?}");
}

fn edited(files: &FilesByName, file: &str, edit: impl FnOnce(&mut Json)) -> FilesByName {
    let mut files = files.clone();
    let mut json: Json = serde_json::from_slice(&files[file]).unwrap();
    edit(&mut json);
    files.insert(file.to_owned(), json.to_string().into_bytes());
    files
}

fn with(key: &'static str, value: Json) -> impl FnOnce(&mut Json) {
    move |json| json[key] = value
}

#[test]
fn every_family_is_understood() {
    for family in FAMILIES {
        let folder = read(&synthetic(family).files()).unwrap();
        assert_eq!(folder.gguf.config().unwrap(), base(family), "{family:?}");
        assert_eq!(folder.gguf.data_offset, folder.header.len() as u64);
        assert_eq!(folder.spans.len(), folder.gguf.tensors.len());
        for (tensor, spans) in folder.gguf.tensors.iter().zip(&folder.spans) {
            assert_eq!(spans.iter().map(|span| span.bytes).sum::<u64>(), tensor.bytes, "{}", tensor.name);
        }
    }
}

#[test]
fn bytes_are_those_of_the_tensors_with_experts_behind_one_another() {
    let synthetic = synthetic(Family::Qwen3Moe);
    let files = synthetic.files();
    let folder = read(&files).unwrap();
    let bytes_of = |name: &str| -> Vec<u8> {
        let at = folder.gguf.tensors.iter().position(|tensor| tensor.name == name).unwrap();
        let part = |span: &Span| {
            let file = &files[&folder.shards[span.shard].name];
            file[span.offset as usize..(span.offset + span.bytes) as usize].to_vec()
        };
        folder.spans[at].iter().flat_map(part).collect()
    };
    let tensors = synthetic.tensors();
    let named = |name: &str| tensors.iter().find(|tensor| tensor.0 == name).unwrap().3.clone();
    assert_eq!(bytes_of("blk.1.attn_q.weight"), named("model.layers.1.self_attn.q_proj.weight"));
    assert_eq!(bytes_of("token_embd.weight"), named("model.embed_tokens.weight"));
    let experts = |expert: usize| named(&format!("model.layers.1.mlp.experts.{expert}.up_proj.weight"));
    assert_eq!(bytes_of("blk.1.ffn_up_exps.weight"), [experts(0), experts(1), experts(2)].concat());
}

#[test]
fn shards_do_not_show_in_the_header() {
    let one = read(&synthetic(Family::Qwen3Moe).files()).unwrap();
    let files = SyntheticFolder { shards: 3, ..synthetic(Family::Qwen3Moe) }.files();
    let three = read(&files).unwrap();
    assert_eq!((&one.header, one.shards.len(), three.shards.len()), (&three.header, 1, 3));
}

#[test]
fn scalings_of_the_rotation_are_read_in_both_forms() {
    let folder = |extra: Vec<(&'static str, Json)>, family| {
        config(&SyntheticFolder { extra, ..synthetic(family) }.files())
    };
    let linear = json!({"type": "linear", "factor": 4.0});
    let scaled = folder(vec![("rope_scaling", linear)], Family::Llama);
    assert_eq!(scaled.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    let llama = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let old = folder(vec![("rope_scaling", llama.clone())], Family::Llama);
    let RopeScaling::Factors { factors: RopeFactors::Given(factors), magnitude } = &old.rope_scaling else {
        panic!("{:?}", old.rope_scaling);
    };
    // Waves of 6.3, 94, 1,405 and 21,010 positions; the first context is 64.
    assert_eq!((factors[0], factors[2], factors[3], *magnitude), (1.0, 32.0, 32.0, 1.0));
    let mut new = llama;
    new["rope_theta"] = 50_000.0.into();
    assert_eq!(folder(vec![("rope_parameters", new), ("rope_theta", Json::Null)], Family::Llama), old);
    let long = json!({"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2.5, 3, 4]});
    let key = "original_max_position_embeddings";
    let long = folder(vec![("rope_scaling", long), (key, 64.into())], Family::Phi3);
    let magnitude = (1.0 + 4f64.ln() / 64f64.ln()).sqrt() as f32;
    let factors = RopeFactors::Given(vec![1.0, 2.5, 3.0, 4.0]);
    assert_eq!(long.rope_scaling, RopeScaling::Factors { factors, magnitude });
    let both = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0}});
    let gemma = folder(vec![("rope_parameters", both)], Family::Gemma3);
    assert_eq!((gemma.rope_base, gemma.window.unwrap().rope_base), (1e6, Some(20_000.0)));
    assert_eq!(gemma.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    let partial = folder(vec![("partial_rotary_factor", 0.75.into())], Family::Phi3);
    assert_eq!(partial.rope_dim, 6);
}

#[test]
fn configurations_that_are_not_understood_are_named() {
    let files = llama();
    let spoilt = |key: &'static str, value: Json| edited(&files, CONFIG, with(key, value));
    for key in [
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
        "rms_norm_eps",
    ] {
        refused(&edited(&files, CONFIG, |json| drop(json.as_object_mut().unwrap().remove(key))), key);
        for value in [json!(0), json!(-1), json!("64"), json!(1e300), json!([64])] {
            refused(&spoilt(key, value), key);
        }
    }
    refused(&spoilt("num_key_value_heads", json!(3)), "3 key heads");
    refused(&spoilt("architectures", json!(["MambaForCausalLM"])), "\"MambaForCausalLM\"");
    refused(&spoilt("architectures", json!("LlamaForCausalLM")), "architectures");
    refused(&spoilt("model_type", json!("mistral")), "must agree");
    let bare = edited(&files, CONFIG, |json| {
        json.as_object_mut().unwrap().retain(|key, _| key != "architectures" && key != "model_type");
    });
    refused(&bare, "architectures");
    for (key, value) in [
        ("quantization_config", json!({"bits": 4})),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"factor": 4.0})),
        ("rope_scaling", json!({"type": "linear"})),
        ("rope_scaling", json!("linear")),
        ("rope_theta", json!("1e6")),
        ("partial_rotary_factor", json!(0.5)),
        ("tie_word_embeddings", json!(1)),
        ("eos_token_id", json!(290)),
        ("eos_token_id", json!("</s>")),
    ] {
        let name =
            if value.get("factor").is_some() && value.get("rope_type").is_none() { "rope_type" } else { key };
        let name = if value.get("rope_type").is_some() { "yarn" } else { name };
        let name = if value.get("type").is_some() { "factor" } else { name };
        refused(&spoilt(key, value), name);
    }
    let qwen = synthetic(Family::Qwen2).files();
    refused(&edited(&qwen, CONFIG, with("use_sliding_window", json!(true))), "use_sliding_window");
    let moe = synthetic(Family::Qwen3Moe).files();
    refused(&edited(&moe, CONFIG, with("mlp_only_layers", json!([0]))), "mlp_only_layers");
    refused(&edited(&moe, CONFIG, with("decoder_sparse_step", json!(2))), "decoder_sparse_step");
    refused(&edited(&moe, CONFIG, with("num_experts", json!(4))), "3 experts of 4");
    refused(&edited(&moe, CONFIG, with("num_experts", json!(2))), "expert 2");
    let mut files = files;
    files.insert(CONFIG.to_owned(), b"[1]".to_vec());
    refused(&files, CONFIG);
    files.insert(CONFIG.to_owned(), b"{\"hidden_size\": 6".to_vec());
    refused(&files, CONFIG);
    files.insert(CONFIG.to_owned(), vec![b' '; limits::FOLDER_JSON_BYTES as usize + 1]);
    refused(&files, "more than the limit");
}

#[test]
fn files_that_are_missing_are_named() {
    let sharded = SyntheticFolder { shards: 2, ..synthetic(Family::Llama) }.files();
    for file in [CONFIG, TOKENIZER, INDEX, "model-00002-of-00002.safetensors"] {
        let mut files = sharded.clone();
        files.remove(file);
        refused(&files, file);
    }
    let away =
        |file: &str| edited(&sharded, INDEX, |json| json["weight_map"]["model.norm.weight"] = file.into());
    for file in ["../model.safetensors", "/etc/passwd", "x/y.safetensors", "model.bin"] {
        refused(&away(file), "model.norm.weight");
    }
    refused(&away("other.safetensors"), "other.safetensors");
    refused(&away("model-00001-of-00002.safetensors"), "model.norm.weight");
    let unnamed = edited(&sharded, INDEX, |json| {
        json["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    });
    refused(&unnamed, "model.norm.weight");
    refused(
        &edited(&sharded, INDEX, |json| {
            json["weight_map"]["more"] = json["weight_map"]["model.norm.weight"].clone()
        }),
        "more",
    );
    refused(&edited(&sharded, INDEX, with("weight_map", json!([]))), "weight_map");
}

#[test]
fn tensors_that_are_missing_unknown_or_of_another_shape_are_named() {
    for family in FAMILIES {
        let synthetic = synthetic(family);
        let files = synthetic.files();
        let tensors = synthetic.tensors();
        for at in 0..tensors.len() {
            let mut less = tensors.clone();
            let (name, ..) = less.remove(at);
            let mut spoilt = files.clone();
            spoilt.insert(WEIGHTS.to_owned(), safetensors(&less));
            let why = refusal(&spoilt);
            let known =
                ["lacks the tensor", "experts of 3", "is expected"].iter().any(|part| why.contains(part));
            // Without its output matrix an untied model is not taken for a tied one.
            assert!(known || name == "lm_head.weight" && why.contains("lm_head.weight"), "{name}: {why}");
            let mut other = tensors.clone();
            let (dim, row) = (other[at].1[0], other[at].3.len() / other[at].1[0] as usize);
            other[at].1[0] = dim + 1;
            let more = vec![0; row];
            other[at].3.extend(more);
            spoilt.insert(WEIGHTS.to_owned(), safetensors(&other));
            refusal(&spoilt);
        }
        let mut more = tensors.clone();
        more.push(("model.layers.0.self_attn.sinks".to_owned(), vec![4], TensorType::F32, vec![0; 16]));
        let mut spoilt = files.clone();
        spoilt.insert(WEIGHTS.to_owned(), safetensors(&more));
        refused(&spoilt, "model.layers.0.self_attn.sinks");
        // Tables that follow from the configuration, and a copy of a tied embedding, are no matter.
        more.pop();
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
        more.push((name, vec![4], TensorType::F32, vec![0; 16]));
        if synthetic.config.tied {
            more.push(("lm_head.weight".to_owned(), vec![4], TensorType::F32, vec![0; 16]));
        }
        spoilt.insert(WEIGHTS.to_owned(), safetensors(&more));
        assert_eq!(read(&spoilt).unwrap().header, read(&files).unwrap().header);
    }
}

fn weights_with(header: &str, data: usize) -> FilesByName {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    let mut files = llama();
    files.insert(WEIGHTS.to_owned(), file);
    files
}

#[test]
fn safetensors_files_that_are_damaged_say_how() {
    let entry = |kind: &str, shape: &str, span: &str| {
        format!(r#"{{"a":{{"dtype":"{kind}","shape":{shape},"data_offsets":{span}}}}}"#)
    };
    refused(&weights_with(&entry("I8", "[4]", "[0,4]"), 4), "\"I8\"");
    refused(&weights_with(&entry("F32", "[4]", "[0,12]"), 12), "span 0 to 12");
    refused(&weights_with(&entry("F32", "[4]", "[16,0]"), 16), "span 16 to 0");
    refused(&weights_with(&entry("F32", "[4]", "[4,20]"), 20), "begins at byte");
    refused(&weights_with(&entry("F32", "[4]", "[0,16]"), 15), "cut off");
    refused(&weights_with(&entry("F32", "[4]", "[0,16]"), 17), "goes on");
    refused(&weights_with(&entry("F32", "[]", "[0,4]"), 4), "0 dimensions");
    refused(&weights_with(&entry("F32", "[1,1,1,1,1]", "[0,4]"), 4), "5 dimensions");
    refused(&weights_with(&entry("F32", "[0]", "[0,0]"), 0), "impossible dimensions");
    refused(&weights_with(&entry("F32", "[4294967296,4294967296]", "[0,0]"), 0), "impossible dimensions");
    let most = format!("[{},{}]", u64::MAX - 15, u64::MAX);
    refused(&weights_with(&entry("F32", "[4]", &most), 16), "a");
    refused(&weights_with(&entry("F32", "[-4]", "[0,16]"), 16), "not sound");
    let one = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    refused(&weights_with(&format!("{{{one},{one}}}"), 4), "twice");
    refused(&weights_with("not json", 4), "`{`");
    refused(&weights_with("{", 4), "not sound");
    let mut files = llama();
    for bytes in [&b""[..], b"1234567", &u64::MAX.to_le_bytes(), &[255, 255, 0, 0, 0, 0, 0, 0, b'{']] {
        files.insert(WEIGHTS.to_owned(), bytes.to_vec());
        refused(&files, WEIGHTS);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let files = llama();
    let whole = &files[WEIGHTS];
    for end in (0..whole.len()).step_by(101).chain([whole.len() - 1]) {
        let mut cut = files.clone();
        cut.insert(WEIGHTS.to_owned(), whole[..end].to_vec());
        refused(&cut, WEIGHTS);
    }
    let mut long = files.clone();
    long.get_mut(WEIGHTS).unwrap().push(0);
    refused(&long, "goes on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever bit is flipped: a folder that is still taken has every tensor inside its files.
    #[test]
    fn a_flipped_bit_never_leads_out_of_a_file(place in any::<prop::sample::Index>(), bit in 0..8u32, which in 0..3usize) {
        let mut files = llama();
        let name = [CONFIG, TOKENIZER, WEIGHTS][which];
        let file = files.get_mut(name).unwrap();
        // Of the weights, the header.
        let length = if which == 2 { 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize } else { file.len() };
        file[place.index(length)] ^= 1 << bit;
        if let Ok(folder) = read(&files) {
            for (tensor, spans) in folder.gguf.tensors.iter().zip(&folder.spans) {
                prop_assert_eq!(spans.iter().map(|span| span.bytes).sum::<u64>(), tensor.bytes);
                for span in spans {
                    prop_assert!(span.offset + span.bytes <= files[&folder.shards[span.shard].name].len() as u64);
                }
            }
        }
    }
}

#[test]
fn tokenizers_that_are_not_understood_are_named() {
    let files = llama();
    let spoilt = |pointer: &str, value: Json| {
        edited(&files, TOKENIZER, |json| *json.pointer_mut(pointer).unwrap() = value)
    };
    refused(&spoilt("/model/type", json!("Unigram")), "\"Unigram\"");
    refused(&spoilt("/model/vocab", json!([["a", 1]])), "vocab");
    refused(&spoilt("/model/vocab/he", json!(5)), "both have the number 5");
    refused(&spoilt("/model/vocab/he", json!(290)), "290");
    refused(&spoilt("/model/vocab/he", json!(-1)), TOKENIZER);
    refused(&spoilt("/model/merges/0", json!("hello")), "hello");
    refused(&spoilt("/model/merges/0", json!(["h", "e", "l"])), "merge");
    refused(&spoilt("/model/dropout", json!(0.1)), "dropout");
    refused(&spoilt("/model/end_of_word_suffix", json!("</w>")), "end_of_word_suffix");
    refused(&spoilt("/model/byte_fallback", json!(true)), "byte_fallback");
    refused(&spoilt("/normalizer", json!({"type": "Lowercase"})), "Lowercase");
    refused(&spoilt("/pre_tokenizer", Json::Null), "byte_fallback");
    refused(&spoilt("/pre_tokenizer/pretokenizers/0", json!({"type": "Whitespace"})), "Whitespace");
    refused(&spoilt("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true)), "add_prefix_space");
    refused(&spoilt("/post_processor", json!({"type": "BertProcessing"})), "BertProcessing");
    for key in ["single_word", "lstrip"] {
        refused(&spoilt(&format!("/added_tokens/0/{key}"), json!(true)), key);
    }
    refused(&spoilt("/added_tokens/0/content", json!("<|other|>")), "both have the number 0");
    let named = |key: &'static str, value: Json| edited(&files, TOKENIZER_CONFIG, with(key, value));
    refused(&named("bos_token", json!("<s>")), "bos_token");
    refused(&named("eos_token", json!(2)), "eos_token");
    refused(&named("chat_template", json!([{"name": "rag", "template": ""}])), "default");
}

#[test]
fn the_tokenizers_keys_are_those_of_the_files() {
    let files = llama();
    let folder = read(&files).unwrap();
    let of = |gguf: &Gguf, key: &str| gguf.metadata.get(&format!("tokenizer.{key}")).cloned();
    let tokens = of(&folder.gguf, "ggml.tokens").unwrap();
    let tokens = tokens.as_texts().unwrap();
    assert_eq!(
        (tokens.len(), tokens.get(0), tokens.get(289)),
        (290, Some("<|endoftext|>"), Some("[PAD289]"))
    );
    assert_eq!(of(&folder.gguf, "ggml.add_bos_token"), Some(Value::Bool(false)));
    assert_eq!(of(&folder.gguf, "ggml.bos_token_id"), Some(Value::U64(0)));
    assert_eq!(of(&folder.gguf, "ggml.eos_token_id"), Some(Value::U64(2)));
    assert_eq!(of(&folder.gguf, "caravan.stop_token_ids"), Some(Value::Uints(vec![0, 2])));
    let first = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [0], "tokens": ["x"]}}});
    let wants = edited(&files, TOKENIZER, with("post_processor", first));
    assert_eq!(of(&read(&wants).unwrap().gguf, "ggml.add_bos_token"), Some(Value::Bool(true)));
    let not = edited(&wants, TOKENIZER_CONFIG, |json| {
        json["tokenizer_class"] = "LlamaTokenizer".into();
        json["add_bos_token"] = false.into();
    });
    assert_eq!(of(&read(&not).unwrap().gguf, "ggml.add_bos_token"), Some(Value::Bool(false)));
    let mut own = files.clone();
    own.insert(TEMPLATE.to_owned(), b"{{ x }}".to_vec());
    own.insert(GENERATION_CONFIG.to_owned(), b"{\"eos_token_id\": 1}".to_vec());
    let own = read(&own).unwrap().gguf;
    assert_eq!(of(&own, "chat_template"), Some(Value::Text("{{ x }}".to_owned())));
    assert_eq!(of(&own, "caravan.stop_token_ids"), Some(Value::Uints(vec![1])));
    // Tokens beyond the embedding can't be computed with: they are none.
    let beyond = json!({"id": 290, "content": "<image>", "special": true});
    let beyond = edited(&files, TOKENIZER, |json| json["added_tokens"].as_array_mut().unwrap().push(beyond));
    assert_eq!(read(&beyond).unwrap().header, folder.header);
}

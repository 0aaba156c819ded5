//! Makes small folders of safetensors files for tests: random weights, a tokenizer that knows every byte.
//!
//! Must never be used by the product itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{CONFIG, INDEX, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS};
use crate::gguf::synthetic::{TINY_CONTROL, TINY_MERGES, TINY_TEMPLATE, spread, tiny_tokens};
use crate::model::{Family, ModelConfig, TensorType};

/// A model as a folder holds it.
#[derive(Clone, Debug)]
pub struct SyntheticFolder {
    /// Scaling of the rotation is not written from here, but from `extra`.
    pub config: ModelConfig,
    /// Types of the matrices, in turn; vectors have the first. F32, F16 and BF16 are possible.
    pub kinds: Vec<TensorType>,
    /// Files that the tensors are dealt out to; with one there is no index.
    pub shards: usize,
    /// Keys of `config.json` besides those that `config` gives.
    pub extra: Vec<(&'static str, Json)>,
    pub seed: u64,
}

/// Name, shape, type, bytes.
pub type SafeTensor = (String, Vec<u64>, TensorType, Vec<u8>);

impl SyntheticFolder {
    /// The files by name.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut put = |name: &str, json: &Json| files.insert(name.to_owned(), json.to_string().into_bytes());
        put(CONFIG, &self.config_json());
        put(TOKENIZER, &tokenizer_json());
        let [end_of_text, _, end_of_turn] = TINY_CONTROL;
        put(
            TOKENIZER_CONFIG,
            &json!({
                "bos_token": {"content": end_of_text, "special": true}, "eos_token": end_of_turn,
                "chat_template": TINY_TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast",
            }),
        );
        let tensors = self.tensors();
        if self.shards <= 1 {
            files.insert(WEIGHTS.to_owned(), safetensors(&tensors));
            return files;
        }
        let mut map = Map::new();
        let mut shards: Vec<Vec<SafeTensor>> = vec![Vec::new(); self.shards];
        for (index, tensor) in tensors.into_iter().enumerate() {
            map.insert(tensor.0.clone(), shard_name(index % self.shards, self.shards).into());
            shards[index % self.shards].push(tensor);
        }
        for (index, tensors) in shards.iter().enumerate() {
            files.insert(shard_name(index, self.shards), safetensors(tensors));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        files.insert(INDEX.to_owned(), index.to_string().into_bytes());
        files
    }

    fn config_json(&self) -> Json {
        let config = &self.config;
        let (class, model_type) = match config.family {
            Family::Llama if config.window.is_some() => ("MistralForCausalLM", "mistral"),
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Family::Qwen3Moe => ("Qwen3MoeForCausalLM", "qwen3_moe"),
            Family::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
            Family::Phi3 => ("Phi3ForCausalLM", "phi3"),
        };
        let activation = match config.family {
            Family::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
            _ => ("hidden_act", "silu"),
        };
        let mut json = json!({
            "architectures": [class], "model_type": model_type, "torch_dtype": "bfloat16",
            "hidden_size": config.hidden, "intermediate_size": config.ffn, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim, "max_position_embeddings": config.context,
            "vocab_size": config.vocab, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
            "tie_word_embeddings": config.tied, "attention_bias": config.family == Family::Qwen2,
            "eos_token_id": [0, 2], "bos_token_id": 0, "use_cache": true, "rope_scaling": null,
        });
        json[activation.0] = activation.1.into();
        if let Some(window) = config.window {
            json["sliding_window"] = window.tokens.into();
            if let Some(base) = window.rope_base {
                json["sliding_window_pattern"] = window.global_every.into();
                json["rope_local_base_freq"] = base.into();
                json["query_pre_attn_scalar"] = config.head_dim.into();
            }
        }
        if let Some(experts) = config.experts {
            json["num_experts"] = experts.count.into();
            json["num_experts_per_tok"] = experts.used.into();
            json["moe_intermediate_size"] = config.ffn.into();
            json["norm_topk_prob"] = experts.normalised.into();
            json["decoder_sparse_step"] = 1.into();
            json["mlp_only_layers"] = json!([]);
        }
        for (key, value) in &self.extra {
            json[*key] = value.clone();
        }
        json
    }

    /// Every tensor under the name that files of this kind have.
    pub fn tensors(&self) -> Vec<SafeTensor> {
        let config = &self.config;
        let (hidden, vocab) = (u64::from(config.hidden), u64::from(config.vocab));
        let mut tensors = vec![self.tensor("model.embed_tokens.weight", &[hidden, vocab], 0)];
        for layer in 0..config.layers {
            for part in config.layer_tensors() {
                let (name, what) = part.part.rsplit_once('.').unwrap_or((part.part, "weight"));
                let prefix = format!("model.layers.{layer}");
                if let Some(kind) = name.strip_prefix("ffn_").and_then(|name| name.strip_suffix("_exps")) {
                    for expert in 0..part.dims[2] {
                        let name = format!("{prefix}.mlp.experts.{expert}.{kind}_proj.{what}");
                        tensors.push(self.tensor(&name, &part.dims[..2], layer as usize));
                    }
                    continue;
                }
                let name = format!("{prefix}.{}.{what}", layer_name(config.family, name));
                tensors.push(self.tensor(&name, &part.dims, layer as usize));
            }
        }
        tensors.push(self.tensor("model.norm.weight", &[hidden], 0));
        if !config.tied {
            tensors.push(self.tensor("lm_head.weight", &[hidden, vocab], 1));
        }
        tensors
    }

    /// `dims`: the first one contiguous.
    fn tensor(&self, name: &str, dims: &[u64], turn: usize) -> SafeTensor {
        let kind = self.kinds[if dims.len() == 1 { 0 } else { turn % self.kinds.len() }];
        // What is kept less 1 is spread around 0.
        let seed_name = if self.config.norm_plus_one { name.replace("norm", "nrm") } else { name.to_owned() };
        let bytes = spread(&seed_name, dims, kind, self.seed);
        (name.to_owned(), dims.iter().rev().copied().collect(), kind, bytes)
    }
}

fn shard_name(index: usize, shards: usize) -> String {
    format!("model-{:05}-of-{shards:05}.safetensors", index + 1)
}

fn layer_name(family: Family, part: &str) -> &'static str {
    match (part, family) {
        ("attn_q", _) => "self_attn.q_proj",
        ("attn_k", _) => "self_attn.k_proj",
        ("attn_v", _) => "self_attn.v_proj",
        ("attn_qkv", _) => "self_attn.qkv_proj",
        ("attn_output", _) => "self_attn.o_proj",
        ("attn_q_norm", _) => "self_attn.q_norm",
        ("attn_k_norm", _) => "self_attn.k_norm",
        ("attn_norm", _) => "input_layernorm",
        ("ffn_norm", Family::Gemma3) => "pre_feedforward_layernorm",
        ("ffn_norm" | "post_attention_norm", _) => "post_attention_layernorm",
        ("post_ffw_norm", _) => "post_feedforward_layernorm",
        ("ffn_gate", _) => "mlp.gate_proj",
        ("ffn_up", Family::Phi3) => "mlp.gate_up_proj",
        ("ffn_up", _) => "mlp.up_proj",
        ("ffn_down", _) => "mlp.down_proj",
        _ => "mlp.gate",
    }
}

/// A whole safetensors file.
pub fn safetensors(tensors: &[SafeTensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, shape, kind, bytes) in tensors {
        let start = end;
        end += bytes.len();
        let entry = json!({"dtype": kind.name(), "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut json = Json::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json);
    tensors.iter().for_each(|(.., bytes)| out.extend(bytes));
    out
}

/// Byte-level, with the tokens and merges of the tiny GGUF models.
pub fn tokenizer_json() -> Json {
    let tokens = tiny_tokens();
    let control = TINY_CONTROL.len();
    let added: Vec<Json> = (0..control)
        .map(|id| {
            json!({"id": id, "content": tokens[id], "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let vocab: Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": TINY_MERGES},
    })
}

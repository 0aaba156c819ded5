//! `config.json` to the keys of a header.
//!
//! The key `architectures` names the class that computes the model. Of each class that this build has, every
//! key that the class reads is read or refused here; keys that it does not read can't change an answer, and
//! are passed over. Must never read a key otherwise than the class does.

use serde_json::{Map, Value as Json, json};

use super::json::Object;
use super::{FolderError, Metadata, bad, rope, shown};
use crate::gguf::Value;
use crate::limits;
use crate::model::Family;

/// What `config.json` says.
pub(super) struct Described {
    pub family: Family,
    pub tied: bool,
    /// Experts of each layer; 0 if there are none.
    pub experts: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    pub metadata: Metadata,
}

/// A class, its `model_type`, and what it takes for keys that are not there.
pub(super) struct Class {
    name: &'static str,
    model_type: &'static str,
    pub family: Family,
    /// As GGUF names it.
    pub arch: &'static str,
    /// `None`: the hidden size divided by the heads.
    head_dim: Option<u32>,
    pub rope_base: f64,
    tied: bool,
    activation: (&'static str, &'static str),
}

const SILU: (&str, &str) = ("hidden_act", "silu");

const CLASSES: [Class; 7] = [
    class("LlamaForCausalLM", "llama", Family::Llama, "llama"),
    class("MistralForCausalLM", "mistral", Family::Llama, "llama"),
    class("Qwen2ForCausalLM", "qwen2", Family::Qwen2, "qwen2"),
    Class { head_dim: Some(128), ..class("Qwen3ForCausalLM", "qwen3", Family::Qwen3, "qwen3") },
    class("Qwen3MoeForCausalLM", "qwen3_moe", Family::Qwen3Moe, "qwen3moe"),
    Class {
        head_dim: Some(256),
        rope_base: 1_000_000.0,
        tied: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        ..class("Gemma3ForCausalLM", "gemma3_text", Family::Gemma3, "gemma3")
    },
    class("Phi3ForCausalLM", "phi3", Family::Phi3, "phi3"),
];

const fn class(name: &'static str, model_type: &'static str, family: Family, arch: &'static str) -> Class {
    Class {
        name,
        model_type,
        family,
        arch,
        head_dim: None,
        rope_base: 10_000.0,
        tied: false,
        activation: SILU,
    }
}

/// The largest dimension that is read; the header's own checks come after.
const DIMENSION: u32 = 1 << 20;

pub(super) fn described(config: Object) -> Result<Described, FolderError> {
    let class = find(config)?;
    refuse_others(config, class)?;
    let hidden = config.required_count("hidden_size", DIMENSION)?;
    let heads = config.required_count("num_attention_heads", 1 << 16)?;
    let kv_heads = config.count("num_key_value_heads", heads)?.unwrap_or(heads);
    let head_dim = match config.count("head_dim", DIMENSION)?.or(class.head_dim) {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return bad(format!("config.json: {heads} heads don't divide the hidden size {hidden}")),
    };
    let layers = config.required_count("num_hidden_layers", limits::LAYERS)?;
    let context = config.required_count("max_position_embeddings", limits::CONTEXT_TOKENS)?;
    let vocab = config.required_count("vocab_size", u32::MAX)?;
    let mut keys = Keys { arch: class.arch, metadata: Metadata::new() };
    keys.whole("general.architecture", Value::Text(class.arch.to_owned()));
    keys.count("embedding_length", hidden);
    keys.count("attention.head_count", heads);
    keys.count("attention.head_count_kv", kv_heads);
    keys.count("attention.key_length", head_dim);
    keys.count("attention.value_length", head_dim);
    keys.count("block_count", layers);
    keys.count("context_length", context);
    keys.count("vocab_size", vocab);
    keys.count("feed_forward_length", config.required_count("intermediate_size", DIMENSION)?);
    keys.put("attention.layer_norm_rms_epsilon", Value::F64(config.required_positive("rms_norm_eps")?));
    // Rows of query and key are not reordered, as they are in Llama's GGUF files.
    keys.whole("caravan.rope.pairing", Value::Text("halves".to_owned()));
    rope::add(config, class, (head_dim, context), &mut keys)?;
    let mut experts = 0;
    match class.family {
        Family::Gemma3 => gemma(config, layers, &mut keys)?,
        Family::Qwen3Moe => experts = mixture(config, &mut keys)?,
        _ => window(config, class, &mut keys)?,
    }
    let tied = config.flag("tie_word_embeddings", class.tied)?;
    Ok(Described { family: class.family, tied, experts, vocab, metadata: keys.metadata })
}

/// Keys of the header as they come together.
pub(super) struct Keys {
    arch: &'static str,
    metadata: Metadata,
}

impl Keys {
    /// Under the architecture's name.
    pub fn put(&mut self, key: &str, value: Value) {
        self.metadata.insert(format!("{}.{key}", self.arch), value);
    }

    pub fn count(&mut self, key: &str, number: u32) {
        self.put(key, Value::U64(number.into()));
    }

    /// A whole name.
    pub fn whole(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.to_owned(), value);
    }
}

fn find(config: Object) -> Result<&'static Class, FolderError> {
    let model_type = config.text("model_type")?;
    let class = match config.texts("architectures")?.as_deref() {
        Some([name]) => match CLASSES.iter().find(|class| class.name == *name) {
            Some(class) => class,
            None => return unknown("architectures", name),
        },
        Some(_) => return config.wrong("architectures", "a list of one name"),
        None => match model_type {
            None => return config.missing("architectures"),
            Some(name) => match CLASSES.iter().find(|class| class.model_type == name) {
                Some(class) => class,
                None => return unknown("model_type", name),
            },
        },
    };
    match model_type {
        Some(name) if name != class.model_type => bad(format!(
            "config.json: \"model_type\" is {} and \"architectures\" {:?}: they must agree",
            shown(name),
            class.name
        )),
        _ => Ok(class),
    }
}

fn unknown<T>(key: &str, name: &str) -> Result<T, FolderError> {
    let names: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
    bad(format!(
        "config.json: {key:?} is {}, which this build does not have (it has {})",
        shown(name),
        names.join(", ")
    ))
}

/// What the classes can be told and this build does not compute.
fn refuse_others(config: Object, class: &Class) -> Result<(), FolderError> {
    let off = json!(false);
    // Weights that are no plain numbers.
    for key in ["quantization_config", "compression_config"] {
        if config.get(key).is_some() {
            return config.unsupported(key);
        }
    }
    let (activation, wanted) = class.activation;
    config.only(activation, &json!(wanted))?;
    if class.family == Family::Gemma3 {
        config.only("use_bidirectional_attention", &off)?;
    }
    if class.family != Family::Qwen2 {
        config.only("attention_bias", &off)?;
    }
    if class.family == Family::Llama {
        config.only("mlp_bias", &off)?;
    }
    if matches!(class.family, Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe) {
        config.only("use_sliding_window", &off)?;
        if let Some(kinds) = config.texts("layer_types")?
            && kinds.iter().any(|kind| *kind != "full_attention")
        {
            return config.unsupported("layer_types");
        }
    }
    Ok(())
}

/// The window of classes whose layers are all local if one is set. Qwen's use theirs only if
/// `use_sliding_window` says so.
fn window(config: Object, class: &Class, keys: &mut Keys) -> Result<(), FolderError> {
    let tokens = match class.name {
        "MistralForCausalLM" if !config.has("sliding_window") => Some(4_096),
        "MistralForCausalLM" | "Phi3ForCausalLM" => config.count("sliding_window", u32::MAX)?,
        _ => None,
    };
    if let Some(tokens) = tokens {
        keys.count("attention.sliding_window", tokens);
    }
    Ok(())
}

fn gemma(config: Object, layers: u32, keys: &mut Keys) -> Result<(), FolderError> {
    keys.whole("caravan.norm.plus_one", Value::Bool(true));
    keys.count("attention.sliding_window", config.required_count("sliding_window", u32::MAX)?);
    let every = match config.count("sliding_window_pattern", limits::LAYERS)? {
        Some(every) => every,
        None => config.count("_sliding_window_pattern", limits::LAYERS)?.unwrap_or(6),
    };
    let local = match config.texts("layer_types")? {
        None => (1..=layers).map(|layer| layer % every != 0).collect(),
        Some(kinds) => {
            if kinds.iter().any(|kind| !matches!(*kind, "sliding_attention" | "full_attention")) {
                return config.unsupported("layer_types");
            }
            kinds.iter().map(|kind| *kind == "sliding_attention").collect()
        }
    };
    keys.put("attention.sliding_window_pattern", Value::Bools(local));
    let scalar = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    keys.put("attention.scale", Value::F64(1.0 / scalar.sqrt()));
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = config.positive(key)? {
            keys.put(key, Value::F64(cap));
        }
    }
    Ok(())
}

/// The number of experts.
fn mixture(config: Object, keys: &mut Keys) -> Result<u32, FolderError> {
    config.only("decoder_sparse_step", &json!(1))?;
    if config.list("mlp_only_layers")?.is_some_and(|layers| !layers.is_empty()) {
        return config.unsupported("mlp_only_layers");
    }
    let count = config.required_count("num_experts", limits::EXPERTS)?;
    keys.count("expert_count", count);
    keys.count("expert_used_count", config.required_count("num_experts_per_tok", count)?);
    keys.count("expert_feed_forward_length", config.required_count("moe_intermediate_size", DIMENSION)?);
    keys.put("expert_weights_norm", Value::Bool(config.flag("norm_topk_prob", false)?));
    Ok(count)
}

/// Numbers of tokens that end a text: one, or a list.
pub(super) fn ends(place: &str, map: &Map<String, Json>) -> Result<Vec<u64>, FolderError> {
    let object = Object::new(place, map);
    let Some(value) = object.get("eos_token_id") else {
        return Ok(Vec::new());
    };
    let ids = match value {
        Json::Array(values) => values.iter().map(Json::as_u64).collect(),
        one => one.as_u64().map(|id| vec![id]),
    };
    match ids {
        Some(ids) if ids.len() <= limits::STOP_TOKENS => Ok(ids),
        _ => object.wrong("eos_token_id", "a token or a list of tokens"),
    }
}

//! Metadata of one architecture, read with errors that name the key.
//!
//! Must never put a default in the place of a value that is there and wrong.

use std::collections::BTreeMap;

use super::value::Value;
use super::{Gguf, GgufError, bad, shown};
use crate::model::{Family, RopePairing};

/// Keys whose meaning is built in, or that say nothing about the arithmetic.
const KNOWN: [&str; 18] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
];

/// Further ones of some families.
fn own_keys(family: Family) -> &'static [&'static str] {
    match family {
        Family::Gemma3 => &["attention.sliding_window_pattern", "rope.freq_base_swa"],
        Family::Qwen3Moe => {
            &["expert_count", "expert_used_count", "expert_feed_forward_length", "expert_weights_norm"]
        }
        _ => &[],
    }
}

/// The keys of `family`, whose names in the file begin with `arch` and a dot.
pub(super) struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
    pub family: Family,
    arch: &'static str,
}

impl<'a> Keys<'a> {
    pub fn new(gguf: &'a Gguf) -> Result<Keys<'a>, GgufError> {
        let metadata = &gguf.metadata;
        let Some(value) = metadata.get("general.architecture") else {
            return bad("the file lacks the key \"general.architecture\"");
        };
        let (family, arch) = match value.as_text() {
            Some("llama") => (Family::Llama, "llama"),
            Some("qwen2") => (Family::Qwen2, "qwen2"),
            Some("qwen3") => (Family::Qwen3, "qwen3"),
            Some("qwen3moe") => (Family::Qwen3Moe, "qwen3moe"),
            Some("gemma3") => (Family::Gemma3, "gemma3"),
            Some("phi3") => (Family::Phi3, "phi3"),
            Some(other) => {
                return bad(format!(
                    "models of architecture {} are not supported by this build (`llama`, `qwen2`, `qwen3`, \
                     `qwen3moe`, `gemma3` and `phi3` are)",
                    shown(other)
                ));
            }
            None => return bad("the key \"general.architecture\" must be a string"),
        };
        Ok(Keys { metadata, family, arch })
    }

    /// The whole name of a key of this architecture.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&self.name(key))
    }

    fn missing<T>(&self, key: &str) -> Result<T, GgufError> {
        bad(format!("the file lacks the key {:?}", self.name(key)))
    }

    /// An integer from 1 to `most`; `None` if the key is not there.
    pub fn count(&self, key: &str, most: u32) -> Result<Option<u32>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => bad(format!("the key {:?} must be one number from 1 to {most}", self.name(key))),
        }
    }

    pub fn required_count(&self, key: &str, most: u32) -> Result<u32, GgufError> {
        match self.count(key, most)? {
            Some(number) => Ok(number),
            None => self.missing(key),
        }
    }

    /// An integer whose 0 means "off", as its absence does.
    pub fn count_or_off(&self, key: &str) -> Result<Option<u32>, GgufError> {
        if self.get(key).and_then(Value::as_u64) == Some(0) { Ok(None) } else { self.count(key, u32::MAX) }
    }

    /// A finite number above 0, as f32.
    pub fn positive(&self, key: &str) -> Result<Option<f32>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64().map(|number| number as f32) {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => bad(format!("the key {:?} must be a finite number above 0", self.name(key))),
        }
    }

    pub fn required_positive(&self, key: &str) -> Result<f32, GgufError> {
        match self.positive(key)? {
            Some(number) => Ok(number),
            None => self.missing(key),
        }
    }

    /// A finite number above 0 whose 0 means "off", as its absence does.
    pub fn positive_or_off(&self, key: &str) -> Result<Option<f32>, GgufError> {
        if self.get(key).and_then(Value::as_f64) == Some(0.0) { Ok(None) } else { self.positive(key) }
    }

    /// A truth value under its whole name: headers of folders have keys of our own.
    pub fn own_flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.metadata.get(key).map(Value::as_bool) {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => bad(format!("the key {key:?} must be true or false")),
        }
    }

    /// Numbers under their whole name.
    pub fn own_floats(&self, key: &str) -> Result<Option<&'a [f64]>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Floats(values)) => Ok(Some(values)),
            Some(_) => bad(format!("the key {key:?} must be an array of numbers")),
        }
    }

    /// Which dimensions are turned together: as the header says, else as the family's GGUF files have it.
    pub fn pairing(&self) -> Result<RopePairing, GgufError> {
        let key = "caravan.rope.pairing";
        match self.metadata.get(key).map(Value::as_text) {
            None if self.family == Family::Llama => Ok(RopePairing::Neighbours),
            None | Some(Some("halves")) => Ok(RopePairing::Halves),
            Some(Some("neighbours")) => Ok(RopePairing::Neighbours),
            Some(_) => bad(format!("the key {key:?} must be \"halves\" or \"neighbours\"")),
        }
    }

    /// Number of tokens in the tokenizer's list.
    pub fn tokens(&self) -> Result<u64, GgufError> {
        match self.metadata.get("tokenizer.ggml.tokens").map(Value::as_texts) {
            Some(Some(tokens)) => Ok(tokens.len() as u64),
            Some(None) => bad("the key \"tokenizer.ggml.tokens\" must be an array of strings"),
            None => bad("the file lacks the key \"tokenizer.ggml.tokens\""),
        }
    }

    /// Refuses keys of the architecture that are neither known nor at the value that means "off".
    pub fn refuse_unknown(&self) -> Result<(), GgufError> {
        for (key, value) in self.metadata {
            let Some(name) = key.strip_prefix(self.arch).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            if KNOWN.contains(&name) || own_keys(self.family).contains(&name) || is_off(name, value) {
                continue;
            }
            return bad(format!(
                "the key {} = {value} asks for something that this build does not support",
                shown(key)
            ));
        }
        Ok(())
    }
}

/// Whether a key that is read elsewhere, or not at all, has a value that this build computes.
fn is_off(name: &str, value: &Value) -> bool {
    match name {
        "vocab_size" => true,
        "rope.scaling.type" => matches!(value.as_text(), Some("none" | "linear" | "longrope")),
        "rope.scaling.factor" | "rope.scale_linear" | "rope.scaling.attn_factor" => true,
        "expert_count" | "expert_used_count" | "expert_shared_count" => value.as_u64() == Some(0),
        "expert_shared_feed_forward_length" | "leading_dense_block_count" => value.as_u64() == Some(0),
        // 1 is softmax.
        "expert_gating_func" => value.as_u64() == Some(1),
        "expert_weights_norm" => value.as_bool() == Some(true),
        "expert_weights_scale" => matches!(value.as_f64(), Some(0.0 | 1.0)),
        "attention.causal" => value.as_bool() == Some(true),
        "use_parallel_residual" => value.as_bool() == Some(false),
        _ => false,
    }
}

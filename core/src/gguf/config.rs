//! From a header to a model's configuration: which keys and tensors a family has, and what they must be.
//!
//! Must never ignore a key or tensor that could change an answer: what is not understood is refused by name.

use std::collections::BTreeMap;

use super::value::Value;
use super::{Gguf, GgufError, TensorInfo, bad, shown};
use crate::ids::Digest;
use crate::limits;
use crate::model::{Family, ModelConfig, ModelSpec, Place, TensorSpec};

/// Keys of the Llama family whose meaning is built in, or that say nothing about the arithmetic.
const LLAMA_KEYS: [&str; 15] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
];

pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, GgufError> {
    let keys = Keys { metadata: &gguf.metadata };
    match keys.text("general.architecture")? {
        "llama" => llama(gguf, &keys),
        other => bad(format!(
            "models of architecture {} are not supported by this build (`llama` is)",
            shown(other)
        )),
    }
}

pub(super) fn spec(
    gguf: &Gguf,
    name: &str,
    header: Digest,
    digests: &[Digest],
    total: Digest,
) -> Result<ModelSpec, GgufError> {
    let config = config(gguf)?;
    if digests.len() != gguf.tensors.len() {
        return bad(format!("{} digests for {} tensors", digests.len(), gguf.tensors.len()));
    }
    let mut tensors = Vec::with_capacity(gguf.tensors.len());
    for (info, digest) in gguf.tensors.iter().zip(digests) {
        let Some(place) = place(&info.name) else {
            return Err(unknown_tensor(&info.name));
        };
        tensors.push(TensorSpec {
            name: info.name.clone(),
            dims: info.dims.clone(),
            kind: info.kind,
            place,
            offset: info.offset,
            bytes: info.bytes,
            digest: *digest,
        });
    }
    tensors.sort_by_key(|tensor| tensor.offset);
    let name = name.to_owned();
    Ok(ModelSpec { name, digest: total, header, header_bytes: gguf.data_offset, config, tensors })
}

fn place(name: &str) -> Option<Place> {
    match name {
        "token_embd.weight" => Some(Place::Embed),
        "output_norm.weight" | "output.weight" => Some(Place::Head),
        _ => {
            let (layer, _) = name.strip_prefix("blk.")?.split_once('.')?;
            Some(Place::Layer(layer.parse().ok()?))
        }
    }
}

fn unknown_tensor(name: &str) -> GgufError {
    GgufError::Bad(format!(
        "the file has a tensor {name:?}, which this build would not use; it is not supported"
    ))
}

/// Metadata with errors that name the key.
struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
}

impl<'a> Keys<'a> {
    fn required(&self, key: &str) -> Result<&'a Value, GgufError> {
        match self.metadata.get(key) {
            Some(value) => Ok(value),
            None => bad(format!("the file lacks the key {key:?}")),
        }
    }

    fn text(&self, key: &str) -> Result<&'a str, GgufError> {
        match self.required(key)?.as_text() {
            Some(text) => Ok(text),
            None => bad(format!("the key {key:?} must be a string")),
        }
    }

    /// An integer from 1 to `most`; `None` if the key is not there.
    fn count(&self, key: &str, most: u32) -> Result<Option<u32>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => bad(format!("the key {key:?} must be one number from 1 to {most}")),
        }
    }

    fn required_count(&self, key: &str, most: u32) -> Result<u32, GgufError> {
        self.required(key)?;
        Ok(self.count(key, most)?.unwrap_or(1))
    }

    /// A finite number above 0, as f32.
    fn positive(&self, key: &str) -> Result<Option<f32>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match value.as_f64().map(|number| number as f32) {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => bad(format!("the key {key:?} must be a finite number above 0")),
        }
    }
}

/// Dimensions that no file may exceed, so that products stay far from overflow.
const DIMENSION: u32 = 1 << 20;

fn llama(gguf: &Gguf, keys: &Keys) -> Result<ModelConfig, GgufError> {
    refuse_unknown_keys(gguf)?;
    let count = |key: &str, most| keys.required_count(&format!("llama.{key}"), most);
    let hidden = count("embedding_length", DIMENSION)?;
    let heads = count("attention.head_count", 1 << 16)?;
    let kv_heads = keys.count("llama.attention.head_count_kv", heads)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return bad(format!("{kv_heads} key heads don't divide {heads} heads"));
    }
    let head_dim = head_dim(keys, hidden, heads)?;
    let rope_dim = keys.count("llama.rope.dimension_count", head_dim)?.unwrap_or(head_dim);
    if rope_dim % 2 != 0 {
        return bad(format!("`llama.rope.dimension_count` {rope_dim} is odd"));
    }
    let Some(norm_eps) = keys.positive("llama.attention.layer_norm_rms_epsilon")? else {
        return bad("the file lacks the key \"llama.attention.layer_norm_rms_epsilon\"");
    };
    let tensors: BTreeMap<&str, &TensorInfo> =
        gguf.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let config = ModelConfig {
        family: Family::Llama,
        layers: count("block_count", limits::LAYERS)?,
        hidden,
        heads,
        kv_heads,
        head_dim,
        rope_dim,
        rope_base: keys.positive("llama.rope.freq_base")?.unwrap_or(10_000.0),
        norm_eps,
        ffn: count("feed_forward_length", DIMENSION)?,
        vocab: vocab(keys, &tensors)?,
        context: count("context_length", limits::CONTEXT_TOKENS)?,
        tied: !tensors.contains_key("output.weight"),
    };
    check_shapes(&config, tensors)?;
    Ok(config)
}

/// Keys of the family that are neither known nor at the value that means "off".
fn refuse_unknown_keys(gguf: &Gguf) -> Result<(), GgufError> {
    for (key, value) in &gguf.metadata {
        let Some(name) = key.strip_prefix("llama.") else {
            continue;
        };
        let off = match name {
            "rope.scaling.type" => value.as_text() == Some("none"),
            "rope.scaling.factor" | "rope.scale_linear" => matches!(value.as_f64(), Some(0.0 | 1.0)),
            "expert_count" | "expert_used_count" | "attention.sliding_window" => value.as_u64() == Some(0),
            "attention.causal" | "use_parallel_residual" => {
                value.as_bool() == Some(name == "attention.causal")
            }
            _ => LLAMA_KEYS.contains(&name),
        };
        if !off {
            return bad(format!(
                "the key {} = {value} asks for something that this build does not support",
                shown(key)
            ));
        }
    }
    Ok(())
}

fn head_dim(keys: &Keys, hidden: u32, heads: u32) -> Result<u32, GgufError> {
    let given = keys.count("llama.attention.key_length", DIMENSION)?;
    let head_dim = match given {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return bad(format!("{heads} heads don't divide the hidden size {hidden}")),
    };
    if head_dim % 2 != 0 {
        return bad(format!("heads of {head_dim} dimensions can't be rotated: it must be even"));
    }
    let value_length = keys.count("llama.attention.value_length", DIMENSION)?;
    if value_length.is_some_and(|length| length != head_dim) {
        return bad("`llama.attention.value_length` differs from the key length, which is not supported");
    }
    Ok(head_dim)
}

/// Tokens of the vocabulary: embedding rows, token list and (if there) `vocab_size` must agree.
fn vocab(keys: &Keys, tensors: &BTreeMap<&str, &TensorInfo>) -> Result<u32, GgufError> {
    let Some(embedding) = tensors.get("token_embd.weight") else {
        return bad("the file lacks the tensor \"token_embd.weight\"");
    };
    let rows = match embedding.dims[..] {
        [_, rows] => rows,
        _ => return bad("the tensor \"token_embd.weight\" must have two dimensions"),
    };
    let Some(tokens) = keys.required("tokenizer.ggml.tokens")?.as_texts() else {
        return bad("the key \"tokenizer.ggml.tokens\" must be an array of strings");
    };
    let stated = keys.count("llama.vocab_size", u32::MAX)?.map_or(rows, u64::from);
    match u32::try_from(rows) {
        Ok(vocab) if rows == tokens.len() as u64 && rows == stated => Ok(vocab),
        _ => bad(format!(
            "the embedding has {rows} rows, the tokenizer {} tokens and `llama.vocab_size` says {stated}: \
             they must agree",
            tokens.len()
        )),
    }
}

/// Every tensor of the family is there with its shape, and no other.
fn check_shapes(config: &ModelConfig, mut tensors: BTreeMap<&str, &TensorInfo>) -> Result<(), GgufError> {
    let mut expect = |name: &str, dims: &[u64]| match tensors.remove(name) {
        None => bad(format!("the file lacks the tensor {name:?}")),
        Some(tensor) if tensor.dims != dims => {
            bad(format!("the tensor {name:?} has dimensions {:?} and must have {dims:?}", tensor.dims))
        }
        Some(_) => Ok(()),
    };
    let (hidden, ffn, vocab) = (u64::from(config.hidden), u64::from(config.ffn), u64::from(config.vocab));
    let queries = u64::from(config.heads) * u64::from(config.head_dim);
    let keys = u64::from(config.kv_heads) * u64::from(config.head_dim);
    expect("token_embd.weight", &[hidden, vocab])?;
    expect("output_norm.weight", &[hidden])?;
    if !config.tied {
        expect("output.weight", &[hidden, vocab])?;
    }
    for layer in 0..config.layers {
        let mut expect = |name: &str, dims: &[u64]| expect(&format!("blk.{layer}.{name}.weight"), dims);
        expect("attn_norm", &[hidden])?;
        expect("attn_q", &[hidden, queries])?;
        expect("attn_k", &[hidden, keys])?;
        expect("attn_v", &[hidden, keys])?;
        expect("attn_output", &[queries, hidden])?;
        expect("ffn_norm", &[hidden])?;
        expect("ffn_gate", &[hidden, ffn])?;
        expect("ffn_up", &[hidden, ffn])?;
        expect("ffn_down", &[ffn, hidden])?;
    }
    match tensors.keys().next() {
        None => Ok(()),
        Some(name) => Err(unknown_tensor(name)),
    }
}

//! From a header to a model's configuration: which keys and tensors a family has, and what they must be.
//!
//! Must never ignore a key or tensor that could change an answer: what is not understood is refused by name.

use std::collections::BTreeMap;

use super::keys::Keys;
use super::{Gguf, GgufError, TensorInfo, bad, rope};
use crate::ids::Digest;
use crate::limits;
use crate::model::{
    Experts, Family, KvPrecision, ModelConfig, ModelSpec, Place, RopeFactors, RopeScaling, TensorSpec,
};

/// Dimensions that no file may exceed, so that products stay far from overflow.
const DIMENSION: u32 = 1 << 20;
/// Layers of the one Gemma 3 (27B) that scales its scores by the hidden size per head.
const GEMMA_27B_LAYERS: u32 = 62;

pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, GgufError> {
    let keys = Keys::new(gguf)?;
    keys.refuse_unknown()?;
    let tensors: BTreeMap<&str, &TensorInfo> =
        gguf.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let config = read(&keys, &tensors)?;
    check_shapes(&config, tensors)?;
    Ok(config)
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
        // Of short and long factors only one set is computed with.
        if place == Place::Shared && !is_used(&config, &info.name) {
            continue;
        }
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
        rope::FACTORS | rope::SHORT | rope::LONG => Some(Place::Shared),
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

/// Whether `name` is the tensor of factors that the rotation takes.
fn is_used(config: &ModelConfig, name: &str) -> bool {
    matches!(&config.rope_scaling,
        RopeScaling::Factors { factors: RopeFactors::Tensor(used), .. } if used == name)
}

fn read(keys: &Keys, tensors: &BTreeMap<&str, &TensorInfo>) -> Result<ModelConfig, GgufError> {
    let family = keys.family;
    let hidden = keys.required_count("embedding_length", DIMENSION)?;
    let heads = keys.required_count("attention.head_count", 1 << 16)?;
    let kv_heads = keys.count("attention.head_count_kv", heads)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return bad(format!("{kv_heads} key heads don't divide {heads} heads"));
    }
    let head_dim = head_dim(keys, hidden, heads)?;
    let rope_dim = keys.count("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
    if rope_dim % 2 != 0 {
        return bad(format!("`{}` {rope_dim} is odd", keys.name("rope.dimension_count")));
    }
    let norm_eps = keys.required_positive("attention.layer_norm_rms_epsilon")?;
    let layers = keys.required_count("block_count", limits::LAYERS)?;
    let context = keys.required_count("context_length", limits::CONTEXT_TOKENS)?;
    let ffn = match family {
        Family::Qwen3Moe => keys.required_count("expert_feed_forward_length", DIMENSION)?,
        _ => keys.required_count("feed_forward_length", DIMENSION)?,
    };
    let window = match family {
        Family::Gemma3 => rope::gemma_window(keys, layers)?,
        _ => rope::plain_window(keys, context)?,
    };
    let attention_scale = match keys.positive_or_off("attention.scale")? {
        None if family == Family::Gemma3 && layers == GEMMA_27B_LAYERS => {
            Some(1.0 / ((hidden / heads) as f32).sqrt())
        }
        given => given,
    };
    Ok(ModelConfig {
        family,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        rope_dim,
        rope_base: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
        norm_eps,
        norm_plus_one: keys.own_flag("caravan.norm.plus_one")?.unwrap_or(false),
        ffn,
        vocab: vocab(keys, tensors)?,
        context,
        tied: !tensors.contains_key("output.weight"),
        rope_pairing: keys.pairing()?,
        rope_scaling: rope::scaling(keys, tensors, (rope_dim, context))?,
        window,
        attention_scale,
        attention_cap: keys.positive_or_off("attn_logit_softcapping")?,
        logit_cap: keys.positive_or_off("final_logit_softcapping")?,
        experts: if family == Family::Qwen3Moe { Some(experts(keys)?) } else { None },
        kv: KvPrecision::F32,
    })
}

fn experts(keys: &Keys) -> Result<Experts, GgufError> {
    let count = keys.required_count("expert_count", limits::EXPERTS)?;
    let used = keys.required_count("expert_used_count", count)?;
    let normalised = match keys.get("expert_weights_norm") {
        None => true,
        Some(value) => value.as_bool().ok_or_else(|| {
            GgufError::Bad(format!("the key {:?} must be true or false", keys.name("expert_weights_norm")))
        })?,
    };
    Ok(Experts { count, used, normalised })
}

fn head_dim(keys: &Keys, hidden: u32, heads: u32) -> Result<u32, GgufError> {
    let given = keys.count("attention.key_length", DIMENSION)?;
    let head_dim = match given {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return bad(format!("{heads} heads don't divide the hidden size {hidden}")),
    };
    if head_dim % 2 != 0 {
        return bad(format!("heads of {head_dim} dimensions can't be rotated: it must be even"));
    }
    if heads.checked_mul(head_dim).is_none_or(|width| width > DIMENSION) {
        return bad(format!("{heads} heads of {head_dim} dimensions are more than any model has"));
    }
    let value_length = keys.count("attention.value_length", DIMENSION)?;
    if value_length.is_some_and(|length| length != head_dim) {
        let name = keys.name("attention.value_length");
        return bad(format!("`{name}` differs from the key length, which is not supported"));
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
    let tokens = keys.tokens()?;
    let stated = keys.count("vocab_size", u32::MAX)?.map_or(rows, u64::from);
    match u32::try_from(rows) {
        Ok(vocab) if rows == tokens && rows == stated => Ok(vocab),
        _ => bad(format!(
            "the embedding has {rows} rows, the tokenizer {tokens} tokens and `{}` says {stated}: \
             they must agree",
            keys.name("vocab_size")
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
    let (hidden, vocab) = (u64::from(config.hidden), u64::from(config.vocab));
    expect("token_embd.weight", &[hidden, vocab])?;
    expect("output_norm.weight", &[hidden])?;
    if !config.tied {
        expect("output.weight", &[hidden, vocab])?;
    }
    if let RopeScaling::Factors { factors: RopeFactors::Tensor(name), .. } = &config.rope_scaling {
        let pairs = u64::from(config.rope_dim / 2);
        let names = if name == rope::FACTORS { vec![rope::FACTORS] } else { vec![rope::SHORT, rope::LONG] };
        names.into_iter().try_for_each(|name| expect(name, &[pairs]))?;
    }
    let parts = config.layer_tensors();
    for layer in 0..config.layers {
        parts.iter().try_for_each(|part| expect(&part.name(layer), &part.dims))?;
    }
    match tensors.keys().next() {
        None => Ok(()),
        Some(name) => Err(unknown_tensor(name)),
    }
}

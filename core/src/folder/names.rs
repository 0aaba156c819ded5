//! From the tensors' names in safetensors files to those of GGUF files, and experts to one stack a layer.
//!
//! Must never drop a tensor but those listed here, which the models' definition does not compute with.

use std::collections::BTreeMap;

use super::config::Described;
use super::safetensors::Entry;
use super::shards::Found;
use super::{FolderError, Span, bad, shown};
use crate::gguf::write::Listed;
use crate::model::Family;

/// One tensor of the header with its bytes.
pub(super) struct Part {
    pub listed: Listed,
    pub spans: Vec<Span>,
}

/// What a tensor of a file becomes.
enum Role {
    /// A tensor by itself, of this name.
    Whole(String),
    /// One matrix of a stack.
    Expert {
        stack: String,
        expert: u32,
    },
    Unused,
}

const OUTPUT: &str = "output.weight";

/// The tensors in an order of ours: embedding, layers, head.
pub(super) fn parts(described: &Described, entries: Vec<Found>) -> Result<Vec<Part>, FolderError> {
    let mut whole: BTreeMap<(u32, String), Found> = BTreeMap::new();
    let mut stacks: BTreeMap<(u32, String), BTreeMap<u32, Found>> = BTreeMap::new();
    for found in entries {
        let name = found.1.name.clone();
        let twice = match role(described, &name) {
            None => {
                return bad(format!(
                    "the tensor {} is not one that this build's {:?} models compute with; it is not supported",
                    shown(&name),
                    described.family
                ));
            }
            Some(Role::Unused) => false,
            Some(Role::Whole(name)) => whole.insert((rank(&name), name), found).is_some(),
            Some(Role::Expert { stack, expert }) => {
                stacks.entry((rank(&stack), stack)).or_default().insert(expert, found).is_some()
            }
        };
        if twice {
            return bad(format!("the tensor {} is there twice", shown(&name)));
        }
    }
    // Without it the header would say that the head is the embedding.
    if !described.tied && !whole.keys().any(|(_, name)| name == OUTPUT) {
        return bad(
            "the files lack the tensor \"lm_head.weight\", and config.json does not tie it to the embedding",
        );
    }
    let mut parts: BTreeMap<(u32, String), Part> = BTreeMap::new();
    for (key, (shard, entry)) in whole {
        let dims = entry.shape.iter().rev().copied().collect();
        let listed = Listed { name: key.1.clone(), dims, kind: entry.kind };
        parts.insert(key, Part { listed, spans: vec![span(shard, &entry)] });
    }
    for (key, experts) in stacks {
        let part = stack(&key.1, experts, described.experts)?;
        parts.insert(key, part);
    }
    Ok(parts.into_values().collect())
}

fn span(shard: usize, entry: &Entry) -> Span {
    Span { shard, offset: entry.offset, bytes: entry.bytes }
}

/// The experts' matrices behind one another, in order.
fn stack(name: &str, experts: BTreeMap<u32, Found>, wanted: u32) -> Result<Part, FolderError> {
    let mut spans = Vec::with_capacity(experts.len());
    let mut all = experts.iter();
    let Some((_, (_, first))) = all.next() else {
        return bad(format!("{name:?} has no experts"));
    };
    for (expected, (expert, (shard, entry))) in (0..).zip(&experts) {
        if expected != *expert || *expert >= wanted {
            return bad(format!(
                "the tensors of {name:?} are of expert {expert} where {expected} of {wanted} is expected"
            ));
        }
        if (entry.kind, &entry.shape) != (first.kind, &first.shape) {
            return bad(format!(
                "the tensor {} has another type or shape than {}",
                shown(&entry.name),
                shown(&first.name)
            ));
        }
        spans.push(span(*shard, entry));
    }
    if experts.len() != wanted as usize {
        return bad(format!("{name:?} has {} experts of {wanted}", experts.len()));
    }
    let dims = first.shape.iter().rev().copied().chain([u64::from(wanted)]).collect();
    Ok(Part { listed: Listed { name: name.to_owned(), dims, kind: first.kind }, spans })
}

/// Where a tensor stands: the embedding first, then layer after layer, then the head.
fn rank(name: &str) -> u32 {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layer.and_then(|(layer, _)| layer.parse::<u32>().ok()) {
        Some(layer) => layer.saturating_add(1),
        None if name.starts_with("token_embd") => 0,
        None => u32::MAX,
    }
}

/// `None` for a tensor that the family does not have.
fn role(described: &Described, name: &str) -> Option<Role> {
    let whole = |name: &str| Some(Role::Whole(name.to_owned()));
    match name {
        "model.embed_tokens.weight" => return whole("token_embd.weight"),
        "model.norm.weight" => return whole("output_norm.weight"),
        // A copy of the embedding, by the models' definition.
        "lm_head.weight" if described.tied => return Some(Role::Unused),
        "lm_head.weight" => return whole(OUTPUT),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = number(layer)?;
    // A table that follows from the configuration, kept by old programs.
    if rest == "self_attn.rotary_emb.inv_freq" {
        return Some(Role::Unused);
    }
    if let Some(expert) = rest.strip_prefix("mlp.experts.") {
        let (expert, part) = expert.split_once('.')?;
        let part = match part {
            "gate_proj.weight" => "ffn_gate_exps.weight",
            "up_proj.weight" => "ffn_up_exps.weight",
            "down_proj.weight" => "ffn_down_exps.weight",
            _ => return None,
        };
        return Some(Role::Expert { stack: format!("blk.{layer}.{part}"), expert: number(expert)? });
    }
    let (part, what) = rest.rsplit_once('.')?;
    if !matches!(what, "weight" | "bias") {
        return None;
    }
    Some(Role::Whole(format!("blk.{layer}.{}.{what}", layer_part(described.family, part)?)))
}

/// As programs write numbers: without sign and leading zeros.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

fn layer_part(family: Family, part: &str) -> Option<&'static str> {
    let gemma = family == Family::Gemma3;
    Some(match part {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if gemma => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "pre_feedforward_layernorm" if gemma => "ffn_norm",
        "post_feedforward_layernorm" if gemma => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" => "ffn_gate_inp",
        _ => return None,
    })
}

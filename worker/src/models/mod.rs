//! The model families, a file for each, and the parts they are made of.
//!
//! Every family is one decoder layer (`layer`) with other parts in it. Which tensors it has follows
//! from `caravan_core::model`, sizes and constants from `ModelConfig`; the rest of what sets a
//! family apart is its `Traits`. Must never know of requests, steps or neighbours.

pub mod experts;
pub mod gemma3;
pub mod layer;
pub mod llama;
mod model;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_moe;
pub mod rotation;

use std::sync::Arc;

use caravan_core::model::{Family, ModelConfig};
use caravan_kernels::attention::{KvShape, Sight};
use caravan_kernels::{Activations, Gate};

use crate::weights::Loader;

pub use model::Model;

/// What a family computes otherwise than others, beyond its tensors and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// What is done to the gate of the feed-forward part.
    pub gate: Gate,
    /// Embeddings are multiplied by sqrt(hidden).
    pub scaled_embedding: bool,
}

impl Traits {
    pub fn of(family: Family) -> Traits {
        match family {
            Family::Llama => llama::TRAITS,
            Family::Qwen2 => qwen2::TRAITS,
            Family::Qwen3 => qwen3::TRAITS,
            Family::Qwen3Moe => qwen3_moe::TRAITS,
            Family::Gemma3 => gemma3::TRAITS,
            Family::Phi3 => phi3::TRAITS,
        }
    }
}

/// The rows of one step, as the layers see them.
pub struct Batch<'a> {
    /// What each row may look at.
    pub sights: Vec<Sight<'a>>,
    /// (page, slot) where each row's key and value go.
    pub slots: Vec<(u32, u32)>,
}

/// Buffers of a forward pass, kept from step to step.
#[derive(Default)]
pub struct Scratch {
    /// Of global layers, and of local ones if those have a rotation of their own.
    pub angles: [Vec<[f32; 2]>; 2],
    pub normed: Vec<f32>,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub mixed: Vec<f32>,
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub scores: Vec<f32>,
    pub acts: Activations,
    /// What a part gives before its norm, if it has one.
    pub outcome: Vec<f32>,
    pub routed: experts::Routed,
}

/// Changes the length only; what the buffer holds is overwritten by its next user.
fn resize(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

/// A part of a model with the digests of the tensors it was made from.
pub struct Held<T> {
    pub digests: Option<Vec<caravan_core::ids::Digest>>,
    pub part: T,
}

/// The part named by `names` if one of `old` was made from the very same tensors, else a new one.
pub fn reuse_or_load<'a, T: 'a>(
    loader: &Loader<'_>,
    names: &[String],
    old: impl IntoIterator<Item = &'a Arc<Held<T>>>,
    load: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<Arc<Held<T>>> {
    let digests = loader.digests(names);
    if digests.is_some()
        && let Some(held) = old.into_iter().find(|held| held.digests == digests)
    {
        loader.reused(names);
        return Ok(Arc::clone(held));
    }
    Ok(Arc::new(Held { digests, part: load()? }))
}

/// The cache shape of a model.
pub fn kv_shape(config: &ModelConfig, page_tokens: u32) -> KvShape {
    KvShape {
        page_tokens: page_tokens as usize,
        kv_heads: config.kv_heads as usize,
        dim: config.head_dim as usize,
    }
}

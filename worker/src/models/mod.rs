//! The model families, a file for each, and what they share.
//!
//! A family loads its layers and ends from named tensors and computes rows. It must never know of
//! requests, steps or neighbours.

pub mod llama;

use std::sync::Arc;

use caravan_core::model::{Family, ModelConfig};
use caravan_core::plan::Slice;
use caravan_kernels::Team;
use caravan_kernels::attention::{KvShape, Sight};

use crate::kv::KvCache;
use crate::weights::Loader;

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
    pub angles: Vec<[f32; 2]>,
    pub normed: Vec<f32>,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub mixed: Vec<f32>,
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub scores: Vec<f32>,
    pub sums: Vec<f32>,
}

/// The weights of a slice.
pub enum Model {
    Llama(llama::Llama),
}

impl Model {
    /// Loads the slice; what `reuse` holds of the same tensors is shared.
    pub fn load(
        config: &ModelConfig,
        slice: Slice,
        loader: &Loader<'_>,
        reuse: Option<&Model>,
    ) -> anyhow::Result<Model> {
        match config.family {
            Family::Llama => {
                let reuse = reuse.map(|Model::Llama(model)| model);
                Ok(Model::Llama(llama::Llama::load(config, slice, loader, reuse)?))
            }
        }
    }

    /// Embedding rows of `tokens` into `out` (tokens x hidden). Only at the first stage.
    pub fn embed(&self, tokens: &[u32], out: &mut [f32]) -> anyhow::Result<()> {
        let Model::Llama(model) = self;
        model.embed(tokens, out)
    }

    /// `rows` (rows x hidden) through every layer of the slice, in place.
    pub fn layers(
        &self,
        team: &mut Team,
        batch: &Batch<'_>,
        kv: &mut KvCache,
        scratch: &mut Scratch,
        rows: &mut [f32],
    ) {
        let Model::Llama(model) = self;
        model.layers(team, batch, kv, scratch, rows);
    }

    /// Logits (rows x vocab) of `rows` (rows x hidden). Only at the last stage.
    pub fn head(&self, team: &mut Team, scratch: &mut Scratch, rows: &[f32]) -> anyhow::Result<Vec<f32>> {
        let Model::Llama(model) = self;
        model.head(team, scratch, rows)
    }

    /// Bytes of packed weights, shared ones too.
    pub fn memory_bytes(&self) -> u64 {
        let Model::Llama(model) = self;
        model.memory_bytes()
    }
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

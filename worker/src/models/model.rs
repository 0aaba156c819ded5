//! A model's slice: the layers and the ends that a stage holds, whatever the family.
//!
//! Must never hold anything of a request: what a sequence leaves behind is in the KV cache.

use std::sync::Arc;

use anyhow::Context;
use caravan_core::model::ModelConfig;
use caravan_core::plan::Slice;
use caravan_kernels::rows::{rms_norm, soft_cap};
use caravan_kernels::{Matrix, Product, Store, Team, multiply};

use super::layer::{Layer, Spot};
use super::rotation::Rotation;
use super::{Batch, Held, Scratch, Traits, resize, reuse_or_load};
use crate::kv::KvCache;
use crate::weights::Loader;

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
const OUTPUT_NORM: &str = "output_norm.weight";

/// The layers of a slice, with the ends it has.
pub struct Model {
    config: ModelConfig,
    /// The first layer's number in the whole model.
    first: u32,
    layers: Vec<Arc<Held<Layer>>>,
    embedding: Option<Arc<Held<Matrix>>>,
    /// Norm and output matrix; the matrix is `embedding` if the model is tied.
    head_norm: Option<Vec<f32>>,
    output: Option<Arc<Held<Matrix>>>,
    rotation: Rotation,
}

impl Model {
    /// Loads the slice; what `reuse` holds of the same tensors is shared.
    pub fn load(
        config: &ModelConfig,
        slice: Slice,
        loader: &Loader<'_>,
        reuse: Option<&Model>,
    ) -> anyhow::Result<Model> {
        // Parts made for other dimensions are of no use, whatever their bytes.
        let reuse = reuse.filter(|old| old.config == *config);
        let parts = config.layer_tensors();
        let layers = loader.each(slice.first..slice.end, |index| {
            let names: Vec<String> = parts.iter().map(|part| part.name(index)).collect();
            let old = reuse.iter().flat_map(|old| &old.layers);
            reuse_or_load(loader, &names, old, || Layer::load(config, index, loader))
        })?;
        let (first, last) = (slice.first == 0, slice.end == config.layers);
        let matrix = |name: &str| {
            let old = reuse.iter().flat_map(|old| old.embedding.iter().chain(&old.output));
            let load = || loader.matrix(name, config.hidden, config.vocab);
            reuse_or_load(loader, &[name.to_owned()], old, load)
        };
        let embedding = if first || (last && config.tied) { Some(matrix(EMBEDDING)?) } else { None };
        let output = match (last, config.tied) {
            (false, _) => None,
            (true, true) => embedding.clone(),
            (true, false) => Some(matrix(OUTPUT)?),
        };
        let head_norm = if last { Some(loader.vector(OUTPUT_NORM, config.hidden)?) } else { None };
        let rotation = Rotation::load(config, loader)?;
        let (config, first) = (config.clone(), slice.first);
        Ok(Model { config, first, layers, embedding, head_norm, output, rotation })
    }

    /// Embedding rows of `tokens`, which must be below the vocabulary's size, into `out` (tokens x
    /// hidden). Only at the first stage.
    pub fn embed(&self, tokens: &[u32], out: &mut [f32]) -> anyhow::Result<()> {
        let embedding =
            self.embedding.as_ref().context("this stage has no embedding: it is not the first")?;
        let scaled = Traits::of(self.config.family).scaled_embedding;
        let scale = (self.config.hidden as f32).sqrt();
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(self.config.hidden as usize)) {
            embedding.part.row(*token as usize, out);
            if scaled {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(())
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
        self.rotation.set_angles(team, batch, scratch);
        for (cache, layer) in self.layers.iter().enumerate() {
            let spot = Spot { layer: self.first + cache as u32, cache };
            layer.part.forward(&self.config, team, (batch, spot), (kv, scratch), rows);
        }
    }

    /// Logits (rows x vocab) of `rows` (rows x hidden). Only at the last stage.
    pub fn head(&self, team: &mut Team, scratch: &mut Scratch, rows: &[f32]) -> anyhow::Result<Vec<f32>> {
        let (Some(norm), Some(output)) = (&self.head_norm, &self.output) else {
            anyhow::bail!("this stage has no output head: it is not the last");
        };
        let count = rows.len() / norm.len();
        resize(&mut scratch.normed, rows.len());
        rms_norm(team, rows, norm, self.config.norm_eps, &mut scratch.normed);
        let mut logits = vec![0.0; count * output.part.n()];
        let mut products = [Product { matrix: &output.part, out: &mut logits, store: Store::Set }];
        multiply(team, &mut scratch.acts, count, &scratch.normed, &mut products);
        if let Some(cap) = self.config.logit_cap {
            soft_cap(team, &mut logits, cap);
        }
        Ok(logits)
    }

    /// Bytes of packed weights, shared ones too.
    pub fn memory_bytes(&self) -> u64 {
        let mut ends: Vec<&Arc<Held<Matrix>>> = self.embedding.iter().chain(&self.output).collect();
        ends.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let layers: u64 = self.layers.iter().map(|layer| layer.part.memory_bytes()).sum();
        layers + ends.iter().map(|end| end.part.memory_bytes() as u64).sum::<u64>()
    }
}

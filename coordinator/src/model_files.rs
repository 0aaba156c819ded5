//! Model files that this coordinator holds: hashed once, served as blobs, read for their headers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use caravan_core::error::Refusal;
use caravan_core::ids::Digest;
use caravan_core::model::ModelSpec;

use crate::text::TextModel;

#[derive(Clone)]
pub struct ModelFiles {}

impl ModelFiles {
    /// `cache_dir` keeps manifests (so that a file is hashed once) and headers fetched from others.
    pub fn open(_cache_dir: PathBuf) -> anyhow::Result<ModelFiles> {
        todo!()
    }

    /// Checks and hashes a GGUF file (or finds its manifest in the cache) and holds it from now on.
    /// Blocking. `progress` gets 0 to 1.
    pub fn add(&self, _name: &str, _path: &Path, _progress: &dyn Fn(f64)) -> anyhow::Result<ModelSpec> {
        todo!()
    }

    /// Digests of the models whose file is here.
    pub fn holds(&self) -> Vec<Digest> {
        todo!()
    }

    /// Tokenizer and template of a model, read from its header: from a held file, the cache, or
    /// fetched from one of `sources` (gRPC `host:port`) and verified. Made once, then shared.
    pub async fn text_model(
        &self,
        _spec: &ModelSpec,
        _sources: &[String],
    ) -> Result<Arc<TextModel>, Refusal> {
        todo!()
    }
}

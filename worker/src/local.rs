//! A model file of this machine, for measuring and evaluating the engine without a cluster.
//!
//! Must never be how a worker of a cluster gets its weights: those are blobs, verified by digest.

use std::path::{Path, PathBuf};

use anyhow::Context;
use caravan_core::gguf::Gguf;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::{ModelConfig, ModelSpec, TensorSpec};
use caravan_core::plan::Slice;
use caravan_kernels::map::FileMap;

use crate::slice::{LoadedSlice, SliceSpec, TensorSource};
use crate::weights::Form;

/// A checked GGUF file, mapped.
#[derive(Debug)]
pub struct LocalModel {
    path: PathBuf,
    gguf: Gguf,
    spec: ModelSpec,
    map: FileMap,
}

/// Stands for "unknown": nothing is shared or cached by it.
const UNKNOWN: Digest = Digest([0; 32]);

impl LocalModel {
    /// Maps the file and checks its header. The file must not be changed while it is in use. Errors are
    /// the operator's and name the file.
    pub fn open(path: &Path) -> anyhow::Result<LocalModel> {
        let wrong = || format!("the model file {} can't be used", path.display());
        let map = FileMap::open(path).with_context(wrong)?;
        let bytes = map.as_ref();
        let gguf = Gguf::parse(bytes, bytes.len() as u64).with_context(wrong)?;
        let digests = vec![UNKNOWN; gguf.tensors.len()];
        let spec = gguf.spec("local", UNKNOWN, &digests, UNKNOWN).with_context(wrong)?;
        Ok(LocalModel { path: path.to_owned(), gguf, spec, map })
    }

    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    pub fn config(&self) -> &ModelConfig {
        &self.spec.config
    }

    /// The slice that is the whole model.
    pub fn whole(&self) -> Slice {
        Slice { first: 0, end: self.spec.config.layers }
    }

    /// Bytes of the tensors of `slice` in the file.
    pub fn bytes_of(&self, slice: Slice) -> u64 {
        self.spec.bytes_of(slice)
    }

    /// Tensors of `slice`.
    pub fn tensors_of(&self, slice: Slice) -> impl Iterator<Item = &TensorSpec> {
        self.spec.tensors_of(slice)
    }

    /// Loads `slice` with `kv_pages` pages of KV cache. `progress`: 0 to 1.
    pub fn load(
        &self,
        slice: Slice,
        kv_pages: u32,
        form: Form,
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<LoadedSlice> {
        let spec = SliceSpec {
            config: self.spec.config.clone(),
            slice,
            tensors: self.spec.tensors_of(slice).cloned().collect(),
            kv_pages,
            page_tokens: limits::PAGE_TOKENS,
        };
        LoadedSlice::load_form(spec, self, None, form, progress)
            .with_context(|| format!("the model file {} can't be loaded", self.path.display()))
    }
}

impl TensorSource for LocalModel {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        let start = usize::try_from(tensor.offset)?;
        let end = usize::try_from(tensor.offset.saturating_add(tensor.bytes))?;
        let bytes = self.map.as_ref().get(start..end).context("it lies beyond the end of the file")?;
        Ok(Box::new(bytes))
    }
}

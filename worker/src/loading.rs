//! How fast a slice is loaded from the blob cache, beside how fast its blobs can be read at all.
//!
//! The blobs are in the system's page cache: what is timed is this program, not the disk. Must never
//! time the making of the blobs, nor leave them behind.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::TensorSpec;
use caravan_core::plan::Slice;

use crate::blobs::BlobCache;
use crate::local::LocalModel;
use crate::slice::{LoadedSlice, SliceSpec, TensorSource};

/// A slice's blobs in a folder of their own, which goes with this value.
pub struct Loading {
    folder: PathBuf,
    spec: SliceSpec,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Every blob read once, on one thread, and thrown away.
    pub read: Duration,
    /// Every blob read and its digest checked, as a worker does that finds them in its cache.
    pub verify: Duration,
    /// The same, then mapped and packed: until the slice can compute.
    pub load: Duration,
}

impl Loading {
    /// Writes the blobs of `layers` into a new folder in `parent`, which must be there.
    pub fn prepare(model: &LocalModel, layers: Slice, parent: &Path) -> anyhow::Result<Loading> {
        let folder = parent.join(format!("bench-load-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let mut loading = Loading {
            folder,
            spec: SliceSpec {
                config: model.config().clone(),
                slice: layers,
                tensors: Vec::new(),
                kv_pages: 1,
                page_tokens: limits::PAGE_TOKENS,
            },
        };
        let cache = BlobCache::open(&loading.folder)?;
        for tensor in model.tensors_of(layers) {
            let data = model.read(tensor)?;
            let data = (*data).as_ref();
            let digest = Digest(*blake3::hash(data).as_bytes());
            std::fs::write(cache.path(digest), data)?;
            loading.spec.tensors.push(TensorSpec { digest, ..tensor.clone() });
        }
        Ok(loading)
    }

    /// Bytes of the slice's tensors.
    pub fn bytes(&self) -> u64 {
        self.spec.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Reads, verifies and loads once.
    pub fn run(&self) -> anyhow::Result<Times> {
        let cache = BlobCache::open(&self.folder)?;
        let mut buffer = vec![0; limits::BLOB_CHUNK_BYTES];
        let begun = Instant::now();
        let mut left = self.bytes();
        for tensor in &self.spec.tensors {
            let mut file = File::open(cache.path(tensor.digest))?;
            loop {
                let read = file.read(&mut buffer)? as u64;
                left = left.saturating_sub(read);
                if read == 0 {
                    break;
                }
            }
        }
        let read = begun.elapsed();
        ensure!(left == 0, "{left} bytes of blobs are gone; try again");
        let begun = Instant::now();
        // As a new process, which has verified nothing yet.
        let missing = cache.missing(&self.wanted())?;
        let verify = begun.elapsed();
        ensure!(missing.is_empty(), "{} blobs are gone; try again", missing.len());
        let loaded = LoadedSlice::load(self.spec.clone(), &cache, None, &|_| {})?;
        let load = begun.elapsed();
        drop(loaded);
        Ok(Times { read, verify, load })
    }

    fn wanted(&self) -> Vec<(Digest, u64)> {
        let mut wanted: Vec<(Digest, u64)> =
            self.spec.tensors.iter().map(|tensor| (tensor.digest, tensor.bytes)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "a folder of blobs was left behind; delete it");
        }
    }
}

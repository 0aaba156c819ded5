//! What hashing a file found, kept so that the next start is instant.
//!
//! Must never be believed for another file: it is found by path, length and time of change, and holds
//! only if the file's header still has its digest.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use caravan_core::ids::Digest;
use serde::{Deserialize, Serialize};

pub(super) const FOLDER: &str = "manifests";
/// Changes with the layout of `Manifest` and the meaning of its digests.
const VERSION: &str = "caravan model manifest 1";

/// By what a changed file is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileState {
    pub bytes: u64,
    /// Nanoseconds since 1970; of several files a number made of all of them.
    pub modified_ns: u128,
}

impl FileState {
    pub(super) fn of(metadata: &fs::Metadata) -> FileState {
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        FileState { bytes: metadata.len(), modified_ns: since.map_or(0, |since| since.as_nanos()) }
    }

    /// Of several files at once: their bytes together, and a number that changes when one of them does.
    pub(super) fn all<'a>(files: impl Iterator<Item = (&'a Path, FileState)>) -> FileState {
        let (mut bytes, mut each) = (0u64, blake3::Hasher::new());
        for (path, state) in files {
            bytes = bytes.saturating_add(state.bytes);
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            each.update(&(name.len() as u64).to_le_bytes());
            each.update(name);
            each.update(&state.bytes.to_le_bytes());
            each.update(&state.modified_ns.to_le_bytes());
        }
        let mut number = [0; 16];
        number.copy_from_slice(&each.finalize().as_bytes()[..16]);
        FileState { bytes, modified_ns: u128::from_le_bytes(number) }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub header: Digest,
    /// In the order of the header.
    pub tensors: Vec<Digest>,
}

fn place(cache_dir: &Path, file: &Path, state: FileState) -> PathBuf {
    let mut key = blake3::Hasher::new();
    key.update(VERSION.as_bytes());
    key.update(&state.bytes.to_le_bytes());
    key.update(&state.modified_ns.to_le_bytes());
    key.update(file.as_os_str().as_encoded_bytes());
    cache_dir.join(FOLDER).join(key.finalize().to_hex().as_str())
}

impl Manifest {
    /// Names the weights exactly: digest over the header's and every tensor's.
    pub(super) fn total(&self) -> Digest {
        let mut total = blake3::Hasher::new();
        total.update(b"caravan model 1\n");
        total.update(&self.header.0);
        self.tensors.iter().for_each(|tensor| {
            total.update(&tensor.0);
        });
        Digest(*total.finalize().as_bytes())
    }

    /// The manifest of a file in this state whose header has this digest. A damaged one counts as none.
    pub(super) fn read(cache_dir: &Path, file: &Path, state: FileState, header: Digest) -> Option<Manifest> {
        let bytes = fs::read(place(cache_dir, file, state)).ok()?;
        let (sum, body) = bytes.split_first_chunk::<32>()?;
        if blake3::hash(body).as_bytes() != sum {
            tracing::warn!(file = %file.display(), "a model manifest is damaged; hashing the file again");
            return None;
        }
        postcard::from_bytes(body).ok().filter(|manifest: &Manifest| manifest.header == header)
    }

    pub(super) fn write(&self, cache_dir: &Path, file: &Path, state: FileState) -> anyhow::Result<()> {
        let body = postcard::to_stdvec(self)?;
        let sum = blake3::hash(&body);
        write_whole(&place(cache_dir, file, state), &[sum.as_bytes(), &body])
    }
}

/// Writes a file that is there whole or not at all.
pub(super) fn write_whole(path: &Path, parts: &[&[u8]]) -> anyhow::Result<()> {
    let write = || {
        // Two processes may write the same content at the same time, each to its own name.
        let part = path.with_extension(format!("part-{}", std::process::id()));
        let mut file = fs::File::create(&part)?;
        parts.iter().try_for_each(|bytes| file.write_all(bytes))?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

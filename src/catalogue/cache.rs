//! The cache of model files: DATA/models/NAME/FILE, each with a record of what it is.
//!
//! Must never hold a file under its name before its digest was checked.

use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::Model;
use crate::local::files::write_atomic;

/// What a cached file is, written beside it once its digest was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub sha256: String,
    pub bytes: u64,
    pub source: String,
}

/// The cache of one data folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// Held while a model is fetched; freed by the system if the process dies.
pub struct FetchLock {
    _file: fs::File,
}

impl Cache {
    pub fn of(data_dir: &Path) -> Cache {
        Cache { root: data_dir.join("models") }
    }

    /// Folder of a model, also of its unfinished downloads.
    pub fn folder(&self, model: &Model) -> PathBuf {
        self.root.join(&model.name)
    }

    pub fn file(&self, model: &Model) -> PathBuf {
        self.folder(model).join(&model.file)
    }

    fn record_path(&self, model: &Model) -> PathBuf {
        self.folder(model).join(format!("{}.json", model.file))
    }

    /// The record of a file that is here, whole, and the one that the catalogue means.
    pub fn find(&self, model: &Model) -> Option<Record> {
        let text = fs::read_to_string(self.record_path(model)).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        let about = fs::metadata(self.file(model)).ok()?;
        let same = record.sha256 == model.sha256 && record.bytes == model.bytes;
        (same && about.is_file() && about.len() == model.bytes).then_some(record)
    }

    /// Puts a checked file in its place.
    pub fn store(&self, model: &Model, checked: &Path, source: &str) -> anyhow::Result<PathBuf> {
        let path = self.file(model);
        fs::rename(checked, &path).with_context(|| format!("can't put the model at {}", path.display()))?;
        let record = Record { sha256: model.sha256.clone(), bytes: model.bytes, source: source.to_owned() };
        write_atomic(&self.record_path(model), &serde_json::to_vec_pretty(&record)?)?;
        Ok(path)
    }

    /// Makes the folder of a model and keeps other processes from fetching into it.
    pub fn lock(&self, model: &Model) -> anyhow::Result<FetchLock> {
        let folder = self.folder(model);
        let at = || format!("can't write in the model folder {}", folder.display());
        fs::create_dir_all(&folder).with_context(at)?;
        let file = fs::File::create(folder.join(".lock")).with_context(at)?;
        match file.try_lock() {
            Ok(()) => Ok(FetchLock { _file: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "another caravan is fetching {} into {}; wait until it is done, then try again",
                model.name,
                folder.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(at),
        }
    }
}

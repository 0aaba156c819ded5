//! An unfinished file: grows, is hashed while it is written, and can be taken up again.
//!
//! Must never be used as a model before `check` said that it is the one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::Model;

const BUFFER_BYTES: usize = 1 << 20;

/// `FILE.part` in the model's folder.
pub struct Part {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
    expected: u64,
}

/// Why a part did not grow: its source may do better at another attempt, the disk will not.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("{0}")]
    Source(std::io::Error),
    #[error("can't write {path}: {error} (is the disk full, or the folder not writable?)")]
    Disk { path: String, error: std::io::Error },
    #[error("it sends more than the {0} bytes that the catalogue says")]
    TooLong(u64),
}

/// What `check` found.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Good,
    /// The digest of what was fetched instead.
    Wrong {
        sha256: String,
    },
}

impl Part {
    /// Opens what an earlier attempt left (at most the expected bytes), or an empty file.
    pub fn open(path: &Path, model: &Model) -> anyhow::Result<Part> {
        let at = || format!("can't write the unfinished download {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut part = Part {
            path: path.to_owned(),
            file: file.with_context(at)?,
            hasher: Sha256::new(),
            written: 0,
            expected: model.bytes,
        };
        if part.file.metadata().with_context(at)?.len() > model.bytes {
            part.clear()?;
        }
        part.read_in()?;
        Ok(part)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are here.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that it will have.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    pub fn complete(&self) -> bool {
        self.written == self.expected
    }

    /// Begins again.
    pub fn clear(&mut self) -> anyhow::Result<()> {
        let at = || format!("can't write the unfinished download {}", self.path.display());
        self.file.set_len(0).with_context(at)?;
        self.file.seek(SeekFrom::Start(0)).with_context(at)?;
        self.hasher = Sha256::new();
        self.written = 0;
        Ok(())
    }

    /// Keeps the first bytes (at most what is here) and drops the rest.
    pub fn keep(&mut self, bytes: u64) -> anyhow::Result<()> {
        if bytes == self.written {
            return Ok(());
        }
        let at = || format!("can't write the unfinished download {}", self.path.display());
        self.file.set_len(bytes.min(self.written)).with_context(at)?;
        self.file.seek(SeekFrom::Start(0)).with_context(at)?;
        self.hasher = Sha256::new();
        self.written = 0;
        self.read_in()
    }

    /// Hashes what the file has from where it stands.
    fn read_in(&mut self) -> anyhow::Result<()> {
        let mut buffer = vec![0u8; BUFFER_BYTES];
        loop {
            let count = self.file.read(&mut buffer);
            let count = count
                .with_context(|| format!("can't read the unfinished download {}", self.path.display()))?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..count]);
            self.written += count as u64;
        }
    }

    /// Appends; refuses more than the expected bytes.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let after = self.written + bytes.len() as u64;
        if after > self.expected {
            return Err(Broken::TooLong(self.expected));
        }
        if let Err(error) = self.file.write_all(bytes) {
            // Some of the bytes may be there, unhashed: the file must end where the hash does. If even
            // that fails, the digest is found wrong at the end.
            let _ = self.file.set_len(self.written);
            let _ = self.file.seek(SeekFrom::Start(self.written));
            return Err(Broken::Disk { path: self.path.display().to_string(), error });
        }
        self.hasher.update(bytes);
        self.written = after;
        Ok(())
    }

    /// Appends all of `source` and reports the bytes written after each piece.
    pub fn append_all(&mut self, source: &mut dyn Read, grown: &dyn Fn(u64)) -> Result<(), Broken> {
        let mut buffer = vec![0u8; BUFFER_BYTES / 4];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.append(&buffer[..count])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::Source(error)),
            }
            grown(self.written);
        }
    }

    /// Whether the whole file is the one that `sha256` names. It is on the disk then.
    pub fn check(&mut self, sha256: &str) -> anyhow::Result<Verdict> {
        self.file.sync_all().with_context(|| format!("can't write {}", self.path.display()))?;
        let found: String = self.hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(if found == sha256 { Verdict::Good } else { Verdict::Wrong { sha256: found } })
    }
}

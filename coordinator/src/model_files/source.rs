//! A model as it lies on this machine: one GGUF file, or a folder of safetensors files; and where in the
//! files the bytes of each tensor are.
//!
//! Must never let a span reach beyond its file, nor miss that a file has changed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use caravan_core::folder::{self, Folder};
use caravan_core::gguf::Gguf;

use super::hash;
use super::manifest::FileState;

/// A file as it was when it was looked at.
#[derive(Debug)]
pub(super) struct HeldFile {
    pub path: PathBuf,
    pub state: FileState,
}

/// Bytes of a file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub file: Arc<HeldFile>,
    pub offset: u64,
    pub bytes: u64,
}

/// A checked model with its files.
pub(super) struct Source {
    pub header: Vec<u8>,
    pub gguf: Gguf,
    /// Of each tensor in the order of the header: its bytes are these, one behind the other.
    pub parts: Vec<Arc<[Part]>>,
    pub files: Vec<Arc<HeldFile>>,
    /// The header is no part of a file.
    pub is_folder: bool,
}

impl Source {
    /// `path`: canonical.
    pub(super) fn open(path: &Path) -> anyhow::Result<Source> {
        if path.is_dir() {
            return folder(path);
        }
        let state = FileState::of(&std::fs::metadata(path)?);
        let (header, gguf) = hash::read_header(path, state.bytes)?;
        let file = Arc::new(HeldFile { path: path.to_owned(), state });
        let part = |offset, bytes| Arc::from([Part { file: Arc::clone(&file), offset, bytes }]);
        let parts = gguf.tensors.iter().map(|tensor| part(tensor.offset, tensor.bytes)).collect();
        Ok(Source { header, gguf, parts, files: vec![file], is_folder: false })
    }

    /// By what a change of any file shows.
    pub(super) fn state(&self) -> FileState {
        match &self.files[..] {
            [file] if !self.is_folder => file.state,
            files => FileState::all(files.iter().map(|file| (&*file.path, file.state))),
        }
    }

    /// The same, of the files as they are now.
    pub(super) fn state_now(&self) -> anyhow::Result<FileState> {
        let mut now = Vec::new();
        for file in &self.files {
            now.push((&*file.path, FileState::of(&std::fs::metadata(&file.path)?)));
        }
        Ok(match now[..] {
            [(_, state)] if !self.is_folder => state,
            _ => FileState::all(now.into_iter()),
        })
    }
}

fn folder(path: &Path) -> anyhow::Result<Source> {
    let Folder { header, gguf, shards, spans } = Folder::read(&mut Files { folder: path })?;
    let mut files = Vec::new();
    for shard in shards {
        let path = path.join(&shard.name);
        let state = FileState::of(&std::fs::metadata(&path)?);
        ensure!(state.bytes == shard.bytes, "{} changed while it was read; try again", shard.name);
        files.push(Arc::new(HeldFile { path, state }));
    }
    let part = |span: &folder::Span| {
        let file = Arc::clone(&files[span.shard]);
        Part { file, offset: span.offset, bytes: span.bytes }
    };
    let parts = spans.iter().map(|spans| spans.iter().map(part).collect()).collect();
    Ok(Source { header, gguf, parts, files, is_folder: true })
}

/// The files of a folder, opened for each read: there are few of them.
struct Files<'a> {
    folder: &'a Path,
}

impl folder::Reader for Files<'_> {
    fn bytes(&mut self, file: &str) -> Result<Option<u64>, String> {
        match std::fs::metadata(self.folder.join(file)) {
            Ok(about) if about.is_file() => Ok(Some(about.len())),
            Ok(_) => Err("it is not a file".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(&mut self, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
        let read = || {
            let mut file = File::open(self.folder.join(file))?;
            file.seek(SeekFrom::Start(offset))?;
            let mut out = Vec::new();
            // Grows with what is there, whatever was asked for.
            file.take(bytes).read_to_end(&mut out)?;
            Ok(out)
        };
        read().map_err(|error: std::io::Error| error.to_string())
    }
}

/// The checked header of a file or folder, to look at, with the bytes of all its files. Blocking.
pub fn inspect(path: &Path) -> anyhow::Result<(Gguf, u64)> {
    let inspect = || {
        let path = path.canonicalize().context("it can't be opened")?;
        let source = Source::open(&path)?;
        let bytes = source.files.iter().map(|file| file.state.bytes).sum();
        anyhow::Ok((source.gguf, bytes))
    };
    inspect().with_context(|| format!("the model file {} can't be used", path.display()))
}

//! A model as a folder of safetensors files: what its JSON files say, put into the header that a GGUF file of
//! the same model would have, and where in the files the bytes of each tensor lie.
//!
//! Whoever reads the files hands them in (`Reader`); from the header on, nothing in the cluster knows where
//! a model came from. Keys of our own in that header begin with `caravan.` or `tokenizer.caravan.`.
//! Must never trust a number or a value of the files, nor leave a tensor out that could change an answer.

mod config;
mod json;
mod names;
mod normal;
mod rope;
pub mod safetensors;
mod shards;
mod special;
pub mod synthetic;
mod tokenizer;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::gguf::write::{self, Listed};
use crate::gguf::{Gguf, GgufError};
use crate::limits;

pub const CONFIG: &str = "config.json";
pub const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The folder can't be used; says which file, what is wrong and what to do. The operator's fault, a retry
/// is useless.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(String);

impl FolderError {
    /// Says in which file something is wrong.
    fn within(self, place: &str) -> FolderError {
        FolderError(format!("{place}: {}", self.0))
    }
}

impl From<GgufError> for FolderError {
    fn from(error: GgufError) -> Self {
        FolderError(error.to_string())
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T, FolderError> {
    Err(FolderError(what.into()))
}

/// Text of a file as an error shows it: quoted, and never long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Reads the folder's files; names are plain, without a path. Errors say what went wrong, in words.
pub trait Reader {
    /// Length of a file; `None` if there is none of this name.
    fn bytes(&mut self, file: &str) -> Result<Option<u64>, String>;

    /// `bytes` bytes of a file from `offset` on, never fewer.
    fn read(&mut self, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, String>;
}

/// Bytes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index into `Folder::shards`.
    pub shard: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// One safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub name: String,
    pub bytes: u64,
}

/// A checked folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    /// The header blob: what a GGUF file of this model would begin with.
    pub header: Vec<u8>,
    /// What the header says. Its offsets are those of the file that does not exist.
    pub gguf: Gguf,
    pub shards: Vec<Shard>,
    /// Of each tensor, in the order of `gguf.tensors`: its bytes are these, one behind the other.
    pub spans: Vec<Vec<Span>>,
}

impl Folder {
    /// Reads the JSON files whole, and of the weights their headers. Files other than these are not looked
    /// at. The same tensors in other shards give the same header.
    pub fn read(reader: &mut dyn Reader) -> Result<Folder, FolderError> {
        let mut files = Files { reader };
        let config = json::parse(CONFIG, &files.required(CONFIG, limits::FOLDER_JSON_BYTES)?)?;
        let described = config::described(json::Object::new(CONFIG, &config))?;
        let (shards, entries) = shards::read(&mut files)?;
        let parts = names::parts(&described, entries)?;
        let tokenizer = files.required(TOKENIZER, limits::FOLDER_TOKENIZER_BYTES)?;
        let mut metadata = tokenizer::metadata(&tokenizer, described.vocab)?;
        drop(tokenizer);
        special::add(&mut files, &config, &mut metadata)?;
        metadata.extend(described.metadata);
        let listed: Vec<Listed> = parts.iter().map(|part| part.listed.clone()).collect();
        let (header, file_bytes) = write::header(&metadata, &listed)?;
        let gguf = Gguf::parse(&header, file_bytes)?;
        let spans = parts.into_iter().map(|part| part.spans).collect();
        Ok(Folder { header, gguf, shards, spans })
    }
}

/// The folder's files, read whole within bounds.
struct Files<'a> {
    reader: &'a mut dyn Reader,
}

impl Files<'_> {
    /// Length of a file; `None` if it is not there.
    fn bytes(&mut self, file: &str) -> Result<Option<u64>, FolderError> {
        self.reader.bytes(file).map_err(|why| FolderError(format!("{file} can't be read: {why}")))
    }

    fn part(&mut self, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, FolderError> {
        let read = self.reader.read(file, offset, bytes);
        let read = read.map_err(|why| FolderError(format!("{file} can't be read: {why}")))?;
        match read.len() as u64 == bytes {
            true => Ok(read),
            false => bad(format!("{file} became shorter while it was read")),
        }
    }

    /// A whole file of at most `most` bytes; `None` if it is not there.
    fn optional(&mut self, file: &str, most: u64) -> Result<Option<Vec<u8>>, FolderError> {
        match self.bytes(file)? {
            None => Ok(None),
            Some(bytes) if bytes > most => {
                bad(format!("{file} has {bytes} bytes, more than the limit of {most}"))
            }
            Some(bytes) => self.part(file, 0, bytes).map(Some),
        }
    }

    fn required(&mut self, file: &str, most: u64) -> Result<Vec<u8>, FolderError> {
        match self.optional(file, most)? {
            Some(bytes) => Ok(bytes),
            None => bad(format!("the folder lacks {file}")),
        }
    }
}

type Metadata = BTreeMap<String, crate::gguf::Value>;

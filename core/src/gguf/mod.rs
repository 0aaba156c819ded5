//! Reads the header of a GGUF file (versions 2 and 3) from bytes. Source: ggml/docs/gguf.md.
//!
//! Must never trust a number of the file: every count, offset, length and type is checked first, and
//! nothing is allocated that the bytes at hand do not pay for.

mod config;
mod keys;
mod reader;
mod rope;
pub mod synthetic;
mod tensors;
mod value;
mod vocabulary;

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::ids::Digest;
use crate::limits;
use crate::model::{ModelConfig, ModelSpec, TensorType};

pub use value::{Texts, Value};
pub use vocabulary::{ByteAlphabet, Vocabulary};

#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// GGUF order: the first dimension is contiguous. One to four, none of them 0.
    pub dims: Vec<u64>,
    pub kind: TensorType,
    /// From the beginning of the file.
    pub offset: u64,
    pub bytes: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    pub metadata: BTreeMap<String, Value>,
    /// In the order of the file. They lie inside the file, aligned, and do not overlap.
    pub tensors: Vec<TensorInfo>,
    /// Where the tensor data begins; the bytes before it are the header blob.
    pub data_offset: u64,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GgufError {
    /// The file can't be used; says what is wrong and what to do. Operator's fault, a retry is useless.
    #[error("{0}")]
    Bad(String),
    /// The header goes on beyond the bytes given; at least this many are needed. Not an error if the file is longer.
    #[error("the header needs at least {0} bytes")]
    NeedBytes(u64),
}

impl GgufError {
    /// Says where in the file something is wrong.
    fn within(self, place: impl FnOnce() -> String) -> GgufError {
        match self {
            GgufError::Bad(what) => GgufError::Bad(format!("{}: {what}", place())),
            needs => needs,
        }
    }
}

/// Text of the file as an error shows it: quoted, and never long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T, GgufError> {
    Err(GgufError::Bad(what.into()))
}

impl Gguf {
    /// `bytes`: the file from its beginning, as much as was read; `file_bytes`: its length.
    /// `NeedBytes(n)` if the file may well be good but `bytes` is shorter than `n`.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Gguf, GgufError> {
        let mut reader = reader::Reader::new(bytes, file_bytes);
        let (tensor_count, entry_count) = counts(&mut reader)?;
        let mut metadata = BTreeMap::new();
        for index in 0..entry_count {
            let key = reader
                .text(limits::GGUF_KEY_BYTES, "a metadata key")
                .map_err(|error| error.within(|| format!("metadata entry {index}")))?;
            let value = value::entry(&mut reader)
                .map_err(|error| error.within(|| format!("metadata key {}", shown(key))))?;
            if metadata.contains_key(key) {
                return bad(format!("metadata key {} is there twice; the file is damaged", shown(key)));
            }
            metadata.insert(key.to_owned(), value);
        }
        let infos = tensors::infos(&mut reader, tensor_count)?;
        let data_offset = tensors::data_offset(&metadata, reader.at())?;
        if data_offset > limits::GGUF_HEADER_BYTES {
            return bad(reader::too_large());
        }
        let tensors = tensors::place(infos, data_offset, file_bytes, &metadata)?;
        Ok(Gguf { metadata, tensors, data_offset })
    }

    /// Dimensions and constants, with every required tensor present and of the right shape.
    /// Keys and tensors that this build would have to ignore are refused by name.
    pub fn config(&self) -> Result<ModelConfig, GgufError> {
        config::config(self)
    }

    /// What the file's tokens stand for.
    pub fn vocabulary(&self) -> Result<Vocabulary, GgufError> {
        Vocabulary::from_gguf(self)
    }

    /// The model's entry for the cluster. `digests`: of each tensor in the order of `tensors`.
    pub fn spec(
        &self,
        name: &str,
        header: Digest,
        digests: &[Digest],
        total: Digest,
    ) -> Result<ModelSpec, GgufError> {
        config::spec(self, name, header, digests, total)
    }
}

/// Magic, version and the two counts: (tensors, metadata entries).
fn counts(reader: &mut reader::Reader) -> Result<(u64, u64), GgufError> {
    if reader.take(4, "the magic number")? != b"GGUF" {
        return bad("this is not a GGUF file (it does not begin with `GGUF`)");
    }
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => {}
        1 => return bad("GGUF version 1 is not supported: convert the file to version 3"),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return bad("the file is big-endian: convert it to little-endian");
        }
        _ => return bad(format!("GGUF version {version} is not supported (2 and 3 are)")),
    }
    let tensors = reader.u64("the tensor count")?;
    let entries = reader.u64("the metadata count")?;
    if tensors > limits::GGUF_TENSORS {
        return bad(format!("{tensors} tensors are more than the limit of {}", limits::GGUF_TENSORS));
    }
    if entries > limits::GGUF_METADATA_ENTRIES {
        let limit = limits::GGUF_METADATA_ENTRIES;
        return bad(format!("{entries} metadata entries are more than the limit of {limit}"));
    }
    Ok((tensors, entries))
}

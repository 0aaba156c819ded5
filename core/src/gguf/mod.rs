//! Reads the header of a GGUF file (versions 2 and 3) from bytes. Source: ggml/docs/gguf.md.
//!
//! Must never trust a number of the file: every count, offset, length and type is checked first.

use std::collections::BTreeMap;

use crate::ids::Digest;
use crate::model::{ModelConfig, ModelSpec, TensorType};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
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
    pub tensors: Vec<TensorInfo>,
    /// Where the tensor data begins.
    pub data_offset: u64,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GgufError {
    #[error("{0}")]
    Bad(String),
    /// The header goes on beyond the bytes given; at least this many are needed. Not an error if the file is longer.
    #[error("the header needs at least {0} bytes")]
    NeedBytes(u64),
}

impl Gguf {
    /// `bytes`: the file from its beginning, as much as was read; `file_bytes`: its length.
    pub fn parse(_bytes: &[u8], _file_bytes: u64) -> Result<Gguf, GgufError> {
        todo!()
    }

    /// Dimensions and constants, with every required tensor present and of the right shape.
    pub fn config(&self) -> Result<ModelConfig, GgufError> {
        todo!()
    }

    /// The model's entry for the cluster. `digests`: of each tensor in the order of `tensors`.
    pub fn spec(
        &self,
        _name: &str,
        _header: Digest,
        _digests: &[Digest],
        _total: Digest,
    ) -> Result<ModelSpec, GgufError> {
        todo!()
    }
}

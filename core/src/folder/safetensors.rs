//! The header of a safetensors file: eight bytes of length, then JSON with a type, a shape and a span for
//! each tensor. Source: the format's description in the safetensors repository.
//!
//! Must never trust a number of the file: spans lie inside it, fit their shapes, and leave no byte over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::{FolderError, bad, shown};
use crate::limits;
use crate::model::TensorType;

/// Bytes before the JSON: its length.
pub const LENGTH_BYTES: u64 = 8;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    pub kind: TensorType,
    /// The last dimension is contiguous. One to four, none of them 0.
    pub shape: Vec<u64>,
    /// From the beginning of the file.
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Every tensor of the JSON, twice if it is there twice.
struct Table(Vec<(String, Raw)>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    if entries.len() >= limits::FOLDER_TENSORS {
                        return Err(A::Error::custom("more tensors than any model has"));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Table(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Bytes of the JSON, by the file's first eight bytes. `file_bytes`: its length.
pub fn json_bytes(first: &[u8], file_bytes: u64) -> Result<u64, FolderError> {
    let Some(length) = first.first_chunk::<8>() else {
        return bad(format!("it ends within its first {LENGTH_BYTES} bytes: fetch it again"));
    };
    let length = u64::from_le_bytes(*length);
    if length > limits::FOLDER_TABLE_BYTES {
        let most = limits::FOLDER_TABLE_BYTES;
        return bad(format!(
            "its header of {length} bytes is longer than the limit of {most}: it is damaged, or no safetensors file"
        ));
    }
    if length.checked_add(LENGTH_BYTES).is_none_or(|end| end > file_bytes) {
        return bad(format!(
            "it ends inside its header ({file_bytes} bytes): it was cut off; fetch it again"
        ));
    }
    Ok(length)
}

/// The tensors in the order of their bytes. `json`: the header without its length.
pub fn parse(json: &[u8], file_bytes: u64) -> Result<Vec<Entry>, FolderError> {
    if json.first() != Some(&b'{') {
        return bad("its header does not begin with `{`: it is damaged, or no safetensors file");
    }
    let Table(table) = match serde_json::from_slice(json) {
        Ok(table) => table,
        Err(error) => return bad(format!("its header is not sound ({error}): fetch it again")),
    };
    let data = LENGTH_BYTES + json.len() as u64;
    let mut names = BTreeSet::new();
    let mut entries = Vec::with_capacity(table.len());
    for (name, raw) in table {
        if !names.insert(name.clone()) {
            return bad(format!("tensor {} is there twice; the file is damaged", shown(&name)));
        }
        entries.push(entry(name, raw, data)?);
    }
    entries.sort_by_key(|entry| (entry.offset, entry.bytes));
    let mut end = data;
    for entry in &entries {
        if entry.offset != end {
            return bad(format!(
                "tensor {} begins at byte {} and the one before it ends at {end}: the file is damaged",
                shown(&entry.name),
                entry.offset
            ));
        }
        // `entry` has shown that this does not overflow.
        end = entry.offset + entry.bytes;
    }
    match end == file_bytes {
        true => Ok(entries),
        false if end > file_bytes => {
            bad(format!("its tensors end at byte {end} of {file_bytes}: it was cut off; fetch it again"))
        }
        false => bad(format!(
            "its tensors end at byte {end} and it goes on to {file_bytes}: it is damaged; fetch it again"
        )),
    }
}

/// `data`: where the tensors' bytes begin.
fn entry(name: String, raw: Raw, data: u64) -> Result<Entry, FolderError> {
    let named = |what: String| bad(format!("tensor {} {what}", shown(&name)));
    let kind = match &*raw.dtype {
        "F32" => TensorType::F32,
        "F16" => TensorType::F16,
        "BF16" => TensorType::Bf16,
        other => {
            return named(format!(
                "has type {}, which this build does not support (F32, F16 and BF16 are)",
                shown(other)
            ));
        }
    };
    let most = limits::GGUF_DIMENSIONS as usize;
    if raw.shape.is_empty() || raw.shape.len() > most {
        return named(format!("has {} dimensions; it must have 1 to {most}", raw.shape.len()));
    }
    let elements = raw.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let bytes = elements.filter(|count| *count > 0).and_then(|count| count.checked_mul(kind.block().1));
    let Some(bytes) = bytes else {
        return named(format!("has impossible dimensions {:?}; the file is damaged", raw.shape));
    };
    let [begin, end] = raw.data_offsets;
    if end.checked_sub(begin) != Some(bytes) {
        return named(format!("of {bytes} bytes has the span {begin} to {end}; the file is damaged"));
    }
    let offset = data.checked_add(begin);
    match offset.filter(|offset| offset.checked_add(bytes).is_some()) {
        Some(offset) => Ok(Entry { name, kind, shape: raw.shape, offset, bytes }),
        None => named(format!("has an impossible span {begin} to {end}; the file is damaged")),
    }
}

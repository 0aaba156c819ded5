//! The tensor table: names, shapes, types, and where the bytes of each lie.
//!
//! Must never accept a tensor that is not wholly inside the file, or that shares a byte with another.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::Reader;
use super::value::Value;
use super::{GgufError, TensorInfo, bad};
use crate::limits;
use crate::model::TensorType;

/// Alignment of tensor data unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

/// The table, with offsets as the file has them: from the beginning of the tensor data.
pub(super) fn infos(reader: &mut Reader, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
    // name length, dimension count, one dimension, type, offset
    reader.need(count, 8 + 4 + 8 + 4 + 8, "the tensor table")?;
    let mut names = BTreeSet::new();
    let mut infos = Vec::new();
    for index in 0..count {
        let name = reader
            .text(limits::GGUF_TENSOR_NAME_BYTES, "a tensor name")
            .map_err(|error| error.within(|| format!("tensor {index}")))?;
        let info = info(reader, name).map_err(|error| error.within(|| format!("tensor {name:?}")))?;
        if !names.insert(name) {
            return bad(format!("tensor {name:?} is there twice; the file is damaged"));
        }
        infos.push(info);
    }
    Ok(infos)
}

fn info(reader: &mut Reader, name: &str) -> Result<TensorInfo, GgufError> {
    let dimensions = reader.u32("its dimension count")?;
    if dimensions == 0 || dimensions > limits::GGUF_DIMENSIONS {
        return bad(format!("{dimensions} dimensions; it must have 1 to {}", limits::GGUF_DIMENSIONS));
    }
    let mut dims = Vec::new();
    for _ in 0..dimensions {
        dims.push(reader.u64("its dimensions")?);
    }
    let number = reader.u32("its type")?;
    let Some(kind) = TensorType::from_gguf(number) else {
        return bad(format!("its type {number} is not supported by this build; use another quantisation"));
    };
    let offset = reader.u64("its offset")?;
    let bytes = bytes_of(&dims, kind)?;
    Ok(TensorInfo { name: name.to_owned(), dims, kind, offset, bytes })
}

pub(super) fn bytes_of(dims: &[u64], kind: TensorType) -> Result<u64, GgufError> {
    let (block, block_bytes) = kind.block();
    let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let Some(elements) = elements.filter(|elements| *elements > 0) else {
        return bad(format!("impossible dimensions {dims:?}; the file is damaged"));
    };
    if !dims[0].is_multiple_of(block) {
        return bad(format!(
            "its first dimension {} is no multiple of the {} block of {block}",
            dims[0],
            kind.name()
        ));
    }
    match (elements / block).checked_mul(block_bytes) {
        Some(bytes) => Ok(bytes),
        None => bad(format!("impossible dimensions {dims:?}; the file is damaged")),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT);
    };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= limits::GGUF_ALIGNMENT => {
            Ok(alignment)
        }
        _ => bad(format!(
            "`general.alignment` must be a power of two up to {}, not {value}",
            limits::GGUF_ALIGNMENT
        )),
    }
}

/// Where the tensor data begins: the end of the table, aligned.
pub(super) fn data_offset(metadata: &BTreeMap<String, Value>, table_end: u64) -> Result<u64, GgufError> {
    match table_end.checked_next_multiple_of(alignment(metadata)?) {
        Some(offset) => Ok(offset),
        None => bad("the header has an impossible length; the file is damaged"),
    }
}

/// Turns offsets into file offsets and checks that every tensor has its own bytes.
pub(super) fn place(
    mut infos: Vec<TensorInfo>,
    data_offset: u64,
    file_bytes: u64,
    metadata: &BTreeMap<String, Value>,
) -> Result<Vec<TensorInfo>, GgufError> {
    let alignment = alignment(metadata)?;
    let mut spans = Vec::with_capacity(infos.len());
    for (index, info) in infos.iter_mut().enumerate() {
        if info.offset % alignment != 0 {
            return bad(format!("tensor {:?} is not aligned to {alignment} bytes", info.name));
        }
        let start = info.offset.checked_add(data_offset);
        let end = start.and_then(|start| start.checked_add(info.bytes));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= file_bytes)) else {
            return bad(format!(
                "tensor {:?} reaches beyond the end of the file ({file_bytes} bytes): it is damaged or was cut off; \
                 fetch it again",
                info.name
            ));
        };
        info.offset = start;
        spans.push((start, end, index));
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if pair[0].1 > pair[1].0 {
            let (one, other) = (&infos[pair[0].2].name, &infos[pair[1].2].name);
            return bad(format!("tensors {one:?} and {other:?} overlap; the file is damaged"));
        }
    }
    Ok(infos)
}

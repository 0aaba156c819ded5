//! Writes a header that `Gguf::parse` reads: so a model that comes in other files looks to the rest of the
//! cluster like any other.
//!
//! Must never be trusted more than a file: who writes a header parses it before it is used.

use std::collections::BTreeMap;

use super::value::Value;
use super::{GgufError, bad};
use crate::model::TensorType;

/// A tensor to list; the bytes of one follow those of the other, aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub name: String,
    /// GGUF order: the first dimension is contiguous.
    pub dims: Vec<u64>,
    pub kind: TensorType,
}

const ALIGNMENT: u64 = 32;

/// Header bytes up to where tensor data would begin, and how long the whole file would be.
pub fn header(metadata: &BTreeMap<String, Value>, tensors: &[Listed]) -> Result<(Vec<u8>, u64), GgufError> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        out.extend(kind_of(value).to_le_bytes());
        put(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(tensor.kind.gguf_number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let bytes = super::tensors::bytes_of(&tensor.dims, tensor.kind)
            .map_err(|error| error.within(|| format!("tensor {:?}", tensor.name)))?;
        let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        let Some(end) = end else {
            return bad("the tensors are larger together than any file");
        };
        offset = end;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    match (out.len() as u64).checked_add(offset) {
        Some(file_bytes) => Ok((out, file_bytes)),
        None => bad("the tensors are larger together than any file"),
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The type number of a value; an array's is 9.
fn kind_of(value: &Value) -> u32 {
    match value {
        Value::Text(_) => 8,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
        Value::Bool(_) => 7,
        _ => 9,
    }
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U64(number) => out.extend(number.to_le_bytes()),
        Value::I64(number) => out.extend(number.to_le_bytes()),
        Value::F64(number) => out.extend(number.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::Text(value) => text(out, value),
        Value::Texts(texts) => {
            array(out, 8, texts.len());
            texts.iter().for_each(|value| text(out, value));
        }
        Value::Uints(numbers) => {
            array(out, 10, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Ints(numbers) => {
            array(out, 11, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Floats(numbers) => {
            array(out, 12, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Bools(values) => {
            array(out, 7, values.len());
            out.extend(values.iter().map(|value| u8::from(*value)));
        }
        Value::Array(items) => {
            array(out, 9, items.len());
            // Each begins with its own type and length.
            items.iter().for_each(|item| put(out, item));
        }
    }
}

fn array(out: &mut Vec<u8>, kind: u32, count: usize) {
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

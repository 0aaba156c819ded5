//! Metadata values: scalars, strings and arrays. Arrays of one kind are kept compactly, because a
//! vocabulary has a quarter of a million entries.
//!
//! Must never allocate for a count before the bytes of that many entries are known to be there.

use super::reader::Reader;
use super::{GgufError, bad, shown};
use crate::limits;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    Text(String),
    /// Array of strings.
    Texts(Texts),
    /// Array of unsigned integers of any width.
    Uints(Vec<u64>),
    /// Array of signed integers of any width.
    Ints(Vec<i64>),
    /// Array of floats of any width.
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    /// Array of arrays.
    Array(Vec<Value>),
}

impl Value {
    /// A non-negative integer of any width.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::U64(number) => Some(*number),
            Value::I64(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::F64(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An array of truth values.
    pub fn as_bools(&self) -> Option<&[bool]> {
        match self {
            Value::Bools(values) => Some(values),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_texts(&self) -> Option<&Texts> {
        match self {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }
}

/// As an error shows it: never long.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U64(number) => write!(f, "{number}"),
            Value::I64(number) => write!(f, "{number}"),
            Value::F64(number) => write!(f, "{number}"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Text(text) => f.write_str(&shown(text)),
            _ => f.write_str("an array"),
        }
    }
}

/// Many strings in one buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    text: String,
    /// Where each string ends. A header is far below 4 GiB.
    ends: Vec<u32>,
}

impl Texts {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
        };
        self.text.get(start..end)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let from = std::mem::replace(&mut start, *end as usize);
            // The ends are where whole strings were appended.
            self.text.get(from..*end as usize).unwrap_or_default()
        })
    }

    /// Refuses what makes all of them together longer than any header.
    pub fn push(&mut self, text: &str) -> Result<(), GgufError> {
        self.text.push_str(text);
        match u32::try_from(self.text.len()) {
            Ok(end) => self.ends.push(end),
            Err(_) => return bad(super::reader::too_large()),
        }
        Ok(())
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of this type number at least; `None` for a number the format does not have.
fn least_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        STRING | 10..=12 => 8,
        ARRAY => 12,
        _ => return None,
    })
}

/// A value with its type number before it.
pub(super) fn entry(reader: &mut Reader) -> Result<Value, GgufError> {
    let kind = reader.u32("the type of a value")?;
    match kind {
        STRING => Ok(Value::Text(reader.text(limits::GGUF_STRING_BYTES, "a string")?.to_owned())),
        ARRAY => array(reader, 1),
        _ => scalar(reader, kind),
    }
}

fn scalar(reader: &mut Reader, kind: u32) -> Result<Value, GgufError> {
    let Some(size) = least_bytes(kind) else {
        return bad(format!("a value of type {kind}, which GGUF does not have; the file is damaged"));
    };
    let bytes = reader.take(size, "a value")?;
    Ok(match kind {
        7 => Value::Bool(truth(bytes[0])?),
        6 | 12 => Value::F64(float(bytes)),
        1 | 3 | 5 | 11 => Value::I64(signed(bytes)),
        _ => Value::U64(unsigned(bytes)),
    })
}

fn array(reader: &mut Reader, depth: u32) -> Result<Value, GgufError> {
    if depth > limits::GGUF_ARRAY_DEPTH {
        return bad(format!("arrays are nested deeper than {}", limits::GGUF_ARRAY_DEPTH));
    }
    let kind = reader.u32("the type of an array")?;
    let count = reader.u64("the length of an array")?;
    let Some(size) = least_bytes(kind) else {
        return bad(format!("an array of type {kind}, which GGUF does not have; the file is damaged"));
    };
    reader.count_entries(count)?;
    reader.need(count, size, "an array")?;
    match kind {
        STRING => texts(reader, count),
        ARRAY => {
            let mut items = Vec::new();
            for _ in 0..count {
                items.push(array(reader, depth + 1)?);
            }
            Ok(Value::Array(items))
        }
        _ => {
            // `need` has shown that this does not overflow.
            let bytes = reader.take(count * size, "an array")?;
            numbers(bytes.chunks_exact(size as usize), kind)
        }
    }
}

fn texts(reader: &mut Reader, count: u64) -> Result<Value, GgufError> {
    // The count is checked: eight bytes of each string's length are there.
    let mut texts = Texts { text: String::new(), ends: Vec::with_capacity(count as usize) };
    for _ in 0..count {
        texts.push(reader.text(limits::GGUF_STRING_BYTES, "a string of an array")?)?;
    }
    Ok(Value::Texts(texts))
}

fn numbers<'a>(items: impl Iterator<Item = &'a [u8]>, kind: u32) -> Result<Value, GgufError> {
    Ok(match kind {
        7 => Value::Bools(items.map(|bytes| truth(bytes[0])).collect::<Result<_, _>>()?),
        6 | 12 => Value::Floats(items.map(float).collect()),
        1 | 3 | 5 | 11 => Value::Ints(items.map(signed).collect()),
        _ => Value::Uints(items.map(unsigned).collect()),
    })
}

fn truth(byte: u8) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => bad(format!("a truth value of {byte}, which must be 0 or 1; the file is damaged")),
    }
}

/// Little-endian, 1 to 8 bytes.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Little-endian two's complement, 1 to 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    let unused = 64 - 8 * bytes.len() as u32;
    (unsigned(bytes) << unused) as i64 >> unused
}

/// 4 or 8 bytes.
fn float(bytes: &[u8]) -> f64 {
    match bytes.len() {
        4 => f64::from(f32::from_bits(unsigned(bytes) as u32)),
        _ => f64::from_bits(unsigned(bytes)),
    }
}

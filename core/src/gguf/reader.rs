//! A cursor over the bytes of a header that knows how long the file is.
//!
//! Must never hand out bytes beyond what it was given, nor overflow on any number of the file.

use super::{GgufError, bad};
use crate::limits;

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    file_bytes: u64,
    at: u64,
    /// Entries that arrays of this file may still have, all together.
    array_entries_left: u64,
}

pub(super) fn too_large() -> String {
    format!("the header is larger than the limit of {} bytes", limits::GGUF_HEADER_BYTES)
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], file_bytes: u64) -> Reader<'a> {
        let given = usize::try_from(file_bytes).unwrap_or(usize::MAX).min(bytes.len());
        Reader { bytes: &bytes[..given], file_bytes, at: 0, array_entries_left: limits::GGUF_ARRAY_ENTRIES }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Checks that `count` items of `size` bytes can still come, before anything is allocated for them.
    /// Returns where they end.
    pub(super) fn need(&self, count: u64, size: u64, what: &str) -> Result<u64, GgufError> {
        let end = count.checked_mul(size).and_then(|bytes| self.at.checked_add(bytes));
        let Some(end) = end.filter(|end| *end <= self.file_bytes) else {
            return bad(format!(
                "the file ends inside {what} ({count} x {size} bytes at {} of {}): it is damaged or was cut off; \
                 fetch it again",
                self.at, self.file_bytes
            ));
        };
        if end > limits::GGUF_HEADER_BYTES {
            return bad(too_large());
        }
        if end > self.bytes.len() as u64 {
            return Err(GgufError::NeedBytes(end));
        }
        Ok(end)
    }

    pub(super) fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], GgufError> {
        let end = self.need(length, 1, what)?;
        // Both fit: `need` has checked them against the slice.
        let taken = &self.bytes[self.at as usize..end as usize];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string with its length before it, at most `limit` bytes.
    pub(super) fn text(&mut self, limit: u64, what: &str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        if length > limit {
            return bad(format!("{what} of {length} bytes is longer than the limit of {limit}"));
        }
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => bad(format!("{what} is not UTF-8")),
        }
    }

    /// Takes `count` entries from what arrays may still have.
    pub(super) fn count_entries(&mut self, count: u64) -> Result<(), GgufError> {
        match self.array_entries_left.checked_sub(count) {
            Some(left) => self.array_entries_left = left,
            None => {
                let limit = limits::GGUF_ARRAY_ENTRIES;
                return bad(format!(
                    "an array of {count} entries exceeds the limit of {limit} for all arrays"
                ));
            }
        }
        Ok(())
    }
}

//! The weight formats: what a block of a GGUF tensor means.
//!
//! Every format is reduced to blocks of 32 or 16 numbers `w = d * q + m` with f32 `d` and `m` and
//! small whole `q` (or to plain floats). The products that make `d` and `m` of the K formats are
//! exact in f32. Source of the layouts: ggml/docs/gguf.md and the block types it names.
//!
//! Must never read beyond the bytes of a row.

use crate::lanes::f16_to_f32;

/// Element type of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    F32,
    F16,
    Bf16,
    /// w = d * (q - 8); the packed form keeps q - 8 as the whole number.
    Q4_0,
    /// w = d * q + m
    Q4_1,
    /// w = d * (q - 16), likewise
    Q5_0,
    /// w = d * q + m
    Q5_1,
    /// w = d * q
    Q8_0,
    /// Blocks of 32: w = (d * scale) * q - (dmin * min)
    Q4K,
    /// As Q4K, with five bits.
    Q5K,
    /// Blocks of 16: w = (d * scale) * (q - 32)
    Q6K,
}

impl WeightType {
    pub const ALL: [WeightType; 11] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::Bf16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
    ];

    /// (elements, bytes) of the unit that a row is made of in the file.
    pub fn unit(self) -> (usize, usize) {
        match self {
            WeightType::F32 => (1, 4),
            WeightType::F16 | WeightType::Bf16 => (1, 2),
            WeightType::Q4_0 => (32, 18),
            WeightType::Q4_1 => (32, 20),
            WeightType::Q5_0 => (32, 22),
            WeightType::Q5_1 => (32, 24),
            WeightType::Q8_0 => (32, 34),
            WeightType::Q4K => (256, 144),
            WeightType::Q5K => (256, 176),
            WeightType::Q6K => (256, 210),
        }
    }

    /// Bytes of a row of `k` elements; `None` if `k` is not a whole number of units.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        let (elements, bytes) = self.unit();
        if k.is_multiple_of(elements) { (k / elements).checked_mul(bytes) } else { None }
    }
}

/// One block: `w[i] = d * q[i] + m`. For blocks of 16 only the first half of `q` counts.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub d: f32,
    pub m: f32,
    pub q: [i8; 32],
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Sixteen bytes hold elements 0..16 in the low nibbles and 16..32 in the high ones.
fn nibbles(bytes: &[u8], high_bits: u32, minus: i8) -> [i8; 32] {
    std::array::from_fn(|i| {
        let low = if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 };
        let high = ((high_bits >> i) & 1) as u8;
        (low | (high << 4)) as i8 - minus
    })
}

/// Block `index` (counted in blocks of the packed form) of a quantised row.
pub(crate) fn read(kind: WeightType, row: &[u8], index: usize) -> Block {
    let (elements, bytes) = kind.unit();
    let size = if kind == WeightType::Q6K { 16 } else { 32 };
    let per_unit = (elements / size).max(1);
    let at = index / per_unit * bytes;
    let unit = &row[at..at + bytes];
    let sub = index % per_unit;
    let bits = |at: usize| u32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
    match kind {
        WeightType::F32 | WeightType::F16 | WeightType::Bf16 => Block { d: 1.0, m: 0.0, q: [0; 32] },
        WeightType::Q4_0 => Block { d: half(unit, 0), m: 0.0, q: nibbles(&unit[2..], 0, 8) },
        WeightType::Q4_1 => Block { d: half(unit, 0), m: half(unit, 2), q: nibbles(&unit[4..], 0, 0) },
        WeightType::Q5_0 => Block { d: half(unit, 0), m: 0.0, q: nibbles(&unit[6..], bits(2), 16) },
        WeightType::Q5_1 => Block { d: half(unit, 0), m: half(unit, 2), q: nibbles(&unit[8..], bits(4), 0) },
        WeightType::Q8_0 => Block { d: half(unit, 0), m: 0.0, q: std::array::from_fn(|i| unit[2 + i] as i8) },
        WeightType::Q4K => k_block(unit, sub, &[], &unit[16..]),
        WeightType::Q5K => k_block(unit, sub, &unit[16..48], &unit[48..]),
        WeightType::Q6K => q6_block(unit, sub),
    }
}

/// Q4_K and Q5_K: d, dmin, twelve bytes of 6-bit scales and minima, then the numbers; `high` holds
/// the fifth bits (bit `sub` of each byte).
fn k_block(unit: &[u8], sub: usize, high: &[u8], low: &[u8]) -> Block {
    let s = &unit[4..16];
    let (scale, min) = if sub < 4 {
        (s[sub] & 63, s[sub + 4] & 63)
    } else {
        let joined = s[sub + 4];
        ((joined & 15) | ((s[sub - 4] >> 6) << 4), (joined >> 4) | ((s[sub] >> 6) << 4))
    };
    let bytes = &low[32 * (sub / 2)..32 * (sub / 2) + 32];
    let q = std::array::from_fn(|i| {
        let nibble = if sub.is_multiple_of(2) { bytes[i] & 15 } else { bytes[i] >> 4 };
        let fifth = high.get(i).map_or(0, |byte| (byte >> sub) & 1);
        (nibble | (fifth << 4)) as i8
    });
    Block { d: half(unit, 0) * f32::from(scale), m: -(half(unit, 2) * f32::from(min)), q }
}

/// Q6_K: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d. Block `sub` of 16.
fn q6_block(unit: &[u8], sub: usize) -> Block {
    let (side, quarter, first) = (sub / 8, sub % 8 / 2, sub % 2 * 16);
    let low = &unit[64 * side + 32 * (quarter % 2)..];
    let high = &unit[128 + 32 * side..];
    let mut q = [0i8; 32];
    for (i, q) in q.iter_mut().take(16).enumerate() {
        let at = first + i;
        let nibble = if quarter < 2 { low[at] & 15 } else { low[at] >> 4 };
        let pair = (high[at] >> (2 * quarter)) & 3;
        *q = (nibble | (pair << 4)) as i8 - 32;
    }
    Block { d: half(unit, 208) * f32::from(unit[192 + sub] as i8), m: 0.0, q }
}

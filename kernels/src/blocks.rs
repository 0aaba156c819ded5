//! The weight formats: what a block of a GGUF tensor means.
//!
//! Every format is reduced to blocks of 32 or 16 numbers `w = d * q + m` with f32 `d` and `m` and
//! small whole `q` (or to plain floats). The products that make `d` and `m` of the K formats are
//! exact in f32. Source of the layouts: ggml/docs/gguf.md and the block types it names.
//!
//! Must never read beyond the bytes of a row.

#[cfg(test)]
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

#[cfg(test)]
fn half(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Sixteen bytes hold elements 0..16 in the low nibbles and 16..32 in the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (i, byte) in bytes[..16].iter().enumerate() {
        (out[i], out[16 + i]) = (byte & 15, byte >> 4);
    }
    out
}

/// Adds bit i of `high` to number i, as its fifth.
#[inline(always)]
fn fifths(mut numbers: [u8; 32], high: &[u8]) -> [u8; 32] {
    for (i, number) in numbers.iter_mut().enumerate() {
        *number |= (high[i / 8] >> (i % 8) & 1) << 4;
    }
    numbers
}

/// The 32 numbers of block `sub` of a unit as the file has them, with their offsets (Q8_0: the bits
/// of signed bytes); zeros for floats.
#[inline(always)]
pub(crate) fn numbers(kind: WeightType, unit: &[u8], sub: usize) -> [u8; 32] {
    match kind {
        WeightType::F32 | WeightType::F16 | WeightType::Bf16 => [0; 32],
        WeightType::Q4_0 => nibbles(&unit[2..]),
        WeightType::Q4_1 => nibbles(&unit[4..]),
        WeightType::Q5_0 => fifths(nibbles(&unit[6..]), &unit[2..6]),
        WeightType::Q5_1 => fifths(nibbles(&unit[8..]), &unit[4..8]),
        WeightType::Q8_0 => std::array::from_fn(|i| unit[2 + i]),
        WeightType::Q4K => k_numbers(sub, &[0; 32], &unit[16..]),
        WeightType::Q5K => k_numbers(sub, &unit[16..48], &unit[48..]),
        WeightType::Q6K => six_numbers(unit, sub),
    }
}

/// What a number of a format is above its whole value.
pub(crate) const fn offset(kind: WeightType) -> i32 {
    match kind {
        WeightType::Q4_0 => 8,
        WeightType::Q5_0 => 16,
        WeightType::Q6K => 32,
        _ => 0,
    }
}

/// Q4_K and Q5_K: 32 bytes hold two blocks; `high` holds the fifth bits (bit `sub` of each byte).
#[inline(always)]
fn k_numbers(sub: usize, high: &[u8], low: &[u8]) -> [u8; 32] {
    let (low, high) = (&low[32 * (sub / 2)..32 * (sub / 2) + 32], &high[..32]);
    let shift = sub % 2 * 4;
    std::array::from_fn(|i| (low[i] >> shift & 15) | (high[i] >> sub & 1) << 4)
}

/// Q6_K: 128 bytes of low nibbles, 64 of high pairs; each half of the unit has its own 64 and 32.
#[inline(always)]
fn six_numbers(unit: &[u8], sub: usize) -> [u8; 32] {
    let (side, quarter) = (sub / 4, sub % 4);
    let low = &unit[64 * side + 32 * (quarter % 2)..][..32];
    let high = &unit[128 + 32 * side..][..32];
    let shift = quarter / 2 * 4;
    std::array::from_fn(|i| (low[i] >> shift & 15) | (high[i] >> (2 * quarter) & 3) << 4)
}

/// The scales of a unit, as the packed form keeps them.
pub(crate) struct UnitScales {
    halves: [[u8; 2]; 2],
    half_count: usize,
    bytes: [u8; 16],
    byte_count: usize,
}

impl UnitScales {
    /// Half-precision numbers: d, then m or dmin if the format has it.
    pub(crate) fn halves(&self) -> &[[u8; 2]] {
        &self.halves[..self.half_count]
    }

    /// Q4_K and Q5_K: (scale, min) of each block; Q6_K: a signed scale for each 16 numbers.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.byte_count]
    }

    pub(crate) fn finite(&self) -> bool {
        let finite = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7c00 != 0x7c00;
        self.halves().iter().all(finite)
    }
}

/// The scales of one unit of a quantised format.
#[inline(always)]
pub(crate) fn scales(kind: WeightType, unit: &[u8]) -> UnitScales {
    let half = |at: usize| [unit[at], unit[at + 1]];
    let mut out = UnitScales { halves: [half(0), half(2)], half_count: 2, bytes: [0; 16], byte_count: 0 };
    match kind {
        WeightType::Q4K | WeightType::Q5K => {
            out.byte_count = 16;
            for sub in 0..8 {
                (out.bytes[2 * sub], out.bytes[2 * sub + 1]) = six_bits(&unit[4..16], sub);
            }
        }
        WeightType::Q6K => {
            (out.halves[0], out.half_count, out.byte_count) = (half(208), 1, 16);
            out.bytes.copy_from_slice(&unit[192..208]);
        }
        WeightType::Q4_1 | WeightType::Q5_1 => {}
        _ => out.half_count = 1,
    }
    out
}

/// (scale, min) of block `sub` in the twelve bytes of a K format.
#[inline(always)]
fn six_bits(s: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (s[sub] & 63, s[sub + 4] & 63);
    }
    let joined = s[sub + 4];
    ((joined & 15) | ((s[sub - 4] >> 6) << 4), (joined >> 4) | ((s[sub] >> 6) << 4))
}

/// One block for the tests' definition: `w[i] = d * q[i] + m`.
#[cfg(test)]
pub(crate) struct Block {
    pub d: f32,
    pub m: f32,
    pub q: [i8; 32],
}

/// Block `index` of 32 (of 16 for Q6_K, first half of `q`) of a quantised row.
#[cfg(test)]
pub(crate) fn read(kind: WeightType, row: &[u8], index: usize) -> Block {
    let (elements, bytes) = kind.unit();
    let size = if kind == WeightType::Q6K { 16 } else { 32 };
    let unit = &row[index * size / elements * bytes..][..bytes];
    let sub = index % (elements / size);
    let raw = numbers(kind, unit, sub * size / 32);
    let q = raw
        .map(|raw| if kind == WeightType::Q8_0 { raw as i8 } else { (i32::from(raw) - offset(kind)) as i8 });
    match kind {
        WeightType::Q4_1 | WeightType::Q5_1 => Block { d: half(unit, 0), m: half(unit, 2), q },
        WeightType::Q4K | WeightType::Q5K => {
            let (scale, min) = six_bits(&unit[4..16], sub);
            Block { d: half(unit, 0) * f32::from(scale), m: -(half(unit, 2) * f32::from(min)), q }
        }
        WeightType::Q6K => {
            let mut block = Block { d: half(unit, 208) * f32::from(unit[192 + sub] as i8), m: 0.0, q };
            block.q.rotate_left(sub % 2 * 16);
            block
        }
        _ => Block { d: half(unit, 0), m: 0.0, q },
    }
}

//! Weight matrices packed once for the kernels; the file's form is not kept.
//!
//! Sixteen output columns make a panel. A panel of a quantised matrix is its blocks' numbers, block
//! after block along K, then their scales, as the file has them (half precision, or a K format's
//! six- and eight-bit scales): a packed matrix is as large as the file's tensor. Numbers lie so that
//! a few shifts and masks give pairs of neighbouring k, column after column (`Quants`). Panels of
//! floats are rows of k with the columns side by side. Columns beyond the last and k beyond the end
//! are zeros.
//!
//! Must never change a weight: unpacking gives exactly `d * q + m` of the file.

use crate::activations::BLOCK;
use crate::blocks::{self, UnitScales, WeightType};
use crate::lanes::{LANES, bf16_to_f32, f16_to_f32};

/// Sixteen columns of something, in one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u32; LANES]);

const ZERO: Line = Line([0; LANES]);

/// How the numbers of a panel lie in its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Quants(Quants),
    F16,
    Bf16,
    F32,
}

/// Whole numbers of `bits` bits that stand for `number - offset`. A block of 32 k takes `bits` lines.
///
/// Word j of a line belongs to column j, its low half to even k, its high half to odd k. Line i of
/// the first four holds the low four bits of pairs 4i.. in the nibbles of the halves, lowest first.
/// With five bits, line 4 holds the fifth bit of pair p at bit p of each half; with six, lines 4 and
/// 5 hold two bits of pair p at bit 2 (p mod 8). With eight bits, a line holds two pairs, each 16
/// columns of two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quants {
    pub bits: usize,
    pub offset: i32,
    pub scales: Scales,
}

/// What follows the numbers of a panel; each item is 16 columns wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// For each block: d (half precision).
    One,
    /// For each block: d, m (half precision).
    Min,
    /// For each 256 k: d, dmin (half precision), then for each block scale, min (bytes).
    Super,
    /// For each 256 k: d (half precision), then a signed byte for each 16 k.
    Signed,
}

/// k that share the half-precision scales of a K format.
pub(crate) const SUPER: usize = 256;

impl Scales {
    /// Bytes for each `Scales::span` k.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Scales::One => 2 * LANES,
            Scales::Min => 4 * LANES,
            Scales::Super => 4 * LANES + SUPER / BLOCK * 2 * LANES,
            Scales::Signed => 2 * LANES + SUPER / 16 * LANES,
        }
    }

    pub(crate) const fn span(self) -> usize {
        match self {
            Scales::One | Scales::Min => BLOCK,
            Scales::Super | Scales::Signed => SUPER,
        }
    }
}

impl Layout {
    const fn of(kind: WeightType) -> Layout {
        const fn quants(kind: WeightType, bits: usize, scales: Scales) -> Layout {
            Layout::Quants(Quants { bits, offset: blocks::offset(kind), scales })
        }
        match kind {
            WeightType::F32 => Layout::F32,
            WeightType::F16 => Layout::F16,
            WeightType::Bf16 => Layout::Bf16,
            WeightType::Q4_0 => quants(kind, 4, Scales::One),
            WeightType::Q4_1 => quants(kind, 4, Scales::Min),
            WeightType::Q5_0 => quants(kind, 5, Scales::One),
            WeightType::Q5_1 => quants(kind, 5, Scales::Min),
            WeightType::Q8_0 => quants(kind, 8, Scales::One),
            WeightType::Q4K => quants(kind, 4, Scales::Super),
            WeightType::Q5K => quants(kind, 5, Scales::Super),
            WeightType::Q6K => quants(kind, 6, Scales::Signed),
        }
    }

    /// Lines of numbers in a panel.
    pub(crate) fn number_lines(self, k: usize) -> usize {
        match self {
            Layout::Quants(quants) => k / BLOCK * quants.bits,
            Layout::F16 | Layout::Bf16 => k.div_ceil(2),
            Layout::F32 => k,
        }
    }

    fn scale_lines(self, k: usize) -> usize {
        match self {
            Layout::Quants(Quants { scales, .. }) => {
                (k / scales.span() * scales.bytes()).div_ceil(size_of::<Line>())
            }
            _ => 0,
        }
    }
}

/// Why a tensor can't be packed. The file is at fault; a retry won't help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("a row of {k} elements is not a whole number of {kind:?} blocks")]
    RowLength { k: usize, kind: WeightType },
    #[error("{got} bytes instead of {want}")]
    Bytes { got: usize, want: usize },
    #[error("a scale or weight of row {row} is not a finite number")]
    NotFinite { row: usize },
    #[error("the matrix is empty or too large")]
    Size,
}

/// A packed weight matrix: `n` output columns (rows of the file's tensor) of `k` inputs.
#[derive(Clone)]
pub struct Matrix {
    pub(crate) layout: Layout,
    k: usize,
    n: usize,
    pub(crate) lines: Vec<Line>,
}

impl Matrix {
    /// Packs `n` rows of `k` elements as they lie in the file.
    pub fn pack(kind: WeightType, k: usize, n: usize, bytes: &[u8]) -> Result<Matrix, PackError> {
        Matrix::pack_with(1, kind, (k, n), bytes)
    }

    /// `pack` of `n` rows of `k` elements by `threads` threads.
    pub fn pack_with(
        threads: usize,
        kind: WeightType,
        (k, n): (usize, usize),
        bytes: &[u8],
    ) -> Result<Matrix, PackError> {
        let row_bytes = kind.row_bytes(k).ok_or(PackError::RowLength { k, kind })?;
        let want = row_bytes.checked_mul(n).ok_or(PackError::Size)?;
        if k == 0 || n == 0 {
            return Err(PackError::Size);
        }
        if bytes.len() != want {
            return Err(PackError::Bytes { got: bytes.len(), want });
        }
        let mut matrix = Matrix { layout: Layout::of(kind), k, n, lines: Vec::new() };
        let panel_lines = matrix.panel_lines();
        let lines = n.div_ceil(LANES).checked_mul(panel_lines).ok_or(PackError::Size)?;
        matrix.lines = vec![ZERO; lines];
        // A thread takes whole panels; below this many bytes it is not worth its start.
        let parts = threads.clamp(1, bytes.len().div_ceil(1 << 20));
        let panels = n.div_ceil(LANES).div_ceil(parts);
        let format = (kind, matrix.layout);
        let pieces = matrix.lines.chunks_mut(panels * panel_lines);
        let pieces = pieces.zip(bytes.chunks(panels * LANES * row_bytes));
        let bad = std::thread::scope(|scope| {
            let mut running = Vec::new();
            for (i, (lines, rows)) in pieces.enumerate() {
                let mut work = move || put_panels(format, rows, row_bytes, lines, panel_lines);
                let first = i * panels * LANES;
                if parts == 1 {
                    return work();
                }
                running.push((first, scope.spawn(work)));
            }
            let ends = running.into_iter().map(|(first, thread)| match thread.join() {
                Ok(bad) => bad.map(|row| first + row),
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // All are joined, and the first row is named.
            ends.collect::<Vec<_>>().into_iter().flatten().next()
        });
        match bad {
            Some(row) => Err(PackError::NotFinite { row }),
            None => Ok(matrix),
        }
    }

    /// Inputs: the length of a reduction.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(crate) fn panel_lines(&self) -> usize {
        self.layout.number_lines(self.k) + self.layout.scale_lines(self.k)
    }

    /// Weights of output `row` as floats: each `d * q + m`, rounded once. `out` takes `k` of them.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.lines[row / LANES * self.panel_lines()..][..self.panel_lines()];
        let (numbers, heads) = panel.split_at(self.layout.number_lines(self.k));
        let lane = row % LANES;
        let short = |i: usize| (numbers[i / 2].0[i % 2 * 8 + lane / 2] >> (lane % 2 * 16)) as u16;
        for (i, out) in out.iter_mut().enumerate().take(self.k) {
            *out = match self.layout {
                Layout::F32 => f32::from_bits(numbers[i].0[lane]),
                Layout::F16 => f16_to_f32(short(i)),
                Layout::Bf16 => bf16_to_f32(short(i)),
                Layout::Quants(quants) => {
                    let lines = &numbers[i / BLOCK * quants.bits..];
                    let (d, m) = scales(quants.scales, bytes_of(heads), i, lane);
                    d.mul_add((quant(quants.bits, lines, i % BLOCK, lane) - quants.offset) as f32, m)
                }
            };
        }
    }
}

/// Lines as bytes, in the order in which the kernels load them.
fn bytes_of(lines: &[Line]) -> &[u8] {
    // SAFETY: lines are plain words without padding, side by side; any byte is a valid u8.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn bytes_of_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are valid words.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

fn half(heads: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_ne_bytes([heads[at], heads[at + 1]]))
}

/// (d, m) of weight `i` of a column.
fn scales(scales: Scales, heads: &[u8], i: usize, lane: usize) -> (f32, f32) {
    let at = i / scales.span() * scales.bytes();
    let (first, second) = (at + 2 * lane, at + 2 * LANES + 2 * lane);
    match scales {
        Scales::One => (half(heads, first), 0.0),
        Scales::Min => (half(heads, first), half(heads, second)),
        Scales::Super => {
            let sub = at + 4 * LANES + i % SUPER / BLOCK * 2 * LANES + lane;
            let (scale, min) = (heads[sub], heads[sub + LANES]);
            (half(heads, first) * f32::from(scale), -(half(heads, second) * f32::from(min)))
        }
        Scales::Signed => {
            let scale = heads[at + 2 * LANES + i % SUPER / 16 * LANES + lane] as i8;
            (half(heads, first) * f32::from(scale), 0.0)
        }
    }
}

/// Number `i` of column `lane` of a block, without the offset.
fn quant(bits: usize, lines: &[Line], i: usize, lane: usize) -> i32 {
    if bits == 8 {
        return i32::from(bytes_of(lines)[i / 2 * 2 * LANES + 2 * lane + i % 2] as i8);
    }
    let low = (lines[i / 8].0[lane] >> (i % 2 * 16 + i / 2 % 4 * 4)) & 15;
    let high = match bits {
        5 => (lines[4].0[lane] >> (i % 2 * 16 + i / 2)) & 1,
        6 => (lines[4 + i / 16].0[lane] >> (i % 2 * 16 + i / 2 % 8 * 2)) & 3,
        _ => 0,
    };
    (low | high << 4) as i32
}

/// Packs rows into panels; the first row with a number that is not finite, if any.
fn put_panels(
    format: (WeightType, Layout),
    rows: &[u8],
    row_bytes: usize,
    lines: &mut [Line],
    panel_lines: usize,
) -> Option<usize> {
    let sizes = (row_bytes, panel_lines);
    // One loop for each format, with all that the format decides known when it is compiled.
    macro_rules! each {
        ($($kind:ident),*) => {
            match format.0 {
                $(WeightType::$kind => put_all(
                    (WeightType::$kind, const { Layout::of(WeightType::$kind) }), rows, lines, sizes),)*
            }
        };
    }
    each!(F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K)
}

#[inline(always)]
fn put_all(
    format: (WeightType, Layout),
    rows: &[u8],
    lines: &mut [Line],
    (row_bytes, panel_lines): (usize, usize),
) -> Option<usize> {
    let panels = lines.chunks_exact_mut(panel_lines).zip(rows.chunks(LANES * row_bytes));
    for (panel, (lines, rows)) in panels.enumerate() {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            if !put_row(format, row, lines, lane) {
                return Some(panel * LANES + lane);
            }
        }
    }
    None
}

/// Writes one row of the tensor into its lane of the panel; false if a number is not finite.
#[inline(always)]
fn put_row((kind, layout): (WeightType, Layout), row: &[u8], panel: &mut [Line], lane: usize) -> bool {
    match layout {
        Layout::F32 => {
            for (line, bytes) in panel.iter_mut().zip(row.chunks_exact(4)) {
                line.0[lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                if !f32::from_bits(line.0[lane]).is_finite() {
                    return false;
                }
            }
        }
        Layout::F16 | Layout::Bf16 => {
            let infinite = if layout == Layout::F16 { 0x7c00 } else { 0x7f80 };
            for (i, bytes) in row.chunks_exact(2).enumerate() {
                let short = u16::from_le_bytes([bytes[0], bytes[1]]);
                if short & infinite == infinite {
                    return false;
                }
                panel[i / 2].0[i % 2 * 8 + lane / 2] |= u32::from(short) << (lane % 2 * 16);
            }
        }
        Layout::Quants(quants) => {
            let (elements, bytes) = kind.unit();
            let k = row.len() / bytes * elements;
            let (numbers, heads) = panel.split_at_mut(layout.number_lines(k));
            for (block, lines) in numbers.chunks_exact_mut(quants.bits).enumerate() {
                let unit = &row[block * BLOCK / elements * bytes..][..bytes];
                put_numbers(quants, &blocks::numbers(kind, unit, block % (elements / BLOCK)), lines, lane);
            }
            for (span, unit) in row.chunks_exact(bytes).enumerate() {
                let scales = blocks::scales(kind, unit);
                if !scales.finite() {
                    return false;
                }
                put_scales(&scales, (&mut *heads, span * quants.scales.bytes()), lane);
            }
        }
    }
    true
}

#[inline(always)]
fn put_numbers(quants: Quants, numbers: &[u8; BLOCK], lines: &mut [Line], lane: usize) {
    if quants.bits == 8 {
        for (pair, out) in
            numbers.as_chunks::<2>().0.iter().zip(bytes_of_mut(lines).chunks_exact_mut(2 * LANES))
        {
            out[2 * lane..2 * lane + 2].copy_from_slice(pair);
        }
        return;
    }
    for (i, eight) in numbers.as_chunks::<8>().0.iter().enumerate() {
        let raw = u64::from_le_bytes(*eight);
        lines[i].0[lane] = gather::<4>(raw);
        match quants.bits {
            5 => lines[4].0[lane] |= gather::<1>(raw >> 4) << (4 * i),
            6 => lines[4 + i / 2].0[lane] |= gather::<2>(raw >> 4) << (i % 2 * 8),
            _ => {}
        }
    }
}

/// The lowest N bits (N up to 4) of eight bytes: those of bytes 0, 2, 4, 6 side by side in the low
/// half, those of the others in the high half.
#[inline(always)]
fn gather<const N: u32>(bytes: u64) -> u32 {
    let mask = ((1 << N) - 1) * 0x0001_0001_0001_0001;
    // One product brings four fields together in the highest 16 bits: field i, at bit 16 i, by a shift
    // of 48 - (16 - N) i. What else comes of it lies apart below them, or beyond bit 63.
    let shifts = 1 << 48 | 1 << (32 + N) | 1 << (16 + 2 * N) | 1 << (3 * N);
    let four = |bytes: u64| ((bytes & mask).wrapping_mul(shifts) >> 48) as u32;
    four(bytes) | four(bytes >> 8) << 16
}

/// The scales of one unit of the file, from byte `at` of `heads` on. Each item is 16 columns wide;
/// the (scale, min) pairs of the K formats alternate.
#[inline(always)]
fn put_scales(scales: &UnitScales, (heads, at): (&mut [Line], usize), lane: usize) {
    let heads = &mut bytes_of_mut(heads)[at..];
    let halves = scales.halves();
    for (half, out) in halves.iter().zip(heads.chunks_exact_mut(2 * LANES)) {
        let half = u16::from_le_bytes(*half).to_ne_bytes();
        out[2 * lane..2 * lane + 2].copy_from_slice(&half);
    }
    let heads = heads[halves.len() * 2 * LANES..].chunks_exact_mut(LANES);
    for (byte, out) in scales.bytes().iter().zip(heads) {
        out[lane] = *byte;
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;

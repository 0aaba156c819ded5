//! Weight matrices packed once for the kernels; the file's form is not kept.
//!
//! Sixteen output columns make a panel; a panel is a row of blocks along K; a block is a few
//! 64-byte lines: the columns' scales, their minima (if the format has them), then the numbers with
//! the columns side by side. Four-bit numbers stay four-bit (word j of a line holds eight
//! consecutive k of column j, lowest nibble first), others are bytes, 16-bit or 32-bit floats.
//! Columns beyond the last and k beyond the end are zeros.
//!
//! Must never change a weight: unpacking gives exactly `d * q + m` of the file.

use crate::blocks::{self, WeightType};
use crate::lanes::{LANES, bf16_to_f32, f16_to_f32};

/// Sixteen columns of something, in one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u32; LANES]);

const ZERO: Line = Line([0; LANES]);

/// How the numbers of a block lie in its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// 32 numbers of four bits that stand for `nibble + offset`.
    Nibble {
        offset: i32,
        min: bool,
    },
    /// 32 signed bytes.
    Byte {
        min: bool,
    },
    /// 16 signed bytes.
    Byte16,
    F16,
    Bf16,
    F32,
}

impl Layout {
    fn of(kind: WeightType) -> Layout {
        match kind {
            WeightType::F32 => Layout::F32,
            WeightType::F16 => Layout::F16,
            WeightType::Bf16 => Layout::Bf16,
            WeightType::Q4_0 => Layout::Nibble { offset: -8, min: false },
            WeightType::Q4_1 | WeightType::Q4K => Layout::Nibble { offset: 0, min: true },
            WeightType::Q5_1 | WeightType::Q5K => Layout::Byte { min: true },
            WeightType::Q5_0 | WeightType::Q8_0 => Layout::Byte { min: false },
            WeightType::Q6K => Layout::Byte16,
        }
    }

    /// (numbers, lines of scales and minima, lines of numbers) of a block.
    pub(crate) const fn block(self) -> (usize, usize, usize) {
        match self {
            Layout::Nibble { min, .. } => (32, 1 + min as usize, 4),
            Layout::Byte { min } => (32, 1 + min as usize, 8),
            Layout::Byte16 => (16, 1, 4),
            Layout::F16 | Layout::Bf16 => (32, 0, 16),
            Layout::F32 => (32, 0, 32),
        }
    }

    pub(crate) fn has_min(self) -> bool {
        matches!(self, Layout::Nibble { min: true, .. } | Layout::Byte { min: true })
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
        let row_bytes = kind.row_bytes(k).ok_or(PackError::RowLength { k, kind })?;
        let want = row_bytes.checked_mul(n).ok_or(PackError::Size)?;
        if k == 0 || n == 0 {
            return Err(PackError::Size);
        }
        if bytes.len() != want {
            return Err(PackError::Bytes { got: bytes.len(), want });
        }
        let layout = Layout::of(kind);
        let mut matrix = Matrix { layout, k, n, lines: Vec::new() };
        let lines = n.div_ceil(LANES).checked_mul(matrix.panel_lines()).ok_or(PackError::Size)?;
        matrix.lines = vec![ZERO; lines];
        let panel_lines = matrix.panel_lines();
        for (panel, lines) in matrix.lines.chunks_exact_mut(panel_lines).enumerate() {
            let first = panel * LANES;
            for row in first..n.min(first + LANES) {
                let source = &bytes[row * row_bytes..(row + 1) * row_bytes];
                if !put_row(kind, layout, source, lines, row - first) {
                    return Err(PackError::NotFinite { row });
                }
            }
        }
        Ok(matrix)
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
        let (numbers, head, body) = self.layout.block();
        self.k.div_ceil(numbers) * (head + body)
    }

    /// Weights of output `row` as floats: each `d * q + m`, rounded once. `out` takes `k` of them.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let (numbers, head, body) = self.layout.block();
        let panel = &self.lines[row / LANES * self.panel_lines()..][..self.panel_lines()];
        let lane = row % LANES;
        for (block, out) in panel.chunks_exact(head + body).zip(out.chunks_mut(numbers)) {
            let d = if head > 0 { f32::from_bits(block[0].0[lane]) } else { 1.0 };
            let m = if head > 1 { f32::from_bits(block[1].0[lane]) } else { 0.0 };
            for (i, out) in out.iter_mut().enumerate() {
                *out = match self.layout {
                    Layout::F32 | Layout::F16 | Layout::Bf16 => number(self.layout, block, i, lane),
                    _ => d.mul_add(number(self.layout, &block[head..], i, lane), m),
                };
            }
        }
    }
}

/// Number `i` of column `lane` in the lines of a block.
fn number(layout: Layout, lines: &[Line], i: usize, lane: usize) -> f32 {
    let short = || (lines[i / 2].0[i % 2 * 8 + lane / 2] >> (lane % 2 * 16)) as u16;
    match layout {
        Layout::Nibble { offset, .. } => {
            (((lines[i / 8].0[lane] >> (i % 8 * 4)) & 15) as i32 + offset) as f32
        }
        Layout::Byte { .. } | Layout::Byte16 => {
            f32::from((lines[i / 4].0[i % 4 * 4 + lane / 4] >> (lane % 4 * 8)) as u8 as i8)
        }
        Layout::F16 => f16_to_f32(short()),
        Layout::Bf16 => bf16_to_f32(short()),
        Layout::F32 => f32::from_bits(lines[i].0[lane]),
    }
}

/// Writes one row of the tensor into its lane of the panel; false if a number is not finite.
fn put_row(kind: WeightType, layout: Layout, row: &[u8], panel: &mut [Line], lane: usize) -> bool {
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
        _ => {
            let (_, head, body) = layout.block();
            for (index, lines) in panel.chunks_exact_mut(head + body).enumerate() {
                let block = blocks::read(kind, row, index);
                if !block.d.is_finite() || !block.m.is_finite() {
                    return false;
                }
                put_block(layout, &block, lines, lane);
            }
        }
    }
    true
}

fn put_block(layout: Layout, block: &blocks::Block, lines: &mut [Line], lane: usize) {
    let (numbers, head, _) = layout.block();
    lines[0].0[lane] = block.d.to_bits();
    if head > 1 {
        lines[1].0[lane] = block.m.to_bits();
    }
    let lines = &mut lines[head..];
    if let Layout::Nibble { offset, .. } = layout {
        for (line, eight) in lines.iter_mut().zip(block.q.chunks_exact(8)) {
            let words = eight.iter().enumerate();
            line.0[lane] =
                words.fold(0, |word, (i, &q)| word | (((i32::from(q) - offset) as u32) << (4 * i)));
        }
    } else {
        for (i, &q) in block.q.iter().take(numbers).enumerate() {
            lines[i / 4].0[i % 4 * 4 + lane / 4] |= u32::from(q as u8) << (lane % 4 * 8);
        }
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;

//! Rows of activations as 16-bit whole numbers with a scale for every 128 of them.
//!
//! The definition, for each row and each group of 128 k (the last may be shorter):
//!   top = the largest magnitude; bad = NaN if any x is not finite, else 0
//!   scale = top / 32767 + bad; number = round(x * (32767 / top)), ties to even
//!   a group whose top is below 1e-30 counts as zeros: scale = bad, numbers 0
//! A row that is not finite gets a scale that is NaN, so its products are NaN and nobody else's.
//!
//! Sixteen bits keep the distance from unrounded activations near that of f32 sums. Must never look
//! at another row, nor at more of a row than the group.

use crate::isa::Kernel;
use crate::lanes::{LANES, Lanes};
use crate::packed::Line;
use crate::team::{Racy, Team};

/// k of one block: what one scale of a weight covers, at most.
pub(crate) const BLOCK: usize = 32;
/// Blocks that share a scale of activations.
pub(crate) const GROUP_BLOCKS: usize = 4;
/// Rows that go through an expanded group of weights together: their numbers and sums fit the first
/// cache. Of a block, the rows of a stripe lie side by side: rows of the whole width apart would
/// often fall into the same few places of the cache.
pub(crate) const STRIPE: usize = 48;
/// Words (pairs of numbers) of a block.
pub(crate) const PAIRS: usize = BLOCK / 2;

const TOP: f32 = 32767.0;
const LEAST: f32 = 1e-30;

/// Scratch for the activations of one product, kept from call to call.
#[derive(Default)]
pub struct Activations {
    /// For each stripe: blocks x rows of the stripe, a line (16 words) each.
    lines: Vec<Line>,
    /// Sums of the numbers of each block, exact. For each stripe: blocks x rows.
    sums: Vec<f32>,
    /// For each stripe: groups x rows.
    scales: Vec<f32>,
}

/// Rows of a part of the work of `fill`.
const PART: usize = 8;

impl Activations {
    /// Takes `rows` rows of `k` numbers (a multiple of 32).
    pub(crate) fn fill(&mut self, team: &mut Team, rows: usize, k: usize, data: &[f32]) {
        let (blocks, groups) = (k / BLOCK, k.div_ceil(BLOCK * GROUP_BLOCKS));
        self.lines.resize(rows * blocks, Line([0; LANES]));
        self.sums.resize(rows * blocks, 0.0);
        self.scales.resize(rows * groups, 0.0);
        let (lines, sums) = (Racy(self.lines.as_mut_ptr()), Racy(self.sums.as_mut_ptr()));
        let scales = Racy(self.scales.as_mut_ptr());
        let isa = team.isa();
        team.run(rows.div_ceil(PART), |_, part| {
            for row in part * PART..rows.min(part * PART + PART) {
                let first = row / STRIPE * STRIPE;
                let at = row - first;
                // SAFETY: rows are distinct, and each has its own places in the three buffers.
                let (words, sums, scales) = unsafe {
                    (
                        lines.get().add(first * blocks + at).cast(),
                        sums.get().add(first * blocks + at),
                        scales.get().add(first * groups + at),
                    )
                };
                let stride = STRIPE.min(rows - first);
                isa.run(Row { data: &data[row * k..(row + 1) * k], stride, words, sums, scales });
            }
        });
    }

    /// Numbers and sums from block `block` on, and scales of its group, of the stripe that begins at
    /// row `first` (a multiple of STRIPE). Row r of the stripe has its words at 16 r, its sum and
    /// scale at r; the next block is as many rows further on as the stripe has.
    pub(crate) fn stripe(&self, first: usize, blocks: usize, block: usize, rows: usize) -> Stripe {
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let at = first * blocks + block * rows;
        Stripe {
            words: self.lines[at..].as_ptr().cast(),
            sums: self.sums[at..].as_ptr(),
            scales: self.scales[first * groups + block / GROUP_BLOCKS * rows..].as_ptr(),
            rows,
        }
    }
}

/// See `Activations::stripe`.
#[derive(Clone, Copy)]
pub(crate) struct Stripe {
    pub words: *const u32,
    pub sums: *const f32,
    pub scales: *const f32,
    pub rows: usize,
}

/// One row: where its first block, sum and scale go. The next ones are `stride` places further on.
struct Row<'a> {
    data: &'a [f32],
    stride: usize,
    words: *mut u32,
    sums: *mut f32,
    scales: *mut f32,
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for (g, group) in self.data.chunks(BLOCK * GROUP_BLOCKS).enumerate() {
            let (mut top, mut bad) = (V::splat(0.0), V::splat(0.0));
            for piece in group.chunks_exact(LANES) {
                // SAFETY: the piece has 16 elements.
                let x = unsafe { V::load(piece.as_ptr()) };
                top = x.max(V::splat(0.0).sub(x).max(top));
                bad = x.fma(V::splat(0.0), bad);
            }
            let mut lanes = [0f32; LANES];
            // SAFETY: 16 elements.
            unsafe { top.store(lanes.as_mut_ptr()) };
            let top = lanes.iter().fold(0f32, |top, x| if *x > top { *x } else { top });
            let (scale, inverse) = if top < LEAST { (0.0, 0.0) } else { (top / TOP, TOP / top) };
            // SAFETY: blocks, sums and scales of this row are ours; each block has 32 elements.
            unsafe {
                *self.scales.add(g * self.stride) = scale + bad.sum();
                for (i, block) in group.chunks_exact(BLOCK).enumerate() {
                    let b = g * GROUP_BLOCKS + i;
                    let half = |at| V::load(block.as_ptr().add(at)).mul(V::splat(inverse)).to_words();
                    let (low, high) = (half(0), half(LANES));
                    V::store_words(V::pairs(low, high), self.words.add(b * self.stride * PAIRS));
                    *self.sums.add(b * self.stride) = V::from_words(low).add(V::from_words(high)).sum();
                }
            }
        }
    }
}

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
use crate::team::{Racy, Team};

/// k of one block: what one scale of a weight covers, at most.
pub(crate) const BLOCK: usize = 32;
/// Blocks that share a scale of activations.
pub(crate) const GROUP_BLOCKS: usize = 4;
/// Rows whose blocks lie side by side.
pub(crate) const ROWS: usize = 4;
/// Words (pairs of numbers) of a block.
pub(crate) const PAIRS: usize = BLOCK / 2;

const TOP: f32 = 32767.0;
const LEAST: f32 = 1e-30;

/// Scratch for the activations of one product, kept from call to call.
#[derive(Default)]
pub struct Activations {
    /// (rows / 4) x blocks x 4 x 16 words
    pub(crate) words: Vec<u32>,
    /// Sums of the numbers of each block, exact: (rows / 4) x blocks x 4
    pub(crate) sums: Vec<f32>,
    /// (rows / 4) x groups x 4
    pub(crate) scales: Vec<f32>,
}

impl Activations {
    /// Takes `rows` rows of `k` numbers (a multiple of 32).
    pub(crate) fn fill(&mut self, team: &mut Team, rows: usize, k: usize, data: &[f32]) {
        let (blocks, groups) = (k / BLOCK, k.div_ceil(BLOCK * GROUP_BLOCKS));
        let quads = rows.div_ceil(ROWS);
        // Only rows that exist are ever read, so what is left from before does no harm.
        self.words.resize(quads * blocks * ROWS * PAIRS, 0);
        self.sums.resize(quads * blocks * ROWS, 0.0);
        self.scales.resize(quads * groups * ROWS, 0.0);
        let (words, sums) = (Racy(self.words.as_mut_ptr()), Racy(self.sums.as_mut_ptr()));
        let scales = Racy(self.scales.as_mut_ptr());
        let isa = team.isa();
        team.run(quads, |_, quad| {
            for row in quad * ROWS..rows.min(quad * ROWS + ROWS) {
                let lane = row % ROWS;
                // SAFETY: quads are distinct, and each has its own piece of the three buffers.
                let (words, sums, scales) = unsafe {
                    (
                        words.get().add((quad * blocks * ROWS + lane) * PAIRS),
                        sums.get().add(quad * blocks * ROWS + lane),
                        scales.get().add(quad * groups * ROWS + lane),
                    )
                };
                isa.run(Row { data: &data[row * k..(row + 1) * k], words, sums, scales });
            }
        });
    }
}

/// One row: where its first block, sum and scale go. The next ones are ROWS places further on.
struct Row<'a> {
    data: &'a [f32],
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
                *self.scales.add(g * ROWS) = scale + bad.sum();
                for (i, block) in group.chunks_exact(BLOCK).enumerate() {
                    let b = g * GROUP_BLOCKS + i;
                    let half = |at| V::load(block.as_ptr().add(at)).mul(V::splat(inverse)).to_words();
                    let (low, high) = (half(0), half(LANES));
                    V::store_words(V::pairs(low, high), self.words.add(b * ROWS * PAIRS));
                    *self.sums.add(b * ROWS) = V::from_words(low).add(V::from_words(high)).sum();
                }
            }
        }
    }
}

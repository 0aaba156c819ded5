//! Products of quantised weights with 16-bit activations.
//!
//! The definition, for each output (r, c): acc = 0; for each group of 128 k, in order:
//!   part = 0; for each block of 32 k of the group, in order (of 16 for Q6_K):
//!     part = fma(d, float(sum of weight number * activation number), part), the sum exact;
//!     and if the format has minima: part = fma(m, float(sum of activation numbers), part)
//!   acc = fma(part, scale of the group, acc)
//!
//! The sum is below 2^31 for every format; making it a float rounds to nearest. A group of a panel is
//! expanded to 16-bit numbers once for a stripe of rows. Must never split a reduction over K.

// Counted loops with constant bounds are what the compiler keeps in registers.
#![allow(clippy::needless_range_loop)]

use super::{Job, put};
use crate::activations::{Activations, BLOCK, GROUP_BLOCKS, PAIRS, STRIPE, Stripe};
use crate::lanes::{LANES, Lanes};
use crate::packed::{Line, Quants, SUPER, Scales};

/// One group of a panel, ready for the products.
#[repr(C, align(64))]
struct Expanded {
    /// A line for each pair of k.
    pairs: [Line; GROUP_BLOCKS * PAIRS],
    /// Scales of each block, or of each 16 k.
    d: [[f32; LANES]; 2 * GROUP_BLOCKS],
    m: [[f32; LANES]; GROUP_BLOCKS],
}

/// Panels `panels.0..panels.1` of a quantised matrix for rows `rows.0..rows.1` (a
/// stripe).
/// # Safety
/// Shapes checked, the outputs exclusive, the CPU fits `V`.
#[inline(always)]
pub(super) unsafe fn stripe<V: Lanes>(
    acts: &Activations,
    job: &Job<'_>,
    quants: Quants,
    panels: (usize, usize),
    rows: (usize, usize),
) {
    // SAFETY: vouched for by the caller.
    unsafe {
        match (quants.bits, quants.scales) {
            (4, Scales::One) => panels_of::<V, 4, 8, ONE>(acts, job, panels, rows),
            (4, Scales::Min) => panels_of::<V, 4, 0, MIN>(acts, job, panels, rows),
            (4, _) => panels_of::<V, 4, 0, K>(acts, job, panels, rows),
            (5, Scales::One) => panels_of::<V, 5, 16, ONE>(acts, job, panels, rows),
            (5, Scales::Min) => panels_of::<V, 5, 0, MIN>(acts, job, panels, rows),
            (5, _) => panels_of::<V, 5, 0, K>(acts, job, panels, rows),
            (6, _) => panels_of::<V, 6, 32, SIX>(acts, job, panels, rows),
            _ => panels_of::<V, 8, 0, ONE>(acts, job, panels, rows),
        }
    }
}

// `Scales` as constants of a generic function.
const ONE: u8 = 0;
const MIN: u8 = 1;
const K: u8 = 2;
const SIX: u8 = 3;

/// # Safety
/// As `stripe`; the constants are the matrix's format.
#[inline(always)]
unsafe fn panels_of<V: Lanes, const BITS: usize, const OFFSET: u32, const SCALES: u8>(
    acts: &Activations,
    job: &Job<'_>,
    panels: (usize, usize),
    rows: (usize, usize),
) {
    // SAFETY: vouched for by the caller.
    unsafe {
        match rows.1 - rows.0 {
            1 => direct::<V, BITS, OFFSET, SCALES, 1>(acts, job, panels, rows.0),
            2 => direct::<V, BITS, OFFSET, SCALES, 2>(acts, job, panels, rows.0),
            _ => expanded::<V, BITS, OFFSET, SCALES>(acts, job, panels, rows),
        }
    }
}

/// Many rows: each group of a panel is expanded once and kept for all of them.
/// # Safety
/// As `panels_of`.
#[inline(always)]
unsafe fn expanded<V: Lanes, const BITS: usize, const OFFSET: u32, const SCALES: u8>(
    acts: &Activations,
    job: &Job<'_>,
    panels: (usize, usize),
    rows: (usize, usize),
) {
    let matrix = job.matrix;
    let blocks = matrix.k() / BLOCK;
    let mut expanded = Expanded {
        pairs: [Line([0; LANES]); GROUP_BLOCKS * PAIRS],
        d: [[0.0; LANES]; 2 * GROUP_BLOCKS],
        m: [[0.0; LANES]; GROUP_BLOCKS],
    };
    let mut totals = [[0f32; LANES]; STRIPE];
    let pairs = std::hint::black_box(if SCALES == SIX { PAIRS / 2 } else { PAIRS });
    for panel in panels.0..panels.1 {
        totals[..rows.1 - rows.0].fill([0.0; LANES]);
        // SAFETY: `panel` is below `panels()`, groups and blocks stay within k; each group is
        // expanded before `rows_of` reads it.
        unsafe {
            let lines = matrix.lines.as_ptr().add(panel * matrix.panel_lines());
            let heads = lines.add(blocks * BITS).cast::<u8>();
            for first in (0..blocks).step_by(GROUP_BLOCKS) {
                let count = GROUP_BLOCKS.min(blocks - first);
                for b in 0..count {
                    let out = expanded.pairs.as_mut_ptr().add(b * PAIRS).cast::<u32>();
                    each_pair::<V, BITS>(lines.add((first + b) * BITS), |pair, words| {
                        let words = if OFFSET > 0 { V::sub_pairs(words, both::<V>(OFFSET)) } else { words };
                        V::store_words(words, out.add(pair * LANES));
                    });
                    let (d, m) = scales::<V, SCALES>(heads, first + b);
                    if SCALES == SIX {
                        d[0].store(expanded.d[2 * b].as_mut_ptr());
                        d[1].store(expanded.d[2 * b + 1].as_mut_ptr());
                    } else {
                        d[0].store(expanded.d[b].as_mut_ptr());
                    }
                    if SCALES == MIN || SCALES == K {
                        m.store(expanded.m[b].as_mut_ptr());
                    }
                }
                ahead::<V, BITS>(lines, (heads, SCALES), first + GROUP_BLOCKS, count);
                let stripe = acts.stripe(rows.0, blocks, first, rows.1 - rows.0);
                let group = Group { count, pairs, acts: stripe };
                match SCALES {
                    ONE => rows_of::<V, false, 1>(&expanded, group, &mut totals),
                    SIX => rows_of::<V, false, 2>(&expanded, group, &mut totals),
                    _ => rows_of::<V, true, 1>(&expanded, group, &mut totals),
                }
            }
            for (row, total) in (rows.0..rows.1).zip(&totals) {
                put::<V>(job, V::load(total.as_ptr()), row, panel);
            }
        }
    }
}

/// A stripe of R rows, few enough that what is expanded never leaves the registers.
/// # Safety
/// As `panels_of`; the stripe that begins at `row` has R rows.
#[inline(always)]
unsafe fn direct<V: Lanes, const BITS: usize, const OFFSET: u32, const SCALES: u8, const R: usize>(
    acts: &Activations,
    job: &Job<'_>,
    panels: (usize, usize),
    row: usize,
) {
    let matrix = job.matrix;
    let blocks = matrix.k() / BLOCK;
    let stripe = acts.stripe(row, blocks, 0, R);
    for panel in panels.0..panels.1 {
        // SAFETY: `panel` is below `panels()`, groups and blocks stay within k and the stripe.
        unsafe {
            let lines = matrix.lines.as_ptr().add(panel * matrix.panel_lines());
            let heads = lines.add(blocks * BITS).cast::<u8>();
            let mut acc = [V::splat(0.0); R];
            for first in (0..blocks).step_by(GROUP_BLOCKS) {
                ahead::<V, BITS>(lines, (heads, SCALES), first + AHEAD, GROUP_BLOCKS);
                let mut part = [V::splat(0.0); R];
                for b in first..blocks.min(first + GROUP_BLOCKS) {
                    block::<V, BITS, OFFSET, SCALES, R>(lines.add(b * BITS), (heads, b), stripe, &mut part);
                }
                for r in 0..R {
                    let scale = V::splat(*stripe.scales.add(first / GROUP_BLOCKS * R + r));
                    acc[r] = part[r].fma(scale, acc[r]);
                }
            }
            for r in 0..R {
                put::<V>(job, acc[r], row + r, panel);
            }
        }
    }
}

/// Blocks that few rows ask for before they get there.
const AHEAD: usize = 2 * GROUP_BLOCKS;

/// Asks for `count` blocks of a panel from block `first` on, so that memory works while the rows
/// before them are computed. Behind the end of the numbers are the scales, then the next panel.
#[inline(always)]
fn ahead<V: Lanes, const BITS: usize>(
    lines: *const Line,
    (heads, format): (*const u8, u8),
    first: usize,
    count: usize,
) {
    let numbers = lines.wrapping_add(first * BITS);
    for line in 0..count * BITS {
        V::prefetch(numbers.wrapping_add(line).cast());
    }
    let bytes = match format {
        ONE => Scales::One.bytes(),
        MIN => Scales::Min.bytes(),
        K => Scales::Super.bytes() * BLOCK / SUPER,
        _ => Scales::Signed.bytes() * BLOCK / SUPER,
    };
    for at in (0..count * bytes).step_by(size_of::<Line>()) {
        V::prefetch(heads.wrapping_add(first * bytes + at));
    }
}

/// Adds block `heads.1` of a panel, whose numbers begin at `lines`, to `part`.
/// # Safety
/// As `direct`.
#[inline(always)]
unsafe fn block<V: Lanes, const BITS: usize, const OFFSET: u32, const SCALES: u8, const R: usize>(
    lines: *const Line,
    heads: (*const u8, usize),
    stripe: Stripe,
    part: &mut [V; R],
) {
    // SAFETY: vouched for by the caller.
    unsafe {
        let words = stripe.words.add(heads.1 * R * PAIRS);
        let sums = stripe.sums.add(heads.1 * R);
        // What the offset of every number comes to is taken off beforehand; only Q6_K, whose sums
        // are of half a block, has its numbers changed.
        let whole = SCALES != SIX;
        let mut sum = [[V::splat_words(0); R]; 2];
        for r in 0..R {
            if whole && OFFSET > 0 {
                let offset = OFFSET as i32 * *sums.add(r) as i32;
                sum[0][r] = V::splat_words(offset.wrapping_neg() as u32);
            }
        }
        each_pair::<V, BITS>(lines, |pair, w| {
            let w = if whole { w } else { V::sub_pairs(w, both::<V>(OFFSET)) };
            let half = if whole { 0 } else { pair / (PAIRS / 2) };
            for r in 0..R {
                sum[half][r] = V::dot(sum[half][r], w, V::splat_words(*words.add(r * PAIRS + pair)));
            }
        });
        let (d, m) = scales::<V, SCALES>(heads.0, heads.1);
        for r in 0..R {
            part[r] = d[0].fma(V::from_words(sum[0][r]), part[r]);
            if !whole {
                part[r] = d[1].fma(V::from_words(sum[1][r]), part[r]);
            }
            if SCALES == MIN || SCALES == K {
                part[r] = m.fma(V::splat(*sums.add(r)), part[r]);
            }
        }
    }
}

/// The same number in both halves of every word.
#[inline(always)]
fn both<V: Lanes>(x: u32) -> V::Words {
    V::splat_words(x | x << 16)
}

/// Calls `work(pair, numbers)` for the 16 pairs of a block, offsets still on.
/// # Safety
/// `block` must have BITS lines.
#[inline(always)]
unsafe fn each_pair<V: Lanes, const BITS: usize>(block: *const Line, mut work: impl FnMut(usize, V::Words)) {
    // SAFETY: vouched for by the caller.
    unsafe {
        if BITS == 8 {
            for pair in 0..PAIRS {
                work(pair, V::load_pairs_i8(block.cast::<i8>().add(pair * 2 * LANES)));
            }
            return;
        }
        for line in 0..4 {
            let low = V::load_words(block.add(line).cast());
            let shifted =
                [low, V::shift_right::<4>(low), V::shift_right::<8>(low), V::shift_right::<12>(low)];
            let high = high_bits::<V, BITS>(block, line);
            for i in 0..4 {
                let low = V::and(shifted[i], both::<V>(15));
                work(4 * line + i, if BITS > 4 { V::or(low, high[i]) } else { low });
            }
        }
    }
}

/// What lies above the nibbles of the four pairs of line `line`, in its place.
/// # Safety
/// `block` must have BITS lines.
#[inline(always)]
unsafe fn high_bits<V: Lanes, const BITS: usize>(block: *const Line, line: usize) -> [V::Words; 4] {
    // SAFETY: vouched for by the caller.
    unsafe {
        match BITS {
            5 => {
                // Pair p's bit goes from p to 4; `line` is a constant once the loop is unrolled.
                let all = V::load_words(block.add(4).cast());
                let near = match line {
                    0 => V::shift_left::<4>(all),
                    1 => all,
                    2 => V::shift_right::<4>(all),
                    _ => V::shift_right::<8>(all),
                };
                let near =
                    [near, V::shift_right::<1>(near), V::shift_right::<2>(near), V::shift_right::<3>(near)];
                near.map(|words| V::and(words, both::<V>(16)))
            }
            6 => {
                let all = V::load_words(block.add(4 + line / 2).cast());
                let near = if line.is_multiple_of(2) { all } else { V::shift_right::<8>(all) };
                let near =
                    [V::shift_left::<4>(near), V::shift_left::<2>(near), near, V::shift_right::<2>(near)];
                near.map(|words| V::and(words, both::<V>(48)))
            }
            _ => [both::<V>(0); 4],
        }
    }
}

/// Scales (of each half if the format is Q6_K, else the first counts) and minima of block `block`.
/// # Safety
/// `heads` must be the panel's scales of format SCALES and have those of the block.
#[inline(always)]
unsafe fn scales<V: Lanes, const SCALES: u8>(heads: *const u8, block: usize) -> ([V; 2], V) {
    let (unit, sub) = (block * BLOCK / SUPER, block % (SUPER / BLOCK));
    let none = V::splat(0.0);
    // SAFETY: vouched for by the caller.
    unsafe {
        match SCALES {
            ONE => ([V::load_f16(heads.add(block * Scales::One.bytes()).cast()), none], none),
            MIN => {
                let d = heads.add(block * Scales::Min.bytes());
                ([V::load_f16(d.cast()), none], V::load_f16(d.add(2 * LANES).cast()))
            }
            K => {
                let d = heads.add(unit * Scales::Super.bytes());
                let bytes = d.add(4 * LANES + sub * 2 * LANES);
                let min = V::load_f16(d.add(2 * LANES).cast()).mul(V::load_u8(bytes.add(LANES)));
                ([V::load_f16(d.cast()).mul(V::load_u8(bytes)), none], none.sub(min))
            }
            _ => {
                let d = heads.add(unit * Scales::Signed.bytes());
                let bytes = d.add(2 * LANES + sub * 2 * LANES).cast::<i8>();
                let d = V::load_f16(d.cast());
                ([d.mul(V::load_i8(bytes)), d.mul(V::load_i8(bytes.add(LANES)))], none)
            }
        }
    }
}

/// What meets the expanded blocks.
#[derive(Clone, Copy)]
struct Group {
    /// Blocks that are expanded.
    count: usize,
    /// Pairs under one scale. Known, but not to the compiler: it would unroll the loop and run out of
    /// registers.
    pairs: usize,
    /// The stripe from the first of the blocks on.
    acts: Stripe,
}

/// All rows of the stripe, as many at a time as the registers hold. Blocks have HALVES scales.
/// # Safety
/// As `stripe`.
#[inline(always)]
unsafe fn rows_of<V: Lanes, const MIN: bool, const HALVES: usize>(
    weights: &Expanded,
    group: Group,
    totals: &mut [[f32; LANES]; STRIPE],
) {
    let (mut row, rows) = (0, group.acts.rows);
    // SAFETY: rows from `row` on exist.
    unsafe {
        let mut total = totals.as_mut_ptr().cast::<f32>();
        if V::WIDE {
            while row + 12 <= rows {
                tile::<V, 12, MIN, HALVES>(weights, group, row, total);
                (row, total) = (row + 12, total.add(12 * LANES));
            }
        }
        while row + 4 <= rows {
            tile::<V, 4, MIN, HALVES>(weights, group, row, total);
            (row, total) = (row + 4, total.add(4 * LANES));
        }
        match rows - row {
            3 => tile::<V, 3, MIN, HALVES>(weights, group, row, total),
            2 => tile::<V, 2, MIN, HALVES>(weights, group, row, total),
            1 => tile::<V, 1, MIN, HALVES>(weights, group, row, total),
            _ => {}
        }
    }
}

/// R rows of the stripe, from `row` on, by one panel.
/// # Safety
/// As `stripe`; `total` must take R x 16 floats.
#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize, const MIN: bool, const HALVES: usize>(
    weights: &Expanded,
    group: Group,
    row: usize,
    total: *mut f32,
) {
    let Group { count, pairs, acts } = group;
    // SAFETY: the rows exist, so their words, sums and scales do; the group is expanded.
    unsafe {
        let mut part = [V::splat(0.0); R];
        for b in 0..count {
            let words = acts.words.add((b * acts.rows + row) * PAIRS);
            for half in 0..HALVES {
                let mut sum = [V::splat_words(0); R];
                let mut weight = weights.pairs.as_ptr().add(b * PAIRS + half * pairs).cast::<u32>();
                let mut words = words.add(half * pairs);
                for _ in 0..pairs {
                    let w = V::load_words(weight);
                    for r in 0..R {
                        sum[r] = V::dot(sum[r], w, V::splat_words(*words.add(r * PAIRS)));
                    }
                    (weight, words) = (weight.add(LANES), words.add(1));
                }
                let d = V::load(weights.d[b * HALVES + half].as_ptr());
                for r in 0..R {
                    part[r] = d.fma(V::from_words(sum[r]), part[r]);
                }
            }
            if MIN {
                let m = V::load(weights.m[b].as_ptr());
                let sums = acts.sums.add(b * acts.rows + row);
                for r in 0..R {
                    part[r] = m.fma(V::splat(*sums.add(r)), part[r]);
                }
            }
        }
        for r in 0..R {
            let at = total.add(r * LANES);
            part[r].fma(V::splat(*acts.scales.add(row + r)), V::load(at)).store(at);
        }
    }
}

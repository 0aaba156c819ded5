//! Matrix products of f32 rows with packed weights.
//!
//! The definition, for each output (r, c), with blocks b of the format in order along K:
//!   q = 0; for k in b, in order: q = fma(a[k], float(quant[k]), q)
//!   acc = fma(d, q, acc); and if the format has minima: acc = fma(m, s, acc)
//! where s is the sum of a over the 32 k of the block: lane j is a[j] + a[j + 16], then the tree of
//! `Lanes::sum`. acc begins at 0. Q4_0, Q5_0 and Q6_K have their offset in the whole number. Float
//! formats have blocks of 32 with d = 1: acc = q + acc. A block shorter than 32 at the end of K
//! (floats only) is just shorter.
//!
//! Rows and columns are independent of each other; how they are tiled never shows in a result.
//! Must never split a reduction over K among threads or lanes.

// Counted loops with constant bounds are what the compiler keeps in registers.
#![allow(clippy::needless_range_loop)]

use crate::isa::Kernel;
use crate::lanes::{LANES, Lanes};
use crate::packed::{Layout, Line, Matrix};
use crate::rows::{Gate, apply_gate};
use crate::team::{Racy, Team};

/// What happens to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The output is overwritten.
    Set,
    /// The output becomes output + product.
    Add,
}

/// One matrix and where its product goes: `out` is rows x n.
pub struct Product<'a> {
    pub matrix: &'a Matrix,
    pub out: &'a mut [f32],
    pub store: Store,
}

/// Panels that one thread computes in one go.
const UNIT: usize = 4;
/// Parts per thread, so that a thread that is held up does not hold up the others.
const PARTS: usize = 6;

/// Multiplies the same `rows` rows of `input` (rows x k) with several matrices. `sums` is scratch.
/// Panics if a shape does not fit.
pub fn multiply(
    team: &mut Team,
    sums: &mut Vec<f32>,
    rows: usize,
    input: &[f32],
    products: &mut [Product<'_>],
) {
    let Some(k) = products.first().map(|product| product.matrix.k()) else { return };
    for product in products.iter() {
        assert_eq!((product.matrix.k(), product.out.len()), (k, rows * product.matrix.n()), "shape");
    }
    let min = products.iter().any(|product| product.matrix.layout.has_min());
    let input = Input::new(team, sums, rows, k, (input, min));
    let jobs: Vec<Job<'_>> = products
        .iter_mut()
        .map(|product| Job {
            matrix: product.matrix,
            out: Racy(product.out.as_mut_ptr()),
            store: product.store,
        })
        .collect();
    let units: Vec<usize> = jobs.iter().map(|job| job.matrix.panels().div_ceil(UNIT)).collect();
    let total: usize = units.iter().sum();
    let isa = team.isa();
    each_range(team, total, |mut first, end| {
        let mut base = 0;
        for (job, units) in jobs.iter().zip(&units) {
            let last = end.min(base + units);
            if first < last {
                isa.run(Range { input: &input, job, first: first - base, end: last - base });
                first = last;
            }
            base += units;
        }
    });
}

/// The gated half of a feed-forward layer: `gate` becomes act(input x gate matrix) * (input x up
/// matrix), act being `kind`. Both buffers are rows x n. Panics if a shape does not fit.
pub fn gated(
    team: &mut Team,
    sums: &mut Vec<f32>,
    (rows, input): (usize, &[f32]),
    matrices: [&Matrix; 2],
    [gate, up]: [&mut [f32]; 2],
    kind: Gate,
) {
    let (k, n) = (matrices[0].k(), matrices[0].n());
    assert_eq!((matrices[1].k(), matrices[1].n()), (k, n), "shape");
    assert!(gate.len() == rows * n && up.len() == rows * n, "shape");
    let min = matrices.iter().any(|matrix| matrix.layout.has_min());
    let input = Input::new(team, sums, rows, k, (input, min));
    let jobs = [
        Job { matrix: matrices[0], out: Racy(gate.as_mut_ptr()), store: Store::Set },
        Job { matrix: matrices[1], out: Racy(up.as_mut_ptr()), store: Store::Set },
    ];
    let isa = team.isa();
    each_range(team, matrices[0].panels().div_ceil(UNIT), |first, end| {
        for job in &jobs {
            isa.run(Range { input: &input, job, first, end });
        }
        let columns = first * UNIT * LANES..n.min(end * UNIT * LANES);
        for row in 0..rows {
            let at = row * n + columns.start;
            // SAFETY: `at..at + len` is a piece of row `row` in both buffers, of columns that no
            // other part of this job touches.
            let (gate, up) = unsafe {
                (
                    std::slice::from_raw_parts_mut(jobs[0].out.get().add(at), columns.len()),
                    std::slice::from_raw_parts(jobs[1].out.get().add(at), columns.len()),
                )
            };
            apply_gate(isa, kind, gate, up);
        }
    });
}

/// Calls `work(first, end)` for ranges that together are `0..units`.
fn each_range(team: &mut Team, units: usize, work: impl Fn(usize, usize) + Sync) {
    let parts = if team.threads() == 1 { 1 } else { units.min(team.threads() * PARTS) };
    team.run(parts, |_, part| work(units * part / parts, units * (part + 1) / parts));
}

struct Input<'a> {
    rows: usize,
    k: usize,
    data: &'a [f32],
    /// rows x (k / 32); empty if no matrix needs them
    sums: &'a [f32],
}

impl<'a> Input<'a> {
    fn new(
        team: &Team,
        sums: &'a mut Vec<f32>,
        rows: usize,
        k: usize,
        (data, min): (&'a [f32], bool),
    ) -> Input<'a> {
        assert_eq!(data.len(), rows * k, "shape");
        sums.clear();
        if min {
            sums.resize(rows * (k / 32), 0.0);
            team.isa().run(BlockSums { data, sums });
        }
        Input { rows, k, data, sums }
    }
}

struct BlockSums<'a> {
    data: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for BlockSums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for (block, sum) in self.data.chunks_exact(32).zip(self.sums) {
            // SAFETY: the chunk has 32 elements.
            let (low, high) = unsafe { (V::load(block.as_ptr()), V::load(block.as_ptr().add(LANES))) };
            *sum = low.add(high).sum();
        }
    }
}

struct Job<'a> {
    matrix: &'a Matrix,
    out: Racy<f32>,
    store: Store,
}

/// Units `first..end` of one job, all rows.
struct Range<'a> {
    input: &'a Input<'a>,
    job: &'a Job<'a>,
    first: usize,
    end: usize,
}

impl Kernel for Range<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // SAFETY: `multiply` and `gated` checked the shapes; the columns of the range are this
        // part's alone.
        unsafe {
            match self.job.matrix.layout {
                Layout::Nibble { offset, min: true } => self.units::<V, Nibble<true>>(offset),
                Layout::Nibble { offset, min: false } => self.units::<V, Nibble<false>>(offset),
                Layout::Byte { min: true } => self.units::<V, Byte<true, 32>>(0),
                Layout::Byte { min: false } => self.units::<V, Byte<false, 32>>(0),
                Layout::Byte16 => self.units::<V, Byte<false, 16>>(0),
                Layout::F16 => self.units::<V, Half>(0),
                Layout::Bf16 => self.units::<V, Brain>(0),
                Layout::F32 => self.units::<V, Single>(0),
            }
        }
    }
}

impl Range<'_> {
    /// # Safety
    /// Shapes checked, columns exclusive, `F` is the matrix's format, the CPU fits `V`.
    #[inline(always)]
    unsafe fn units<V: Lanes, F: Format>(&self, offset: i32) {
        let panels = self.job.matrix.panels();
        let table = V::table(offset);
        let tail = self.input.rows / 4 * 4;
        for unit in self.first..self.end {
            let span = (unit * UNIT, panels.min(unit * UNIT + UNIT));
            // SAFETY: rows below `rows`, panels below `panels`; the rest is vouched for.
            unsafe {
                // As many accumulators as the registers hold.
                if V::WIDE {
                    self.sweep::<V, F, 8, 2>(table, span, (0, tail / 8 * 8));
                    self.sweep::<V, F, 4, 2>(table, span, (tail / 8 * 8, tail));
                    self.sweep::<V, F, 2, 4>(table, span, (tail, self.input.rows / 2 * 2));
                    self.sweep::<V, F, 1, 4>(table, span, (self.input.rows / 2 * 2, self.input.rows));
                } else {
                    self.sweep::<V, F, 4, 1>(table, span, (0, tail));
                    self.sweep::<V, F, 1, 4>(table, span, (tail, self.input.rows));
                }
            }
        }
    }

    /// Rows `rows.0..rows.1` (a multiple of R) by the panels of `span`, C panels at a time.
    /// # Safety
    /// As `units`.
    #[inline(always)]
    unsafe fn sweep<V: Lanes, F: Format, const R: usize, const C: usize>(
        &self,
        table: V::Table,
        span: (usize, usize),
        rows: (usize, usize),
    ) {
        if rows.0 == rows.1 {
            return;
        }
        let mut panel = span.0;
        // SAFETY: vouched for by the caller.
        unsafe {
            while panel + C <= span.1 {
                for row in (rows.0..rows.1).step_by(R) {
                    self.tile::<V, F, R, C>(table, row, panel);
                }
                panel += C;
            }
            while panel < span.1 {
                for row in (rows.0..rows.1).step_by(R) {
                    self.tile::<V, F, R, 1>(table, row, panel);
                }
                panel += 1;
            }
        }
    }

    /// R rows by C panels.
    /// # Safety
    /// As `units`.
    #[inline(always)]
    unsafe fn tile<V: Lanes, F: Format, const R: usize, const C: usize>(
        &self,
        table: V::Table,
        row: usize,
        panel: usize,
    ) {
        let (k, lines) = (self.input.k, self.job.matrix.panel_lines());
        let mut acc = [[V::splat(0.0); C]; R];
        // SAFETY: `row + R <= rows` and `panel + C <= panels`, so every pointer stays in its array:
        // input rows have k elements, sums k / 32, panels `panel_lines` lines.
        unsafe {
            let mut at: [*const Line; C] = [self.job.matrix.lines.as_ptr().add(panel * lines); C];
            for c in 0..C {
                at[c] = at[c].add(c * lines);
            }
            let a = self.input.data.as_ptr().add(row * k);
            let sums = self.input.sums.as_ptr().wrapping_add(row * (k / 32));
            for block in 0..k.div_ceil(F::BLOCK) {
                let start = block * F::BLOCK;
                let numbers = if F::SCALED { F::BLOCK } else { F::BLOCK.min(k - start) };
                let q = quants::<V, F, R, C>(table, (a.add(start), k), at, numbers);
                for c in 0..C {
                    for r in 0..R {
                        acc[r][c] = if F::SCALED {
                            V::load(at[c].cast()).fma(q[r][c], acc[r][c])
                        } else {
                            q[r][c].add(acc[r][c])
                        };
                        if F::MIN {
                            let s = V::splat(*sums.add(r * (k / 32) + block));
                            acc[r][c] = V::load(at[c].add(1).cast()).fma(s, acc[r][c]);
                        }
                    }
                    at[c] = at[c].add(F::HEAD + F::BODY);
                }
            }
            for r in 0..R {
                for c in 0..C {
                    self.put(acc[r][c], row + r, panel + c);
                }
            }
        }
    }

    /// # Safety
    /// As `units`.
    #[inline(always)]
    unsafe fn put<V: Lanes>(&self, value: V, row: usize, panel: usize) {
        let n = self.job.matrix.n();
        let count = LANES.min(n - panel * LANES);
        // SAFETY: `count` elements of row `row` from column `panel * 16` on, ours alone.
        unsafe {
            let out = self.job.out.get().add(row * n + panel * LANES);
            let mut whole = [0f32; LANES];
            let (target, partial) = if count == LANES { (out, false) } else { (whole.as_mut_ptr(), true) };
            if partial {
                target.copy_from_nonoverlapping(out, count);
            }
            match self.job.store {
                Store::Set => value.store(target),
                Store::Add => V::load(target).add(value).store(target),
            }
            if partial {
                out.copy_from_nonoverlapping(target, count);
            }
        }
    }
}

/// The sums of products within one block: `q` of the definition for R rows (`a.1` elements apart)
/// by C panels.
/// # Safety
/// `at` must point to a block of format `F` in each panel, `a.0` to `numbers` elements in each row.
#[inline(always)]
unsafe fn quants<V: Lanes, F: Format, const R: usize, const C: usize>(
    table: V::Table,
    a: (*const f32, usize),
    at: [*const Line; C],
    numbers: usize,
) -> [[V; C]; R] {
    let mut q = [[V::splat(0.0); C]; R];
    // SAFETY: vouched for by the caller; `numbers` is a multiple of STEP.
    unsafe {
        let mut k = 0;
        while k < numbers {
            let mut words = [F::words::<V>(at[0], k); C];
            for c in 1..C {
                words[c] = F::words::<V>(at[c], k);
            }
            for _ in 0..F::STEP {
                let mut w = [V::splat(0.0); C];
                for c in 0..C {
                    w[c] = F::next::<V>(&mut words[c], table);
                }
                for r in 0..R {
                    let x = V::splat(*a.0.add(r * a.1 + k));
                    for c in 0..C {
                        q[r][c] = x.fma(w[c], q[r][c]);
                    }
                }
                k += 1;
            }
        }
    }
    q
}

/// How the numbers of a block become lanes.
trait Format {
    /// Numbers, lines before them, lines of them.
    const BLOCK: usize;
    const HEAD: usize;
    const BODY: usize;
    const SCALED: bool = Self::HEAD > 0;
    const MIN: bool = Self::HEAD > 1;
    /// Numbers that `words` fetches at a time.
    const STEP: usize;
    type Words<V: Lanes>: Copy;

    /// # Safety
    /// `block` must point to a block, `k` be a multiple of STEP below BLOCK.
    unsafe fn words<V: Lanes>(block: *const Line, k: usize) -> Self::Words<V>;

    /// # Safety
    /// At most STEP times after `words`.
    unsafe fn next<V: Lanes>(words: &mut Self::Words<V>, table: V::Table) -> V;
}

struct Nibble<const MIN: bool>;

impl<const MIN: bool> Format for Nibble<MIN> {
    const BLOCK: usize = 32;
    const HEAD: usize = 1 + MIN as usize;
    const BODY: usize = 4;
    const STEP: usize = 8;
    type Words<V: Lanes> = V::Words;

    #[inline(always)]
    unsafe fn words<V: Lanes>(block: *const Line, k: usize) -> V::Words {
        // SAFETY: line k / 8 of the numbers lies in the block.
        unsafe { V::load_words(block.add(Self::HEAD + k / 8).cast()) }
    }

    #[inline(always)]
    unsafe fn next<V: Lanes>(words: &mut V::Words, table: V::Table) -> V {
        V::nibble(words, table)
    }
}

/// Formats whose numbers are read one k (16 columns) at a time from memory.
macro_rules! direct {
    ($name:ident $(<$min:ident, $block:ident>)?, $numbers:expr, $head:expr, $body:expr, $element:ty, $load:ident) => {
        impl$(<const $min: bool, const $block: usize>)? Format for $name$(<$min, $block>)? {
            const BLOCK: usize = $numbers;
            const HEAD: usize = $head;
            const BODY: usize = $body;
            const STEP: usize = 1;
            type Words<V: Lanes> = *const $element;

            #[inline(always)]
            unsafe fn words<V: Lanes>(block: *const Line, k: usize) -> *const $element {
                // SAFETY: number k of the block, 16 columns wide.
                unsafe { block.add(Self::HEAD).cast::<$element>().add(k * LANES) }
            }

            #[inline(always)]
            unsafe fn next<V: Lanes>(words: &mut *const $element, _table: V::Table) -> V {
                // SAFETY: as made by `words`.
                unsafe { V::$load(*words) }
            }
        }
    };
}

struct Byte<const MIN: bool, const BLOCK: usize>;
struct Half;
struct Brain;
struct Single;

direct!(Byte<MIN, BLOCK>, BLOCK, 1 + MIN as usize, BLOCK / 4, i8, load_i8);
direct!(Half, 32, 0, 16, u16, load_f16);
direct!(Brain, 32, 0, 16, u16, load_bf16);
direct!(Single, 32, 0, 32, f32, load);

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;

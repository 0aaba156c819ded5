//! Matrix products of rows of activations with packed weights.
//!
//! Quantised weights meet 16-bit activations (`int` has the definition), weights that are floats meet
//! f32 activations (`float`). Rows and columns are independent of each other; how they are tiled or
//! shared among threads never shows in a result.
//!
//! Must never split a reduction over K among threads or lanes.

mod float;
mod int;

use crate::activations::{Activations, STRIPE};
use crate::isa::Kernel;
use crate::lanes::{LANES, Lanes};
use crate::packed::{Layout, Matrix};
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

/// Parts per thread, so that a thread that is held up does not hold up the others.
const PARTS: usize = 6;

/// Multiplies the same `rows` rows of `input` (rows x k) with several matrices. `acts` is scratch.
/// Panics if a shape does not fit.
pub fn multiply(
    team: &mut Team,
    acts: &mut Activations,
    rows: usize,
    input: &[f32],
    products: &mut [Product<'_>],
) {
    let Some(k) = products.first().map(|product| product.matrix.k()) else { return };
    for product in products.iter() {
        assert_eq!((product.matrix.k(), product.out.len()), (k, rows * product.matrix.n()), "shape");
    }
    assert_eq!(input.len(), rows * k, "shape");
    if products.iter().any(|product| matches!(product.matrix.layout, Layout::Quants(_))) {
        acts.fill(team, rows, k, input);
    }
    let jobs: Vec<Job<'_>> = products
        .iter_mut()
        .map(|product| Job {
            matrix: product.matrix,
            out: Racy(product.out.as_mut_ptr()),
            store: product.store,
        })
        .collect();
    let total = jobs.iter().map(|job| job.matrix.panels()).sum();
    let (isa, acts) = (team.isa(), &*acts);
    each_range(team, rows, total, |rows, mut first, end| {
        let mut base = 0;
        for job in &jobs {
            let last = end.min(base + job.matrix.panels());
            if first < last {
                isa.run(Range { acts, input, job, rows, panels: (first - base, last - base) });
                first = last;
            }
            base += job.matrix.panels();
        }
    });
}

/// The gated half of a feed-forward layer: `gate` becomes act(input x gate matrix) * (input x up
/// matrix), act being `kind`. Both buffers are rows x n. Panics if a shape does not fit.
pub fn gated(
    team: &mut Team,
    acts: &mut Activations,
    (rows, input): (usize, &[f32]),
    matrices: [&Matrix; 2],
    [gate, up]: [&mut [f32]; 2],
    kind: Gate,
) {
    let (k, n) = (matrices[0].k(), matrices[0].n());
    assert_eq!((matrices[1].k(), matrices[1].n()), (k, n), "shape");
    assert!(gate.len() == rows * n && up.len() == rows * n && input.len() == rows * k, "shape");
    if matrices.iter().any(|matrix| matches!(matrix.layout, Layout::Quants(_))) {
        acts.fill(team, rows, k, input);
    }
    let jobs = [
        Job { matrix: matrices[0], out: Racy(gate.as_mut_ptr()), store: Store::Set },
        Job { matrix: matrices[1], out: Racy(up.as_mut_ptr()), store: Store::Set },
    ];
    let (isa, acts) = (team.isa(), &*acts);
    each_range(team, rows, matrices[0].panels(), |rows, first, end| {
        for job in &jobs {
            isa.run(Range { acts, input, job, rows, panels: (first, end) });
        }
        let columns = first * LANES..n.min(end * LANES);
        for row in rows.0..rows.1 {
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

/// Calls `work(rows, first, end)` for stripes of rows and ranges of panels that together are all
/// `rows` and `0..panels`.
fn each_range(
    team: &mut Team,
    rows: usize,
    panels: usize,
    work: impl Fn((usize, usize), usize, usize) + Sync,
) {
    let stripes = rows.div_ceil(STRIPE);
    let wanted = if team.threads() == 1 { 1 } else { (team.threads() * PARTS).div_ceil(stripes.max(1)) };
    let parts = panels.min(wanted);
    team.run(stripes * parts, |_, part| {
        let (stripe, part) = (part / parts, part % parts);
        let first = stripe * STRIPE;
        let last = rows.min(first + STRIPE);
        work((first, last), panels * part / parts, panels * (part + 1) / parts);
    });
}

struct Job<'a> {
    matrix: &'a Matrix,
    out: Racy<f32>,
    store: Store,
}

/// Some panels of one job for some rows.
struct Range<'a> {
    acts: &'a Activations,
    input: &'a [f32],
    job: &'a Job<'a>,
    rows: (usize, usize),
    panels: (usize, usize),
}

impl Kernel for Range<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Range { acts, input, job, rows, panels } = self;
        // SAFETY: `multiply` and `gated` checked the shapes and filled `acts`; the rows and columns
        // of the range are this part's alone.
        unsafe {
            match job.matrix.layout {
                Layout::Quants(quants) => int::stripe::<V>(acts, job, quants, panels, rows),
                _ => float::stripe::<V>(input, job, panels, rows),
            }
        }
    }
}

/// Stores 16 columns of a row of a product.
/// # Safety
/// The row and the panel must exist and be this part's alone.
#[inline(always)]
unsafe fn put<V: Lanes>(job: &Job<'_>, value: V, row: usize, panel: usize) {
    let n = job.matrix.n();
    let count = LANES.min(n - panel * LANES);
    // SAFETY: `count` elements of row `row` from column `panel * 16` on, ours alone.
    unsafe {
        let out = job.out.get().add(row * n + panel * LANES);
        let mut whole = [0f32; LANES];
        let (target, partial) = if count == LANES { (out, false) } else { (whole.as_mut_ptr(), true) };
        if partial {
            target.copy_from_nonoverlapping(out, count);
        }
        match job.store {
            Store::Set => value.store(target),
            Store::Add => V::load(target).add(value).store(target),
        }
        if partial {
            out.copy_from_nonoverlapping(target, count);
        }
    }
}

#[cfg(test)]
mod tests;

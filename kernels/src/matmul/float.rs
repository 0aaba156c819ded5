//! Products of weights that are floats (F16, BF16, F32) with f32 activations.
//!
//! The definition, for each output (r, c): acc = 0; for each 32 k, in order (the last may be fewer):
//!   q = 0; for each k, in order: q = fma(a[k], w[k], q)
//!   acc = q + acc
//! Must never split a reduction over K.

// Counted loops with constant bounds are what the compiler keeps in registers.
#![allow(clippy::needless_range_loop)]

use super::{Job, put};
use crate::activations::BLOCK;
use crate::lanes::{LANES, Lanes};
use crate::packed::{Layout, Line};

/// Panels `panels.0..panels.1` of a float matrix for rows `rows.0..rows.1` of `input` (rows x k).
/// # Safety
/// Shapes checked, the outputs exclusive, the CPU fits `V`.
#[inline(always)]
pub(super) unsafe fn stripe<V: Lanes>(
    input: &[f32],
    job: &Job<'_>,
    panels: (usize, usize),
    rows: (usize, usize),
) {
    // SAFETY: vouched for by the caller.
    unsafe {
        match job.matrix.layout {
            Layout::F16 => panels_of::<V, Half>(input, job, panels, rows),
            Layout::Bf16 => panels_of::<V, Brain>(input, job, panels, rows),
            _ => panels_of::<V, Single>(input, job, panels, rows),
        }
    }
}

/// # Safety
/// As `stripe`; `F` is the matrix's format.
#[inline(always)]
unsafe fn panels_of<V: Lanes, F: Format>(
    input: &[f32],
    job: &Job<'_>,
    panels: (usize, usize),
    rows: (usize, usize),
) {
    let input = input.as_ptr();
    // SAFETY: rows and panels exist; the rest is vouched for.
    unsafe {
        // As many accumulators as the registers hold.
        if V::WIDE {
            let eight = rows.0 + (rows.1 - rows.0) / 8 * 8;
            sweep::<V, F, 8, 2>(input, job, panels, (rows.0, eight));
            sweep::<V, F, 1, 4>(input, job, panels, (eight, rows.1));
        } else {
            let four = rows.0 + (rows.1 - rows.0) / 4 * 4;
            sweep::<V, F, 4, 1>(input, job, panels, (rows.0, four));
            sweep::<V, F, 1, 4>(input, job, panels, (four, rows.1));
        }
    }
}

/// Rows `rows.0..rows.1` (a multiple of R), C panels at a time.
/// # Safety
/// As `stripe`.
#[inline(always)]
unsafe fn sweep<V: Lanes, F: Format, const R: usize, const C: usize>(
    input: *const f32,
    job: &Job<'_>,
    panels: (usize, usize),
    rows: (usize, usize),
) {
    let mut panel = panels.0;
    // SAFETY: vouched for by the caller.
    unsafe {
        while panel < panels.1 && rows.0 < rows.1 {
            let whole = panel + C <= panels.1;
            for row in (rows.0..rows.1).step_by(R) {
                if whole {
                    tile::<V, F, R, C>(input, job, row, panel);
                } else {
                    tile::<V, F, R, 1>(input, job, row, panel);
                }
            }
            panel += if whole { C } else { 1 };
        }
    }
}

/// R rows by C panels.
/// # Safety
/// As `stripe`.
#[inline(always)]
unsafe fn tile<V: Lanes, F: Format, const R: usize, const C: usize>(
    input: *const f32,
    job: &Job<'_>,
    row: usize,
    panel: usize,
) {
    let (k, lines) = (job.matrix.k(), job.matrix.panel_lines());
    let mut acc = [[V::splat(0.0); C]; R];
    // SAFETY: `row + R` rows and `panel + C` panels exist, so every pointer stays in its array.
    unsafe {
        let panels = job.matrix.lines.as_ptr().add(panel * lines);
        let a = input.add(row * k);
        for start in (0..k).step_by(BLOCK) {
            let mut q = [[V::splat(0.0); C]; R];
            for at in start..k.min(start + BLOCK) {
                let mut w = [V::splat(0.0); C];
                for c in 0..C {
                    w[c] = F::load::<V>(panels.add(c * lines), at);
                }
                for r in 0..R {
                    let x = V::splat(*a.add(r * k + at));
                    for c in 0..C {
                        q[r][c] = x.fma(w[c], q[r][c]);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    acc[r][c] = q[r][c].add(acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                put::<V>(job, acc[r][c], row + r, panel + c);
            }
        }
    }
}

/// A kind of float in memory.
trait Format {
    /// Row `k` of a panel.
    /// # Safety
    /// The panel must have that row.
    unsafe fn load<V: Lanes>(panel: *const Line, k: usize) -> V;
}

macro_rules! format {
    ($name:ident, $element:ty, $load:ident) => {
        struct $name;

        impl Format for $name {
            #[inline(always)]
            unsafe fn load<V: Lanes>(panel: *const Line, k: usize) -> V {
                // SAFETY: vouched for by the caller.
                unsafe { V::$load(panel.cast::<$element>().add(k * LANES)) }
            }
        }
    };
}

format!(Half, u16, load_f16);
format!(Brain, u16, load_bf16);
format!(Single, f32, load);

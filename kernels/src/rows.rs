//! What is done to rows between matrix products: norms, gating, rotation.
//!
//! Orders: sums over a row run in 16 lanes (lane j takes elements j, j + 16, … by fused
//! multiply-add), then in the tree of `Lanes::sum`; a last piece shorter than 16 is filled with
//! zeros. Rows never influence each other.

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::team::Team;

/// Rows below this are not worth a second thread.
const ROWS_PER_PART: usize = 8;

/// Root-mean-square norm: out = (x * (1 / sqrt(sum(x^2) / len + eps))) * weight, per row.
/// `x` and `out` are rows x len(weight). Panics if a shape does not fit.
pub fn rms_norm(team: &mut Team, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && width > 0 && x.len().is_multiple_of(width), "shape");
    let isa = team.isa();
    team.each_piece(out, width * ROWS_PER_PART, |part, out| {
        let start = part * width * ROWS_PER_PART;
        let rows = x[start..start + out.len()].chunks_exact(width);
        for (x, out) in rows.zip(out.chunks_exact_mut(width)) {
            isa.run(Norm { x, weight, eps, out });
        }
    });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

/// The last piece of a row, filled up with zeros.
#[inline(always)]
fn padded<V: Lanes>(piece: &[f32]) -> V {
    let mut whole = [0f32; LANES];
    whole[..piece.len()].copy_from_slice(piece);
    // SAFETY: 16 elements.
    unsafe { V::load(whole.as_ptr()) }
}

impl Kernel for Norm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mut sum = V::splat(0.0);
        let pieces = self.x.chunks_exact(LANES);
        let rest = pieces.remainder();
        for piece in pieces {
            // SAFETY: the piece has 16 elements.
            let x = unsafe { V::load(piece.as_ptr()) };
            sum = x.fma(x, sum);
        }
        if !rest.is_empty() {
            let x = padded::<V>(rest);
            sum = x.fma(x, sum);
        }
        let scale = 1.0 / (sum.sum() / self.x.len() as f32 + self.eps).sqrt();
        for ((x, w), out) in self.x.iter().zip(self.weight).zip(self.out) {
            *out = (x * scale) * w;
        }
    }
}

/// gate = (gate / (1 + e^-gate)) * up.
pub(crate) fn silu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    isa.run(Silu { gate, up });
}

struct Silu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

#[inline(always)]
fn silu_lanes<V: Lanes>(gate: V, up: V) -> V {
    let one = V::splat(1.0);
    gate.div(math::exp(V::splat(0.0).sub(gate)).add(one)).mul(up)
}

impl Kernel for Silu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let whole = self.gate.len() / LANES * LANES;
        let (gate, gate_rest) = self.gate.split_at_mut(whole);
        let (up, up_rest) = self.up.split_at(whole);
        for (gate, up) in gate.chunks_exact_mut(LANES).zip(up.chunks_exact(LANES)) {
            // SAFETY: both pieces have 16 elements.
            unsafe { silu_lanes(V::load(gate.as_ptr()), V::load(up.as_ptr())).store(gate.as_mut_ptr()) };
        }
        if !gate_rest.is_empty() {
            let mut last = [0f32; LANES];
            let y = silu_lanes::<V>(padded(gate_rest), padded(up_rest));
            // SAFETY: 16 elements.
            unsafe { y.store(last.as_mut_ptr()) };
            gate_rest.copy_from_slice(&last[..gate_rest.len()]);
        }
    }
}

/// Angular steps of rotary position embedding: base^(-2i / dim) for i in 0..dim / 2.
pub fn rope_steps(base: f32, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| math::pow_f64(f64::from(base), -2.0 * i as f64 / dim as f64)).collect()
}

/// (cosine, sine) pairs for one position: `out` takes as many pairs as there are steps.
pub fn rope_angles(steps: &[f64], position: u32, out: &mut [[f32; 2]]) {
    for (step, out) in steps.iter().zip(out) {
        let (sine, cosine) = math::sin_cos_f64(f64::from(position) * step);
        *out = [cosine as f32, sine as f32];
    }
}

/// Rotates neighbouring pairs (x0, x1) of the first 2 * pairs dimensions of each head:
/// (x0 c - x1 s, x1 c + x0 s), each product and sum rounded. `x` is rows x (heads x dim), `angles`
/// rows x pairs. Panics if a shape does not fit.
pub fn rope(team: &mut Team, x: &mut [f32], dim: usize, width: usize, angles: &[[f32; 2]]) {
    let rows = x.len() / width;
    assert!(rows * width == x.len() && width.is_multiple_of(dim) && rows > 0, "shape");
    let pairs = angles.len() / rows;
    assert!(pairs * rows == angles.len() && 2 * pairs <= dim, "shape");
    team.each_piece(x, width * ROWS_PER_PART, |part, x| {
        for (i, row) in x.chunks_exact_mut(width).enumerate() {
            let at = (part * ROWS_PER_PART + i) * pairs;
            for head in row.chunks_exact_mut(dim) {
                for (pair, [cosine, sine]) in
                    head.as_chunks_mut::<2>().0.iter_mut().zip(&angles[at..at + pairs])
                {
                    let [x0, x1] = *pair;
                    *pair = [x0 * cosine - x1 * sine, x1 * cosine + x0 * sine];
                }
            }
        }
    });
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;

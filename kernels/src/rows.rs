//! What is done to rows between matrix products: norms, gating, biases, caps, rotation.
//!
//! Orders: sums over a row run in 16 lanes (lane j takes elements j, j + 16, … by fused
//! multiply-add), then in the tree of `Lanes::sum`; a last piece shorter than 16 is filled with
//! zeros. Everything else is done element by element.
//! Must never let one row influence another.

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::team::Team;

/// Rows below this are not worth a second thread.
const ROWS_PER_PART: usize = 8;
/// Single elements likewise.
const ELEMENTS_PER_PART: usize = 16 << 10;

/// Root-mean-square norm: out = (x * (1 / sqrt(sum(x^2) / len + eps))) * weight, per row.
/// `x` and `out` are rows x len(weight). Panics if a shape does not fit.
pub fn rms_norm(team: &mut Team, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    norm_into(team, x, (weight, eps, false), out);
}

/// As `rms_norm`, but the result is added: out = out + norm.
pub fn rms_norm_add(team: &mut Team, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    norm_into(team, x, (weight, eps, true), out);
}

fn norm_into(team: &mut Team, x: &[f32], (weight, eps, add): (&[f32], f32, bool), out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && width > 0 && x.len().is_multiple_of(width), "shape");
    let isa = team.isa();
    team.each_piece(out, width * ROWS_PER_PART, |part, out| {
        let start = part * width * ROWS_PER_PART;
        let rows = x[start..start + out.len()].chunks_exact(width);
        for (x, out) in rows.zip(out.chunks_exact_mut(width)) {
            let scale = isa.run(InverseRms { x, eps });
            for ((x, w), out) in x.iter().zip(weight).zip(out) {
                let y = (x * scale) * w;
                *out = if add { *out + y } else { y };
            }
        }
    });
}

/// `rms_norm` of every head, in place: `x` is rows x (heads x len(weight)), `width` one row of it.
/// Panics if a shape does not fit.
pub fn head_norm(team: &mut Team, x: &mut [f32], width: usize, weight: &[f32], eps: f32) {
    let dim = weight.len();
    assert!(dim > 0 && width > 0 && width.is_multiple_of(dim) && x.len().is_multiple_of(width), "shape");
    let isa = team.isa();
    team.each_piece(x, width * ROWS_PER_PART, |_, x| {
        for head in x.chunks_exact_mut(dim) {
            let scale = isa.run(InverseRms { x: head, eps });
            for (x, w) in head.iter_mut().zip(weight) {
                *x = (*x * scale) * w;
            }
        }
    });
}

/// x = x + bias, per row: `x` is rows x len(bias). Panics if a shape does not fit.
pub fn add_bias(team: &mut Team, x: &mut [f32], bias: &[f32]) {
    assert!(!bias.is_empty() && x.len().is_multiple_of(bias.len()), "shape");
    team.each_piece(x, bias.len() * ROWS_PER_PART, |_, x| {
        for row in x.chunks_exact_mut(bias.len()) {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x += bias;
            }
        }
    });
}

/// x = cap * tanh(x / cap), per element.
pub fn soft_cap(team: &mut Team, x: &mut [f32], cap: f32) {
    let isa = team.isa();
    team.each_piece(x, ELEMENTS_PER_PART, |_, x| isa.run(SoftCap { x, cap }));
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let cap = V::splat(self.cap);
        let mut pieces = self.x.chunks_exact_mut(LANES);
        for piece in &mut pieces {
            // SAFETY: the piece has 16 elements.
            unsafe { math::soft_cap(V::load(piece.as_ptr()), cap).store(piece.as_mut_ptr()) };
        }
        let rest = pieces.into_remainder();
        if !rest.is_empty() {
            let mut last = [0f32; LANES];
            // SAFETY: 16 elements.
            unsafe { math::soft_cap(padded::<V>(rest), cap).store(last.as_mut_ptr()) };
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

/// 1 / sqrt(sum(x^2) / len + eps)
struct InverseRms<'a> {
    x: &'a [f32],
    eps: f32,
}

/// The last piece of a row, filled up with zeros.
#[inline(always)]
fn padded<V: Lanes>(piece: &[f32]) -> V {
    let mut whole = [0f32; LANES];
    whole[..piece.len()].copy_from_slice(piece);
    // SAFETY: 16 elements.
    unsafe { V::load(whole.as_ptr()) }
}

impl Kernel for InverseRms<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
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
        1.0 / (sum.sum() / self.x.len() as f32 + self.eps).sqrt()
    }
}

/// What a feed-forward part does to its gate x before it multiplies it with the other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// x / (1 + e^-x)
    Silu,
    /// x / (1 + e^-(x * fma(x * x, 2c * 0.044715, 2c))) with c = sqrt(2 / pi): GELU by its tanh
    /// formula, as 0.5 (1 + tanh u) = 1 / (1 + e^-2u).
    GeluTanh,
}

/// gate = act(gate) * up.
pub(crate) fn apply_gate(isa: Isa, kind: Gate, gate: &mut [f32], up: &[f32]) {
    isa.run(Gating { kind, gate, up });
}

struct Gating<'a> {
    kind: Gate,
    gate: &'a mut [f32],
    up: &'a [f32],
}

/// 2 sqrt(2 / pi)
const GELU_1: f32 = 1.595_769_2;
/// 0.044715 times that
const GELU_3: f32 = 0.071_354_82;

#[inline(always)]
fn gate_lanes<V: Lanes>(kind: Gate, gate: V, up: V) -> V {
    let one = V::splat(1.0);
    let slope = match kind {
        Gate::Silu => gate,
        Gate::GeluTanh => gate.mul(gate.mul(gate).fma(V::splat(GELU_3), V::splat(GELU_1))),
    };
    gate.div(math::exp(V::splat(0.0).sub(slope)).add(one)).mul(up)
}

impl Kernel for Gating<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let whole = self.gate.len() / LANES * LANES;
        let (gate, gate_rest) = self.gate.split_at_mut(whole);
        let (up, up_rest) = self.up.split_at(whole);
        for (gate, up) in gate.chunks_exact_mut(LANES).zip(up.chunks_exact(LANES)) {
            // SAFETY: both pieces have 16 elements.
            let y = unsafe { gate_lanes(self.kind, V::load(gate.as_ptr()), V::load(up.as_ptr())) };
            // SAFETY: as above.
            unsafe { y.store(gate.as_mut_ptr()) };
        }
        if !gate_rest.is_empty() {
            let mut last = [0f32; LANES];
            let y = gate_lanes::<V>(self.kind, padded(gate_rest), padded(up_rest));
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

/// (cosine, sine) pairs for one position, each times `magnitude` (in f64, rounded once): `out` takes
/// as many pairs as there are steps.
pub fn rope_angles(steps: &[f64], magnitude: f64, position: u32, out: &mut [[f32; 2]]) {
    for (step, out) in steps.iter().zip(out) {
        let (sine, cosine) = math::sin_cos_f64(f64::from(position) * step);
        *out = [(cosine * magnitude) as f32, (sine * magnitude) as f32];
    }
}

/// Which dimensions of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// 2i and 2i + 1.
    Neighbours,
    /// i and i + pairs.
    Halves,
}

/// Rotates pairs (x0, x1) of the first 2 * pairs dimensions of each head:
/// (x0 c - x1 s, x1 c + x0 s), each product and sum rounded. `x` is rows x (heads x dim), `angles`
/// rows x pairs. Panics if a shape does not fit.
pub fn rope(
    team: &mut Team,
    pairing: Pairing,
    x: &mut [f32],
    (dim, width): (usize, usize),
    angles: &[[f32; 2]],
) {
    let rows = x.len() / width;
    assert!(rows * width == x.len() && width.is_multiple_of(dim) && rows > 0, "shape");
    let pairs = angles.len() / rows;
    assert!(pairs * rows == angles.len() && 2 * pairs <= dim, "shape");
    team.each_piece(x, width * ROWS_PER_PART, |part, x| {
        for (i, row) in x.chunks_exact_mut(width).enumerate() {
            let at = (part * ROWS_PER_PART + i) * pairs;
            let angles = &angles[at..at + pairs];
            for head in row.chunks_exact_mut(dim) {
                match pairing {
                    Pairing::Neighbours => {
                        for ([x0, x1], angle) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                            turn(x0, x1, *angle);
                        }
                    }
                    Pairing::Halves => {
                        let (low, high) = head.split_at_mut(pairs);
                        for ((x0, x1), angle) in low.iter_mut().zip(high).zip(angles) {
                            turn(x0, x1, *angle);
                        }
                    }
                }
            }
        }
    });
}

#[inline(always)]
fn turn(x0: &mut f32, x1: &mut f32, [cosine, sine]: [f32; 2]) {
    (*x0, *x1) = (*x0 * cosine - *x1 * sine, *x1 * cosine + *x0 * sine);
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;

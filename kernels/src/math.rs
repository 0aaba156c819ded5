//! Own elementary functions: the same bits on every platform, because they are made only of IEEE
//! additions, multiplications, divisions and fused multiply-adds in a fixed order. No libm.
//!
//! Must never call a transcendental function of the standard library.

use std::f64::consts::{FRAC_2_PI, SQRT_2};

use crate::lanes::Lanes;

/// 1.5 * 2^23: adding it rounds an f32 to a whole number in the low bits.
const ROUND_F32: f32 = 12_582_912.0;
/// 1.5 * 2^52, likewise for f64.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;

// ln 2 as a sum: the high part has enough zero bits for exact products with exponents.
const LN2_HIGH_F32: f32 = 0.693_359_4;
const LN2_LOW_F32: f32 = -2.121_944_4e-4;
const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

// pi/2 as a sum of three: the first two have 33 bits each.
const HALF_PI_1: f64 = f64::from_bits(0x3ff9_21fb_5440_0000);
const HALF_PI_2: f64 = f64::from_bits(0x3dd0_b461_1a60_0000);
const HALF_PI_3: f64 = f64::from_bits(0x3ba3_198a_2e03_7073);

/// 1/13!, 1/12!, … 1/1!, 1/0!
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut all = [1.0; 14];
    let (mut i, mut product) = (1, 1.0);
    while i < 14 {
        product *= i as f64;
        all[13 - i] = 1.0 / product;
        i += 1;
    }
    all
};

/// e^x per lane, within 2 units in the last place; x below -87 counts as -87, above 88 as 88; NaN
/// stays NaN. With n = round(x / ln 2): Taylor's series to r^7 at r = x - n ln 2, times 2^n.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    let x = V::splat(-87.0).max(V::splat(88.0).min(x));
    let t = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND_F32));
    let n = t.sub(V::splat(ROUND_F32));
    let r = n.fma(V::splat(-LN2_HIGH_F32), x);
    let r = n.fma(V::splat(-LN2_LOW_F32), r);
    let mut y = V::splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        y = y.fma(r, V::splat(c));
    }
    y.mul(t.pow2())
}

/// cap * tanh(x / cap), with tanh(y) = 1 - 2 / (1 + e^2y): within 2e-7 of the cap; NaN stays NaN.
#[inline(always)]
pub(crate) fn soft_cap<V: Lanes>(x: V, cap: V) -> V {
    let y = x.div(cap);
    let one = V::splat(1.0);
    let tanh = one.sub(V::splat(2.0).div(exp(y.add(y)).add(one)));
    cap.mul(tanh)
}

/// e^x for x in -700..=700 (clamped to it), within 2 units in the last place; NaN stays NaN.
pub fn exp_f64(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(-700.0, 700.0);
    let t = x * std::f64::consts::LOG2_E + ROUND_F64;
    let n = t - ROUND_F64;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's series to r^13, from the last term.
    let mut y = 0.0;
    for c in INVERSE_FACTORIALS {
        y = y * r + c;
    }
    y * f64::from_bits((t.to_bits() << 52).wrapping_add(1023 << 52))
}

/// Natural logarithm of a normal, positive, finite number. Zero and below give minus infinity.
pub fn ln_f64(x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return if x.is_nan() { x } else { f64::NEG_INFINITY };
    }
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    if m > SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1), |s| < 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for i in (0..=13).rev() {
        sum = sum * square + 1.0 / f64::from(2 * i + 1);
    }
    let e = f64::from(exponent);
    e * LN2_HIGH + (2.0 * s * sum + e * LN2_LOW)
}

/// base^x for a positive base.
pub fn pow_f64(base: f64, x: f64) -> f64 {
    exp_f64(x * ln_f64(base))
}

/// (sine, cosine) for |x| up to 2^20, within 1e-13.
pub fn sin_cos_f64(x: f64) -> (f64, f64) {
    let t = x * FRAC_2_PI + ROUND_F64;
    let n = t - ROUND_F64;
    let r = ((x - n * HALF_PI_1) - n * HALF_PI_2) - n * HALF_PI_3;
    let square = r * r;
    // Taylor's series to r^17 and r^16, from the last term.
    let (mut sine, mut cosine) = (1.0, 1.0);
    for i in (1..=8).rev() {
        sine = 1.0 - sine * square / f64::from(2 * i * (2 * i + 1));
        cosine = 1.0 - cosine * square / f64::from((2 * i - 1) * 2 * i);
    }
    let sine = r * sine;
    match t.to_bits() & 3 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::isa::{Isa, Kernel};

    struct ExpAll<'a>(&'a mut [f32]);

    impl Kernel for ExpAll<'_> {
        type Out = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            for piece in self.0.chunks_exact_mut(16) {
                // SAFETY: the piece has 16 elements.
                unsafe { exp(V::load(piece.as_ptr())).store(piece.as_mut_ptr()) };
            }
        }
    }

    #[test]
    fn exp_agrees_with_the_true_value_and_between_instruction_sets() {
        let x: Vec<f32> = (0..160_000).map(|i| (i as f32 - 80_000.0) * 0.00108).collect();
        let mut scalar = x.clone();
        Isa::Scalar.run(ExpAll(&mut scalar));
        for (x, y) in x.iter().zip(&scalar) {
            let want = f64::from(*x).exp();
            assert!((f64::from(*y) / want - 1.0).abs() < 2.4e-7, "{x} {y} {want}");
        }
        for isa in Isa::available() {
            let mut other = x.clone();
            isa.run(ExpAll(&mut other));
            assert!(other.iter().zip(&scalar).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
        }
        let mut odd = [0f32; 16];
        odd[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0]);
        for isa in Isa::available() {
            let mut y = odd;
            isa.run(ExpAll(&mut y));
            assert!(y[0].is_nan() && y[1] > 1e38 && y[2] < 1e-37 && y[3] == 1.0, "{isa:?} {y:?}");
        }
    }

    #[test]
    fn double_precision_functions_agree_with_the_true_values() {
        for i in 0..200_000 {
            let x = (f64::from(i) - 100_000.0) * 0.0069;
            assert!((exp_f64(x) / x.exp() - 1.0).abs() < 1e-14, "exp {x}");
            let y = f64::from(i + 1) * 0.0173;
            assert!((ln_f64(y) - y.ln()).abs() < 1e-14 * (1.0 + y.ln().abs()), "ln {y}");
            let z = f64::from(i) * 5.23;
            let (s, c) = sin_cos_f64(z);
            assert!((s - z.sin()).abs() < 1e-13 && (c - z.cos()).abs() < 1e-13, "sin {z}");
        }
        assert_eq!((exp_f64(0.0), ln_f64(1.0), sin_cos_f64(0.0)), (1.0, 0.0, (0.0, 1.0)));
        assert!((pow_f64(100_000.0, -0.25) - 100_000f64.powf(-0.25)).abs() < 1e-16);
    }
}

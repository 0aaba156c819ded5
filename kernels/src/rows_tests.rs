//! Norm, gating and rotation against f64 and between instruction sets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::testing::{Random, same};

#[test]
fn norm_is_right_and_the_same_everywhere() {
    for width in [1, 15, 16, 100, 576] {
        let mut random = Random(width as u64);
        let (x, weight) = (random.numbers(width * 21), random.numbers(width));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for threads in 1..4 {
                let mut out = vec![0.0; x.len()];
                rms_norm(&mut Team::with_isa(threads, isa), &x, &weight, 1e-5, &mut out);
                assert!(same(&out, first.get_or_insert_with(|| out.clone())), "{isa:?} {threads}");
            }
        }
        for (x, out) in x.chunks(width).zip(first.unwrap().chunks(width)) {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            for ((x, w), out) in x.iter().zip(&weight).zip(out) {
                let want = f64::from(*x) / (mean + f64::from(1e-5f32)).sqrt() * f64::from(*w);
                assert!((f64::from(*out) - want).abs() < 1e-6 * (1.0 + want.abs()));
            }
        }
    }
}

#[test]
fn norms_of_heads_and_added_norms_are_plain_norms() {
    let (dim, width, rows) = (24, 72, 19);
    let mut random = Random(3);
    let (x, weight, before) =
        (random.numbers(width * rows), random.numbers(dim), random.numbers(width * rows));
    let mut want = vec![0.0; x.len()];
    rms_norm(&mut Team::new(1), &x, &weight, 1e-6, &mut want);
    let sum: Vec<f32> = before.iter().zip(&want).map(|(a, b)| a + b).collect();
    for isa in Isa::available() {
        let mut team = Team::with_isa(3, isa);
        let (mut heads, mut added) = (x.clone(), before.clone());
        head_norm(&mut team, &mut heads, width, &weight, 1e-6);
        assert!(same(&heads, &want), "{isa:?}");
        rms_norm_add(&mut team, &x, &weight, 1e-6, &mut added);
        assert!(same(&added, &sum), "{isa:?}");
    }
}

#[test]
fn biases_are_added_to_every_row() {
    let (mut x, bias) = (Random(5).numbers(7 * 40), Random(6).numbers(7));
    let want: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % 7]).collect();
    add_bias(&mut Team::new(2), &mut x, &bias);
    assert!(same(&x, &want));
}

/// The two gates' functions in f64.
fn gate_f64(kind: Gate, x: f64) -> f64 {
    match kind {
        Gate::Silu => x / (1.0 + (-x).exp()),
        Gate::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

#[test]
fn gates_are_near_the_true_functions() {
    let x: Vec<f32> = (-4_000..4_000).map(|i| i as f32 * 0.004).collect();
    for kind in [Gate::Silu, Gate::GeluTanh] {
        let mut y = x.clone();
        apply_gate(Isa::detect(), kind, &mut y, &vec![1.0; x.len()]);
        for (x, y) in x.iter().zip(&y) {
            let want = gate_f64(kind, f64::from(*x));
            // Where the function has almost vanished, its argument's rounding is many of its units.
            assert!((f64::from(*y) - want).abs() <= 2e-6 * want.abs() + 1e-9, "{kind:?} {x} {y} {want}");
        }
        let mut odd = [f32::NAN, f32::INFINITY, -1e30, 1e30, 0.0];
        apply_gate(Isa::detect(), kind, &mut odd, &[1.0; 5]);
        assert!(odd[0].is_nan() && odd[1] == f32::INFINITY && odd[3] == 1e30 && odd[4] == 0.0, "{odd:?}");
    }
}

#[test]
fn caps_are_near_the_true_function_and_the_same_everywhere() {
    let x: Vec<f32> = (-2_003..2_000).map(|i| i as f32 * 0.1).collect();
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let mut y = x.clone();
        soft_cap(&mut Team::with_isa(2, isa), &mut y, 30.0);
        for (x, y) in x.iter().zip(&y) {
            let want = 30.0 * (f64::from(*x) / 30.0).tanh();
            assert!((f64::from(*y) - want).abs() <= 30.0 * 2e-7, "{x} {y} {want}");
        }
        assert!(same(&y, first.get_or_insert_with(|| y.clone())), "{isa:?}");
    }
    let mut odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    soft_cap(&mut Team::new(1), &mut odd, 5.0);
    assert!(odd[0].is_nan() && odd[1] == 5.0 && odd[2] == -5.0);
}

#[test]
fn gating_does_not_depend_on_the_length_of_the_row() {
    let mut random = Random(9);
    let (gate, up) = (random.numbers(50), random.numbers(50));
    for kind in [Gate::Silu, Gate::GeluTanh] {
        let mut whole = gate.clone();
        apply_gate(Isa::Scalar, kind, &mut whole, &up);
        for isa in Isa::available() {
            for cut in 0..50 {
                let mut parts = gate.clone();
                let (left, right) = parts.split_at_mut(cut);
                apply_gate(isa, kind, left, &up[..cut]);
                apply_gate(isa, kind, right, &up[cut..]);
                assert!(same(&parts, &whole), "{isa:?} {cut}");
            }
        }
    }
}

#[test]
fn rotation_turns_its_pairs() {
    let steps = rope_steps(10_000.0, 6);
    assert!((steps[1] - 10_000f64.powf(-1.0 / 3.0)).abs() < 1e-15);
    let (dim, width, rows) = (8, 16, 9);
    let before = Random(4).numbers(rows * width);
    for (pairing, magnitude) in [(Pairing::Neighbours, 1.0), (Pairing::Halves, 1.0), (Pairing::Halves, 1.25)]
    {
        let mut x = before.clone();
        let mut angles = vec![[0.0; 2]; rows * 3];
        for (row, angles) in angles.chunks_mut(3).enumerate() {
            rope_angles(&steps, magnitude, 100 * row as u32, angles);
        }
        rope(&mut Team::new(2), pairing, &mut x, (dim, width), &angles);
        for (i, (got, was)) in x.chunks(dim).zip(before.chunks(dim)).enumerate() {
            assert_eq!(got[6..], was[6..], "beyond the rotated dimensions");
            for pair in 0..3 {
                let (one, other) = match pairing {
                    Pairing::Neighbours => (2 * pair, 2 * pair + 1),
                    Pairing::Halves => (pair, pair + 3),
                };
                let angle = 100.0 * (i / 2) as f64 * 10_000f64.powf(-2.0 * pair as f64 / 6.0);
                let (a, b) = (f64::from(was[one]), f64::from(was[other]));
                let want = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
                assert!((f64::from(got[one]) - magnitude * want.0).abs() < 1e-6, "{pairing:?}");
                assert!((f64::from(got[other]) - magnitude * want.1).abs() < 1e-6, "{pairing:?}");
            }
        }
    }
}

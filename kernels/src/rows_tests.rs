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
fn gating_does_not_depend_on_the_length_of_the_row() {
    let mut random = Random(9);
    let (gate, up) = (random.numbers(50), random.numbers(50));
    let mut whole = gate.clone();
    silu(Isa::Scalar, &mut whole, &up);
    for isa in Isa::available() {
        for cut in 0..50 {
            let mut parts = gate.clone();
            let (left, right) = parts.split_at_mut(cut);
            silu(isa, left, &up[..cut]);
            silu(isa, right, &up[cut..]);
            assert!(same(&parts, &whole), "{isa:?} {cut}");
        }
    }
}

#[test]
fn rotation_turns_neighbouring_pairs() {
    let steps = rope_steps(10_000.0, 6);
    assert!((steps[1] - 10_000f64.powf(-1.0 / 3.0)).abs() < 1e-15);
    let (dim, width, rows) = (8, 16, 9);
    let mut x = Random(4).numbers(rows * width);
    let before = x.clone();
    let mut angles = vec![[0.0; 2]; rows * 3];
    for (row, angles) in angles.chunks_mut(3).enumerate() {
        rope_angles(&steps, 100 * row as u32, angles);
    }
    rope(&mut Team::new(2), &mut x, dim, width, &angles);
    for (i, (got, was)) in x.chunks(2).zip(before.chunks(2)).enumerate() {
        let (row, pair) = (i / 8, i % 4);
        if pair == 3 {
            assert_eq!(got, was, "beyond the rotated dimensions");
            continue;
        }
        let angle = 100.0 * row as f64 * 10_000f64.powf(-2.0 * pair as f64 / 6.0);
        let want = f64::from(was[0]) * angle.cos() - f64::from(was[1]) * angle.sin();
        assert!((f64::from(got[0]) - want).abs() < 1e-6);
    }
}

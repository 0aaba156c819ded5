//! The products against their definition, written out element by element, and against f64.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::blocks::{self, WeightType};
use crate::isa::Isa;
use crate::testing::{Random, same};

fn tree(mut x: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            x[j] += x[j + half];
        }
    }
    x[0]
}

fn float(kind: WeightType, row: &[u8], i: usize) -> f32 {
    match kind {
        WeightType::F32 => f32::from_le_bytes(row[4 * i..4 * i + 4].try_into().unwrap()),
        WeightType::F16 => crate::lanes::f16_to_f32(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
        _ => crate::lanes::bf16_to_f32(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
    }
}

/// One output by the module's definition, and (reference, sum of magnitudes) in f64.
fn define(kind: WeightType, row: &[u8], a: &[f32]) -> (f32, f64, f64) {
    let plain = kind.unit().0 == 1;
    let size = if kind == WeightType::Q6K { 16 } else { 32 };
    let (mut acc, mut exact, mut bound) = (0f32, 0f64, 0f64);
    for (b, a) in a.chunks(size).enumerate() {
        let block =
            if plain { blocks::Block { d: 1.0, m: 0.0, q: [0; 32] } } else { blocks::read(kind, row, b) };
        let mut q = 0f32;
        for (i, x) in a.iter().enumerate() {
            let number = if plain { float(kind, row, b * size + i) } else { f32::from(block.q[i]) };
            q = x.mul_add(number, q);
            let weight = f64::from(block.d) * f64::from(number) + f64::from(block.m);
            exact += f64::from(*x) * weight;
            let parts = (f64::from(block.d) * f64::from(number)).abs() + f64::from(block.m).abs();
            bound += f64::from(*x).abs() * parts;
        }
        acc = if plain { q + acc } else { block.d.mul_add(q, acc) };
        if matches!(kind, WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K) {
            let s = tree(std::array::from_fn(|j| a[j] + a[j + 16]));
            acc = block.m.mul_add(s, acc);
        }
    }
    (acc, exact, bound)
}

fn product(team: &mut Team, matrix: &Matrix, rows: usize, input: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows * matrix.n()];
    let mut products = [Product { matrix, out: &mut out, store: Store::Set }];
    multiply(team, &mut Vec::new(), rows, input, &mut products);
    out
}

fn kinds() -> impl Strategy<Value = WeightType> {
    proptest::sample::select(WeightType::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_instruction_set_gives_the_definition(
        kind in kinds(), n in 1usize..150, blocks in 1usize..5, rows in 1usize..40, threads in 1usize..5, seed: u64,
    ) {
        let mut random = Random(seed);
        let k = match kind.unit().0 { 1 => blocks * 29 + 3, 32 => blocks * 32, unit => blocks.div_ceil(2) * unit };
        let bytes = random.tensor(kind, k, n);
        let matrix = Matrix::pack(kind, k, n, &bytes).unwrap();
        let input = random.numbers(rows * k);
        let row_bytes = kind.row_bytes(k).unwrap();
        let mut want = Vec::new();
        for a in input.chunks(k) {
            for row in bytes.chunks(row_bytes) {
                let (acc, exact, bound) = define(kind, row, a);
                prop_assert!((f64::from(acc) - exact).abs() <= bound * (k as f64) * 2f64.powi(-23), "{acc} {exact}");
                want.push(acc);
            }
        }
        for isa in Isa::available() {
            let mut team = Team::with_isa(threads, isa);
            let got = product(&mut team, &matrix, rows, &input);
            prop_assert!(same(&got, &want), "{kind:?} {isa:?} k {k} n {n} rows {rows}");
        }
    }

    #[test]
    fn a_row_of_nan_stays_alone_and_place_does_not_matter(
        kind in kinds(), rows in 1usize..20, bad in 0usize..20, seed: u64,
    ) {
        let mut random = Random(seed);
        let k = 256;
        let bytes = random.tensor(kind, k, 40);
        let matrix = Matrix::pack(kind, k, 40, &bytes).unwrap();
        let mut input = random.numbers(rows * k);
        let bad = bad % rows;
        input[bad * k + 7] = f32::NAN;
        for isa in Isa::available() {
            let mut team = Team::with_isa(2, isa);
            let together = product(&mut team, &matrix, rows, &input);
            for (r, (row, got)) in input.chunks(k).zip(together.chunks(40)).enumerate() {
                let alone = product(&mut team, &matrix, 1, row);
                prop_assert!(same(&alone, got));
                prop_assert!(got.iter().all(|y| y.is_nan() == (r == bad)));
            }
        }
    }
}

#[test]
fn several_products_and_added_ones_and_gated_ones_are_the_single_ones() {
    let mut random = Random(5);
    let (k, rows) = (64, 11);
    let pack = |random: &mut Random, kind, n| Matrix::pack(kind, k, n, &random.tensor(kind, k, n)).unwrap();
    let a = pack(&mut random, WeightType::Q4_1, 130);
    let b = pack(&mut random, WeightType::Q8_0, 33);
    let c = pack(&mut random, WeightType::F16, 130);
    let input = random.numbers(rows * k);
    for isa in Isa::available() {
        for threads in [1, 3] {
            let mut team = Team::with_isa(threads, isa);
            let (x, y, z) = (
                product(&mut team, &a, rows, &input),
                product(&mut team, &b, rows, &input),
                product(&mut team, &c, rows, &input),
            );
            let (mut first, mut second) = (vec![1.5; x.len()], vec![0.0; y.len()]);
            let mut products = [
                Product { matrix: &a, out: &mut first, store: Store::Add },
                Product { matrix: &b, out: &mut second, store: Store::Set },
            ];
            multiply(&mut team, &mut Vec::new(), rows, &input, &mut products);
            assert!(same(&first, &x.iter().map(|x| 1.5 + x).collect::<Vec<_>>()));
            assert!(same(&second, &y));
            for kind in [Gate::Silu, Gate::GeluTanh] {
                let (mut gate, mut up) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                let buffers = [&mut gate[..], &mut up[..]];
                gated(&mut team, &mut Vec::new(), (rows, &input), [&a, &c], buffers, kind);
                let mut whole = x.clone();
                apply_gate(Isa::Scalar, kind, &mut whole, &z);
                assert!(same(&whole, &gate), "{kind:?}");
            }
        }
    }
}

//! The products against their definition, written out element by element, and against f64.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::blocks::{self, WeightType};
use crate::isa::Isa;
use crate::testing::{Random, same};

fn float(kind: WeightType, row: &[u8], i: usize) -> f32 {
    match kind {
        WeightType::F32 => f32::from_le_bytes(row[4 * i..4 * i + 4].try_into().unwrap()),
        WeightType::F16 => crate::lanes::f16_to_f32(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
        _ => crate::lanes::bf16_to_f32(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
    }
}

/// Scale and whole numbers of a group, as `activations` defines them.
fn digits(group: &[f32]) -> (f32, Vec<i32>) {
    let top = group.iter().fold(0f32, |top, x| top.max(x.abs()));
    if group.iter().any(|x| !x.is_finite()) {
        return (f32::NAN, vec![0; group.len()]);
    }
    if top < 1e-30 {
        return (0.0, vec![0; group.len()]);
    }
    (top / 32767.0, group.iter().map(|x| (x * (32767.0 / top)).round_ties_even() as i32).collect())
}

/// How the parts of groups become an output: in order by the definition, or as a planted mistake.
#[derive(Clone, Copy, Debug)]
enum Order {
    Definition,
    /// From the last group to the first.
    Backwards,
    /// Even and odd groups apart, as two lanes or threads would.
    TwoSums,
    /// Product and sum rounded one by one.
    NotFused,
}

fn join(order: Order, parts: &[(f32, f32)]) -> f32 {
    let sum = |parts: &mut dyn Iterator<Item = &(f32, f32)>| {
        parts.fold(0f32, |acc, (part, scale)| part.mul_add(*scale, acc))
    };
    match order {
        Order::Definition => sum(&mut parts.iter()),
        Order::Backwards => sum(&mut parts.iter().rev()),
        Order::TwoSums => sum(&mut parts.iter().step_by(2)) + sum(&mut parts.iter().skip(1).step_by(2)),
        Order::NotFused => parts.iter().fold(0f32, |acc, (part, scale)| part * scale + acc),
    }
}

/// One output by the modules' definitions, and (reference, bound of the error) in f64.
fn define(kind: WeightType, row: &[u8], a: &[f32]) -> (f32, f64, f64) {
    define_in(Order::Definition, kind, row, a)
}

fn define_in(order: Order, kind: WeightType, row: &[u8], a: &[f32]) -> (f32, f64, f64) {
    if kind.unit().0 == 1 {
        return define_float(kind, row, a);
    }
    let size = if kind == WeightType::Q6K { 16 } else { 32 };
    let has_min = matches!(kind, WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K);
    let (mut parts, mut exact, mut bound) = (Vec::new(), 0f64, 0f64);
    for (g, group) in a.chunks(128).enumerate() {
        let (scale, numbers) = digits(group);
        let mut part = 0f32;
        for (b, (x, numbers)) in group.chunks(size).zip(numbers.chunks(size)).enumerate() {
            let block = blocks::read(kind, row, g * 128 / size + b);
            let sum: i64 = numbers.iter().zip(block.q).map(|(x, q)| i64::from(*x) * i64::from(q)).sum();
            part = block.d.mul_add(i32::try_from(sum).unwrap() as f32, part);
            if has_min {
                part = block.m.mul_add(numbers.iter().sum::<i32>() as f32, part);
            }
            for (x, q) in x.iter().zip(block.q) {
                let (d, m, q) = (f64::from(block.d), f64::from(block.m), f64::from(q));
                exact += f64::from(*x) * (d * q + m);
                // Half a step of the activation, and rounding of what is added up.
                bound += (f64::from(scale) * 0.5001) * (d * q + m).abs();
                bound += f64::from(x.abs()) * ((d * q).abs() + m.abs()) * a.len() as f64 * 2f64.powi(-24);
            }
        }
        parts.push((part, scale));
    }
    (join(order, &parts), exact, bound)
}

fn define_float(kind: WeightType, row: &[u8], a: &[f32]) -> (f32, f64, f64) {
    let (mut acc, mut exact, mut bound) = (0f32, 0f64, 0f64);
    for (b, a) in a.chunks(32).enumerate() {
        let mut q = 0f32;
        for (i, x) in a.iter().enumerate() {
            let number = float(kind, row, b * 32 + i);
            q = x.mul_add(number, q);
            exact += f64::from(*x) * f64::from(number);
            bound += (f64::from(*x) * f64::from(number)).abs() * row.len() as f64 * 2f64.powi(-23);
        }
        acc += q;
    }
    (acc, exact, bound)
}

fn product(team: &mut Team, matrix: &Matrix, rows: usize, input: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows * matrix.n()];
    let mut products = [Product { matrix, out: &mut out, store: Store::Set }];
    multiply(team, &mut Activations::default(), rows, input, &mut products);
    out
}

fn kinds() -> impl Strategy<Value = WeightType> {
    proptest::sample::select(WeightType::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_instruction_set_gives_the_definition(
        kind in kinds(), n in 1usize..150, blocks in 1usize..10, rows in 1usize..60, threads in 1usize..5, seed: u64,
    ) {
        let mut random = Random(seed);
        let k = match kind.unit().0 { 1 => blocks * 29 + 3, 32 => blocks * 32, unit => blocks.div_ceil(4) * unit };
        let bytes = random.tensor(kind, k, n);
        let matrix = Matrix::pack(kind, k, n, &bytes).unwrap();
        let input = random.numbers(rows * k);
        let row_bytes = kind.row_bytes(k).unwrap();
        let mut want = Vec::new();
        for a in input.chunks(k) {
            for row in bytes.chunks(row_bytes) {
                let (acc, exact, bound) = define(kind, row, a);
                prop_assert!((f64::from(acc) - exact).abs() <= bound, "{acc} {exact}");
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
            multiply(&mut team, &mut Activations::default(), rows, &input, &mut products);
            assert!(same(&first, &x.iter().map(|x| 1.5 + x).collect::<Vec<_>>()));
            assert!(same(&second, &y));
            for kind in [Gate::Silu, Gate::GeluTanh] {
                let (mut gate, mut up) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                let buffers = [&mut gate[..], &mut up[..]];
                gated(&mut team, &mut Activations::default(), (rows, &input), [&a, &c], buffers, kind);
                let mut whole = x.clone();
                apply_gate(Isa::Scalar, kind, &mut whole, &z);
                assert!(same(&whole, &gate), "{kind:?}");
            }
        }
    }
}

/// The comparison of `every_instruction_set_gives_the_definition` would catch an implementation that
/// adds up in another order: with each mistake, some outputs of an ordinary case differ.
#[test]
fn a_planted_change_of_order_is_found() {
    let mut random = Random(11);
    for kind in [WeightType::Q4_0, WeightType::Q4_1, WeightType::Q8_0, WeightType::Q6K] {
        let (k, n) = (1024, 16);
        let bytes = random.tensor(kind, k, n);
        let matrix = Matrix::pack(kind, k, n, &bytes).unwrap();
        let input = random.numbers(k);
        let got = product(&mut Team::new(1), &matrix, 1, &input);
        let rows = || bytes.chunks(kind.row_bytes(k).unwrap());
        let want = |order| rows().map(|row| define_in(order, kind, row, &input).0).collect::<Vec<_>>();
        assert!(same(&got, &want(Order::Definition)));
        for mistake in [Order::Backwards, Order::TwoSums, Order::NotFused] {
            assert!(!same(&got, &want(mistake)), "{kind:?} {mistake:?} was not noticed");
        }
    }
}

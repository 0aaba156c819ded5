//! Attention against f64, and its independence of pages, chunks, threads and instruction sets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::isa::Isa;
use crate::testing::{Random, same};

struct Case {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
    pages: Vec<u32>,
}

/// A cache filled with junk (NaN too), then with `rows` positions in pages of odd order.
fn fill(shape: KvShape, rows: &[(Vec<f32>, Vec<f32>)], seed: u64) -> Case {
    let needed = rows.len().div_ceil(shape.page_tokens);
    let pages: Vec<u32> = (0..needed as u32).map(|i| (i * 7 + seed as u32 % 5) % 31).collect();
    let mut keys = vec![f32::NAN; 31 * shape.key_page()];
    let mut values = vec![f32::NAN; 31 * shape.value_page()];
    for (t, (key, value)) in rows.iter().enumerate() {
        let slot = (pages[t / shape.page_tokens] as usize, t % shape.page_tokens);
        shape.put((&mut keys, &mut values), slot, (key, value));
    }
    Case { shape, keys, values, pages }
}

/// 1 / sqrt(dim), everything visible.
fn plain(dim: usize) -> Scoring {
    Scoring { scale: 1.0 / (dim as f32).sqrt(), cap: None, window: None }
}

fn run(case: &Case, team: &mut Team, scoring: Scoring, positions: &[u32], query: &[f32]) -> Vec<f32> {
    let kv = Kv { shape: case.shape, keys: &case.keys, values: &case.values };
    let sights: Vec<Sight<'_>> =
        positions.iter().map(|position| Sight { pages: &case.pages, position: *position }).collect();
    let mut out = vec![0.0; query.len()];
    attend(team, (kv, scoring), &sights, query, &mut out, &mut vec![f32::NAN; 7]);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_is_right_and_always_the_same(
        dim in proptest::sample::select(vec![4usize, 16, 24, 64, 80, 128]), kv_heads in 1usize..4,
        group in 1usize..7, page in proptest::sample::select(vec![1usize, 4, 16, 24, 32, 40]),
        len in 1usize..31, seed: u64,
        window in proptest::option::of(1u32..60), cap in proptest::option::of(2f32..40.0), scale in 0.05f32..0.5,
    ) {
        let scoring = Scoring { scale, cap, window };
        let len = if page == 1 { len } else { len * 3 };
        let len = len.min(31 * page);
        let mut random = Random(seed);
        let rows: Vec<_> = (0..len)
            .map(|_| (random.numbers(kv_heads * dim), random.numbers(kv_heads * dim)))
            .collect();
        let width = kv_heads * group * dim;
        let query: Vec<f32> = random.numbers(len * width).iter().map(|x| 3.0 * x).collect();
        let positions: Vec<u32> = (0..len as u32).collect();
        let case = fill(KvShape { page_tokens: page, kv_heads, dim }, &rows, seed);
        let want = run(&case, &mut Team::with_isa(1, Isa::Scalar), scoring, &positions, &query);
        for isa in Isa::available() {
            let mut team = Team::with_isa(3, isa);
            prop_assert!(same(&want, &run(&case, &mut team, scoring, &positions, &query)), "{isa:?}");
            let last = run(&case, &mut team, scoring, &positions[len - 1..], &query[(len - 1) * width..]);
            prop_assert!(same(&want[(len - 1) * width..], &last), "{isa:?} alone");
        }
        let other = fill(KvShape { page_tokens: 13, kv_heads, dim }, &rows, 3);
        prop_assert!(same(&want, &run(&other, &mut Team::new(2), scoring, &positions, &query)), "other pages");
        for (position, (query, out)) in query.chunks(width).zip(want.chunks(width)).enumerate() {
            for (head, (q, out)) in query.chunks(dim).zip(out.chunks(dim)).enumerate() {
                let at = head / group * dim;
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
                let weight = |t: usize| {
                    let key = &rows[t].0[at..at + dim];
                    let dot: f64 = q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let score = dot * f64::from(scale);
                    cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                };
                let weights: Vec<f64> = (first..=position).map(weight).collect();
                let total: f64 = weights.iter().sum();
                for (d, out) in out.iter().enumerate() {
                    let seen = weights.iter().zip(&rows[first..]);
                    let sum: f64 = seen.map(|(w, row)| w * f64::from(row.1[at + d])).sum();
                    prop_assert!((f64::from(*out) - sum / total).abs() < 2e-5, "{out} {}", sum / total);
                }
            }
        }
    }
}

#[test]
fn a_broken_query_harms_only_itself() {
    let mut random = Random(8);
    let shape = KvShape { page_tokens: 32, kv_heads: 1, dim: 16 };
    let rows: Vec<_> = (0..40).map(|_| (random.numbers(16), random.numbers(16))).collect();
    let case = fill(shape, &rows, 1);
    let mut query = random.numbers(3 * 16);
    query[20] = f32::NAN;
    let out = run(&case, &mut Team::new(2), plain(16), &[5, 39, 33], &query);
    assert!(out[16..32].iter().all(|x| x.is_nan()));
    assert!(out[..16].iter().chain(&out[32..]).all(|x| x.is_finite()));
}

/// The module's definition, written out.
fn defined(case: &[(Vec<f32>, Vec<f32>)], scoring: Scoring, position: usize, query: &[f32]) -> Vec<f32> {
    let dim = query.len();
    let first = scoring.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
    let mut weights = vec![0f32; (position + 1).next_multiple_of(LANES)];
    let mut max = f32::NEG_INFINITY;
    for t in first..=position {
        let dot = (0..dim).fold(0f32, |sum, d| query[d].mul_add(case[t].0[d], sum));
        weights[t] = dot * scoring.scale;
        if let Some(cap) = scoring.cap {
            let capped = lanes_of(|x| math::soft_cap(x, lanes(cap)), weights[t]);
            weights[t] = capped;
        }
        max = max.max(weights[t]);
    }
    let mut sums = [0f32; LANES];
    for t in first..=position {
        weights[t] = lanes_of(math::exp, weights[t] - max);
        sums[t % LANES] += weights[t];
    }
    let mut total = sums;
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            total[j] += total[j + half];
        }
    }
    let sum = |d: usize| (first..=position).fold(0f32, |sum, t| weights[t].mul_add(case[t].1[d], sum));
    (0..dim).map(|d| sum(d) * (1.0 / total[0])).collect()
}

fn lanes(x: f32) -> crate::lanes::Scalar {
    Lanes::splat(x)
}

fn lanes_of(f: impl Fn(crate::lanes::Scalar) -> crate::lanes::Scalar, x: f32) -> f32 {
    let mut out = [0f32; LANES];
    // SAFETY: 16 elements.
    unsafe { f(lanes(x)).store(out.as_mut_ptr()) };
    out[0]
}

#[test]
fn the_order_is_the_definitions() {
    let mut random = Random(77);
    let dim = 40;
    let rows: Vec<_> = (0..90).map(|_| (random.numbers(dim), random.numbers(dim))).collect();
    let case = fill(KvShape { page_tokens: 24, kv_heads: 1, dim }, &rows, 2);
    for (window, cap) in
        [(None, None), (Some(1), None), (Some(17), Some(3.0)), (Some(64), None), (Some(500), Some(9.0))]
    {
        let scoring = Scoring { scale: 0.21, cap, window };
        for position in [0usize, 1, 15, 16, 23, 24, 63, 64, 89] {
            let query = random.numbers(dim);
            let want = defined(&rows, scoring, position, &query);
            for isa in Isa::available() {
                let got = run(&case, &mut Team::with_isa(2, isa), scoring, &[position as u32], &query);
                assert!(same(&got, &want), "{isa:?} window {window:?} cap {cap:?} position {position}");
            }
        }
    }
}

#[test]
fn what_left_the_window_does_not_show() {
    let mut random = Random(6);
    let shape = KvShape { page_tokens: 16, kv_heads: 2, dim: 16 };
    let mut rows: Vec<_> = (0..50).map(|_| (random.numbers(32), random.numbers(32))).collect();
    let query = random.numbers(64);
    let scoring = Scoring { window: Some(9), ..plain(16) };
    let want = run(&fill(shape, &rows, 1), &mut Team::new(2), scoring, &[49], &query);
    for row in &mut rows[..41] {
        *row = (vec![f32::NAN; 32], vec![f32::NAN; 32]);
    }
    assert!(same(&want, &run(&fill(shape, &rows, 1), &mut Team::new(2), scoring, &[49], &query)));
    rows[41].0[3] = f32::NAN;
    assert!(run(&fill(shape, &rows, 1), &mut Team::new(2), scoring, &[49], &query)[0].is_nan());
}

/// A cache of halves gives what a cache of f32 gives that holds the rounded numbers.
#[test]
fn halves_are_rounded_once_and_then_numbers_like_others() {
    let mut random = Random(41);
    for (dim, page_tokens, group) in [(64, 32, 3), (24, 5, 1), (80, 16, 5)] {
        let shape = KvShape { page_tokens, kv_heads: 2, dim };
        let rows: Vec<_> = (0..70).map(|_| (random.numbers(2 * dim), random.numbers(2 * dim))).collect();
        let round = |row: &[f32]| row.iter().map(|x| Half::store(*x).value()).collect::<Vec<f32>>();
        let rounded: Vec<_> = rows.iter().map(|row| (round(&row.0), round(&row.1))).collect();
        assert!(rounded != rows, "there is something to round");
        let plain_case = fill(shape, &rounded, 4);
        let mut keys = vec![Half::store(f32::NAN); 31 * shape.key_page()];
        let mut values = vec![Half::store(f32::NAN); 31 * shape.value_page()];
        for (t, row) in rows.iter().enumerate() {
            let slot = (plain_case.pages[t / page_tokens] as usize, t % page_tokens);
            shape.put((&mut keys, &mut values), slot, (&row.0, &row.1));
        }
        let query = random.numbers(2 * 2 * group * dim);
        let scoring = Scoring { window: Some(50), ..plain(dim) };
        let sights = [69, 12].map(|position| Sight { pages: &plain_case.pages, position });
        for isa in Isa::available() {
            let mut team = Team::with_isa(2, isa);
            let want = run(&plain_case, &mut team, scoring, &[69, 12], &query);
            let mut out = vec![0.0; query.len()];
            let kv = Kv { shape, keys: &keys, values: &values };
            attend(&mut team, (kv, scoring), &sights, &query, &mut out, &mut Vec::new());
            assert!(same(&want, &out), "{isa:?} {shape:?}");
        }
    }
}

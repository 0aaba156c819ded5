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

fn run(case: &Case, team: &mut Team, positions: &[u32], query: &[f32]) -> Vec<f32> {
    let kv = Kv { shape: case.shape, keys: &case.keys, values: &case.values };
    let sights: Vec<Sight<'_>> =
        positions.iter().map(|position| Sight { pages: &case.pages, position: *position }).collect();
    let mut out = vec![0.0; query.len()];
    attend(team, kv, &sights, query, &mut out, &mut vec![f32::NAN; 7]);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_is_right_and_always_the_same(
        dim in proptest::sample::select(vec![4usize, 16, 24, 64, 80, 128]), kv_heads in 1usize..4,
        group in 1usize..7, page in proptest::sample::select(vec![1usize, 4, 16, 24, 32, 40]),
        len in 1usize..31, seed: u64,
    ) {
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
        let want = run(&case, &mut Team::with_isa(1, Isa::Scalar), &positions, &query);
        for isa in Isa::available() {
            let mut team = Team::with_isa(3, isa);
            prop_assert!(same(&want, &run(&case, &mut team, &positions, &query)), "{isa:?}");
            let last = run(&case, &mut team, &positions[len - 1..], &query[(len - 1) * width..]);
            prop_assert!(same(&want[(len - 1) * width..], &last), "{isa:?} alone");
        }
        let other = fill(KvShape { page_tokens: 13, kv_heads, dim }, &rows, 3);
        prop_assert!(same(&want, &run(&other, &mut Team::new(2), &positions, &query)), "other pages");
        for (position, (query, out)) in query.chunks(width).zip(want.chunks(width)).enumerate() {
            for (head, (q, out)) in query.chunks(dim).zip(out.chunks(dim)).enumerate() {
                let at = head / group * dim;
                let score = |t: usize| {
                    let key = &rows[t].0[at..at + dim];
                    let dot: f64 = q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = (0..=position).map(score).collect();
                let total: f64 = weights.iter().sum();
                for (d, out) in out.iter().enumerate() {
                    let sum: f64 = weights.iter().zip(&rows).map(|(w, row)| w * f64::from(row.1[at + d])).sum();
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
    let out = run(&case, &mut Team::new(2), &[5, 39, 33], &query);
    assert!(out[16..32].iter().all(|x| x.is_nan()));
    assert!(out[..16].iter().chain(&out[32..]).all(|x| x.is_finite()));
}

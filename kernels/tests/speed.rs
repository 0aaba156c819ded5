//! How fast the products and attention are; run by hand with `--ignored --nocapture`. One
//! thread; the least time of many short runs, so that other processes matter little.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use caravan_kernels::attention::{Kv, KvShape, Scoring, Sight, attend};
use caravan_kernels::{Activations, Isa, Matrix, Product, Store, Team, WeightType, multiply};

/// The least time of a run of `work`, in seconds.
fn time(mut work: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::MAX);
    while begin.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

#[test]
#[ignore = "a measurement, not a check"]
fn products() {
    let types = [WeightType::Q4_0, WeightType::Q4_1, WeightType::Q5_0, WeightType::Q8_0, WeightType::Q4K];
    for isa in Isa::available().into_iter().skip(1) {
        let mut team = Team::with_isa(1, isa);
        for kind in types.into_iter().chain([WeightType::Q6K, WeightType::F16, WeightType::F32]) {
            let (k, n) = (768, 1536);
            let bytes: Vec<u8> = (0..kind.row_bytes(k).unwrap() * n).map(|i| (i * 37 % 61) as u8).collect();
            let matrix = Matrix::pack(kind, k, n, &bytes).unwrap();
            for rows in [1, 4, 16, 512] {
                let input = vec![0.5; rows * k];
                let mut out = vec![0.0; rows * n];
                let mut acts = Activations::default();
                let best = time(|| {
                    let mut products = [Product { matrix: &matrix, out: &mut out, store: Store::Set }];
                    multiply(&mut team, &mut acts, rows, &input, &mut products);
                });
                let rate = (rows * k * n) as f64 / best / 1e9;
                let bytes = matrix.memory_bytes() as f64 / best / 1e9;
                println!("{} {kind:?} rows {rows}: {rate:.1} G products/s, {bytes:.1} GB/s", isa.name());
            }
        }
    }
}

/// Weights that no cache holds, as in decoding.
#[test]
#[ignore = "a measurement, not a check"]
fn products_from_memory() {
    let (k, n) = (576usize, 1536);
    for isa in Isa::available().into_iter().skip(1) {
        let mut team = Team::with_isa(1, isa);
        for kind in [WeightType::Q4_0, WeightType::Q4_1, WeightType::Q8_0, WeightType::Q4K] {
            let k = k.next_multiple_of(kind.unit().0);
            let bytes: Vec<u8> = (0..kind.row_bytes(k).unwrap() * n).map(|i| (i * 37 % 61) as u8).collect();
            let one = Matrix::pack(kind, k, n, &bytes).unwrap();
            let all = vec![one; 160];
            for rows in [1, 2, 4, 8, 16] {
                let input = vec![0.5; rows * k];
                let mut out = vec![0.0; rows * n];
                let mut acts = Activations::default();
                let best = time(|| {
                    for matrix in &all {
                        let mut products = [Product { matrix, out: &mut out, store: Store::Set }];
                        multiply(&mut team, &mut acts, rows, &input, &mut products);
                    }
                });
                let rate = (rows * k * n * all.len()) as f64 / best / 1e9;
                let bytes = (all[0].memory_bytes() * all.len()) as f64 / best / 1e9;
                println!("{} {kind:?} rows {rows}: {rate:.1} G products/s, {bytes:.1} GB/s", isa.name());
            }
        }
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn attention() {
    for isa in Isa::available().into_iter().skip(1) {
        let mut team = Team::with_isa(1, isa);
        let (heads, shape) = (9, KvShape { page_tokens: 32, kv_heads: 3, dim: 64 });
        let keys: Vec<f32> = (0..64 * shape.key_page()).map(|i| (i % 17) as f32 * 0.1).collect();
        let values = vec![0.5; 64 * shape.value_page()];
        let pages: Vec<u32> = (0..64).collect();
        for (rows, start) in [(512u32, 0u32), (1, 511), (1, 2000)] {
            let sights: Vec<_> =
                (start..start + rows).map(|position| Sight { pages: &pages, position }).collect();
            let query = vec![0.1; rows as usize * heads * shape.dim];
            let mut out = query.clone();
            let mut scratch = Vec::new();
            let scoring = Scoring { scale: 0.125, cap: None, window: None };
            let kv = Kv { shape, keys: &keys, values: &values };
            let best = time(|| attend(&mut team, (kv, scoring), &sights, &query, &mut out, &mut scratch));
            let seen: u64 = sights.iter().map(|sight| u64::from(sight.position) + 1).sum();
            let rate = (seen * 2 * (heads * shape.dim) as u64) as f64 / best / 1e9;
            println!("{} attention rows {rows} from {start}: {rate:.1} G products/s", isa.name());
        }
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn packing() {
    for kind in WeightType::ALL {
        let (k, n) = (768, 1536);
        let bytes: Vec<u8> = (0..kind.row_bytes(k).unwrap() * n).map(|i| (i * 37 % 61) as u8).collect();
        let best = time(|| drop(Matrix::pack(kind, k, n, &bytes).unwrap()));
        println!("packing {kind:?}: {:.2} GB/s", bytes.len() as f64 / best / 1e9);
    }
}

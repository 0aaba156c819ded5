//! How fast the engine is on the file named by `CARAVAN_TEST_MODEL`; run by hand with `--ignored
//! --nocapture` and `CARAVAN_TEST_THREADS`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use caravan_kernels::Team;
use caravan_worker::slice::Chunk;
use common::{TestModel, step};

#[test]
#[ignore = "a measurement, not a check"]
fn speed() {
    let Some(path) = common::model_path() else { return };
    let threads = std::env::var("CARAVAN_TEST_THREADS").map_or(2, |n| n.parse().unwrap());
    let begin = Instant::now();
    let model = TestModel::open(&path);
    let mut slices = model.load(&[], 400);
    slices[0].all_logits(false);
    println!("load {:?}, {} MB", begin.elapsed(), slices[0].memory_bytes() >> 20);
    let mut team = Team::new(threads);
    println!("threads {threads}, {}", team.isa().name());
    let prompt: Vec<u32> = (0..512).map(|i| (i * i * 7 + 13) % 40_000).collect();
    for chunk in [32, 128, 512] {
        let begin = Instant::now();
        for start in (0..512).step_by(chunk) {
            let tokens = prompt[start..start + chunk].to_vec();
            let chunk =
                Chunk { start: start as u32, tokens, pages: (0..16).collect(), sample: start + chunk == 512 };
            step(&mut slices, &mut team, &[chunk]);
        }
        println!("prefill 512 by {chunk}: {:.1} tokens/s", 512.0 / begin.elapsed().as_secs_f64());
    }
    for batch in [1u32, 4, 8, 16] {
        let begin = Instant::now();
        let steps = 48;
        for i in 0..steps {
            let row = |s: u32| Chunk {
                start: 128 + i,
                tokens: vec![100 + i],
                pages: (16 * s..16 * s + 16).collect(),
                sample: true,
            };
            step(&mut slices, &mut team, &(0..batch).map(row).collect::<Vec<_>>());
        }
        let rate = f64::from(steps * batch) / begin.elapsed().as_secs_f64();
        println!("decode batch {batch}: {rate:.1} tokens/s");
    }
    let layer = model.tensors.iter().filter(|t| {
        matches!(t.place, caravan_core::model::Place::Layer(3) | caravan_core::model::Place::Embed)
    });
    let layer: Vec<_> = layer.cloned().collect();
    let begin = Instant::now();
    let time = caravan_worker::measure::measure_layers(&model.config, &layer, &mut team, 1.0).unwrap();
    println!("measured in {:?}: {time:?}", begin.elapsed());
}

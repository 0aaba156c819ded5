//! How fast the engine is on the file named by `CARAVAN_TEST_MODEL`; run by hand with `--ignored
//! --nocapture` and `CARAVAN_TEST_THREADS`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use caravan_kernels::Team;
use caravan_worker::slice::Chunk;
use common::{TestModel, step};

/// Nanoseconds this thread has been on a core (Linux), which other processes do not lengthen.
fn cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

struct Clock(Instant, f64);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now(), cpu_ns())
    }

    fn print(&self, what: &str, tokens: u32) {
        let wall = f64::from(tokens) / self.0.elapsed().as_secs_f64();
        let cpu = f64::from(tokens) / ((cpu_ns() - self.1) / 1e9);
        println!("{what}: {wall:.1} tokens/s, {cpu:.1} per second on the core");
    }
}

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
        let clock = Clock::start();
        for start in (0..512).step_by(chunk) {
            let tokens = prompt[start..start + chunk].to_vec();
            let chunk =
                Chunk { start: start as u32, tokens, pages: (0..16).collect(), sample: start + chunk == 512 };
            step(&mut slices, &mut team, &[chunk]);
        }
        clock.print(&format!("prefill 512 by {chunk}"), 512);
    }
    for batch in [1u32, 4, 8, 16] {
        let clock = Clock::start();
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
        clock.print(&format!("decode batch {batch}"), steps * batch);
    }
    let layer = model.tensors.iter().filter(|t| {
        matches!(t.place, caravan_core::model::Place::Layer(3) | caravan_core::model::Place::Embed)
    });
    let layer: Vec<_> = layer.cloned().collect();
    let begin = Instant::now();
    let time = caravan_worker::measure::measure_layers(&model.config, &layer, &mut team, 1.0).unwrap();
    println!("measured in {:?}: {time:?}", begin.elapsed());
}

//! `caravan bench engine`: runs the engine in this process and tells how fast it was.
//!
//! Must never count a run that warmed caches up, nor hide how many runs a figure is of.

use std::time::{Duration, Instant};

use caravan_core::limits;
use caravan_core::plan::Slice;
use caravan_worker::bench::{Bench, Load, Setup, Test};
use caravan_worker::local::LocalModel;
use serde_json::{Value, json};

use crate::UsageError;
use crate::bench::spread::Spread;
use crate::catalogue;
use crate::cli::EngineArgs;
use crate::commands::worker::usable_cores;
use crate::term::{Term, print, size, table};

pub fn run(args: &EngineArgs) -> anyhow::Result<()> {
    let loads = loads(args)?;
    let term = Term::new();
    let file = catalogue::resolve(&args.model, &args.data, &term)?;
    let model = LocalModel::open(&file.path)?;
    let layers = layers_of(&model, args.layers)?;
    let threads = args.threads.map_or_else(usable_cores, |threads| threads as usize);
    let bar = term.steps("loading, %", 100);
    let setup = Setup { layers, threads, chunk: args.chunk };
    let mut bench = Bench::load(&model, setup, &loads, &|share| bar.set((share * 100.0) as u64))?;
    bar.done();
    let about = About {
        layers,
        threads: bench.threads(),
        isa: bench.isa(),
        chunk: args.chunk,
        bytes: bench.memory_bytes(),
    };
    let mut rows = vec![head()];
    for load in loads {
        let rates = measure(&mut bench, load, args, &term)?;
        if args.json {
            print(&format!("{}\n", line(load, &rates, &about)))?;
        }
        rows.push(row(load, &rates));
    }
    if args.json { Ok(()) } else { print(&format!("{}\n{}", about.words(&file.name), table(&rows))) }
}

/// The layers that were asked for, or all.
pub(super) fn layers_of(model: &LocalModel, asked: Option<(u32, u32)>) -> anyhow::Result<Slice> {
    match asked {
        None => Ok(model.whole()),
        Some((first, end)) if end <= model.whole().end => Ok(Slice { first, end }),
        Some((first, end)) => {
            let count = model.whole().end;
            Err(UsageError(format!("the model has {count} layers: there is no {first}..{end}")).into())
        }
    }
}

/// Prefill, then decode, at every depth and batch.
fn loads(args: &EngineArgs) -> anyhow::Result<Vec<Load>> {
    let mut loads = Vec::new();
    let shapes = args.depth.len().max(args.batch.len());
    if shapes > limits::BENCH_SHAPES {
        let most = limits::BENCH_SHAPES;
        return Err(UsageError(format!("{shapes} batches or depths are too many; at most {most}")).into());
    }
    for (test, tokens) in [(Test::Prefill, args.prompt), (Test::Decode, args.generate)] {
        for &depth in args.depth.iter().filter(|_| tokens > 0) {
            loads.extend(args.batch.iter().map(|&batch| Load { test, batch, depth, tokens }));
        }
    }
    if loads.is_empty() {
        return Err(
            UsageError("nothing to measure: give --prompt or --generate more than 0".to_owned()).into()
        );
    }
    Ok(loads)
}

/// Tokens a second of every counted run.
fn measure(bench: &mut Bench, load: Load, args: &EngineArgs, term: &Term) -> anyhow::Result<Spread> {
    let Load { batch, depth, tokens, .. } = load;
    let bar = term
        .steps(&format!("{} {tokens}, batch {batch}, depth {depth}", name(load.test)), args.repeat.into());
    let begun = Instant::now();
    bench.run(load)?;
    let mut rates = Vec::new();
    while rates.is_empty()
        || (rates.len() < args.repeat as usize && begun.elapsed() < Duration::from_secs(args.seconds))
    {
        let time = bench.run(load)?;
        rates.push(load.total_tokens() as f64 / time.as_secs_f64().max(1e-9));
        bar.set(rates.len() as u64);
    }
    bar.done();
    Ok(Spread::of(rates))
}

fn name(test: Test) -> &'static str {
    match test {
        Test::Prefill => "prefill",
        Test::Decode => "decode",
    }
}

/// What all lines of a run share.
struct About {
    layers: Slice,
    threads: usize,
    isa: &'static str,
    chunk: u32,
    bytes: u64,
}

impl About {
    fn words(&self, model: &str) -> String {
        let About { layers: Slice { first, end }, threads, isa, chunk, bytes } = *self;
        format!(
            "{model}, layers [{first},{end}), {threads} threads, {isa}, steps of up to {chunk} rows, {} in memory\n",
            size(bytes)
        )
    }
}

fn line(load: Load, rates: &Spread, about: &About) -> Value {
    json!({
        "test": name(load.test),
        "batch": load.batch,
        "tokens": load.tokens,
        "tokens_per_s": {"min": rates.min(), "median": rates.median(), "max": rates.max()},
        "depth": load.depth,
        "layers": [about.layers.first, about.layers.end],
        "threads": about.threads,
        "isa": about.isa,
        "chunk": about.chunk,
        "runs": rates.count(),
    })
}

fn head() -> Vec<String> {
    ["TEST", "BATCH", "DEPTH", "TOKENS", "TOK/S", "LEAST", "MOST", "RUNS"].map(str::to_owned).to_vec()
}

fn row(load: Load, rates: &Spread) -> Vec<String> {
    vec![
        name(load.test).to_owned(),
        load.batch.to_string(),
        load.depth.to_string(),
        load.tokens.to_string(),
        number(rates.median()),
        number(rates.min()),
        number(rates.max()),
        rates.count().to_string(),
    ]
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.1}"))
}

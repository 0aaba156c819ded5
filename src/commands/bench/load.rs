//! `caravan bench load`: loads a slice from blobs in the page cache and tells how fast that was.
//!
//! Must never count a run that brought the blobs into memory.

use std::time::{Duration, Instant};

use caravan_core::plan::Slice;
use caravan_worker::loading::{Loading, Times};
use caravan_worker::local::LocalModel;
use serde_json::json;

use super::engine::layers_of;
use crate::bench::spread::Spread;
use crate::catalogue;
use crate::cli::LoadArgs;
use crate::term::{Term, print, size, table};

/// Of a figure: its name, and which time of a run it is.
type Figure = (&'static str, fn(&Times) -> Duration);
const FIGURES: [Figure; 3] =
    [("read", |times| times.read), ("verify", |times| times.verify), ("load", |times| times.load)];

pub fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let term = Term::new();
    let file = catalogue::resolve(&args.model, &args.data, &term)?;
    let model = LocalModel::open(&file.path)?;
    let layers = layers_of(&model, args.layers)?;
    std::fs::create_dir_all(&args.data)?;
    let loading = Loading::prepare(&model, layers, &args.data)?;
    let bar = term.steps("loading", args.repeat.into());
    let begun = Instant::now();
    loading.run()?;
    let mut times = Vec::new();
    while times.is_empty()
        || (times.len() < args.repeat as usize && begun.elapsed() < Duration::from_secs(args.seconds))
    {
        times.push(loading.run()?);
        bar.set(times.len() as u64);
    }
    bar.done();
    let bytes = loading.bytes();
    let rates = |figure: fn(&Times) -> Duration| {
        Spread::of(times.iter().map(|times| bytes as f64 / figure(times).as_secs_f64().max(1e-9)).collect())
    };
    if args.json {
        let Slice { first, end } = layers;
        let mut line = json!({"test": "load", "layers": [first, end], "bytes": bytes, "runs": times.len()});
        for (name, figure) in FIGURES {
            let rates = rates(figure);
            line[format!("{name}_bytes_per_s")] =
                json!({"min": rates.min(), "median": rates.median(), "max": rates.max()});
        }
        return print(&format!("{line}\n"));
    }
    let mut rows = vec![["BLOBS ARE", "GB/S", "LEAST", "MOST"].map(str::to_owned).to_vec()];
    for (name, figure) in FIGURES {
        let rates = rates(figure);
        let shown = [rates.median(), rates.min(), rates.max()]
            .map(|rate| rate.map_or("-".to_owned(), |rate| format!("{:.2}", rate / 1e9)));
        let words = match name {
            "read" => "read, on one thread",
            "verify" => "read and verified",
            _ => "read, verified, loaded",
        };
        rows.push([words.to_owned()].into_iter().chain(shown).collect());
    }
    let Slice { first, end } = layers;
    print(&format!("{}, layers [{first},{end}), {}\n\n{}", file.name, size(bytes), table(&rows)))
}

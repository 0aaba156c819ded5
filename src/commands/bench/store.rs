//! `caravan bench store`: how many responses a group of coordinators stores a second, how long a page
//! of them takes, and how long the group takes to come back.
//!
//! Must never touch the files of a cluster: it makes a folder of its own and removes it.

use anyhow::Context;
use caravan_coordinator::consensus::{StoreFigures, StoreLoad, measure_store};
use serde_json::{Value, json};

use crate::bench::spread::Spread;
use crate::cli::StoreArgs;
use crate::term::{print, size};

pub fn run(args: &StoreArgs) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("caravan-bench-store-").tempdir_in(&args.folder);
    let folder = folder.with_context(|| format!("can't make a folder in {}", args.folder.display()))?;
    let load = StoreLoad {
        coordinators: args.coordinators,
        clients: args.clients,
        responses: args.responses,
        bytes: args.bytes as usize,
        pages: args.pages,
        folder: folder.path().to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(measure_store(load))?;
    drop(runtime);
    print(&if args.json { format!("{}\n", report(args, figures)) } else { shown(figures) })
}

fn report(args: &StoreArgs, figures: StoreFigures) -> Value {
    json!({
        "coordinators": args.coordinators,
        "clients": args.clients,
        "responses": args.responses,
        "responses_per_s": figures.responses_per_s,
        "commit_ms": Spread::of(figures.commit_ms).percentiles(),
        "page_ms": Spread::of(figures.page_ms).percentiles(),
        "restart_ms": figures.restart_ms,
        "file_bytes": figures.file_bytes,
    })
}

fn shown(figures: StoreFigures) -> String {
    let (commits, pages) = (Spread::of(figures.commit_ms), Spread::of(figures.page_ms));
    let line = |spread: &Spread| {
        let value = |percent| spread.percentile(percent).map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        format!("median {} ms, p99 {} ms", value(50), value(99))
    };
    format!(
        "{:.0} responses a second\na commit: {}\na page: {}\nall coordinators back after {:.0} ms\nfiles: {}\n",
        figures.responses_per_s,
        line(&commits),
        line(&pages),
        figures.restart_ms,
        size(figures.file_bytes)
    )
}

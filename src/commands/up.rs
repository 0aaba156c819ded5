//! `caravan up`: a whole cluster of processes on this machine.
//!
//! Must never compute or decide anything of the cluster: it starts the same processes that a
//! deployment starts, and watches them.

use std::time::Duration;

use anyhow::Context;

use crate::UsageError;
use crate::catalogue;
use crate::cli::UpArgs;
use crate::commands::worker::usable_cores;
use crate::local::files::{DataLock, processes_path};
use crate::local::specs::{Cluster, LogSettings, group_folder, url, worker_id};
use crate::local::supervise::{Supervision, supervise};
use crate::local::{ports, ready};
use crate::stop::Signals;
use crate::term::{Term, print, size};

pub fn run(mut args: UpArgs, log: &LogSettings) -> anyhow::Result<()> {
    let term = Term::new();
    check_throttle(&args)?;
    std::fs::create_dir_all(&args.data)
        .and_then(|()| args.data.canonicalize())
        .map(|data| args.data = data)
        .with_context(|| {
            format!("can't use the data folder {}; choose another with --data", args.data.display())
        })?;
    let _lock = DataLock::take(&args.data)?;
    let model = catalogue::resolve(&args.model, &args.data, &term)?;
    let bytes = catalogue::bytes(&model.path);
    term.line(&format!("model {}: {}, {}", model.name, size(bytes), model.path.display()));

    say_other_groups(&args, &term);
    let ports = ports::choose(&args.data, args.http, args.coordinators as usize, args.workers as usize)?;
    let threads = args.threads.unwrap_or_else(|| share_of_cores(args.workers));
    let program = std::env::current_exe().context("can't find this program's own file")?;
    let cluster = Cluster { program: &program, args: &args, model: &model, ports: &ports, threads, log };
    let http = ports.coordinators.first().map(|ports| url(ports.http)).context("no coordinator")?;
    term.line(&format!(
        "starting {} and {} of {}; data and logs in {}",
        count(args.coordinators, "coordinator"),
        count(args.workers, "worker"),
        count(threads, "thread"),
        args.data.display()
    ));
    let supervision = Supervision {
        processes: cluster.processes(),
        http: http.clone(),
        list: processes_path(&args.data),
        restart: !args.no_restart,
        ready_wait: Duration::from_secs(args.ready_timeout),
        term,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the async runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let readiness = ready::poll(&http, args.workers as usize);
        supervise(supervision, readiness, signals.next(), || announce(&http)).await
    })
}

/// The one line on standard output; programs wait for it.
fn announce(http: &str) {
    if let Err(error) = print(&format!("ready: {http}/v1\n")) {
        // The cluster serves all the same.
        tracing::warn!("{error:#}");
    }
}

/// Says when an earlier cluster of this folder had another number of coordinators.
fn say_other_groups(args: &UpArgs, term: &Term) {
    if group_folder(&args.data, args.coordinators).exists() {
        return;
    }
    for other in [1, 3, 5] {
        if group_folder(&args.data, other).exists() {
            term.line(&format!(
                "this is a new group of {}; the state of the group of {other} stays beside it, and comes back \
                 with --coordinators {other}",
                count(args.coordinators, "coordinator"),
            ));
        }
    }
}

fn check_throttle(args: &UpArgs) -> Result<(), UsageError> {
    let ids: Vec<String> = (0..args.workers as usize).map(worker_id).collect();
    match args.throttle.iter().find(|(id, _)| !ids.contains(id)) {
        Some((id, _)) => {
            Err(UsageError(format!("--throttle names {id}, but the workers are {}", ids.join(", "))))
        }
        None => Ok(()),
    }
}

/// Workers share this machine's cores, each with one at least.
fn share_of_cores(workers: u32) -> u32 {
    let cores = u32::try_from(usable_cores()).unwrap_or(1);
    (cores / workers.max(1)).max(1)
}

fn count(number: u32, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

//! `caravan worker`: one worker process.
//!
//! Must never hold the worker's logic; it only turns flags into its configuration.

use caravan_worker::node::{self, WorkerConfig};

use crate::cli::WorkerArgs;
use crate::stop;

/// Threads of the async runtime: it moves frames, while the compute threads are the worker's own.
const RUNTIME_THREADS: usize = 2;

pub fn run(args: WorkerArgs) -> anyhow::Result<()> {
    let config = WorkerConfig {
        id: args.id,
        join: args.join,
        listen: args.listen,
        advertise: args.advertise,
        data_dir: args.data,
        threads: args.threads.map_or_else(usable_cores, |threads| threads as usize),
        kv_bytes: args.kv_mib << 20,
        throttle: args.throttle,
    };
    stop::run_node(RUNTIME_THREADS, args.stop_with_stdin, |asked| async {
        node::run(config, async {
            let _ = asked.await;
        })
        .await
    })
}

/// Cores that this process may use: follows the affinity and the CPU quota of its container.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

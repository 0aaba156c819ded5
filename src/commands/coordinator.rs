//! `caravan coordinator`: one coordinator process.
//!
//! Must never hold the coordinator's logic; it only turns flags into its configuration.

use std::collections::BTreeMap;

use caravan_coordinator::node::{self, CoordinatorConfig};
use caravan_core::ids::CoordinatorId;

use crate::UsageError;
use crate::cli::CoordinatorArgs;
use crate::stop;

/// Threads of the async runtime at most; a coordinator computes nothing heavy.
const THREADS_MAX: usize = 8;

pub fn run(args: CoordinatorArgs) -> anyhow::Result<()> {
    let stdin = args.stop_with_stdin;
    let config = config(args)?;
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, THREADS_MAX));
    stop::run_node(threads, stdin, |asked| async {
        node::run(config, async {
            let _ = asked.await;
        })
        .await
    })
}

fn config(args: CoordinatorArgs) -> Result<CoordinatorConfig, UsageError> {
    let mut peers = BTreeMap::new();
    for (id, at) in args.peers {
        if peers.insert(CoordinatorId(id), at).is_some() {
            return Err(UsageError(format!("--peers names coordinator {id} twice; give each number once")));
        }
    }
    if peers.is_empty() {
        peers.insert(CoordinatorId(args.id), args.grpc.to_string());
    }
    if !peers.contains_key(&CoordinatorId(args.id)) {
        let id = args.id;
        return Err(UsageError(format!(
            "--peers lacks this coordinator: add {id}=HOST:PORT, the address at which the others reach it"
        )));
    }
    Ok(CoordinatorConfig {
        id: CoordinatorId(args.id),
        http: args.http,
        grpc: args.grpc,
        peers,
        data_dir: args.data,
        models: args.model,
        kv: args.kv,
        prefill_chunk_tokens: args.prefill_chunk,
        lease_ms: args.lease_ms,
    })
}

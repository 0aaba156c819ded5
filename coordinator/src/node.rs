//! One coordinator process: names every part and wires them; alone in doing so.
//!
//! Must never decide anything itself: it opens doors and hands parts to each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use caravan_core::cluster::{Command, Coordinator};
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

use crate::api::{self, ApiParts};
use crate::consensus::{Consensus, ConsensusConfig};
use crate::driver::{DriverConfig, Drivers};
use crate::fleet::{Fleet, FleetConfig};
use crate::generate::Generator;
use crate::model_files::ModelFiles;

#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    pub id: CoordinatorId,
    pub http: SocketAddr,
    /// gRPC address to listen on; what others reach it at is in `peers`.
    pub grpc: SocketAddr,
    /// gRPC `host:port` of every coordinator, this one included.
    pub peers: BTreeMap<CoordinatorId, String>,
    pub data_dir: PathBuf,
    /// Models to serve: catalogue name and file. May be empty: the replicated catalogue is used.
    pub models: Vec<(String, PathBuf)>,
    pub prefill_chunk_tokens: u32,
    pub lease_ms: u64,
}

/// Everything a coordinator is made of.
struct Parts {
    consensus: Consensus,
    drivers: Drivers,
    fleet: Fleet,
    models: ModelFiles,
    api: ApiParts,
}

/// Runs until `shutdown` resolves. Returns an error only if it can't start.
pub async fn run(config: CoordinatorConfig, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let advertised =
        config.peers.get(&config.id).cloned().context("--peers must name this coordinator's own id")?;
    let grpc = TcpListener::bind(config.grpc)
        .await
        .with_context(|| format!("can't listen for gRPC on {}: choose a free address", config.grpc))?;
    let http = TcpListener::bind(config.http)
        .await
        .with_context(|| format!("can't listen for HTTP on {}: choose a free address", config.http))?;
    let http_address = http.local_addr().context("reading the HTTP address")?.to_string();
    let parts = assemble(&config).await?;
    let (stop, stopped) = watch::channel(false);
    let grpc_task = tokio::spawn(serve_grpc(grpc, parts_services(&parts), stopped.clone()));
    let http_task = tokio::spawn(api::serve(http, api::router(parts.api.clone()), stopped_future(stopped)));
    let register = tokio::spawn(register(config, advertised, http_address, parts.consensus.clone(), parts.models));
    shutdown.await;
    register.abort();
    stop.send_replace(true);
    let bound = Duration::from_millis(limits::SHUTDOWN_MS);
    let _ = tokio::time::timeout(bound, http_task).await;
    parts.consensus.shutdown().await;
    let _ = tokio::time::timeout(bound, grpc_task).await;
    Ok(())
}

//! One coordinator process: names every part and wires them; alone in doing so.
//!
//! Must never decide anything itself: it opens doors and hands parts to each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use caravan_core::cluster::{Command, Coordinator, Outcome};
use caravan_core::error::Retry;
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use caravan_core::model::ModelSpec;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::api::{self, ApiParts};
use crate::consensus::{Consensus, ConsensusConfig};
use crate::driver::{DriverConfig, Drivers};
use crate::fleet::{Fleet, FleetConfig};
use crate::generate::Generator;
use crate::model_files::ModelFiles;
use crate::retention;

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

/// Runs until `shutdown` resolves. Returns an error only if it can't start.
pub async fn run(config: CoordinatorConfig, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let advertised =
        config.peers.get(&config.id).cloned().context("--peers must name this coordinator's own id")?;
    let grpc = listen("gRPC", config.grpc).await?;
    let http = listen("HTTP", config.http).await?;
    let http_address = http.local_addr().context("reading the HTTP address")?.to_string();
    let models = ModelFiles::open(config.data_dir.join("models"))?;
    let parts = assemble(&config, models.clone()).await?;
    let (stop, stopped) = watch::channel(false);
    let grpc_task = tokio::spawn(serve_grpc(grpc, parts.clone(), stopped.clone()));
    let http_task = tokio::spawn(api::serve(http, api::router(parts.clone()), until(stopped)));
    let me = Coordinator { grpc: advertised, http: http_address, holds: Vec::new() };
    let expiring = tokio::spawn(retention::run(parts.consensus.clone()));
    let registering = register(config, me, parts.consensus.clone(), models);
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        Err(error) = registering => Err(error),
    };
    expiring.abort();
    stop.send_replace(true);
    let bound = Duration::from_millis(limits::SHUTDOWN_MS);
    let _ = tokio::time::timeout(bound, http_task).await;
    parts.consensus.shutdown().await;
    let _ = tokio::time::timeout(bound, grpc_task).await;
    outcome
}

async fn listen(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can't listen for {what} on {address}: stop what uses it, or choose another")
    })
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Starts every part and hands them to each other.
async fn assemble(config: &CoordinatorConfig, models: ModelFiles) -> anyhow::Result<ApiParts> {
    let me = config.id;
    let consensus = Consensus::start(ConsensusConfig {
        me,
        data_dir: config.data_dir.clone(),
        peers: config.peers.clone(),
    })
    .await?;
    let drivers = Drivers::start(
        DriverConfig {
            me,
            prefill_chunk_tokens: config.prefill_chunk_tokens,
            step_rows: limits::STEP_ROWS,
            waiting_sequences: limits::WAITING_SEQUENCES,
        },
        consensus.clone(),
    );
    let fleet = Fleet::start(FleetConfig { me, lease_ms: config.lease_ms }, consensus.clone());
    let told = fleet.clone();
    drivers.on_broken(Arc::new(move |epoch, pipeline| told.pipeline_broken(epoch, &pipeline)));
    let generator = Generator::new(me, consensus.clone(), drivers.clone());
    let default_model = config.models.first().map(|(name, _)| name.clone());
    Ok(ApiParts { me, consensus, drivers, fleet, generator, models, default_model })
}

async fn serve_grpc(listener: TcpListener, parts: ApiParts, stopped: watch::Receiver<bool>) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_millis(limits::KEEPALIVE_MS)))
        .http2_keepalive_timeout(Some(Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS)))
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .add_service(parts.consensus.service())
        .add_service(parts.fleet.service())
        .add_service(parts.drivers.service())
        .add_service(parts.models.blobs_service())
        .add_service(api::control_service(parts.clone()))
        .serve_with_incoming_shutdown(incoming, until(stopped))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC door failed; restart this coordinator");
    }
}

/// Tells the cluster where this coordinator is and what models it brings, and then waits for ever.
/// Errors only for a file that can't be served: an operator's mistake must not look like a wait.
async fn register(
    config: CoordinatorConfig,
    mut me: Coordinator,
    consensus: Consensus,
    models: ModelFiles,
) -> anyhow::Result<()> {
    let id = config.id;
    let files = models.clone();
    let adding = tokio::task::spawn_blocking(move || add_all(&files, config.models));
    propose_until_done(&consensus, Command::RegisterCoordinator { id, coordinator: me.clone() }).await;
    let specs = adding.await.context("a bug of the coordinator")??;
    me.holds = models.holds();
    if !me.holds.is_empty() {
        // First who has the bytes, then the model: its tensors are asked for as soon as it is known.
        propose_until_done(&consensus, Command::RegisterCoordinator { id, coordinator: me }).await;
        for spec in specs {
            propose_until_done(&consensus, Command::AddModel { spec: Box::new(spec) }).await;
        }
    }
    std::future::pending().await
}

fn add_all(files: &ModelFiles, models: Vec<(String, PathBuf)>) -> anyhow::Result<Vec<ModelSpec>> {
    let add = |(name, path): (String, PathBuf)| {
        files.add(&name, &path, &|_| {}).with_context(|| format!("model {name} can't be served"))
    };
    models.into_iter().map(add).collect()
}

/// Without a leader there is nothing else to do than to ask again: each try waits for one itself.
async fn propose_until_done(consensus: &Consensus, command: Command) {
    loop {
        match consensus.propose(command.clone()).await {
            Ok(Outcome::Done | Outcome::Unchanged) => return,
            Ok(Outcome::Refused(why)) => {
                tracing::error!(why, "the cluster refused what this coordinator brings");
                return;
            }
            Err(refusal) => match refusal.retry {
                Retry::AfterMs(pause_ms) => {
                    tracing::debug!(%refusal, "not registered yet");
                    tokio::time::sleep(Duration::from_millis(pause_ms.min(limits::RAFT_RETRY_MS))).await;
                }
                Retry::Never => {
                    tracing::error!(%refusal, "this coordinator can't be registered");
                    return;
                }
            },
        }
    }
}

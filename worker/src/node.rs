//! One worker process: names every part and wires them.
//!
//! Must never hold logic of its own: what a part does is in the part's file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use caravan_core::limits;
use caravan_proto::wire;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use wire::blobs_server::BlobsServer;
use wire::stage_server::StageServer;

use crate::assign::Assigner;
use crate::attach::{Attach, Contacts, Measurer};
use crate::blobs::{BlobCache, BlobService};
use crate::compute::{Compute, Native};
use crate::engine::Engine;
use crate::machine;
use crate::masks::Masks;
use crate::service::StageService;
use crate::stages::Stages;

#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Stable name; unique in the cluster.
    pub id: String,
    /// gRPC `host:port` of one or more coordinators.
    pub join: Vec<String>,
    /// Address to listen on, e.g. `127.0.0.1:0`.
    pub listen: String,
    /// Address others reach it at; the bound one if `None`.
    pub advertise: Option<String>,
    /// Blob cache and identity.
    pub data_dir: PathBuf,
    pub threads: usize,
    pub kv_bytes: u64,
    /// For tests of placement: 1.0 is full speed, 0.5 takes twice the time for every computation.
    pub throttle: f64,
}

/// Runs until `shutdown` resolves. Returns an error only if it can't start (address taken, bad folder)
/// or if the cluster refuses it for good (another protocol version).
pub async fn run(config: WorkerConfig, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let threads = config.threads;
    run_with(config, move || Native::new(threads), shutdown).await
}

/// `run` with another arithmetic, for tests of everything around it.
pub async fn run_with<C: Compute>(
    config: WorkerConfig,
    make: impl FnOnce() -> C + Send + 'static,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    check(&config)?;
    let _lock = lock(&config.data_dir)?;
    let cache = BlobCache::open(&config.data_dir).with_context(|| folder_words(&config.data_dir))?;
    let cache = Arc::new(cache);
    let listener = TcpListener::bind(&config.listen).await.with_context(|| {
        format!("can't listen on {}: choose another address with --listen", config.listen)
    })?;
    let addr = advertised(&config, &listener)?;
    let stages = Arc::new(Stages::default());
    let engine = Engine::start(config.throttle, make).context("starting the engine's thread")?;
    let masks = Masks::start().context("starting the threads that follow constraints")?;
    let assigner = Assigner::new(stages.clone(), cache.clone(), engine.clone(), masks, addr.clone());
    let assigner = Arc::new(assigner);
    let (results, measured) = mpsc::channel(limits::MEASURES_WAITING);
    let (measurer, measuring) = Measurer::start(engine.clone(), results);
    let attach = Attach {
        hello: hello(&config, &addr),
        contacts: Contacts::new(config.join.clone()),
        stages: stages.clone(),
        cache: cache.clone(),
        assigner: assigner.clone(),
        measurer,
        measured,
    };
    let (stop, stopped) = oneshot::channel();
    let mut server = tokio::spawn(serve(listener, stages.clone(), cache, engine, stopped));
    let assigning = tokio::spawn({
        let assigner = assigner.clone();
        async move { assigner.run().await }
    });
    tracing::debug!(worker = config.id, addr, "worker listens");
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        error = attach.run() => Err(error),
        () = measuring => Err(anyhow::anyhow!("the measurer stopped; restart the worker")),
        ended = &mut server => Err(anyhow::anyhow!("the gRPC server stopped: {ended:?}; restart the worker")),
    };
    // Edges end first, with a reason, so that their calls don't hold up the server.
    stages.finish_all("the worker is leaving");
    drop(stop);
    let limit = Duration::from_millis(limits::SHUTDOWN_MS);
    let _ = tokio::time::timeout(limit, assigner.idle()).await;
    assigning.abort();
    if !server.is_finished() && tokio::time::timeout(limit, &mut server).await.is_err() {
        server.abort();
    }
    outcome
}

fn check(config: &WorkerConfig) -> anyhow::Result<()> {
    ensure!(!config.id.is_empty(), "a worker needs a name: --id");
    ensure!(!config.join.is_empty(), "a worker needs a coordinator's address: --join HOST:PORT");
    ensure!(config.threads >= 1, "a worker needs at least one thread: --threads");
    let throttle = config.throttle;
    ensure!(throttle > 0.0 && throttle <= 1.0, "the throttle is above 0 and at most 1, not {throttle}");
    Ok(())
}

/// One process for each folder; the lock goes with the process, however it ends.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data_dir).with_context(|| folder_words(data_dir))?;
    let file = File::create(data_dir.join("lock")).with_context(|| folder_words(data_dir))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another worker uses the folder {}: give each worker its own", data_dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| folder_words(data_dir)),
    }
}

fn folder_words(data_dir: &Path) -> String {
    format!("can't use the data folder {}: choose one this user can write to", data_dir.display())
}

fn advertised(config: &WorkerConfig, listener: &TcpListener) -> anyhow::Result<String> {
    if let Some(addr) = &config.advertise {
        return Ok(addr.clone());
    }
    let bound = listener.local_addr().context("reading the bound address")?;
    ensure!(
        !bound.ip().is_unspecified(),
        "listening on every interface ({bound}): say with --advertise HOST:PORT how others reach this worker"
    );
    Ok(bound.to_string())
}

fn hello(config: &WorkerConfig, addr: &str) -> wire::WorkerHello {
    wire::WorkerHello {
        protocol_version: limits::PROTOCOL_VERSION,
        worker: config.id.clone(),
        incarnation: machine::process_number(),
        grpc: addr.to_owned(),
        device: "cpu".to_owned(),
        threads: u32::try_from(config.threads).unwrap_or(u32::MAX),
        memory_bytes: machine::memory_bytes(),
        kv_bytes: config.kv_bytes,
        numerics: crate::slice::numerics(),
        epoch: 0,
    }
}

async fn serve<C: Compute>(
    listener: TcpListener,
    stages: Arc<Stages>,
    cache: Arc<BlobCache>,
    engine: Engine<C>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), tonic::transport::Error> {
    let stage = StageServer::new(StageService::new(stages, engine))
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES);
    let blobs = BlobsServer::new(BlobService::new(cache));
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_millis(limits::KEEPALIVE_MS)))
        .http2_keepalive_timeout(Some(Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS)))
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .add_service(stage)
        .add_service(blobs)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
            // Dropped or sent: both mean stop.
            let _ = stopped.await;
        })
        .await
}

//! One worker process: names every part and wires them.

use std::path::PathBuf;

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

/// Runs until `shutdown` resolves. Returns an error only if it can't start (address taken, bad folder).
pub async fn run(_config: WorkerConfig, _shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    todo!()
}

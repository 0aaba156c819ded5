//! One coordinator process: names every part and wires them; alone in doing so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use caravan_core::ids::CoordinatorId;

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
pub async fn run(_config: CoordinatorConfig, _shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    todo!()
}

//! Connections to other nodes, and how good they are.
//!
//! Must never keep a connection on anybody's behalf: the caller owns what it opened.

use std::time::{Duration, Instant};

use bytes::Bytes;
use caravan_core::limits;
use caravan_proto::wire;
use futures::StreamExt;
use tonic::transport::{Channel, Endpoint};
use wire::stage_client::StageClient;

/// How soon a silent peer is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub every: Duration,
    pub patience: Duration,
}

impl Keepalive {
    /// Between workers, and to the driver.
    pub const PEER: Keepalive = Keepalive {
        every: Duration::from_millis(limits::KEEPALIVE_MS),
        patience: Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS),
    };
    /// To the leader.
    pub const LEADER: Keepalive = Keepalive {
        every: Duration::from_millis(limits::ATTACH_KEEPALIVE_MS),
        patience: Duration::from_millis(limits::ATTACH_KEEPALIVE_TIMEOUT_MS),
    };
}

/// Settings of a connection to `addr` (`host:port`). Errors if that is no address.
pub fn endpoint(addr: &str, keepalive: Keepalive) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{addr}"))?
        .connect_timeout(Duration::from_millis(limits::CONNECT_MS))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(keepalive.every)
        .keep_alive_timeout(keepalive.patience)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES))
}

/// Connects now; fails within `limits::CONNECT_MS`.
pub async fn connect(addr: &str, keepalive: Keepalive) -> Result<Channel, tonic::transport::Error> {
    endpoint(addr, keepalive)?.connect().await
}

/// A client of a worker's stage service with the message limits of this build.
pub fn stage_client(channel: Channel) -> StageClient<Channel> {
    StageClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES)
}

/// Tests the links to `peers`. Who can't be reached is left out.
pub async fn measure(peers: Vec<wire::Peer>) -> Vec<wire::MeasuredLink> {
    let tests = peers.into_iter().take(limits::WORKERS).map(|peer| async move {
        let limit = Duration::from_millis(limits::LINK_TEST_MS);
        match tokio::time::timeout(limit, test(&peer)).await {
            Ok(Ok(link)) => Some(link),
            Ok(Err(error)) => {
                tracing::debug!(worker = peer.worker, %error, "link test failed");
                None
            }
            Err(_) => None,
        }
    });
    let mut links: Vec<wire::MeasuredLink> = futures::stream::iter(tests)
        .buffer_unordered(limits::LINK_TESTS)
        .filter_map(|link| async move { link })
        .collect()
        .await;
    links.sort_by(|a, b| a.worker.cmp(&b.worker));
    links
}

/// Latency is half of the median round trip; bandwidth is that of one large answer, without the
/// round trip it also cost.
async fn test(peer: &wire::Peer) -> anyhow::Result<wire::MeasuredLink> {
    let mut client = stage_client(connect(&peer.grpc, Keepalive::PEER).await?);
    // The first call pays for setting up the connection.
    ping(&mut client, 0).await?;
    let mut trips = Vec::with_capacity(limits::PINGS);
    for _ in 0..limits::PINGS {
        trips.push(ping(&mut client, 0).await?);
    }
    trips.sort();
    let trip = trips.get(trips.len() / 2).copied().unwrap_or_default();
    let whole = ping(&mut client, limits::PING_BANDWIDTH_BYTES).await?;
    let transfer = whole.saturating_sub(trip).max(whole / 10).max(Duration::from_micros(1));
    Ok(wire::MeasuredLink {
        worker: peer.worker.clone(),
        latency_ms: trip.as_secs_f64() * 1e3 / 2.0,
        bytes_per_s: f64::from(limits::PING_BANDWIDTH_BYTES) / transfer.as_secs_f64(),
    })
}

async fn ping(client: &mut StageClient<Channel>, reply_bytes: u32) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let reply = client.ping(wire::PingRequest { payload: Bytes::new(), reply_bytes }).await?.into_inner();
    anyhow::ensure!(reply.payload.len() == reply_bytes as usize, "a ping of the wrong size came back");
    Ok(begun.elapsed())
}

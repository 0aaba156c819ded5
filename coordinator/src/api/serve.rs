//! The listener: connections bounded in number, their headers in size and time, shutdown in time.
//!
//! Must never read a body or know a route.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use caravan_core::limits;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::Layer;

use super::auth::Peer;

/// What a client gets when there are too many.
const CROWDED: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
connection: close\r\n\r\n\
{\"error\":{\"message\":\"this coordinator has as many connections as it may have; try again\",\
\"type\":\"server_error\",\"param\":null,\"code\":\"overloaded\"}}";

/// Serves `router` on `listener` until `shutdown` resolves; then open connections may finish their
/// request for `limits::HTTP_DRAIN_MS`. Errors only if the listener itself fails for good.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection's task failed");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                connections.spawn(async move {
                    connection(stream, from, router, stopping).await;
                    drop(place);
                });
            }
            Err(_) => turn_away(stream),
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    // What is left is cut off when the set is dropped.
    let _ = tokio::time::timeout(Duration::from_millis(limits::HTTP_DRAIN_MS), all).await;
    Ok(())
}

/// A connection that broke before it was accepted is none of our business; running out of file
/// descriptors passes when connections end, and accepting again at once would spin.
async fn pause_after(error: &std::io::Error) {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(Duration::from_millis(limits::RAFT_HEARTBEAT_MS)).await;
    }
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%from, %error, "no TCP_NODELAY");
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits::HTTP_HEADER_READ_MS))
        .max_buf_size(limits::HTTP_HEADER_BYTES);
    // Every request of the connection carries where it came from.
    let service = Extension(Peer(from)).layer(router);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = told(&mut stopping) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%from, %error, "a connection ended early");
    }
}

/// Resolves when the coordinator stops.
async fn told(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Says why, without waiting for the client.
fn turn_away(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        // A fresh socket takes so few bytes at once, or the client is gone.
        let _ = stream.write_all(CROWDED.as_bytes());
    }
}

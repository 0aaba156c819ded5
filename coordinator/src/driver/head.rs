//! The edge from the driver to the first stage.
//!
//! Must never be opened again once it was accepted: steps may be lost in between, so its end ends
//! the pipeline's epoch.

use std::time::Duration;

use caravan_core::limits;
use caravan_proto::wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use wire::edge_frame::Frame;
use wire::stage_client::StageClient;

/// An accepted edge. Dropping it closes it.
pub(super) struct Head {
    pub frames: mpsc::Sender<wire::EdgeFrame>,
    /// Nothing comes here any more but the status at the end.
    pub replies: Streaming<wire::EdgeReady>,
}

/// Tries until the first stage is ready. `Err` says in words why this epoch can't get there; an
/// epoch that is overtaken is the caller's to notice.
pub(super) async fn open(addr: &str, hello: &wire::EdgeHello, steps: usize) -> Result<Head, String> {
    loop {
        let status = match attempt(addr, hello, steps).await {
            Ok(head) => return Ok(head),
            Err(status) => status,
        };
        if is_final(status.code()) {
            return Err(format!("the first stage at {addr} refused the edge: {}", words(&status)));
        }
        tracing::debug!(
            epoch = hello.epoch,
            pipeline = hello.pipeline,
            addr,
            why = words(&status),
            "not ready yet"
        );
        tokio::time::sleep(Duration::from_millis(limits::HEAD_RETRY_MS)).await;
    }
}

/// Answers that another attempt in the same epoch can't change. `FailedPrecondition` is not among
/// them: it says that a newer epoch exists, which will be known here in a moment.
fn is_final(code: Code) -> bool {
    matches!(code, Code::Aborted | Code::NotFound | Code::InvalidArgument | Code::Unimplemented)
}

/// A status without the noise of its debug form.
pub(super) fn words(status: &Status) -> String {
    if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() }
}

async fn attempt(addr: &str, hello: &wire::EdgeHello, steps: usize) -> Result<Head, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|_| Status::invalid_argument("the worker's address is no address"))?
        .connect_timeout(Duration::from_millis(limits::CONNECT_MS))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_millis(limits::KEEPALIVE_MS))
        .keep_alive_timeout(Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS))
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = StageClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES);
    let (frames, queue) = mpsc::channel(limits::EDGE_FRAMES.max(steps + 1));
    let first = wire::EdgeFrame { frame: Some(Frame::Hello(hello.clone())) };
    frames.try_send(first).map_err(|error| Status::internal(error.to_string()))?;
    // No time limit: the worker may have to fetch its slice first, and keepalive ends a dead call.
    let mut replies = client.edge(ReceiverStream::new(queue)).await?.into_inner();
    match replies.message().await? {
        Some(ready) if ready.epoch == hello.epoch => Ok(Head { frames, replies }),
        Some(_) => Err(Status::invalid_argument("it said ready for another epoch")),
        None => Err(Status::unavailable("it ended the call before it was ready")),
    }
}

impl Head {
    /// Resolves when the first stage closes the edge; says why.
    pub(super) async fn ended(&mut self) -> String {
        match self.replies.message().await {
            Ok(Some(_)) => "the first stage said ready twice".to_owned(),
            Ok(None) => "the first stage closed the edge".to_owned(),
            Err(status) => format!("the edge to the first stage ended: {}", words(&status)),
        }
    }
}

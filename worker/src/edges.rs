//! The outgoing edge of a stage: opened to the next stage's worker or to the driver, watched until it ends.
//!
//! Must never be opened again in the same epoch once it was accepted: steps may be lost in between,
//! so its loss ends the stage, and the next epoch recovers.

use std::sync::Arc;
use std::time::Duration;

use caravan_core::limits;
use caravan_proto::wire;
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use wire::driver_client::DriverClient;

use crate::links::{self, Keepalive};
use crate::stages::{Cause, OutFrame, Phase, StageCell};

/// Where a stage's output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// gRPC address of the next stage's worker.
    Next(String),
    /// gRPC address of the driver: this is the last stage.
    Driver(String),
}

/// An accepted edge. Dropping it closes it.
struct Outgoing {
    frames: mpsc::Sender<OutFrame>,
    replies: Streaming<wire::EdgeReady>,
    /// Ends the stream of frames, whoever still holds a sender.
    _close: oneshot::Sender<()>,
}

/// Opens the edge, says that the stage is ready, and stays until the edge or the stage ends; then
/// both have ended.
pub async fn run(cell: &Arc<StageCell>, target: &Target) {
    cell.set_phase(Phase::Connecting);
    let Some(mut edge) = open(cell, target).await else { return };
    cell.make_ready(edge.frames.clone());
    tracing::debug!(epoch = cell.epoch, pipeline = cell.pipeline, stage = cell.stage, "stage ready");
    let why = tokio::select! {
        _ = cell.ended() => return,
        reply = edge.replies.message() => match reply {
            Ok(Some(_)) => "it said ready twice".to_owned(),
            Ok(None) => "it closed the edge".to_owned(),
            Err(status) => words(&status),
        },
    };
    cell.finish(Cause::Broken, format!("the edge to {} broke: {why}", target.name()));
}

impl Target {
    fn name(&self) -> String {
        match self {
            Target::Next(addr) => format!("the next stage at {addr}"),
            Target::Driver(addr) => format!("the driver at {addr}"),
        }
    }
}

/// A status without the noise of its debug form.
fn words(status: &Status) -> String {
    if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() }
}

/// Tries until the edge is accepted (`Some`) or the stage has ended (`None`).
async fn open(cell: &Arc<StageCell>, target: &Target) -> Option<Outgoing> {
    loop {
        let ended = cell.ended();
        let refused = tokio::select! {
            _ = ended => return None,
            attempt = attempt(cell, target) => match attempt {
                Ok(edge) => return Some(edge),
                Err(status) => status,
            },
        };
        if is_final(refused.code()) {
            cell.finish(Cause::Broken, format!("{} refused the edge: {}", target.name(), words(&refused)));
            return None;
        }
        tracing::debug!(
            epoch = cell.epoch,
            pipeline = cell.pipeline,
            target = target.name(),
            why = words(&refused),
            "edge not accepted yet"
        );
        tokio::select! {
            _ = cell.ended() => return None,
            () = tokio::time::sleep(Duration::from_millis(limits::EDGE_RETRY_MS)) => {}
        }
    }
}

/// Answers that another attempt in the same epoch can't change.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition
            | Code::Aborted
            | Code::InvalidArgument
            | Code::NotFound
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

async fn attempt(cell: &Arc<StageCell>, target: &Target) -> Result<Outgoing, Status> {
    let (frames, queue) = mpsc::channel(limits::EDGE_FRAMES);
    let (close, closed) = oneshot::channel::<()>();
    let hello = wire::EdgeHello {
        protocol_version: limits::PROTOCOL_VERSION,
        epoch: cell.epoch,
        pipeline: cell.pipeline.clone(),
        stage: cell.stage + 1,
    };
    // The receiver's hold bounds the wait; the rest is for a peer that does not keep to it.
    let limit = Duration::from_millis(limits::EDGE_HOLD_MS + limits::EDGE_HELLO_MS);
    let answer = tokio::time::timeout(limit, async {
        let mut replies = call(target, hello, queue, closed).await?;
        match replies.message().await? {
            Some(ready) if ready.epoch == cell.epoch => Ok(replies),
            Some(_) => Err(Status::invalid_argument("it said ready for another epoch")),
            None => Err(Status::unavailable("it ended the call before it was ready")),
        }
    });
    let replies = answer.await.map_err(|_| Status::unavailable("no answer"))??;
    Ok(Outgoing { frames, replies, _close: close })
}

async fn call(
    target: &Target,
    hello: wire::EdgeHello,
    queue: mpsc::Receiver<OutFrame>,
    closed: oneshot::Receiver<()>,
) -> Result<Streaming<wire::EdgeReady>, Status> {
    let (Target::Next(addr) | Target::Driver(addr)) = target;
    let channel = links::connect(addr, Keepalive::PEER)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let frames = ReceiverStream::new(queue).take_until(closed);
    match target {
        Target::Next(_) => {
            let first = wire::EdgeFrame { frame: Some(wire::edge_frame::Frame::Hello(hello)) };
            let frames = futures::stream::iter([first]).chain(frames.filter_map(|frame| async move {
                match frame {
                    OutFrame::Step(step) => {
                        Some(wire::EdgeFrame { frame: Some(wire::edge_frame::Frame::Step(step)) })
                    }
                    OutFrame::Result(_) => None,
                }
            }));
            Ok(links::stage_client(channel).edge(frames).await?.into_inner())
        }
        Target::Driver(_) => {
            let first = wire::ResultFrame { frame: Some(wire::result_frame::Frame::Hello(hello)) };
            let frames = futures::stream::iter([first]).chain(frames.filter_map(|frame| async move {
                match frame {
                    OutFrame::Result(result) => {
                        Some(wire::ResultFrame { frame: Some(wire::result_frame::Frame::Result(result)) })
                    }
                    OutFrame::Step(_) => None,
                }
            }));
            let mut client = DriverClient::new(channel)
                .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
                .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES);
            Ok(client.results(frames).await?.into_inner())
        }
    }
}

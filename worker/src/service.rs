//! The stage service: takes the incoming edge of each stage, in the epoch it belongs to and no other.
//!
//! Must never compute or hold a step back: steps go to the engine in the order they came.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caravan_core::limits;
use caravan_proto::{WireError, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::edge_frame::Frame;

use crate::compute::Compute;
use crate::engine::Engine;
use crate::stages::{Cause, Claim, Found, OutFrame, StageCell, Stages};

/// The gRPC service `Stage` of this worker.
pub struct StageService<C: Compute> {
    stages: Arc<Stages>,
    engine: Engine<C>,
}

impl<C: Compute> StageService<C> {
    pub fn new(stages: Arc<Stages>, engine: Engine<C>) -> Self {
        StageService { stages, engine }
    }
}

#[tonic::async_trait]
impl<C: Compute> wire::stage_server::Stage for StageService<C> {
    type EdgeStream = ReceiverStream<Result<wire::EdgeReady, Status>>;

    async fn edge(
        &self,
        request: Request<Streaming<wire::EdgeFrame>>,
    ) -> Result<Response<Self::EdgeStream>, Status> {
        let mut frames = request.into_inner();
        let hello = read_hello(&mut frames).await?;
        let hold = Duration::from_millis(limits::EDGE_HOLD_MS);
        let accepted = tokio::time::timeout(hold, accept(&self.stages, &hello)).await;
        let (claim, out) =
            accepted.map_err(|_| Status::unavailable("this stage is not ready yet; try again shortly"))??;
        let (replies, stream) = mpsc::channel(2);
        let ready = wire::EdgeReady { epoch: hello.epoch };
        // Both places of the channel are free: the answer, and the status at the end.
        replies.try_send(Ok(ready)).map_err(|error| Status::internal(error.to_string()))?;
        let pump = Pump { stages: self.stages.clone(), engine: self.engine.clone(), claim, out };
        tokio::spawn(async move {
            let status = pump.run(frames).await;
            // The stage before may be gone; then nobody needs the reason.
            let _ = replies.send(Err(status)).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn ping(&self, request: Request<wire::PingRequest>) -> Result<Response<wire::PingReply>, Status> {
        let bytes = request.into_inner().reply_bytes;
        if bytes > limits::PING_BYTES {
            return Err(Status::invalid_argument(format!(
                "a ping answers with at most {} bytes",
                limits::PING_BYTES
            )));
        }
        Ok(Response::new(wire::PingReply { payload: Bytes::from(vec![0u8; bytes as usize]) }))
    }
}

async fn read_hello(frames: &mut Streaming<wire::EdgeFrame>) -> Result<wire::EdgeHello, Status> {
    let limit = Duration::from_millis(limits::EDGE_HELLO_MS);
    let first = tokio::time::timeout(limit, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded("an edge begins with a hello; none came"))??;
    let Some(wire::EdgeFrame { frame: Some(Frame::Hello(hello)) }) = first else {
        return Err(WireError::Missing("hello").into());
    };
    if hello.protocol_version != limits::PROTOCOL_VERSION {
        return Err(Status::failed_precondition(format!(
            "this worker speaks version {} of the protocol between nodes, the other side version {}: \
             run the same build of caravan on every node",
            limits::PROTOCOL_VERSION,
            hello.protocol_version
        )));
    }
    Ok(hello)
}

/// Waits until the stage of the hello's epoch is ready, and takes its one incoming place.
async fn accept(stages: &Stages, hello: &wire::EdgeHello) -> Result<(Claim, mpsc::Sender<OutFrame>), Status> {
    let cell = loop {
        match stages.find(hello.epoch, &hello.pipeline, hello.stage) {
            Found::Older(current) => return Err(stages.fence("an edge", hello.epoch, current)),
            Found::Newer => stages.reaches(hello.epoch).await,
            Found::Nothing => {
                return Err(Status::not_found(format!(
                    "this worker has no stage {} of pipeline {} in epoch {}",
                    hello.stage, hello.pipeline, hello.epoch
                )));
            }
            Found::Stage(cell) => break cell,
        }
    };
    if let Some(end) = cell.end() {
        return Err(end.status());
    }
    let mut claim = cell.claim().ok_or_else(|| {
        Status::already_exists("this stage already has its incoming edge; there is one in each epoch")
    })?;
    let out = cell.ready().await.map_err(|end| end.status())?;
    claim.establish();
    Ok((claim, out))
}

/// Moves the steps of one edge to the engine.
struct Pump<C: Compute> {
    stages: Arc<Stages>,
    engine: Engine<C>,
    /// Ends the stage when the pump ends.
    claim: Claim,
    out: mpsc::Sender<OutFrame>,
}

impl<C: Compute> Pump<C> {
    /// Until the edge or the stage ends; the status that says why.
    async fn run(self, mut frames: Streaming<wire::EdgeFrame>) -> Status {
        let cell = self.claim.cell().clone();
        let ended = cell.ended();
        tokio::pin!(ended);
        loop {
            let next = tokio::select! {
                biased;
                end = &mut ended => return end.status(),
                next = self.next(&cell, &mut frames) => next,
            };
            if let Err(status) = next {
                cell.finish(Cause::Broken, format!("the edge into this stage ended: {}", status.message()));
                return status;
            }
        }
    }

    async fn next(
        &self,
        cell: &Arc<StageCell>,
        frames: &mut Streaming<wire::EdgeFrame>,
    ) -> Result<(), Status> {
        let frame = frames.message().await?.ok_or_else(|| Status::cancelled("the edge was closed"))?;
        let Some(Frame::Step(step)) = frame.frame else {
            return Err(WireError::Missing("step").into());
        };
        if step.epoch < cell.epoch {
            return Err(self.stages.fence("a step", step.epoch, cell.epoch));
        }
        if step.epoch > cell.epoch {
            return Err(WireError::Bad("epoch").into());
        }
        // The place for the output is taken before the step is queued, so the engine never waits:
        // a slow next stage holds back this edge only, and through it the stage before.
        let place = self.out.clone().reserve_owned().await;
        let place = place.map_err(|_| Status::aborted("the edge to the next stage is closed"))?;
        self.engine.step(cell.clone(), step, place).await.map_err(|error| Status::aborted(error.to_string()))
    }
}

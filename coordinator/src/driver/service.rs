//! The gRPC service `Driver`: results from last stages, and records from other gateways.
//!
//! Must never let a message of an older epoch reach a pipeline's task.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caravan_core::ids::{Epoch, PipelineId};
use caravan_core::limits;
use caravan_core::request::{GenerateEvent, RequestRecord};
use caravan_proto::{WireError, pack, unpack, wire};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::driver_server::{Driver, DriverServer};
use wire::result_frame::Frame;

use super::{Drivers, NOT_DRIVER, NOT_READY, Shared};

/// To the last stage: that it was accepted, and the status at the end.
pub(super) type Replies = mpsc::Sender<Result<wire::EdgeReady, Status>>;

/// An edge from a last stage, of an epoch that is current here.
pub(super) struct ResultsEdge {
    frames: Streaming<wire::ResultFrame>,
    replies: Replies,
}

impl ResultsEdge {
    /// Says ready. `None` if the last stage has already given this edge up.
    pub(super) fn accept(self, epoch: Epoch) -> Option<(Streaming<wire::ResultFrame>, Replies)> {
        self.replies.try_send(Ok(wire::EdgeReady { epoch: epoch.0 })).ok()?;
        Some((self.frames, self.replies))
    }
}

pub struct DriverService {
    drivers: Drivers,
}

pub(super) fn server(drivers: Drivers) -> DriverServer<DriverService> {
    DriverServer::new(DriverService { drivers })
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl Driver for DriverService {
    type ResultsStream = ReceiverStream<Result<wire::EdgeReady, Status>>;

    async fn results(
        &self,
        request: Request<Streaming<wire::ResultFrame>>,
    ) -> Result<Response<Self::ResultsStream>, Status> {
        let mut frames = request.into_inner();
        let hello = read_hello(&mut frames).await?;
        let hold = Duration::from_millis(limits::RESULTS_HOLD_MS);
        let inbox = tokio::time::timeout(hold, find(&self.drivers.shared, &hello))
            .await
            .map_err(|_| Status::unavailable("this epoch is not known here yet; try again shortly"))??;
        // Two places: the answer, and the status at the end.
        let (replies, stream) = mpsc::channel(2);
        inbox.try_send(ResultsEdge { frames, replies }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Status::unavailable("another edge is being looked at"),
            mpsc::error::TrySendError::Closed(_) => Status::aborted(format!(
                "pipeline {} had its edge in epoch {}, and has only one; wait for the next epoch",
                hello.pipeline, hello.epoch
            )),
        })?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type GenerateStream = Pin<Box<dyn Stream<Item = Result<wire::GenerateReply, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let record: RequestRecord = unpack(&request.into_inner().record, "record")?;
        let id = record.id.clone();
        match self.drivers.submit(record).await {
            Ok(events) => Ok(Response::new(Box::pin(ReceiverStream::new(events).map(reply)))),
            Err(refusal) if refusal.code == NOT_DRIVER => Err(Status::failed_precondition(refusal.message)),
            Err(refusal) if refusal.code == NOT_READY => Err(Status::unavailable(refusal.message)),
            Err(refusal) => {
                tracing::debug!(request = id, code = refusal.code, "record refused");
                let event = GenerateEvent::Refused(refusal);
                Ok(Response::new(Box::pin(tokio_stream::once(event).map(reply))))
            }
        }
    }
}

fn reply(event: GenerateEvent) -> Result<wire::GenerateReply, Status> {
    Ok(wire::GenerateReply { event: pack(&event)? })
}

async fn read_hello(frames: &mut Streaming<wire::ResultFrame>) -> Result<wire::EdgeHello, Status> {
    let limit = Duration::from_millis(limits::RESULTS_HELLO_MS);
    let first = tokio::time::timeout(limit, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded("an edge begins with a hello; none came"))??;
    let Some(wire::ResultFrame { frame: Some(Frame::Hello(hello)) }) = first else {
        return Err(WireError::Missing("hello").into());
    };
    if hello.protocol_version != limits::PROTOCOL_VERSION {
        return Err(Status::failed_precondition(format!(
            "this coordinator speaks version {} of the protocol between nodes, the other side version {}: \
             run the same build of caravan on every node",
            limits::PROTOCOL_VERSION,
            hello.protocol_version
        )));
    }
    Ok(hello)
}

/// Waits until the hello's epoch is known here, and finds the pipeline's task.
async fn find(shared: &Shared, hello: &wire::EdgeHello) -> Result<mpsc::Sender<ResultsEdge>, Status> {
    let mut roster = shared.roster.subscribe();
    let epoch = Epoch(hello.epoch);
    let known = roster.wait_for(|roster| roster.epoch >= epoch).await;
    let known = known.map_err(|_| Status::unavailable("this coordinator is stopping"))?;
    if known.epoch > epoch {
        shared.fenced.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            epoch = hello.epoch,
            current = known.epoch.0,
            pipeline = hello.pipeline,
            "fenced an edge"
        );
        return Err(Status::failed_precondition(format!(
            "epoch {epoch} is over, {} is current; ask for the plan again",
            known.epoch
        )));
    }
    let entry = known.here.get(&PipelineId(hello.pipeline.clone()));
    entry.map(|entry| entry.results.clone()).ok_or_else(|| {
        Status::not_found(format!("pipeline {} of epoch {epoch} is not driven here", hello.pipeline))
    })
}

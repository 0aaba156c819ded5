//! Admin calls between coordinators: a follower's HTTP door asks, the leader answers.
//!
//! Must never pass a call on: a coordinator that does not lead says so.

use std::sync::Arc;
use std::time::Duration;

use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_proto::wire;
use caravan_proto::wire::control_client::ControlClient;
use caravan_proto::wire::control_server::{Control, ControlServer};
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use super::ApiParts;
use super::admin::{self, Call};
use super::backend::Backend;
use super::errors::ApiError;

/// The `Control` service of a coordinator.
pub struct ControlService {
    backend: Arc<dyn Backend>,
}

/// For the coordinator's gRPC server.
pub fn control_service(parts: ApiParts) -> ControlServer<ControlService> {
    service(Arc::new(parts))
}

pub(super) fn service(backend: Arc<dyn Backend>) -> ControlServer<ControlService> {
    ControlServer::new(ControlService { backend }).max_decoding_message_size(limits::HTTP_BODY_BYTES)
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn admin(
        &self,
        request: Request<wire::AdminRequest>,
    ) -> Result<Response<wire::AdminReply>, Status> {
        let request = request.into_inner();
        let call = Call::from_wire(&request)
            .ok_or_else(|| Status::unimplemented("the leader runs a build that does not know this call"))?;
        let reply = match admin::answer(&*self.backend, call).await {
            Ok(value) => wire::AdminReply {
                status: 200,
                body: value.to_string().into_bytes().into(),
                retry_after_ms: 0,
            },
            Err(refusal) => {
                let error = ApiError::from(refusal);
                wire::AdminReply {
                    status: u32::from(error.status.as_u16()),
                    body: error.body().to_string().into_bytes().into(),
                    retry_after_ms: error.retry_after_s().unwrap_or(0) * 1_000,
                }
            }
        };
        Ok(Response::new(reply))
    }
}

/// Asks the leader at `grpc` (`host:port`). Commands may have been carried out if the answer is lost.
pub async fn forward(grpc: &str, request: wire::AdminRequest) -> Result<wire::AdminReply, Refusal> {
    let unreachable = |why: String| {
        let message = format!("the leader at {grpc} cannot be reached ({why}); try again");
        Refusal::cluster("leader_unreachable", limits::RETRY_AFTER_MS, message)
    };
    let endpoint = Endpoint::from_shared(format!("http://{grpc}"))
        .map_err(|error| unreachable(error.to_string()))?
        .connect_timeout(Duration::from_millis(limits::CONNECT_MS))
        // Longer than the leader takes to give up, so that its own words arrive.
        .timeout(Duration::from_millis(limits::ADMIN_MS + limits::CONNECT_MS));
    let channel = endpoint.connect().await.map_err(|error| unreachable(error.to_string()))?;
    let mut client = ControlClient::new(channel).max_decoding_message_size(limits::GRPC_MESSAGE_BYTES);
    let reply = client.admin(request).await.map_err(|status| unreachable(status.message().to_owned()))?;
    Ok(reply.into_inner())
}

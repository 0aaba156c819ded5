//! The HTTP front door: /v1, /admin/v1, health and metrics.
//!
//! Must never hold what decides an answer: it checks, tokenises, has a record generated, and writes text.

mod admin;
mod answer;
mod auth;
mod backend;
mod body;
mod chat;
mod completions;
mod control;
mod errors;
mod events;
mod fields;
mod health;
mod job;
mod keys;
mod metrics;
mod models;
mod params;
mod requests;
mod serve;
mod shape;
mod stream;
mod views;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use caravan_core::cluster::ClusterState;
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use tokio::sync::Semaphore;

use crate::consensus::Consensus;
use crate::driver::Drivers;
use crate::fleet::Fleet;
use crate::generate::Generator;
use crate::model_files::ModelFiles;

pub use control::{ControlService, control_service};
pub use serve::serve;

use backend::Backend;
use chat::{ChatRequest, ChatShape};
use completions::{CompletionRequest, CompletionShape};
use errors::ApiError;
use events::Events;
use job::{Input, RequestIds};
use metrics::Metrics;
use requests::Requests;
use shape::Shape;

/// What the handlers need; made by `node`.
#[derive(Clone)]
pub struct ApiParts {
    pub me: CoordinatorId,
    pub consensus: Consensus,
    pub drivers: Drivers,
    pub fleet: Fleet,
    pub generator: Generator,
    pub models: ModelFiles,
    /// Model used when... never: a request names its model; this one is only listed first.
    pub default_model: Option<String>,
}

/// How long the door waits, in milliseconds. Always the numbers of `limits`, save in tests.
#[derive(Clone, Copy, Debug)]
struct Waits {
    prepare_ms: u64,
    ready_ms: u64,
    first_event_ms: u64,
    keepalive_ms: u64,
    stall_ms: u64,
    body_ms: u64,
}

impl Default for Waits {
    fn default() -> Waits {
        Waits {
            prepare_ms: limits::PREPARE_WAIT_MS,
            ready_ms: limits::READY_WAIT_MS,
            first_event_ms: limits::FIRST_EVENT_MS,
            keepalive_ms: limits::SSE_KEEPALIVE_MS,
            stall_ms: limits::SSE_STALL_MS,
            body_ms: limits::HTTP_BODY_READ_MS,
        }
    }
}

/// What all handlers share.
struct App {
    backend: Arc<dyn Backend>,
    waits: Waits,
    /// Turns at parsing and tokenising.
    preparing: Arc<Semaphore>,
    /// Bytes of bodies that may be in memory.
    bodies: Arc<Semaphore>,
    requests: Requests,
    metrics: Metrics,
    events: Events,
    ids: RequestIds,
}

impl App {
    fn state(&self) -> Arc<ClusterState> {
        self.backend.state().borrow().clone()
    }
}

/// The HTTP door of a coordinator. Call it inside the async runtime: it starts the task that
/// watches for events, which ends with the coordinator's consensus.
pub fn router(parts: ApiParts) -> Router {
    build(Arc::new(parts), Waits::default())
}

fn build(backend: Arc<dyn Backend>, waits: Waits) -> Router {
    let app = Arc::new(App {
        events: Events::watch(backend.state(), backend.status()),
        backend,
        waits,
        preparing: Arc::new(Semaphore::new(limits::PREPARING)),
        bodies: Arc::new(Semaphore::new(limits::HTTP_BODIES_BYTES)),
        requests: Requests::default(),
        metrics: Metrics::default(),
        ids: RequestIds::new(),
    });
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/admin/v1/cluster", get(admin::cluster))
        .route("/admin/v1/workers", get(admin::workers))
        .route("/admin/v1/workers/{id}/drain", post(admin::drain))
        .route("/admin/v1/plan", get(admin::plan))
        .route("/admin/v1/plan/rebalance", post(admin::rebalance))
        .route("/admin/v1/keys", get(keys::list).post(keys::create))
        .route("/admin/v1/keys/{id}", delete(keys::revoke))
        .route("/admin/v1/requests", get(admin::requests))
        .route("/admin/v1/events", get(events::stream))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::scrape))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), auth::guard))
        .layer(middleware::from_fn_with_state(app.clone(), metrics::track))
        .with_state(app)
}

async fn unknown_path(request: Request) -> Response {
    let path = fields::clip(request.uri().path());
    ApiError::request("not_found", format!("there is nothing at {path}")).into_response()
}

async fn wrong_method(request: Request) -> Response {
    let path = fields::clip(request.uri().path());
    let message = format!("{path} does not take {}", fields::clip(request.method().as_str()));
    ApiError::request("method_not_allowed", message).into_response()
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let ChatRequest { common, messages } = body::parse(&app, request, ChatRequest::parse).await?;
    let shape =
        ChatShape { logprobs: common.sampling.logprobs.is_some(), token_ids: common.return_token_ids };
    let job = job::prepare(&app, common, Input::Chat(messages), shape.id_prefix()).await?;
    stream::respond(&app, job, shape).await
}

async fn text_completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let CompletionRequest { common, prompts } = body::parse(&app, request, CompletionRequest::parse).await?;
    let shape =
        CompletionShape { logprobs: common.sampling.logprobs.is_some(), token_ids: common.return_token_ids };
    let job = job::prepare(&app, common, Input::Prompts(prompts), shape.id_prefix()).await?;
    stream::respond(&app, job, shape).await
}

//! `/admin/v1/*`: reads and commands of operators. What only the leader knows is asked of the leader.
//!
//! Must never change state itself: it calls the fleet, which proposes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use caravan_core::cluster::{ClusterState, Outcome};
use caravan_core::error::Refusal;
use caravan_core::ids::WorkerId;
use caravan_core::limits;
use caravan_proto::wire;
use serde_json::{Value, json};

use super::App;
use super::backend::Backend;
use super::errors::{ApiError, bytes_response, json_response};
use super::fields::{Fields, clip};
use super::{body, control, views};
use crate::consensus::Role;

/// A call that the leader answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Workers,
    Plan,
    Drain(WorkerId),
    Rebalance { dry_run: bool },
}

impl Call {
    /// For the leader. The worker's name stands in the path as it is, not percent-encoded.
    pub fn to_wire(&self) -> wire::AdminRequest {
        let (method, path, query) = match self {
            Call::Workers => ("GET", "workers".to_owned(), ""),
            Call::Plan => ("GET", "plan".to_owned(), ""),
            Call::Drain(worker) => ("POST", format!("workers/{worker}/drain"), ""),
            Call::Rebalance { dry_run: true } => ("POST", "plan/rebalance".to_owned(), "dry_run=true"),
            Call::Rebalance { dry_run: false } => ("POST", "plan/rebalance".to_owned(), ""),
        };
        let (method, query) = (method.to_owned(), query.to_owned());
        wire::AdminRequest { method, path, query, body: Default::default() }
    }

    /// The reverse of `to_wire`; `None` for what this build does not know.
    pub fn from_wire(request: &wire::AdminRequest) -> Option<Call> {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "workers") => Some(Call::Workers),
            ("GET", "plan") => Some(Call::Plan),
            ("POST", "plan/rebalance") => Some(Call::Rebalance { dry_run: flag(&request.query, "dry_run") }),
            ("POST", path) => {
                let worker = path.strip_prefix("workers/")?.strip_suffix("/drain")?;
                Some(Call::Drain(WorkerId(worker.to_owned())))
            }
            _ => None,
        }
    }
}

/// `name=true` (or `name=1`) in a query.
pub fn flag(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| matches!(pair.split_once('='), Some((key, "true" | "1")) if key == name))
}

/// Answers a call on the leader, from a state that holds everything acknowledged before it.
pub async fn answer(backend: &dyn Backend, call: Call) -> Result<Value, Refusal> {
    if backend.status().borrow().role != Role::Leader {
        let message = "this coordinator does not lead (any more); try again";
        return Err(Refusal::cluster("not_leader", limits::RETRY_AFTER_MS, message));
    }
    let work = async {
        backend.linearize().await?;
        match call {
            Call::Drain(worker) => drain_worker(backend, worker).await,
            Call::Rebalance { dry_run } => rebalance_plan(backend, dry_run).await,
            read => Ok(look(backend, &read)),
        }
    };
    let slow = || {
        let message = "the cluster did not agree in time (too few coordinators reach each other); \
                       a read can be answered from this node alone with ?stale=true";
        Refusal::cluster("no_quorum", limits::RETRY_AFTER_MS, message)
    };
    tokio::time::timeout(Duration::from_millis(limits::ADMIN_MS), work).await.map_err(|_| slow())?
}

fn state(backend: &dyn Backend) -> Arc<ClusterState> {
    backend.state().borrow().clone()
}

/// Workers or plan, from what this coordinator has applied.
fn look(backend: &dyn Backend, call: &Call) -> Value {
    let (state, runtime) = (state(backend), backend.runtime());
    match call {
        Call::Workers => views::workers(&state, &runtime),
        _ => views::plan(&state, &state.plan, &runtime, &backend.stats()),
    }
}

async fn drain_worker(backend: &dyn Backend, worker: WorkerId) -> Result<Value, Refusal> {
    if !state(backend).workers.contains_key(&worker) {
        let message = format!("there is no worker `{}`", clip(&worker.0));
        return Err(Refusal::client("worker_not_found", "id", message));
    }
    let changed = match backend.drain(worker.clone()).await? {
        Outcome::Done => true,
        Outcome::Unchanged => false,
        Outcome::Refused(why) => return Err(Refusal::client("conflict", "id", why)),
    };
    let known = state(backend).workers.get(&worker).map(|known| views::worker_state(known.state));
    Ok(json!({"worker": worker.0, "state": known, "changed": changed}))
}

async fn rebalance_plan(backend: &dyn Backend, dry_run: bool) -> Result<Value, Refusal> {
    let before = state(backend).plan.clone();
    let plan = backend.rebalance(dry_run).await?;
    let changed =
        plan.pipelines.iter().map(|one| &one.stages).ne(before.pipelines.iter().map(|one| &one.stages));
    let view = views::plan(&state(backend), &plan, &backend.runtime(), &backend.stats());
    Ok(json!({"dry_run": dry_run, "changed": changed, "plan": view}))
}

/// Here if this coordinator leads, else by the leader.
async fn dispatch(app: &App, call: Call) -> Result<Response, ApiError> {
    let (role, leader) = {
        let status = app.backend.status();
        let status = status.borrow();
        (status.role, status.leader)
    };
    if role == Role::Leader {
        let value = answer(&*app.backend, call).await?;
        return Ok(json_response(StatusCode::OK, &value, None));
    }
    let state = app.state();
    let grpc = leader.and_then(|leader| state.coordinators.get(&leader)).map(|known| known.grpc.clone());
    let Some(grpc) = grpc else {
        let message = "no coordinator leads (an election is on, or too few coordinators reach each other); \
                       a read can be answered from this node alone with ?stale=true";
        return Err(Refusal::cluster("no_leader", limits::RETRY_AFTER_MS, message).into());
    };
    let reply = control::forward(&grpc, call.to_wire()).await?;
    let status = u16::try_from(reply.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let retry_after_s = (reply.retry_after_ms > 0).then(|| reply.retry_after_ms.div_ceil(1_000));
    Ok(bytes_response(status.unwrap_or(StatusCode::BAD_GATEWAY), reply.body.to_vec(), retry_after_s))
}

async fn read(app: &App, uri: &Uri, call: Call) -> Result<Response, ApiError> {
    if flag(uri.query().unwrap_or_default(), "stale") {
        return Ok(json_response(StatusCode::OK, &look(&*app.backend, &call), None));
    }
    dispatch(app, call).await
}

pub async fn cluster(State(app): State<Arc<App>>) -> Response {
    let status = app.backend.status().borrow().clone();
    json_response(StatusCode::OK, &views::cluster(&app.state(), &status), None)
}

pub async fn workers(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, ApiError> {
    read(&app, &uri, Call::Workers).await
}

pub async fn plan(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, ApiError> {
    read(&app, &uri, Call::Plan).await
}

pub async fn requests(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &app.requests.json(), None)
}

pub async fn drain(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    same_site(request.headers())?;
    let body = body::read(&app, request).await?;
    command_fields(&body.bytes)?.finish(&[])?;
    dispatch(&app, Call::Drain(WorkerId(id))).await
}

pub async fn rebalance(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    same_site(request.headers())?;
    let asked = flag(request.uri().query().unwrap_or_default(), "dry_run");
    let body = body::read(&app, request).await?;
    let mut fields = command_fields(&body.bytes)?;
    let dry_run = fields.take("dry_run").boolean()?.unwrap_or(asked);
    fields.finish(&[])?;
    dispatch(&app, Call::Rebalance { dry_run }).await
}

/// A command's body may be empty.
pub fn command_fields(body: &[u8]) -> Result<Fields, Refusal> {
    if body.iter().all(u8::is_ascii_whitespace) { Fields::parse(b"{}") } else { Fields::parse(body) }
}

/// A browser says when a page of another site sends a command; nobody else sends this header.
pub fn same_site(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get("sec-fetch-site").map(|value| value.as_bytes()) {
        Some(b"cross-site") => {
            Err(ApiError::request("cross_site", "a page of another site may not command this cluster"))
        }
        _ => Ok(()),
    }
}

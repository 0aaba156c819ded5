//! `/admin/v1/keys`: API keys are made, listed and revoked, from the coordinator's own machine only.
//!
//! Must never show a key a second time: what is kept is its hash.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::store::{ApiKey, Refused, StoreCommand, StoreOutcome, check};
use serde_json::{Value, json};

use super::App;
use super::admin::{command_fields, same_site};
use super::auth::{PREFIX, is_local};
use super::body;
use super::errors::{ApiError, internal, json_response};
use crate::driver::now_ms;

/// Random bytes of a key's id, and of its secret.
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// Keys open the door, so whoever makes them must be inside already.
fn local_only(request: &Request) -> Result<(), ApiError> {
    same_site(request.headers())?;
    match is_local(request) {
        true => Ok(()),
        false => Err(ApiError::request(
            "not_local",
            "API keys are managed from the machine of a coordinator only (127.0.0.1)",
        )),
    }
}

pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    local_only(&request)?;
    let body = body::read(&app, request).await?;
    let mut fields = command_fields(&body.bytes)?;
    let tenant = fields.take("tenant").required()?.string(limits::TENANT_BYTES)?.unwrap_or_default();
    let name = fields.take("name").string(limits::KEY_NAME_BYTES)?.unwrap_or_default();
    fields.finish(&[])?;
    check::tenant(&tenant).map_err(|why| Refusal::client("invalid_value", "tenant", why))?;
    let (id, secret) = (random_hex(ID_BYTES)?, random_hex(SECRET_BYTES)?);
    let whole = format!("{PREFIX}{id}-{secret}");
    let hash = *blake3::hash(whole.as_bytes()).as_bytes();
    let key = ApiKey { tenant, name, hash, created_ms: now_ms(), revoked_ms: None };
    let mut view = view(&id, &key);
    match app.backend.store(StoreCommand::CreateKey { id, key }).await? {
        StoreOutcome::Done | StoreOutcome::Unchanged => {
            view["key"] = Value::String(whole);
            Ok(json_response(StatusCode::OK, &view, None))
        }
        other => Err(refused(other)),
    }
}

pub async fn list(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    local_only(&request)?;
    app.backend.linearize().await?;
    let keys = app.backend.api_keys();
    let data: Vec<Value> = keys.iter().map(|(id, key)| view(id, key)).collect();
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": data}), None))
}

pub async fn revoke(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    local_only(&request)?;
    match app.backend.store(StoreCommand::RevokeKey { id: id.clone(), now_ms: now_ms() }).await? {
        StoreOutcome::Done | StoreOutcome::Unchanged => {
            Ok(json_response(StatusCode::OK, &json!({"id": id, "object": "key", "revoked": true}), None))
        }
        other => Err(refused(other)),
    }
}

/// A key as lists show it; times in seconds since 1970.
fn view(id: &str, key: &ApiKey) -> Value {
    json!({
        "id": id,
        "object": "key",
        "tenant": key.tenant,
        "name": key.name,
        "created_at": key.created_ms / 1_000,
        "revoked_at": key.revoked_ms.map(|at_ms| at_ms / 1_000),
    })
}

fn refused(outcome: StoreOutcome) -> ApiError {
    match outcome {
        StoreOutcome::Refused(Refused::ItemNotFound) => {
            Refusal::client("key_not_found", "id", "there is no API key of this id").into()
        }
        StoreOutcome::Refused(Refused::TooMuch(why) | Refused::Malformed(why)) => {
            Refusal::client("invalid_value", "tenant", why).into()
        }
        other => internal(&format!("the store answered {other:?}")),
    }
}

fn random_hex(bytes: usize) -> Result<String, ApiError> {
    let mut random = vec![0u8; bytes];
    getrandom::fill(&mut random).map_err(|error| internal(&format!("no random numbers: {error}")))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

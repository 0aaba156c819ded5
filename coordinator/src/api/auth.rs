//! Who asks: the API key of a request, and the tenant it stands for.
//!
//! Must never compare a key otherwise than by its hash and in constant time, nor log one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use caravan_core::limits;
use caravan_core::store::{ApiKey, Owner};

use super::App;
use super::errors::ApiError;
use crate::consensus::ApiKeys;

/// Where a request came from; the listener puts it in.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Whose a request is; handlers find it among the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub Owner);

/// Tenant and key of requests while the cluster has no API keys.
pub const LOCAL: &str = "local";

/// Begins every key.
pub const PREFIX: &str = "cvk-";

/// Lets a request through with its caller, or answers it.
pub async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if needs_caller(request.uri().path()) {
        let key = key_of(request.headers()).map(str::to_owned);
        match admit(&app, is_local(&request), key.as_deref()).await {
            Ok(owner) => {
                request.extensions_mut().insert(Caller(owner));
            }
            Err(error) => return error.into_response(),
        }
    }
    next.run(request).await
}

/// Health, metrics and the operators' part are not a tenant's.
fn needs_caller(path: &str) -> bool {
    !matches!(path, "/livez" | "/readyz" | "/metrics") && !path.starts_with("/admin/")
}

/// True for a request from this machine. One without an address came from nowhere we know.
pub fn is_local(request: &Request) -> bool {
    let peer = request.extensions().get::<Peer>();
    peer.is_some_and(|peer| match peer.0.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    })
}

async fn admit(app: &App, local: bool, key: Option<&str>) -> Result<Owner, ApiError> {
    let keys = app.backend.api_keys();
    if keys.is_empty() {
        return if local { Ok(local_owner()) } else { Err(no_keys()) };
    }
    let key = key.ok_or_else(missing)?;
    if let Some(owner) = find(&keys, key) {
        return Ok(owner);
    }
    // It may have been made just now, on another coordinator.
    if id_of(key).is_some_and(|id| !keys.contains_key(id)) && app.backend.linearize().await.is_ok() {
        return find(&app.backend.api_keys(), key).ok_or_else(wrong);
    }
    Err(wrong())
}

fn local_owner() -> Owner {
    Owner { tenant: LOCAL.to_owned(), key: LOCAL.to_owned() }
}

/// The key in `Authorization: Bearer`, or where Anthropic's clients put it.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
    let bearer =
        bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    let key = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())?;
    (key.len() <= limits::API_KEY_BYTES).then_some(key)
}

/// The public part of a key: `cvk-ID-SECRET`.
fn id_of(key: &str) -> Option<&str> {
    key.strip_prefix(PREFIX)?.split_once('-').map(|(id, _)| id)
}

fn find(keys: &ApiKeys, key: &str) -> Option<Owner> {
    let id = id_of(key)?;
    let known: &ApiKey = keys.get(id)?;
    // Comparing two of these takes the same time wherever they differ.
    let right = blake3::hash(key.as_bytes()) == blake3::Hash::from(known.hash);
    (right && known.revoked_ms.is_none()).then(|| Owner { tenant: known.tenant.clone(), key: id.to_owned() })
}

fn no_keys() -> ApiError {
    ApiError::request(
        "no_api_keys",
        "this cluster has no API keys yet and therefore serves its own machine only; make one there with \
         `caravan key create --tenant NAME` and send it as `Authorization: Bearer KEY`",
    )
}

fn missing() -> ApiError {
    ApiError::request(
        "invalid_api_key",
        "this cluster asks for an API key: send it as `Authorization: Bearer KEY`",
    )
}

fn wrong() -> ApiError {
    ApiError::request("invalid_api_key", "the API key is not one of this cluster's, or was revoked")
}

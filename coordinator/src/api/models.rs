//! `GET /v1/models` and `GET /v1/models/{id}`.
//!
//! Must never list what the catalogue of the applied state does not hold.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use caravan_core::model::ModelSpec;
use serde_json::{Value, json};

use super::App;
use super::errors::{ApiError, json_response};
use super::job::{fingerprint, model_not_found};

/// The catalogue does not know when a model was made: `created` is 0.
fn model(spec: &ModelSpec) -> Value {
    json!({
        "id": spec.name,
        "object": "model",
        "created": 0,
        "owned_by": "caravan",
        "context_length": spec.config.context,
        "system_fingerprint": fingerprint(spec),
    })
}

pub async fn list(State(app): State<Arc<App>>) -> Response {
    let state = app.state();
    let default = app.backend.default_model();
    let mut specs: Vec<&ModelSpec> = state.models.values().collect();
    specs.sort_by_key(|spec| default.as_deref() != Some(spec.name.as_str()));
    let data: Vec<Value> = specs.into_iter().map(model).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}), None)
}

pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let state = app.state();
    match state.models.get(&id) {
        Some(spec) => Ok(json_response(StatusCode::OK, &model(spec), None)),
        None => Err(model_not_found(&state, &id).into()),
    }
}

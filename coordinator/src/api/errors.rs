//! How a refusal looks over HTTP: status, OpenAI-shaped body, `Retry-After`. The one place that maps them.
//!
//! Must never decide whether something is refused, only how it is told.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use caravan_core::error::{Fault, Refusal, Retry};
use serde_json::{Value, json};

/// A refusal with its HTTP status.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    pub refusal: Refusal,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        ApiError { status: status_of(&refusal), refusal }
    }
}

/// Status of a refusal, by fault and code.
fn status_of(refusal: &Refusal) -> StatusCode {
    match (refusal.fault, refusal.code.as_str()) {
        (Fault::Client, "model_not_found" | "not_found" | "worker_not_found" | "key_not_found") => {
            StatusCode::NOT_FOUND
        }
        (Fault::Client, "body_too_large") => StatusCode::PAYLOAD_TOO_LARGE,
        (Fault::Client, "unsupported_media_type") => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        (Fault::Client, "method_not_allowed") => StatusCode::METHOD_NOT_ALLOWED,
        (Fault::Client, "body_timeout") => StatusCode::REQUEST_TIMEOUT,
        (Fault::Client, "invalid_api_key" | "no_api_keys") => StatusCode::UNAUTHORIZED,
        (Fault::Client, "cross_site" | "not_local") => StatusCode::FORBIDDEN,
        (Fault::Client, "conflict") => StatusCode::CONFLICT,
        (Fault::Client, _) => StatusCode::BAD_REQUEST,
        (Fault::Cluster, "queue_full") => StatusCode::TOO_MANY_REQUESTS,
        (Fault::Cluster, code) if code.starts_with("deadline") => StatusCode::GATEWAY_TIMEOUT,
        (Fault::Cluster, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Fault::Operator, _) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl ApiError {
    /// The client's fault, without a field to name.
    pub fn request(code: &str, message: impl Into<String>) -> ApiError {
        let mut refusal = Refusal::client(code, "", message);
        refusal.param = None;
        refusal.into()
    }

    /// `{"error": {"message", "type", "param", "code"}}`.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.refusal.message,
            "type": kind,
            "param": self.refusal.param,
            "code": self.refusal.code,
        }})
    }

    /// Seconds for `Retry-After`, if a retry is safe and useful.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self.refusal.retry {
            Retry::AfterMs(ms) => Some(ms.div_ceil(1_000).max(1)),
            Retry::Never => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after_s = self.retry_after_s();
        json_response(self.status, &self.body(), retry_after_s)
    }
}

/// A JSON answer, with `Retry-After` if given.
pub fn json_response(status: StatusCode, body: &Value, retry_after_s: Option<u64>) -> Response {
    bytes_response(status, body.to_string().into_bytes(), retry_after_s)
}

/// The same for a body that is JSON already.
pub fn bytes_response(status: StatusCode, body: Vec<u8>, retry_after_s: Option<u64>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What no request should ever cause: a part of this process failed.
pub fn internal(what: &str) -> ApiError {
    Refusal::operator("internal", format!("{what}; this is a fault of the server, not of the request")).into()
}

//! Refusals in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.
//!
//! Must never decide a status: `errors` does.

use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::super::errors::{ApiError, json_response};

/// A refusal of the Messages endpoints. The field and the code of ours are kept beside Anthropic's.
pub struct MessagesError(pub ApiError);

impl<E: Into<ApiError>> From<E> for MessagesError {
    fn from(error: E) -> MessagesError {
        MessagesError(error.into())
    }
}

impl MessagesError {
    pub fn body(&self) -> Value {
        let kind = match self.0.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        let refusal = &self.0.refusal;
        json!({"type": "error", "error": {
            "type": kind,
            "message": refusal.message,
            "param": refusal.param,
            "code": refusal.code,
        }})
    }
}

impl IntoResponse for MessagesError {
    fn into_response(self) -> Response {
        let body = self.body();
        json_response(self.0.status, &body, self.0.retry_after_s())
    }
}

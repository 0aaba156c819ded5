//! Tests of the HTTP door on a fake coordinator, through the router and over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admin;
mod answers;
mod bad_input;
mod fake;
mod health;
mod keys;
mod sockets;
mod streams;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

/// An answer, read to its end.
pub struct Reply {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// The `data:` payloads of server-sent events; checks the framing on the way.
    pub fn data(&self) -> Vec<String> {
        assert!(self.text.ends_with("\n\n"), "an unfinished frame: {:?}", self.text);
        let frames = self.text.trim_end_matches('\n').split("\n\n");
        frames
            .filter(|frame| !frame.starts_with(':'))
            .map(|frame| {
                assert!(!frame.contains('\n'), "a frame of several lines: {frame:?}");
                frame.strip_prefix("data: ").expect("a data frame").to_owned()
            })
            .collect()
    }

    /// The chunks of a finished stream, without `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        let mut data = self.data();
        assert_eq!(data.pop().as_deref(), Some("[DONE]"));
        data.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }
}

pub async fn send(router: &Router, request: Request<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    Reply { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

pub fn post_bytes(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

pub async fn post(router: &Router, path: &str, body: Value) -> Reply {
    send(router, post_bytes(path, body.to_string())).await
}

pub async fn get(router: &Router, path: &str) -> Reply {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

/// A chat request that says `text`, with further fields.
pub fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

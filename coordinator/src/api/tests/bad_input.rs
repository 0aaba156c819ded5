//! Requests that must be refused: each with its status, the field it names, and its code.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::fake::speaking;
use super::{Reply, chat, get, post, post_bytes, send};

/// One case a line: the name of an endpoint holds fields that are laid over a good request (`"-"`
/// takes a field away), or `raw` is the body itself of a chat; `status` is 400 unless given.
const CASES: &str = include_str!("bad_input.jsonl");

/// Endpoints by the names that cases use, with a good request each.
pub fn good() -> Vec<(&'static str, &'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    vec![
        ("chat", "/v1/chat/completions", chat("hi", json!({}))),
        ("completions", "/v1/completions", json!({"model": "tiny", "prompt": "hi"})),
        ("responses", "/v1/responses", json!({"model": "tiny", "input": "hi"})),
        ("messages", "/v1/messages", json!({"model": "tiny", "messages": messages, "max_tokens": 8})),
        ("count_tokens", "/v1/messages/count_tokens", json!({"model": "tiny", "messages": messages})),
        ("tokenize", "/tokenize", json!({"model": "tiny", "prompt": "hi"})),
        ("detokenize", "/detokenize", json!({"model": "tiny", "tokens": [104, 105]})),
    ]
}

fn body_of(case: &Value) -> (&'static str, String) {
    if let Some(raw) = case["raw"].as_str() {
        return ("/v1/chat/completions", raw.to_owned());
    }
    let endpoint = good().into_iter().find(|(name, ..)| case.get(name).is_some());
    let (name, path, mut body) = endpoint.unwrap_or_else(|| panic!("no endpoint: {case}"));
    let fields = body.as_object_mut().unwrap();
    for (name, value) in case[name].as_object().unwrap() {
        if value == "-" {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    (path, body.to_string())
}

fn check(reply: &Reply, status: u64, param: &Value, code: &str, case: &str) {
    assert_eq!(u64::from(reply.status.as_u16()), status, "{case}: {}", reply.text);
    let body = reply.json();
    let error = &body["error"];
    let kind = error["type"].as_str().unwrap();
    if body.get("type").is_some() {
        // Anthropic's shape.
        assert_eq!((&body["type"], body.as_object().unwrap().len()), (&json!("error"), 2), "{case}");
        assert!(["invalid_request_error", "not_found_error"].contains(&kind), "{case}");
    } else {
        assert_eq!(body.as_object().unwrap().len(), 1, "{case}");
        assert_eq!(kind, "invalid_request_error", "{case}");
    }
    assert_eq!((&error["param"], &error["code"]), (param, &json!(code)), "{case}: {body}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty() && message.len() < 600, "{case}: {message}");
    if let Some(param) = param.as_str() {
        assert!(message.contains(param.split('[').next().unwrap()), "{case}: {message}");
    }
}

#[tokio::test]
async fn each_bad_request_is_refused_by_name() {
    let (fake, router) = speaking("ok");
    let mut count = 0;
    for line in CASES.lines().filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let (path, body) = body_of(&case);
        let reply = send(&router, post_bytes(path, body)).await;
        check(
            &reply,
            case["status"].as_u64().unwrap_or(400),
            &case["param"],
            case["code"].as_str().unwrap(),
            line,
        );
        count += 1;
    }
    assert!(count > 100, "{count} cases");
    assert_eq!(fake.records.lock().unwrap().len(), 0, "nothing was generated");
    assert_eq!(fake.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_cannot_stand_in_a_line() {
    let (_fake, router) = speaking("ok");
    let path = "/v1/chat/completions";
    let null = Value::Null;
    let reply = send(&router, post_bytes(path, b"{\"model\": \"\xff\xfe\"}".to_vec())).await;
    check(&reply, 400, &null, "invalid_json", "invalid UTF-8");
    let reply = send(&router, post_bytes(path, "[".repeat(100_000))).await;
    check(&reply, 400, &null, "invalid_json", "deep nesting");
    let reply = send(&router, post_bytes(path, "")).await;
    check(&reply, 400, &null, "invalid_json", "no body");
    let reply = post(&router, path, chat("hi", json!({"stop": "x".repeat(1_000_000)}))).await;
    check(&reply, 400, &json!("stop"), "invalid_value", "a long stop string");
    let reply = post(&router, path, chat(&"x".repeat(1_000_000), json!({}))).await;
    check(&reply, 400, &json!("messages"), "context_length_exceeded", "a long prompt");
    assert!(reply.text.contains("63"), "{}", reply.text);
    let name = "n".repeat(1_000_000);
    let reply = post(&router, path, chat("hi", json!({name.clone(): 1}))).await;
    assert_eq!(reply.json()["error"]["code"], "unknown_parameter");
    assert!(reply.text.len() < 1_000);
    let tokens: Vec<u32> = vec![0; 1_100_000];
    let reply = post(&router, "/v1/completions", json!({"model": "tiny", "prompt": tokens})).await;
    check(&reply, 400, &json!("prompt"), "invalid_value", "a million tokens");
    let reply = send(&router, post_bytes(path, vec![b' '; caravan_core::limits::HTTP_BODY_BYTES + 1])).await;
    check(&reply, 413, &null, "body_too_large", "a large body");
}

#[tokio::test]
async fn unknown_paths_methods_and_types_are_refused_in_json() {
    let (_fake, router) = speaking("ok");
    let null = Value::Null;
    for path in ["/", "/v1", "/v1/chat", "/v1/embeddings", "/admin/v1/nothing", "/v2/models"] {
        check(&get(&router, path).await, 404, &null, "not_found", path);
    }
    for path in ["/v1/chat/completions", "/v1/completions", "/admin/v1/plan/rebalance"] {
        check(&get(&router, path).await, 405, &null, "method_not_allowed", path);
    }
    check(&post(&router, "/v1/models", json!({})).await, 405, &null, "method_not_allowed", "models");
    for kind in [Some("text/plain"), Some("application/x-www-form-urlencoded"), None] {
        let mut request = Request::post("/v1/chat/completions");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let body = Body::from(chat("hi", json!({})).to_string());
        let reply = send(&router, request.body(body).unwrap()).await;
        check(&reply, 415, &null, "unsupported_media_type", "type");
    }
    let request =
        Request::post("/v1/chat/completions").header("content-type", "Application/JSON; charset=utf-8");
    let reply = send(&router, request.body(Body::from(chat("hi", json!({})).to_string())).unwrap()).await;
    assert_eq!(reply.status, 200);
}

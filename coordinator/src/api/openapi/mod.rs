//! `GET /openapi.json`: the stateless endpoints as an OpenAPI document.
//!
//! Must never say what is not so: a test holds its fields against those that the parsers take.

mod answers;
mod requests;
mod schema;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::App;
use super::errors::json_response;
use schema::reference;

/// An endpoint: path, method, what it does, the schemas of its request, answer and errors, and
/// whether it streams.
struct Endpoint {
    path: &'static str,
    method: &'static str,
    does: &'static str,
    request: Option<&'static str>,
    answer: &'static str,
    error: &'static str,
    streams: bool,
}

const fn post(
    path: &'static str,
    does: &'static str,
    (request, answer): (&'static str, &'static str),
    streams: bool,
) -> Endpoint {
    Endpoint { path, method: "post", does, request: Some(request), answer, error: "Error", streams }
}

const fn get(path: &'static str, does: &'static str, answer: &'static str) -> Endpoint {
    Endpoint { path, method: "get", does, request: None, answer, error: "Error", streams: false }
}

const fn anthropic(endpoint: Endpoint) -> Endpoint {
    Endpoint { error: "MessagesError", ..endpoint }
}

const ENDPOINTS: &[Endpoint] = &[
    post("/v1/chat/completions", "answerConversation", ("ChatRequest", "ChatCompletion"), true),
    post("/v1/completions", "goOnWithText", ("CompletionRequest", "Completion"), true),
    post("/v1/responses", "createResponse", ("ResponseRequest", "Response"), true),
    anthropic(post("/v1/messages", "answerMessages", ("MessagesRequest", "Message"), true)),
    anthropic(post("/v1/messages/count_tokens", "countTokens", ("CountTokensRequest", "TokenCount"), false)),
    post("/tokenize", "tokenize", ("TokenizeRequest", "Tokens"), false),
    post("/detokenize", "detokenize", ("DetokenizeRequest", "Text"), false),
    get("/v1/models", "listModels", "ModelList"),
    get("/v1/models/{id}", "showModel", "Model"),
];

/// Statuses of refusals, and what they mean.
const REFUSALS: &[(&str, &str)] = &[
    ("400", "the request is wrong; `param` names the field"),
    ("404", "no such model"),
    ("408", "the body did not come in time"),
    ("413", "the body is too large"),
    ("415", "the body must be application/json"),
    ("429", "the queue is full; try again after Retry-After"),
    ("500", "a fault of this server or of its model"),
    ("503", "not ready, or overloaded; try again after Retry-After"),
    ("504", "the deadline passed; a retry is safe"),
];

pub async fn serve(State(app): State<Arc<App>>) -> Response {
    let models: Vec<String> = app.state().models.keys().cloned().collect();
    json_response(StatusCode::OK, &document(&models), None)
}

/// The document of a cluster that serves these models.
pub fn document(models: &[String]) -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        paths.insert(endpoint.path.to_owned(), json!({endpoint.method: operation(endpoint)}));
    }
    let all = requests::schemas().into_iter().chain(answers::schemas());
    let mut schemas: Map<String, Value> = all.map(|(name, schema)| (name.to_owned(), schema)).collect();
    if !models.is_empty() {
        schemas.insert("ModelName".to_owned(), json!({"type": "string", "enum": models}));
    }
    let mut responses = Map::new();
    for (status, why) in REFUSALS {
        for error in ["Error", "MessagesError"] {
            let content = json!({"application/json": {"schema": reference(error)}});
            responses.insert(format!("{error}{status}"), json!({"description": why, "content": content}));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Caravan",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Errors name the field that is wrong. A parameter that is not known, or not supported, \
                is refused by name.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "responses": responses},
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let mut content = json!({"application/json": {"schema": reference(endpoint.answer)}});
    if endpoint.streams {
        content["text/event-stream"] = json!({"schema": {"type": "string"}});
    }
    let mut responses = json!({"200": {"description": "the answer", "content": content}});
    for (status, _) in REFUSALS {
        let name = format!("#/components/responses/{}{status}", endpoint.error);
        responses[*status] = json!({"$ref": name});
    }
    let mut operation = json!({"operationId": endpoint.does, "responses": responses});
    if let Some(request) = endpoint.request {
        let content = json!({"application/json": {"schema": reference(request)}});
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    if endpoint.path.contains("{id}") {
        let id = json!({"name": "id", "in": "path", "required": true, "schema": reference("ModelName")});
        operation["parameters"] = json!([id]);
    }
    operation
}

//! Schemas of answers.
//!
//! Must never promise more than the shapes hold: outside tools check every answer against these.

use serde_json::{Value, json};

use super::schema::{
    FieldSchema, any_list, boolean, integer, list, nullable, number, object, open_object, reference,
    required, string, word,
};

pub fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        ("Error", error()),
        ("MessagesError", messages_error()),
        ("Usage", usage()),
        ("ChatCompletion", chat_completion()),
        ("Completion", completion()),
        ("Response", response()),
        ("Message", message()),
        ("TokenCount", object(vec![required("input_tokens", integer())])),
        ("Tokens", tokens()),
        ("Text", object(vec![required("prompt", string())])),
        ("Model", model()),
        (
            "ModelList",
            object(vec![required("object", word(&["list"])), required("data", any_list(reference("Model")))]),
        ),
    ]
}

fn error() -> Value {
    let kinds = word(&["invalid_request_error", "rate_limit_error", "server_error"]);
    object(vec![required("error", object(error_fields(kinds)))])
}

fn error_fields(kinds: Value) -> Vec<FieldSchema> {
    vec![
        required("type", kinds),
        required("message", string()),
        required("param", nullable(string())),
        required("code", string()),
    ]
}

fn messages_error() -> Value {
    let kinds = word(&[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "overloaded_error",
        "timeout_error",
        "api_error",
    ]);
    object(vec![required("type", word(&["error"])), required("error", object(error_fields(kinds)))])
}

fn usage() -> Value {
    let fields = ["prompt_tokens", "completion_tokens", "total_tokens"];
    open_object(fields.map(|name| required(name, integer())).into())
}

/// An answer of choices.
fn envelope(kind: &str, choice: Vec<FieldSchema>) -> Value {
    open_object(vec![
        required("id", string()),
        required("object", word(&[kind])),
        required("created", integer()),
        required("model", string()),
        required("system_fingerprint", string()),
        required("usage", reference("Usage")),
        required("choices", list(open_object(choice), 1, caravan_core::limits::SEQUENCES_PER_REQUEST)),
    ])
}

fn chat_completion() -> Value {
    let token = open_object(vec![
        required("token", string()),
        required("logprob", number()),
        required("bytes", nullable(any_list(integer()))),
        required("top_logprobs", any_list(json!({}))),
    ]);
    let message = open_object(vec![
        required("role", word(&["assistant"])),
        required("content", nullable(string())),
        required("refusal", nullable(string())),
    ]);
    let logprobs = open_object(vec![required("content", nullable(any_list(token)))]);
    envelope(
        "chat.completion",
        vec![
            required("index", integer()),
            required("message", message),
            required("logprobs", nullable(logprobs)),
            required("finish_reason", word(&["stop", "length", "tool_calls"])),
        ],
    )
}

fn completion() -> Value {
    let logprobs = open_object(vec![
        required("tokens", any_list(string())),
        required("token_logprobs", any_list(nullable(number()))),
        required("top_logprobs", any_list(nullable(json!({"type": "object"})))),
        required("text_offset", any_list(integer())),
    ]);
    envelope(
        "text_completion",
        vec![
            required("index", integer()),
            required("text", string()),
            required("logprobs", nullable(logprobs)),
            required("finish_reason", word(&["stop", "length"])),
        ],
    )
}

fn response() -> Value {
    let item = open_object(vec![
        required("id", string()),
        required("type", word(&["message", "reasoning", "function_call"])),
        required("status", word(&["completed", "incomplete"])),
    ]);
    let reason = object(vec![required("reason", word(&["max_output_tokens"]))]);
    let usage = ["input_tokens", "output_tokens", "total_tokens"].map(|name| required(name, integer()));
    open_object(vec![
        required("id", string()),
        required("object", word(&["response"])),
        required("created_at", integer()),
        required("completed_at", nullable(integer())),
        required("status", word(&["completed", "incomplete"])),
        required("error", json!({"type": "null"})),
        required("incomplete_details", nullable(reason)),
        required("model", string()),
        required("output", any_list(item)),
        required("store", boolean()),
        required("metadata", reference("Metadata")),
        required("instructions", nullable(string())),
        required("temperature", number()),
        required("top_p", number()),
        required("tools", any_list(json!({}))),
        required("tool_choice", json!({})),
        required("parallel_tool_calls", boolean()),
        required("text", json!({"type": "object"})),
        required("truncation", word(&["auto", "disabled"])),
        required("usage", open_object(usage.into())),
    ])
}

fn message() -> Value {
    let block = open_object(vec![required("type", word(&["text", "thinking", "tool_use"]))]);
    let counts = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
    object(vec![
        required("id", string()),
        required("type", word(&["message"])),
        required("role", word(&["assistant"])),
        required("model", string()),
        required("content", any_list(block)),
        required("stop_reason", word(&["end_turn", "max_tokens", "stop_sequence", "tool_use"])),
        required("stop_sequence", nullable(string())),
        required("usage", object(counts.map(|name| required(name, integer())).into())),
    ])
}

fn tokens() -> Value {
    object(vec![
        required("count", integer()),
        required("max_model_len", integer()),
        required("tokens", any_list(integer())),
        required("token_strs", nullable(any_list(string()))),
    ])
}

fn model() -> Value {
    object(vec![
        required("id", string()),
        required("object", word(&["model"])),
        required("created", integer()),
        required("owned_by", string()),
        required("context_length", integer()),
        required("system_fingerprint", string()),
    ])
}

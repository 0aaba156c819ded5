//! Schemas of requests. A test sends every documented field, and finds every field that a parser takes here.
//!
//! Must never document what is refused.

use caravan_core::limits;
use serde_json::{Value, json};

use super::super::responses::INCLUDABLE;
use super::schema::{
    FieldSchema, any_list, boolean, integer_in, list, named, never, number_in, object, one_of, optional,
    positive, reference, required, short, string, word,
};

pub fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        ("ModelName", named(512)),
        ("Metadata", metadata()),
        (
            "StreamOptions",
            object(vec![optional("include_usage", boolean()), optional("include_obfuscation", never())]),
        ),
        ("ChatMessage", chat_message()),
        ("ChatRequest", object([shared(), chat()].concat())),
        ("CompletionRequest", object([shared(), completion()].concat())),
        ("ResponseItem", response_item()),
        ("ResponseRequest", object([sampling(), hints(), response()].concat())),
        ("CacheControl", cache_control()),
        ("TextBlock", text_block()),
        ("MessageParam", message_param()),
        ("MessagesRequest", object([sampling(), conversation(), messages()].concat())),
        ("CountTokensRequest", object(conversation())),
        ("TokenizeRequest", object(tokenize())),
        (
            "DetokenizeRequest",
            object(vec![
                optional("model", reference("ModelName")),
                required("tokens", list(token(), 1, limits::CONTEXT_TOKENS as usize)),
            ]),
        ),
    ]
}

fn token() -> Value {
    integer_in(0, u32::MAX)
}

fn answer_tokens() -> Value {
    integer_in(1, limits::CONTEXT_TOKENS)
}

fn metadata() -> Value {
    json!({
        "type": "object",
        "maxProperties": 16,
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    })
}

/// What decides the choice of tokens, in every endpoint that generates.
fn sampling() -> Vec<FieldSchema> {
    let bias = json!({
        "type": "object",
        "maxProperties": limits::LOGIT_BIAS_ENTRIES,
        "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
        "additionalProperties": number_in(-100.0, 100.0),
    });
    vec![
        optional("temperature", number_in(0.0, 2.0)),
        optional("top_p", positive(1.0)),
        optional("top_k", integer_in(-1, u32::MAX)),
        optional("min_p", number_in(0.0, 1.0)),
        optional("presence_penalty", number_in(-2.0, 2.0)),
        optional("frequency_penalty", number_in(-2.0, 2.0)),
        optional("repetition_penalty", positive(10.0)),
        optional("logit_bias", bias),
        optional("seed", integer_in(i64::MIN, u64::MAX)),
        optional("ignore_eos", boolean()),
    ]
}

fn stop_string() -> Value {
    named(limits::STOP_STRING_BYTES)
}

/// What chats and completions share.
fn shared() -> Vec<FieldSchema> {
    let more = vec![
        required("model", reference("ModelName")),
        optional("max_completion_tokens", answer_tokens()),
        optional("n", integer_in(1, limits::CHOICES)),
        optional("stop", one_of(vec![stop_string(), list(stop_string(), 0, limits::STOP_STRINGS)])),
        optional("stream", boolean()),
        optional("stream_options", reference("StreamOptions")),
        optional("return_token_ids", boolean()),
        optional("service_tier", word(&["auto", "default"])),
        optional("verbosity", word(&["medium"])),
        optional("store", never()),
        optional("metadata", reference("Metadata")),
    ];
    [more, hints(), sampling()].concat()
}

fn hints() -> Vec<FieldSchema> {
    vec![
        optional("user", short(limits::NOTE_BYTES)),
        optional("safety_identifier", short(limits::NOTE_BYTES)),
        optional("prompt_cache_key", short(limits::NOTE_BYTES)),
        optional("prompt_cache_retention", word(&["in_memory", "24h"])),
    ]
}

fn text_part(kinds: &[&str]) -> Value {
    object(vec![required("type", word(kinds)), required("text", string())])
}

fn chat_message() -> Value {
    object(vec![
        required("role", word(&["system", "developer", "user", "assistant"])),
        required("content", one_of(vec![string(), list(text_part(&["text"]), 1, limits::CONTENT_PARTS)])),
    ])
}

fn chat() -> Vec<FieldSchema> {
    vec![
        required("messages", list(reference("ChatMessage"), 1, limits::MESSAGES)),
        optional("max_tokens", answer_tokens()),
        optional("logprobs", boolean()),
        optional("top_logprobs", integer_in(0, limits::TOP_LOGPROBS)),
        optional("modalities", list(word(&["text"]), 0, 8)),
        optional("response_format", object(vec![required("type", word(&["text"]))])),
        optional("tool_choice", word(&["none"])),
    ]
}

fn completion() -> Vec<FieldSchema> {
    let tokens = || list(token(), 1, limits::CONTEXT_TOKENS as usize);
    let prompts = limits::PROMPTS_PER_REQUEST;
    let prompt = vec![string(), list(string(), 1, prompts), tokens(), list(tokens(), 1, prompts)];
    vec![
        required("prompt", one_of(prompt)),
        optional("max_tokens", integer_in(0, limits::CONTEXT_TOKENS)),
        optional("logprobs", integer_in(0, 5)),
        optional("echo", boolean()),
        optional("best_of", integer_in(1, limits::CHOICES)),
    ]
}

fn status() -> Value {
    word(&["in_progress", "completed", "incomplete"])
}

fn response_item() -> Value {
    let said = object(vec![
        required("type", word(&["output_text"])),
        required("text", string()),
        optional("annotations", any_list(json!({}))),
        optional("logprobs", any_list(json!({}))),
    ]);
    let part = one_of(vec![text_part(&["input_text", "text"]), said]);
    let message = object(vec![
        optional("type", word(&["message"])),
        required("role", word(&["system", "developer", "user", "assistant"])),
        required("content", one_of(vec![string(), list(part, 1, limits::CONTENT_PARTS)])),
        optional("id", short(limits::CLIENT_ID_BYTES)),
        optional("status", status()),
        optional("phase", word(&["commentary", "final_answer"])),
    ]);
    let reasoning = object(vec![
        required("type", word(&["reasoning"])),
        optional("id", short(limits::CLIENT_ID_BYTES)),
        optional("status", status()),
        optional("summary", list(text_part(&["summary_text"]), 0, limits::CONTENT_PARTS)),
        optional("content", list(text_part(&["reasoning_text"]), 0, limits::CONTENT_PARTS)),
    ]);
    one_of(vec![message, reasoning])
}

fn response() -> Vec<FieldSchema> {
    let format = object(vec![required("type", word(&["text"]))]);
    let text = object(vec![optional("format", format), optional("verbosity", word(&["medium"]))]);
    let included: Vec<&str> =
        INCLUDABLE.iter().copied().filter(|word| *word != "reasoning.encrypted_content").collect();
    vec![
        required("model", reference("ModelName")),
        required("input", one_of(vec![string(), list(reference("ResponseItem"), 1, limits::MESSAGES)])),
        optional("instructions", string()),
        optional("max_output_tokens", answer_tokens()),
        optional("stop", one_of(vec![stop_string(), list(stop_string(), 0, limits::STOP_STRINGS)])),
        optional("stream", boolean()),
        optional("stream_options", object(vec![optional("include_obfuscation", never())])),
        optional("store", never()),
        optional("background", never()),
        optional("truncation", word(&["auto", "disabled"])),
        optional("include", list(word(&included), 0, INCLUDABLE.len())),
        optional("top_logprobs", integer_in(0, limits::TOP_LOGPROBS)),
        optional("text", text),
        optional("reasoning", object(Vec::new())),
        optional("parallel_tool_calls", boolean()),
        optional("service_tier", word(&["auto", "default"])),
        optional("metadata", reference("Metadata")),
    ]
}

fn cache_control() -> Value {
    object(vec![required("type", word(&["ephemeral"])), optional("ttl", word(&["5m", "1h"]))])
}

fn text_block() -> Value {
    object(vec![
        required("type", word(&["text"])),
        required("text", string()),
        optional("cache_control", reference("CacheControl")),
    ])
}

fn blocks() -> Value {
    one_of(vec![string(), list(reference("TextBlock"), 1, limits::CONTENT_PARTS)])
}

fn message_param() -> Value {
    object(vec![required("role", word(&["user", "assistant", "system"])), required("content", blocks())])
}

fn conversation() -> Vec<FieldSchema> {
    vec![
        required("model", reference("ModelName")),
        required("messages", list(reference("MessageParam"), 1, limits::MESSAGES)),
        optional("system", blocks()),
        optional("thinking", object(vec![required("type", word(&["disabled"]))])),
        optional("cache_control", reference("CacheControl")),
    ]
}

fn messages() -> Vec<FieldSchema> {
    vec![
        required("max_tokens", answer_tokens()),
        optional("stop_sequences", list(stop_string(), 0, limits::STOP_STRINGS)),
        optional("stream", boolean()),
        optional("metadata", object(vec![optional("user_id", short(limits::NOTE_BYTES))])),
        optional("service_tier", word(&["auto", "standard_only"])),
    ]
}

fn tokenize() -> Vec<FieldSchema> {
    vec![
        optional("model", reference("ModelName")),
        optional("prompt", string()),
        optional("messages", list(reference("ChatMessage"), 1, limits::MESSAGES)),
        optional("add_special_tokens", boolean()),
        optional("add_generation_prompt", boolean()),
        optional("return_token_strs", boolean()),
    ]
}

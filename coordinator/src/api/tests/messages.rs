//! Messages in Anthropic's shapes: the object, the events, errors, and the count of tokens.

use caravan_core::error::Refusal;
use caravan_core::request::GenerateEvent;
use serde_json::{Value, json};

use super::fake::{Beat, say, scripted, speaking};
use super::{Reply, post, send};

async fn create(router: &axum::Router, more: Value) -> Reply {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let mut body = json!({"model": "tiny", "messages": messages, "max_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(router, "/v1/messages", body).await
}

#[tokio::test]
async fn a_message_has_the_shape_of_anthropic() {
    let (fake, router) = speaking("hello");
    let more = json!({"system": [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}], "top_k": 3});
    let reply = create(&router, more).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let mut body = reply.json();
    assert!(body["id"].take().as_str().unwrap().starts_with("msg_"));
    let wanted = json!({
        "id": null,
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": null,
        "usage": {
            "input_tokens": 10, "output_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        },
    });
    assert_eq!(body, wanted);
    let record = fake.records.lock().unwrap()[0].clone();
    assert_eq!((record.sampling.top_k, record.max_tokens), (3, 8));
}

#[tokio::test]
async fn a_stream_begins_and_stops() {
    let (_fake, router) = speaking("hé");
    let events = create(&router, json!({"stream": true})).await.events();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let wanted = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds, wanted);
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 5);
    assert_eq!(events[0]["message"]["stop_reason"], Value::Null);
    assert_eq!(events[4]["delta"], json!({"type": "text_delta", "text": "é"}));
    assert_eq!(events[6]["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(events[6]["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn reasons_to_stop_are_told() {
    let (_fake, router) = speaking("hello END x");
    let body = create(&router, json!({"max_tokens": 3})).await.json();
    assert_eq!((&body["stop_reason"], &body["content"][0]["text"]), (&json!("max_tokens"), &json!("hel")));
    let more = json!({"max_tokens": 20, "stop_sequences": ["no", "END"]});
    let body = create(&router, more.clone()).await.json();
    assert_eq!((&body["stop_reason"], &body["stop_sequence"]), (&json!("stop_sequence"), &json!("END")));
    assert_eq!(body["content"][0]["text"], "hello ");
    let mut streamed = more;
    streamed["stream"] = json!(true);
    let events = create(&router, streamed).await.events();
    let delta = &events[events.len() - 2]["delta"];
    assert_eq!(*delta, json!({"stop_reason": "stop_sequence", "stop_sequence": "END"}));
}

#[tokio::test]
async fn an_empty_answer_has_one_empty_block() {
    let (_fake, router) = speaking("");
    let body = create(&router, json!({})).await.json();
    assert_eq!(body["content"], json!([{"type": "text", "text": ""}]));
}

#[tokio::test]
async fn refusals_have_the_shape_of_anthropic() {
    let refusal = Refusal::cluster("queue_full", 1_500, "512 sequences wait already");
    let (_fake, router) = scripted(move |record| {
        let mut beats = if record.max_tokens == 7 { say("a") } else { Vec::new() };
        beats.push(Beat::Wait(if record.max_tokens == 7 { 200 } else { 0 }));
        beats.push(Beat::Say(GenerateEvent::Refused(refusal.clone())));
        beats
    });
    let reply = create(&router, json!({})).await;
    assert_eq!((reply.status.as_u16(), &reply.headers["retry-after"]), (429, &"2".parse().unwrap()));
    let error = json!({
        "type": "rate_limit_error", "message": "512 sequences wait already", "param": null, "code": "queue_full",
    });
    assert_eq!(reply.json(), json!({"type": "error", "error": error}));
    let events = create(&router, json!({"stream": true, "max_tokens": 7})).await.events();
    assert_eq!(*events.last().unwrap(), json!({"type": "error", "error": error}));
    let request = axum::http::Request::get("/v1/messages").body(axum::body::Body::empty()).unwrap();
    let reply = send(&router, request).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["type"]), (405, &json!("error")));
}

#[tokio::test]
async fn tokens_are_counted_and_nothing_is_generated() {
    let (fake, router) = speaking("hello");
    let body = json!({"model": "tiny", "system": "be", "messages": [{"role": "user", "content": "hi"}]});
    let reply = post(&router, "/v1/messages/count_tokens", body).await;
    assert_eq!(reply.json(), json!({"input_tokens": 10}));
    assert!(fake.records.lock().unwrap().is_empty());
}

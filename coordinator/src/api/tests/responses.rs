//! Responses: the object, the typed events, and what reaches the record.

use caravan_core::error::Refusal;
use caravan_core::request::{Finish, GenerateEvent};
use serde_json::{Value, json};

use super::fake::{Beat, done, say, scripted, speaking};
use super::{Reply, post};

async fn create(router: &axum::Router, more: Value) -> Reply {
    let mut body = json!({"model": "tiny", "input": "hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(router, "/v1/responses", body).await
}

fn prompt(record: &caravan_core::request::RequestRecord) -> String {
    record.prompt.iter().map(|token| char::from(u8::try_from(*token).unwrap())).collect()
}

#[tokio::test]
async fn a_response_has_the_shape_of_openai() {
    let (fake, router) = speaking("hello");
    let reply =
        create(&router, json!({"instructions": "be", "metadata": {"a": "b"}, "temperature": 0.5})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let body = reply.json();
    let id = body["id"].as_str().unwrap().strip_prefix("resp_").unwrap().to_owned();
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&body["store"], &body["error"]), (&json!(false), &Value::Null));
    assert_eq!((&body["instructions"], &body["metadata"]), (&json!("be"), &json!({"a": "b"})));
    assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.5), &json!(1.0)));
    let message = json!({
        "id": format!("msg_{id}0000"),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
    });
    assert_eq!(body["output"], json!([message]));
    let usage = json!({
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    });
    assert_eq!(body["usage"], usage);
    assert_eq!(prompt(&fake.records.lock().unwrap()[0]), "s:be\nu:hi\n");
}

#[tokio::test]
async fn the_events_tell_the_same_as_the_object() {
    let (_fake, router) = speaking("hé");
    let events = create(&router, json!({"stream": true})).await.events();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let wanted = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds, wanted);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    assert_eq!((&events[4]["delta"], &events[5]["delta"]), (&json!("h"), &json!("é")));
    assert_eq!(events[6]["text"], "hé");
    let response = &events[9]["response"];
    assert_eq!(response["output"], json!([events[8]["item"]]));
    assert_eq!(response["output"][0]["content"][0], events[7]["part"]);
    assert_eq!(events[4]["item_id"], response["output"][0]["id"]);
    assert_eq!(events[0]["response"]["status"], "in_progress");
    assert_eq!(response["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn a_cut_answer_is_incomplete() {
    let (_fake, router) = speaking("hello");
    let body = create(&router, json!({"max_output_tokens": 2})).await.json();
    assert_eq!(body["status"], "incomplete");
    assert_eq!(body["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(body["output"][0]["status"], "incomplete");
    assert_eq!(body["output"][0]["content"][0]["text"], "he");
    let events = create(&router, json!({"max_output_tokens": 2, "stream": true})).await.events();
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn an_answer_without_text_is_an_empty_message() {
    let (_fake, router) = speaking("");
    let body = create(&router, json!({})).await.json();
    assert_eq!(body["output"][0]["content"][0]["text"], "");
    let events = create(&router, json!({"stream": true})).await.events();
    assert_eq!(events.len(), 8, "{events:?}");
}

#[tokio::test]
async fn a_late_failure_is_an_event() {
    let refusal = Refusal::cluster("deadline", 1_000, "too late");
    let (_fake, router) = scripted(move |_| {
        let mut beats = say("ab");
        beats.push(Beat::Wait(200));
        beats.push(Beat::Say(GenerateEvent::Refused(refusal.clone())));
        beats
    });
    let events = create(&router, json!({"stream": true})).await.events();
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["error"], json!({"code": "server_error", "message": "too late"}));
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn logprobs_come_if_they_are_included() {
    let (fake, router) = speaking("ab");
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1});
    let body = create(&router, more).await.json();
    let top = json!([{"token": "a", "logprob": -1.0, "bytes": [97]}]);
    let wanted = json!([
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top},
        {"token": "b", "logprob": -0.5, "bytes": [98], "top_logprobs": top},
    ]);
    assert_eq!(body["output"][0]["content"][0]["logprobs"], wanted);
    assert_eq!(fake.records.lock().unwrap()[0].sampling.logprobs, Some(1));
}

#[tokio::test]
async fn items_become_messages() {
    let (fake, router) = speaking("ok");
    let input = json!([
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": "e"},
    ]);
    let reply = create(&router, json!({"input": input})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(prompt(&fake.records.lock().unwrap()[0]), "s:d\nu:ab\na:c\nu:e\n");
}

#[tokio::test]
async fn truncation_leaves_out_the_oldest() {
    let (fake, router) = speaking("ok");
    let turn = |name: char| json!({"role": "user", "content": name.to_string().repeat(17)});
    let input = json!([{"role": "system", "content": "s"}, turn('a'), turn('b'), turn('c')]);
    let reply = create(&router, json!({"input": input})).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["param"]), (400, &json!("input")));
    // 64 tokens of context: "s:s\n" is 4, a turn is 20.
    for (max, kept) in [(1, "bc"), (20, "bc"), (21, "c"), (40, "c")] {
        let more = json!({"input": input, "truncation": "auto", "max_output_tokens": max});
        assert_eq!(create(&router, more).await.status, 200);
        let turns = kept.chars().map(|name| format!("u:{}\n", name.to_string().repeat(17)));
        let wanted = format!("s:s\n{}", turns.collect::<String>());
        assert_eq!(prompt(fake.records.lock().unwrap().last().unwrap()), wanted, "{max}");
    }
    let more = json!({"input": input, "truncation": "auto", "max_output_tokens": 50});
    assert_eq!(create(&router, more).await.json()["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn the_events_do_not_depend_on_time() {
    let slow = |_: &caravan_core::request::RequestRecord| {
        let mut beats = Vec::new();
        for beat in say("héllo") {
            beats.extend([beat, Beat::Wait(3)]);
        }
        beats.push(done(Finish::Stop));
        beats
    };
    let (_fake, router) = scripted(slow);
    let (_other, quick) = speaking("héllo");
    // The id and the two times are what may differ.
    let strip = |reply: Reply| {
        let mut events = reply.events();
        let first = events[0]["response"].clone();
        let request = first["id"].as_str().unwrap()[5..].to_owned();
        events.last_mut().unwrap()["response"]["completed_at"] = json!(0);
        let told: Vec<String> = events.iter().map(Value::to_string).collect();
        told.join("\n").replace(&request, "ID").replace(&first["created_at"].to_string(), "0")
    };
    let a = strip(create(&router, json!({"stream": true})).await);
    let b = strip(create(&quick, json!({"stream": true})).await);
    assert_eq!(a, b);
    assert!(a.contains("msg_ID0000") && a.lines().count() > 8, "{a}");
}

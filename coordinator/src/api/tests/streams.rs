//! Streamed answers: framing, usage, characters, keep-alive, refusals, and clients that go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use caravan_core::error::Refusal;
use caravan_core::request::{Finish, GenerateEvent};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::fake::{Beat, done, say, scripted, speaking, token};
use super::{chat, post, post_bytes};

fn content(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let mine = choices.filter(|choice| choice["index"] == index);
    mine.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn a_chat_stream_is_framed_as_openai_frames_it() {
    let (_fake, router) = speaking("hé");
    let more = json!({"stream": true, "stream_options": {"include_usage": true}, "return_token_ids": true});
    let reply = post(&router, "/v1/chat/completions", chat("hi", more)).await;
    assert_eq!(reply.status, 200);
    assert!(reply.headers[CONTENT_TYPE].to_str().unwrap().starts_with("text/event-stream"));
    let chunks = reply.chunks();
    let id = &chunks[0]["id"];
    for chunk in &chunks {
        assert_eq!(&chunk["id"], id);
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["system_fingerprint"], chunks[0]["system_fingerprint"]);
    }
    let choice = |delta: Value, finish: Value, tokens: Value| json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish, "token_ids": tokens});
    let null = Value::Null;
    assert_eq!(
        chunks[0]["choices"][0],
        choice(json!({"role": "assistant", "content": ""}), null.clone(), json!([]))
    );
    assert_eq!(chunks[1]["choices"][0], choice(json!({"content": "h"}), null.clone(), json!([104])));
    // Both bytes of the character came before its text did.
    assert_eq!(chunks[2]["choices"][0], choice(json!({"content": "é"}), null.clone(), json!([0xc3, 0xa9])));
    assert_eq!(chunks[3]["choices"][0], choice(json!({}), json!("stop"), json!([])));
    assert_eq!(chunks[3]["usage"], null);
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"], json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}));
    assert_eq!(chunks.len(), 5);
}

#[tokio::test]
async fn a_text_stream_has_no_role_and_no_usage_unless_asked() {
    let (_fake, router) = speaking("ab");
    let body = json!({"model": "tiny", "prompt": "x", "stream": true, "logprobs": 0});
    let chunks = post(&router, "/v1/completions", body).await.chunks();
    assert_eq!(chunks.len(), 3);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["object"] == "text_completion"));
    assert_eq!(chunks[1]["choices"][0]["text"], "b");
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["text_offset"], json!([1]));
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn choices_are_interleaved_and_whole() {
    let (_fake, router) = scripted(|record| {
        let text = if record.id.ends_with("-0") { "first" } else { "second" };
        let mut beats = Vec::new();
        for beat in say(text) {
            beats.extend([beat, Beat::Wait(5)]);
        }
        beats.push(done(Finish::Stop));
        beats
    });
    let chunks =
        post(&router, "/v1/chat/completions", chat("hi", json!({"n": 2, "stream": true}))).await.chunks();
    assert_eq!((content(&chunks, 0), content(&chunks, 1)), ("first".to_owned(), "second".to_owned()));
    let order: Vec<u64> = chunks.iter().map(|chunk| chunk["choices"][0]["index"].as_u64().unwrap()).collect();
    let switches = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(switches > 4, "one after the other: {order:?}");
}

#[tokio::test]
async fn a_stop_string_is_never_shown() {
    let (fake, router) = scripted(|_| {
        let mut beats = say("abENDcd");
        beats.push(Beat::Hang);
        beats
    });
    let more = json!({"stream": true, "stop": "END", "return_token_ids": true});
    let chunks = post(&router, "/v1/chat/completions", chat("hi", more)).await.chunks();
    assert_eq!(content(&chunks, 0), "ab");
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "stop");
    assert_eq!(last["token_ids"], json!([69, 78, 68]));
    assert_eq!(fake.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tokens_without_text_make_no_chunk() {
    let (_fake, router) = scripted(|_| {
        let mut beats = vec![Beat::Say(token(256)), Beat::Say(token(257)), Beat::Say(token(256))];
        beats.push(done(Finish::Length));
        beats
    });
    let more = json!({"stream": true, "return_token_ids": true});
    let chunks = post(&router, "/v1/chat/completions", chat("hi", more)).await.chunks();
    let ids: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["token_ids"]).collect();
    assert_eq!(ids, [&json!([]), &json!([256, 257]), &json!([256])]);
}

#[tokio::test]
async fn a_stream_with_nothing_due_says_that_it_is_alive() {
    let (_fake, router) = scripted(|_| {
        let mut beats = vec![Beat::Wait(500)];
        beats.extend(say("x"));
        beats.push(done(Finish::Stop));
        beats
    });
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({"stream": true}))).await;
    let comments = reply.text.split("\n\n").filter(|frame| frame.starts_with(':')).count();
    assert!((3..=9).contains(&comments), "{comments} comments");
    assert_eq!(content(&reply.chunks(), 0), "x");
}

#[tokio::test]
async fn a_refusal_in_mid_stream_is_the_last_frame() {
    let (_fake, router) = scripted(|_| {
        let mut beats = say("ab");
        beats.push(Beat::Say(GenerateEvent::Refused(Refusal::cluster("no_pipeline", 1_000, "gone"))));
        beats
    });
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({"stream": true}))).await;
    assert_eq!(reply.status, 200);
    let data = reply.data();
    let last: Value = serde_json::from_str(data.last().unwrap()).unwrap();
    let wanted = json!({"message": "gone", "type": "server_error", "param": null, "code": "no_pipeline"});
    assert_eq!(last["error"], wanted);
    assert!(!reply.text.contains("[DONE]"));
}

#[tokio::test]
async fn an_early_refusal_has_its_own_status() {
    let refusal = |code: &str| Beat::Say(GenerateEvent::Refused(Refusal::cluster(code, 1_000, "no")));
    for (code, status) in [("queue_full", 429), ("no_pipeline", 503), ("deadline_exceeded", 504)] {
        let beat = refusal(code);
        let (_fake, router) = scripted(move |_| vec![beat.clone()]);
        for stream in [true, false] {
            let reply = post(&router, "/v1/chat/completions", chat("hi", json!({"stream": stream}))).await;
            assert_eq!(reply.status, status);
            assert_eq!(reply.headers["retry-after"], "1");
            assert_eq!(reply.json()["error"]["code"], code);
        }
    }
}

#[tokio::test]
async fn an_answer_without_an_end_is_an_error() {
    let (_fake, router) = scripted(|_| say("ab"));
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error"]["code"], "generation_lost");
}

#[tokio::test]
async fn a_dropped_stream_cancels_every_choice() {
    let (fake, router) = scripted(|_| {
        let mut beats = say("ab");
        beats.push(Beat::Hang);
        beats
    });
    let body = chat("hi", json!({"stream": true, "n": 3}));
    let response =
        router.clone().oneshot(post_bytes("/v1/chat/completions", body.to_string())).await.unwrap();
    assert_eq!(fake.open.load(Ordering::SeqCst), 3);
    let listed = super::get(&router, "/admin/v1/requests").await.json();
    assert_eq!(listed[0]["choices"], 3);
    assert_eq!(listed[0]["model"], "tiny");
    drop(response);
    for _ in 0..200 {
        if fake.open.load(Ordering::SeqCst) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fake.cancelled.load(Ordering::SeqCst), 3);
    assert_eq!(super::get(&router, "/admin/v1/requests").await.json(), json!([]));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let (fake, router) = scripted(|_| {
        // More than may wait for a client.
        (0..caravan_core::limits::SSE_FRAMES + 100).map(|_| Beat::Say(token(257))).collect()
    });
    let body = chat("hi", json!({"stream": true}));
    let response =
        router.clone().oneshot(post_bytes("/v1/chat/completions", body.to_string())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.open.load(Ordering::SeqCst), 1, "not cut off at once");
    for _ in 0..400 {
        if fake.open.load(Ordering::SeqCst) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fake.open.load(Ordering::SeqCst), 0);
    drop(response);
}

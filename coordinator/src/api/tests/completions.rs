//! Text completions: the echo of the prompt, and the best of several answers.

use caravan_core::request::{Finish, GenerateEvent, Sampled};
use serde_json::{Value, json};

use super::fake::{Beat, done, scripted, speaking};
use super::post;

async fn complete(router: &axum::Router, more: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "abc"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = post(router, "/v1/completions", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

#[tokio::test]
async fn the_prompt_is_echoed() {
    let (_fake, router) = speaking("dé");
    let body = complete(&router, json!({"echo": true, "return_token_ids": true})).await;
    assert_eq!(body["choices"][0]["text"], "abcdé");
    assert_eq!(body["choices"][0]["token_ids"], json!([97, 98, 99, 100, 0xc3, 0xa9]));
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}));
}

#[tokio::test]
async fn a_stop_string_in_the_echo_ends_nothing() {
    let (_fake, router) = speaking("xbx");
    let body = complete(&router, json!({"echo": true, "stop": "b"})).await;
    assert_eq!(body["choices"][0]["text"], "abcx");
}

#[tokio::test]
async fn nothing_but_the_echo() {
    let (fake, router) = speaking("def");
    let body = complete(&router, json!({"echo": true, "max_tokens": 0, "prompt": ["abc", "x"]})).await;
    let choices = body["choices"].as_array().unwrap();
    assert_eq!((&choices[0]["text"], &choices[1]["text"]), (&json!("abc"), &json!("x")));
    assert_eq!(choices[0]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 0);
    assert_eq!(fake.records.lock().unwrap()[0].max_tokens, 1);
}

#[tokio::test]
async fn a_stream_begins_with_the_echo() {
    let (_fake, router) = speaking("d");
    let body = json!({"model": "tiny", "prompt": "abc", "echo": true, "stream": true});
    let chunks = post(&router, "/v1/completions", body).await.chunks();
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["abc", "d", ""]);
}

/// Answers with a letter for the choice; later choices are likelier, but for the last.
fn graded(record: &caravan_core::request::RequestRecord) -> Vec<Beat> {
    let index: u8 = record.id.rsplit('-').next().unwrap().parse().unwrap();
    let logprob = if index % 4 == 3 { -9.0 } else { -1.0 / f32::from(index + 1) };
    let sampled = Sampled { token: u32::from(b'a' + index), logprob: Some(logprob), top: Vec::new() };
    vec![Beat::Say(GenerateEvent::Token(sampled)), done(Finish::Stop)]
}

#[tokio::test]
async fn the_best_are_told() {
    let (fake, router) = scripted(graded);
    let body = complete(&router, json!({"best_of": 4, "n": 2, "prompt": ["x", "y"], "seed": 1})).await;
    let told: Vec<(u64, &str)> = body["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(0, "c"), (1, "b"), (2, "g"), (3, "f")]);
    // They were asked for to find the best, and not by the client.
    assert_eq!(body["choices"][0]["logprobs"], Value::Null);
    assert_eq!(body["usage"]["completion_tokens"], 8);
    assert_eq!(fake.records.lock().unwrap().len(), 8);
}

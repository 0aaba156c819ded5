//! Whole answers: shapes, choices, usage, stop strings, log-probabilities, records.

use caravan_core::request::{Finish, Sampling};
use serde_json::{Value, json};

use super::fake::{CONTEXT, END, done, say, scripted, speak, speaking};
use super::{chat, get, post};
use crate::api::job::choice_seed;

#[tokio::test]
async fn chat_has_the_shape_of_openai() {
    let (fake, router) = speaking("hello");
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "tiny");
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let fingerprint = body["system_fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("fp_") && fingerprint.len() == 19, "{fingerprint}");
    let choice = json!({
        "index": 0,
        "message": {"role": "assistant", "content": "hello", "refusal": null},
        "logprobs": null,
        "finish_reason": "stop",
    });
    assert_eq!(body["choices"], json!([choice]));
    // "u:hi\n" is five tokens.
    assert_eq!(body["usage"], json!({"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}));
    let record = fake.records.lock().unwrap()[0].clone();
    assert_eq!(record.max_tokens, CONTEXT - 5);
    assert_eq!(record.stop_tokens, vec![END]);
    assert!(record.emitted.is_empty());
    assert!(record.deadline_ms > record.accepted_ms);
    assert_eq!(record.sampling.temperature, 1.0);
}

#[tokio::test]
async fn completions_take_every_kind_of_prompt() {
    let (fake, router) = speaking("ok");
    for (prompt, answers, tokens) in [
        (json!("abc"), 1, 3),
        (json!(["abc", "de"]), 2, 5),
        (json!([1, 2, 3, 4]), 1, 4),
        (json!([[1], [2, 3]]), 2, 3),
    ] {
        let reply = post(&router, "/v1/completions", json!({"model": "tiny", "prompt": prompt})).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let body = reply.json();
        assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
        assert_eq!(body["object"], "text_completion");
        assert_eq!(body["usage"]["prompt_tokens"], tokens);
        let choices = body["choices"].as_array().unwrap();
        assert_eq!(choices.len(), answers);
        for (index, choice) in choices.iter().enumerate() {
            let wanted = json!({"index": index, "text": "ok", "logprobs": null, "finish_reason": "stop"});
            assert_eq!(*choice, wanted);
        }
    }
    assert_eq!(fake.records.lock().unwrap()[0].max_tokens, 16);
}

#[tokio::test]
async fn every_parameter_reaches_the_record() {
    let (fake, router) = speaking("ok");
    let more = json!({
        "temperature": 0.5, "top_p": 0.75, "top_k": 5, "min_p": 0.25, "seed": -1, "max_completion_tokens": 9,
        "presence_penalty": 1, "frequency_penalty": -2, "repetition_penalty": 1.5,
        "logit_bias": {"9": 1.5, "3": -100}, "ignore_eos": true, "user": "u", "metadata": {"a": "b"},
        "response_format": {"type": "text"}, "service_tier": "auto", "store": false, "tools": [],
        "tool_choice": "none", "parallel_tool_calls": null, "modalities": ["text"], "logprobs": true,
        "top_logprobs": 2, "stream_options": null,
    });
    let reply = post(&router, "/v1/chat/completions", chat("hi", more)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let record = fake.records.lock().unwrap()[0].clone();
    let wanted = Sampling {
        logit_bias: vec![(3, -100.0), (9, 1.5)],
        repetition_penalty: 1.5,
        frequency_penalty: -2.0,
        presence_penalty: 1.0,
        temperature: 0.5,
        top_k: 5,
        top_p: 0.75,
        min_p: 0.25,
        seed: u64::MAX,
        logprobs: Some(2),
    };
    assert_eq!(record.sampling, wanted);
    assert_eq!(record.max_tokens, 9);
    assert!(record.stop_tokens.is_empty());
}

#[tokio::test]
async fn choices_have_seeds_of_their_own() {
    let (fake, router) = speaking("ok");
    let body = chat("hi", json!({"n": 3, "seed": 42}));
    let reply = post(&router, "/v1/chat/completions", body).await.json();
    assert_eq!(reply["usage"], json!({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}));
    let indices: Vec<u64> =
        reply["choices"].as_array().unwrap().iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, vec![0, 1, 2]);
    let seeds: Vec<u64> = fake.records.lock().unwrap().iter().map(|record| record.sampling.seed).collect();
    assert_eq!(seeds, vec![42, choice_seed(42, 1), choice_seed(42, 2)]);
    assert_ne!(seeds[1], seeds[2]);
    // Pinned: the same request must give the same answer after an upgrade.
    assert_eq!(choice_seed(42, 1), 8_140_718_394_291_221_030);
    let ids: std::collections::BTreeSet<String> =
        fake.records.lock().unwrap().iter().map(|record| record.id.clone()).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn without_a_seed_requests_differ() {
    let (fake, router) = speaking("ok");
    for _ in 0..2 {
        post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    }
    let records = fake.records.lock().unwrap();
    assert_ne!(records[0].sampling.seed, records[1].sampling.seed);
    assert_ne!(records[0].id, records[1].id);
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_answer() {
    // The fake would go on for ever: the end must come from the stop string.
    let (fake, router) = scripted(|_| {
        let mut beats = say("one END more");
        beats.push(super::fake::Beat::Hang);
        beats
    });
    let more = json!({"stop": ["nope", "END"], "return_token_ids": true});
    let reply = post(&router, "/v1/chat/completions", chat("hi", more)).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "one ");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    // "one END": up to and with the token that completed the stop string.
    assert_eq!(reply["usage"]["completion_tokens"], 7);
    assert_eq!(reply["choices"][0]["token_ids"].as_array().unwrap().len(), 7);
    assert_eq!(fake.cancelled.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_was_held_back_for_a_stop_string_is_shown_at_the_end() {
    let (_fake, router) = speaking("one EN");
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({"stop": "END"}))).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "one EN");
}

#[tokio::test]
async fn length_ends_an_answer() {
    let (_fake, router) = speaking("hello");
    let body = json!({"model": "tiny", "prompt": "abc", "max_tokens": 2});
    let reply = post(&router, "/v1/completions", body).await.json();
    assert_eq!(reply["choices"][0]["text"], "he");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn half_a_character_at_the_end_is_a_replacement_character() {
    let (_fake, router) = scripted(|_| {
        let mut beats = say("é");
        beats.truncate(1);
        beats.push(done(Finish::Length));
        beats
    });
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({}))).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "\u{fffd}");
}

#[tokio::test]
async fn chat_logprobs() {
    let (_fake, router) = speaking("é");
    let more = json!({"logprobs": true, "top_logprobs": 2});
    let reply = post(&router, "/v1/chat/completions", chat("hi", more)).await.json();
    let top = json!([
        {"token": "a", "logprob": -1.0, "bytes": [97]},
        {"token": "b", "logprob": -1.0, "bytes": [98]},
    ]);
    let token =
        |byte: u8| json!({"token": "\u{fffd}", "logprob": -0.5, "bytes": [byte], "top_logprobs": top});
    let wanted = json!({"content": [token(0xc3), token(0xa9)], "refusal": null});
    assert_eq!(reply["choices"][0]["logprobs"], wanted);
    let more = json!({"logprobs": true});
    let reply = post(&router, "/v1/chat/completions", chat("hi", more)).await.json();
    assert_eq!(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn completions_logprobs() {
    let (_fake, router) = speaking("éx");
    let body = json!({"model": "tiny", "prompt": "abc", "logprobs": 1});
    let reply = post(&router, "/v1/completions", body).await.json();
    let logprobs = &reply["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["\u{fffd}", "\u{fffd}", "x"]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5]));
    // Offsets count characters: both halves of "é" begin at 0.
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1]));
    assert_eq!(logprobs["top_logprobs"][2], json!({"a": -1.0, "x": -0.5}));
}

#[tokio::test]
async fn content_parts_are_put_together() {
    let (fake, router) = speaking("ok");
    let body = json!({"model": "tiny", "messages": [
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]});
    assert_eq!(post(&router, "/v1/chat/completions", body).await.status, 200);
    let prompt: Vec<u8> =
        fake.records.lock().unwrap()[0].prompt.iter().map(|token| u8::try_from(*token).unwrap()).collect();
    assert_eq!(prompt, b"s:d\na:ab\n");
}

#[tokio::test]
async fn models_are_listed() {
    let (fake, router) = speaking("ok");
    fake.edit(|state| {
        state.models.insert("another/one".into(), super::fake::model("another/one"));
    });
    let list = get(&router, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, vec!["tiny", "another/one"]);
    assert_eq!(get(&router, "/v1/models/tiny").await.json()["object"], "model");
    assert_eq!(get(&router, "/v1/models/another/one").await.json()["id"], "another/one");
    let missing = get(&router, "/v1/models/none").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn one_failed_choice_fails_the_request() {
    let refusal = caravan_core::error::Refusal::cluster("queue_full", 1_500, "512 sequences wait already");
    let (_fake, router) = scripted(move |record| match record.id.ends_with("-1") {
        true => vec![super::fake::Beat::Say(caravan_core::request::GenerateEvent::Refused(refusal.clone()))],
        false => speak(record, "ok"),
    });
    for stream in [false, true] {
        let body = chat("hi", json!({"n": 2, "stream": stream}));
        let reply = post(&router, "/v1/chat/completions", body).await;
        if stream && reply.status == 200 {
            // The other choice was first: the refusal is the last frame.
            let last: Value = serde_json::from_str(reply.data().last().unwrap()).unwrap();
            assert_eq!(last["error"]["code"], "queue_full");
            continue;
        }
        assert_eq!(reply.status, 429);
        assert_eq!(reply.headers["retry-after"], "2");
        let wanted = json!({"error": {
            "message": "512 sequences wait already",
            "type": "rate_limit_error",
            "param": null,
            "code": "queue_full",
        }});
        assert_eq!(reply.json(), wanted);
    }
}

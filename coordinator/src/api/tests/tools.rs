//! Forms and tools through the door: what becomes of them in records, and of calls in answers.

use caravan_core::request::{ConstraintKind, Finish};
use serde_json::{Value, json};

use super::fake::{Beat, END, done, say, scripted, speaking};
use super::{chat, post};

const CHAT: &str = "/v1/chat/completions";

fn add(strict: bool) -> Value {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    json!({"type": "function", "function": {"name": "add", "parameters": parameters, "strict": strict}})
}

#[tokio::test]
async fn a_form_travels_with_every_record() {
    let (fake, router) = speaking("{}");
    let schema = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "null"}}});
    let form = |strict: Value| {
        json!({"n": 2, "response_format": {"type": "json_schema", "json_schema":
            {"name": "x", "schema": schema, "strict": strict}}})
    };
    for (strict, lenient) in [(json!(true), false), (json!(false), true), (json!(null), true)] {
        let reply = post(&router, CHAT, chat("hi", form(strict))).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        for record in fake.records.lock().unwrap().drain(..) {
            let constraint = record.sampling.constraint.expect("a constraint");
            assert_eq!(constraint.kind, ConstraintKind::JsonSchema { lenient });
            // The order of properties is the client's.
            assert_eq!(constraint.text, schema.to_string());
            assert_eq!((constraint.ends, constraint.control), (vec![END], vec![]));
        }
    }
    let text = json!({"model": "tiny", "prompt": "hi", "structured_outputs": {"choice": ["a.b", "c|d"]}});
    assert_eq!(post(&router, "/v1/completions", text).await.status, 200);
    let record = fake.records.lock().unwrap().pop().unwrap();
    assert_eq!(record.sampling.constraint.unwrap().text, "(a\\.b|c\\|d)");
    let plain = json!({"response_format": {"type": "text"}, "tool_choice": "none"});
    assert_eq!(post(&router, CHAT, chat("hi", plain)).await.status, 200);
    assert_eq!(fake.records.lock().unwrap().pop().unwrap().sampling.constraint, None);
}

#[tokio::test]
async fn tools_are_forced_only_where_they_must_be() {
    let (fake, router) = speaking("no");
    let constraint = async |tool: Value, choice: Value| {
        let body = chat("hi", json!({"tools": [tool], "tool_choice": choice}));
        let reply = post(&router, CHAT, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        fake.records.lock().unwrap().pop().unwrap().sampling.constraint
    };
    assert_eq!(constraint(add(false), json!(null)).await, None);
    assert_eq!(constraint(add(false), json!("auto")).await, None);
    assert_eq!(constraint(add(true), json!("none")).await, None);
    let named = json!({"type": "function", "function": {"name": "add"}});
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}});
    for (tool, choice) in [
        (add(true), json!("auto")),
        (add(false), json!("required")),
        (add(false), named),
        (add(false), allowed),
    ] {
        let constraint = constraint(tool, choice).await.expect("a constraint");
        assert_eq!(constraint.kind, ConstraintKind::Lark);
    }
}

const CALL: &str = "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>";

#[tokio::test]
async fn calls_in_an_answer_are_shown_as_calls() {
    let (fake, router) = scripted(|_| {
        let mut beats = say(CALL);
        beats.push(done(Finish::Stop));
        beats
    });
    let reply = post(&router, CHAT, chat("hi", json!({"tools": [add(false)]}))).await.json();
    let id = fake.records.lock().unwrap().pop().unwrap().id;
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Let me see.");
    let call = |index: usize, arguments: &str| {
        let id = crate::api::tools::calls::call_id(&id, index);
        json!({"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}})
    };
    assert_eq!(choice["message"]["tool_calls"], json!([call(0, "{\"a\": 1}"), call(1, "{}")]));
    // Without tools it is text.
    let reply = post(&router, CHAT, chat("hi", json!({}))).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], CALL);
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn calls_are_streamed_as_they_grow() {
    let (_fake, router) = scripted(|_| {
        let mut beats: Vec<Beat> = say(CALL);
        beats.push(done(Finish::Stop));
        beats
    });
    let chunks =
        post(&router, CHAT, chat("hi", json!({"tools": [add(false)], "stream": true}))).await.chunks();
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut text = String::new();
    for chunk in &chunks {
        let delta = &chunk["choices"][0]["delta"];
        text.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            if call.get("id").is_some() {
                assert_eq!((&call["type"], &call["index"]), (&json!("function"), &json!(calls.len())));
                calls.push((call["function"]["name"].as_str().unwrap().into(), String::new()));
            }
            let at = call["index"].as_u64().unwrap() as usize;
            calls[at].1.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    assert_eq!(text, "Let me see.");
    assert_eq!(calls, [("add".into(), "{\"a\": 1}".into()), ("add".to_owned(), "{}".to_owned())]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    let with_calls = chunks.iter().filter(|chunk| chunk["choices"][0]["delta"].get("tool_calls").is_some());
    assert!(with_calls.count() > 6, "arguments came in one piece");
}

#[tokio::test]
async fn a_cut_call_says_so() {
    let (_fake, router) = scripted(|_| {
        let mut beats = say("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": ");
        beats.push(done(Finish::Length));
        beats
    });
    let reply = post(&router, CHAT, chat("hi", json!({"tools": [add(false)]}))).await.json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\": ");
    assert_eq!(choice["message"]["content"], Value::Null);
}

#[tokio::test]
async fn messages_may_hold_calls_and_results() {
    let (_fake, router) = speaking("ok");
    let messages = json!([{"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "3"}]}]);
    let body = json!({"model": "tiny", "messages": messages, "tools": [add(false)]});
    assert_eq!(post(&router, CHAT, body).await.status, 200);
}

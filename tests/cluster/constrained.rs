//! Constrained answers with real processes: the same text under `kill -9` of a worker, always of the
//! form that was asked for; hostile forms refused or bounded while a stream goes on.
//!
//! Must never accept an answer that differs from the undisturbed one in a single character.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ask::{chunks, model};
use super::bad_input::beside_canaries;
use super::harness::{Cluster, Options, post, signal, wait_for};

/// Path, body, and what the whole answer must satisfy.
struct Case {
    name: &'static str,
    path: &'static str,
    body: Value,
    check: fn(&Said),
}

/// A streamed answer, put together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    text: String,
    /// Id, name and arguments.
    calls: Vec<(String, String, String)>,
    finish: String,
}

fn said(chunks: &[Value]) -> Said {
    let mut said = Said::default();
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        for text in [&choice["text"], &choice["delta"]["content"]] {
            said.text.push_str(text.as_str().unwrap_or_default());
        }
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("an index") as usize;
            let function = &call["function"];
            if let Some(id) = call["id"].as_str() {
                assert_eq!(index, said.calls.len(), "{call}");
                let name = function["name"].as_str().expect("a name");
                said.calls.push((id.to_owned(), name.to_owned(), String::new()));
            }
            said.calls[index].2.push_str(function["arguments"].as_str().unwrap_or_default());
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            finish.clone_into(&mut said.finish);
        }
    }
    said
}

fn json_of(said: &Said) -> Option<Value> {
    match said.finish.as_str() {
        "length" => None,
        "stop" => Some(serde_json::from_str(&said.text).unwrap_or_else(|e| panic!("{e}: {}", said.text))),
        other => panic!("finish_reason {other}"),
    }
}

fn cases(model: &str) -> Vec<Case> {
    let person = json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["tall", "old", "kind"]}, "minItems": 3, "maxItems": 6}}});
    let chat = |more: Value| {
        let mut body = json!({"model": model, "seed": 7, "temperature": 1.0, "max_tokens": 200,
            "messages": [{"role": "user", "content": "Describe a person as JSON."}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let add = json!({"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "strict": true,
        "parameters": {"type": "object", "required": ["a", "b"], "additionalProperties": false,
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "maximum": 99}}}}});
    let schema = json!({"name": "person", "strict": true, "schema": person});
    vec![
        Case {
            name: "schema",
            path: "/v1/chat/completions",
            body: chat(json!({"response_format": {"type": "json_schema", "json_schema": schema}})),
            check: |said| {
                let Some(value) = json_of(said) else { return };
                assert!(value["age"].as_u64().is_some_and(|age| age <= 130), "{value}");
                assert!(
                    value["tags"].as_array().is_some_and(|tags| (3..=6).contains(&tags.len())),
                    "{value}"
                );
            },
        },
        Case {
            name: "regex",
            path: "/v1/completions",
            body: json!({"model": model, "prompt": "The numbers are", "seed": 3, "max_tokens": 120,
                "structured_outputs": {"regex": "( [0-9]{3}){20}\\."}}),
            check: |said| {
                assert_eq!((said.finish.as_str(), said.text.len()), ("stop", 81), "{said:?}");
                let digits = said.text.trim_end_matches('.').split(' ').skip(1);
                assert!(
                    digits.clone().count() == 20
                        && digits.clone().all(|d| d.len() == 3 && d.parse::<u32>().is_ok())
                );
            },
        },
        Case {
            name: "tools",
            path: "/v1/chat/completions",
            body: chat(json!({"tools": [add], "tool_choice": "required"})),
            check: |said| {
                assert!(!said.calls.is_empty() && said.text.is_empty(), "{said:?}");
                if said.finish == "length" {
                    return;
                }
                assert_eq!(said.finish, "tool_calls");
                for (_, name, arguments) in &said.calls {
                    let arguments: Value = serde_json::from_str(arguments).expect("arguments are JSON");
                    assert_eq!(name, "add");
                    assert!(arguments["a"].is_i64() && arguments["b"].as_i64().is_some_and(|b| b <= 99));
                }
            },
        },
        Case {
            name: "grammar",
            path: "/v1/completions",
            body: json!({"model": model, "prompt": "2 + 2 =", "seed": 11, "max_tokens": 60,
                "structured_outputs": {"grammar": "start: SUM{5,9}\nSUM: / [0-9]{1,2} \\+ [0-9]{1,2};/\n"}}),
            check: |said| {
                let sums = said.text.matches('+').count();
                assert!(said.finish == "length" || (5..=9).contains(&sums), "{said:?}");
            },
        },
    ]
}

/// Ids begin with the request's own, which is another each time.
fn without_ids(mut said: Said) -> Said {
    said.calls.iter_mut().for_each(|(id, ..)| {
        assert!(id.starts_with("call_"), "{id}");
        id.clear();
    });
    said
}

fn ask(http: &str, case: &Case, on_chunk: impl FnMut(usize)) -> Said {
    let mut body = case.body.clone();
    body["stream"] = json!(true);
    said(
        &chunks(&format!("{http}{}", case.path), &body, on_chunk)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name)),
    )
}

#[test]
fn constrained_answers_survive_a_kill() {
    let cluster = Cluster::start(Options::new(3, 1));
    let model = model(&cluster.http);
    let mut pauses = 0;
    for (round, case) in cases(&model).iter().cycle().take(8).enumerate() {
        cluster.wait_ready(&cluster.http);
        let expected = without_ids(ask(&cluster.http, case, |_| {}));
        (case.check)(&expected);
        // The last stage, which holds the constraint, every other time.
        let plan = cluster.admin("plan");
        let stages = plan["models"][0]["pipelines"][0]["stages"].as_array().expect("stages").clone();
        let victim = stages[if round % 2 == 0 { stages.len() - 1 } else { 0 }]["worker"].clone();
        let victim =
            cluster.role("worker").into_iter().find(|w| Some(w.id.as_str()) == victim.as_str()).unwrap();
        let mut killed = false;
        let got = ask(&cluster.http, case, |chunks| {
            if chunks >= 4 + 3 * round && !killed {
                killed = true;
                signal(victim.pid, "-9");
            }
        });
        pauses += usize::from(killed);
        assert_eq!(expected, without_ids(got), "round {round}: {} with {} killed", case.name, victim.id);
        if killed {
            wait_for("the process to be replaced", || {
                cluster.role("worker").iter().any(|p| p.id == victim.id && p.pid != victim.pid)
            });
        }
    }
    eprintln!("constrained: {pauses} kills in 8 answers, every answer the same");
    assert!(pauses >= 6, "most answers were long enough to kill in");
}

#[test]
fn hostile_forms_are_refused_or_bounded_and_harm_nobody() {
    let cluster = Cluster::start(Options::new(2, 1));
    let model = model(&cluster.http);
    let url = format!("{}/v1/completions", cluster.http);
    let doubling: String = (0..60).map(|i| format!("r{i}: r{0} r{0}\n", i + 1)).collect();
    let values: Vec<String> = (0..20_000).map(|i| format!("value number {i}")).collect();
    let mut nested = json!({"type": "string"});
    (0..100).for_each(|_| nested = json!({"type": "object", "properties": {"a": nested.take(), "b": true}}));
    let forms = [
        ("exponential grammar", json!({"grammar": format!("start: r0\n{doubling}r60: \"a\"\n")})),
        ("nested schema", json!({"json": nested})),
        ("huge enum", json!({"json": {"enum": values}})),
        ("catastrophic regex", json!({"regex": "((a+)+|(a|aa)*)*(x+x+)+y|(.*a){20}b{1000}"})),
        (
            "ambiguous, left-recursive grammar",
            json!({"grammar": "start: start start | start start start | \"a\" | \"\"\n"}),
        ),
    ];
    beside_canaries(&cluster, || {
        for (name, form) in &forms {
            let body = json!({"model": model, "prompt": "Hi", "max_tokens": 8, "seed": 1, "structured_outputs": form});
            let begun = Instant::now();
            let (status, text) = post(&url, body.to_string().as_bytes()).expect(name);
            let took = begun.elapsed();
            eprintln!(
                "hostile: {name}: {status} after {took:?}: {}",
                text.chars().take(160).collect::<String>()
            );
            let value: Value = serde_json::from_str(&text).expect("JSON");
            match status {
                200 => assert!(value["choices"][0]["finish_reason"].is_string(), "{name}: {text}"),
                400 => {
                    let param = value["error"]["param"].as_str().unwrap_or_default();
                    let failed = value["error"]["code"] == "constraint_failed";
                    assert!(failed || param.starts_with("structured_outputs."), "{name}: {text}");
                }
                other => panic!("{name}: {other} {text}"),
            }
            // Far above what it takes alone: a bound on hanging, not a measurement.
            assert!(took < Duration::from_secs(20), "{name}: {took:?}");
        }
    });
}

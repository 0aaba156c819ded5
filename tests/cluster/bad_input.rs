//! Bar 8: bad input gets the right status and an error that names the field, and harms nobody.
//!
//! Must never let the canary stream go unread: it is compared with the undisturbed answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::ask::{Question, ask, model, prose};
use super::harness::{Cluster, Options, get, post, wait_for};

fn canary() -> Question {
    Question { prompt: prose()[100..140].to_vec(), max_tokens: 96, seed: 9, temperature: 0.8, top_p: 0.9 }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `trouble` beside canary streams, of which at least one is whole within it.
pub fn beside_canaries(cluster: &Cluster, trouble: impl FnOnce()) {
    let expected = ask(&cluster.http, &canary(), |_| {}).expect("undisturbed").answer;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when `trouble` fails: a scope waits for its threads.
        let _stop = StopAtEnd(&stop);
        let canaries = scope.spawn(|| {
            let mut whole = 0;
            while !stop.load(Ordering::Relaxed) || whole == 0 {
                let answer = ask(&cluster.http, &canary(), |_| {}).expect("the canary lives").answer;
                assert_eq!(expected, answer, "the canary is unharmed");
                whole += 1;
            }
            whole
        });
        trouble();
        stop.store(true, Ordering::Relaxed);
        let whole = canaries.join().expect("canaries");
        eprintln!("bad input: {whole} canaries unharmed");
    });
}

/// Name, body, status, and what `error.param` is.
fn cases(model: &str) -> Vec<(&'static str, Vec<u8>, u16, Option<&'static str>)> {
    let chat = |change: Value| {
        let mut body =
            json!({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]});
        for (key, value) in change.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body.to_string().into_bytes()
    };
    let raw = |text: &str| text.as_bytes().to_vec();
    let long = "word ".repeat(20_000);
    let stop = "x".repeat(1_000_000);
    vec![
        ("malformed JSON", raw("{\"model\": "), 400, None),
        ("not an object", raw("[1,2]"), 400, None),
        ("empty body", raw(""), 400, None),
        ("NaN", raw(&format!("{{\"model\":\"{model}\",\"temperature\":NaN}}")), 400, None),
        ("1e999", raw(&format!("{{\"model\":\"{model}\",\"temperature\":1e999}}")), 400, None),
        ("invalid UTF-8", b"{\"model\":\"\xff\xfe\"}".to_vec(), 400, None),
        ("wrong type", chat(json!({"temperature": "hot"})), 400, Some("temperature")),
        ("wrong type of messages", chat(json!({"messages": "hello"})), 400, Some("messages")),
        ("unknown model", chat(json!({"model": "no-such-model"})), 404, Some("model")),
        ("empty messages", chat(json!({"messages": []})), 400, Some("messages")),
        (
            "unknown role",
            chat(json!({"messages": [{"role": "pope", "content": "x"}]})),
            400,
            Some("messages[0].role"),
        ),
        ("negative", chat(json!({"max_tokens": -1})), 400, Some("max_tokens")),
        ("huge", chat(json!({"max_tokens": 1e300})), 400, Some("max_tokens")),
        ("huge temperature", chat(json!({"temperature": 1e38})), 400, Some("temperature")),
        ("n of a million", chat(json!({"n": 1_000_000})), 400, Some("n")),
        (
            "long prompt",
            chat(json!({"messages": [{"role": "user", "content": long}]})),
            400,
            Some("messages"),
        ),
        ("long stop", chat(json!({"stop": stop})), 400, Some("stop")),
        ("unknown parameter", chat(json!({"temprature": 1})), 400, Some("temprature")),
        (
            "a tool without a function",
            chat(json!({"tools": [{"type": "function"}]})),
            400,
            Some("tools[0].function"),
        ),
        (
            "unsupported parameter",
            chat(json!({"guided_json": {}, "audio": {"voice": "x"}})),
            400,
            Some("audio"),
        ),
        ("deep nesting", raw(&"[".repeat(100_000)), 400, None),
        ("bad logit bias", chat(json!({"logit_bias": {"999999999": 1}})), 400, Some("logit_bias.999999999")),
    ]
}

#[test]
fn bad_requests_are_named_and_harm_nobody() {
    let cluster = Cluster::start(Options::new(2, 1));
    let model = model(&cluster.http);
    let url = format!("{}/v1/chat/completions", cluster.http);
    beside_canaries(&cluster, || {
        for (name, body, status, param) in cases(&model) {
            let (got, text) = post(&url, &body).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(got, status, "{name}: {text}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name}: {text}"));
            let error = &value["error"];
            assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{name}: {text}");
            assert!(error["type"].is_string(), "{name}: {text}");
            if let Some(param) = param {
                assert_eq!(error["param"].as_str(), Some(param), "{name}: {text}");
            }
        }
        let big = vec![b' '; 64 << 20];
        let refused = post(&url, &big);
        // A refusal may reach the client as the status or as a closed connection while it still sends.
        assert!(matches!(refused, Ok((413, _)) | Err((0, _))), "{refused:?}");
    });
}

#[test]
fn slow_gone_and_many_clients_harm_nobody() {
    let cluster = Cluster::start(Options::new(2, 1));
    let model = model(&cluster.http);
    beside_canaries(&cluster, || {
        let slow = open_stream(&cluster.http, &model, 200);
        for _ in 0..20 {
            drop(open_stream(&cluster.http, &model, 2_000));
        }
        read_slowly(slow, 12);
        many_clients(&cluster, &model, 200);
    });
    wait_for("every sequence to be gone", || {
        let requests = get(&format!("{}/admin/v1/requests", cluster.http)).expect("requests");
        let list = requests.as_array().or_else(|| requests["requests"].as_array()).cloned();
        list.is_some_and(|list| list.is_empty())
    });
    wait_for("every page to be free", || {
        let text = ureq::get(format!("{}/metrics", cluster.http)).call().expect("metrics");
        let text = text.into_body().read_to_string().expect("text");
        let value = |name: &str| -> Option<f64> {
            let label = format!("what=\"{name}\"");
            let line = text.lines().find(|l| l.starts_with("caravan_pipeline{") && l.contains(&label))?;
            line.rsplit(' ').next()?.parse().ok()
        };
        let (free, all) = (value("free_pages"), value("pages"));
        assert!(free.is_some() && all.is_some(), "{text}");
        free == all
    });
}

/// A stream of which nothing has been read yet.
fn open_stream(http: &str, model: &str, max_tokens: u32) -> TcpStream {
    let body = json!({"model": model, "prompt": "Once upon a time", "max_tokens": max_tokens,
        "stream": true, "ignore_eos": true, "seed": 1})
    .to_string();
    let address = http.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).expect("a connection");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).expect("sent");
    socket.write_all(body.as_bytes()).expect("sent");
    socket
}

/// One byte a quarter of a second.
fn read_slowly(mut socket: TcpStream, bytes: usize) {
    let mut byte = [0u8; 1];
    for _ in 0..bytes {
        socket.read_exact(&mut byte).expect("a byte");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// All at once: each is answered, or told to come back.
fn many_clients(cluster: &Cluster, model: &str, clients: usize) {
    let url = format!("{}/v1/completions", cluster.http);
    let statuses = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for i in 0..clients {
            let (url, statuses) = (&url, &statuses);
            scope.spawn(move || {
                let body =
                    json!({"model": model, "prompt": format!("Number {i} is"), "max_tokens": 4, "seed": i});
                let answer = post(url, body.to_string().as_bytes());
                statuses.lock().expect("no client failed").push(answer.map(|a| a.0).unwrap_or_else(|e| e.0));
            });
        }
    });
    let statuses = statuses.into_inner().expect("no client failed");
    let done = statuses.iter().filter(|status| **status == 200).count();
    let later = statuses.iter().filter(|status| **status == 429).count();
    eprintln!("bad input: 200 clients at once: {done} answered, {later} told to come back");
    assert_eq!(done + later, clients, "{statuses:?}");
    assert!(done > 0);
}

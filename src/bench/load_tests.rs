//! Loads against a small server that behaves as it is told, mostly badly.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;

/// What the server does with its n-th request.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Whole answer of so many tokens, in pieces of so many bytes, with a pause between tokens.
    Answer {
        tokens: u32,
        piece: usize,
        pause_ms: u64,
    },
    /// As `Answer`, without usage and without the last `[DONE]`.
    Plain {
        tokens: u32,
    },
    Status(u16),
    /// Closes after so many tokens.
    CloseAfter(u32),
    /// Says nothing more after so many tokens.
    StallAfter(u32),
    /// Accepts the request and says nothing at all.
    Silent,
    BadEvent,
    ErrorEvent,
    NoText,
    NoStream,
    /// Endless tokens, so that only the whole request's deadline ends it.
    Endless,
    Hangup,
}

struct Server {
    url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
    most_at_once: Arc<AtomicUsize>,
}

fn serve(acts: impl Fn(usize) -> Act + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (bodies, most_at_once) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (acts, at_once, count) =
        (Arc::new(acts), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = Server { url, bodies: Arc::clone(&bodies), most_at_once: Arc::clone(&most_at_once) };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (acts, at_once, count) = (Arc::clone(&acts), Arc::clone(&at_once), Arc::clone(&count));
            let (bodies, most_at_once) = (Arc::clone(&bodies), Arc::clone(&most_at_once));
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                most_at_once.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let body = request(&stream);
                let chat = body.get("messages").is_some();
                bodies.lock().unwrap().push(body);
                let act = acts(count.fetch_add(1, Ordering::SeqCst));
                // A client that has given up makes writing fail, as it should.
                let _ = answer(&mut stream, act, chat);
                at_once.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    server
}

fn request(stream: &TcpStream) -> Value {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0u8; length];
    reader.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n";

fn token(index: u32, chat: bool) -> String {
    if !chat {
        return format!(
            "data: {{\"choices\": [{{\"index\": 0, \"text\": \"é{index} \", \"finish_reason\": null}}]}}\n\n"
        );
    }
    format!(
        "data: {{\"choices\": [{{\"index\": 0, \"delta\": {{\"content\": \"é{index} \"}}, \"finish_reason\": null}}]}}\n\n"
    )
}

const ROLE: &str = "data: {\"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"\"}}]}\n\n";
const FINISH: &str = "data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"length\"}]}\n\n";

fn answer(stream: &mut TcpStream, act: Act, chat: bool) -> std::io::Result<()> {
    let token = |index| token(index, chat);
    let pause = |ms| std::thread::sleep(Duration::from_millis(ms));
    if !matches!(act, Act::Status(_) | Act::NoStream | Act::Silent | Act::Hangup) {
        stream.write_all(format!("{HEAD}: alive\r\n\r\n{ROLE}").as_bytes())?;
    }
    match act {
        Act::Answer { tokens, piece, pause_ms } => {
            for index in 0..tokens {
                pause(pause_ms);
                for part in token(index).as_bytes().chunks(piece) {
                    stream.write_all(part)?;
                    stream.flush()?;
                }
            }
            stream.write_all(FINISH.as_bytes())?;
            // Twice the parts: a part may hold several tokens.
            let usage = format!("{{\"prompt_tokens\": 42, \"completion_tokens\": {}}}", 2 * tokens);
            stream.write_all(format!("data: {{\"choices\": [], \"usage\": {usage}}}\n\ndata: [DONE]\n\n").as_bytes())
        }
        Act::Plain { tokens } => {
            let text: String = (0..tokens).map(token).collect();
            stream.write_all(format!("{text}{}", FINISH.trim_end()).as_bytes())
        }
        Act::Status(status) => stream.write_all(
            format!("HTTP/1.1 {status} No\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{{\"no\": 1}}").as_bytes(),
        ),
        Act::CloseAfter(tokens) => stream.write_all((0..tokens).map(token).collect::<String>().as_bytes()),
        Act::StallAfter(tokens) => {
            stream.write_all((0..tokens).map(token).collect::<String>().as_bytes())?;
            pause(5_000);
            Ok(())
        }
        Act::Silent => {
            pause(5_000);
            Ok(())
        }
        Act::BadEvent => stream.write_all(b"data: {\"choices\": [\n\n"),
        Act::ErrorEvent => stream.write_all(b"data: {\"error\": {\"message\": \"out of pages\"}}\n\n"),
        Act::NoText => stream.write_all(format!("{FINISH}data: [DONE]\n\n").as_bytes()),
        Act::NoStream => stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Act::Endless => loop {
            stream.write_all(token(0).as_bytes())?;
            pause(20);
        },
        Act::Hangup => Ok(()),
    }
}

fn target(url: &str) -> Target {
    Target {
        url: url.to_owned(),
        model: "m".to_owned(),
        chat: true,
        max_tokens: 5,
        ignore_eos: false,
        timeout: Duration::from_secs(20),
        stall: Duration::from_secs(10),
    }
}

fn closed(clients: u32, requests: u32) -> Load {
    Load { pace: Pace::Clients(clients), requests, prompt_words: 10, seed: 1 }
}

#[test]
fn whole_answers_are_timed_and_counted_however_they_are_cut() {
    for piece in [1, 7, 4096] {
        let server = serve(move |_| Act::Answer { tokens: 5, piece, pause_ms: 10 });
        let load = closed(3, 9);
        let outcome = run(&target(&server.url), load, &|_| {});
        assert_eq!(outcome.failures, []);
        let report = outcome.report(load);
        assert_eq!(
            (&report["completed"], &report["output_tokens"], &report["parts"]),
            (&json!(9), &json!(90), &json!(45))
        );
        assert_eq!((&report["tokens_counted_by"], &report["prompt_tokens"]), (&json!("usage"), &json!(42.0)));
        assert_eq!(outcome.gaps_ms().count(), 36);
        // The empty first part is no token; pauses are at least as long as they were asked to be.
        assert!(outcome.first_ms().min() >= Some(10.0) && outcome.total_ms().min() >= Some(50.0), "{report}");
        assert!(outcome.gaps_ms().median() >= Some(9.0), "{report}");
        assert!(server.most_at_once.load(Ordering::SeqCst) <= 3);
        let bodies = server.bodies.lock().unwrap();
        let prompts: std::collections::BTreeSet<&str> =
            bodies.iter().map(|body| body["messages"][0]["content"].as_str().unwrap()).collect();
        assert_eq!(
            (prompts.len(), &bodies[0]["max_tokens"], &bodies[0]["stream"]),
            (9, &json!(5), &json!(true))
        );
        assert!(bodies[0].get("ignore_eos").is_none());
    }
}

#[test]
fn without_usage_the_parts_are_counted_and_it_says_so() {
    let server = serve(|_| Act::Plain { tokens: 5 });
    let outcome = run(&target(&server.url), closed(1, 2), &|_| {});
    assert_eq!(outcome.failures, []);
    assert_eq!(outcome.report(closed(1, 2))["tokens_counted_by"], json!("parts"));
    assert_eq!(outcome.output_tokens(), 10);
    let mixed = serve(|n| {
        if n == 0 { Act::Plain { tokens: 5 } } else { Act::Answer { tokens: 5, piece: 99, pause_ms: 0 } }
    });
    let outcome = run(&target(&mixed.url), closed(1, 2), &|_| {});
    assert_eq!(outcome.report(closed(1, 2))["tokens_counted_by"], json!("usage and parts"));
    assert_eq!(outcome.output_tokens(), 15);
}

#[test]
fn every_misbehaviour_is_counted_by_its_kind_and_ends() {
    let kinds = [
        (Act::Status(500), "status_500"),
        (Act::Status(429), "status_429"),
        (Act::CloseAfter(2), "broke_off"),
        (Act::CloseAfter(0), "broke_off"),
        (Act::StallAfter(2), "stalled"),
        (Act::Silent, "stalled"),
        (Act::BadEvent, "bad_event"),
        (Act::ErrorEvent, "error_event"),
        (Act::NoText, "no_text"),
        (Act::NoStream, "no_stream"),
        (Act::Endless, "timeout"),
    ];
    for (act, kind) in kinds {
        let server =
            serve(move |n| if n == 1 { act } else { Act::Answer { tokens: 3, piece: 5, pause_ms: 0 } });
        let mut target = target(&server.url);
        (target.stall, target.timeout) = (Duration::from_millis(300), Duration::from_millis(1_500));
        let begun = Instant::now();
        let outcome = run(&target, closed(1, 3), &|_| {});
        assert!(begun.elapsed() < Duration::from_secs(4), "{act:?} took {:?}", begun.elapsed());
        assert_eq!(outcome.errors(), BTreeMap::from([(kind, 1)]), "{act:?}: {:?}", outcome.failures);
        assert_eq!(
            (outcome.answers.len(), outcome.output_tokens()),
            (2, 12),
            "{act:?}: failures add no tokens"
        );
    }
    let server = serve(|_| Act::Hangup);
    let outcome = run(&target(&server.url), closed(2, 4), &|_| {});
    assert_eq!((outcome.answers.len(), outcome.failures.len()), (0, 4), "{:?}", outcome.failures);
    assert_eq!(outcome.report(closed(2, 4))["ttft_ms"]["p50"], Value::Null);
    assert!(warm_up(&target(&server.url), closed(1, 1), 1).is_err());
}

#[test]
fn a_server_that_is_not_there_is_an_error_of_connecting() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = run(&target(&format!("http://{free}/v1")), closed(2, 4), &|_| {});
    assert_eq!(outcome.errors(), BTreeMap::from([("connect", 4)]), "{:?}", outcome.failures);
}

#[test]
fn an_open_loop_does_not_wait_for_the_server() {
    let server = serve(|_| Act::Answer { tokens: 1, piece: 99, pause_ms: 400 });
    let load = Load { pace: Pace::Rate(100.0), requests: 20, prompt_words: 10, seed: 5 };
    let outcome = run(&target(&server.url), load, &|_| {});
    assert_eq!(outcome.failures, []);
    let last = *prompts::arrivals(5, 100.0, 20).last().unwrap();
    // One after the other they would take 8 s.
    let wall = outcome.wall.as_secs_f64();
    assert!(wall >= last + 0.4 && wall < 4.0, "{wall} s, last arrival at {last} s");
    assert!(server.most_at_once.load(Ordering::SeqCst) > 5);
    let report = outcome.report(load);
    assert_eq!(
        (&report["mode"], &report["rate"], &report["clients"]),
        (&json!("open"), &json!(100.0), &Value::Null)
    );
}

#[test]
fn completions_are_asked_and_read_too() {
    let server = serve(|_| Act::Plain { tokens: 2 });
    let target = Target { chat: false, ignore_eos: true, ..target(&server.url) };
    let outcome = run(&target, closed(1, 1), &|_| {});
    assert_eq!((outcome.failures.len(), outcome.output_tokens()), (0, 2), "{:?}", outcome.failures);
    let bodies = server.bodies.lock().unwrap();
    assert_eq!(bodies[0]["prompt"].as_str().unwrap(), prompts::prompt(1, 0, 10));
    assert_eq!((&bodies[0]["ignore_eos"], bodies[0].get("messages")), (&json!(true), None));
}

//! One streamed request to a server with an OpenAI API, with the time of every part of the answer.
//!
//! Must never wait without end, and never take a broken answer for a whole one.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::{Duration, Instant};

use caravan_core::limits;
use serde_json::{Value, json};
use ureq::{Agent, Timeout};

use super::sse::Events;

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Up to and with `/v1`.
    pub url: String,
    pub model: String,
    /// Chat, else completions.
    pub chat: bool,
    pub max_tokens: u32,
    pub ignore_eos: bool,
    /// For a whole request.
    pub timeout: Duration,
    /// For a silence.
    pub stall: Duration,
}

/// A whole answer. Times are since the request was due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub first_ms: f64,
    pub total_ms: f64,
    /// Between two parts of text.
    pub gaps_ms: Vec<f64>,
    /// Parts of text.
    pub parts: u64,
    /// As the server counts them, if it does.
    pub output_tokens: Option<u64>,
    pub prompt_tokens: Option<u64>,
}

/// Why there is no whole answer. `kind` is for counting, `detail` for people.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Failure {
    pub kind: String,
    pub detail: String,
}

fn failure(kind: &str, detail: impl std::fmt::Display) -> Failure {
    Failure { kind: kind.to_owned(), detail: detail.to_string() }
}

impl Target {
    /// A connection for each request, so that no server has an advantage from keeping them.
    pub fn agent(&self) -> Agent {
        // The proxies of the environment would be measured too.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_idle_connections(0)
            .timeout_connect(Some(Duration::from_millis(limits::BENCH_CONNECT_MS).min(self.timeout)))
            .timeout_global(Some(self.timeout))
            .timeout_per_read(Some(self.stall))
            .timeout_per_write(Some(self.stall))
            .build();
        config.into()
    }

    fn endpoint(&self) -> String {
        let path = if self.chat { "chat/completions" } else { "completions" };
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }

    fn body(&self, prompt: &str) -> Value {
        let mut body = json!({"model": self.model, "max_tokens": self.max_tokens, "temperature": 0.0,
            "stream": true, "stream_options": {"include_usage": true}});
        if self.chat {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
        } else {
            body["prompt"] = json!(prompt);
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        body
    }

    /// Asks, and reads the answer to its end. `due`: when the request arrived, from which times count.
    pub fn ask(&self, agent: &Agent, prompt: &str, due: Instant) -> Result<Answer, Failure> {
        let sent = agent.post(self.endpoint()).send_json(self.body(prompt));
        let mut response = sent.map_err(|error| told(&error))?;
        let status = response.status().as_u16();
        if status != 200 {
            let limit = limits::BENCH_ERROR_BYTES;
            let said = response.body_mut().with_config().limit(limit).read_to_vec().unwrap_or_default();
            let said: String = String::from_utf8_lossy(&said).chars().take(300).collect();
            return Err(failure(&format!("status_{status}"), said));
        }
        let kind = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
        if !kind.starts_with("text/event-stream") {
            return Err(failure("no_stream", format!("the answer is {kind:?} and no stream of events")));
        }
        let mut reading = Reading::new(due);
        reading.all(&mut response.body_mut().as_reader())?;
        reading.answer()
    }
}

/// What went wrong below HTTP.
fn told(error: &ureq::Error) -> Failure {
    let kind = match error {
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => "connect_timeout",
        ureq::Error::Timeout(Timeout::PerRead | Timeout::PerWrite) => "stalled",
        ureq::Error::Timeout(_) => "timeout",
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => "connect",
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => "connect",
        ureq::Error::Io(_) => "broke_off",
        _ => "protocol",
    };
    failure(kind, error)
}

/// An answer as far as it has come.
struct Reading {
    due: Instant,
    events: Events,
    /// Milliseconds at which parts of text came.
    times_ms: Vec<f64>,
    end_ms: Option<f64>,
    finished: bool,
    done: bool,
    output_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
}

impl Reading {
    fn new(due: Instant) -> Reading {
        Reading {
            due,
            events: Events::default(),
            times_ms: Vec::new(),
            end_ms: None,
            finished: false,
            done: false,
            output_tokens: None,
            prompt_tokens: None,
        }
    }

    fn now_ms(&self) -> f64 {
        self.due.elapsed().as_secs_f64() * 1000.0
    }

    fn all(&mut self, body: &mut dyn Read) -> Result<(), Failure> {
        let mut piece = [0u8; 16 << 10];
        let mut events = Vec::new();
        while !self.done {
            let count = body.read(&mut piece).map_err(|error| self.broke(error))?;
            let taken = if count == 0 {
                self.events.finish(&mut events)
            } else {
                self.events.push(&piece[..count], &mut events)
            };
            taken.map_err(|error| failure("bad_event", error))?;
            for event in events.drain(..) {
                self.event(&event)?;
            }
            if count == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Also after the last part of text: a server whose stream breaks is not doing well.
    fn broke(&self, error: std::io::Error) -> Failure {
        let mut failure = told(&ureq::Error::from(error));
        if failure.kind == "protocol" {
            failure.kind = "broke_off".to_owned();
        }
        failure.detail = format!("after {} parts of text: {}", self.times_ms.len(), failure.detail);
        failure
    }

    fn event(&mut self, data: &[u8]) -> Result<(), Failure> {
        if data == b"[DONE]" {
            self.done = true;
            self.end_ms = self.end_ms.or(Some(self.now_ms()));
            return Ok(());
        }
        let value: Value = serde_json::from_slice(data).map_err(|error| {
            failure("bad_event", format!("{error} in {:.200}", String::from_utf8_lossy(data)))
        })?;
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            return Err(failure("error_event", error));
        }
        let now_ms = self.now_ms();
        let count = |path: &str| value.pointer(path).and_then(Value::as_u64);
        self.output_tokens = count("/usage/completion_tokens").or(self.output_tokens);
        self.prompt_tokens = count("/usage/prompt_tokens").or(self.prompt_tokens);
        let texts = ["/choices/0/delta/content", "/choices/0/delta/reasoning_content", "/choices/0/text"];
        let text =
            |path: &&str| value.pointer(path).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        if texts.iter().any(text) {
            self.times_ms.push(now_ms);
        }
        if value.pointer("/choices/0/finish_reason").is_some_and(|reason| !reason.is_null()) {
            self.finished = true;
            self.end_ms = self.end_ms.or(Some(now_ms));
        }
        Ok(())
    }

    fn answer(self) -> Result<Answer, Failure> {
        let parts = self.times_ms.len() as u64;
        let (Some(end_ms), true) = (self.end_ms, self.finished || self.done) else {
            return Err(failure(
                "broke_off",
                format!("the stream ended after {parts} parts of text, before its end"),
            ));
        };
        let Some(first_ms) = self.times_ms.first().copied() else {
            return Err(failure("no_text", "the answer has no text"));
        };
        Ok(Answer {
            first_ms,
            total_ms: end_ms,
            gaps_ms: self.times_ms.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            parts,
            output_tokens: self.output_tokens,
            prompt_tokens: self.prompt_tokens,
        })
    }
}

/// How the tokens of these answers were counted.
pub fn counted_by<'a>(answers: impl Iterator<Item = &'a Answer>) -> &'static str {
    let ways: BTreeSet<bool> = answers.map(|answer| answer.output_tokens.is_some()).collect();
    match (ways.contains(&true), ways.contains(&false)) {
        (true, true) => "usage and parts",
        (false, true) => "parts",
        _ => "usage",
    }
}

//! The cluster's HTTP as the commands use it: JSON questions, and streams of events.
//!
//! Must never wait without end: every call has a deadline, and so has every silence in a stream.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

const CONNECT: Duration = Duration::from_secs(2);
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// Longest silence in a stream: three of the server's signs of life.
const SILENCE: Duration = Duration::from_millis(3 * caravan_core::limits::SSE_KEEPALIVE_MS);
const BODY_BYTES: u64 = 16 << 20;
const LINE_BYTES: u64 = 1 << 20;

/// A coordinator's HTTP.
pub struct Client {
    base: String,
    agent: Agent,
    /// `Authorization`, if there is a key in the environment.
    bearer: Option<String>,
}

/// Holds the API key that the commands send.
const KEY_VARIABLE: &str = "CARAVAN_API_KEY";

/// The cluster answered, and the answer is no.
#[derive(Debug, thiserror::Error)]
#[error("the cluster answers {status}: {message}")]
pub struct Refused {
    pub status: u16,
    pub message: String,
}

impl Client {
    /// `base`: `http://host:port` or `host:port`.
    pub fn new(base: &str) -> Client {
        Client::with_timeout(base, ANSWER_WAIT)
    }

    /// With another deadline for whole answers.
    pub fn with_timeout(base: &str, wait: Duration) -> Client {
        let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        // A cluster is in the local network: proxies of the environment are for the world outside.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT.min(wait)))
            .timeout_recv_response(Some(wait))
            .timeout_per_read(Some(SILENCE))
            .build();
        let key = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty());
        Client { base, agent: config.into(), bearer: key.map(|key| format!("Bearer {key}")) }
    }

    /// Status and body of a question. A body that is not JSON is given as a string.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.get(&url);
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        let mut response = request.call().map_err(|error| self.unreachable(&error))?;
        Ok((response.status().as_u16(), body(&mut response)?))
    }

    /// Posts a command that must be answered with 200.
    pub fn post(&self, path: &str, request: &Value) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        self.done(self.agent.post(&url).send_json(request))
    }

    /// Deletes what must be there.
    pub fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        self.done(self.agent.delete(&url).call())
    }

    fn done(&self, sent: Result<Response<Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let body = body(&mut response)?;
        if status == 200 {
            return Ok(body);
        }
        Err(Refused { status, message: message(&body) }.into())
    }

    /// The body of a question that must be answered with 200.
    pub fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = self.get(path)?;
        if status == 200 {
            return Ok(body);
        }
        Err(Refused { status, message: message(&body) }.into())
    }

    /// Posts JSON and calls `event` with each event of the answer's stream, until it says that it is done.
    pub fn stream(
        &self,
        path: &str,
        request: &Value,
        event: &mut dyn FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let url = format!("{}{path}", self.base);
        let mut post = self.agent.post(&url).config().timeout_recv_response(Some(SILENCE)).build();
        if let Some(bearer) = &self.bearer {
            post = post.header("authorization", bearer);
        }
        let sent = post.send_json(request);
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        if status != 200 {
            let body = body(&mut response)?;
            return Err(Refused { status, message: message(&body) }.into());
        }
        let mut lines = BufReader::new(response.body_mut().as_reader());
        loop {
            let mut line = String::new();
            let count = lines.by_ref().take(LINE_BYTES).read_line(&mut line).context(
                "the answer broke off; the coordinator may be gone: asking again, or another coordinator, is safe",
            )?;
            if count == 0 {
                bail!("the answer ended in the middle; the coordinator may be gone: asking again is safe");
            }
            let Some(data) = line.trim_end().strip_prefix("data:").map(str::trim_start) else { continue };
            if data == "[DONE]" {
                return Ok(());
            }
            let value: Value =
                serde_json::from_str(data).context("the coordinator sent an event that is not JSON")?;
            if value.get("error").is_some_and(|error| !error.is_null()) {
                bail!("the answer ended: {}", message(&value));
            }
            event(&value)?;
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> anyhow::Error {
        let base = &self.base;
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                crate::UsageError(format!("{base} is not an address such as http://127.0.0.1:8080")).into()
            }
            ureq::Error::Timeout(_) => anyhow::anyhow!(
                "{base} does not answer in time; it may be overloaded or stopped: asking again is safe"
            ),
            _ => anyhow::anyhow!(
                "no cluster answers at {base} ({error}); start one with `caravan up`, or name another with --http URL"
            ),
        }
    }
}

fn body(response: &mut Response<Body>) -> anyhow::Result<Value> {
    let read = response.body_mut().with_config().limit(BODY_BYTES).read_to_vec();
    let bytes = read.context("the answer broke off; asking again is safe")?;
    Ok(serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).trim().to_owned())))
}

/// The words of an error body.
fn message(body: &Value) -> String {
    let said = body.pointer("/error/message").or(body.get("error")).or(body.get("detail")).unwrap_or(body);
    said.as_str().map_or_else(|| said.to_string(), str::to_owned)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

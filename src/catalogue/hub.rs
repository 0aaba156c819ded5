//! Fetches a file of a model hub by HTTP, and goes on where an earlier attempt stopped.
//!
//! Must never join halves of two versions of a file: the ETag must be the same.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;
use ureq::{Agent, Body};

use super::part::{Broken, Part};
use crate::local::files::write_atomic;
use crate::term::Bar;

/// Attempts in a row that bring no byte.
const FRUITLESS_ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of a download.
const SILENCE: Duration = Duration::from_secs(30);

/// What the unfinished file is half of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    url: String,
    etag: Option<String>,
}

/// Address of the hub: `CARAVAN_HUB_URL`, or the public one.
pub fn base() -> String {
    let set = std::env::var("CARAVAN_HUB_URL").ok().filter(|url| !url.is_empty());
    set.unwrap_or_else(|| "https://huggingface.co".to_owned()).trim_end_matches('/').to_owned()
}

/// Fills the part from `url`. Says whether it was joined of the answers of several requests.
pub fn fetch(url: &str, part: &mut Part, bar: &Bar) -> anyhow::Result<bool> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .into();
    if read_origin(part).is_none_or(|origin| origin.url != url) {
        part.clear()?;
    }
    let (mut joined, mut fruitless) = (false, 0);
    while !part.complete() {
        let before = part.written();
        joined |= before > 0;
        let Err(failure) = attempt(&agent, url, part, bar) else { break };
        let Failure { error, again } = failure;
        fruitless = if part.written() > before { 0 } else { fruitless + 1 };
        if !again || fruitless == FRUITLESS_ATTEMPTS {
            return Err(error);
        }
        tracing::info!(url, written = part.written(), "download broke off, going on: {error:#}");
        std::thread::sleep(PAUSE);
    }
    let _ = fs::remove_file(origin_path(part));
    Ok(joined)
}

struct Failure {
    error: anyhow::Error,
    /// Whether another attempt may do better.
    again: bool,
}

impl Failure {
    fn last(error: anyhow::Error) -> Failure {
        Failure { error, again: false }
    }
}

/// One request, from where the part ends.
fn attempt(agent: &Agent, url: &str, part: &mut Part, bar: &Bar) -> Result<(), Failure> {
    let origin = read_origin(part);
    if part.written() > 0 && origin.is_none() {
        part.clear().map_err(Failure::last)?;
    }
    let mut request = agent.get(url);
    if part.written() > 0 {
        request = request.header("range", format!("bytes={}-", part.written()));
    }
    let mut response = request.call().map_err(|error| Failure {
        error: anyhow::anyhow!("can't reach {url}: {error} (is the network up, and the address right?)"),
        again: true,
    })?;
    let etag = header(&response, "etag");
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let begins =
                header(&response, "content-range").is_some_and(|range| begins_at(&range, part.written()));
            if !begins || etag != origin.and_then(|origin| origin.etag) {
                part.clear().map_err(Failure::last)?;
                return Err(Failure {
                    error: anyhow::anyhow!("the file at {url} has changed meanwhile"),
                    again: true,
                });
            }
        }
        // The server does not go on in the middle: from the beginning.
        StatusCode::OK => part.clear().map_err(Failure::last)?,
        StatusCode::RANGE_NOT_SATISFIABLE => {
            part.clear().map_err(Failure::last)?;
            return Err(Failure { error: anyhow::anyhow!("the file at {url} is shorter now"), again: true });
        }
        status => {
            let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return Err(Failure { error: anyhow::anyhow!("{url} answers {status}"), again });
        }
    }
    receive(url, etag, &mut response, part, bar)
}

/// Takes in the body of an answer that fits the part.
fn receive(
    url: &str,
    etag: Option<String>,
    response: &mut ureq::http::Response<Body>,
    part: &mut Part,
    bar: &Bar,
) -> Result<(), Failure> {
    let length = header(response, "content-length").and_then(|text| text.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| part.written().checked_add(*length) != Some(part.expected()))
    {
        let message = format!(
            "{url} has {} bytes, the catalogue says {}: it is another file",
            part.written().saturating_add(length),
            part.expected()
        );
        return Err(Failure::last(anyhow::anyhow!(message)));
    }
    write_origin(part, &Origin { url: url.to_owned(), etag }).map_err(Failure::last)?;
    let mut body = response.body_mut().as_reader();
    part.append_all(&mut body, &|bytes| bar.set(bytes)).map_err(|error| Failure {
        again: matches!(error, Broken::Source(_)),
        error: anyhow::anyhow!("the download from {url} broke off: {error}"),
    })?;
    if part.complete() {
        return Ok(());
    }
    Err(Failure {
        error: anyhow::anyhow!("{url} ended after {} of {} bytes", part.written(), part.expected()),
        again: true,
    })
}

fn header(response: &ureq::http::Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Whether `bytes 100-199/200` begins at `start`.
fn begins_at(range: &str, start: u64) -> bool {
    let first = range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next());
    first.and_then(|text| text.trim().parse::<u64>().ok()) == Some(start)
}

fn origin_path(part: &Part) -> PathBuf {
    part.path().with_extension("part.json")
}

fn read_origin(part: &Part) -> Option<Origin> {
    serde_json::from_slice(&fs::read(origin_path(part)).ok()?).ok()
}

fn write_origin(part: &Part, origin: &Origin) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(origin).context("the record of an unfinished download")?;
    if read_origin(part).as_ref() == Some(origin) {
        return Ok(());
    }
    if part.written() > 0 {
        bail!("an unfinished download has no record; remove {}", part.path().display());
    }
    write_atomic(&origin_path(part), &bytes)
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;

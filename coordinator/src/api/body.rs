//! Reads request bodies: bounded in size, in time, and over all requests together.
//!
//! Must never keep more of a body than its limit.

use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use caravan_core::error::Refusal;
use caravan_core::limits;
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::errors::ApiError;

/// Bodies up to this size are parsed where they are read.
const SMALL_BYTES: usize = 32 << 10;

/// A body in memory, with its share of the bytes that all bodies may take.
pub struct Whole {
    pub bytes: Vec<u8>,
    /// Given back when the body is dropped.
    share: Option<OwnedSemaphorePermit>,
}

/// Reads a JSON body and parses it, away from the async threads if it is big.
pub async fn parse<T: Send + 'static>(
    app: &App,
    request: Request,
    parser: fn(&[u8]) -> Result<T, Refusal>,
) -> Result<T, ApiError> {
    check_type(request.headers())?;
    let body = read(app, request).await?;
    if body.bytes.len() <= SMALL_BYTES {
        return Ok(parser(&body.bytes)?);
    }
    Ok(app.blocking(move || parser(&body.bytes)).await??)
}

/// Anything but JSON is refused; so no page of another site can send a request as a plain form.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("send `Content-Type: application/json`, not `{}`", super::fields::clip(kind));
    Err(ApiError::request("unsupported_media_type", message))
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {} bytes", limits::HTTP_BODY_BYTES);
    ApiError::request("body_too_large", message)
}

/// Reads a whole body. One over the limit is read on for a while and thrown away: a client that is
/// still writing would not read the answer.
pub async fn read(app: &App, request: Request) -> Result<Whole, ApiError> {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let announced = length.is_some_and(|length| length > limits::HTTP_BODY_BYTES);
    if announced && request.headers().contains_key(EXPECT) {
        return Err(too_large());
    }
    let deadline = Instant::now() + Duration::from_millis(app.waits.body_ms);
    let mut chunks = request.into_body().into_data_stream();
    let mut whole = Whole { bytes: Vec::new(), share: None };
    let mut seen = 0usize;
    let mut over = announced;
    loop {
        let chunk = match timeout_at(deadline, chunks.next()).await {
            Ok(None) if over => return Err(too_large()),
            Ok(None) => return Ok(whole),
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(_))) => {
                return Err(ApiError::request("invalid_body", "the body could not be read to its end"));
            }
            Err(_) if over => return Err(too_large()),
            Err(_) => {
                let message = format!("the body did not come within {} s", app.waits.body_ms.div_ceil(1_000));
                return Err(ApiError::request("body_timeout", message));
            }
        };
        seen = seen.saturating_add(chunk.len());
        if seen > limits::HTTP_BODY_DISCARD_BYTES {
            return Err(too_large());
        }
        over |= seen > limits::HTTP_BODY_BYTES;
        if over {
            whole = Whole { bytes: Vec::new(), share: None };
        } else {
            grow(app, &mut whole, &chunk)?;
        }
    }
}

fn grow(app: &App, whole: &mut Whole, chunk: &[u8]) -> Result<(), ApiError> {
    let count = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
    let share = app.bodies.clone().try_acquire_many_owned(count).map_err(|_| {
        let message = "too many large requests are being read; try again";
        Refusal::cluster("overloaded", limits::RETRY_AFTER_MS, message)
    })?;
    match &mut whole.share {
        Some(held) => held.merge(share),
        None => whole.share = Some(share),
    }
    whole.bytes.extend_from_slice(chunk);
    Ok(())
}

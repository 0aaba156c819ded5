//! `POST /v1/messages` and `/v1/messages/count_tokens`, in Anthropic's shapes.
//!
//! Must never render by itself: `render` does.

mod errors;
mod render;
mod request;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod render_tests;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::Piece;
use super::errors::json_response;
use super::job::{self, Input};
use super::output::outputs;
use super::shape::Usage;
use super::stream::{Answer, Progress, Script, event, follow, stream};
use super::{App, body};
pub use errors::MessagesError;
use render::{Head, Rendering, Stop};
use request::{CountRequest, MessagesRequest};

pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, MessagesError> {
    let MessagesRequest { common, messages } = body::parse(&app, request, MessagesRequest::parse).await?;
    let streamed = common.stream;
    let job = job::prepare(&app, common, Input::Chat { messages, truncate: false }, "msg_").await?;
    let answer = Answer::start(&app, &job)?;
    let head = Head { request: job.request, model: job.envelope.model, prompt_tokens: job.prompt_tokens };
    let mut script = MessageScript { rendering: Rendering::new(head), stop: Stop::EndTurn };
    if streamed {
        return Ok(stream(&app, answer, script).await?);
    }
    let usage = follow(answer, |progress| drop(script.tell(progress))).await?;
    let message = script.rendering.whole(&script.stop, usage);
    Ok(json_response(StatusCode::OK, &message, None))
}

pub async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Result<Response, MessagesError> {
    let CountRequest { model, messages } = body::parse(&app, request, CountRequest::parse).await?;
    let tokens = job::tokens(&app, &model, Input::Chat { messages, truncate: false }).await?;
    let count: usize = tokens.iter().map(Vec::len).sum();
    Ok(json_response(StatusCode::OK, &json!({"input_tokens": count}), None))
}

fn stop_of(piece: &Piece, reason: &str) -> Stop {
    match &piece.stop {
        Some(sequence) => Stop::Sequence(sequence.clone()),
        None if reason == "length" => Stop::MaxTokens,
        None => Stop::EndTurn,
    }
}

/// A streamed message.
struct MessageScript {
    rendering: Rendering,
    stop: Stop,
}

fn frames(events: Vec<Value>) -> Vec<Bytes> {
    events.iter().map(|body| event(body["type"].as_str().unwrap_or_default(), body)).collect()
}

impl MessageScript {
    fn tell(&mut self, progress: Progress) -> Vec<Value> {
        match progress {
            Progress::Text(_, piece) => self.push(piece),
            Progress::Done(_, piece, reason) => {
                self.stop = stop_of(&piece, reason);
                self.push(piece)
            }
            Progress::Failed(refusal) => vec![MessagesError::from(refusal).body()],
        }
    }

    fn push(&mut self, piece: Piece) -> Vec<Value> {
        outputs(piece).into_iter().flat_map(|output| self.rendering.push(output)).collect()
    }
}

impl Script for MessageScript {
    fn begin(&mut self) -> Vec<Bytes> {
        frames(self.rendering.begin())
    }

    fn progress(&mut self, progress: Progress) -> Vec<Bytes> {
        frames(self.tell(progress))
    }

    fn end(&mut self, usage: Usage) -> Vec<Bytes> {
        let stop = self.stop.clone();
        frames(self.rendering.end(&stop, usage))
    }

    fn idle(&self) -> Bytes {
        event("ping", &json!({"type": "ping"}))
    }
}

//! `POST /v1/responses`: a response that is answered once and kept nowhere.
//!
//! Must never render by itself: `render` does, so that a response that is kept looks the same.

mod items;
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
use caravan_core::error::{Fault, Refusal};

use super::answer::Piece;
use super::errors::{ApiError, json_response};
use super::job::{self, Input, Job, now_ms};
use super::output::outputs;
use super::shape::Usage;
use super::stream::{Answer, Progress, Script, event, follow, stream};
use super::{App, body};
use crate::text::ChatMessage;
use items::Item;
use render::{End, Event, Head, Rendering};
pub use request::INCLUDABLE;
use request::ResponseRequest;

pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let request = body::parse(&app, request, ResponseRequest::parse).await?;
    let streamed = request.common.stream;
    let (job, head) = prepare(&app, request).await.map_err(named_input)?;
    let answer = Answer::start(&app, &job)?;
    let mut script = EventScript { rendering: Rendering::new(head), end: End::Completed };
    if streamed {
        return stream(&app, answer, script).await;
    }
    // As a stream of which only the last event is sent.
    let usage = follow(answer, |progress| drop(script.tell(progress))).await?;
    let last = script.last(usage).pop();
    let response = last.map(|mut event| event.body["response"].take()).unwrap_or_default();
    Ok(json_response(StatusCode::OK, &response, None))
}

/// The job of a request, and the head of its response.
async fn prepare(app: &App, request: ResponseRequest) -> Result<(Job, Head), ApiError> {
    let ResponseRequest { common, instructions, input, truncate, echo } = request;
    let chat = Input::Chat { messages: conversation(instructions, &input), truncate };
    let job = job::prepare(app, common, chat, "resp_").await?;
    let head = Head {
        request: job.request.clone(),
        created_s: job.envelope.created,
        model: job.envelope.model.clone(),
        echo,
    };
    Ok((job, head))
}

/// What the model is shown.
fn conversation(instructions: Option<String>, input: &[Item]) -> Vec<ChatMessage> {
    let system = instructions.map(|content| ChatMessage { role: "system".to_owned(), content });
    system.into_iter().chain(items::messages(input)).collect()
}

/// A refusal of the messages, told of the field that they came from.
fn named_input(mut error: ApiError) -> ApiError {
    if error.refusal.param.as_deref() == Some("messages") {
        error.refusal.param = Some("input".to_owned());
        error.refusal.message = error.refusal.message.replacen("`messages`", "`input`", 1);
    }
    error
}

fn end_of(reason: &str) -> End {
    if reason == "length" { End::Incomplete } else { End::Completed }
}

/// A code of OpenAI's list, and the message.
fn failure(refusal: &Refusal) -> End {
    let code = match (refusal.fault, refusal.code.as_str()) {
        (Fault::Cluster, "queue_full") => "rate_limit_exceeded",
        (Fault::Client, _) => "invalid_prompt",
        _ => "server_error",
    };
    End::Failed(code.to_owned(), refusal.message.clone())
}

/// A streamed response.
struct EventScript {
    rendering: Rendering,
    end: End,
}

fn frames(events: Vec<Event>) -> Vec<Bytes> {
    events.iter().map(|one| event(one.kind, &one.body)).collect()
}

impl EventScript {
    fn tell(&mut self, progress: Progress) -> Vec<Event> {
        match progress {
            Progress::Text(_, piece) => self.push(piece),
            Progress::Done(_, piece, reason) => {
                self.end = end_of(reason);
                self.push(piece)
            }
            Progress::Failed(refusal) => {
                self.end = failure(&refusal);
                self.last(Usage::default())
            }
        }
    }

    fn push(&mut self, piece: Piece) -> Vec<Event> {
        outputs(piece).into_iter().flat_map(|output| self.rendering.push(output)).collect()
    }

    fn last(&mut self, usage: Usage) -> Vec<Event> {
        self.rendering.end(&self.end, usage, now_ms() / 1_000)
    }
}

impl Script for EventScript {
    fn begin(&mut self) -> Vec<Bytes> {
        frames(self.rendering.begin())
    }

    fn progress(&mut self, progress: Progress) -> Vec<Bytes> {
        frames(self.tell(progress))
    }

    fn end(&mut self, usage: Usage) -> Vec<Bytes> {
        frames(self.last(usage))
    }
}

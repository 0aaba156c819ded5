//! Answers: the choices of a request generated together, sent whole or as server-sent events.
//!
//! Must never let one client's slowness reach another: what waits for a client is bounded in number and time.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::request::GenerateEvent;
use futures::future::{AbortHandle, Abortable};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{ChoiceText, Piece, Turn};
use super::errors::{ApiError, json_response};
use super::job::Job;
use super::metrics::Metrics;
use super::requests::Ticket;
use super::shape::{Envelope, Shape, Usage};
use super::{App, Waits};

/// What happened to an answer.
pub enum Progress {
    Text(usize, Piece),
    /// A choice ended, with what was held back and its `finish_reason`.
    Done(usize, Piece, &'static str),
    /// The whole request failed.
    Failed(Refusal),
}

struct Choice {
    text: ChoiceText,
    cancel: AbortHandle,
    open: bool,
}

/// Events of all choices; `None` marks the end of a choice's stream.
type Events = SelectAll<BoxStream<'static, (usize, Option<GenerateEvent>)>>;

/// A request being answered. Dropping it cancels every choice.
pub struct Answer {
    events: Events,
    choices: Vec<Choice>,
    usage: Usage,
    ticket: Ticket,
    metrics: Metrics,
    started: Instant,
}

impl Answer {
    /// Starts every choice of a job.
    pub fn start(app: &App, job: &Job) -> Result<Answer, Refusal> {
        let ticket = app.requests.open(job)?;
        let keep_tokens = job.common.sampling.logprobs.is_some() || job.common.return_token_ids;
        let mut events = SelectAll::new();
        let mut choices = Vec::new();
        for (index, record) in job.records.iter().enumerate() {
            let (cancel, registration) = AbortHandle::new_pair();
            let tokens = Abortable::new(app.backend.generate(record.clone()), registration);
            let tagged = tokens.map(Some).chain(stream::once(async { None }));
            events.push(tagged.map(move |event| (index, event)).boxed());
            let calls = job.call_parser(record);
            let text = ChoiceText::new(job.text.clone(), job.common.stop.clone(), keep_tokens, calls);
            choices.push(Choice { text, cancel, open: true });
        }
        let usage = Usage { prompt: job.prompt_tokens, completion: 0 };
        app.metrics.prompt_tokens.inc_by(job.prompt_tokens);
        Ok(Answer { events, choices, usage, ticket, metrics: app.metrics.clone(), started: Instant::now() })
    }

    /// The next thing to tell the client; `None` once every choice has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Progress> {
        while self.choices.iter().any(|choice| choice.open) {
            let Some((index, event)) = self.events.next().await else { return Some(lost()) };
            if let Some(progress) = self.handle(index, event) {
                return Some(progress);
            }
        }
        None
    }

    fn handle(&mut self, index: usize, event: Option<GenerateEvent>) -> Option<Progress> {
        let choice = self.choices.get_mut(index).filter(|choice| choice.open)?;
        match event {
            Some(GenerateEvent::Token(sampled)) => {
                if self.usage.completion == 0 {
                    self.metrics.first_token_seconds.observe(self.started.elapsed().as_secs_f64());
                }
                self.usage.completion += 1;
                self.metrics.tokens.inc();
                self.ticket.emitted();
                match choice.text.push(sampled) {
                    Turn::Nothing => None,
                    Turn::Show(piece) => Some(Progress::Text(index, piece)),
                    Turn::Stopped(piece) => {
                        choice.open = false;
                        choice.cancel.abort();
                        Some(Progress::Done(index, piece, choice.text.stop_reason()))
                    }
                }
            }
            Some(GenerateEvent::Finished(finish)) => {
                choice.open = false;
                let (piece, reason) = choice.text.finish(finish);
                Some(Progress::Done(index, piece, reason))
            }
            Some(GenerateEvent::Refused(refusal)) => Some(Progress::Failed(refusal)),
            Some(GenerateEvent::Interrupted) | None => Some(lost()),
        }
    }
}

/// `generate` promises an end; this says so if it breaks the promise.
fn lost() -> Progress {
    let message = "the answer ended before it was finished; try again";
    Progress::Failed(Refusal::cluster("generation_lost", limits::RETRY_AFTER_MS, message))
}

fn overdue() -> Refusal {
    let message = format!("no token came for {} s; try again", limits::REQUEST_DEADLINE_MS / 1_000);
    Refusal::cluster("deadline_exceeded", limits::RETRY_AFTER_MS, message)
}

/// Answers a job, streamed or whole.
pub async fn respond(app: &App, job: Job, shape: impl Shape) -> Result<Response, ApiError> {
    let answer = Answer::start(app, &job)?;
    if job.common.stream {
        respond_stream(app, job, answer, shape).await
    } else {
        respond_whole(job, answer, shape).await
    }
}

async fn respond_whole(job: Job, mut answer: Answer, shape: impl Shape) -> Result<Response, ApiError> {
    let idle = Duration::from_millis(limits::REQUEST_DEADLINE_MS);
    let mut pieces = vec![Piece::default(); job.records.len()];
    let mut reasons = vec!["stop"; job.records.len()];
    while let Some(progress) = timeout(idle, answer.next()).await.map_err(|_| overdue())? {
        match progress {
            Progress::Text(index, piece) => pieces[index].append(piece),
            Progress::Done(index, piece, reason) => {
                pieces[index].append(piece);
                reasons[index] = reason;
            }
            Progress::Failed(refusal) => return Err(refusal.into()),
        }
    }
    let choices = pieces.iter().zip(reasons).enumerate();
    let choices = choices.map(|(index, (piece, reason))| shape.whole(index, piece, reason)).collect();
    let mut body = job.envelope.wrap(shape.object(false), choices);
    body["usage"] = answer.usage.json();
    Ok(json_response(StatusCode::OK, &body, None))
}

/// The first event decides between a stream and an error status, if it comes soon.
async fn respond_stream(
    app: &App,
    job: Job,
    mut answer: Answer,
    shape: impl Shape,
) -> Result<Response, ApiError> {
    let wait = Duration::from_millis(app.waits.first_event_ms);
    let first = match timeout(wait, answer.next()).await {
        Ok(Some(Progress::Failed(refusal))) => return Err(refusal.into()),
        Ok(first) => first,
        Err(_) => None,
    };
    let (frames, receiver) = mpsc::channel(limits::SSE_FRAMES);
    let writer = Writer {
        frames,
        envelope: job.envelope,
        shape: Box::new(shape),
        include_usage: job.common.include_usage,
        waits: app.waits,
    };
    tokio::spawn(writer.run(answer, job.records.len(), first));
    Ok(sse_response(Body::from_stream(ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>))))
}

/// A response of server-sent events.
pub fn sse_response(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The client is gone, or takes nothing.
struct Gone;

/// Turns an answer into frames, in a task of its own, which ends with the client.
struct Writer {
    frames: mpsc::Sender<Bytes>,
    envelope: Envelope,
    shape: Box<dyn Shape>,
    include_usage: bool,
    waits: Waits,
}

impl Writer {
    async fn run(self, mut answer: Answer, choices: usize, first: Option<Progress>) {
        if self.write(&mut answer, choices, first).await.is_err() {
            tracing::debug!(request = %self.envelope.id, "the client went away");
        }
    }

    async fn write(
        &self,
        answer: &mut Answer,
        choices: usize,
        mut first: Option<Progress>,
    ) -> Result<(), Gone> {
        for index in 0..choices {
            if let Some(choice) = self.shape.opening(index) {
                self.chunk(choice).await?;
            }
        }
        loop {
            let progress = match first.take() {
                Some(progress) => Some(progress),
                None => self.await_progress(answer).await?,
            };
            match progress {
                Some(Progress::Text(index, piece)) => self.chunk(self.shape.delta(index, &piece)).await?,
                Some(Progress::Done(index, piece, reason)) => self.done(index, piece, reason).await?,
                Some(Progress::Failed(refusal)) => return self.data(&ApiError::from(refusal).body()).await,
                None => break,
            }
        }
        if self.include_usage {
            let mut chunk = self.envelope.wrap(self.shape.object(true), Vec::new());
            chunk["usage"] = answer.usage.json();
            self.data(&chunk).await?;
        }
        self.send(Bytes::from_static(b"data: [DONE]\n\n")).await
    }

    /// The next progress, with a comment now and then while there is none.
    async fn await_progress(&self, answer: &mut Answer) -> Result<Option<Progress>, Gone> {
        let overdue_at = Instant::now() + Duration::from_millis(limits::REQUEST_DEADLINE_MS);
        loop {
            let pause = Instant::now() + Duration::from_millis(self.waits.keepalive_ms);
            tokio::select! {
                () = self.frames.closed() => return Err(Gone),
                progress = timeout_at(pause.min(overdue_at), answer.next()) => match progress {
                    Ok(progress) => return Ok(progress),
                    Err(_) if Instant::now() >= overdue_at => return Ok(Some(Progress::Failed(overdue()))),
                    Err(_) => self.send(Bytes::from_static(b": waiting\n\n")).await?,
                },
            }
        }
    }

    /// Held-back text first, then a chunk that only ends the choice.
    async fn done(&self, index: usize, mut piece: Piece, reason: &str) -> Result<(), Gone> {
        if !piece.is_empty() {
            self.chunk(self.shape.delta(index, &piece)).await?;
            piece = Piece::default();
        }
        self.chunk(self.shape.last(index, &piece, reason)).await
    }

    async fn chunk(&self, choice: Value) -> Result<(), Gone> {
        let mut chunk = self.envelope.wrap(self.shape.object(true), vec![choice]);
        if self.include_usage {
            chunk["usage"] = json!(null);
        }
        self.data(&chunk).await
    }

    async fn data(&self, value: &Value) -> Result<(), Gone> {
        self.send(Bytes::from(format!("data: {value}\n\n"))).await
    }

    async fn send(&self, frame: Bytes) -> Result<(), Gone> {
        let stall = Duration::from_millis(self.waits.stall_ms);
        match timeout(stall, self.frames.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}

//! Answers: the choices of a request generated together, collected whole or sent as server-sent events.
//!
//! Must never let one client's slowness reach another: what waits for a client is bounded in number and
//! time. Must never know what an endpoint's answers look like: a `Script` writes them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::request::GenerateEvent;
use futures::future::{AbortHandle, Abortable};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{ChoiceText, Piece, Turn};
use super::errors::ApiError;
use super::job::Job;
use super::metrics::Metrics;
use super::requests::Ticket;
use super::shape::Usage;
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
    /// Ends with the echo of its prompt.
    echo_only: bool,
}

/// Events of all choices; `None` marks the end of a choice's stream.
type Events = SelectAll<BoxStream<'static, (usize, Option<GenerateEvent>)>>;

/// A request being answered. Dropping it cancels every choice.
pub struct Answer {
    events: Events,
    choices: Vec<Choice>,
    /// What was found with an earlier event and is still to be told.
    ready: VecDeque<Progress>,
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
            let text = ChoiceText::new(job.text.clone(), job.common.stop.clone(), keep_tokens);
            let text = if job.common.echo { text.echoing(record.prompt.clone()) } else { text };
            let echo_only = job.common.max_tokens.is_some_and(|(most, _)| most == 0);
            choices.push(Choice { text, cancel, open: true, echo_only });
        }
        let usage = Usage { prompt: job.prompt_tokens, completion: 0 };
        app.metrics.prompt_tokens.inc_by(job.prompt_tokens);
        let (ready, metrics) = (VecDeque::new(), app.metrics.clone());
        Ok(Answer { events, choices, ready, usage, ticket, metrics, started: Instant::now() })
    }

    /// The next thing to tell the client; `None` once every choice has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            if let Some(progress) = self.ready.pop_front() {
                return Some(progress);
            }
            if !self.choices.iter().any(|choice| choice.open) {
                return None;
            }
            let Some((index, event)) = self.events.next().await else { return Some(lost()) };
            self.open_text(index, event.as_ref());
            let progress = self.handle(index, event);
            self.ready.extend(progress);
        }
    }

    /// Shows the echo of a prompt, once something is known of its answer.
    fn open_text(&mut self, index: usize, event: Option<&GenerateEvent>) {
        if !matches!(event, Some(GenerateEvent::Token(_) | GenerateEvent::Finished(_))) {
            return;
        }
        let Some(choice) = self.choices.get_mut(index).filter(|choice| choice.open) else { return };
        let Some(piece) = choice.text.opening() else { return };
        if choice.echo_only {
            choice.open = false;
            choice.cancel.abort();
            self.ready.push_back(Progress::Done(index, piece, "length"));
        } else {
            self.ready.push_back(Progress::Text(index, piece));
        }
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
                        Some(Progress::Done(index, piece, "stop"))
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

/// How an endpoint writes a stream: what happens goes in, frames come out.
pub trait Script: Send + Sync + 'static {
    /// Before anything else, once the answer has begun.
    fn begin(&mut self) -> Vec<Bytes>;
    /// After `Failed` nothing else comes.
    fn progress(&mut self, progress: Progress) -> Vec<Bytes>;
    /// Every choice has ended well.
    fn end(&mut self, usage: Usage) -> Vec<Bytes>;
    /// Says that the server is alive while nothing is due.
    fn idle(&self) -> Bytes {
        Bytes::from_static(b": waiting\n\n")
    }
}

/// A frame without a name.
pub fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// A frame with a name, which is the body's `type` too.
pub fn event(kind: &str, value: &Value) -> Bytes {
    Bytes::from(format!("event: {kind}\ndata: {value}\n\n"))
}

/// A whole choice, and its `finish_reason`.
#[derive(Debug)]
pub struct Whole {
    pub piece: Piece,
    pub reason: &'static str,
}

/// Waits for the end of every choice, and tells of what happens on the way.
pub async fn follow(mut answer: Answer, mut tell: impl FnMut(Progress)) -> Result<Usage, ApiError> {
    let idle = Duration::from_millis(limits::REQUEST_DEADLINE_MS);
    while let Some(progress) = timeout(idle, answer.next()).await.map_err(|_| overdue())? {
        match progress {
            Progress::Failed(refusal) => return Err(refusal.into()),
            progress => tell(progress),
        }
    }
    Ok(answer.usage)
}

/// Waits for the end of every choice.
pub async fn collect(answer: Answer) -> Result<(Vec<Whole>, Usage), ApiError> {
    let whole = |_| Whole { piece: Piece::default(), reason: "stop" };
    let mut all: Vec<Whole> = (0..answer.choices.len()).map(whole).collect();
    let usage = follow(answer, |progress| match progress {
        Progress::Text(index, piece) => all[index].piece.append(piece),
        Progress::Done(index, piece, reason) => {
            all[index].piece.append(piece);
            all[index].reason = reason;
        }
        Progress::Failed(_) => {}
    })
    .await?;
    Ok((all, usage))
}

/// Streams an answer. The first event decides between a stream and an error status, if it comes soon.
pub async fn stream(app: &App, mut answer: Answer, script: impl Script) -> Result<Response, ApiError> {
    let wait = Duration::from_millis(app.waits.first_event_ms);
    let first = match timeout(wait, answer.next()).await {
        Ok(Some(Progress::Failed(refusal))) => return Err(refusal.into()),
        Ok(first) => first,
        Err(_) => None,
    };
    let (frames, receiver) = mpsc::channel(limits::SSE_FRAMES);
    let writer = Writer { frames, script: Box::new(script), waits: app.waits };
    tokio::spawn(writer.run(answer, first));
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
    script: Box<dyn Script>,
    waits: Waits,
}

impl Writer {
    async fn run(mut self, mut answer: Answer, first: Option<Progress>) {
        if self.write(&mut answer, first).await.is_err() {
            tracing::debug!("a client went away before its answer was complete");
        }
    }

    async fn write(&mut self, answer: &mut Answer, mut first: Option<Progress>) -> Result<(), Gone> {
        let opening = self.script.begin();
        self.send_all(opening).await?;
        loop {
            let progress = match first.take() {
                Some(progress) => Some(progress),
                None => self.await_progress(answer).await?,
            };
            let Some(progress) = progress else { break };
            let failed = matches!(progress, Progress::Failed(_));
            let frames = self.script.progress(progress);
            self.send_all(frames).await?;
            if failed {
                return Ok(());
            }
        }
        let closing = self.script.end(answer.usage);
        self.send_all(closing).await
    }

    /// The next progress, with a sign of life now and then while there is none.
    async fn await_progress(&self, answer: &mut Answer) -> Result<Option<Progress>, Gone> {
        let overdue_at = Instant::now() + Duration::from_millis(limits::REQUEST_DEADLINE_MS);
        loop {
            let pause = Instant::now() + Duration::from_millis(self.waits.keepalive_ms);
            tokio::select! {
                () = self.frames.closed() => return Err(Gone),
                progress = timeout_at(pause.min(overdue_at), answer.next()) => match progress {
                    Ok(progress) => return Ok(progress),
                    Err(_) if Instant::now() >= overdue_at => return Ok(Some(Progress::Failed(overdue()))),
                    Err(_) => self.send(self.script.idle()).await?,
                },
            }
        }
    }

    async fn send_all(&self, frames: Vec<Bytes>) -> Result<(), Gone> {
        for frame in frames {
            self.send(frame).await?;
        }
        Ok(())
    }

    async fn send(&self, frame: Bytes) -> Result<(), Gone> {
        let stall = Duration::from_millis(self.waits.stall_ms);
        match timeout(stall, self.frames.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}

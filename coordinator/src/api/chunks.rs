//! Chat and text answers: choices in an envelope, whole or as chunks.
//!
//! Must never wait by itself: `stream` does.

use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::App;
use super::answer::Piece;
use super::errors::{ApiError, json_response};
use super::job::Job;
use super::shape::{Envelope, Shape, Usage};
use super::stream::{Answer, Progress, Script, Whole, collect, data, stream};

/// Answers a job, streamed or whole. `choose`: which of the whole choices are told, in which order.
pub async fn respond(
    app: &App,
    job: Job,
    shape: impl Shape,
    choose: impl FnOnce(Vec<Whole>) -> Vec<Whole>,
) -> Result<Response, ApiError> {
    let answer = Answer::start(app, &job)?;
    if job.common.stream {
        let chunks = Chunks {
            envelope: job.envelope,
            choices: job.records.len(),
            shape,
            include_usage: job.common.include_usage,
        };
        return stream(app, answer, chunks).await;
    }
    let (all, usage) = collect(answer).await?;
    let all = choose(all);
    let choices = all.iter().enumerate();
    let choices = choices.map(|(index, whole)| shape.whole(index, &whole.piece, whole.reason)).collect();
    let mut body = job.envelope.wrap(shape.object(false), choices);
    body["usage"] = usage.json();
    Ok(json_response(StatusCode::OK, &body, None))
}

/// A stream of chunks.
struct Chunks<S> {
    envelope: Envelope,
    choices: usize,
    shape: S,
    include_usage: bool,
}

impl<S: Shape> Chunks<S> {
    fn chunk(&self, choice: Value) -> Bytes {
        let mut chunk = self.envelope.wrap(self.shape.object(true), vec![choice]);
        if self.include_usage {
            chunk["usage"] = json!(null);
        }
        data(&chunk)
    }

    /// Held-back text first, then a chunk that only ends the choice.
    fn done(&self, index: usize, mut piece: Piece, reason: &str) -> Vec<Bytes> {
        let mut frames = Vec::new();
        if !piece.text.is_empty() {
            frames.push(self.chunk(self.shape.delta(index, &piece)));
            piece = Piece::default();
        }
        frames.push(self.chunk(self.shape.last(index, &piece, reason)));
        frames
    }
}

impl<S: Shape> Script for Chunks<S> {
    fn begin(&mut self) -> Vec<Bytes> {
        let openings = (0..self.choices).filter_map(|index| self.shape.opening(index));
        openings.map(|choice| self.chunk(choice)).collect()
    }

    fn progress(&mut self, progress: Progress) -> Vec<Bytes> {
        match progress {
            Progress::Text(index, piece) => vec![self.chunk(self.shape.delta(index, &piece))],
            Progress::Done(index, piece, reason) => self.done(index, piece, reason),
            Progress::Failed(refusal) => vec![data(&ApiError::from(refusal).body())],
        }
    }

    fn end(&mut self, usage: Usage) -> Vec<Bytes> {
        let mut frames = Vec::new();
        if self.include_usage {
            let mut chunk = self.envelope.wrap(self.shape.object(true), Vec::new());
            chunk["usage"] = usage.json();
            frames.push(data(&chunk));
        }
        frames.push(Bytes::from_static(b"data: [DONE]\n\n"));
        frames
    }
}

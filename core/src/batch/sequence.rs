//! One sequence as the scheduler sees it: its known tokens, and its life in the pipeline.
//!
//! Must never touch the page pool: the scheduler moves pages in and out.

use crate::ids::SequenceId;
use crate::request::{RequestRecord, Sampling};

/// Age: first accepted, first served; the submission's number breaks ties.
pub(super) type Age = (u64, SequenceId);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Has no pages.
    Waiting,
    Running,
    /// An older sequence needs its pages: no further step has it, and when those in flight are
    /// done it waits again.
    Draining,
    /// Finished, refused or cancelled; only steps in flight still use its pages.
    Ended,
}

/// From admission until the pages are given back.
pub(super) struct Life {
    /// Name in chunks, new with every life.
    pub name: SequenceId,
    pub pages: Vec<u32>,
    /// Tokens at positions below this one are in a step, done or in flight.
    pub sent: u32,
    pub opened: bool,
    /// It has sampled in this life: from here on it takes one row at a time.
    pub decoding: bool,
    /// Steps in flight that have it.
    pub in_flight: u32,
    /// Number of the last step that had it, for turns.
    pub last_step: u64,
}

pub(super) struct Sequence {
    pub age: Age,
    pub deadline_ms: u64,
    pub prompt_tokens: u32,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    /// Prompt and answer together at most: by `max_tokens` or the context.
    pub limit: u32,
    pub stop_tokens: Vec<u32>,
    pub sampling: Sampling,
    pub phase: Phase,
    pub life: Option<Life>,
}

impl Sequence {
    /// `record` is checked: its lengths fit the context.
    pub(super) fn new(id: SequenceId, record: RequestRecord, context: u32) -> Sequence {
        let prompt_tokens = record.prompt.len() as u32;
        let mut tokens = record.prompt;
        tokens.extend(record.emitted);
        Sequence {
            age: (record.accepted_ms, id),
            deadline_ms: record.deadline_ms,
            prompt_tokens,
            tokens,
            limit: prompt_tokens.saturating_add(record.max_tokens).min(context),
            stop_tokens: record.stop_tokens,
            sampling: record.sampling,
            phase: Phase::Waiting,
            life: None,
        }
    }

    pub(super) fn known(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Rows of KV that it can ever need: the last token of an answer is never computed.
    pub(super) fn rows_at_most(&self) -> u32 {
        self.limit.saturating_sub(1).max(1)
    }

    /// Rows that are known and not sent yet. 0 while a sample is awaited.
    pub(super) fn pending(&self) -> u32 {
        self.life.as_ref().map_or(0, |life| self.known().saturating_sub(life.sent))
    }

    pub(super) fn decoding(&self) -> bool {
        self.phase == Phase::Running && self.life.as_ref().is_some_and(|life| life.decoding)
    }

    pub(super) fn prefilling(&self) -> bool {
        self.phase == Phase::Running && self.pending() > 0 && !self.decoding()
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.life.as_ref().map_or(0, |life| life.in_flight)
    }

    pub(super) fn pages(&self) -> u32 {
        self.life.as_ref().map_or(0, |life| life.pages.len() as u32)
    }
}

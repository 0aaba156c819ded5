//! Which tokens of which sequences go into the next step: queue, KV pages, continuous batching. No tensors.
//!
//! Must never know a stream, a clock or a worker: records and results come in, steps and events go
//! out. Whatever it decides, it never changes a token: an answer does not depend on its company.

mod check;
mod pages;
mod plan;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy_tests;

pub use check::check_record;
pub use scheduler::Scheduler;

use crate::ids::{SequenceId, StepId};
use crate::request::{Finish, Sampling};

/// What bounds the schedule of one pipeline in one epoch. Zeroes are taken as ones.
#[derive(Clone, Debug)]
pub struct BatchConfig {
    /// Stages of the pipeline: as many micro-batches are kept in flight when there is work for them.
    pub stages: u32,
    /// KV pages of every stage, numbered from 0.
    pub pages: u32,
    /// Tokens (rows of KV) in a page.
    pub page_tokens: u32,
    /// Tokens of the model's vocabulary.
    pub vocab: u32,
    /// Tokens of prompt and answer together at most, by the model.
    pub context: u32,
    /// Rows of prefill in one step at most.
    pub prefill_chunk_tokens: u32,
    /// Rows of one step at most; at least 2, so that decode and prefill both get on.
    pub step_rows: u32,
    /// Sequences that wait at most. Resubmitted ones, once accepted, may exceed it by `running`.
    pub waiting: usize,
    /// Sequences admitted at most.
    pub running: usize,
}

impl BatchConfig {
    /// Steps in flight at most: one more than stages, so that a prefill chunk already waits at the
    /// first stage while a result travels back. The extra one never carries decode rows, because
    /// splitting them finer than the stages only makes smaller batches.
    pub fn depth(&self) -> usize {
        self.stages as usize + 1
    }

    /// Rows of KV that all pages together hold.
    pub fn capacity_tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.page_tokens)
    }

    fn normalised(mut self) -> BatchConfig {
        self.stages = self.stages.max(1);
        self.page_tokens = self.page_tokens.max(1);
        self.prefill_chunk_tokens = self.prefill_chunk_tokens.max(1);
        self.step_rows = self.step_rows.max(2);
        self.waiting = self.waiting.max(1);
        self.running = self.running.max(1);
        self
    }
}

/// What became of a record that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It waits; its events come under this name.
    Queued(SequenceId),
    /// Nothing was left to do: the emitted tokens are the whole answer.
    Finished(Finish),
}

/// One micro-batch to send down the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStep {
    pub step: StepId,
    pub chunks: Vec<PlannedChunk>,
    /// Sequences (by their names in chunks) whose sampler state can go. They are in no later step.
    pub closed: Vec<SequenceId>,
    /// Rows of this step that are prefill.
    pub prefill_rows: u32,
}

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedChunk {
    /// The sequence's name between nodes. A sequence that lost its pages comes back under a new
    /// name, so that a sampler never takes its second life for the first.
    pub sequence: SequenceId,
    /// Position of the first token.
    pub start: u32,
    pub tokens: Vec<u32>,
    /// Pages of the sequence in order, just enough for `start + tokens`.
    pub pages: Vec<u32>,
    /// Sample behind the last token of this chunk.
    pub sample: bool,
    /// With the first chunk under this name.
    pub open: Option<SamplerOpen>,
}

/// What the last stage needs to sample for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOpen {
    pub sampling: Sampling,
    /// Tokens below this position are prompt, the others are answer.
    pub prompt_tokens: u32,
}

/// A result that does not fit the steps in flight: the pipeline is not to be trusted any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error(
        "the last stage answered step {got:?} while {expected:?} was due; the pipeline must be opened anew"
    )]
    Order { got: StepId, expected: Option<StepId> },
    #[error(
        "the last stage's answer to step {0:?} samples other sequences than it was asked to; \
             the pipeline must be opened anew"
    )]
    Sequences(StepId),
    #[error(
        "the last stage sampled token {0}, which the model does not have; the pipeline must be opened anew"
    )]
    Token(u32),
}

/// Counts for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    pub waiting: usize,
    pub running: usize,
    pub free_pages: u32,
    pub pages: u32,
    pub steps_in_flight: usize,
    /// Times a sequence lost its pages to an older one.
    pub preemptions: u64,
}

//! The journal of a run: what of it is committed, and which step comes next.
//!
//! A run is asked for its next step after every entry; whoever leads does the step and commits what
//! came of it. Entries say *what is complete*, never who did it: two nodes that do the same step
//! make the same entry, and the second one is a repeat.
//!
//! Must never hold tokens of an item that is not complete: they are computed again.

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Tokens that were used. Added up where the item that they belong to is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt; those found in a cache are among them.
    pub prompt: u64,
    pub cached: u64,
    /// Of the answer; those of the model's reasoning are among them.
    pub output: u64,
    pub reasoning: u64,
}

impl Tokens {
    pub fn add(&mut self, other: &Tokens) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.cached = self.cached.saturating_add(other.cached);
        self.output = self.output.saturating_add(other.output);
        self.reasoning = self.reasoning.saturating_add(other.reasoning);
    }
}

/// Why an answer ended before the model ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// `max_output_tokens`, or the context is full.
    Length,
}

/// How a turn of the model ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TurnEnd {
    /// The answer is complete.
    Answered,
    /// The model calls functions of the client: the run is over, and the client's next request
    /// brings their results. The ids of the calls.
    HandedOver(Vec<String>),
    Cut(Cut),
}

/// Why a run can't go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// Stable machine-readable word.
    pub code: String,
    pub message: String,
}

/// What is committed of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The output item of this number is complete. With `end` it is the last one of the run's turn.
    ItemComplete {
        item: u32,
        tokens: Tokens,
        end: Option<TurnEnd>,
    },
    /// The turn gave no (further) item: it ends behind the items that are complete.
    TurnEnded {
        items: u32,
        tokens: Tokens,
        end: TurnEnd,
    },
    Cancelled,
    Failed(RunError),
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Running,
    Completed,
    /// Ended early, with what is complete.
    Incomplete(Cut),
    Cancelled,
    Failed(RunError),
}

/// A run, as far as it is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub phase: Phase,
    /// Output items that are complete.
    pub items: u32,
    pub tokens: Tokens,
    /// Function calls that the client was handed and whose results its next request brings.
    pub calls: Vec<String>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Generate the turn from its record; the first `items` items of it are committed already.
    Generate { items: u32 },
    /// Nothing: the run is over.
    Rest,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is in. Tokens to be counted, once.
    Taken(Tokens),
    /// It was in already, or the run is over: nothing changed and nothing is to be counted.
    Repeat,
    /// It can't follow what is committed: a defect of the one who made it.
    Misfit(String),
}

impl Run {
    /// A run whose input was accepted.
    pub fn accepted() -> Run {
        Run { phase: Phase::Running, items: 0, tokens: Tokens::default(), calls: Vec::new() }
    }

    pub fn is_over(&self) -> bool {
        self.phase != Phase::Running
    }

    pub fn next(&self) -> Step {
        match self.phase {
            Phase::Running => Step::Generate { items: self.items },
            _ => Step::Rest,
        }
    }

    /// Takes an entry in, if it is the next one.
    pub fn apply(&mut self, entry: &Entry) -> Effect {
        if self.is_over() {
            return Effect::Repeat;
        }
        match entry {
            Entry::ItemComplete { item, tokens, end } => {
                if *item < self.items {
                    return Effect::Repeat;
                }
                if *item > self.items {
                    return Effect::Misfit(format!("item {item} after {} items", self.items));
                }
                self.items += 1;
                self.take(tokens, end.as_ref())
            }
            Entry::TurnEnded { items, tokens, end } => {
                if *items != self.items {
                    return Effect::Misfit(format!("an end behind {items} of {} items", self.items));
                }
                self.take(tokens, Some(end))
            }
            Entry::Cancelled => self.end(Phase::Cancelled),
            Entry::Failed(error) => self.end(Phase::Failed(error.clone())),
        }
    }

    fn take(&mut self, tokens: &Tokens, end: Option<&TurnEnd>) -> Effect {
        self.tokens.add(tokens);
        match end {
            None => {}
            Some(TurnEnd::Answered) => self.phase = Phase::Completed,
            Some(TurnEnd::HandedOver(calls)) => {
                self.calls.clone_from(calls);
                self.phase = Phase::Completed;
            }
            Some(TurnEnd::Cut(cut)) => self.phase = Phase::Incomplete(*cut),
        }
        Effect::Taken(*tokens)
    }

    fn end(&mut self, phase: Phase) -> Effect {
        self.phase = phase;
        Effect::Taken(Tokens::default())
    }
}

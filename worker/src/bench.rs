//! How fast the engine computes a slice: prefill and decode at a batch and a depth, in this process.
//!
//! What is timed is the worker's own forward pass with its KV cache and thread team, logits of every
//! sequence included; sampling, tokenizer and network are not. Must never time the making of inputs
//! or the tokens that are in the cache before.

use std::time::{Duration, Instant};

use anyhow::ensure;
use caravan_core::limits;
use caravan_core::plan::Slice;
use caravan_kernels::Team;

use crate::local::LocalModel;
use crate::slice::{Chunk, LoadedSlice, StageInput, StageOutput};
use crate::weights::Form;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Every sequence's tokens at once, logits of its last one.
    Prefill,
    /// One token of every sequence a step, logits of each.
    Decode,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub test: Test,
    /// Sequences.
    pub batch: u32,
    /// Tokens of each sequence that are in the cache before.
    pub depth: u32,
    /// Tokens of each sequence that are timed.
    pub tokens: u32,
}

impl Load {
    /// Tokens that a run computes.
    pub fn total_tokens(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.tokens)
    }

    fn pages_each(&self) -> u32 {
        self.depth.saturating_add(self.tokens).div_ceil(limits::PAGE_TOKENS)
    }
}

/// What to measure on.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub layers: Slice,
    pub threads: usize,
    /// Rows of one step at most.
    pub chunk: u32,
}

/// A loaded slice with its team.
pub struct Bench {
    slice: LoadedSlice,
    team: Team,
    chunk: u32,
    /// Batch, depth and pages of each sequence of the tokens that the cache holds.
    filled: Option<(u32, u32, u32)>,
}

/// One step, ready to be computed.
struct Step {
    chunks: Vec<Chunk>,
    input: StageInput,
}

impl Bench {
    /// Loads the slice with room for the largest of `loads`. Refuses loads that do not fit the model.
    pub fn load(
        model: &LocalModel,
        setup: Setup,
        loads: &[Load],
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<Bench> {
        let context = model.config().context;
        let rows = limits::STEP_ROWS;
        ensure!((1..=rows).contains(&setup.chunk), "a step has 1 to {rows} rows, not {}", setup.chunk);
        for load in loads {
            ensure!(load.batch > 0 && load.tokens > 0, "nothing to measure in {load:?}");
            ensure!(load.batch <= rows, "a step has at most {rows} sequences, not {}", load.batch);
            let end = u64::from(load.depth) + u64::from(load.tokens);
            ensure!(
                end <= u64::from(context),
                "{} tokens at depth {} end beyond the model's context of {context}",
                load.tokens,
                load.depth
            );
        }
        let pages = loads.iter().map(|load| load.batch.saturating_mul(load.pages_each())).max().unwrap_or(1);
        let slice = model.load(setup.layers, pages, Form::File, progress)?;
        Ok(Bench { slice, team: Team::new(setup.threads), chunk: setup.chunk, filled: None })
    }

    /// The instruction set that the kernels run on.
    pub fn isa(&self) -> &'static str {
        self.team.isa().name()
    }

    /// Threads that compute: fewer than asked for if the system refused more.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Bytes of packed weights and of the KV cache.
    pub fn memory_bytes(&self) -> u64 {
        self.slice.memory_bytes()
    }

    /// Computes `load` once and says how long it took.
    pub fn run(&mut self, load: Load) -> anyhow::Result<Duration> {
        let pages_each = load.pages_each();
        let wanted = Some((load.batch, load.depth, pages_each));
        if self.filled != wanted {
            let before = Load { test: Test::Prefill, depth: 0, tokens: load.depth, ..load };
            for step in self.steps(before, pages_each) {
                self.compute(step)?;
            }
            self.filled = wanted;
        }
        let steps = self.steps(load, pages_each);
        let begun = Instant::now();
        for step in steps {
            self.compute(step)?;
        }
        Ok(begun.elapsed())
    }

    fn compute(&mut self, step: Step) -> anyhow::Result<()> {
        let output = self.slice.forward(&mut self.team, &step.chunks, step.input)?;
        // Nothing may be left out because nobody looks at it.
        let (StageOutput::Activations(values) | StageOutput::Logits(values)) = std::hint::black_box(output);
        ensure!(values.iter().take(8).all(|value| value.is_finite()), "the model computes no numbers");
        Ok(())
    }

    /// The steps of `load`, each sequence with `pages_each` pages.
    fn steps(&self, load: Load, pages_each: u32) -> Vec<Step> {
        let pieces = match load.test {
            Test::Decode => (0..load.tokens)
                .map(|i| (0..load.batch).map(|sequence| (sequence, load.depth + i, 1)).collect())
                .collect(),
            Test::Prefill => packed(load, self.chunk),
        };
        let last = load.depth + load.tokens;
        pieces
            .into_iter()
            .map(|pieces: Vec<(u32, u32, u32)>| {
                let chunks = pieces.into_iter().map(|(sequence, start, len)| Chunk {
                    start,
                    tokens: (start..start + len).map(|at| self.token(sequence, at)).collect(),
                    pages: (sequence * pages_each..(sequence + 1) * pages_each).collect(),
                    sample: load.test == Test::Decode || start + len == last,
                });
                let chunks: Vec<Chunk> = chunks.collect();
                let input = self.input(&chunks);
                Step { chunks, input }
            })
            .collect()
    }

    fn token(&self, sequence: u32, position: u32) -> u32 {
        let number = mix(u64::from(sequence) << 32 | u64::from(position));
        (number % u64::from(self.slice.config().vocab.max(1))) as u32
    }

    /// Tokens for the first stage; for another one activations of the size that norms expect.
    fn input(&self, chunks: &[Chunk]) -> StageInput {
        if self.slice.slice().first == 0 {
            return StageInput::Tokens;
        }
        let rows: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        let count = rows * self.slice.config().hidden as usize;
        let value = |i: usize| (mix(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        StageInput::Activations((0..count).map(value).collect())
    }
}

/// (sequence, start, length) of the pieces of every step: each step is filled up to `chunk` rows.
fn packed(load: Load, chunk: u32) -> Vec<Vec<(u32, u32, u32)>> {
    let mut steps = Vec::new();
    let (mut step, mut room) = (Vec::new(), chunk);
    for sequence in 0..load.batch {
        let (mut start, end) = (load.depth, load.depth + load.tokens);
        while start < end {
            let len = room.min(end - start);
            step.push((sequence, start, len));
            start += len;
            room -= len;
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = chunk;
            }
        }
    }
    if !step.is_empty() {
        steps.push(step);
    }
    steps
}

/// A number that looks random, the same on every machine. Source: the finaliser of SplitMix64 (Steele, Lea,
/// Flood 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_filled_and_hold_every_token_once() {
        let load = Load { test: Test::Prefill, batch: 3, depth: 10, tokens: 7 };
        let steps = packed(load, 4);
        let sizes: Vec<u32> = steps.iter().map(|step| step.iter().map(|piece| piece.2).sum()).collect();
        assert_eq!(sizes, [4, 4, 4, 4, 4, 1]);
        for sequence in 0..3 {
            let mut next = 10;
            for (_, start, len) in steps.iter().flatten().filter(|piece| piece.0 == sequence) {
                assert_eq!(*start, next);
                next += len;
            }
            assert_eq!(next, 17);
        }
    }

    #[test]
    fn numbers_look_random_and_never_change() {
        // The first outputs of SplitMix64 from state 0, which its authors publish.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }
}

//! One step at one stage: message in, forward pass, samplers at the last stage, message out.
//!
//! Must never wait or talk to anyone: it runs on the engine's thread, and a wrong message is an
//! error in words, never a panic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use caravan_core::error::Fault;
use caravan_core::limits;
use caravan_core::request::{SampleFault, SampleOutcome, Sampling};
use caravan_proto::{sampled_token, unpack, wire};

use crate::compute::{Compute, Sampler};
use crate::masks::{self, Constrained, Grammars, Next};
use crate::sampler::SampleError;
use crate::slice::{Chunk, StageInput, StageOutput};
use crate::stages::OutFrame;

/// Where a slice stands in its pipeline, and the widths of what it takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub hidden: usize,
    pub vocab: usize,
    /// Gets tokens and embeds them.
    pub first: bool,
    /// Gives sampled tokens.
    pub last: bool,
}

/// A loaded slice with what it keeps from step to step.
pub struct StageWork<C: Compute> {
    pub slice: C::Slice,
    shape: Shape,
    /// Of the model; without it no constrained sequence can be served.
    grammars: Option<Grammars>,
    samplers: BTreeMap<u64, Seat<C::Sampler>>,
}

/// What a last stage keeps of a sequence.
struct Seat<S> {
    sampler: S,
    constraint: Option<Result<Constrained, SampleFault>>,
}

impl<S: Sampler> Seat<S> {
    fn see(&mut self, position: u32, token: u32) {
        self.sampler.see(position, token);
        if let Some(Ok(constraint)) = &mut self.constraint {
            constraint.see(position, token);
        }
    }

    /// The token at `position`; what a constraint allows there is waited for `until` then.
    fn sample(&mut self, position: u32, logits: &mut [f32], until: Instant) -> anyhow::Result<SampleOutcome> {
        let next = match &self.constraint {
            None => None,
            Some(Err(fault)) => return Ok(SampleOutcome::Failed(fault.clone())),
            Some(Ok(constraint)) => Some(constraint.next(position, until)),
        };
        let allowed = match next {
            None => None,
            Some(Next::Allowed(allowed)) => Some(allowed),
            Some(Next::Later) => return Ok(SampleOutcome::Later),
            Some(Next::Fault(fault)) => return Ok(SampleOutcome::Failed(fault)),
        };
        match self.sampler.sample(position, logits, allowed.as_deref()) {
            Ok(sampled) => {
                self.see(position, sampled.token);
                Ok(SampleOutcome::Token(sampled))
            }
            // Its own sequence ends; the rest of the step is as it would have been.
            Err(error @ SampleError::NotFinite { .. }) => {
                Ok(SampleOutcome::Failed(SampleFault { fault: Fault::Operator, why: error.to_string() }))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl<C: Compute> StageWork<C> {
    /// `grammars`: of the model, for a last stage that serves constrained sequences.
    pub fn new(slice: C::Slice, shape: Shape, grammars: Option<Grammars>) -> Self {
        StageWork { slice, shape, grammars, samplers: BTreeMap::new() }
    }

    /// Runs one step. An error leaves the stage in an unknown state: the pipeline must end.
    pub fn run(&mut self, compute: &mut C, mut step: wire::Step) -> anyhow::Result<OutFrame> {
        let rows: usize = step.chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        ensure!(
            rows <= limits::STEP_ROWS as usize,
            "a step of {rows} rows; {} are allowed",
            limits::STEP_ROWS
        );
        ensure!(step.chunks.iter().all(|chunk| !chunk.tokens.is_empty()), "a chunk without tokens");
        let input = self.input(std::mem::take(&mut step.activations), rows)?;
        let chunks: Vec<Chunk> = step.chunks.iter_mut().map(take_chunk).collect();
        if self.shape.last {
            // Before the layers: what constraints allow is found out while they compute.
            self.see(&step.chunks, &chunks)?;
        }
        let output = if rows == 0 { None } else { Some(compute.forward(&mut self.slice, &chunks, input)?) };
        if self.shape.last {
            let tokens = self.sample(&step.chunks, &chunks, output)?;
            for sequence in &step.closed {
                self.samplers.remove(sequence);
            }
            return Ok(OutFrame::Result(wire::StepResult { epoch: step.epoch, step: step.step, tokens }));
        }
        step.activations = self.activations(output, rows)?;
        for (wire, chunk) in step.chunks.iter_mut().zip(chunks) {
            wire.tokens = chunk.tokens;
            wire.pages = chunk.pages;
        }
        Ok(OutFrame::Step(step))
    }

    fn input(&self, bytes: Bytes, rows: usize) -> anyhow::Result<StageInput> {
        let expected = if self.shape.first { 0 } else { rows * self.shape.hidden * 4 };
        ensure!(
            bytes.len() == expected,
            "{} bytes of activations for {rows} rows; {expected} were expected",
            bytes.len()
        );
        Ok(if self.shape.first { StageInput::Tokens } else { StageInput::Activations(decode(&bytes)) })
    }

    fn activations(&self, output: Option<StageOutput>, rows: usize) -> anyhow::Result<Bytes> {
        let values = match output {
            None => Vec::new(),
            Some(StageOutput::Activations(values)) => values,
            Some(StageOutput::Logits(_)) => {
                anyhow::bail!("the slice gave logits in the middle of a pipeline")
            }
        };
        ensure!(values.len() == rows * self.shape.hidden, "the slice gave {} activations", values.len());
        Ok(encode(&values))
    }

    /// Feeds every chunk to its sequence's sampler, in order.
    fn see(&mut self, heads: &[wire::Chunk], chunks: &[Chunk]) -> anyhow::Result<()> {
        for (head, chunk) in heads.iter().zip(chunks) {
            let seat = self.seat(head)?;
            let mut position = chunk.start;
            for token in &chunk.tokens {
                seat.see(position, *token);
                position = position.checked_add(1).context("a position beyond 2^32")?;
            }
        }
        Ok(())
    }

    /// Samples where it is asked.
    fn sample(
        &mut self,
        heads: &[wire::Chunk],
        chunks: &[Chunk],
        output: Option<StageOutput>,
    ) -> anyhow::Result<Vec<wire::SampledToken>> {
        let mut logits = match output {
            None => Vec::new(),
            Some(StageOutput::Logits(logits)) => logits,
            Some(StageOutput::Activations(_)) => anyhow::bail!("the last slice gave activations"),
        };
        let wanted = chunks.iter().filter(|chunk| chunk.sample).count();
        ensure!(logits.len() == wanted * self.shape.vocab, "the slice gave {} logits", logits.len());
        let mut rows = logits.chunks_exact_mut(self.shape.vocab.max(1));
        let mut tokens = Vec::with_capacity(wanted);
        let until = Instant::now() + Duration::from_millis(limits::MASK_WAIT_MS);
        for (head, chunk) in heads.iter().zip(chunks).filter(|(_, chunk)| chunk.sample) {
            let row = rows.next().context("too few logits")?;
            let position =
                u32::try_from(chunk.tokens.len()).ok().and_then(|rows| chunk.start.checked_add(rows));
            let position = position.context("a position beyond 2^32")?;
            let seat = self.samplers.get_mut(&head.sequence).context("a sequence that was never opened")?;
            let outcome = seat.sample(position, row, until)?;
            tokens.push(wire::SampledToken { sequence: head.sequence, ..sampled_token(outcome) });
        }
        Ok(tokens)
    }

    fn seat(&mut self, head: &wire::Chunk) -> anyhow::Result<&mut Seat<C::Sampler>> {
        if let Some(open) = &head.open {
            ensure!(
                self.samplers.len() < limits::SAMPLERS,
                "{} sequences are open; the driver must close some first",
                self.samplers.len()
            );
            let mut sampling: Sampling = unpack(&open.sampling, "sampling")?;
            let constraint = sampling.constraint.take().map(|constraint| match &self.grammars {
                Some(grammars) => Ok(grammars.open(constraint, open.prompt_tokens)),
                None => Err(masks::without_words()),
            });
            let sampler = C::sampler(sampling, open.prompt_tokens);
            self.samplers.insert(head.sequence, Seat { sampler, constraint });
        }
        let sequence = head.sequence;
        self.samplers
            .get_mut(&sequence)
            .with_context(|| format!("sequence {sequence} was never opened in this epoch"))
    }
}

/// Moves tokens and pages out of a message; the rest of it stays for the way on.
fn take_chunk(chunk: &mut wire::Chunk) -> Chunk {
    Chunk {
        start: chunk.start,
        tokens: std::mem::take(&mut chunk.tokens),
        pages: std::mem::take(&mut chunk.pages),
        sample: chunk.sample,
    }
}

/// f32 little-endian; a message's bytes are not aligned, so this copies.
pub fn decode(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The reverse of `decode`, to the bit.
pub fn encode(values: &[f32]) -> Bytes {
    let mut bytes = vec![0u8; values.len() * 4];
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
    Bytes::from(bytes)
}

//! Making the next step: admission, growth, and who shares it.
//!
//! Must never plan more than the pipeline's depth, more rows than a step holds, or a decode row of a
//! sequence whose last sample is still in flight.

use super::scheduler::{InFlight, Part, Scheduler};
use super::sequence::{Age, Life, Phase, Sequence};
use super::{PlannedChunk, PlannedStep, SamplerOpen};
use crate::ids::{SequenceId, StepId};

impl Scheduler {
    /// The next step to send, or `None` while the pipeline is full or there is nothing to do.
    /// Call it again after every step, result, submission or cancellation.
    pub fn next_step(&mut self) -> Option<PlannedStep> {
        if self.in_flight.len() >= self.config.depth() {
            return None;
        }
        self.admit();
        let decode = self.choose_decode();
        let prefill = self.choose_prefill(decode.len() as u32);
        if decode.is_empty() && prefill.is_empty() {
            return None;
        }
        let step = StepId(self.next_step);
        self.next_step += 1;
        let mut parts = Vec::new();
        let mut chunks = Vec::new();
        let prefill_rows = prefill.iter().map(|(_, rows)| rows).sum();
        let rows = decode.iter().map(|&id| (id, 1)).chain(prefill);
        for (id, rows) in rows {
            if let Some(chunk) = self.cut(id, rows, step) {
                parts.push(Part { id, name: chunk.sequence, sample: chunk.sample });
                chunks.push(chunk);
            }
        }
        self.in_flight.push_back(InFlight { step, parts, decode: !decode.is_empty() });
        Some(PlannedStep { step, chunks, closed: std::mem::take(&mut self.closed), prefill_rows })
    }

    fn pages_for(&self, rows: u32) -> u32 {
        rows.div_ceil(self.config.page_tokens)
    }

    /// Pages that the running sequences may need next: one each, but for those that have all.
    fn reserve(&self) -> u32 {
        self.runners().filter(|s| s.pages() < self.pages_for(s.rows_at_most())).count() as u32
    }

    /// Admits from the head of the queue while there is room. The head is never passed over, so a
    /// long prompt can't starve.
    fn admit(&mut self) {
        while self.running.len() < self.config.running {
            let Some(&age) = self.waiting.first() else { return };
            let Some(sequence) = self.sequences.get(&age.1) else { return };
            let rows = (sequence.known() + 1).min(sequence.rows_at_most());
            let need = self.pages_for(rows);
            if self.pages.free() < need + self.reserve() {
                return;
            }
            let Some(pages) = self.pages.take_many(need) else { return };
            let name = self.fresh_name();
            self.waiting.remove(&age);
            self.running.insert(age);
            if let Some(sequence) = self.sequences.get_mut(&age.1) {
                sequence.phase = Phase::Running;
                sequence.life = Some(Life {
                    name,
                    pages,
                    sent: 0,
                    opened: false,
                    decoding: false,
                    in_flight: 0,
                    last_step: 0,
                });
            }
        }
    }

    /// Running sequences, oldest first.
    fn runners(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter_map(|age| self.sequences.get(&age.1))
    }

    /// Decode rows for this step: about a share of one stage, those who waited longest first.
    fn choose_decode(&mut self) -> Vec<SequenceId> {
        let stages = self.config.stages as usize;
        if self.in_flight.iter().filter(|step| step.decode).count() >= stages {
            return Vec::new();
        }
        // Oldest first, so that the oldest gets the page if there is only one.
        let idle: Vec<Age> =
            self.runners().filter(|s| s.decoding() && s.pending() > 0).map(|s| s.age).collect();
        let mut ready = Vec::new();
        for age in idle {
            // It may have lost its pages to an older one just now.
            let last_step = match self.sequences.get(&age.1).filter(|s| s.decoding()) {
                Some(Sequence { life: Some(life), .. }) => life.last_step,
                _ => continue,
            };
            if self.grow(age) {
                ready.push((last_step, age));
            }
        }
        let count = self.runners().filter(|s| s.decoding()).count();
        let share = count.div_ceil(stages).min(self.decode_rows() as usize);
        ready.sort_unstable();
        ready.into_iter().take(share).map(|(_, age)| age.1).collect()
    }

    /// Rows that decode may take: while a prompt waits, some are left for it.
    fn decode_rows(&self) -> u32 {
        let rows = self.config.step_rows;
        let for_prefill = (rows / 4).clamp(1, self.config.prefill_chunk_tokens);
        if self.runners().any(Sequence::prefilling) { rows - for_prefill } else { rows }
    }

    /// Prefill chunks for this step, oldest sequence first; all together, with the decode rows if they
    /// are few, are no longer than one chunk. So no token waits long, an early prompt does not wait for
    /// the later ones, and stages are busy with different chunks.
    fn choose_prefill(&self, decode_rows: u32) -> Vec<(SequenceId, u32)> {
        let chunk = self.config.prefill_chunk_tokens;
        let beside = chunk.saturating_sub(decode_rows).max(chunk.div_ceil(2));
        let mut room = self.config.step_rows.saturating_sub(decode_rows).min(beside);
        let mut chosen = Vec::new();
        for sequence in self.runners().filter(|s| s.prefilling()) {
            let rows = sequence.pending().min(room);
            if rows == 0 {
                break;
            }
            room -= rows;
            chosen.push((sequence.age.1, rows));
        }
        chosen
    }

    /// Whether the sequence has a page for its next row. If none is free the youngest that is
    /// younger than it loses its pages, now or when its steps in flight are done.
    fn grow(&mut self, age: Age) -> bool {
        let Some(life) = self.sequences.get(&age.1).and_then(|s| s.life.as_ref()) else { return false };
        if life.sent < life.pages.len() as u32 * self.config.page_tokens {
            return true;
        }
        loop {
            if let Some(page) = self.pages.take() {
                if let Some(life) = self.sequences.get_mut(&age.1).and_then(|s| s.life.as_mut()) {
                    life.pages.push(page);
                }
                return true;
            }
            let coming = |s: &Sequence| matches!(s.phase, Phase::Draining | Phase::Ended);
            if self.sequences.values().any(|s| coming(s) && s.pages() > 0) {
                return false;
            }
            let Some(&youngest) = self.running.last().filter(|youngest| **youngest > age) else {
                return false;
            };
            if let Some(victim) = self.sequences.get_mut(&youngest.1) {
                victim.phase = Phase::Draining;
                self.preemptions += 1;
            }
            self.settle(youngest.1);
        }
    }

    /// The next `rows` known tokens of a sequence, as a chunk of this step.
    fn cut(&mut self, id: SequenceId, rows: u32, step: StepId) -> Option<PlannedChunk> {
        let page_tokens = self.config.page_tokens;
        let sequence = self.sequences.get_mut(&id)?;
        let known = sequence.known();
        let life = sequence.life.as_mut()?;
        let start = life.sent;
        let end = start + rows;
        let tokens = sequence.tokens.get(start as usize..end as usize)?.to_vec();
        let pages = life.pages.get(..end.div_ceil(page_tokens) as usize)?.to_vec();
        let open = (!life.opened).then(|| SamplerOpen {
            sampling: sequence.sampling.clone(),
            prompt_tokens: sequence.prompt_tokens,
        });
        life.sent = end;
        life.opened = true;
        life.in_flight += 1;
        life.last_step = step.0;
        Some(PlannedChunk { sequence: life.name, start, tokens, pages, sample: end == known, open })
    }
}

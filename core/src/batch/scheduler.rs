//! The scheduler's doors: submit, cancel, expire, a step's result. `plan` makes the steps.
//!
//! Must never let a page be used by two sequences: pages of an ended sequence come back only when
//! no step in flight names them. Must never lose a sequence: each ends in exactly one event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::check::check_record;
use super::pages::Pages;
use super::sequence::{Age, Phase, Sequence};
use super::{BatchConfig, BatchStats, StepError, Submitted};
use crate::error::{Fault, Refusal};
use crate::ids::{SequenceId, StepId};
use crate::limits;
use crate::request::{Finish, GenerateEvent, RequestRecord, SampleFault, SampleOutcome, Sampled};

/// A step that was planned and has no result yet.
pub(super) struct InFlight {
    pub step: StepId,
    pub parts: Vec<Part>,
    pub decode: bool,
}

/// A sequence's share of a step in flight.
pub(super) struct Part {
    pub id: SequenceId,
    /// Name of the sequence in the chunk.
    pub name: SequenceId,
    pub sample: bool,
}

/// Schedules one pipeline in one epoch.
///
/// Order of service is by `accepted_ms`, then by submission. A sequence is admitted when pages for
/// all its known tokens and a page of growth for every running one can be had; an older sequence
/// that needs one more page takes those of the youngest, which waits again and is computed anew.
/// The oldest can therefore always go on, and so everything ends.
pub struct Scheduler {
    pub(super) config: BatchConfig,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    pub(super) waiting: BTreeSet<Age>,
    /// Those with pages that have not ended; the draining ones too.
    pub(super) running: BTreeSet<Age>,
    pub(super) pages: Pages,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Names whose sampler state can go, to be told with the next step.
    pub(super) closed: Vec<SequenceId>,
    /// Numbers for sequences and for their names in chunks; none is used twice.
    next_id: u64,
    pub(super) next_step: u64,
    pub(super) preemptions: u64,
}

impl Scheduler {
    pub fn new(config: BatchConfig) -> Scheduler {
        let config = config.normalised();
        Scheduler {
            pages: Pages::new(config.pages),
            config,
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            in_flight: VecDeque::new(),
            closed: Vec::new(),
            next_id: 0,
            next_step: 0,
            preemptions: 0,
        }
    }

    /// Takes a record in, or refuses it: wrong (client), never fitting the KV pages (client or
    /// operator), late (`deadline`), or too many waiting (`queue_full`, a retry is safe).
    pub fn submit(&mut self, record: RequestRecord, now_ms: u64) -> Result<Submitted, Refusal> {
        check_record(&record, self.config.vocab, self.config.context)?;
        let resubmitted = !record.emitted.is_empty();
        let total = record.prompt.len() + record.emitted.len();
        if record.emitted.len() >= record.max_tokens as usize || total >= self.config.context as usize {
            return Ok(Submitted::Finished(Finish::Length));
        }
        if record.deadline_ms <= now_ms {
            return Err(late());
        }
        let id = SequenceId(self.next_id);
        let sequence = Sequence::new(id, record, self.config.context);
        self.check_capacity(&sequence)?;
        // An accepted answer is not given up for a full queue, but nothing is without a bound.
        let bound = self.config.waiting + if resubmitted { self.config.running } else { 0 };
        if self.waiting.len() >= bound {
            return Err(Refusal::cluster(
                "queue_full",
                limits::RETRY_AFTER_MS,
                format!("{} requests wait already; send this one again a little later", self.waiting.len()),
            ));
        }
        self.next_id += 1;
        self.waiting.insert(sequence.age);
        self.sequences.insert(id, sequence);
        Ok(Submitted::Queued(id))
    }

    fn check_capacity(&self, sequence: &Sequence) -> Result<(), Refusal> {
        let capacity = self.config.capacity_tokens();
        if u64::from(sequence.rows_at_most()) <= capacity {
            return Ok(());
        }
        let known = sequence.known();
        // An answer that was begun on a larger pipeline is not its asker's mistake.
        if u64::from(known) > capacity || known > sequence.prompt_tokens {
            return Err(Refusal::operator(
                "kv_cache_too_small",
                format!(
                    "prompt and answer so far have {known} tokens of up to {}, and the KV cache of this pipeline \
                     holds {capacity}: add workers or give them more memory for KV pages",
                    sequence.limit
                ),
            ));
        }
        let room = capacity + 1 - u64::from(sequence.prompt_tokens);
        Err(Refusal::client(
            "context_length_exceeded",
            "max_tokens",
            format!(
                "the KV cache of this pipeline holds {capacity} tokens: with this prompt ask for at most {room} \
                 tokens, or let the operator give the workers more memory for KV pages"
            ),
        ))
    }

    /// Forgets a sequence whose asker has gone. Its pages are free as soon as no step in flight
    /// uses them. Unknown and ended ones are ignored.
    pub fn cancel(&mut self, id: SequenceId) {
        self.end(id);
    }

    /// Ends every sequence whose deadline has come.
    pub fn expire(&mut self, now_ms: u64) -> Vec<(SequenceId, GenerateEvent)> {
        let due: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.phase != Phase::Ended && sequence.deadline_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        due.into_iter()
            .map(|id| {
                self.end(id);
                (id, GenerateEvent::Refused(late()))
            })
            .collect()
    }

    /// The pipeline is gone: every sequence ends with `Interrupted`, every page is free, and
    /// results of steps in flight are no longer known.
    pub fn interrupt_all(&mut self) -> Vec<(SequenceId, GenerateEvent)> {
        let live: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.phase != Phase::Ended)
            .map(|(id, _)| *id)
            .collect();
        self.sequences.clear();
        self.waiting.clear();
        self.running.clear();
        self.in_flight.clear();
        self.closed.clear();
        self.pages = Pages::new(self.config.pages);
        live.into_iter().map(|id| (id, GenerateEvent::Interrupted)).collect()
    }

    /// The result of the oldest step in flight: one outcome for each chunk that asked for a sample.
    /// A sequence without a token ends with a refusal; the others do not notice.
    pub fn step_done(
        &mut self,
        step: StepId,
        sampled: Vec<(SequenceId, SampleOutcome)>,
    ) -> Result<Vec<(SequenceId, GenerateEvent)>, StepError> {
        let expected = self.in_flight.front().map(|oldest| oldest.step);
        if expected != Some(step) {
            return Err(StepError::Order { got: step, expected });
        }
        let mut tokens = sampled.iter().filter_map(|(_, outcome)| match outcome {
            SampleOutcome::Token(sampled) => Some(sampled.token),
            _ => None,
        });
        if let Some(wrong) = tokens.find(|token| *token >= self.config.vocab) {
            return Err(StepError::Token(wrong));
        }
        let asked = self.in_flight.front().map_or(0, |s| s.parts.iter().filter(|part| part.sample).count());
        let answers = sampled.len();
        let mut by_name: BTreeMap<SequenceId, SampleOutcome> = sampled.into_iter().collect();
        let Some(done) = self.in_flight.pop_front() else {
            return Err(StepError::Order { got: step, expected });
        };
        let all = done.parts.iter().filter(|part| part.sample).all(|part| by_name.contains_key(&part.name));
        if answers != asked || !all {
            // Put back: the caller ends the pipeline, and the books still balance.
            self.in_flight.push_front(done);
            return Err(StepError::Sequences(step));
        }
        let mut events = Vec::new();
        for part in done.parts {
            if let Some(life) = self.sequences.get_mut(&part.id).and_then(|s| s.life.as_mut()) {
                life.in_flight -= 1;
            }
            if part.sample
                && let Some(outcome) = by_name.remove(&part.name)
            {
                match outcome {
                    SampleOutcome::Token(sampled) => self.accept(part.id, sampled, &mut events),
                    SampleOutcome::Later => self.repeat(part.id),
                    SampleOutcome::Failed(fault) => self.fail(part.id, fault, &mut events),
                }
            }
            self.settle(part.id);
        }
        Ok(events)
    }

    pub fn stats(&self) -> BatchStats {
        BatchStats {
            waiting: self.waiting.len(),
            running: self.running.len(),
            free_pages: self.pages.free(),
            pages: self.pages.total(),
            steps_in_flight: self.in_flight.len(),
            preemptions: self.preemptions,
        }
    }

    /// A number that was never used for a sequence or a name.
    pub(super) fn fresh_name(&mut self) -> SequenceId {
        let name = SequenceId(self.next_id);
        self.next_id += 1;
        name
    }

    /// Takes a sampled token into its sequence. A draining one keeps it too: what was computed
    /// before it lost its pages is as true as what will be computed after.
    fn accept(&mut self, id: SequenceId, sampled: Sampled, events: &mut Vec<(SequenceId, GenerateEvent)>) {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|s| s.phase != Phase::Ended) else { return };
        if sequence.stop_tokens.contains(&sampled.token) {
            events.push((id, GenerateEvent::Finished(Finish::Stop)));
            self.end(id);
            return;
        }
        sequence.tokens.push(sampled.token);
        if let Some(life) = &mut sequence.life {
            life.decoding = true;
        }
        let full = sequence.known() >= sequence.limit;
        events.push((id, GenerateEvent::Token(sampled)));
        if full {
            events.push((id, GenerateEvent::Finished(Finish::Length)));
            self.end(id);
        }
    }

    /// The row from which the sequence was to sample goes into a step once more: the same token at
    /// the same position, whose keys and values are written over with themselves.
    fn repeat(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let known = sequence.known();
        if let Some(life) = &mut sequence.life {
            life.sent = life.sent.min(known.saturating_sub(1));
        }
    }

    /// Ends a sequence from which no token could be sampled: the same computation would fail again.
    fn fail(&mut self, id: SequenceId, fault: SampleFault, events: &mut Vec<(SequenceId, GenerateEvent)>) {
        if self.sequences.get(&id).is_none_or(|sequence| sequence.phase == Phase::Ended) {
            return;
        }
        let refusal = match fault.fault {
            Fault::Client => {
                let refusal = Refusal::client("constraint_failed", "", fault.why);
                Refusal { param: None, ..refusal }
            }
            _ => Refusal::operator("sampling_failed", fault.why),
        };
        events.push((id, GenerateEvent::Refused(refusal)));
        self.end(id);
    }

    /// No further step has this sequence, whatever the reason.
    fn end(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if sequence.phase == Phase::Ended {
            return;
        }
        sequence.phase = Phase::Ended;
        self.waiting.remove(&sequence.age);
        self.running.remove(&sequence.age);
        // Steps run in order, so the next one may close it even while earlier ones are in flight.
        if let Some(life) = sequence.life.as_ref().filter(|life| life.opened) {
            self.closed.push(life.name);
        }
        self.settle(id);
    }

    /// Frees the pages of an ended or draining sequence that no step in flight uses.
    pub(super) fn settle(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|s| s.in_flight() == 0) else { return };
        match sequence.phase {
            Phase::Waiting | Phase::Running => {}
            Phase::Ended => {
                if let Some(life) = sequence.life.take() {
                    self.pages.give_back(life.pages);
                }
                self.sequences.remove(&id);
            }
            Phase::Draining => {
                sequence.phase = Phase::Waiting;
                let age = sequence.age;
                if let Some(life) = sequence.life.take() {
                    if life.opened {
                        self.closed.push(life.name);
                    }
                    self.pages.give_back(life.pages);
                }
                self.running.remove(&age);
                self.waiting.insert(age);
            }
        }
    }
}

fn late() -> Refusal {
    Refusal::cluster(
        "deadline",
        limits::RETRY_AFTER_MS,
        "the request's deadline passed before its answer was complete; it may be sent again",
    )
}

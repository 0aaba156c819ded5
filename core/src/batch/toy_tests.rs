//! The scheduler against a toy pipeline whose every token depends on all that lies in its pages.
//!
//! The toy is harsher than a real pipeline: a step writes its rows when it is sent and reads them
//! when it is done, so a page that is reused while a step in flight names it changes a token.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::ids::{SequenceId, StepId};
use crate::request::{Finish, GenerateEvent, RequestRecord, SampleOutcome, Sampled, Sampling};

pub(super) const VOCAB: u32 = 50;

pub(super) fn next_token(tokens: &[u32], seed: u64) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ seed;
    for (position, token) in tokens.iter().enumerate() {
        hash = (hash ^ u64::from(*token) ^ ((position as u64) << 32)).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    }
    (hash % u64::from(VOCAB)) as u32
}

/// The answer of a record that has the pipeline to itself.
fn alone(record: &RequestRecord, context: u32) -> (Vec<u32>, Finish) {
    let mut tokens = record.prompt.clone();
    let mut answer = Vec::new();
    loop {
        if answer.len() >= record.max_tokens as usize || tokens.len() >= context as usize {
            return (answer, Finish::Length);
        }
        let token = next_token(&tokens, record.sampling.seed);
        if record.stop_tokens.contains(&token) {
            return (answer, Finish::Stop);
        }
        tokens.push(token);
        answer.push(token);
    }
}

pub(super) fn record(prompt: Vec<u32>, max_tokens: u32, seed: u64) -> RequestRecord {
    RequestRecord {
        id: format!("r{seed}"),
        model: "toy".into(),
        prompt,
        emitted: Vec::new(),
        sampling: Sampling { seed, ..Sampling::default() },
        stop_tokens: vec![3],
        max_tokens,
        accepted_ms: 0,
        deadline_ms: u64::MAX,
    }
}

/// What the last stage keeps of a sequence.
struct Sampler {
    seed: u64,
    seen: Vec<u32>,
}

pub(super) struct Toy {
    config: BatchConfig,
    pages: Vec<Vec<Option<u32>>>,
    samplers: BTreeMap<SequenceId, Sampler>,
    pub in_flight: VecDeque<PlannedStep>,
}

impl Toy {
    pub(super) fn new(config: &BatchConfig) -> Toy {
        Toy {
            config: config.clone(),
            pages: vec![vec![None; config.page_tokens as usize]; config.pages as usize],
            samplers: BTreeMap::new(),
            in_flight: VecDeque::new(),
        }
    }

    pub(super) fn send(&mut self, step: PlannedStep) {
        let rows: usize = step.chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        assert!(rows > 0 && rows <= self.config.step_rows as usize, "{rows} rows");
        for chunk in &step.chunks {
            let end = chunk.start + chunk.tokens.len() as u32;
            assert!(chunk.tokens.len() as u32 <= self.config.prefill_chunk_tokens.max(1));
            assert_eq!(chunk.pages.len() as u32, end.div_ceil(self.config.page_tokens));
            assert!(chunk.open.is_none() || chunk.start == 0);
            let sampling =
                |s: &PlannedStep| s.chunks.iter().any(|c| c.sequence == chunk.sequence && c.sample);
            assert!(!self.in_flight.iter().any(sampling), "sent on before its sample came");
            assert!(!step.closed.contains(&chunk.sequence));
            for (row, token) in chunk.tokens.iter().enumerate() {
                let position = chunk.start as usize + row;
                let page = chunk.pages[position / self.config.page_tokens as usize] as usize;
                self.pages[page][position % self.config.page_tokens as usize] = Some(*token);
            }
        }
        self.in_flight.push_back(step);
        assert!(self.in_flight.len() <= self.config.depth());
    }

    /// Runs the oldest step.
    pub(super) fn done(&mut self) -> Option<(StepId, Vec<(SequenceId, SampleOutcome)>)> {
        let step = self.in_flight.pop_front()?;
        let mut results = Vec::new();
        for chunk in &step.chunks {
            if let Some(open) = &chunk.open {
                let sampler = Sampler { seed: open.sampling.seed, seen: Vec::new() };
                assert!(self.samplers.insert(chunk.sequence, sampler).is_none(), "opened twice");
            }
            let sampler =
                self.samplers.get_mut(&chunk.sequence).expect("chunk of a sequence that is not open");
            sampler.seen.truncate(chunk.start as usize);
            assert_eq!(sampler.seen.len(), chunk.start as usize, "rows are missing");
            sampler.seen.extend(&chunk.tokens);
            if chunk.sample {
                let read = |position: usize| {
                    let page = chunk.pages[position / self.config.page_tokens as usize] as usize;
                    self.pages[page][position % self.config.page_tokens as usize].expect("row never written")
                };
                let tokens: Vec<u32> = (0..chunk.start as usize + chunk.tokens.len()).map(read).collect();
                assert_eq!(tokens, sampler.seen, "a page was shared");
                // Every third time or so the sampler is not ready.
                let later =
                    (step.step.0.wrapping_mul(0x9e37_79b9) >> 7).wrapping_add(chunk.sequence.0) % 3 == 0;
                let token = next_token(&tokens, sampler.seed);
                let sampled = Sampled { token, logprob: None, top: Vec::new() };
                let outcome = if later { SampleOutcome::Later } else { SampleOutcome::Token(sampled) };
                results.push((chunk.sequence, outcome));
            }
        }
        for closed in &step.closed {
            assert!(self.samplers.remove(closed).is_some(), "closed what was not open");
        }
        Some((step.step, results))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Submit {
        prompt: usize,
        max: u32,
        emitted: usize,
        accepted: u64,
        patience: u64,
    },
    Cancel(usize),
    Send(usize),
    Done(usize),
    Wait(u64),
    /// A new epoch with its own pages and stages: all is submitted again.
    NewEpoch(u32, u32, u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let submit = (1usize..30, 0u32..25, 0usize..6, 0u64..5, prop_oneof![9 => Just(u64::MAX), 1 => 1u64..40])
        .prop_map(|(prompt, max, emitted, accepted, patience)| Op::Submit {
            prompt,
            max,
            emitted,
            accepted,
            patience,
        });
    let op = prop_oneof![
        5 => submit,
        1 => (0usize..40).prop_map(Op::Cancel),
        6 => (1usize..6).prop_map(Op::Send),
        6 => (1usize..6).prop_map(Op::Done),
        1 => (1u64..20).prop_map(Op::Wait),
        1 => (1u32..5, 16u32..40, 1u32..9).prop_map(|(stages, pages, chunk)| Op::NewEpoch(stages, pages, chunk)),
    ];
    prop::collection::vec(op, 1..80)
}

fn config() -> impl Strategy<Value = BatchConfig> {
    (1u32..5, 16u32..40, 2u32..5, 1u32..12, 2u32..20, 1usize..10, 1usize..8).prop_map(
        |(stages, pages, page_tokens, prefill_chunk_tokens, step_rows, waiting, running)| BatchConfig {
            stages,
            pages,
            page_tokens,
            vocab: VOCAB,
            context: 44,
            prefill_chunk_tokens,
            step_rows,
            waiting,
            running,
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Finished(Finish),
    Refused,
    Cancelled,
}

struct Asked {
    /// As it was submitted first.
    record: RequestRecord,
    answer: Vec<u32>,
    end: Option<End>,
}

/// A whole run: scheduler, toy pipeline, and everything that was ever asked.
struct World {
    config: BatchConfig,
    scheduler: Scheduler,
    toy: Toy,
    now: u64,
    asked: Vec<Asked>,
    names: BTreeMap<SequenceId, usize>,
}

impl World {
    fn new(config: BatchConfig) -> World {
        World {
            scheduler: Scheduler::new(config.clone()),
            toy: Toy::new(&config),
            config,
            now: 0,
            asked: Vec::new(),
            names: BTreeMap::new(),
        }
    }

    fn submit(&mut self, index: usize) {
        let mut record = self.asked[index].record.clone();
        record.emitted = self.asked[index].answer.clone();
        match self.scheduler.submit(record, self.now) {
            Ok(Submitted::Queued(id)) => assert!(self.names.insert(id, index).is_none()),
            Ok(Submitted::Finished(finish)) => self.asked[index].end = Some(End::Finished(finish)),
            Err(_) => self.asked[index].end = Some(End::Refused),
        }
    }

    fn take(&mut self, events: Vec<(SequenceId, GenerateEvent)>) {
        for (id, event) in events {
            let asked = &mut self.asked[self.names[&id]];
            assert_eq!(asked.end, None, "an event after the end");
            match event {
                GenerateEvent::Token(sampled) => asked.answer.push(sampled.token),
                GenerateEvent::Finished(finish) => asked.end = Some(End::Finished(finish)),
                GenerateEvent::Refused(_) => asked.end = Some(End::Refused),
                GenerateEvent::Interrupted => panic!("nothing was interrupted"),
            }
        }
    }

    fn send(&mut self) -> bool {
        let Some(step) = self.scheduler.next_step() else { return false };
        self.toy.send(step);
        let stats = self.scheduler.stats();
        assert!(stats.running <= self.config.running);
        assert!(stats.waiting <= self.config.waiting + 2 * self.config.running);
        true
    }

    fn done(&mut self) -> bool {
        let Some((step, results)) = self.toy.done() else { return false };
        let events = self.scheduler.step_done(step, results).unwrap();
        self.take(events);
        true
    }

    fn new_epoch(&mut self, stages: u32, pages: u32, chunk: u32) {
        let interrupted = self.scheduler.interrupt_all();
        assert!(interrupted.iter().all(|(_, event)| *event == GenerateEvent::Interrupted));
        assert_eq!(self.scheduler.stats().free_pages, self.config.pages);
        let mut live: Vec<usize> = interrupted.iter().map(|(id, _)| self.names[id]).collect();
        live.sort_unstable();
        let expected: Vec<usize> = (0..self.asked.len()).filter(|i| self.asked[*i].end.is_none()).collect();
        assert_eq!(live, expected);
        self.config =
            BatchConfig { stages, pages, prefill_chunk_tokens: chunk, waiting: 1000, ..self.config.clone() };
        self.scheduler = Scheduler::new(self.config.clone());
        self.toy = Toy::new(&self.config);
        self.names.clear();
        for index in live {
            self.submit(index);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit { prompt, max, emitted, accepted, patience } => {
                let seed = self.asked.len() as u64;
                let prompt = (0..prompt as u32).map(|i| (i * 7 + seed as u32) % VOCAB).collect();
                let mut record = record(prompt, max, seed);
                record.accepted_ms = accepted;
                record.deadline_ms = self.now.saturating_add(patience);
                let mut answer = alone(&record, self.config.context).0;
                answer.truncate(emitted);
                self.asked.push(Asked { record, answer, end: None });
                self.submit(self.asked.len() - 1);
            }
            Op::Cancel(n) => {
                let live = self.names.iter().filter(|(_, i)| self.asked[**i].end.is_none());
                if let Some((id, index)) = live.map(|(id, index)| (*id, *index)).nth(n) {
                    self.scheduler.cancel(id);
                    self.asked[index].end = Some(End::Cancelled);
                }
            }
            Op::Send(n) => (0..n).for_each(|_| {
                self.send();
            }),
            Op::Done(n) => (0..n).for_each(|_| {
                self.done();
            }),
            Op::Wait(ms) => {
                self.now += ms;
                let events = self.scheduler.expire(self.now);
                assert!(events.iter().all(|(_, event)| matches!(event, GenerateEvent::Refused(_))));
                self.take(events);
            }
            Op::NewEpoch(stages, pages, chunk) => self.new_epoch(stages, pages, chunk),
        }
    }

    fn drain(&mut self) {
        // Preemption computes rows again, but each costs an older sequence's page of progress.
        let mut steps = 0;
        loop {
            while self.send() {
                steps += 1;
            }
            if !self.done() {
                break;
            }
            assert!(steps < 20_000, "it does not end");
        }
    }

    fn check(&self) {
        for asked in &self.asked {
            let (answer, finish) = alone(&asked.record, self.config.context);
            match asked.end {
                Some(End::Finished(end)) => {
                    assert_eq!(asked.answer, answer, "another answer than alone");
                    assert_eq!(end, finish);
                }
                Some(_) => assert!(answer.starts_with(&asked.answer)),
                None => panic!("a sequence never ended"),
            }
        }
        let stats = self.scheduler.stats();
        assert_eq!(stats.free_pages, stats.pages, "pages are lost");
        assert_eq!((stats.waiting, stats.running, stats.steps_in_flight), (0, 0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_one_it_would_be_alone(config in config(), ops in ops()) {
        let mut world = World::new(config);
        for op in ops {
            world.apply(op);
        }
        world.drain();
        world.check();
    }
}

/// Few pages, many growing sequences: pages are taken from the young again and again.
#[test]
fn preemption_happens_and_changes_no_token() {
    let config = BatchConfig {
        stages: 3,
        pages: 20,
        page_tokens: 2,
        vocab: VOCAB,
        context: 41,
        prefill_chunk_tokens: 4,
        step_rows: 8,
        waiting: 64,
        running: 8,
    };
    let mut world = World::new(config);
    for _ in 0..12 {
        let mut record = record(vec![1, 2, 4], 37, world.asked.len() as u64);
        record.stop_tokens.clear();
        world.asked.push(Asked { record, answer: Vec::new(), end: None });
        world.submit(world.asked.len() - 1);
    }
    world.drain();
    world.check();
    assert!(world.scheduler.stats().preemptions > 3, "{:?}", world.scheduler.stats());
}

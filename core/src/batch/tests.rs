//! What the scheduler promises beyond right tokens: order, bounds, turns, and refusals in words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::toy_tests::{Toy, VOCAB, record};
use super::*;
use crate::error::{Fault, Refusal, Retry};
use crate::request::{GenerateEvent, RequestRecord, Sampled};

fn config() -> BatchConfig {
    BatchConfig {
        stages: 2,
        pages: 64,
        page_tokens: 4,
        vocab: VOCAB,
        context: 200,
        prefill_chunk_tokens: 8,
        step_rows: 32,
        waiting: 8,
        running: 8,
    }
}

fn ask(prompt: u32, max_tokens: u32) -> RequestRecord {
    let mut record = record((0..prompt).map(|i| i % VOCAB).collect(), max_tokens, 1);
    record.stop_tokens.clear();
    record
}

fn queued(scheduler: &mut Scheduler, record: RequestRecord) -> SequenceId {
    match scheduler.submit(record, 0).unwrap() {
        Submitted::Queued(id) => id,
        Submitted::Finished(_) => panic!("it has work to do"),
    }
}

fn turn(scheduler: &mut Scheduler, toy: &mut Toy) -> Vec<(SequenceId, GenerateEvent)> {
    while let Some(step) = scheduler.next_step() {
        toy.send(step);
    }
    let (step, results) = toy.done().unwrap();
    scheduler.step_done(step, results).unwrap()
}

#[test]
fn decode_is_spread_over_the_stages() {
    let mut scheduler = Scheduler::new(config());
    let mut toy = Toy::new(&config());
    for _ in 0..8 {
        queued(&mut scheduler, ask(3, 60));
    }
    for _ in 0..12 {
        turn(&mut scheduler, &mut toy);
    }
    for _ in 0..20 {
        turn(&mut scheduler, &mut toy);
        while let Some(step) = scheduler.next_step() {
            toy.send(step);
        }
        let rows: Vec<usize> = toy.in_flight.iter().map(|step| step.chunks.len()).collect();
        assert_eq!(rows, [4, 4]);
    }
}

#[test]
fn chunks_of_one_prompt_follow_each_other_in_flight() {
    let mut scheduler = Scheduler::new(config());
    queued(&mut scheduler, ask(20, 1));
    let starts: Vec<u32> =
        std::iter::from_fn(|| scheduler.next_step()).map(|step| step.chunks[0].start).collect();
    assert_eq!(starts, [0, 8, 16]);
    assert_eq!(scheduler.stats().steps_in_flight, config().depth());
}

#[test]
fn prompts_that_come_together_share_a_chunk_in_order() {
    let mut scheduler = Scheduler::new(config());
    for _ in 0..3 {
        queued(&mut scheduler, ask(6, 60));
    }
    let steps = std::iter::from_fn(|| scheduler.next_step());
    let rows: Vec<Vec<usize>> =
        steps.map(|step| step.chunks.iter().map(|chunk| chunk.tokens.len()).collect()).collect();
    assert_eq!(rows, [vec![6, 2], vec![4, 4], vec![2]]);
}

#[test]
fn a_chunk_holds_the_decode_rows_too() {
    let config = BatchConfig { stages: 1, ..config() };
    let mut scheduler = Scheduler::new(config.clone());
    let mut toy = Toy::new(&config);
    for _ in 0..3 {
        queued(&mut scheduler, ask(2, 60));
    }
    turn(&mut scheduler, &mut toy);
    queued(&mut scheduler, ask(40, 1));
    let step = scheduler.next_step().unwrap();
    assert_eq!((step.chunks.len(), step.prefill_rows), (4, 5));
}

#[test]
fn decode_goes_on_while_prompts_keep_coming() {
    let config = BatchConfig { running: 30, waiting: 300, pages: 4000, step_rows: 16, ..config() };
    let mut scheduler = Scheduler::new(config.clone());
    let mut toy = Toy::new(&config);
    let old: Vec<SequenceId> = (0..14).map(|_| queued(&mut scheduler, ask(2, 190))).collect();
    for _ in 0..20 {
        turn(&mut scheduler, &mut toy);
    }
    let mut silent = vec![0; old.len()];
    let mut prompts_done = 0;
    for turns in 0..300 {
        if turns % 4 == 0 {
            queued(&mut scheduler, ask(60, 1));
        }
        let events = turn(&mut scheduler, &mut toy);
        for (index, id) in old.iter().enumerate() {
            silent[index] = if events.iter().any(|(from, _)| from == id) { 0 } else { silent[index] + 1 };
            let ended = scheduler.stats().running < old.len();
            assert!(ended || silent[index] <= 8, "sequence {index} waited {} steps", silent[index]);
        }
        prompts_done += events.iter().filter(|(id, _)| !old.contains(id)).count();
        if events.iter().any(|(id, event)| old.contains(id) && matches!(event, GenerateEvent::Finished(_))) {
            break;
        }
    }
    assert!(prompts_done > 5, "prefill starved: {prompts_done}");
}

#[test]
fn service_is_by_time_of_acceptance() {
    let config = BatchConfig { running: 1, ..config() };
    let mut scheduler = Scheduler::new(config.clone());
    let mut toy = Toy::new(&config);
    let mut late = ask(3, 1);
    late.accepted_ms = 9;
    let late = queued(&mut scheduler, late);
    let first = queued(&mut scheduler, ask(3, 1));
    let second = queued(&mut scheduler, ask(3, 1));
    let mut order = Vec::new();
    for _ in 0..3 {
        order.extend(
            turn(&mut scheduler, &mut toy)
                .into_iter()
                .filter_map(|(id, event)| matches!(event, GenerateEvent::Finished(_)).then_some(id)),
        );
    }
    assert_eq!(order, [first, second, late]);
}

#[test]
fn a_full_queue_refuses_new_ones_and_bounds_old_ones() {
    let mut scheduler = Scheduler::new(config());
    for _ in 0..8 {
        queued(&mut scheduler, ask(3, 5));
    }
    let refusal = scheduler.submit(ask(3, 5), 0).unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.fault), ("queue_full", Fault::Cluster));
    assert!(matches!(refusal.retry, Retry::AfterMs(_)));
    let mut again = ask(3, 5);
    again.emitted = vec![4];
    for _ in 0..8 {
        queued(&mut scheduler, again.clone());
    }
    assert_eq!(scheduler.submit(again, 0).unwrap_err().code, "queue_full");
}

#[test]
fn what_never_fits_is_refused_in_words() {
    let mut scheduler = Scheduler::new(BatchConfig { pages: 10, ..config() });
    let refused = |scheduler: &mut Scheduler, record| scheduler.submit(record, 5).unwrap_err();
    let long = refused(&mut scheduler, ask(200, 1));
    assert_eq!((long.code.as_str(), long.fault), ("context_length_exceeded", Fault::Client));
    let pages = refused(&mut scheduler, ask(100, 1));
    assert_eq!((pages.code.as_str(), pages.fault), ("kv_cache_too_small", Fault::Operator));
    let answer = refused(&mut scheduler, ask(10, 60));
    assert_eq!((answer.param.as_deref(), answer.fault), (Some("max_tokens"), Fault::Client));
    assert!(answer.message.contains("at most 31"), "{}", answer.message);
    queued(&mut scheduler, ask(10, 31));
    let mut late = ask(1, 1);
    late.deadline_ms = 5;
    assert_eq!(refused(&mut scheduler, late).code, "deadline");
    let mut nan = ask(1, 1);
    nan.sampling.temperature = f32::NAN;
    assert_eq!(refused(&mut scheduler, nan).param.as_deref(), Some("temperature"));
    let mut unsorted = ask(1, 1);
    unsorted.sampling.logit_bias = vec![(3, 1.0), (3, 2.0)];
    assert_eq!(refused(&mut scheduler, unsorted).param.as_deref(), Some("logit_bias"));
    let mut unknown = ask(1, 1);
    unknown.prompt = vec![VOCAB];
    assert_eq!(refused(&mut scheduler, unknown).param.as_deref(), Some("prompt"));
    assert_eq!(refused(&mut scheduler, ask(0, 1)).param.as_deref(), Some("prompt"));
}

#[test]
fn a_record_with_its_whole_answer_is_finished_at_once() {
    let mut scheduler = Scheduler::new(config());
    let mut whole = ask(3, 2);
    whole.emitted = vec![1, 2];
    assert_eq!(scheduler.submit(whole, 0).unwrap(), Submitted::Finished(Finish::Length));
    assert_eq!(scheduler.stats().waiting, 0);
}

#[test]
fn pages_of_a_cancelled_sequence_wait_for_its_steps_in_flight() {
    let mut scheduler = Scheduler::new(config());
    let mut toy = Toy::new(&config());
    let id = queued(&mut scheduler, ask(12, 9));
    toy.send(scheduler.next_step().unwrap());
    toy.send(scheduler.next_step().unwrap());
    scheduler.cancel(id);
    assert!(scheduler.next_step().is_none());
    for free_pages in [60, 64] {
        assert!(scheduler.stats().free_pages < 64);
        let (step, results) = toy.done().unwrap();
        assert!(scheduler.step_done(step, results).unwrap().is_empty(), "a cancelled sequence spoke");
        assert_eq!(scheduler.stats().free_pages, free_pages);
    }
    // The sampler hears of it with the next step, whoever's that is.
    queued(&mut scheduler, ask(2, 1));
    assert_eq!(scheduler.next_step().unwrap().closed.len(), 1);
}

#[test]
fn results_that_do_not_fit_are_told() {
    let mut scheduler = Scheduler::new(config());
    queued(&mut scheduler, ask(3, 9));
    let step = scheduler.next_step().unwrap();
    let name = step.chunks[0].sequence;
    let sampled = |token| Ok(Sampled { token, logprob: None, top: Vec::new() });
    let early = scheduler.step_done(StepId(7), Vec::new());
    assert!(matches!(early, Err(StepError::Order { .. })));
    assert_eq!(scheduler.step_done(step.step, Vec::new()), Err(StepError::Sequences(step.step)));
    let twice = vec![(name, sampled(1)), (name, sampled(1))];
    assert_eq!(scheduler.step_done(step.step, twice), Err(StepError::Sequences(step.step)));
    assert_eq!(scheduler.step_done(step.step, vec![(name, sampled(VOCAB))]), Err(StepError::Token(VOCAB)));
    assert_eq!(scheduler.step_done(step.step, vec![(name, sampled(1))]).unwrap().len(), 1);
}

#[test]
fn a_sequence_without_a_token_ends_alone() {
    let config = BatchConfig { stages: 1, ..config() };
    let (mut scheduler, mut toy) = (Scheduler::new(config.clone()), Toy::new(&config));
    let free = scheduler.stats().free_pages;
    let (sick, well) = (queued(&mut scheduler, ask(3, 9)), queued(&mut scheduler, ask(5, 2)));
    let step = scheduler.next_step().unwrap();
    let sick_name = step.chunks[0].sequence;
    toy.send(step);
    let (step, mut results) = toy.done().unwrap();
    assert_eq!(results[0].0, sick_name);
    results[0].1 = Err("the logit is not a number".into());
    let events = scheduler.step_done(step, results).unwrap();
    let refusal = Refusal::operator("sampling_failed", "the logit is not a number");
    assert_eq!(events[0], (sick, GenerateEvent::Refused(refusal)));
    assert!(matches!(&events[1], (id, GenerateEvent::Token(_)) if *id == well), "{events:?}");
    let next = scheduler.next_step().unwrap();
    assert_eq!(next.closed, [sick_name], "its sampler can go");
    assert_eq!(next.chunks.len(), 1);
    toy.send(next);
    let (step, results) = toy.done().unwrap();
    let events = scheduler.step_done(step, results).unwrap();
    assert!(matches!(events.last(), Some((id, GenerateEvent::Finished(_))) if *id == well), "{events:?}");
    assert_eq!(scheduler.stats().free_pages, free);
}

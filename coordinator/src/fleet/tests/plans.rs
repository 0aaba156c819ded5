//! When plans are committed, and what is assigned by them.

use std::time::Instant;

use caravan_core::cluster::{Command, Outcome, WorkerState};
use caravan_core::ids::{CoordinatorId, WorkerId};
use caravan_core::limits;
use caravan_core::model::TensorSpec;
use caravan_core::placement::{Policy, next_plan};
use caravan_core::plan::Plan;
use caravan_proto::{unpack, wire};

use super::world::{World, pipeline};
use crate::fleet::machine::Event;

#[test]
fn five_workers_that_start_together_make_one_plan_of_five_stages() {
    let mut world = World::new();
    let begin = world.now.ms;
    for i in 0..5 {
        world.start(&format!("w{i}"), 1);
        world.pass(40);
    }
    world.pass(4_000);
    let plans = world.plans();
    assert_eq!(plans.len(), 1);
    assert_eq!(world.stages().len(), 5);
    assert!(plans[0].0 - begin < 1_000, "{} ms", plans[0].0 - begin);
}

#[test]
fn a_worker_that_measures_for_ever_is_not_waited_for() {
    let mut world = World::new();
    world.start("w0", 1);
    world.pass(150);
    world.measure_ms = u64::MAX / 2;
    world.start("w1", 1);
    world.pass(limits::PLAN_WAIT_MS + 200);
    assert_eq!(world.stages(), [("w0".to_owned(), 30)]);
}

#[test]
fn a_newcomer_is_taken_in_by_one_more_plan() {
    let mut world = World::serving(2);
    world.start("w2", 1);
    world.pass(2_000);
    assert_eq!(world.plans().len(), 1);
    assert_eq!(world.stages().len(), 3);
}

#[test]
fn without_workers_the_plan_has_no_pipelines_and_the_next_one_brings_them_back() {
    let mut world = World::serving(1);
    let mut process = world.kill(world.connection("w0"));
    world.pass(1_000);
    assert_eq!(world.plans().len(), 1);
    assert!(world.stages().is_empty());
    process.incarnation = 2;
    world.attach(process);
    world.pass(400);
    assert_eq!(world.plans().len(), 2);
    assert_eq!(world.stages(), [("w0".to_owned(), 30)]);
}

#[test]
fn all_processes_restarted_at_once_make_one_plan() {
    let mut world = World::serving(4);
    let processes: Vec<_> = world.processes.values().cloned().collect();
    world.fail_over(CoordinatorId(2));
    for (i, mut process) in processes.into_iter().enumerate() {
        world.pass(60 * (i as u64 + 1));
        process.incarnation = 2;
        world.attach(process);
    }
    world.pass(3_000);
    assert_eq!(world.plans().len(), 1, "{:?}", world.log);
    assert_eq!(world.stages().len(), 4);
}

#[test]
fn a_pipeline_that_broke_for_no_known_reason_is_opened_again_with_growing_pauses() {
    let mut world = World::serving(2);
    let stages = world.stages();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let (epoch, begin) = (world.epoch(), world.now.ms);
        world.broken();
        world.broken();
        while world.epoch() == epoch {
            world.pass(20);
            assert!(world.now.ms - begin <= limits::REOPEN_MAX_MS + 40, "never opened again");
        }
        assert_eq!(world.epoch().0, epoch.0 + 1);
        assert_eq!(world.stages(), stages);
        pauses.push(world.now.ms - begin);
    }
    let grace = limits::RECONNECT_GRACE_MS + limits::PLAN_COMMIT_MS;
    assert!((grace..=grace + 20).contains(&pauses[0]), "{pauses:?}");
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
    assert!(pauses[8] + 20 >= limits::REOPEN_MAX_MS, "{pauses:?}");
    // Once it has worked for a while, the pauses begin anew.
    world.ready();
    world.pass(limits::REOPEN_FORGET_MS + 20);
    let epoch = world.epoch();
    world.broken();
    world.pass(grace + 20);
    assert_eq!(world.epoch().0, epoch.0 + 1);
}

#[test]
fn a_break_that_a_lost_worker_explains_makes_one_plan() {
    let mut world = World::serving(3);
    world.broken();
    world.kill(world.connection("w2"));
    world.pass(3_000);
    assert_eq!(world.plans().len(), 1);
    assert_eq!(world.stages().len(), 2);
}

#[test]
fn a_break_of_an_epoch_that_is_over_means_nothing() {
    let mut world = World::serving(2);
    let epoch = world.epoch();
    world.broken();
    world.pass(300);
    world.log.clear();
    world.feed(Event::Broken { epoch, pipeline: pipeline() });
    world.pass(6_000);
    assert!(world.log.is_empty(), "{:?}", world.log);
}

#[test]
fn a_leader_that_was_restarted_in_its_own_term_opens_its_pipelines_again() {
    let mut world = World::serving(2);
    let processes: Vec<_> = world.processes.values().cloned().collect();
    let epoch = world.epoch();
    world.fail_over(super::world::ME);
    for process in processes {
        world.attach(process);
    }
    world.pass(40);
    assert_eq!(world.plans().len(), 1);
    assert_eq!(world.epoch().0, epoch.0 + 1);
    world.pass(6_000);
    assert_eq!(world.plans().len(), 1);
    // The same process elected again still drives what it drove.
    let processes: Vec<_> = world.processes.values().cloned().collect();
    world.feed(Event::Leading(false));
    world.feed(Event::Leading(true));
    for process in processes.into_iter().take(2) {
        world.attach(process);
    }
    world.pass(6_000);
    assert_eq!(world.plans().len(), 1);
}

#[test]
fn a_break_is_not_forgotten_if_it_is_told_before_the_machine_leads() {
    let mut world = World::serving(2);
    let processes: Vec<_> = world.processes.values().cloned().collect();
    world.feed(Event::Leading(false));
    world.broken();
    world.feed(Event::Leading(true));
    for process in processes {
        world.attach(process);
    }
    world.pass(1_000);
    assert_eq!(world.plans().len(), 1);
    // Nor if its epoch is applied a moment later.
    let mut plan: Plan = world.state.plan.clone();
    plan.epoch.0 += 1;
    world.feed(Event::Broken { epoch: plan.epoch, pipeline: pipeline() });
    assert_eq!(world.state.apply(&Command::SetPlan { plan }), Outcome::Done);
    world.feed(Event::State(std::sync::Arc::new(world.state.clone())));
    world.pass(1_000);
    assert_eq!(world.plans().len(), 2);
}

#[test]
fn a_stage_that_failed_is_tried_again() {
    let mut world = World::serving(2);
    let (connection, epoch) = (world.connection("w1"), world.epoch());
    let stage = wire::StageStatus {
        epoch: epoch.0,
        pipeline: pipeline().0,
        state: "failed".to_owned(),
        progress: 0.0,
        error: "é".repeat(limits::STAGE_ERROR_BYTES),
    };
    let heartbeat = wire::Heartbeat { epoch: epoch.0, stages: vec![stage], ..Default::default() };
    for _ in 0..3 {
        world.feed(Event::Heartbeat { connection, heartbeat: heartbeat.clone() });
        let kept = &world.machine.runtime(world.now.ms)[&WorkerId("w1".to_owned())];
        assert!(kept.attached && kept.heartbeat.stages[0].error.len() <= limits::STAGE_ERROR_BYTES);
        world.pass(100);
    }
    assert_eq!(world.plans().len(), 1);
    assert_eq!(world.epoch().0, epoch.0 + 1);
}

#[test]
fn a_drained_worker_is_emptied_and_told_so() {
    let mut world = World::serving(2);
    let command = Command::DrainWorker { id: WorkerId("w1".to_owned()) };
    assert_eq!(world.state.apply(&command), Outcome::Done);
    world.feed(Event::State(std::sync::Arc::new(world.state.clone())));
    world.pass(100);
    assert_eq!(world.worker_state("w1"), WorkerState::Draining);
    assert_eq!(world.stages(), [("w0".to_owned(), 30)]);
    let told = world.assignments(world.connection("w1")).unwrap();
    assert_eq!((told.epoch, told.assignments.len()), (world.epoch().0, 0));
}

#[test]
fn assignments_say_all_that_a_stage_needs() {
    let mut world = World::serving(2);
    let names: Vec<String> = world.stages().into_iter().map(|(worker, _)| worker).collect();
    let of = |world: &World, name: &str| {
        let assignments = world.assignments(world.connection(name)).unwrap();
        assert_eq!(assignments.epoch, world.epoch().0);
        assignments.assignments[0].clone()
    };
    let (first, last) = (of(&world, &names[0]), of(&world, &names[1]));
    assert_eq!((first.stage, first.stages, first.first), (0, 2, 0));
    assert_eq!((last.stage, last.stages, last.end), (1, 2, 30));
    assert_eq!(first.end, last.first);
    assert_eq!(first.next, format!("host-{}:1", names[1]));
    assert_eq!((last.next.as_str(), last.driver.as_str()), ("", "c1:1"));
    assert_eq!(first.sources, ["c1:1"], "only the first coordinator holds the file");
    assert_eq!(first.kv_pages, world.state.plan.pipelines[0].kv_pages);
    assert_eq!(first.page_tokens, limits::PAGE_TOKENS);
    let tensors: Vec<TensorSpec> = unpack(&last.tensors, "tensors").unwrap();
    let layers = (last.end - last.first) as usize;
    assert_eq!(tensors.len(), layers + 2, "its layers, the head and the tied embedding");
    // The next worker may have layers from those that held them.
    world.start("w2", 1);
    world.pass(2_000);
    let third = of(&world, "w2");
    assert!(third.sources.len() >= 2 && third.sources.last().unwrap() == "c1:1", "{:?}", third.sources);
    assert!(third.sources[0].starts_with("host-w"));
}

#[test]
fn a_plan_that_another_wrote_is_followed() {
    let mut world = World::serving(2);
    let mut plan: Plan = world.state.plan.clone();
    plan.epoch.0 += 1;
    assert_eq!(world.state.apply(&Command::SetPlan { plan }), Outcome::Done);
    world.feed(Event::State(std::sync::Arc::new(world.state.clone())));
    world.pass(1_000);
    assert!(world.log.is_empty());
    for name in ["w0", "w1"] {
        assert_eq!(world.assignments(world.connection(name)).unwrap().epoch, world.epoch().0);
    }
}

#[test]
fn placement_of_eight_workers_and_eighty_layers_takes_less_than_50_ms() {
    let mut world = World::serving(6);
    for i in 0..8 {
        world.start(&format!("x{i}"), 1);
    }
    world.pass(3_000);
    let mut state = world.state.clone();
    state.workers.retain(|id, _| id.0.starts_with('x'));
    state.plan = Plan::default();
    state.models.get_mut("m").unwrap().config.layers = 80;
    for (count, limit_ms) in [(8, 50), (6, 50)] {
        while state.workers.len() > count {
            state.workers.pop_last();
        }
        for (i, worker) in state.workers.values_mut().enumerate() {
            worker.layer_times.get_mut("m").unwrap().decode_ms = 1.0 + i as f64 / 10.0;
        }
        let begin = Instant::now();
        let decision = next_plan(&state, CoordinatorId(1), &Policy::default());
        let took_ms = begin.elapsed().as_millis();
        assert_eq!(decision.plan.unwrap().pipelines[0].stages.len(), count);
        // Only optimised builds are what runs.
        assert!(cfg!(debug_assertions) || took_ms < limit_ms, "{count} workers took {took_ms} ms");
    }
}

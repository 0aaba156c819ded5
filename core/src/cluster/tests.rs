//! Rules of the commands, by example and as properties over random logs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::{CoordinatorId, Digest, Epoch, PipelineId, WorkerId};
use crate::limits;
use crate::model::{Family, ModelConfig, ModelSpec};
use crate::plan::{Pipeline, Plan, Slice, Stage};

fn id(name: &str) -> WorkerId {
    WorkerId(name.to_owned())
}

fn profile(threads: u32) -> WorkerProfile {
    WorkerProfile {
        grpc: "127.0.0.1:1".to_owned(),
        device: "cpu".to_owned(),
        threads,
        memory_bytes: 1 << 30,
        kv_bytes: 1 << 20,
        numerics: "a".to_owned(),
    }
}

fn join(name: &str, incarnation: u64, profile: WorkerProfile) -> Command {
    Command::JoinWorker { id: id(name), incarnation, profile, now_ms: 5 }
}

fn measure(name: &str, incarnation: u64, decode_ms: f64) -> Command {
    let time = LayerTime { decode_ms, prefill_short_ms: 0.5, prefill_long_ms: 0.5, head_ms: 2.0 };
    let links = BTreeMap::from([(id("w1"), LinkTime { latency_ms: 0.1, bytes_per_s: 1e9 })]);
    Command::MeasureWorker { id: id(name), incarnation, model: "m".to_owned(), time, links }
}

fn expire(name: &str, incarnation: u64) -> Command {
    Command::ExpireWorker { id: id(name), incarnation, now_ms: 9 }
}

fn spec(digest: u8) -> ModelSpec {
    let config = ModelConfig {
        family: Family::Llama,
        layers: 6,
        hidden: 8,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        rope_dim: 8,
        rope_base: 1e4,
        norm_eps: 1e-5,
        ffn: 8,
        vocab: 8,
        context: 64,
        tied: true,
        ..ModelConfig::default()
    };
    ModelSpec {
        name: "m".to_owned(),
        digest: Digest([digest; 32]),
        header: Digest([0; 32]),
        header_bytes: 1,
        config,
        tensors: Vec::new(),
    }
}

fn register(number: u64) -> Command {
    let coordinator =
        Coordinator { grpc: format!("127.0.0.1:{number}"), http: String::new(), holds: Vec::new() };
    Command::RegisterCoordinator { id: CoordinatorId(number), coordinator }
}

fn plan(epoch: u64, stages: &[(&str, u64, u32, u32)]) -> Plan {
    let stages = stages
        .iter()
        .map(|(name, incarnation, first, end)| Stage {
            worker: id(name),
            incarnation: *incarnation,
            slice: Slice { first: *first, end: *end },
        })
        .collect();
    let pipeline = Pipeline {
        id: PipelineId("m/0".to_owned()),
        model: "m".to_owned(),
        driver: CoordinatorId(1),
        stages,
        kv_pages: 4,
        ready: true,
        predicted_tokens_per_s: 1.0,
    };
    Plan { epoch: Epoch(epoch), pipelines: vec![pipeline] }
}

/// A model, a coordinator and two measured workers, `w1` and `w2`, of incarnation 1.
fn two_workers() -> ClusterState {
    let mut state = ClusterState::default();
    let commands = [
        register(1),
        Command::AddModel { spec: Box::new(spec(1)) },
        join("w1", 1, profile(2)),
        join("w2", 1, profile(2)),
        measure("w1", 1, 1.0),
        measure("w2", 1, 1.0),
    ];
    for command in &commands {
        assert_eq!(state.apply(command), Outcome::Done, "{command:?}");
    }
    state
}

fn refused(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(why) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_measured_worker_is_active_and_a_reconnect_changes_nothing() {
    let mut state = two_workers();
    assert_eq!(state.workers[&id("w2")].state, WorkerState::Active);
    assert!(state.workers[&id("w2")].links.contains_key(&id("w1")));
    assert_eq!(state.apply(&join("w2", 1, profile(2))), Outcome::Unchanged);
}

#[test]
fn a_restarted_worker_keeps_its_measurements_only_if_it_computes_as_before() {
    let mut state = two_workers();
    let mut moved = profile(2);
    moved.grpc = "127.0.0.1:99".to_owned();
    assert_eq!(state.apply(&join("w1", 2, moved.clone())), Outcome::Done);
    assert_eq!(state.workers[&id("w1")].state, WorkerState::Active);
    assert_eq!(state.workers[&id("w1")].profile, moved);
    assert_eq!(state.apply(&join("w1", 3, profile(4))), Outcome::Done);
    assert_eq!(state.workers[&id("w1")].state, WorkerState::Joining);
    assert!(state.workers[&id("w1")].layer_times.is_empty());
}

#[test]
fn a_lost_worker_is_recognised_and_commands_of_a_former_life_are_ignored() {
    let mut state = two_workers();
    assert_eq!(state.apply(&expire("w1", 7)), Outcome::Unchanged);
    assert_eq!(state.apply(&expire("w1", 1)), Outcome::Done);
    assert_eq!(state.apply(&expire("w1", 1)), Outcome::Unchanged);
    assert_eq!(state.apply(&measure("w1", 1, 3.0)), Outcome::Unchanged);
    assert_eq!(state.apply(&join("w1", 1, profile(2))), Outcome::Done);
    assert_eq!(state.workers[&id("w1")].state, WorkerState::Active);
    assert_eq!(state.apply(&measure("w1", 9, 3.0)), Outcome::Unchanged);
}

#[test]
fn draining_lasts_for_one_life() {
    let mut state = two_workers();
    assert_eq!(state.apply(&Command::DrainWorker { id: id("w1") }), Outcome::Done);
    assert_eq!(state.apply(&Command::DrainWorker { id: id("w1") }), Outcome::Unchanged);
    assert_eq!(state.apply(&join("w1", 1, profile(2))), Outcome::Unchanged);
    assert_eq!(state.workers[&id("w1")].state, WorkerState::Draining);
    assert_eq!(state.apply(&join("w1", 2, profile(2))), Outcome::Done);
    assert_eq!(state.workers[&id("w1")].state, WorkerState::Active);
    refused(state.apply(&Command::DrainWorker { id: id("w9") }));
}

#[test]
fn a_plan_must_fit_the_state_it_meets() {
    let state = two_workers();
    let good: &[(&str, u64, u32, u32)] = &[("w1", 1, 0, 2), ("w2", 1, 2, 6)];
    type Case<'a> = (&'a str, u64, &'a [(&'a str, u64, u32, u32)]);
    let cases: &[Case] = &[
        ("epoch", 0, good),
        ("epoch", 2, good),
        ("begin", 1, &[("w1", 1, 0, 2), ("w2", 1, 3, 6)]),
        ("begin", 1, &[("w1", 1, 0, 2), ("w2", 1, 2, 2)]),
        ("ends", 1, &[("w1", 1, 0, 2), ("w2", 1, 2, 5)]),
        ("ends", 1, &[]),
        ("no worker", 1, &[("w1", 1, 0, 2), ("w3", 1, 2, 6)]),
        ("restarted", 1, &[("w1", 1, 0, 2), ("w2", 2, 2, 6)]),
        ("two stages", 1, &[("w1", 1, 0, 2), ("w1", 1, 2, 6)]),
    ];
    for (word, epoch, stages) in cases {
        let mut copy = state.clone();
        let why = refused(copy.apply(&Command::SetPlan { plan: plan(*epoch, stages) }));
        assert!(why.contains(word), "{why:?} should say {word:?}");
        assert_eq!(copy, state, "a refused plan changes nothing");
    }
    let mut other_driver = plan(1, good);
    other_driver.pipelines[0].driver = CoordinatorId(8);
    let mut copy = state.clone();
    assert!(refused(copy.apply(&Command::SetPlan { plan: other_driver })).contains("driver"));
    let mut other_numerics = profile(2);
    other_numerics.numerics = "b".to_owned();
    copy.apply(&join("w2", 2, other_numerics));
    let mixed = plan(1, &[("w1", 1, 0, 2), ("w2", 2, 2, 6)]);
    assert!(refused(copy.apply(&Command::SetPlan { plan: mixed })).contains("numerics"));
}

#[test]
fn ready_is_said_only_of_the_current_epoch_and_ends_with_a_worker() {
    let mut state = two_workers();
    let stages: &[(&str, u64, u32, u32)] = &[("w1", 1, 0, 2), ("w2", 1, 2, 6)];
    assert_eq!(state.apply(&Command::SetPlan { plan: plan(1, stages) }), Outcome::Done);
    assert!(!state.plan.pipelines[0].ready, "a plan comes in not ready whatever it says");
    let pipeline = PipelineId("m/0".to_owned());
    let ready = |epoch| Command::PipelineReady { epoch: Epoch(epoch), pipeline: pipeline.clone() };
    assert_eq!(state.apply(&ready(0)), Outcome::Unchanged);
    assert_eq!(state.apply(&ready(1)), Outcome::Done);
    assert_eq!(state.apply(&ready(1)), Outcome::Unchanged);
    refused(state.apply(&Command::PipelineReady { epoch: Epoch(1), pipeline: PipelineId("x".into()) }));
    assert_eq!(state.apply(&expire("w2", 1)), Outcome::Done);
    assert!(!state.plan.pipelines[0].ready);
    assert_eq!(state.apply(&ready(1)), Outcome::Unchanged, "a lost worker's pipeline can't be ready");
}

#[test]
fn bounds_and_bad_values_are_refused_by_name() {
    let mut state = two_workers();
    assert!(refused(state.apply(&join("a/b", 1, profile(1)))).contains("a/b"));
    assert!(refused(state.apply(&join("", 1, profile(1)))).contains("bytes"));
    assert!(refused(state.apply(&measure("w1", 1, f64::NAN))).contains("w1"));
    assert!(refused(state.apply(&measure("w7", 1, 1.0))).contains("w7"));
    assert!(refused(state.apply(&Command::AddModel { spec: Box::new(spec(2)) })).contains("other weights"));
    assert_eq!(state.apply(&Command::AddModel { spec: Box::new(spec(1)) }), Outcome::Unchanged);
    for n in 0..limits::WORKERS - 2 {
        assert_eq!(state.apply(&join(&format!("x{n}"), 1, profile(1))), Outcome::Done);
    }
    assert!(refused(state.apply(&join("late", 1, profile(1)))).contains("workers already"));
    state.apply(&expire("x3", 1));
    assert_eq!(state.apply(&join("late", 1, profile(1))), Outcome::Done);
    assert!(!state.workers.contains_key(&id("x3")), "a lost worker makes room");
    assert_eq!(state.workers.len(), limits::WORKERS);
}

/// A step of a random log; plans are made from the state so that many of them are accepted.
#[derive(Clone, Debug)]
enum Op {
    Join(u8, u64, u32),
    Measure(u8, u64),
    Expire(u8, u64),
    Drain(u8),
    Plan { order: Vec<u8>, cuts: Vec<u32>, ahead: u64, incarnation: Option<u64> },
    Ready(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u8..4, 1u64..4, 1u32..3).prop_map(|(w, i, t)| Op::Join(w, i, t)),
        (0u8..4, 1u64..4).prop_map(|(w, i)| Op::Measure(w, i)),
        (0u8..4, 1u64..4).prop_map(|(w, i)| Op::Expire(w, i)),
        (0u8..4).prop_map(Op::Drain),
        (
            proptest::collection::vec(0u8..4, 0..3),
            proptest::collection::vec(1u32..6, 0..3),
            0u64..3,
            proptest::option::weighted(0.2, 1u64..4)
        )
            .prop_map(|(order, cuts, ahead, incarnation)| Op::Plan {
                order,
                cuts,
                ahead,
                incarnation
            }),
        (0u64..3).prop_map(Op::Ready),
    ]
}

fn command(state: &ClusterState, op: &Op) -> Command {
    let name = |worker: &u8| format!("w{worker}");
    match op {
        Op::Join(worker, incarnation, threads) => join(&name(worker), *incarnation, profile(*threads)),
        Op::Measure(worker, incarnation) => measure(&name(worker), *incarnation, 1.5),
        Op::Expire(worker, incarnation) => expire(&name(worker), *incarnation),
        Op::Drain(worker) => Command::DrainWorker { id: id(&name(worker)) },
        Op::Ready(behind) => Command::PipelineReady {
            epoch: Epoch(state.plan.epoch.0.saturating_sub(*behind)),
            pipeline: PipelineId("m/0".to_owned()),
        },
        Op::Plan { order, cuts, ahead, incarnation } => {
            let names: Vec<String> = order.iter().map(name).collect();
            let mut bounds = cuts.clone();
            bounds.truncate(names.len().saturating_sub(1));
            bounds.extend([0, 6]);
            bounds.sort_unstable();
            let life = |name: &str| state.workers.get(&id(name)).map_or(1, |worker| worker.incarnation);
            let stages: Vec<_> = names
                .iter()
                .zip(bounds.windows(2))
                .map(|(name, cut)| (name.as_str(), incarnation.unwrap_or_else(|| life(name)), cut[0], cut[1]))
                .collect();
            let mut plan = plan(state.plan.epoch.0 + ahead, &stages);
            if stages.is_empty() {
                plan.pipelines.clear();
            }
            Command::SetPlan { plan }
        }
    }
}

fn check_invariants(state: &ClusterState) {
    assert!(state.workers.len() <= limits::WORKERS && state.models.len() <= limits::MODELS);
    for pipeline in &state.plan.pipelines {
        let mut next = 0;
        for stage in &pipeline.stages {
            assert_eq!(stage.slice.first, next);
            assert!(stage.slice.end > next);
            next = stage.slice.end;
        }
        assert_eq!(next, 6, "every layer once");
        if pipeline.ready {
            let alive = |stage: &Stage| {
                let worker = &state.workers[&stage.worker];
                worker.incarnation == stage.incarnation && worker.state != WorkerState::Lost
            };
            assert!(pipeline.stages.iter().all(alive), "ready with a worker gone");
        }
    }
    for worker in state.workers.values() {
        assert!(worker.state != WorkerState::Active || !worker.layer_times.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_log_keeps_the_invariants_on_every_replica(ops in proptest::collection::vec(ops(), 1..60)) {
        let mut one = ClusterState::default();
        let mut two = ClusterState::default();
        for setup in [register(1), Command::AddModel { spec: Box::new(spec(1)) }] {
            one.apply(&setup);
            two.apply(&setup);
        }
        for op in &ops {
            let command = command(&one, op);
            let before = one.clone();
            let outcome = one.apply(&command);
            prop_assert_eq!(&outcome, &two.apply(&command));
            prop_assert_eq!(&one, &two);
            prop_assert!(one.plan.epoch >= before.plan.epoch, "the epoch never decreases");
            prop_assert!(one.plan.epoch.0 <= before.plan.epoch.0 + 1);
            prop_assert_eq!(outcome == Outcome::Done, one != before, "{:?} said {:?}", command, outcome);
            check_invariants(&one);
        }
    }
}

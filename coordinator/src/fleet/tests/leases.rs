//! Attaching, leases, measurements: who is a member, and who is told what.

use caravan_core::cluster::{Command, Outcome, WorkerState};
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use caravan_core::model::{ModelConfig, TensorSpec};
use caravan_proto::unpack;
use caravan_proto::wire::directive::Directive;

use super::world::{LEASE_MS, World, hello};
use crate::fleet::machine::Event;

fn process(world: &World, name: &str) -> super::world::Process {
    world.processes[&world.connection(name)].clone()
}

#[test]
fn another_protocol_version_is_refused_with_both_named() {
    let mut world = World::serving(1);
    let mut stranger = process(&world, "w0");
    stranger.name = "old".to_owned();
    let mut words = hello(&stranger);
    words.protocol_version = 77;
    let connection = world.attach_as(stranger, words);
    let Some(Directive::Refused(refused)) = world.sent[&connection].last() else { panic!("not refused") };
    assert!(refused.why.contains("77") && refused.why.contains(&limits::PROTOCOL_VERSION.to_string()));
    assert!(world.closed.contains(&connection));
    assert_eq!(world.state.workers.len(), 1);
}

#[test]
fn a_name_that_the_state_refuses_is_refused_at_the_door() {
    let mut world = World::serving(1);
    let mut stranger = process(&world, "w0");
    stranger.name = "a/b".to_owned();
    let connection = world.attach(stranger);
    let Some(Directive::Refused(refused)) = world.sent[&connection].last() else { panic!("not refused") };
    assert!(refused.why.contains("a/b"), "{}", refused.why);
    assert!(world.closed.contains(&connection));
}

#[test]
fn a_lower_epoch_gets_the_current_assignments_and_a_higher_one_waits() {
    let mut world = World::serving(2);
    let again = process(&world, "w0");
    world.kill(world.connection("w0"));
    let mut words = hello(&again);
    words.epoch = world.epoch().0 - 1;
    let connection = world.attach_as(again, words);
    assert_eq!(world.assignments(connection).unwrap().epoch, world.epoch().0);
    assert_eq!(world.assignments(connection).unwrap().assignments.len(), 1);

    let mut ahead = process(&world, "w1");
    ahead.name = "ahead".to_owned();
    let mut words = hello(&ahead);
    words.epoch = world.epoch().0 + 1;
    let connection = world.attach_as(ahead, words);
    assert!(matches!(world.sent[&connection][..], [Directive::Redirect(_)]));
    assert!(world.closed.contains(&connection));
}

#[test]
fn who_does_not_lead_sends_workers_away_and_changes_nothing() {
    let mut world = World::serving(2);
    let connection = world.connection("w0");
    world.feed(Event::Leading(false));
    assert!(matches!(world.sent[&connection].last(), Some(Directive::Redirect(_))));
    assert!(world.closed.contains(&connection));
    world.start("w9", 1);
    world.pass(5_000);
    assert!(world.log.is_empty(), "{:?}", world.log);
    assert!(world.machine.runtime(world.now.ms).is_empty());
}

#[test]
fn a_short_break_of_the_stream_costs_nothing() {
    let mut world = World::serving(2);
    let again = process(&world, "w1");
    world.kill(world.connection("w1"));
    world.pass(100);
    let connection = world.attach(again);
    world.pass(2_000);
    assert!(world.log.is_empty(), "{:?}", world.log);
    assert_eq!(world.assignments(connection).unwrap().epoch, world.epoch().0);
}

#[test]
fn a_broken_stream_ends_the_lease_after_the_grace_and_the_plan_follows_at_once() {
    let mut world = World::serving(3);
    let at = world.now.ms;
    world.kill(world.connection("w1"));
    world.pass(1_000);
    let (expired, command, _) = &world.log[0];
    assert!(matches!(command, Command::ExpireWorker { .. }), "{command:?}");
    assert!((limits::RECONNECT_GRACE_MS..=limits::RECONNECT_GRACE_MS + 20).contains(&(expired - at)));
    let plans = world.plans();
    assert_eq!(plans.len(), 1);
    assert_eq!(plans[0].0, *expired, "a loss is not waited with");
    assert!(!world.stages().iter().any(|(worker, _)| worker == "w1"));
    for name in ["w0", "w2"] {
        let connection = world.connection(name);
        assert_eq!(world.assignments(connection).unwrap().epoch, world.epoch().0);
    }
}

#[test]
fn silence_ends_the_lease_and_the_stream() {
    let mut world = World::serving(2);
    let connection = world.connection("w1");
    world.processes.get_mut(&connection).unwrap().alive = false;
    world.pass(LEASE_MS - 100);
    assert!(world.log.is_empty());
    world.pass(400);
    assert!(world.closed.contains(&connection));
    assert_eq!(world.worker_state("w1"), WorkerState::Lost);
    assert_eq!(world.stages(), [("w0".to_owned(), 30)]);
    // It was only paused: the same process comes back, and is used without measuring again.
    let mut back = world.processes[&connection].clone();
    back.alive = true;
    world.attach(back);
    world.pass(1_000);
    assert_eq!(world.stages().len(), 2);
}

#[test]
fn a_restarted_worker_is_planned_at_once_and_not_measured_again() {
    let mut world = World::serving(2);
    let mut again = process(&world, "w1");
    world.kill(world.connection("w1"));
    again.incarnation = 2;
    let connection = world.attach(again);
    world.pass(100);
    assert_eq!(world.plans().len(), 1);
    assert_eq!(world.stages().len(), 2);
    assert_eq!(world.assignments(connection).unwrap().assignments.len(), 1);
    assert!(!world.sent[&connection].iter().any(|directive| matches!(directive, Directive::Measure(_))));
}

#[test]
fn a_second_process_under_one_name_waits_for_the_first_to_go() {
    let mut world = World::serving(1);
    let mut double = process(&world, "w0");
    double.incarnation = 2;
    let second = world.attach(double.clone());
    assert!(matches!(world.sent[&second][..], [Directive::Redirect(_)]));
    assert!(world.log.is_empty());
    let first = world.connection("w0");
    world.processes.get_mut(&first).unwrap().alive = false;
    world.pass(5 * limits::HEARTBEAT_MS + 200);
    world.attach(double);
    assert!(world.closed.contains(&first));
    assert!(matches!(world.log[0].1, Command::JoinWorker { incarnation: 2, .. }));
}

#[test]
fn a_new_leader_gives_every_worker_a_whole_lease() {
    let mut world = World::serving(3);
    let (w0, w1) = (process(&world, "w0"), process(&world, "w1"));
    world.fail_over(CoordinatorId(2));
    world.pass(500);
    world.attach(w0);
    world.attach(w1);
    world.pass(1_000);
    assert!(world.log.is_empty(), "waits for w2: {:?}", world.log);
    world.pass(700);
    assert_eq!(world.worker_state("w2"), WorkerState::Lost);
    assert_eq!(world.stages().len(), 2);
    assert_eq!(world.state.plan.pipelines[0].driver, CoordinatorId(2));
    assert_eq!(world.plans().len(), 1);
}

#[test]
fn workers_of_one_machine_measure_one_after_the_other() {
    for (host, together) in [(Some("one"), 1), (None, 1)] {
        let mut world = World::new();
        let begin = world.now.ms;
        for i in 0..4 {
            let mut one = World::serving(1);
            let mut process = one.kill(one.connection("w0"));
            process.name = format!("w{i}");
            process.host = host.map_or(format!("host{i}"), str::to_owned);
            world.attach(process);
        }
        world.pass(3_000);
        assert_eq!(world.measured_together, together);
        assert_eq!(world.stages().len(), 4);
        let planned = world.plans()[0].0 - begin;
        assert_eq!(planned >= 600, host.is_some(), "{planned} ms: machines measure side by side");
    }
}

#[test]
fn a_worker_that_never_answers_does_not_keep_the_next_from_its_turn() {
    let mut world = World::new();
    world.measure_ms = u64::MAX / 2;
    let mut one = World::serving(1);
    let mut stuck = one.kill(one.connection("w0"));
    stuck.host = "one".to_owned();
    let mut next = stuck.clone();
    next.name = "w1".to_owned();
    world.attach(stuck);
    world.pass(100);
    world.measure_ms = 100;
    world.attach(next);
    world.pass(limits::MEASURE_MS + limits::PLAN_WAIT_MS + 500);
    // It gets its own next turn behind those that wait, too.
    assert_eq!(world.worker_state("w1"), WorkerState::Active);
    assert_eq!(world.stages().len(), 2);
}

#[test]
fn a_request_to_measure_describes_one_layer_and_both_ends() {
    let mut world = World::new();
    world.start("w0", 1);
    let second = world.start("w1", 1);
    let Some(Directive::Measure(measure)) =
        world.sent[&second].iter().find(|directive| matches!(directive, Directive::Measure(_)))
    else {
        panic!("not asked")
    };
    let shape = measure.model.as_ref().unwrap();
    let config: ModelConfig = unpack(&shape.config, "config").unwrap();
    let tensors: Vec<TensorSpec> = unpack(&shape.tensors, "tensors").unwrap();
    assert_eq!(config.layers, 30);
    assert_eq!(
        tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(),
        ["Layer(0)", "Embed", "Head"]
    );
    assert_eq!(measure.peers.len(), 1);
    assert_eq!((measure.peers[0].worker.as_str(), measure.peers[0].grpc.as_str()), ("w0", "host-w0:1"));
}

#[test]
fn proposals_that_fail_are_made_again_but_not_all_the_time() {
    let mut world = World::serving(2);
    world.commits = false;
    world.kill(world.connection("w1"));
    world.pass(2_000);
    assert!(world.log.is_empty());
    world.commits = true;
    world.pass(limits::PROPOSE_AGAIN_MS + 20);
    assert_eq!(world.log.len(), 2, "{:?}", world.log);
    assert!(world.log.iter().all(|(_, _, outcome)| *outcome == Outcome::Done));
    assert_eq!(world.stages(), [("w0".to_owned(), 30)]);
}

#[test]
fn all_are_told_of_every_coordinator_once() {
    let world = World::serving(2);
    let lists = |name: &str| {
        let sent = &world.sent[&world.connection(name)];
        sent.iter()
            .filter(|directive| matches!(directive, Directive::Coordinators(_)))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(lists("w0").len(), 1);
    let Directive::Coordinators(list) = &lists("w1")[0] else { panic!() };
    assert_eq!(list.grpc, ["c1:1", "c2:1"]);
}

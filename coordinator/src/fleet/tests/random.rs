//! Any history of joins, deaths, silences, restarts and failovers ends in a plan that serves.

use caravan_core::cluster::WorkerState;
use caravan_core::ids::CoordinatorId;
use proptest::prelude::*;

use super::world::{Process, World};

#[derive(Clone, Debug)]
enum Fate {
    Start(u8),
    Kill(u8),
    /// The stream breaks and the process comes back.
    Reconnect(u8, u64),
    Silence(u8),
    Break,
    FailOver(u64),
    NoQuorum(bool),
    Ready,
}

fn fates() -> impl Strategy<Value = (Fate, u64)> {
    let fate = prop_oneof![
        4 => (0u8..5).prop_map(Fate::Start),
        3 => (0u8..5).prop_map(Fate::Kill),
        2 => (0u8..5, 0u64..400).prop_map(|(worker, ms)| Fate::Reconnect(worker, ms)),
        1 => (0u8..5).prop_map(Fate::Silence),
        2 => Just(Fate::Break),
        1 => (1u64..3).prop_map(Fate::FailOver),
        1 => any::<bool>().prop_map(Fate::NoQuorum),
        1 => Just(Fate::Ready),
    ];
    (fate, prop_oneof![Just(0u64), 0u64..400, 0u64..4_000])
}

fn play(world: &mut World, fate: &Fate, life: &mut u64) {
    let open = |world: &World, worker: u8| {
        let mut open = world.processes.iter().filter(|(connection, _)| !world.closed.contains(connection));
        open.find(|(_, process)| process.name == format!("w{worker}")).map(|(connection, _)| *connection)
    };
    match fate {
        Fate::Start(worker) => {
            if open(world, *worker).is_none() {
                *life += 1;
                world.start(&format!("w{worker}"), *life);
            }
        }
        Fate::Kill(worker) => {
            if let Some(connection) = open(world, *worker) {
                world.kill(connection);
            }
        }
        Fate::Reconnect(worker, ms) => {
            if let Some(connection) = open(world, *worker) {
                let process = world.kill(connection);
                world.pass(*ms);
                world.attach(process);
            }
        }
        Fate::Silence(worker) => {
            if let Some(connection) = open(world, *worker) {
                world.processes.get_mut(&connection).unwrap().alive = false;
            }
        }
        Fate::Break => world.broken(),
        Fate::FailOver(leader) => world.fail_over(CoordinatorId(*leader)),
        Fate::NoQuorum(lost) => world.commits = !lost,
        Fate::Ready => world.ready(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_history_ends_in_a_plan_that_serves(fates in proptest::collection::vec(fates(), 0..25)) {
        let mut world = World::new();
        let mut life = 0;
        for (fate, ms) in &fates {
            play(&mut world, fate, &mut life);
            world.pass(*ms);
        }
        world.commits = true;
        // Processes whose stream was closed come back, as the real ones do, and the rest of them live.
        let away: Vec<Process> = world.processes.iter()
            .filter(|(connection, process)| world.closed.contains(connection) && process.alive)
            .map(|(_, process)| process.clone())
            .collect();
        world.pass(3_000);
        for process in away {
            let here = world.processes.iter().any(|(connection, other)| {
                !world.closed.contains(connection) && other.name == process.name
            });
            if !here {
                world.attach(process);
            }
        }
        world.pass(12_000);

        let here: Vec<(u64, Process)> = world.processes.iter()
            .filter(|(connection, _)| !world.closed.contains(connection))
            .map(|(connection, process)| (*connection, process.clone()))
            .collect();
        let mut staged: Vec<String> = world.stages().into_iter().map(|(worker, _)| worker).collect();
        staged.sort();
        let mut names: Vec<String> = here.iter().map(|(_, process)| process.name.clone()).collect();
        names.sort();
        prop_assert_eq!(staged, names, "equal workers all take part, and only those that are here");
        for (connection, process) in &here {
            prop_assert_eq!(world.worker_state(&process.name), WorkerState::Active);
            let told = world.assignments(*connection).unwrap();
            prop_assert_eq!(told.epoch, world.epoch().0);
            prop_assert_eq!(told.assignments.len(), 1);
        }
        // And then nothing happens any more.
        world.log.clear();
        world.pass(8_000);
        prop_assert!(world.log.is_empty(), "{:?}", world.log);
    }
}

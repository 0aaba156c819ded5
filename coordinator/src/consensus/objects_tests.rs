//! Stored objects in a cluster: committed through anyone, on every node, gone when deleted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use caravan_core::store::{MemoryRows, StoreCommand, StoreOutcome, read};

use super::Compaction;
use super::tables_tests::all_rows;
use super::testkit::{Cluster, Node, SMALL, accept, answered, eventually, target};
use super::types::encode;

fn store(node: &Node, command: StoreCommand) -> StoreOutcome {
    node.run(node.consensus().store(command)).unwrap()
}

fn rows(node: &Node) -> MemoryRows {
    node.run(node.consensus().linearize()).unwrap();
    node.run(node.consensus().look(|view| Ok(all_rows(view)))).unwrap()
}

#[test]
fn objects_are_the_same_everywhere_and_outlive_all_coordinators_at_once() {
    let mut cluster = Cluster::started(3, SMALL);
    let follower = cluster.follower();
    for number in 0..10 {
        assert_eq!(store(cluster.node(follower), accept(number)), StoreOutcome::Done);
    }
    let leader = cluster.leader();
    for number in 0..5 {
        assert_eq!(store(cluster.node(leader), answered(number)), StoreOutcome::Done);
        assert_eq!(store(cluster.node(follower), answered(number)), StoreOutcome::Unchanged);
    }
    let expected = rows(cluster.node(leader));
    assert!((1..=3).all(|id| rows(cluster.node(id)) == expected));
    (1..=3).for_each(|id| cluster.kill(id));
    (1..=3).for_each(|id| cluster.start(id));
    cluster.leader();
    assert!((1..=3).all(|id| rows(cluster.node(id)) == expected));
}

#[test]
fn many_at_once_share_entries_and_each_gets_its_own_answer() {
    let cluster = Cluster::started(3, Compaction::default());
    let leader = cluster.node(cluster.leader());
    store(leader, accept(0));
    let before = leader.consensus().status().borrow().applied;
    let node = cluster.node(cluster.follower());
    let twice = (1..=200).chain(1..=200);
    let all = twice.map(|number| node.consensus().store(accept(number)));
    let outcomes = node.run(futures::future::join_all(all));
    let count = |wanted: StoreOutcome| outcomes.iter().filter(|one| **one == Ok(wanted.clone())).count();
    assert_eq!((count(StoreOutcome::Done), count(StoreOutcome::Unchanged)), (200, 200));
    eventually("the status follows", || leader.consensus().status().borrow().applied > before);
    let entries = leader.consensus().status().borrow().applied - before;
    println!("400 commands in {entries} entries");
    assert!(entries < 200, "{entries} entries");
    assert_eq!(node.run(node.consensus().look(read::totals)).unwrap().1, 201);
}

#[test]
fn a_coordinator_that_missed_the_compacted_log_gets_the_rows_by_snapshot() {
    let mut cluster = Cluster::started(3, SMALL);
    let away = cluster.follower();
    cluster.kill(away);
    let leader = cluster.leader();
    for number in 0..60 {
        store(cluster.node(leader), accept(number));
        store(cluster.node(leader), answered(number));
    }
    let metrics =
        |cluster: &Cluster, id: u64| cluster.node(id).consensus().inner.raft.metrics().borrow().clone();
    eventually("compacted", || metrics(&cluster, leader).purged.is_some_and(|id| id.index > 60));
    cluster.start(away);
    // Others go on while it catches up.
    (60..80).for_each(|number| assert_eq!(store(cluster.node(leader), accept(number)), StoreOutcome::Done));
    let node = cluster.node(away);
    eventually("caught up", || {
        let found = node.run(node.consensus().look(|view| read::response(view, &target(79))));
        found.unwrap().is_some()
    });
    assert_eq!(rows(node), rows(cluster.node(leader)));
    assert!(metrics(&cluster, away).snapshot.is_some_and(|id| id.index > 60), "it came by snapshot");
}

#[test]
fn what_was_deleted_is_in_no_row_and_soon_in_no_log() {
    let cluster = Cluster::started(3, Compaction { every: 10_000, keep: 5_000, scrub_ms: 200 });
    let leader = cluster.leader();
    store(cluster.node(leader), accept(777_777));
    store(cluster.node(leader), answered(777_777));
    store(cluster.node(leader), accept(1));
    let canary = b"question 777777";
    let holds = |bytes: &[u8]| bytes.windows(canary.len()).any(|window| window == canary);
    let in_log = |id: u64| {
        let node = cluster.node(id);
        let entries = node.run(node.consensus().inner.store.entries(.., usize::MAX)).unwrap();
        entries.iter().any(|entry| holds(&encode(entry).unwrap()))
    };
    let in_rows = |id: u64| rows(cluster.node(id)).0.iter().any(|(_, value)| holds(value));
    assert!((1..=3).all(|id| in_log(id) && in_rows(id)), "the search finds what is there");
    let delete = StoreCommand::DeleteResponse { target: target(777_777) };
    assert_eq!(store(cluster.node(leader), delete), StoreOutcome::Done);
    assert!(!(1..=3).any(in_rows));
    eventually("the logs are compacted", || !(1..=3).any(in_log));
    // And nothing else went with it.
    let node = cluster.node(cluster.follower());
    assert!(node.run(node.consensus().look(|view| read::response(view, &target(1)))).unwrap().is_some());
    store(node, answered(1));
}

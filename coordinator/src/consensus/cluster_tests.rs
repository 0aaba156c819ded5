//! What one and three coordinators promise, over real gRPC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use caravan_core::cluster::Outcome;
use caravan_core::error::{Fault, Retry};
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;

use super::testkit::{Cluster, SMALL, command, eventually, large};
use super::types::Envelope;
use super::{Compaction, Role};

#[test]
fn a_single_coordinator_leads_at_once_and_keeps_its_state() {
    let started = Instant::now();
    let mut cluster = Cluster::started(1, Compaction::default());
    cluster.leader();
    println!("a single coordinator led after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(1));
    (100..110).for_each(|number| cluster.node(1).propose(number));
    assert_eq!(
        cluster.node(1).run(cluster.node(1).consensus().propose(command(100))),
        Ok(Outcome::Unchanged)
    );
    for kill in [true, false] {
        if kill {
            cluster.kill(1)
        } else {
            cluster.stop(1)
        }
        let started = Instant::now();
        cluster.start(1);
        let node = cluster.node(1);
        node.run(node.consensus().linearize()).unwrap();
        println!("a restarted single coordinator was current after {:?}", started.elapsed());
        assert!((100..110).all(|number| node.has(number)));
    }
}

#[test]
fn a_stopped_coordinator_refuses_with_words() {
    let cluster = Cluster::started(1, Compaction::default());
    cluster.leader();
    let node = cluster.node(1);
    node.run(node.consensus().shutdown());
    let started = Instant::now();
    let refusal = node.run(node.consensus().propose(command(1))).unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.fault), ("consensus_stopped", Fault::Operator));
    assert!(node.run(node.consensus().linearize()).is_err());
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn three_coordinators_survive_what_they_should() {
    let started = Instant::now();
    let mut cluster = Cluster::started(3, Compaction::default());
    let leader = cluster.leader();
    println!("three coordinators had a leader after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(5));

    // Through a follower; read there and elsewhere.
    let follower = cluster.follower();
    cluster.node(follower).propose(100);
    assert!(cluster.node(follower).has(100), "the proposer sees its own command");
    cluster.node(leader).propose(101);
    for node in cluster.nodes.values() {
        node.run(node.consensus().linearize()).unwrap();
        assert!(node.has(100) && node.has(101));
    }
    eventually("everybody is seen by everybody", || {
        cluster.nodes.values().all(|node| {
            let status = node.consensus().status().borrow().clone();
            status.members.len() == 3 && status.members.values().all(|there| *there)
        })
    });

    // Without its leader.
    cluster.kill(leader);
    let died = Instant::now();
    cluster.node(follower).propose(102);
    println!("a command was committed {:?} after the leader's death", died.elapsed());
    assert_ne!(cluster.leader(), leader);
    eventually("the dead one counts as down", || {
        let status = cluster.node(follower).consensus().status().borrow().clone();
        status.members.get(&CoordinatorId(leader)) == Some(&false)
    });

    // The dead one comes back.
    cluster.start(leader);
    eventually("caught up", || (100..=102).all(|number| cluster.node(leader).has(number)));
    cluster.node(leader).propose(103);

    // All stop and start.
    for id in 1..=3 {
        cluster.kill(id);
    }
    (1..=3).for_each(|id| cluster.start(id));
    for node in cluster.nodes.values() {
        node.run(node.consensus().linearize()).unwrap();
        assert!((100..=103).all(|number| node.has(number)));
    }
}

#[test]
fn one_of_three_alone_refuses_and_does_not_hang() {
    let mut cluster = Cluster::started(3, Compaction::default());
    let leader = cluster.leader();
    cluster.node(leader).propose(1);
    let others: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    cluster.kill(others[0]);
    cluster.node(leader).propose(2);
    cluster.kill(others[1]);
    let node = cluster.node(leader);
    let started = Instant::now();
    let refusal = node.run(node.consensus().propose(command(3))).unwrap_err();
    let waited = started.elapsed();
    assert!(waited < Duration::from_millis(limits::PROPOSE_MS + 500), "{waited:?}");
    assert_eq!(refusal.code, "no_quorum");
    assert_eq!(refusal.fault, Fault::Cluster);
    assert!(matches!(refusal.retry, Retry::AfterMs(_)));
    assert!(refusal.message.contains("may or may not"), "{}", refusal.message);
    assert_ne!(node.role(), Role::Leader, "it has no majority");
    assert_eq!(node.leader(), None);
    let refusal = node.run(node.consensus().linearize()).unwrap_err();
    assert_eq!(refusal.code, "no_quorum");
    // With company it works again, and what was refused can be sent again.
    cluster.start(others[0]);
    let node = cluster.node(leader);
    let outcome = node.run(node.consensus().propose(command(3))).unwrap();
    assert!(matches!(outcome, Outcome::Done | Outcome::Unchanged));
    assert!(node.has(3));
}

#[test]
fn a_coordinator_that_missed_the_compacted_log_catches_up_by_snapshot() {
    let mut cluster = Cluster::started(3, SMALL);
    let away = cluster.follower();
    cluster.node(cluster.leader()).propose(1);
    cluster.kill(away);
    let leader = cluster.leader();
    (1000..1100).for_each(|number| cluster.node(leader).propose(number));
    let metrics =
        |cluster: &Cluster, id: u64| cluster.node(id).consensus().inner.raft.metrics().borrow().clone();
    eventually("the log was compacted", || metrics(&cluster, leader).purged.is_some_and(|id| id.index > 60));
    cluster.start(away);
    eventually("caught up", || (1000..1100).all(|number| cluster.node(away).has(number)));
    let snapshot = metrics(&cluster, away).snapshot.expect("it came by snapshot");
    assert!(snapshot.index > 60);
    // And from its own disk after another restart.
    cluster.node(leader).propose(2000);
    cluster.stop(away);
    cluster.start(away);
    let node = cluster.node(away);
    node.run(node.consensus().linearize()).unwrap();
    assert!(node.has(1) && node.has(2000) && (1000..1100).all(|number| node.has(number)));
}

#[test]
fn members_come_and_go() {
    let mut cluster = Cluster::new(3, 1, SMALL);
    (1..=3).for_each(|id| cluster.start(id));
    let leader = cluster.leader();
    assert_eq!(leader, 1, "the others found nothing");
    (100..150).for_each(|number| cluster.node(1).propose(number));
    for id in [2, 3, 3] {
        let node = cluster.node(1);
        let grpc = cluster.addresses[&id].clone();
        node.run(node.consensus().add_member(CoordinatorId(id), grpc)).unwrap();
    }
    eventually("the new ones have the state", || {
        (2..=3).all(|id| (100..150).all(|number| cluster.node(id).has(number)))
    });
    cluster.node(3).propose(200);
    let follower = cluster.node(2);
    let refusal = follower.run(follower.consensus().remove_member(CoordinatorId(3))).unwrap_err();
    assert_eq!(refusal.code, "not_leader");
    assert!(refusal.message.contains("coordinator 1"), "{}", refusal.message);

    // Two voters have no majority without each other: the living one must not be removed.
    cluster.kill(3);
    let node = cluster.node(1);
    eventually("3 is seen to be down", || {
        node.consensus().status().borrow().members.get(&CoordinatorId(3)) == Some(&false)
    });
    let refusal = node.run(node.consensus().remove_member(CoordinatorId(2))).unwrap_err();
    assert_eq!(refusal.code, "no_majority_left");
    node.run(node.consensus().remove_member(CoordinatorId(3))).unwrap();
    node.run(node.consensus().remove_member(CoordinatorId(3))).unwrap();
    assert_eq!(node.consensus().status().borrow().members.len(), 2);
    node.propose(201);
    node.run(node.consensus().remove_member(CoordinatorId(2))).unwrap();
    cluster.kill(2);
    // Alone it is a majority, also after a restart.
    cluster.node(1).propose(202);
    cluster.stop(1);
    cluster.start(1);
    let node = cluster.node(1);
    node.run(node.consensus().linearize()).unwrap();
    assert!(node.has(200) && node.has(201) && node.has(202));
}

#[test]
fn large_commands_travel_and_too_large_ones_are_refused() {
    let cluster = Cluster::started(3, Compaction::default());
    let node = cluster.node(cluster.follower());
    let outcome = node.run(node.consensus().propose(large(1, limits::COMMAND_BYTES - 1000)));
    assert_eq!(outcome, Ok(Outcome::Done));
    eventually("everybody has it", || {
        cluster.nodes.values().all(|node| node.consensus().state().borrow().models.contains_key("model-1"))
    });
    let refusal = node.run(node.consensus().propose(large(2, limits::COMMAND_BYTES))).unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.retry), ("command_too_large", Retry::Never));
    cluster.node(cluster.leader()).propose(3);
}

#[test]
fn many_at_once_are_all_committed_once() {
    let cluster = Cluster::started(3, SMALL);
    let node = cluster.node(cluster.follower());
    let consensus = node.consensus();
    let started = Instant::now();
    let all = (0..200).map(|number| consensus.propose(command(10_000 + number)));
    let outcomes = node.run(futures::future::join_all(all));
    println!("200 commands at once through a follower: {:?}", started.elapsed());
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Outcome::Done)), "{outcomes:?}");
    assert_eq!(node.consensus().state().borrow().workers.len(), 200);
}

#[test]
fn a_message_for_another_coordinator_is_refused() {
    use caravan_proto::wire::{RaftPayload, raft_client::RaftClient};
    let cluster = Cluster::started(1, Compaction::default());
    cluster.leader();
    let node = cluster.node(1);
    node.run(async {
        let mut client = RaftClient::connect(format!("http://{}", cluster.addresses[&1])).await.unwrap();
        let data =
            caravan_proto::pack(&Envelope { from: 3, to: 2, body: Proposal::Cluster(command(1)) }).unwrap();
        let status = client.propose(RaftPayload { data }).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
        for method in 0..4 {
            let garbage = RaftPayload { data: vec![0xff; 40].into() };
            let answer = match method {
                0 => client.append(garbage).await,
                1 => client.vote(garbage).await,
                2 => client.snapshot(garbage).await,
                _ => client.propose(garbage).await,
            };
            assert_eq!(answer.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    });
    assert!(!node.has(1));
    node.propose(2);
}

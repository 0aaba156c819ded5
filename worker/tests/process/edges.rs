//! The handshake of an edge, and what is fenced.

use std::time::Duration;

use caravan_proto::wire;
use caravan_worker::links;
use tonic::Code;
use wire::directive::Directive as Order;

use crate::fake::{chunk, step};
use crate::pipeline::{Cluster, Edge, hello};

async fn fenced(cluster: &mut Cluster) -> u64 {
    // Two beats: the first may have been on its way already.
    cluster.coordinator.stage_state("w0", 5, "ready").await;
    cluster.coordinator.stage_state("w0", 5, "ready").await.fenced_messages
}

#[tokio::test(flavor = "multi_thread")]
async fn older_epochs_are_refused_and_counted_beside_an_unharmed_edge() {
    let mut cluster = Cluster::start(1).await;
    cluster.assign(5).await;
    let edge = Edge::ready(&cluster.addrs[0], 5).await;
    assert_eq!(fenced(&mut cluster).await, 0);

    let status = Edge::open(&cluster.addrs[0], hello(4, 0)).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("current epoch is 5"), "{}", status.message());
    assert_eq!(fenced(&mut cluster).await, 1);

    let mut other = hello(5, 0);
    other.protocol_version += 1;
    let status = Edge::open(&cluster.addrs[0], other).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("same build"), "{}", status.message());

    let status = Edge::open(&cluster.addrs[0], hello(5, 0)).await.err().unwrap();
    assert_eq!(status.code(), Code::AlreadyExists);
    let status = Edge::open(&cluster.addrs[0], hello(5, 1)).await.err().unwrap();
    assert_eq!(status.code(), Code::NotFound);
    // Assignments of an older epoch, and of this one again, change nothing.
    cluster.assign(4).await;
    cluster.assign(5).await;

    // The canary beside all that.
    edge.send(step(5, 0, vec![chunk(1, 0, &[1], true, true)])).await;
    assert_eq!(cluster.coordinator.result().await.unwrap().step, 0);
    assert_eq!(fenced(&mut cluster).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_an_older_epoch_is_refused_and_counted() {
    let mut cluster = Cluster::start(1).await;
    cluster.assign(5).await;
    let mut edge = Edge::ready(&cluster.addrs[0], 5).await;
    edge.send(step(4, 0, vec![chunk(1, 0, &[1], true, true)])).await;
    assert_eq!(edge.end().await.code(), Code::FailedPrecondition);
    assert_eq!(cluster.coordinator.result().await, None, "the step was not computed");
    let (beat, why) = cluster.coordinator.broken("w0", 5).await;
    assert_eq!(beat.fenced_messages, 1);
    assert!(why.contains("epoch 4 refused"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_comes_early_is_held_until_the_stage_is_ready() {
    let cluster = Cluster::start(1).await;
    let addr = cluster.addrs[0].clone();
    let early = tokio::spawn(async move { Edge::ready(&addr, 7).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!early.is_finished());
    cluster.assign(7).await;
    let mut edge = early.await.unwrap();

    // One for an epoch that is never assigned, but overtaken, ends as fenced.
    let addr = cluster.addrs[0].clone();
    let never = tokio::spawn(async move { Edge::open(&addr, hello(8, 0)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!never.is_finished());
    cluster.assign(9).await;
    assert_eq!(never.await.unwrap().err().unwrap().code(), Code::FailedPrecondition);
    assert_eq!(edge.end().await.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_cannot_be_loaded_says_why() {
    let mut cluster = Cluster::start(1).await;
    let mut bad = crate::fake::tensor(0, &crate::fake::weight(0, 3000));
    bad.name = "unloadable".to_owned();
    let addr = cluster.coordinator.addr.clone();
    let part = crate::coordinator::assignment(0, 1, "", &addr, &[bad]);
    let assignments = wire::Assignments { epoch: 1, assignments: vec![part] };
    cluster.coordinator.direct("w0", Order::Assignments(assignments)).await;
    let beat = cluster.coordinator.stage_state("w0", 1, "failed").await;
    assert!(beat.stages[0].error.contains("tensor unloadable has NaN scales"), "{:?}", beat.stages);
    assert_eq!(Edge::open(&cluster.addrs[0], hello(1, 0)).await.err().unwrap().code(), Code::Aborted);
    // A later epoch with a good slice works.
    cluster.assign(2).await;
    Edge::ready(&cluster.addrs[0], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_measured_and_silent_peers_left_out() {
    let cluster = Cluster::start(1).await;
    let peer = |worker: &str, grpc: &str| wire::Peer { worker: worker.to_owned(), grpc: grpc.to_owned() };
    // A port on which nothing listens.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let peers = vec![peer("gone", &gone), peer("here", &cluster.addrs[0]), peer("odd", "no address")];
    let measured = links::measure(peers).await;
    assert_eq!(measured.iter().map(|link| link.worker.as_str()).collect::<Vec<_>>(), ["here"]);
    assert!(measured[0].latency_ms > 0.0 && measured[0].latency_ms < 1000.0, "{measured:?}");
    assert!(measured[0].bytes_per_s > 1e6, "{measured:?}");
}

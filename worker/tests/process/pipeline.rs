//! Chains of workers: results in order, and how a break travels.

use std::time::Duration;

use caravan_core::limits;
use caravan_proto::wire;
use caravan_worker::links::{self, Keepalive};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use wire::directive::Directive as Order;
use wire::edge_frame::Frame;

use crate::coordinator::{Coordinator, Mode, assignment};
use crate::fake::{BAD, PANIC, chunk, step, tensor, weight};
use crate::steps::{reference, through};
use crate::workers::{Worker, config};

const SIZE: usize = 3000;

/// The driver's end of the edge to stage 0.
pub struct Edge {
    pub frames: mpsc::Sender<wire::EdgeFrame>,
    pub replies: Streaming<wire::EdgeReady>,
}

pub fn hello(epoch: u64, stage: u32) -> wire::EdgeHello {
    wire::EdgeHello { protocol_version: limits::PROTOCOL_VERSION, epoch, pipeline: "m/0".to_owned(), stage }
}

impl Edge {
    /// Opens an edge and sends the hello.
    pub async fn open(addr: &str, hello: wire::EdgeHello) -> Result<Edge, Status> {
        let mut client = links::stage_client(links::connect(addr, Keepalive::PEER).await.unwrap());
        let (frames, queue) = mpsc::channel(4);
        frames.send(wire::EdgeFrame { frame: Some(Frame::Hello(hello)) }).await.unwrap();
        let call = client.edge(ReceiverStream::new(queue));
        let answer = tokio::time::timeout(Duration::from_secs(20), call).await.expect("an answer in time")?;
        Ok(Edge { frames, replies: answer.into_inner() })
    }

    /// Opens an edge and waits until it is ready.
    pub async fn ready(addr: &str, epoch: u64) -> Edge {
        let mut edge = Edge::open(addr, hello(epoch, 0)).await.unwrap();
        assert_eq!(edge.replies.message().await.unwrap().unwrap().epoch, epoch);
        edge
    }

    pub async fn send(&self, step: wire::Step) {
        // An edge that has just ended takes nothing; the test then looks at the status.
        let _ = self.frames.send(wire::EdgeFrame { frame: Some(Frame::Step(step)) }).await;
    }

    /// How the edge ended.
    pub async fn end(&mut self) -> Status {
        let limit = Duration::from_secs(20);
        let message = tokio::time::timeout(limit, self.replies.message()).await.expect("an end in time");
        message.expect_err("an end with a reason")
    }
}

/// A coordinator and its workers, `w0`, `w1`, …
pub struct Cluster {
    pub coordinator: Coordinator,
    pub workers: Vec<Worker>,
    pub addrs: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    pub async fn start(count: u32) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let mut coordinator = Coordinator::start(Mode::Lead).await;
        let (mut workers, mut addrs) = (Vec::new(), Vec::new());
        for i in 0..count {
            coordinator.put_blob(&weight(i, SIZE));
            let id = format!("w{i}");
            workers.push(Worker::start(config(&id, &[&coordinator.addr], &folder.path().join(&id))));
            let hello = coordinator.hello().await;
            assert_eq!(hello.worker, id);
            addrs.push(hello.grpc);
        }
        Cluster { coordinator, workers, addrs, _folder: folder }
    }

    /// Gives worker i stage i.
    pub async fn assign(&self, epoch: u64) {
        let stages = self.addrs.len() as u32;
        // Backwards and forwards must both work: the head is told first in odd epochs.
        let mut order: Vec<u32> = (0..stages).collect();
        if epoch.is_multiple_of(2) {
            order.reverse();
        }
        for stage in order {
            let next = self.addrs.get(stage as usize + 1).map_or("", String::as_str);
            let tensors = [tensor(stage, &weight(stage, SIZE))];
            let part = assignment(stage, stages, next, &self.coordinator.addr, &tensors);
            let assignments = wire::Assignments { epoch, assignments: vec![part] };
            self.coordinator.direct(&format!("w{stage}"), Order::Assignments(assignments)).await;
        }
    }
}

/// Two sequences: prompts in chunks, then one token at a time, mixed.
fn steps(epoch: u64, count: u64) -> Vec<wire::Step> {
    let mut steps = vec![
        step(epoch, 0, vec![chunk(1, 0, &[1, 2, 3], false, true)]),
        step(epoch, 1, vec![chunk(1, 3, &[4, 5], true, false), chunk(2, 0, &[6], true, true)]),
    ];
    for i in 2..count {
        let (one, two) = (5 + (i as u32 - 2), 1 + (i as u32 - 2));
        steps.push(step(
            epoch,
            i,
            vec![chunk(1, one, &[i as u32 % 50], true, false), chunk(2, two, &[i as u32 % 60], true, false)],
        ));
    }
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_gives_the_right_results_in_order_epoch_after_epoch() {
    let mut cluster = Cluster::start(3).await;
    for epoch in [1, 20] {
        cluster.assign(epoch).await;
        let edge = Edge::ready(&cluster.addrs[0], epoch).await;
        let mut expected = reference(3, SIZE);
        // More steps in flight than any queue holds.
        let all = steps(epoch, 400);
        let sending = tokio::spawn({
            let all = all.clone();
            async move {
                for step in all {
                    edge.send(step).await;
                }
                edge
            }
        });
        for step in all {
            let result = loop {
                // The edge of the epoch before, which never got a step, may end only now.
                match cluster.coordinator.result().await {
                    Some(result) => break result,
                    None => assert!(epoch > 1 && step.step == 0, "the edge ended at step {}", step.step),
                }
            };
            assert_eq!(result, through(&mut expected, step));
        }
        // The second epoch begins under a live edge; its break reaches the driver.
        let mut edge = sending.await.unwrap();
        cluster.assign(epoch + 1).await;
        // The head says why in its own words, or in its neighbour's if that one was told first.
        let code = edge.end().await.code();
        assert!(matches!(code, Code::FailedPrecondition | Code::Aborted), "{code:?}");
        assert_eq!(cluster.coordinator.result().await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_middle_reaches_both_ends_and_a_new_epoch_recovers() {
    let mut cluster = Cluster::start(3).await;
    cluster.assign(1).await;
    let mut edge = Edge::ready(&cluster.addrs[0], 1).await;
    edge.send(step(1, 0, vec![chunk(1, 0, &[1], true, true)])).await;
    assert!(cluster.coordinator.result().await.is_some());

    let begun = std::time::Instant::now();
    cluster.workers.remove(1).kill();
    let status = edge.end().await;
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("next stage"), "{}", status.message());
    assert_eq!(cluster.coordinator.result().await, None, "the edge to the driver ends");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let (_, why) = cluster.coordinator.broken("w0", 1).await;
    assert!(why.contains("next stage"), "{why}");

    // Nothing comes back in the old epoch.
    assert_eq!(Edge::open(&cluster.addrs[0], hello(1, 0)).await.err().unwrap().code(), Code::Aborted);

    // The two that are left take two stages of another model split.
    cluster.addrs.remove(1);
    for (worker, stage, next) in [("w0", 0, cluster.addrs[1].as_str()), ("w2", 1, "")] {
        let tensors = [tensor(stage, &weight(stage, SIZE))];
        let part = assignment(stage, 2, next, &cluster.coordinator.addr, &tensors);
        let assignments = wire::Assignments { epoch: 2, assignments: vec![part] };
        cluster.coordinator.direct(worker, Order::Assignments(assignments)).await;
    }
    let edge = Edge::ready(&cluster.addrs[0], 2).await;
    let first = step(2, 0, vec![chunk(1, 0, &[9], true, true)]);
    edge.send(first.clone()).await;
    let result = cluster.coordinator.result().await.unwrap();
    assert_eq!(result, through(&mut reference(2, SIZE), first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_step_or_a_panic_ends_the_epoch_and_not_the_process() {
    let mut cluster = Cluster::start(2).await;
    for (epoch, token, words) in [(1, BAD, "not in the vocabulary"), (2, PANIC, "told to panic")] {
        cluster.assign(epoch).await;
        let mut edge = Edge::ready(&cluster.addrs[0], epoch).await;
        edge.send(step(epoch, 0, vec![chunk(1, 0, &[token], true, true)])).await;
        let status = edge.end().await;
        assert!(status.message().contains(words), "{}", status.message());
        assert_eq!(cluster.coordinator.result().await, None);
    }
    cluster.assign(3).await;
    let edge = Edge::ready(&cluster.addrs[0], 3).await;
    let good = step(3, 0, vec![chunk(1, 0, &[1], true, true)]);
    edge.send(good.clone()).await;
    let result = cluster.coordinator.result().await.unwrap();
    assert_eq!(result, through(&mut reference(2, SIZE), good));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_goes_ends_the_chain_to_its_tail() {
    let mut cluster = Cluster::start(2).await;
    cluster.assign(1).await;
    let edge = Edge::ready(&cluster.addrs[0], 1).await;
    drop(edge);
    assert_eq!(cluster.coordinator.result().await, None);
    let (_, why) = cluster.coordinator.broken("w1", 1).await;
    assert!(why.contains("into this stage"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_ends_its_edges_and_run_returns() {
    let mut cluster = Cluster::start(2).await;
    cluster.assign(1).await;
    let mut edge = Edge::ready(&cluster.addrs[0], 1).await;
    cluster.workers.remove(0).stop().await.unwrap();
    assert!(edge.end().await.message().contains("leaving"));
    assert_eq!(cluster.coordinator.result().await, None);
}

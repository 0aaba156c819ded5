//! Finding the leader and staying attached to it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use caravan_core::limits;
use caravan_proto::{pack, wire};
use wire::directive::Directive as Order;
use wire::worker_report::Report;

use crate::coordinator::{Coordinator, Mode};
use crate::fake;
use crate::workers::{Worker, config};

#[tokio::test(flavor = "multi_thread")]
async fn follows_a_redirect_and_survives_the_restart_of_its_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let mut leader = Coordinator::start(Mode::Lead).await;
    let follower = Coordinator::start(Mode::Redirect(leader.addr.clone())).await;
    let _worker = Worker::start(config("a", &[&follower.addr], folder.path()));
    let first = leader.hello().await;
    assert_eq!((first.worker.as_str(), first.epoch), ("a", 0));
    assert_eq!(first.protocol_version, limits::PROTOCOL_VERSION);
    assert!(
        first.memory_bytes > 0
            && first.kv_bytes == 1 << 20
            && first.numerics == caravan_worker::slice::numerics()
    );

    leader.direct("a", Order::Assignments(wire::Assignments { epoch: 6, assignments: Vec::new() })).await;
    leader.stage_state("a", 6, "ready").await;
    // Heartbeats keep coming at their pace.
    let begun = std::time::Instant::now();
    for _ in 0..5 {
        leader.stage_state("a", 6, "ready").await;
    }
    assert!(begun.elapsed() < Duration::from_millis(10 * limits::HEARTBEAT_MS), "{:?}", begun.elapsed());

    let addr = leader.kill();
    let mut again = Coordinator::start_at(&addr, Mode::Lead).await;
    let begun = std::time::Instant::now();
    let second = again.hello().await;
    assert_eq!(
        (second.incarnation, second.epoch),
        (first.incarnation, 6),
        "the same process, with what it knows"
    );
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_the_next_leader_among_the_coordinators_it_was_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Coordinator::start(Mode::Lead).await;
    let mut second = Coordinator::start(Mode::Lead).await;
    let worker = Worker::start(config("a", &[&first.addr], folder.path()));
    let before = first.hello().await;
    let all = vec![first.addr.clone(), second.addr.clone()];
    first.direct("a", Order::Coordinators(wire::Coordinators { grpc: all })).await;
    first.direct("a", Order::Assignments(wire::Assignments { epoch: 1, assignments: Vec::new() })).await;
    first.stage_state("a", 1, "ready").await;
    first.kill();
    assert_eq!(second.hello().await.incarnation, before.incarnation);

    // Another life is another incarnation.
    worker.kill();
    let _worker = Worker::start(config("a", &[&second.addr], folder.path()));
    assert_ne!(second.hello().await.incarnation, before.incarnation);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_leader_is_asked_for_again_without_a_spin() {
    let folder = tempfile::tempdir().unwrap();
    let follower = Coordinator::start(Mode::Redirect(String::new())).await;
    let looping = Coordinator::start(Mode::Lead).await;
    let addr = looping.kill();
    let circle = Coordinator::start_at(&addr, Mode::Redirect(follower.addr.clone())).await;
    let _worker = Worker::start(config("a", &[&follower.addr, &circle.addr], folder.path()));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let asked = follower.shared.sessions.load(Ordering::SeqCst);
    assert!((3..=20).contains(&asked), "{asked} attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_the_process_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(Mode::Refuse("protocol version 1, not 2".to_owned())).await;
    let mut worker = Worker::start(config("a", &[&coordinator.addr], folder.path()));
    let error = worker.outcome().await.unwrap_err().to_string();
    assert!(error.contains("refused this worker: protocol version 1, not 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_never_share_a_folder_and_bad_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(Mode::Lead).await;
    let good = config("a", &[&coordinator.addr], folder.path());
    let first = Worker::start(good.clone());
    coordinator.hello().await;
    let error = Worker::start(good.clone()).outcome().await.unwrap_err().to_string();
    assert!(error.contains("another worker uses the folder"), "{error}");
    first.stop().await.unwrap();

    let mut throttled = good.clone();
    throttled.throttle = 0.0;
    assert!(Worker::start(throttled).outcome().await.unwrap_err().to_string().contains("throttle"));
    let mut everywhere = good.clone();
    everywhere.listen = "0.0.0.0:0".to_owned();
    assert!(Worker::start(everywhere).outcome().await.unwrap_err().to_string().contains("--advertise"));
    let mut nowhere = good;
    nowhere.join = Vec::new();
    assert!(Worker::start(nowhere).outcome().await.unwrap_err().to_string().contains("--join"));
}

#[tokio::test(flavor = "multi_thread")]
async fn measures_layers_and_links_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(Mode::Lead).await;
    let mut slow = config("a", &[&coordinator.addr], &folder.path().join("a"));
    slow.throttle = 0.5;
    let _a = Worker::start(slow);
    coordinator.hello().await;
    let _b = Worker::start(config("b", &[&coordinator.addr], &folder.path().join("b")));
    let b = coordinator.hello().await;
    let measure = wire::Measure {
        model: Some(wire::ModelShape {
            name: "m".to_owned(),
            config: pack(&fake::config(11)).unwrap(),
            tensors: pack(&vec![fake::tensor(0, &[1, 2, 3])]).unwrap(),
        }),
        peers: vec![wire::Peer { worker: "b".to_owned(), grpc: b.grpc }],
    };
    coordinator.direct("a", Order::Measure(measure)).await;
    let measured = coordinator
        .wait("measurements", |worker, report| match report {
            Report::Measured(measured) if worker == "a" => Some(measured),
            _ => None,
        })
        .await;
    assert_eq!((measured.model.as_str(), measured.decode_ms, measured.prefill_short_ms), ("m", 11.0, 1.0));
    assert_eq!((measured.prefill_long_ms, measured.head_ms), (2.0, 4.0), "the throttle was passed on");
    assert_eq!(measured.links.len(), 1);
}

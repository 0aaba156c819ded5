//! Drivers against a toy worker over real gRPC on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caravan_core::error::{Fault, Retry};
use caravan_core::ids::*;
use caravan_core::request::{Finish, GenerateEvent, RequestRecord};
use caravan_proto::{pack, unpack, wire};
use tokio::sync::mpsc;
use tonic::Code;
use wire::driver_client::DriverClient;

use super::toy::*;
use super::*;

const PATIENCE: Duration = Duration::from_millis(1_500);

#[test]
fn stages_share_a_chunk_down_to_a_least() {
    let shares = [(96, 1), (96, 2), (96, 5), (16, 3), (512, 1), (512, 4)];
    let shares = shares.map(|(chunk, stages)| super::pipeline::share_of_chunk(chunk, stages));
    assert_eq!(shares, [96, 48, 32, 16, 512, 128]);
}

struct World {
    drivers: Drivers,
    cluster: FakeCluster,
    worker: ToyHandle,
    addr: SocketAddr,
    broken: Arc<Mutex<Vec<(Epoch, PipelineId)>>>,
}

async fn world() -> World {
    let worker = start_worker().await;
    let cluster = FakeCluster::new(worker.addr);
    let (drivers, addr) = start_drivers(ME, &cluster, PATIENCE).await;
    *worker.driver.lock().unwrap() = addr;
    let broken = Arc::new(Mutex::new(Vec::new()));
    let list = broken.clone();
    drivers.on_broken(Arc::new(move |epoch, id| list.lock().unwrap().push((epoch, id))));
    World { drivers, cluster, worker, addr, broken }
}

async fn ready_world() -> World {
    let world = world().await;
    world.cluster.plan(1, ME);
    world.cluster.ready(1).await;
    world
}

/// Tokens until the last event, and that event.
async fn drain(events: &mut mpsc::Receiver<GenerateEvent>) -> (Vec<u32>, Option<GenerateEvent>) {
    let mut tokens = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("a hang");
        match event {
            Some(GenerateEvent::Token(sampled)) => tokens.push(sampled.token),
            last => return (tokens, last),
        }
    }
}

async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_true() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

impl World {
    fn stats(&self) -> PipelineStats {
        self.drivers.stats()[0].1.clone()
    }

    async fn idle(&self) {
        eventually("idle with all pages free", || {
            let stats = self.stats();
            stats.running + stats.waiting + stats.steps_in_flight == 0 && stats.free_pages == PAGES
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_get_what_each_would_alone() {
    let world = ready_world().await;
    world.worker.control.delay_ms.store(1, Ordering::SeqCst);
    let mut asked = Vec::new();
    for seed in 0..24 {
        let record = record(seed, 1 + (seed as usize * 17) % 120, 20 + seed as u32);
        asked.push((record.clone(), world.drivers.submit(record).await.unwrap()));
    }
    let mut total = 0;
    for (record, events) in &mut asked {
        let (tokens, last) = drain(events).await;
        assert_eq!(tokens, undisturbed(record), "{}", record.id);
        assert_eq!(last, Some(GenerateEvent::Finished(Finish::Length)));
        total += tokens.len() as u64;
    }
    world.idle().await;
    let stats = world.stats();
    assert_eq!(stats.tokens_total, total);
    assert!(stats.tokens_per_s > 0.0);
    assert!(stats.prefill_tokens_total >= asked.iter().map(|(r, _)| r.prompt.len() as u64).sum::<u64>());
    assert!(world.worker.control.most_in_flight.load(Ordering::SeqCst) >= 3, "stages were idle");
    assert!(world.broken.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_not_there_yet_is_asked_again() {
    let world = world().await;
    world.worker.control.not_ready.store(3, Ordering::SeqCst);
    world.cluster.plan(1, ME);
    let early = world.drivers.submit(record(1, 3, 3)).await.unwrap_err();
    assert!([NOT_READY, NOT_DRIVER].contains(&early.code.as_str()));
    world.cluster.ready(1).await;
    assert!(world.drivers.submit(record(1, 3, 3)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_can_not_be_sampled_ends_alone() {
    let world = ready_world().await;
    world.worker.control.delay_ms.store(2, Ordering::SeqCst);
    let neighbour = record(1, 30, 60);
    let mut well = world.drivers.submit(neighbour.clone()).await.unwrap();
    let mut sick = world.drivers.submit(record(SICK, 3, 60)).await.unwrap();
    let (tokens, last) = drain(&mut sick).await;
    assert_eq!(tokens, undisturbed(&record(SICK, 3, 1)), "what could be sampled is kept");
    let Some(GenerateEvent::Refused(refusal)) = last else { panic!("{last:?}") };
    assert_eq!((refusal.code.as_str(), refusal.fault), ("sampling_failed", Fault::Operator));
    assert_eq!((refusal.message.as_str(), refusal.retry), ("its logits are no numbers", Retry::Never));
    assert_eq!(drain(&mut well).await.0, undisturbed(&neighbour));
    world.idle().await;
    assert!(world.broken.lock().unwrap().is_empty(), "the epoch goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_receiver_cancels() {
    let world = ready_world().await;
    world.worker.control.delay_ms.store(30, Ordering::SeqCst);
    let mut gone = world.drivers.submit(record(1, 40, 400)).await.unwrap();
    let mut stays = world.drivers.submit(record(2, 40, 30)).await.unwrap();
    gone.recv().await.unwrap();
    drop(gone);
    // Noticed without the next token, and freed when the step in flight is done.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(world.stats().running, 1);
    assert_eq!(drain(&mut stays).await.0, undisturbed(&record(2, 40, 30)));
    world.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_edge_interrupts_all_and_is_reported() {
    for break_after in [1, 2, 3, 7, 20] {
        let world = world().await;
        world.worker.control.break_after.store(break_after, Ordering::SeqCst);
        world.worker.control.delay_ms.store(2, Ordering::SeqCst);
        world.cluster.plan(1, ME);
        if break_after > 1 {
            world.cluster.ready(1).await;
            if let Ok(mut events) = world.drivers.submit(record(5, 30, 100)).await {
                let (tokens, last) = drain(&mut events).await;
                assert!(undisturbed(&record(5, 30, 100)).starts_with(&tokens));
                assert_eq!(last, Some(GenerateEvent::Interrupted));
            }
        }
        eventually("reported", || !world.broken.lock().unwrap().is_empty()).await;
        assert_eq!(*world.broken.lock().unwrap(), [(Epoch(1), PipelineId("toy/0".into()))]);
        assert_eq!(world.drivers.submit(record(6, 3, 3)).await.unwrap_err().code, NOT_READY);
        assert_eq!(world.stats().running, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_interrupts_and_goes_on_with_what_was_emitted() {
    let world = ready_world().await;
    world.worker.control.delay_ms.store(3, Ordering::SeqCst);
    let whole = undisturbed(&record(9, 50, 120));
    let mut answer = Vec::new();
    for epoch in 2..=5 {
        let mut again = record(9, 50, 120);
        again.emitted = answer.clone();
        let mut events = world.drivers.submit(again).await.unwrap();
        for _ in 0..epoch {
            let Some(GenerateEvent::Token(sampled)) = events.recv().await else { panic!("no token") };
            answer.push(sampled.token);
        }
        world.cluster.plan(epoch, ME);
        let (tokens, last) = drain(&mut events).await;
        assert_eq!(last, Some(GenerateEvent::Interrupted));
        answer.extend(tokens);
        world.cluster.ready(epoch).await;
    }
    let mut again = record(9, 50, 120);
    again.emitted = answer.clone();
    let (tokens, last) = drain(&mut world.drivers.submit(again).await.unwrap()).await;
    answer.extend(tokens);
    assert_eq!((answer, last), (whole, Some(GenerateEvent::Finished(Finish::Length))));
    assert!(world.broken.lock().unwrap().is_empty(), "an overtaken epoch is not a broken one");
    assert_eq!(world.stats().tokens_total, 120, "counters outlive epochs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_swallows_steps_is_given_up() {
    let world = ready_world().await;
    // Idle time is no silence.
    tokio::time::sleep(PATIENCE + Duration::from_millis(300)).await;
    assert!(world.broken.lock().unwrap().is_empty());
    world.worker.control.hang.store(true, Ordering::SeqCst);
    let mut events = world.drivers.submit(record(1, 3, 3)).await.unwrap();
    assert_eq!(drain(&mut events).await, (Vec::new(), Some(GenerateEvent::Interrupted)));
    eventually("reported", || !world.broken.lock().unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_of_other_epochs_are_fenced_or_held() {
    let world = ready_world().await;
    world.cluster.plan(2, ME);
    world.cluster.ready(2).await;
    let open = async |epoch| {
        let (frames, queue) = mpsc::channel(4);
        open_results(world.addr, epoch, "toy/0", &frames, queue).await
    };
    let old = open(1).await.unwrap_err();
    assert_eq!(old.code(), Code::FailedPrecondition, "{old}");
    assert_eq!(world.drivers.fenced_messages(), 1);
    let second = open(2).await.unwrap_err();
    assert_eq!(second.code(), Code::Aborted, "one edge in each epoch: {second}");
    // The worker's own edge must not be in the way of this test's.
    world.worker.control.not_ready.store(u64::MAX, Ordering::SeqCst);
    let (frames, queue) = mpsc::channel(4);
    let early = open_results(world.addr, 3, "toy/0", &frames, queue);
    let (accepted, ()) = tokio::join!(early, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.cluster.plan(3, ME);
    });
    accepted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_other_gateways_are_served() {
    let world = ready_world().await;
    let mut client = DriverClient::connect(format!("http://{}", world.addr)).await.unwrap();
    let ask = |record: &RequestRecord| wire::GenerateRequest { record: pack(record).unwrap(), epoch: 1 };
    let mut stream = client.generate(ask(&record(3, 20, 30))).await.unwrap().into_inner();
    let mut tokens = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        match unpack(&reply.event, "event").unwrap() {
            GenerateEvent::Token(sampled) => tokens.push(sampled.token),
            last => assert_eq!(last, GenerateEvent::Finished(Finish::Length)),
        }
    }
    assert_eq!(tokens, undisturbed(&record(3, 20, 30)));

    world.worker.control.delay_ms.store(20, Ordering::SeqCst);
    let mut stream = client.generate(ask(&record(4, 20, 400))).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    world.idle().await;

    let mut bad = record(5, 3, 3);
    bad.sampling.top_p = f32::NAN;
    let mut stream = client.generate(ask(&bad)).await.unwrap().into_inner();
    let reply = stream.message().await.unwrap().unwrap();
    let GenerateEvent::Refused(refusal) = unpack(&reply.event, "event").unwrap() else { panic!("served") };
    assert_eq!(refusal.param.as_deref(), Some("top_p"));

    let garbage = wire::GenerateRequest { record: bytes::Bytes::from_static(&[255; 40]), epoch: 1 };
    assert_eq!(client.generate(garbage).await.unwrap_err().code(), Code::InvalidArgument);
    let mut other = record(6, 3, 3);
    other.model = "another".into();
    assert_eq!(client.generate(ask(&other)).await.unwrap_err().code(), Code::FailedPrecondition);
}

//! The generator against drivers that die, hang, lie low and refuse.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use caravan_core::ids::{PipelineId, WorkerId};
use caravan_core::plan::{Plan, Slice, Stage};
use caravan_core::request::{Finish, Sampled, Sampling};
use futures::future::BoxFuture;

use super::link::Events;
use super::*;

const LENGTH: usize = 12;

#[derive(Clone, Debug)]
enum End {
    Finish,
    Interrupted,
    /// The stream just ends, as when the driver's process dies.
    Dies,
    Hangs,
    Refuses(Refusal),
}

#[derive(Clone, Debug)]
enum Act {
    /// Gives so many tokens, then ends.
    Gives(usize, End),
    Lost,
    NeverAnswers,
}

/// One token of the answer: known by its place alone, so that a repeat or a gap shows.
fn token(place: usize) -> u32 {
    (place * 7 + 3) as u32
}

fn answer() -> Vec<u32> {
    (0..LENGTH).map(token).collect()
}

#[derive(Default)]
struct FakeLink {
    script: Mutex<VecDeque<Act>>,
    /// Driver, epoch and number of emitted tokens of each submission.
    submissions: Mutex<Vec<(u64, u64, usize)>>,
    /// Streams that nobody dropped yet.
    live: Arc<AtomicUsize>,
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Link for FakeLink {
    fn submit(
        &self,
        driver: CoordinatorId,
        epoch: Epoch,
        record: RequestRecord,
    ) -> BoxFuture<'static, Submitted> {
        assert_eq!(record.emitted, answer()[..record.emitted.len()], "it forgot or made up tokens");
        self.submissions.lock().unwrap().push((driver.0, epoch.0, record.emitted.len()));
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Gives(LENGTH, End::Finish));
        self.live.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(self.live.clone());
        Box::pin(async move {
            match act {
                Act::Lost => Submitted::Lost("not here".into()),
                Act::NeverAnswers => {
                    let _alive = alive;
                    std::future::pending().await
                }
                Act::Gives(0, End::Refuses(refusal)) => Submitted::Refused(refusal),
                Act::Gives(count, end) => Submitted::Events(events(record.emitted.len(), count, end, alive)),
            }
        })
    }
}

fn events(from: usize, count: usize, end: End, alive: Alive) -> Events {
    let until = (from + count).min(LENGTH);
    let tokens = (from..until)
        .map(|place| GenerateEvent::Token(Sampled { token: token(place), logprob: None, top: Vec::new() }));
    let last: Vec<GenerateEvent> = match &end {
        End::Finish => vec![GenerateEvent::Finished(Finish::Length)],
        End::Interrupted => vec![GenerateEvent::Interrupted],
        End::Refuses(refusal) => vec![GenerateEvent::Refused(refusal.clone())],
        End::Dies | End::Hangs => Vec::new(),
    };
    let given = futures::stream::iter(tokens.chain(last).collect::<Vec<_>>());
    let all: Events = if matches!(end, End::Hangs) {
        Box::pin(given.chain(futures::stream::pending()))
    } else {
        Box::pin(given)
    };
    Box::pin(all.map(move |event| {
        let _ = &alive;
        event
    }))
}

struct World {
    state: watch::Sender<Arc<ClusterState>>,
    link: Arc<FakeLink>,
    generator: Generator,
}

fn world(script: impl IntoIterator<Item = Act>) -> World {
    let mut state = ClusterState::default();
    let toy = crate::driver::toy::spec();
    state.models.insert(toy.name.clone(), toy);
    let (state, receiver) = watch::channel(Arc::new(state));
    let link = Arc::new(FakeLink { script: Mutex::new(script.into_iter().collect()), ..FakeLink::default() });
    World { generator: Generator::with_link(receiver, link.clone()), state, link }
}

impl World {
    fn plan(&self, epoch: u64, driver: u64, ready: bool) {
        let pipeline = Pipeline {
            id: PipelineId("toy/0".into()),
            model: "toy".into(),
            driver: CoordinatorId(driver),
            stages: Vec::new(),
            kv_pages: 1,
            ready,
            predicted_tokens_per_s: 1.0,
        };
        let plan = Plan { epoch: Epoch(epoch), pipelines: vec![pipeline] };
        self.state.send_modify(|state| Arc::make_mut(state).plan = plan);
    }

    /// One pipeline for each of `numerics`, of a worker of its own; drivers 1, 2, ….
    fn plan_of(&self, epoch: u64, numerics: &[&str]) {
        let toy = crate::driver::toy::FakeCluster::new(([127, 0, 0, 1], 1).into());
        let worker = toy.state.borrow().workers.values().next().unwrap().clone();
        self.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.plan = Plan { epoch: Epoch(epoch), pipelines: Vec::new() };
            for (i, numerics) in numerics.iter().enumerate() {
                let id = WorkerId(format!("w{i}"));
                let mut worker = worker.clone();
                worker.profile.numerics = (*numerics).to_owned();
                state.workers.insert(id.clone(), worker);
                state.plan.pipelines.push(Pipeline {
                    id: PipelineId(format!("toy/{i}")),
                    model: "toy".into(),
                    driver: CoordinatorId(i as u64 + 1),
                    stages: vec![Stage { worker: id, incarnation: 1, slice: Slice { first: 0, end: 3 } }],
                    kv_pages: 1,
                    ready: true,
                    predicted_tokens_per_s: 1.0,
                });
            }
        });
    }

    fn submissions(&self) -> Vec<(u64, u64, usize)> {
        self.link.submissions.lock().unwrap().clone()
    }
}

fn record() -> RequestRecord {
    RequestRecord {
        id: "request".into(),
        model: "toy".into(),
        prompt: vec![1],
        emitted: Vec::new(),
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        max_tokens: LENGTH as u32,
        accepted_ms: 0,
        deadline_ms: now_ms() + 20_000,
    }
}

async fn next(stream: &mut GenerateStream) -> Option<GenerateEvent> {
    tokio::time::timeout(Duration::from_secs(10), stream.next()).await.expect("a hang")
}

async fn tokens(stream: &mut GenerateStream, count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let Some(GenerateEvent::Token(sampled)) = next(stream).await else { panic!("no token") };
        tokens.push(sampled.token);
    }
    tokens
}

async fn whole(stream: &mut GenerateStream) {
    assert_eq!(tokens(stream, LENGTH).await, answer());
    assert_eq!(next(stream).await, Some(GenerateEvent::Finished(Finish::Length)));
    assert_eq!(next(stream).await, None);
}

async fn refused(stream: &mut GenerateStream) -> Refusal {
    let Some(GenerateEvent::Refused(refusal)) = next(stream).await else { panic!("not refused") };
    assert_eq!(next(stream).await, None);
    refusal
}

async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..300 {
        if is_true() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn full() -> Refusal {
    Refusal::cluster("queue_full", 20, "full")
}

/// Nodes of two builds in one cluster, as while it is brought from one to the other.
#[tokio::test]
async fn an_answer_never_goes_on_in_other_numerics() {
    let world = world([Act::Gives(4, End::Hangs)]);
    world.plan_of(1, &["old"]);
    let mut stream = world.generator.generate(record());
    tokens(&mut stream, 4).await;
    world.plan_of(2, &["new"]);
    let refusal = refused(&mut stream).await;
    assert_eq!(refusal.code, "numerics_changed");
    assert!(refusal.message.contains("old") && refusal.message.contains("new"), "{}", refusal.message);
    assert_eq!(world.submissions().len(), 1, "nobody was asked to go on");
    // One that has not begun takes what there is.
    whole(&mut world.generator.generate(record())).await;
}

#[tokio::test]
async fn of_several_pipelines_one_of_the_same_numerics_goes_on() {
    for numerics in [["old", "new", "new"], ["new", "old", "new"], ["new", "new", "old"]] {
        let world = world([Act::Gives(4, End::Hangs)]);
        world.plan_of(1, &["old"]);
        let mut stream = world.generator.generate(record());
        tokens(&mut stream, 4).await;
        world.plan_of(2, &numerics);
        assert_eq!(tokens(&mut stream, LENGTH - 4).await, answer()[4..]);
        let driver = numerics.iter().position(|numerics| *numerics == "old").unwrap() as u64 + 1;
        assert_eq!(world.submissions()[1], (driver, 2, 4));
    }
}

#[tokio::test]
async fn a_driver_killed_at_any_token_changes_nothing() {
    for end in
        [End::Interrupted, End::Dies, End::Refuses(full()), End::Refuses(Refusal::cluster("x", 1, "x"))]
    {
        for at in 0..=LENGTH {
            if at == 0 && matches!(end, End::Refuses(_)) {
                continue;
            }
            for again in [0, at] {
                let script = [Act::Gives(at, end.clone()), Act::Lost, Act::Gives(again, end.clone())];
                let world = world(script);
                world.plan(1, 1, true);
                whole(&mut world.generator.generate(record())).await;
                assert_eq!(world.submissions()[1], (1, 1, at));
            }
        }
    }
}

#[tokio::test]
async fn it_waits_for_the_next_ready_plan_and_goes_there() {
    let world = world([Act::Gives(5, End::Interrupted), Act::Lost, Act::Lost]);
    world.plan(3, 1, true);
    let mut stream = world.generator.generate(record());
    let first = tokens(&mut stream, 5).await;
    world.plan(4, 2, false);
    tokio::time::sleep(Duration::from_millis(150)).await;
    let before = world.submissions().len();
    world.plan(4, 2, true);
    let rest = tokens(&mut stream, LENGTH - 5).await;
    assert_eq!([first, rest].concat(), answer());
    assert_eq!(next(&mut stream).await, Some(GenerateEvent::Finished(Finish::Length)));
    assert!(world.submissions()[before..].contains(&(2, 4, 5)), "{:?}", world.submissions());
}

#[tokio::test]
async fn a_hanging_driver_is_left_for_a_ready_one_at_any_token() {
    for at in 0..LENGTH {
        let world = world([Act::Gives(at, End::Hangs)]);
        world.plan(1, 1, true);
        let mut stream = world.generator.generate(record());
        let first = tokens(&mut stream, at).await;
        eventually("submitted", || !world.submissions().is_empty()).await;
        // Deposed, but nobody else is ready: the old stream is kept.
        world.plan(2, 2, false);
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!((world.submissions().len(), world.link.live.load(Ordering::SeqCst)), (1, 1));
        world.plan(2, 2, true);
        let rest = tokens(&mut stream, LENGTH - at).await;
        assert_eq!([first, rest].concat(), answer());
        assert_eq!(world.submissions()[1], (2, 2, at));
    }
}

#[tokio::test]
async fn a_driver_that_never_answers_is_left_too() {
    let world = world([Act::NeverAnswers]);
    world.plan(1, 1, true);
    let mut stream = world.generator.generate(record());
    eventually("submitted", || !world.submissions().is_empty()).await;
    world.plan(2, 1, true);
    whole(&mut stream).await;
}

#[tokio::test]
async fn a_full_queue_is_the_clients_only_before_its_record_was_accepted() {
    let world1 = world([Act::Gives(0, End::Refuses(full()))]);
    world1.plan(1, 1, true);
    assert_eq!(refused(&mut world1.generator.generate(record())).await.code, "queue_full");
    // Afterwards it is waited out.
    let full = Act::Gives(0, End::Refuses(full()));
    let world2 = world([Act::Gives(0, End::Interrupted), full.clone(), full.clone(), full]);
    world2.plan(1, 1, true);
    whole(&mut world2.generator.generate(record())).await;
    assert_eq!(world2.submissions().len(), 5);
}

#[tokio::test]
async fn refusals_that_no_retry_mends_are_passed_on() {
    let mut unknown = record();
    unknown.model = "unheard".into();
    let world1 = world([]);
    let refusal = refused(&mut world1.generator.generate(unknown)).await;
    assert_eq!((refusal.code.as_str(), refusal.fault), ("model_not_found", Fault::Client));
    for refusal in [Refusal::client("bad", "prompt", "bad"), Refusal::operator("small", "small"), late()] {
        let world = world([Act::Gives(2, End::Refuses(refusal.clone()))]);
        world.plan(1, 1, true);
        let mut stream = world.generator.generate(record());
        assert_eq!(tokens(&mut stream, 2).await, answer()[..2]);
        assert_eq!(refused(&mut stream).await, refusal);
    }
}

#[tokio::test]
async fn the_deadline_ends_every_wait() {
    let soon = || RequestRecord { deadline_ms: now_ms() + 100, ..record() };
    // No ready pipeline; a hanging driver; a queue that stays full.
    let waits = world([]);
    waits.plan(1, 1, false);
    let hangs = world([Act::Gives(3, End::Hangs)]);
    hangs.plan(1, 1, true);
    let lost = world(vec![Act::Lost; 1000]);
    lost.plan(1, 1, true);
    for (world, given) in [(waits, 0), (hangs, 3), (lost, 0)] {
        let mut stream = world.generator.generate(soon());
        tokens(&mut stream, given).await;
        let refusal = refused(&mut stream).await;
        assert_eq!((refusal.code.as_str(), refusal.fault), ("deadline", Fault::Cluster));
        assert_eq!(world.link.live.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn dropping_the_stream_cancels_at_the_driver() {
    let world = world([Act::Gives(3, End::Hangs)]);
    world.plan(1, 1, true);
    let mut stream = world.generator.generate(record());
    tokens(&mut stream, 3).await;
    assert_eq!(world.link.live.load(Ordering::SeqCst), 1);
    drop(stream);
    eventually("cancelled", || world.link.live.load(Ordering::SeqCst) == 0).await;
    assert_eq!(world.submissions().len(), 1);
}

#[tokio::test]
async fn a_wait_for_a_pipeline_loses_nothing() {
    let world = world([]);
    let mut stream = world.generator.generate(record());
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.plan(1, 1, false);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(world.submissions().is_empty());
    world.plan(1, 1, true);
    whole(&mut stream).await;
}

/// Two coordinators with real drivers, gRPC between them, one toy worker: the driver changes sides
/// in the middle of answers asked at one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_go_on_over_changes_of_driver() {
    use crate::driver::toy;

    let worker = toy::start_worker().await;
    worker.control.delay_ms.store(2, Ordering::SeqCst);
    let cluster = toy::FakeCluster::new(worker.addr);
    let mut sides = Vec::new();
    for me in [1, 2] {
        sides.push(toy::start_drivers(CoordinatorId(me), &cluster, Duration::from_secs(30)).await);
    }
    let state = cluster.state.subscribe();
    let links = Links::new(CoordinatorId(2), state.clone(), sides[1].0.clone());
    let generator = Generator::with_link(state, Arc::new(links));
    let records: Vec<RequestRecord> = (0..6).map(|seed| toy::record(seed, 10, 60 + seed as u32)).collect();
    let answers = records.iter().cloned().map(|record| {
        let mut stream = generator.generate(record);
        tokio::spawn(async move {
            let mut tokens = Vec::new();
            loop {
                match next(&mut stream).await {
                    Some(GenerateEvent::Token(sampled)) => tokens.push(sampled.token),
                    last => return (tokens, last),
                }
            }
        })
    });
    let answers: Vec<_> = answers.collect();
    for epoch in 1..=6 {
        let driver = 1 + epoch % 2;
        *worker.driver.lock().unwrap() = sides[driver as usize - 1].1;
        cluster.plan(epoch, CoordinatorId(driver));
        cluster.ready(epoch).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    for (record, answer) in records.iter().zip(answers) {
        let (tokens, last) = answer.await.unwrap();
        assert_eq!(tokens, toy::undisturbed(record));
        assert_eq!(last, Some(GenerateEvent::Finished(Finish::Length)));
    }
    let driven = |side: usize| sides[side].0.stats().iter().map(|(_, stats)| stats.running).sum::<usize>();
    eventually("nothing is left", || driven(0) + driven(1) == 0).await;
}

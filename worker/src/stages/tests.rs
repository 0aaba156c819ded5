//! Epochs, claims and ends of stages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn keys(stages: &[u32]) -> Vec<(String, u32)> {
    stages.iter().map(|stage| ("m/0".to_owned(), *stage)).collect()
}

#[test]
fn only_a_newer_epoch_is_entered_and_it_ends_the_older_one() {
    let stages = Stages::default();
    let first = stages.begin(3, &keys(&[0, 1])).unwrap();
    assert!(stages.begin(3, &keys(&[0])).is_none(), "the same epoch again");
    assert!(stages.begin(2, &keys(&[0])).is_none(), "an older epoch");
    assert_eq!(stages.statuses().len(), 2);
    assert!(first[0].end().is_none());

    stages.begin(4, &keys(&[1])).unwrap();
    assert_eq!(first[0].end().unwrap().cause, Cause::Overtaken);
    assert_eq!(first[1].end().unwrap().status().code(), tonic::Code::FailedPrecondition);
    assert!(matches!(stages.find(3, "m/0", 0), Found::Older(4)));
    assert!(matches!(stages.find(5, "m/0", 1), Found::Newer));
    assert!(matches!(stages.find(4, "m/0", 0), Found::Nothing));
    assert!(matches!(stages.find(4, "m/0", 1), Found::Stage(_)));
}

#[test]
fn fencing_counts() {
    let stages = Stages::default();
    let status = stages.fence("an edge", 1, 2);
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert_eq!(stages.fenced(), 1);
}

#[test]
fn a_place_is_free_again_until_it_was_established() {
    let cell = Arc::new(StageCell::new(1, "m/0", 0));
    let claim = cell.claim().unwrap();
    assert!(cell.claim().is_none());
    drop(claim);
    let mut claim = cell.claim().unwrap();
    claim.establish();
    drop(claim);
    assert_eq!(cell.end().unwrap().cause, Cause::Broken);
}

#[test]
fn the_first_reason_stays_and_broken_is_not_failed() {
    let cell = StageCell::new(1, "m/0", 0);
    cell.set_phase(Phase::Loading(0.5));
    assert_eq!((cell.status().state.as_str(), cell.status().progress), ("loading", 0.5));
    cell.finish(Cause::Unfit, "bad tensor");
    cell.finish(Cause::Broken, "edge");
    assert_eq!((cell.status().state.as_str(), cell.status().error.as_str()), ("failed", "bad tensor"));

    let cell = StageCell::new(1, "m/0", 0);
    cell.make_ready(mpsc::channel(1).0);
    assert_eq!(cell.status().state, "ready");
    cell.finish(Cause::Broken, "edge");
    assert_eq!((cell.status().state.as_str(), cell.status().error.as_str()), ("connecting", "edge"));
    assert!(cell.out().is_none(), "nothing may be sent any more");
}

#[tokio::test]
async fn waiters_are_released_by_ready_and_by_the_end() {
    let cell = Arc::new(StageCell::new(1, "m/0", 0));
    let waiter = tokio::spawn({
        let cell = cell.clone();
        async move { cell.ready().await.is_ok() }
    });
    cell.make_ready(mpsc::channel(1).0);
    assert!(waiter.await.unwrap());

    let cell = Arc::new(StageCell::new(1, "m/0", 0));
    let waiter = tokio::spawn({
        let cell = cell.clone();
        async move { cell.ready().await.err() }
    });
    cell.finish(Cause::Overtaken, "newer");
    assert_eq!(waiter.await.unwrap().unwrap().cause, Cause::Overtaken);
    assert_eq!(cell.ended().await.why, "newer");
}

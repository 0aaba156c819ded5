//! The log store against the library's own suite, and what that suite does not ask.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::testkit::{command, entry, group, large, log_id};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader};
use tempfile::TempDir;

use super::state_machine::StateMachine;
use super::store::{OpenError, Store};
use super::tables::Tables;
use super::types::*;

struct Builder;

impl StoreBuilder<TypeConfig, Store, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Store, StateMachine), Failure> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("log"), 1).unwrap();
        let tables = Tables::open(&dir.path().join("state"), dir.path(), 1).unwrap();
        let (machine, _) = StateMachine::open(tables).await?;
        Ok((dir, store, machine))
    }
}

#[test]
fn passes_the_suite_of_the_library() {
    Suite::test_all(Builder).unwrap();
}

#[tokio::test]
async fn a_reopened_log_holds_vote_entries_and_committed_index() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let mut store = Store::open(&file, 1).unwrap();
    store.save_vote(&Vote::new(3, 1)).await.unwrap();
    store.blocking_append((0..10).map(|index| entry(2, index))).await.unwrap();
    store.truncate(log_id(2, 8)).await.unwrap();
    store.purge(log_id(2, 3)).await.unwrap();
    store.save_committed(Some(log_id(2, 6))).await.unwrap();
    store.close().await.unwrap();
    assert!(store.try_get_log_entries(0..10).await.is_err(), "closed");

    let mut store = Store::open(&file, 1).unwrap();
    assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(3, 1)));
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(2, 6)));
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(2, 3)));
    assert_eq!(state.last_log_id, Some(log_id(2, 7)));
    let entries = store.try_get_log_entries(..).await.unwrap();
    let expected: Vec<Entry> = (4..8).map(|index| entry(2, index)).collect();
    assert_eq!(entries, expected);
}

#[tokio::test]
async fn a_batch_to_send_is_bounded_in_bytes_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("log"), 1).unwrap();
    let large = |index| Entry {
        log_id: log_id(1, index),
        payload: EntryPayload::Normal(group(large(index, 600 << 10))),
    };
    store.blocking_append((0..5).map(large)).await.unwrap();
    // 600 KiB each and 1 MiB at most: the second one crosses the bound.
    assert_eq!(store.limited_get_log_entries(0, 5).await.unwrap().len(), 2);
    assert_eq!(store.limited_get_log_entries(4, 5).await.unwrap().len(), 1);
    assert_eq!(store.entries(0..5, 1).await.unwrap().len(), 1);
    assert_eq!(store.entries(.., usize::MAX).await.unwrap().len(), 5);
    assert!(store.try_get_log_entries(3..3).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_data_directory_of_another_coordinator_or_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let store = Store::open(&file, 1).unwrap();
    assert!(matches!(Store::open(&file, 1), Err(OpenError::Redb(_))), "already open");
    store.close().await.unwrap();
    let error = Store::open(&file, 2).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::OtherNode { found: 1, expected: 2 }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_log_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    std::fs::write(&file, vec![7u8; 100_000]).unwrap();
    let error = Store::open(&file, 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("can't be opened"), "{error}");
}

#[test]
fn everything_that_travels_survives_its_encoding() {
    fn same<T: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug>(value: T) {
        let text = format!("{value:?}");
        let envelope = Envelope { from: 1, to: 2, body: value };
        let bytes = caravan_proto::pack(&envelope).unwrap();
        let back: Envelope<T> = caravan_proto::unpack(&bytes, "data").unwrap();
        assert_eq!(format!("{:?}", back.body), text);
        assert!(caravan_proto::unpack::<Envelope<T>>(&bytes[..bytes.len() - 1], "data").is_err());
    }
    let members = openraft::Membership::<u64, openraft::BasicNode>::new(
        vec![[1, 2].into(), [2, 3].into()],
        std::collections::BTreeMap::from([(4, openraft::BasicNode::new("host:1"))]),
    );
    let joint = Entry { log_id: log_id(1, 1), payload: EntryPayload::Membership(members.clone()) };
    let blank = Entry { log_id: log_id(1, 2), payload: EntryPayload::Blank };
    same(AppendRequest {
        vote: Vote::new_committed(4, 2),
        prev_log_id: Some(log_id(1, 0)),
        entries: vec![joint, blank, entry(2, 3)],
        leader_commit: None,
    });
    same(AppendResponse::Success);
    same(AppendResponse::PartialSuccess(Some(log_id(1, 1))));
    same(AppendResponse::Conflict);
    same(AppendResponse::HigherVote(Vote::new(4, 2)));
    same(VoteRequest::new(Vote::new(4, 2), Some(log_id(3, 9))));
    same(VoteResponse::new(Vote::new(4, 2), None, true));
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(3, 9)),
        last_membership: StoredMembership::new(Some(log_id(1, 1)), members),
        snapshot_id: "9-abc".to_owned(),
    };
    let vote = Vote::new(4, 2);
    same(ChunkRequest { vote, meta, offset: 7, data: vec![1, 2, 3], done: false });
    let mismatch =
        openraft::error::SnapshotMismatch { expect: ("9-abc", 0).into(), got: ("9-abc", 5).into() };
    same::<Result<ChunkResponse, openraft::error::InstallSnapshotError>>(Err(mismatch.into()));
    same::<Result<ChunkResponse, openraft::error::InstallSnapshotError>>(Ok(ChunkResponse { vote }));
    same(Forwarded::NotLeader);
    same(Proposal::Cluster(command(7)));
}

//! The applied state's file: snapshots, power cuts, what a restart finds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use caravan_core::store::{MemoryRows, Scan, Table, read};
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder};
use tempfile::TempDir;

use super::crash_tests::{Backend, disk};
use super::state_machine::StateMachine;
use super::tables::{Body, Tables, View};
use super::testkit::{Random, accept, answered, entry, log_id, store_entry};
use super::types::*;

async fn machine(file: &Path) -> (Tables, StateMachine) {
    let tables = Tables::open(file, file.parent().unwrap(), 1).unwrap();
    let (machine, _) = StateMachine::open(tables.clone()).await.unwrap();
    (tables, machine)
}

async fn fresh() -> (TempDir, Tables, StateMachine) {
    let dir = tempfile::tempdir().unwrap();
    let (tables, machine) = machine(&dir.path().join("state")).await;
    (dir, tables, machine)
}

/// Everything in the rows, to compare.
pub(super) fn all_rows(view: &View) -> MemoryRows {
    use caravan_core::store::{Key, Look, Rows};
    let mut rows = MemoryRows::default();
    for table in Table::ALL {
        for (key, value) in view.scan(table, &Scan::of(Key::new(), usize::MAX)).unwrap() {
            rows.put(table, &key, &value).unwrap();
        }
    }
    rows
}

async fn rows(tables: &Tables) -> MemoryRows {
    all_rows(&tables.view().await.unwrap())
}

/// Some entries of both kinds.
fn entries(from: u64, count: u64) -> Vec<Entry> {
    let one = |index: u64| match index % 3 {
        0 => entry(1, index),
        1 => store_entry(1, index, vec![accept(index)]),
        _ => store_entry(1, index, vec![answered(index - 1), accept(100_000 + index)]),
    };
    (from..from + count).map(one).collect()
}

#[tokio::test]
async fn a_snapshot_carries_every_row_and_is_refused_when_damaged() {
    let (_dir, tables, mut leader) = fresh().await;
    leader.apply(entries(0, 30)).await.unwrap();
    leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    let mut file = tables.to_file(*snapshot.snapshot).await.unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();

    let (dir, others, mut other) = fresh().await;
    other.apply(entries(0, 4)).await.unwrap();
    let before = rows(&others).await;
    let mut random = Random(7);
    for _ in 0..20 {
        let at = random.below(bytes.len() as u64);
        let mut damaged = tempfile::tempfile_in(dir.path()).unwrap();
        damaged.write_all(&bytes).unwrap();
        damaged.seek(SeekFrom::Start(at)).unwrap();
        damaged.write_all(&[bytes[at as usize] ^ 1]).unwrap();
        let damaged = Box::new(Body::File(tokio::fs::File::from_std(damaged)));
        assert!(other.install_snapshot(&snapshot.meta, damaged).await.is_err(), "byte {at}");
        assert_eq!(rows(&others).await, before, "byte {at}");
        assert_eq!(other.applied_state().await.unwrap().0, Some(log_id(1, 3)));
    }
    let whole = Box::new(Body::File(tokio::fs::File::from_std(file)));
    other.install_snapshot(&snapshot.meta, whole).await.unwrap();
    assert_eq!(rows(&others).await, rows(&tables).await);
    assert_eq!(other.applied_state().await.unwrap(), leader.applied_state().await.unwrap());
    let states = (tables.position().await.unwrap().state, others.position().await.unwrap().state);
    assert_eq!(states.0, states.1);
}

#[tokio::test]
async fn a_snapshot_asked_for_earlier_never_replaces_a_newer_one() {
    let (_dir, tables, mut machine) = fresh().await;
    machine.apply([entry(1, 0)]).await.unwrap();
    let mut slow = machine.get_snapshot_builder().await;
    machine.apply([entry(1, 1)]).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    slow.build_snapshot().await.unwrap();
    assert_eq!(tables.kept().await.unwrap().unwrap().last_log_id, Some(log_id(1, 1)));
}

#[tokio::test]
async fn a_snapshot_on_its_way_leaves_no_file() {
    let (dir, tables, mut machine) = fresh().await;
    machine.apply(entries(0, 9)).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    let _file = tables.to_file(*snapshot.snapshot).await.unwrap();
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["state"]);
}

#[tokio::test]
async fn a_reopened_file_stands_where_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    let (tables, mut open) = machine(&file).await;
    open.apply(entries(0, 30)).await.unwrap();
    let (before, position) = (rows(&tables).await, open.applied_state().await.unwrap());
    tables.close().await.unwrap();
    assert!(tables.position().await.is_err(), "closed");
    drop((tables, open));
    let (tables, mut open) = machine(&file).await;
    assert_eq!(open.applied_state().await.unwrap(), position);
    assert_eq!(rows(&tables).await, before);
    assert!(Tables::open(&dir.path().join("state"), dir.path(), 1).is_err(), "open already");
    tables.close().await.unwrap();
    assert!(Tables::open(&file, dir.path(), 2).is_err(), "another coordinator's");
}

fn on(backend: Backend, folder: &Path) -> Tables {
    let database = redb::Builder::new().set_cache_size(1 << 20).create_with_backend(backend);
    Tables::with_database(database.unwrap(), folder, 1).unwrap()
}

/// After a power cut the file stands at *some* position at or after the last one it promised, with
/// exactly the rows of that position, and the log after it brings it to the end.
#[tokio::test]
async fn after_a_power_cut_at_any_write_rows_and_position_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    let all = entries(0, 60);
    let mut expected = vec![MemoryRows::default()];
    {
        let tables = on(disk(Vec::new(), 1), folder.path());
        let (mut machine, _) = StateMachine::open(tables.clone()).await.unwrap();
        for entry in &all {
            machine.apply([entry.clone()]).await.unwrap();
            expected.push(rows(&tables).await);
        }
    }
    let backend = disk(Vec::new(), 0x51ed);
    let tables = on(backend.clone(), folder.path());
    let (mut machine, _) = StateMachine::open(tables.clone()).await.unwrap();
    backend.0.lock().unwrap().image_every = 4;
    let progress = backend.0.lock().unwrap().progress.clone();
    for (number, entry) in all.iter().enumerate() {
        machine.apply([entry.clone()]).await.unwrap();
        if number % 7 == 6 {
            machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
            progress.acknowledged.store(number as u64 + 1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let images = std::mem::take(&mut backend.0.lock().unwrap().images);
    assert!(images.len() > 50, "only {} images", images.len());
    for (number, image) in images.into_iter().enumerate() {
        let tables = on(disk(image.bytes, number as u64 + 1), folder.path());
        let (mut machine, _) = StateMachine::open(tables.clone()).await.unwrap();
        let applied = machine.applied_state().await.unwrap().0.map_or(0, |id| id.index as usize + 1);
        assert!(applied as u64 >= image.acknowledged, "image {number}: {applied} < {}", image.acknowledged);
        assert_eq!(rows(&tables).await, expected[applied], "image {number} at {applied}");
        machine.apply(all[applied..].to_vec()).await.unwrap();
        assert_eq!(rows(&tables).await, expected[all.len()], "image {number}, the log applied");
    }
}

#[tokio::test]
async fn a_full_disk_stops_the_node_and_loses_nothing_it_promised() {
    let folder = tempfile::tempdir().unwrap();
    let backend = disk(Vec::new(), 3);
    let tables = on(backend.clone(), folder.path());
    let (mut machine, _) = StateMachine::open(tables.clone()).await.unwrap();
    machine.apply(entries(0, 30)).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    {
        let mut disk = backend.0.lock().unwrap();
        disk.room = disk.now.len();
    }
    let mut next = 30;
    let failed = loop {
        let applied = machine.apply(entries(next, 300)).await;
        let kept = match applied {
            Ok(_) => machine.get_snapshot_builder().await.build_snapshot().await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            break error;
        }
        next += 300;
        assert!(next < 1_000_000, "the disk never fills");
    };
    assert!(!failed.to_string().is_empty());
    let bytes = backend.0.lock().unwrap().crash();
    let tables = on(disk(bytes, 4), folder.path());
    let (mut machine, _) = StateMachine::open(tables).await.unwrap();
    assert!(machine.applied_state().await.unwrap().0 >= Some(log_id(1, next - 1)));
}

#[tokio::test]
async fn what_was_deleted_is_marked_for_compaction() {
    let (_dir, tables, mut machine) = fresh().await;
    machine.apply([store_entry(1, 0, vec![accept(0)]), store_entry(1, 1, vec![answered(0)])]).await.unwrap();
    assert_eq!(tables.position().await.unwrap().deleted, 0);
    let target = super::testkit::target(0);
    let delete = caravan_core::store::StoreCommand::DeleteResponse { target: target.clone() };
    machine.apply([store_entry(1, 2, vec![delete])]).await.unwrap();
    assert_eq!(tables.position().await.unwrap().deleted, 2);
    assert!(read::response(&tables.view().await.unwrap(), &target).unwrap().is_none());
    let payload = EntryPayload::Blank;
    machine.apply([Entry { log_id: log_id(1, 3), payload }]).await.unwrap();
    assert_eq!(tables.position().await.unwrap().deleted, 2);
}

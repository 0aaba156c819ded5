//! The log store on a disk that loses power, and on one that is full.
//!
//! The disk keeps apart what was synced and what was only written. A crash keeps the first and any
//! part of the second: whole writes in any choice, or torn ones.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use redb::StorageBackend;

use super::store::Store;
use super::testkit::{Random, entry, log_id};
use super::types::*;

enum Change {
    Len(usize),
    Bytes(usize, Vec<u8>),
}

pub(super) struct Image {
    pub bytes: Vec<u8>,
    pub acknowledged: u64,
    issued: u64,
}

pub(super) struct Disk {
    pub now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    syncs: u64,
    /// Bytes that still fit.
    pub room: usize,
    random: Random,
    pub images: Vec<Image>,
    /// One image in so many calls; 0 for none.
    pub image_every: u64,
    pub progress: Arc<Progress>,
}

#[derive(Default)]
pub(super) struct Progress {
    issued: AtomicU64,
    pub acknowledged: AtomicU64,
}

impl Disk {
    /// What a power cut right now could leave.
    pub fn crash(&mut self) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        for change in &self.unsynced {
            if self.random.below(2) == 0 {
                continue;
            }
            match change {
                Change::Len(len) => bytes.resize(*len, 0),
                Change::Bytes(at, data) => {
                    let torn = self.random.below(4) == 0;
                    let len =
                        if torn { self.random.below(data.len() as u64 + 1) as usize } else { data.len() };
                    if bytes.len() < at + len {
                        bytes.resize(at + len, 0);
                    }
                    bytes[*at..at + len].copy_from_slice(&data[..len]);
                }
            }
        }
        bytes
    }

    fn maybe_image(&mut self) {
        if self.image_every > 0 && self.random.below(self.image_every) == 0 {
            // Acknowledgements first: what comes after may or may not be in the image.
            let acknowledged = self.progress.acknowledged.load(Ordering::SeqCst);
            let bytes = self.crash();
            let issued = self.progress.issued.load(Ordering::SeqCst);
            self.images.push(Image { bytes, acknowledged, issued });
        }
    }
}

#[derive(Clone)]
pub(super) struct Backend(pub Arc<Mutex<Disk>>);

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let at = offset as usize;
        let from = disk.now.get(at..at + out.len());
        out.copy_from_slice(from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.maybe_image();
        if len as usize > disk.room {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        disk.now.resize(len as usize, 0);
        disk.unsynced.push(Change::Len(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.maybe_image();
        disk.synced = disk.now.clone();
        disk.unsynced.clear();
        disk.syncs += 1;
        disk.maybe_image();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.maybe_image();
        let at = offset as usize;
        disk.now[at..at + data.len()].copy_from_slice(data);
        disk.unsynced.push(Change::Bytes(at, data.to_vec()));
        Ok(())
    }
}

pub(super) fn disk(bytes: Vec<u8>, seed: u64) -> Backend {
    Backend(Arc::new(Mutex::new(Disk {
        now: bytes.clone(),
        synced: bytes,
        unsynced: Vec::new(),
        syncs: 0,
        room: usize::MAX,
        random: Random(seed),
        images: Vec::new(),
        image_every: 0,
        progress: Arc::default(),
    })))
}

fn open(backend: Backend) -> Store {
    let database = redb::Builder::new().set_cache_size(1 << 20).create_with_backend(backend);
    Store::with_database(database.unwrap(), 1).unwrap()
}

/// What the log must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
}

async fn recovered(store: &mut Store) -> Model {
    let entries = store.entries(.., usize::MAX).await.unwrap();
    let state = store.get_log_state().await.unwrap();
    let last = entries.last().map(|entry| entry.log_id).or(state.last_purged_log_id);
    assert_eq!(state.last_log_id, last);
    Model {
        entries: entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
        vote: store.read_vote().await.unwrap(),
        purged: state.last_purged_log_id,
    }
}

/// Runs random writes; the model after each.
async fn run(store: &mut Store, progress: &Progress, random: &mut Random, steps: u64) -> Vec<Model> {
    let mut models = vec![Model::default()];
    let (mut next, mut term) = (0, 1);
    for _ in 0..steps {
        let mut model = models.last().unwrap().clone();
        let first = model.purged.map_or(0, |id| id.index + 1);
        let choice = random.below(10);
        progress.issued.fetch_add(1, Ordering::SeqCst);
        match choice {
            0 => {
                term += 1;
                model.vote = Some(Vote::new(term, 1));
                store.save_vote(&Vote::new(term, 1)).await.unwrap();
            }
            1 if next > first + 3 => {
                next -= 1 + random.below(2);
                model.entries.split_off(&next);
                store.truncate(log_id(term, next)).await.unwrap();
            }
            2 if next > first + 8 => {
                let upto = model.entries[&(first + random.below(4))].log_id;
                model.entries = model.entries.split_off(&(upto.index + 1));
                model.purged = Some(upto);
                store.purge(upto).await.unwrap();
            }
            _ => {
                let count = 1 + random.below(5);
                let entries: Vec<Entry> = (next..next + count).map(|index| entry(term, index)).collect();
                next += count;
                model.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                store.blocking_append(entries).await.unwrap();
            }
        }
        progress.acknowledged.fetch_add(1, Ordering::SeqCst);
        models.push(model);
    }
    models
}

#[tokio::test]
async fn after_a_power_cut_at_any_moment_all_that_was_acknowledged_is_there() {
    for seed in 1..=4 {
        power_cuts(seed).await;
    }
}

async fn power_cuts(seed: u64) {
    let backend = disk(Vec::new(), 0x9e37_79b9 * seed);
    let mut store = open(backend.clone());
    let progress = backend.0.lock().unwrap().progress.clone();
    backend.0.lock().unwrap().image_every = 8;
    let models = run(&mut store, &progress, &mut Random(0x1234_5678 + seed), 150).await;
    let images = {
        let mut disk = backend.0.lock().unwrap();
        disk.image_every = 0;
        std::mem::take(&mut disk.images)
    };
    assert!(images.len() > 100, "only {} images", images.len());
    let mut unfinished = 0;
    for (number, image) in images.into_iter().enumerate() {
        let mut store = open(disk(image.bytes, 1 + number as u64));
        let found = recovered(&mut store).await;
        let may = &models[image.acknowledged as usize..=image.issued as usize];
        assert!(may.contains(&found), "image {number}: {found:?} is none of {may:?}");
        unfinished += u64::from(image.issued > image.acknowledged);
        // It must be usable too.
        let at = found.entries.keys().last().copied().or(found.purged.map(|id| id.index));
        store.blocking_append([entry(99, at.map_or(0, |at| at + 1))]).await.unwrap();
    }
    assert!(unfinished > 50, "only {unfinished} images in the middle of a write");
}

#[tokio::test]
async fn writes_queued_during_a_sync_share_the_next_one() {
    let backend = disk(Vec::new(), 1);
    let store = open(backend.clone());
    let before = backend.0.lock().unwrap().syncs;
    // Holding the disk stands for a slow sync: all of these queue up behind the first.
    let mut appends = Vec::new();
    {
        let _slow = backend.0.lock().unwrap();
        for index in 0..200 {
            let mut store = store.clone();
            let mut append = Box::pin(async move { store.blocking_append([entry(1, index)]).await });
            let started = append.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(started.is_pending());
            appends.push(append);
        }
        assert!(store.shared.memory().pending.len() >= 199, "nearly nothing is on disk yet");
    }
    // Readable while the writes are under way, wherever each entry is just now.
    assert_eq!(store.entries(.., usize::MAX).await.unwrap().len(), 200);
    for result in futures::future::join_all(appends).await {
        result.unwrap();
    }
    let syncs = backend.0.lock().unwrap().syncs - before;
    assert!(syncs < 20, "{syncs} syncs for 200 appends");
    assert!(store.shared.memory().pending.is_empty());
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_loses_nothing() {
    let backend = disk(Vec::new(), 1);
    let mut store = open(backend.clone());
    {
        let mut disk = backend.0.lock().unwrap();
        disk.room = disk.now.len();
    }
    let mut acknowledged = 0;
    let error = loop {
        let large: Vec<Entry> = (acknowledged..acknowledged + 100).map(|index| entry(1, index)).collect();
        match store.blocking_append(large).await {
            Ok(()) => acknowledged += 100,
            Err(error) => break error,
        }
        assert!(acknowledged < 10_000_000, "the disk never fills");
    };
    assert!(acknowledged > 0, "{error}");
    let vote = store.save_vote(&Vote::new(7, 1)).await;
    assert!(vote.is_err(), "nothing may be written after a failed write");
    backend.0.lock().unwrap().room = usize::MAX;
    assert!(store.save_vote(&Vote::new(7, 1)).await.is_err(), "not even when there is room again");

    let synced = backend.0.lock().unwrap().crash();
    let mut store = open(disk(synced, 2));
    let found = recovered(&mut store).await;
    assert!(found.entries.len() as u64 >= acknowledged);
    assert_eq!(found.vote, None);
}

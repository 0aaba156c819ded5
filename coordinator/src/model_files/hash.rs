//! Reads a model file with ordinary reads: its header whole, its tensors once to hash them.
//!
//! Must never hold more of a file in memory than its header and a few buffers.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, ensure};
use caravan_core::gguf::{Gguf, GgufError};
use caravan_core::ids::Digest;
use caravan_core::limits;

use super::source::{Part, Source};

/// Read first; most headers fit.
const FIRST_BYTES: u64 = 4 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// The bytes before the tensor data, and what they say. `file_bytes`: the file's length.
pub(super) fn read_header(path: &Path, file_bytes: u64) -> anyhow::Result<(Vec<u8>, Gguf)> {
    let mut file = File::open(path).context("it can't be opened")?;
    let mut bytes = Vec::new();
    let mut wanted = FIRST_BYTES;
    loop {
        let more = wanted.min(file_bytes).saturating_sub(bytes.len() as u64);
        let read = Read::by_ref(&mut file).take(more).read_to_end(&mut bytes)?;
        ensure!(read as u64 == more, "it became shorter while it was read");
        match Gguf::parse(&bytes, file_bytes) {
            Ok(gguf) if gguf.data_offset <= bytes.len() as u64 => {
                bytes.truncate(gguf.data_offset as usize);
                return Ok((bytes, gguf));
            }
            // Padding before the first tensor.
            Ok(gguf) => {
                ensure!(gguf.data_offset <= file_bytes, "it ends before its tensor data begins");
                wanted = gguf.data_offset;
            }
            // Never more than the limit for headers.
            Err(GgufError::NeedBytes(needed)) => wanted = needed.max(wanted.saturating_mul(2)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Digests of all tensors, in the order of the header. `progress` gets 0 to 1, on this thread.
pub(super) fn tensors(source: &Source, progress: &dyn Fn(f64)) -> anyhow::Result<Vec<Digest>> {
    let tensors = &source.gguf.tensors;
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(limits::HASH_THREADS);
    let mut digests = vec![None; tensors.len()];
    thread::scope(|scope| {
        let (report, reports) = mpsc::sync_channel(threads);
        for _ in 0..threads {
            let (report, next) = (report.clone(), &next);
            scope.spawn(move || {
                // Takes the next tensor until there is none, or until the receiver is gone.
                while let Some((index, parts)) = take(next, &source.parts) {
                    let digest =
                        digest(parts).with_context(|| format!("can't read tensor {:?}", tensors[index].name));
                    if report.send((index, digest)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(report);
        let mut done = 0;
        for (index, digest) in reports {
            digests[index] = Some(digest?);
            done += tensors[index].bytes;
            progress(done as f64 / total.max(1) as f64);
        }
        anyhow::Ok(())
    })?;
    digests.into_iter().collect::<Option<Vec<_>>>().context("hashing was broken off; try again")
}

fn take<'a>(next: &AtomicUsize, tensors: &'a [Arc<[Part]>]) -> Option<(usize, &'a [Part])> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    tensors.get(index).map(|parts| (index, &parts[..]))
}

/// Over all parts, one behind the other.
fn digest(parts: &[Part]) -> anyhow::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        let mut file = File::open(&part.file.path).context("its file can't be opened")?;
        file.seek(SeekFrom::Start(part.offset))?;
        let mut left = part.bytes;
        let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(left).unwrap_or(BUFFER_BYTES))];
        while left > 0 {
            let length = buffer.len().min(usize::try_from(left).unwrap_or(BUFFER_BYTES));
            file.read_exact(&mut buffer[..length])?;
            hasher.update(&buffer[..length]);
            left -= length as u64;
        }
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

//! Gets missing blobs from other nodes: resumed where a fetch broke off, verified, several at a time.
//!
//! Must never trust a source: what it sends counts only after the digest was right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::TensorSpec;
use caravan_proto::wire;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tonic::Code;
use tonic::transport::Channel;
use wire::blobs_client::BlobsClient;

use crate::blobs::BlobCache;
use crate::links::{self, Keepalive};
use crate::stages::{End, Phase, StageCell};

/// Why fetching stopped.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The stage ended meanwhile.
    #[error("{}", .0.why)]
    Ended(End),
    /// The disk of this worker: full, read-only, broken.
    #[error("this worker's blob cache can't be used: {0}; check its data folder")]
    Disk(#[from] std::io::Error),
}

/// Why one source did not give the blob.
enum Miss {
    Stop(Stop),
    /// It does not have it.
    Absent,
    /// The call failed; what came is kept and the next attempt goes on there.
    Broke(String),
    /// What came was not the blob. `resumed`: the fault may be an earlier source's.
    Wrong {
        resumed: bool,
    },
}

impl From<std::io::Error> for Miss {
    fn from(error: std::io::Error) -> Self {
        Miss::Stop(Stop::Disk(error))
    }
}

struct Source {
    addr: String,
    client: BlobsClient<Channel>,
}

/// One round of fetching for one stage.
struct Fetch<'a> {
    cache: &'a Arc<BlobCache>,
    cell: &'a StageCell,
    sources: Vec<Source>,
    total: u64,
    done: AtomicU64,
}

/// Makes sure that every tensor of `tensors` is in the cache, verified. Goes on trying the `sources`
/// (`host:port`, best first) until it is so or the stage ends. Do not drop the future half-way: a
/// write may be under way.
pub async fn ensure(
    cache: &Arc<BlobCache>,
    cell: &StageCell,
    tensors: &[TensorSpec],
    sources: &[String],
) -> Result<(), Stop> {
    let missing = missing(cache, tensors).await?;
    let total = missing.iter().map(|(_, bytes)| bytes).sum();
    let sources = sources.iter().filter_map(|addr| source(addr)).collect();
    let fetch = Fetch { cache, cell, sources, total, done: AtomicU64::new(0) };
    let fetches: Vec<_> = missing.into_iter().map(|(digest, bytes)| fetch.blob(digest, bytes)).collect();
    let mut results = futures::stream::iter(fetches).buffer_unordered(limits::BLOB_FETCHES);
    let mut outcome = Ok(());
    // All are awaited even after a failure: each one stops by itself, with its file flushed.
    while let Some(result) = results.next().await {
        if outcome.is_ok() && result.is_err() {
            outcome = result;
        }
    }
    outcome
}

/// Digests that are not in the cache, each once, with their lengths.
async fn missing(cache: &Arc<BlobCache>, tensors: &[TensorSpec]) -> Result<Vec<(Digest, u64)>, Stop> {
    let mut wanted: Vec<(Digest, u64)> = tensors.iter().map(|tensor| (tensor.digest, tensor.bytes)).collect();
    wanted.sort();
    wanted.dedup();
    let cache = cache.clone();
    Ok(blocking(move || cache.missing(&wanted)).await?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

fn source(addr: &str) -> Option<Source> {
    match links::endpoint(addr, Keepalive::PEER) {
        Ok(endpoint) => {
            let client = BlobsClient::new(endpoint.connect_lazy())
                .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES);
            Some(Source { addr: addr.to_owned(), client })
        }
        Err(error) => {
            tracing::warn!(addr, %error, "not an address of a blob source; skipping it");
            None
        }
    }
}

impl Fetch<'_> {
    /// Tries the sources in order, again and again.
    async fn blob(&self, digest: Digest, bytes: u64) -> Result<(), Stop> {
        for round in 0u32.. {
            for source in &self.sources {
                match self.ask(source, digest, bytes).await {
                    Ok(()) => return Ok(()),
                    Err(Miss::Stop(stop)) => return Err(stop),
                    Err(Miss::Absent) => {}
                    Err(Miss::Broke(why)) => {
                        tracing::debug!(blob = %digest, source = source.addr, why, "fetching a blob broke off");
                    }
                    Err(Miss::Wrong { .. }) => {
                        tracing::warn!(blob = %digest, source = source.addr,
                            "this source sent bytes of another digest (its file is damaged); trying the next one");
                    }
                }
            }
            // Longer pauses each time, to a bound: a source whose file is damaged is not asked in a spin.
            let pause = Duration::from_millis(limits::BLOB_RETRY_MS << round.min(4));
            tokio::select! {
                end = self.cell.ended() => return Err(Stop::Ended(end)),
                () = tokio::time::sleep(pause) => {}
            }
        }
        Err(Stop::Ended(self.cell.ended().await))
    }

    /// A blob that was begun from elsewhere and came out wrong says nothing about this source:
    /// it gets a second chance, from the first byte.
    async fn ask(&self, source: &Source, digest: Digest, bytes: u64) -> Result<(), Miss> {
        match self.attempt(source, digest, bytes).await {
            Err(Miss::Wrong { resumed: true }) => self.attempt(source, digest, bytes).await,
            other => other,
        }
    }

    async fn attempt(&self, source: &Source, digest: Digest, bytes: u64) -> Result<(), Miss> {
        let part = self.cache.part(digest);
        let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(&part).await?;
        let mut have = file.metadata().await?.len();
        if have > bytes {
            file.set_len(0).await?;
            have = 0;
        }
        let resumed = have > 0;
        self.progress(have);
        let received = self.receive(source, digest, &mut file, have, bytes).await;
        // Whatever happened, nothing may be written behind the back of the next attempt.
        file.flush().await?;
        drop(file);
        let length = match received {
            Ok(length) => length,
            Err((length, miss)) => {
                self.done.fetch_sub(length.min(self.done.load(Ordering::Relaxed)), Ordering::Relaxed);
                return Err(miss);
            }
        };
        let cache = self.cache.clone();
        if blocking(move || cache.accept(digest, bytes)).await? {
            return Ok(());
        }
        self.done.fetch_sub(length.min(self.done.load(Ordering::Relaxed)), Ordering::Relaxed);
        Err(Miss::Wrong { resumed })
    }

    /// Appends what the source sends; the length of the file at the end, right or wrong.
    async fn receive(
        &self,
        source: &Source,
        digest: Digest,
        file: &mut tokio::fs::File,
        have: u64,
        bytes: u64,
    ) -> Result<u64, (u64, Miss)> {
        let mut length = have;
        if length == bytes {
            return Ok(length);
        }
        let request = wire::FetchRequest { digest: Bytes::copy_from_slice(&digest.0), offset: have };
        let mut client = source.client.clone();
        let answer = self.waited(client.fetch(request)).await.map_err(|miss| (length, miss))?;
        let mut stream = answer.into_inner();
        while length < bytes {
            let message = self.waited(stream.message()).await.map_err(|miss| (length, miss))?;
            let Some(chunk) = message else {
                return Err((length, Miss::Broke(format!("the source ended at byte {length} of {bytes}"))));
            };
            let size = chunk.data.len() as u64;
            self.cache.count_received(size);
            file.write_all(&chunk.data).await.map_err(|error| (length, error.into()))?;
            length += size;
            self.progress(size);
        }
        Ok(length)
    }

    /// Waits for the network, but not for ever, and not beyond the end of the stage.
    async fn waited<T>(&self, call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Miss> {
        let limit = Duration::from_millis(limits::BLOB_STALL_MS);
        tokio::select! {
            end = self.cell.ended() => Err(Miss::Stop(Stop::Ended(end))),
            answer = tokio::time::timeout(limit, call) => match answer {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(status)) if status.code() == Code::NotFound => Err(Miss::Absent),
                Ok(Err(status)) => Err(Miss::Broke(status.to_string())),
                Err(_) => Err(Miss::Broke(format!("nothing came for {limit:?}"))),
            },
        }
    }

    fn progress(&self, more: u64) {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        let share = done as f64 / self.total.max(1) as f64;
        self.cell.set_phase(Phase::Fetching(share.min(1.0)));
    }
}

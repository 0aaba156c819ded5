//! The blob cache: tensors on disk under their own digest, and the service that hands them to others.
//!
//! Must never give a blob out for use before its digest was verified in this process, and never let a
//! crash leave a bad file under a digest: a file gets that name only by a rename after verification.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use bytes::Bytes;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::TensorSpec;
use caravan_kernels::map::FileMap;
use caravan_proto::wire;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::slice::TensorSource;

/// A folder of verified blobs.
#[derive(Debug)]
pub struct BlobCache {
    folder: PathBuf,
    verified: Mutex<BTreeSet<Digest>>,
    received: AtomicU64,
}

impl BlobCache {
    /// Opens `data_dir/blobs`, making it if it is not there.
    pub fn open(data_dir: &Path) -> io::Result<BlobCache> {
        let folder = data_dir.join("blobs");
        std::fs::create_dir_all(&folder)?;
        Ok(BlobCache { folder, verified: Mutex::new(BTreeSet::new()), received: AtomicU64::new(0) })
    }

    pub fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_hex())
    }

    /// Where a blob grows until it is whole.
    pub fn part(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{}.part", digest.to_hex()))
    }

    /// Counts bytes that came from another node.
    pub fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn is_verified(&self, digest: Digest) -> bool {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest)
    }

    fn mark_verified(&self, digest: Digest) {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }

    /// Whether the blob is here and whole. Reads all of it the first time in a process, so call it
    /// where blocking is allowed; a file with the wrong content is deleted.
    pub fn check(&self, digest: Digest, bytes: u64) -> io::Result<bool> {
        let path = self.path(digest);
        let length = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.is_verified(digest) && length == bytes {
            return Ok(true);
        }
        if length == bytes && hash_file(&path)? == digest {
            self.mark_verified(digest);
            return Ok(true);
        }
        tracing::warn!(blob = %digest, path = %path.display(), "a cached blob is damaged (disk or another program); fetching it again");
        std::fs::remove_file(&path)?;
        Ok(false)
    }

    /// Those of `wanted` that are not here and whole, in order. As `check`, on several threads.
    pub fn missing(&self, wanted: &[(Digest, u64)]) -> io::Result<Vec<(Digest, u64)>> {
        let next = AtomicUsize::new(0);
        let missing = Mutex::new(Vec::new());
        let work = || -> io::Result<()> {
            while let Some(&(digest, bytes)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                if !self.check(digest, bytes)? {
                    missing.lock().unwrap_or_else(PoisonError::into_inner).push((digest, bytes));
                }
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(limits::HASH_THREADS)).map(|_| scope.spawn(work)).collect();
            let own = work();
            // A panic there goes on here.
            let others =
                others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            others.fold(own, |all, one| all.and(one))
        })?;
        let mut missing = missing.into_inner().unwrap_or_else(PoisonError::into_inner);
        missing.sort_unstable();
        Ok(missing)
    }

    /// Gives a finished `.part` its name if its content is right; otherwise deletes it and says false.
    /// Blocking.
    pub fn accept(&self, digest: Digest, bytes: u64) -> io::Result<bool> {
        let part = self.part(digest);
        let right = std::fs::metadata(&part)?.len() == bytes && hash_file(&part)? == digest;
        if right {
            std::fs::rename(&part, self.path(digest))?;
            self.mark_verified(digest);
        } else {
            std::fs::remove_file(&part)?;
        }
        Ok(right)
    }
}

/// blake3 of a file's content.
fn hash_file(path: &Path) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0u8; limits::BLOB_CHUNK_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest(*hasher.finalize().as_bytes())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
}

impl TensorSource for BlobCache {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        let here = self.check(tensor.digest, tensor.bytes)?;
        ensure!(here, "tensor {} went missing from the blob cache; retrying fetches it again", tensor.name);
        let map = FileMap::open(&self.path(tensor.digest))
            .with_context(|| format!("mapping tensor {}", tensor.name))?;
        Ok(Box::new(map))
    }
}

/// Serves the cache to other workers.
pub struct BlobService {
    cache: Arc<BlobCache>,
    places: Arc<Semaphore>,
}

impl BlobService {
    pub fn new(cache: Arc<BlobCache>) -> BlobService {
        BlobService { cache, places: Arc::new(Semaphore::new(limits::BLOBS_SERVED)) }
    }
}

#[tonic::async_trait]
impl wire::blobs_server::Blobs for BlobService {
    type FetchStream = ReceiverStream<Result<wire::BlobChunk, Status>>;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let digest = caravan_proto::digest(&request.digest)?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(
                "this worker serves as many blobs as it may; try another source or later",
            )
        })?;
        let path = self.cache.path(digest);
        let (chunks, stream) = mpsc::channel(limits::BLOB_CHUNKS_AHEAD);
        let opened = tokio::task::spawn_blocking(move || open_at(&path, request.offset)).await;
        let file = opened.map_err(|error| Status::internal(error.to_string()))??;
        tokio::task::spawn_blocking(move || {
            send_file(file, &chunks);
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn open_at(path: &Path, offset: u64) -> Result<std::fs::File, Status> {
    let mut file = std::fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Status::not_found("this worker does not have that blob"),
        _ => Status::internal(format!("reading the blob failed: {error}")),
    })?;
    let length = file.metadata()?.len();
    if offset > length {
        return Err(Status::out_of_range(format!("offset {offset} is behind the end, {length}")));
    }
    file.seek(SeekFrom::Start(offset))?;
    Ok(file)
}

/// Ends early when the receiver is gone.
fn send_file(mut file: std::fs::File, chunks: &mpsc::Sender<Result<wire::BlobChunk, Status>>) {
    loop {
        let mut buffer = Vec::with_capacity(limits::BLOB_CHUNK_BYTES);
        let read = file.by_ref().take(limits::BLOB_CHUNK_BYTES as u64).read_to_end(&mut buffer);
        let chunk = match read {
            Ok(0) => return,
            Ok(_) => Ok(wire::BlobChunk { data: Bytes::from(buffer) }),
            Err(error) => Err(Status::internal(format!("reading the blob failed: {error}"))),
        };
        let last = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || last {
            return;
        }
    }
}

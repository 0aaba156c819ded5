//! The `Blobs` service of a coordinator: headers and tensors of held files, and cached headers.
//!
//! Must never keep more than a few chunks in memory for a slow reader, nor wait for one for ever.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_proto::wire;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::manifest::FileState;
use super::source::{HeldFile, Part};
use super::{ModelFiles, fetch};

type Chunk = Result<wire::BlobChunk, Status>;

pub struct BlobService {
    files: ModelFiles,
}

impl BlobService {
    pub(super) fn new(files: ModelFiles) -> BlobService {
        BlobService { files }
    }

    /// The spans of a blob, each of a file that is as it was when it was hashed.
    async fn find(&self, digest: Digest) -> Result<Vec<Open>, Status> {
        if let Some(blob) = self.files.blob(digest) {
            let mut files: Vec<Arc<HeldFile>> = Vec::new();
            for part in blob.iter() {
                if files.last().is_none_or(|last| !Arc::ptr_eq(last, &part.file)) {
                    files.push(Arc::clone(&part.file));
                }
            }
            let mut changed = false;
            for file in files {
                let metadata = tokio::fs::metadata(&file.path).await.map_err(|error| gone(&error))?;
                if FileState::of(&metadata) != file.state {
                    let path = file.path.display();
                    tracing::warn!(%path, "a model file changed after it was added; it is not served any more");
                    changed = true;
                }
            }
            if !changed {
                let open = |part: &Part| Open {
                    path: part.file.path.clone(),
                    offset: part.offset,
                    bytes: part.bytes,
                };
                return Ok(blob.iter().map(open).collect());
            }
        }
        // Names in the cache are digests; the receiver verifies the content.
        let path = self.files.inner.cache_dir.join(fetch::FOLDER).join(digest.to_hex());
        let bytes = tokio::fs::metadata(&path).await.map_err(|error| gone(&error))?.len();
        Ok(vec![Open { path, offset: 0, bytes }])
    }
}

/// Bytes of a file that are to be sent.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    offset: u64,
    bytes: u64,
}

/// What is left of the spans behind the first `skip` bytes; `None` if they are shorter.
fn behind(mut spans: Vec<Open>, mut skip: u64) -> Option<Vec<Open>> {
    for span in &mut spans {
        let less = skip.min(span.bytes);
        // No overflow: the span lies inside its file.
        span.offset += less;
        span.bytes -= less;
        skip -= less;
    }
    spans.retain(|span| span.bytes > 0);
    (skip == 0).then_some(spans)
}

fn gone(error: &std::io::Error) -> Status {
    match error.kind() {
        std::io::ErrorKind::NotFound => Status::not_found("this node does not have that blob; ask another"),
        _ => Status::not_found(format!("this node can't read that blob ({error}); ask another")),
    }
}

#[tonic::async_trait]
impl wire::blobs_server::Blobs for BlobService {
    type FetchStream = ReceiverStream<Chunk>;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let digest = caravan_proto::digest(&request.digest)?;
        let Ok(permit) = self.files.inner.streams.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted(
                "this node sends as many blobs as it may; ask again later",
            ));
        };
        let spans = self.find(digest).await?;
        let bytes: u64 = spans.iter().map(|span| span.bytes).sum();
        let Some(spans) = behind(spans, request.offset) else {
            return Err(Status::out_of_range(format!(
                "the blob has {bytes} bytes; offset {}",
                request.offset
            )));
        };
        let (sender, receiver) = mpsc::channel(limits::BLOB_CHUNKS_QUEUED);
        tokio::spawn(send_all(spans, sender, permit));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends the spans one after the other; ends when the receiver is gone or does not move.
async fn send_all(spans: Vec<Open>, sender: mpsc::Sender<Chunk>, _permit: OwnedSemaphorePermit) {
    for span in spans {
        let opened = async {
            let mut file = File::open(&span.path).await?;
            file.seek(SeekFrom::Start(span.offset)).await?;
            file.set_max_buf_size(limits::BLOB_CHUNK_BYTES);
            Ok::<_, std::io::Error>(file)
        };
        let stall = Duration::from_millis(limits::BLOB_STALL_MS);
        let sent = match opened.await {
            Ok(file) => send(file, span.bytes, &sender).await,
            Err(error) => {
                let _ = tokio::time::timeout(stall, sender.send(Err(gone(&error)))).await;
                false
            }
        };
        if !sent {
            return;
        }
    }
}

/// Sends `left` bytes of the file; false if it could not.
async fn send(file: File, mut left: u64, sender: &mpsc::Sender<Chunk>) -> bool {
    let mut file = file.take(left);
    let stall = Duration::from_millis(limits::BLOB_STALL_MS);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(limits::BLOB_CHUNK_BYTES);
        let mut data = BytesMut::with_capacity(length);
        let mut read = Ok(1);
        while data.len() < length && matches!(read, Ok(1..)) {
            read = file.read_buf(&mut data).await;
        }
        let chunk = match read {
            Ok(1..) => Ok(wire::BlobChunk { data: data.freeze() }),
            Ok(0) => Err(Status::data_loss("the file became shorter while it was sent; ask another node")),
            Err(error) => Err(Status::data_loss(format!("reading failed ({error}); ask another node"))),
        };
        let failed = chunk.is_err();
        left -= chunk.as_ref().map_or(0, |chunk| chunk.data.len() as u64).min(left);
        match tokio::time::timeout(stall, sender.send(chunk)).await {
            Ok(Ok(())) if !failed => {}
            _ => return false,
        }
    }
    true
}

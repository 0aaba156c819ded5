//! The `Blobs` service of a coordinator: headers and tensors of held files, and cached headers.
//!
//! Must never keep more than a few chunks in memory for a slow reader, nor wait for one for ever.

use std::io::SeekFrom;
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

use super::{FileState, ModelFiles, fetch};

type Chunk = Result<wire::BlobChunk, Status>;

pub struct BlobService {
    files: ModelFiles,
}

impl BlobService {
    pub(super) fn new(files: ModelFiles) -> BlobService {
        BlobService { files }
    }

    /// The file of a blob, the blob's offset in it, and its length.
    async fn find(&self, digest: Digest) -> Result<(File, u64, u64), Status> {
        if let Some(blob) = self.files.blob(digest) {
            let file = File::open(&blob.file.path).await.map_err(|error| gone(&error))?;
            let metadata = file.metadata().await.map_err(|error| gone(&error))?;
            if FileState::of(&metadata) == blob.file.state {
                return Ok((file, blob.offset, blob.bytes));
            }
            let path = blob.file.path.display();
            tracing::warn!(%path, "a model file changed after it was added; it is not served any more");
        }
        // Names in the cache are digests; the receiver verifies the content.
        let cached = self.files.inner.cache_dir.join(fetch::FOLDER).join(digest.to_hex());
        let file = File::open(cached).await.map_err(|error| gone(&error))?;
        let bytes = file.metadata().await.map_err(|error| gone(&error))?.len();
        Ok((file, 0, bytes))
    }
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
        let (mut file, start, bytes) = self.find(digest).await?;
        let Some(left) = bytes.checked_sub(request.offset) else {
            return Err(Status::out_of_range(format!(
                "the blob has {bytes} bytes; offset {}",
                request.offset
            )));
        };
        // No overflow: the span lies inside the file.
        file.seek(SeekFrom::Start(start + request.offset)).await.map_err(|error| gone(&error))?;
        file.set_max_buf_size(limits::BLOB_CHUNK_BYTES);
        let (sender, receiver) = mpsc::channel(limits::BLOB_CHUNKS_QUEUED);
        tokio::spawn(send(file, left, sender, permit));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends `left` bytes of the file; ends when the receiver is gone or does not move.
async fn send(file: File, mut left: u64, sender: mpsc::Sender<Chunk>, _permit: OwnedSemaphorePermit) {
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
            _ => return,
        }
    }
}

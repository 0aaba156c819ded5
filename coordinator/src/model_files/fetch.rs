//! The header of a model that is not held here: from the cache, or from another node.
//!
//! Must never hand out bytes whose digest is not the one asked for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use caravan_core::error::Refusal;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::ModelSpec;
use caravan_proto::wire;
use caravan_proto::wire::blobs_client::BlobsClient;
use tonic::transport::Endpoint;

use super::source::Part;
use super::{ModelFiles, hash, manifest};

pub(super) const FOLDER: &str = "headers";

/// Verified bytes of the header of `spec`.
pub(super) async fn header(
    files: &ModelFiles,
    spec: &ModelSpec,
    sources: &[String],
) -> Result<Vec<u8>, Refusal> {
    if spec.header_bytes > limits::GGUF_HEADER_BYTES {
        let message = format!("the model's header has {} bytes, more than the limit", spec.header_bytes);
        return Err(Refusal::operator("bad_model_file", message));
    }
    let cached = files.inner.cache_dir.join(FOLDER).join(spec.header.to_hex());
    let local = {
        let (files, digest, cached) = (files.clone(), spec.header, cached.clone());
        tokio::task::spawn_blocking(move || local(&files, digest, cached)).await
    };
    if let Ok(Some(bytes)) = local {
        return Ok(bytes);
    }
    let mut failures = Vec::new();
    for source in sources {
        match remote(source, spec.header, spec.header_bytes).await {
            Ok(bytes) => {
                let copy = bytes.clone();
                let saved =
                    tokio::task::spawn_blocking(move || manifest::write_whole(&cached, &[&copy])).await;
                if let Ok(Err(error)) = saved {
                    tracing::warn!(%error, "a fetched model header is not cached");
                }
                return Ok(bytes);
            }
            Err(error) => failures.push(format!("{source}: {error:#}")),
        }
    }
    let tried = if failures.is_empty() { "no node has it".to_owned() } else { failures.join("; ") };
    let message =
        format!("the header of model {:?} can't be had now ({tried}); send the request again", spec.name);
    Err(Refusal::cluster("model_header_unavailable", limits::RETRY_AFTER_MS, message))
}

/// From a held file or the cache, if its digest is right.
fn local(files: &ModelFiles, digest: Digest, cached: PathBuf) -> Option<Vec<u8>> {
    let right = |bytes: &Vec<u8>| blake3::hash(bytes).as_bytes() == &digest.0;
    // Headers of folders are in the cache.
    if let Some([Part { file, .. }]) = files.blob(digest).as_deref() {
        let header = std::fs::metadata(&file.path)
            .map_err(anyhow::Error::from)
            .and_then(|metadata| hash::read_header(&file.path, metadata.len()));
        match header.map(|(bytes, _)| bytes) {
            Ok(bytes) if right(&bytes) => return Some(bytes),
            _ => {
                let path = file.path.display();
                tracing::warn!(%path, "a model file changed after it was added; looking elsewhere for its header");
            }
        }
    }
    let bytes = std::fs::read(&cached).ok()?;
    if right(&bytes) {
        return Some(bytes);
    }
    tracing::warn!(file = %cached.display(), "a cached model header is damaged; fetching it again");
    let _ = std::fs::remove_file(&cached);
    None
}

/// A whole blob from one node, verified.
async fn remote(source: &str, digest: Digest, bytes: u64) -> anyhow::Result<Vec<u8>> {
    let stall = Duration::from_millis(limits::BLOB_STALL_MS);
    let endpoint = Endpoint::from_shared(format!("http://{source}"))
        .context("not an address")?
        .connect_timeout(Duration::from_millis(limits::CONNECT_MS));
    let mut client = BlobsClient::new(endpoint.connect().await.context("can't connect")?);
    let request = wire::FetchRequest { digest: Bytes::copy_from_slice(&digest.0), offset: 0 };
    let answer = tokio::time::timeout(stall, client.fetch(request)).await.context("no answer in time")?;
    let mut stream = answer?.into_inner();
    let mut out = Vec::new();
    while let Some(chunk) =
        tokio::time::timeout(stall, stream.message()).await.context("it stopped sending")??
    {
        ensure!(
            out.len() as u64 + chunk.data.len() as u64 <= bytes,
            "it sends more than the {bytes} bytes it should"
        );
        out.extend_from_slice(&chunk.data);
    }
    ensure!(out.len() as u64 == bytes, "it sent {} of {bytes} bytes", out.len());
    ensure!(blake3::hash(&out).as_bytes() == &digest.0, "the bytes have another digest");
    Ok(out)
}

//! Fetching blobs: resumed, verified, cached, and served on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use caravan_core::model::TensorSpec;
use caravan_proto::wire;
use caravan_worker::blobs::BlobCache;
use caravan_worker::fetch;
use caravan_worker::stages::{Cause, StageCell};
use tonic::Code;
use wire::blobs_client::BlobsClient;

use crate::coordinator::{Coordinator, Mode, Serve};
use crate::fake::{tensor, weight};
use crate::pipeline::Cluster;

fn cache(folder: &Path) -> Arc<BlobCache> {
    Arc::new(BlobCache::open(folder).unwrap())
}

async fn ensure(cache: &Arc<BlobCache>, tensors: &[TensorSpec], sources: &[&Coordinator]) {
    let cell = StageCell::new(1, "m/0", 0);
    let sources: Vec<String> = sources.iter().map(|source| source.addr.clone()).collect();
    let fetching = fetch::ensure(cache, &cell, tensors, &sources);
    tokio::time::timeout(Duration::from_secs(20), fetching).await.expect("fetched in time").unwrap();
}

fn content(cache: &BlobCache, tensor: &TensorSpec) -> Vec<u8> {
    std::fs::read(cache.path(tensor.digest)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_fetch_goes_on_where_it_broke_off_and_a_second_start_fetches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = weight(1, 10_500);
    let tensor = tensor(1, &bytes);
    let breaks = Coordinator::start(Mode::Lead).await;
    let whole = Coordinator::start(Mode::Lead).await;
    let lacks = Coordinator::start(Mode::Lead).await;
    breaks.put_blob(&bytes);
    breaks.serve(Serve::BreakAfter(4_000));
    whole.put_blob(&bytes);

    let first = cache(folder.path());
    ensure(&first, std::slice::from_ref(&tensor), &[&lacks, &breaks, &whole]).await;
    assert_eq!(content(&first, &tensor), bytes);
    assert_eq!(*breaks.shared.fetches.lock().unwrap(), [0]);
    assert_eq!(*whole.shared.fetches.lock().unwrap(), [4_000], "resumed, not begun again");
    assert_eq!(first.received(), 10_500);
    assert!(!first.part(tensor.digest).exists());

    // The next life of the process: nothing is fetched.
    let second = cache(folder.path());
    ensure(&second, std::slice::from_ref(&tensor), &[&whole]).await;
    assert_eq!(second.received(), 0);

    // A part left by a process that died is taken up.
    std::fs::rename(second.path(tensor.digest), second.part(tensor.digest)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(second.part(tensor.digest)).unwrap();
    file.set_len(7_000).unwrap();
    let third = cache(folder.path());
    ensure(&third, std::slice::from_ref(&tensor), &[&whole]).await;
    assert_eq!(third.received(), 3_500);
    assert_eq!(content(&third, &tensor), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_another_source_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = weight(2, 5_000);
    let tensor = tensor(2, &bytes);
    let liar = Coordinator::start(Mode::Lead).await;
    let honest = Coordinator::start(Mode::Lead).await;
    liar.put_blob(&bytes);
    liar.serve(Serve::Damaged);
    honest.put_blob(&bytes);
    let cache_a = cache(folder.path());
    ensure(&cache_a, std::slice::from_ref(&tensor), &[&liar, &honest]).await;
    assert_eq!(content(&cache_a, &tensor), bytes);
    assert_eq!(cache_a.received(), 10_000);

    // A damaged file in the cache is found at the first use in a process, and fetched again.
    let mut damaged = bytes.clone();
    damaged[17] ^= 4;
    std::fs::write(cache_a.path(tensor.digest), &damaged).unwrap();
    let cache_b = cache(folder.path());
    ensure(&cache_b, std::slice::from_ref(&tensor), &[&honest]).await;
    assert_eq!(content(&cache_b, &tensor), bytes);
    assert_eq!(cache_b.received(), 5_000);

    // A damaged part is not the next source's fault: it is asked again from the first byte.
    std::fs::remove_file(cache_b.path(tensor.digest)).unwrap();
    std::fs::write(cache_b.part(tensor.digest), [9u8; 2_000]).unwrap();
    let cache_c = cache(folder.path());
    ensure(&cache_c, std::slice::from_ref(&tensor), &[&honest]).await;
    assert_eq!(content(&cache_c, &tensor), bytes);
    assert_eq!(honest.shared.fetches.lock().unwrap()[2..], [2_000, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_blobs_with_one_twice_and_an_end_while_no_source_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let source = Coordinator::start(Mode::Lead).await;
    let all: Vec<Vec<u8>> = (0..9).map(|layer| weight(layer, 1_500)).collect();
    let mut tensors: Vec<TensorSpec> = (0..9).map(|layer| tensor(layer, &all[layer as usize])).collect();
    tensors.push(tensors[0].clone());
    all.iter().for_each(|bytes| source.put_blob(bytes));
    let first = cache(folder.path());
    ensure(&first, &tensors, &[&source]).await;
    assert_eq!(first.received(), 9 * 1_500, "each once");

    let absent = tensor(99, &weight(99, 100));
    let cell = Arc::new(StageCell::new(1, "m/0", 0));
    let waiting = tokio::spawn({
        let (cell, addr) = (cell.clone(), source.addr.clone());
        async move { fetch::ensure(&first, &cell, &[absent], &[addr]).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it goes on trying");
    assert_eq!(cell.status().state, "fetching");
    cell.finish(Cause::Overtaken, "epoch 1 was overtaken by epoch 2");
    let stop = waiting.await.unwrap().unwrap_err();
    assert!(matches!(stop, fetch::Stop::Ended(_)), "{stop}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_its_cache() {
    let mut cluster = Cluster::start(1).await;
    cluster.assign(1).await;
    let beat = cluster.coordinator.stage_state("w0", 1, "ready").await;
    assert_eq!(beat.blob_bytes_received, 3_000);
    assert!(beat.memory_used_bytes > 1 << 20);
    let mut client = BlobsClient::connect(format!("http://{}", cluster.addrs[0])).await.unwrap();
    let bytes = weight(0, 3_000);
    let digest = bytes::Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
    for offset in [0, 2_990, 3_000] {
        let request = wire::FetchRequest { digest: digest.clone(), offset };
        let mut stream = client.fetch(request).await.unwrap().into_inner();
        let mut got = Vec::new();
        while let Some(chunk) = stream.message().await.unwrap() {
            got.extend_from_slice(&chunk.data);
        }
        assert_eq!(got, bytes[offset as usize..]);
    }
    let beyond = wire::FetchRequest { digest: digest.clone(), offset: 3_001 };
    assert_eq!(client.fetch(beyond).await.unwrap_err().code(), Code::OutOfRange);
    let absent = wire::FetchRequest { digest: vec![0u8; 32].into(), offset: 0 };
    assert_eq!(client.fetch(absent).await.unwrap_err().code(), Code::NotFound);
    let odd = wire::FetchRequest { digest: vec![0u8; 31].into(), offset: 0 };
    assert_eq!(client.fetch(odd).await.unwrap_err().code(), Code::InvalidArgument);
}

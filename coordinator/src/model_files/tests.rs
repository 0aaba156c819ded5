//! Files held, cached, changed, damaged, and served to other nodes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::{Cell, RefCell};
use std::time::Instant;

use caravan_core::error::{Fault, Retry};
use caravan_core::gguf::synthetic::TinyLlama;
use caravan_core::plan::Slice;
use caravan_proto::wire;
use caravan_proto::wire::blobs_client::BlobsClient;
use caravan_proto::wire::blobs_server::Blobs;
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Status};

use super::*;

pub(super) struct Setup {
    pub folder: TempDir,
    pub files: ModelFiles,
}

impl Setup {
    pub fn new() -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let files = ModelFiles::open(folder.path().join("cache")).unwrap();
        Setup { folder, files }
    }

    fn model(&self) -> PathBuf {
        let path = self.folder.path().join("tiny.gguf");
        std::fs::write(&path, TinyLlama::default().writer().finish()).unwrap();
        path
    }

    fn add(&self) -> ModelSpec {
        self.files.add("tiny", &self.model(), &|_| {}).unwrap()
    }

    /// Serves the blobs; `host:port`.
    pub async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = self.files.blobs_service();
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

pub(super) fn hash(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

#[test]
fn a_file_is_hashed_once() {
    let setup = Setup::new();
    let path = setup.model();
    let bytes = std::fs::read(&path).unwrap();
    let steps = RefCell::new(Vec::new());
    let spec = setup.files.add("tiny", &path, &|step| steps.borrow_mut().push(step)).unwrap();
    assert_eq!(steps.borrow().len(), spec.tensors.len() + 1);
    assert!(steps.borrow().is_sorted() && steps.borrow().last() == Some(&1.0));
    assert_eq!(spec.header, hash(&bytes[..spec.header_bytes as usize]));
    for tensor in &spec.tensors {
        assert_eq!(
            tensor.digest,
            hash(&bytes[tensor.offset as usize..][..tensor.bytes as usize]),
            "{}",
            tensor.name
        );
    }
    assert_eq!(spec.tensors_of(Slice { first: 0, end: 3 }).count(), 29);
    assert_eq!(setup.files.holds(), [spec.digest]);

    let again = ModelFiles::open(setup.folder.path().join("cache")).unwrap();
    let calls = Cell::new(0);
    let cached = again.add("other", &path, &|_| calls.set(calls.get() + 1)).unwrap();
    assert_eq!((calls.get(), cached.name.as_str()), (1, "other"));
    assert_eq!(ModelSpec { name: "tiny".into(), ..cached }, spec);
}

#[test]
fn a_changed_file_is_hashed_again() {
    let setup = Setup::new();
    let spec = setup.add();
    let path = setup.folder.path().join("tiny.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let changed = setup.files.add("tiny", &path, &|_| {}).unwrap();
    assert_ne!(changed.digest, spec.digest);
    assert_eq!(changed.header, spec.header);
    let differing = changed.tensors.iter().zip(&spec.tensors).filter(|(new, old)| new.digest != old.digest);
    assert_eq!(differing.map(|(new, _)| new.name.as_str()).collect::<Vec<_>>(), ["output_norm.weight"]);
}

#[test]
fn a_damaged_manifest_is_not_believed() {
    let setup = Setup::new();
    let spec = setup.add();
    let folder = setup.folder.path().join("cache").join(manifest::FOLDER);
    let entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1);
    let good = std::fs::read(&entries[0]).unwrap();
    let path = setup.folder.path().join("tiny.gguf");
    for at in [0, 40, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&entries[0], bad).unwrap();
        assert_eq!(setup.files.add("tiny", &path, &|_| {}).unwrap(), spec);
    }
    std::fs::write(&entries[0], &good[..10]).unwrap();
    assert_eq!(setup.files.add("tiny", &path, &|_| {}).unwrap(), spec);
}

#[test]
fn files_that_can_not_be_used_are_named() {
    let setup = Setup::new();
    let path = setup.folder.path().join("bad.gguf");
    let why = |bytes: Option<&[u8]>| {
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = setup.files.add("bad", &path, &|_| {}).unwrap_err();
        let why = format!("{error:#}");
        assert!(why.contains("bad.gguf"), "{why}");
        why
    };
    assert!(why(None).contains("can't be opened"));
    assert!(why(Some(b"not a model at all")).contains("not a GGUF file"));
    let good = TinyLlama::default().writer().finish();
    assert!(why(Some(&good[..good.len() - 1])).contains("cut off"));
    assert!(why(Some(&good[..700])).contains("cut off"));
    let other = TinyLlama::default().writer().text("general.architecture", "mamba").finish();
    assert!(why(Some(&other)).contains("\"mamba\""));
    assert!(setup.files.holds().is_empty());
}

#[test]
fn a_header_longer_than_the_first_read_is_read_whole() {
    let setup = Setup::new();
    let path = setup.folder.path().join("long.gguf");
    let writer = TinyLlama::default().writer().text("general.description", &"long ".repeat(800_000));
    let long = writer.texts("general.more", &vec!["x".repeat(1000); 9_000]).finish();
    std::fs::write(&path, &long).unwrap();
    let spec = setup.files.add("long", &path, &|_| {}).unwrap();
    assert!(spec.header_bytes > 12 << 20);
    assert_eq!(spec.header, hash(&long[..spec.header_bytes as usize]));
}

pub(super) async fn get(address: &str, digest: &[u8], offset: u64) -> Result<Vec<u8>, Status> {
    let mut client = BlobsClient::connect(format!("http://{address}")).await.unwrap();
    let request = wire::FetchRequest { digest: digest.to_vec().into(), offset };
    let mut stream = client.fetch(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        assert!(chunk.data.len() <= limits::BLOB_CHUNK_BYTES);
        bytes.extend_from_slice(&chunk.data);
    }
    Ok(bytes)
}

#[tokio::test]
async fn every_blob_is_served_from_every_offset() {
    let setup = Setup::new();
    let large = TinyLlama { hidden: 640, layers: 1, ffn: 1920, ..TinyLlama::default() };
    let path = setup.folder.path().join("large.gguf");
    let whole = large.writer().finish();
    std::fs::write(&path, &whole).unwrap();
    let spec = setup.files.add("large", &path, &|_| {}).unwrap();
    let address = setup.serve().await;
    assert_eq!(get(&address, &spec.header.0, 0).await.unwrap(), whole[..spec.header_bytes as usize]);
    for tensor in &spec.tensors {
        let span = &whole[tensor.offset as usize..][..tensor.bytes as usize];
        for offset in [0, 1, tensor.bytes / 2, tensor.bytes - 1, tensor.bytes] {
            let got = get(&address, &tensor.digest.0, offset).await.unwrap();
            assert!(got == span[offset as usize..], "{} from {offset}", tensor.name);
        }
        let beyond = get(&address, &tensor.digest.0, tensor.bytes + 1).await.unwrap_err();
        assert_eq!(beyond.code(), Code::OutOfRange);
    }
    assert!(spec.tensors.iter().any(|tensor| tensor.bytes > 3 * limits::BLOB_CHUNK_BYTES as u64));
    assert_eq!(get(&address, &[7; 32], 0).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(&address, &[7; 31], 0).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_file_that_changed_is_not_served() {
    let setup = Setup::new();
    let spec = setup.add();
    let address = setup.serve().await;
    let path = setup.folder.path().join("tiny.gguf");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&bytes[..], b"more"].concat()).unwrap();
    assert_eq!(get(&address, &spec.header.0, 0).await.unwrap_err().code(), Code::NotFound);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(get(&address, &spec.tensors[3].digest.0, 0).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn streams_are_bounded_and_freed_when_the_reader_goes() {
    let setup = Setup::new();
    let spec = setup.add();
    let service = BlobService::new(setup.files.clone());
    let fetch = || {
        let digest = spec.header.0.to_vec().into();
        service.fetch(Request::new(wire::FetchRequest { digest, offset: 0 }))
    };
    // Nobody reads: every stream keeps its place.
    let mut streams = Vec::new();
    let held: Vec<_> = (0..limits::BLOB_STREAMS - 1)
        .map(|_| setup.files.inner.streams.clone().try_acquire_owned().unwrap())
        .collect();
    streams.push(fetch().await.unwrap().into_inner());
    // The stream's file is read to its end even if nobody looks, for it is short; then it is free.
    let all: Vec<_> = streams.pop().unwrap().collect().await;
    assert!(all.iter().all(Result::is_ok));
    while setup.files.inner.streams.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
    let last = setup.files.inner.streams.clone().try_acquire_owned().unwrap();
    assert_eq!(fetch().await.err().unwrap().code(), Code::ResourceExhausted);
    drop((held, last));
}

#[tokio::test]
async fn the_text_of_a_model_comes_from_where_it_is() {
    let one = Setup::new();
    let spec = one.add();
    let held = one.files.text_model(&spec, &[]).await.unwrap();
    let wanted = held.encode("hello wor", false);
    assert!(Arc::ptr_eq(&held, &one.files.text_model(&spec, &[]).await.unwrap()));

    // Another node fetches the header, keeps it, and can give it to a third.
    let address = one.serve().await;
    let two = Setup::new();
    let (a, b) = tokio::join!(
        two.files.text_model(&spec, std::slice::from_ref(&address)),
        two.files.text_model(&spec, std::slice::from_ref(&address)),
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    assert_eq!(a.encode("hello wor", false), wanted);
    let restarted = ModelFiles::open(two.folder.path().join("cache")).unwrap();
    assert!(restarted.text_model(&spec, &[]).await.is_ok());
    let three = Setup::new();
    let sources = ["127.0.0.1:1".to_owned(), two.serve().await];
    assert!(three.files.text_model(&spec, &sources).await.is_ok());
}

#[tokio::test]
async fn a_header_that_is_not_to_be_had_can_be_asked_for_again() {
    let one = Setup::new();
    let spec = one.add();
    let two = Setup::new();
    for sources in [vec![], vec!["127.0.0.1:1".to_owned(), "no address at all".to_owned()]] {
        let refusal = two.files.text_model(&spec, &sources).await.err().unwrap();
        assert_eq!((refusal.code.as_str(), refusal.fault), ("model_header_unavailable", Fault::Cluster));
        assert!(matches!(refusal.retry, Retry::AfterMs(_)));
        assert!(sources.iter().all(|source| refusal.message.contains(source)), "{}", refusal.message);
    }
    // It is no verdict on the model.
    assert!(two.files.text_model(&spec, &[one.serve().await]).await.is_ok());
}

#[tokio::test]
async fn bytes_with_another_digest_are_refused() {
    let one = Setup::new();
    let spec = one.add();
    let cached = one.folder.path().join("cache").join(fetch::FOLDER);
    // A liar: the cache of this node holds other bytes under the name.
    let two = Setup::new();
    let lies = two.folder.path().join("cache").join(fetch::FOLDER).join(spec.header.to_hex());
    std::fs::write(&lies, vec![1; spec.header_bytes as usize]).unwrap();
    let address = two.serve().await;
    let three = Setup::new();
    let refusal = three.files.text_model(&spec, std::slice::from_ref(&address)).await.err().unwrap();
    assert!(refusal.message.contains("another digest"), "{}", refusal.message);
    std::fs::write(&lies, vec![1; spec.header_bytes as usize + 1]).unwrap();
    let refusal = three.files.text_model(&spec, &[address]).await.err().unwrap();
    assert!(refusal.message.contains("more than"), "{}", refusal.message);
    // The liar itself finds out, and fetches the right ones.
    assert!(two.files.text_model(&spec, &[one.serve().await]).await.is_ok());
    assert_eq!(hash(&std::fs::read(lies).unwrap()), spec.header);
    assert_eq!(std::fs::read_dir(cached).unwrap().count(), 0);
}

#[tokio::test]
async fn a_bad_tokenizer_is_the_operators() {
    let setup = Setup::new();
    let path = setup.folder.path().join("bad.gguf");
    std::fs::write(&path, TinyLlama::default().writer().text("tokenizer.ggml.pre", "unheard-of").finish())
        .unwrap();
    let spec = setup.files.add("bad", &path, &|_| {}).unwrap();
    for _ in 0..2 {
        let refusal = setup.files.text_model(&spec, &[]).await.err().unwrap();
        assert_eq!(
            (refusal.code.as_str(), refusal.fault, refusal.retry),
            ("bad_model_file", Fault::Operator, Retry::Never)
        );
        assert!(refusal.message.contains("unheard-of"), "{}", refusal.message);
    }
}

#[tokio::test]
async fn the_real_file_is_fast_enough() {
    let Some(path) = std::env::var_os("CARAVAN_TEST_MODEL") else {
        eprintln!("skipped: CARAVAN_TEST_MODEL does not name a model file");
        return;
    };
    let setup = Setup::new();
    let time = |name: &str| {
        let start = Instant::now();
        let spec = setup.files.add("real", Path::new(&path), &|_| {}).unwrap();
        eprintln!("add, {name}: {:?}", start.elapsed());
        (spec, start.elapsed().as_millis())
    };
    let (spec, _) = time("not known");
    let (cached, ms) = time("known");
    assert!(spec == cached && ms < 50, "{ms} ms");
    let start = Instant::now();
    let text = setup.files.text_model(&spec, &[]).await.unwrap();
    eprintln!("text_model: {:?}", start.elapsed());
    assert_eq!(text.vocab(), spec.config.vocab);
    let address = setup.serve().await;
    let tensor = spec.tensors.iter().max_by_key(|tensor| tensor.bytes).unwrap();
    let start = Instant::now();
    let bytes = get(&address, &tensor.digest.0, 0).await.unwrap();
    eprintln!("{} bytes over gRPC in {:?}", bytes.len(), start.elapsed());
    assert_eq!(hash(&bytes), tensor.digest);
}

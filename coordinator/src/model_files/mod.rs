//! Model files that this coordinator holds: hashed once, served as blobs, read for their headers.
//!
//! Must never serve or use bytes as something that they are not: what is read again is verified by its
//! digest, and a file that changed after it was hashed is no longer served.

mod fetch;
mod hash;
mod manifest;
mod serve;
mod source;

#[cfg(test)]
mod folder_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context, bail, ensure};
use caravan_core::error::Refusal;
use caravan_core::gguf::Gguf;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::ModelSpec;
use caravan_proto::wire::blobs_server::BlobsServer;
use tokio::sync::{OnceCell, Semaphore};

use crate::text::TextModel;
use manifest::Manifest;
pub use serve::BlobService;
pub use source::inspect;
use source::{Part, Source};

/// What became of a model's text part: kept, be it good or bad, for its header never changes.
type Text = Result<Arc<TextModel>, Refusal>;

#[derive(Clone)]
pub struct ModelFiles {
    inner: Arc<Inner>,
}

struct Inner {
    cache_dir: PathBuf,
    held: RwLock<Held>,
    /// By header digest. Bounded by the number of models that a cluster may have.
    texts: Mutex<HashMap<Digest, Arc<OnceCell<Text>>>>,
    streams: Arc<Semaphore>,
}

#[derive(Default)]
struct Held {
    models: BTreeSet<Digest>,
    blobs: HashMap<Digest, Blob>,
}

/// Spans of held files, one behind the other.
type Blob = Arc<[Part]>;

impl ModelFiles {
    /// `cache_dir` keeps manifests (so that a file is hashed once) and headers fetched from others.
    pub fn open(cache_dir: PathBuf) -> anyhow::Result<ModelFiles> {
        for part in [manifest::FOLDER, fetch::FOLDER] {
            let folder = cache_dir.join(part);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("can't make the folder {}", folder.display()))?;
        }
        let inner = Inner {
            cache_dir,
            held: RwLock::default(),
            texts: Mutex::default(),
            streams: Arc::new(Semaphore::new(limits::BLOB_STREAMS)),
        };
        Ok(ModelFiles { inner: Arc::new(inner) })
    }

    /// Checks and hashes a GGUF file, or a folder of safetensors files (or finds its manifest in the cache),
    /// and holds it from now on. Blocking. `progress` gets 0 to 1. Errors are the operator's and name the file.
    pub fn add(&self, name: &str, path: &Path, progress: &dyn Fn(f64)) -> anyhow::Result<ModelSpec> {
        let add = || {
            let path = path.canonicalize().context("it can't be opened")?;
            let source = Source::open(&path)?;
            let (state, header) = (source.state(), Digest(*blake3::hash(&source.header).as_bytes()));
            let cached = Manifest::read(&self.inner.cache_dir, &path, state, header);
            let tensors = source.gguf.tensors.len();
            let manifest = match cached.filter(|manifest| manifest.tensors.len() == tensors) {
                Some(manifest) => manifest,
                None => {
                    // Before the long work: the model is one that the cluster can serve.
                    source.gguf.config()?;
                    if source.is_folder {
                        TextModel::from_gguf(&source.gguf)?;
                    }
                    let tensors = hash::tensors(&source, progress)?;
                    ensure!(
                        source.state_now()? == state,
                        "it changed while it was read; wait until it is complete and try again"
                    );
                    let manifest = Manifest { header, tensors };
                    manifest.write(&self.inner.cache_dir, &path, state)?;
                    manifest
                }
            };
            let spec = source.gguf.spec(name, header, &manifest.tensors, manifest.total())?;
            if source.is_folder {
                let place = self.inner.cache_dir.join(fetch::FOLDER).join(header.to_hex());
                manifest::write_whole(&place, &[&source.header])?;
            }
            self.hold(&spec, &manifest, &source);
            progress(1.0);
            anyhow::Ok(spec)
        };
        add().with_context(|| format!("the model file {} can't be used", path.display()))
    }

    fn hold(&self, spec: &ModelSpec, manifest: &Manifest, source: &Source) {
        let mut held = self.inner.held.write().unwrap_or_else(PoisonError::into_inner);
        if let [file] = &source.files[..]
            && !source.is_folder
        {
            let header = Part { file: Arc::clone(file), offset: 0, bytes: spec.header_bytes };
            held.blobs.insert(spec.header, Arc::from([header]));
        }
        for (digest, parts) in manifest.tensors.iter().zip(&source.parts) {
            held.blobs.insert(*digest, Arc::clone(parts));
        }
        held.models.insert(spec.digest);
    }

    /// Digests of the models whose file is here.
    pub fn holds(&self) -> Vec<Digest> {
        let held = self.inner.held.read().unwrap_or_else(PoisonError::into_inner);
        held.models.iter().copied().collect()
    }

    /// The gRPC service that gives the blobs of held files, and cached headers, to other nodes.
    pub fn blobs_service(&self) -> BlobsServer<BlobService> {
        BlobsServer::new(BlobService::new(self.clone()))
    }

    /// Where a blob lies in a held file.
    fn blob(&self, digest: Digest) -> Option<Blob> {
        let held = self.inner.held.read().unwrap_or_else(PoisonError::into_inner);
        held.blobs.get(&digest).cloned()
    }

    /// Tokenizer and template of a model, read from its header: from a held file, the cache, or
    /// fetched from one of `sources` (gRPC `host:port`) and verified. Made once, then shared.
    /// Refusals: `model_header_unavailable` (the cluster's, safe to retry), `bad_model_file` (the operator's).
    pub async fn text_model(&self, spec: &ModelSpec, sources: &[String]) -> Result<Arc<TextModel>, Refusal> {
        let cell = self.text_cell(spec.header)?;
        let text = cell.get_or_try_init(|| async {
            let header = fetch::header(self, spec, sources).await?;
            let spec = spec.clone();
            let made = tokio::task::spawn_blocking(move || read_text(&header, &spec)).await;
            match made {
                Ok(made) => Ok(made.map(Arc::new).map_err(|error| {
                    let message =
                        format!("the model file's header can't be used: {error:#}; use another file");
                    Refusal::operator("bad_model_file", message)
                })),
                Err(_) => {
                    let message = "reading the model's header was broken off; the request can be sent again";
                    Err(Refusal::cluster("model_header_unavailable", limits::RETRY_AFTER_MS, message))
                }
            }
        });
        text.await?.clone()
    }

    fn text_cell(&self, header: Digest) -> Result<Arc<OnceCell<Text>>, Refusal> {
        let mut texts = self.inner.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if !texts.contains_key(&header) && texts.len() >= limits::MODELS {
            // Models that left the catalogue; whoever still uses one has his own handle.
            texts.retain(|_, cell| Arc::strong_count(cell) > 1);
            if texts.len() >= limits::MODELS {
                let message =
                    format!("{} models are being read; send the request again later", limits::MODELS);
                return Err(Refusal::cluster("too_many_models", limits::RETRY_AFTER_MS, message));
            }
        }
        Ok(Arc::clone(texts.entry(header).or_default()))
    }
}

/// The file's length as the spec has it: the header's checks need it.
fn file_bytes(spec: &ModelSpec) -> Option<u64> {
    let ends = spec.tensors.iter().map(|tensor| tensor.offset.checked_add(tensor.bytes));
    ends.chain([Some(spec.header_bytes)]).try_fold(0, |most: u64, end| end.map(|end| most.max(end)))
}

/// `header`: verified bytes.
fn read_text(header: &[u8], spec: &ModelSpec) -> anyhow::Result<TextModel> {
    let bytes = file_bytes(spec).context("its tensors have impossible offsets")?;
    let text = TextModel::from_gguf(&Gguf::parse(header, bytes)?)?;
    if text.vocab() != spec.config.vocab {
        bail!("its tokenizer has {} tokens and the model {}", text.vocab(), spec.config.vocab);
    }
    Ok(text)
}

//! A model of this machine, a GGUF file or a folder of safetensors files, for measuring and evaluating the
//! engine without a cluster.
//!
//! Must never be how a worker of a cluster gets its weights: those are blobs, verified by digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use caravan_core::folder::{self, Folder, Span};
use caravan_core::gguf::Gguf;
use caravan_core::ids::Digest;
use caravan_core::limits;
use caravan_core::model::{KvPrecision, ModelConfig, ModelSpec, TensorSpec};
use caravan_core::plan::Slice;
use caravan_kernels::map::FileMap;

use crate::slice::{LoadedSlice, SliceSpec, TensorSource};
use crate::weights::Form;

/// A checked model, its files mapped.
#[derive(Debug)]
pub struct LocalModel {
    path: PathBuf,
    gguf: Gguf,
    spec: ModelSpec,
    maps: Vec<FileMap>,
    /// By the tensor's offset in the header: where its bytes are, one span behind the other. Spans name the
    /// maps.
    spans: BTreeMap<u64, Vec<Span>>,
}

/// Stands for "unknown": nothing is shared or cached by it.
const UNKNOWN: Digest = Digest([0; 32]);

impl LocalModel {
    /// Maps the files and checks their headers. They must not be changed while they are in use. Errors are
    /// the operator's and name the file.
    pub fn open(path: &Path) -> anyhow::Result<LocalModel> {
        let open = || {
            let (gguf, maps, spans) = if path.is_dir() { open_folder(path)? } else { open_file(path)? };
            let digests = vec![UNKNOWN; gguf.tensors.len()];
            let spec = gguf.spec("local", UNKNOWN, &digests, UNKNOWN)?;
            let spans = gguf.tensors.iter().map(|tensor| tensor.offset).zip(spans).collect();
            anyhow::Ok(LocalModel { path: path.to_owned(), gguf, spec, maps, spans })
        };
        open().with_context(|| format!("the model file {} can't be used", path.display()))
    }

    /// With the KV cache in this precision.
    pub fn with_kv(mut self, precision: KvPrecision) -> LocalModel {
        self.spec.config.kv = precision;
        self
    }

    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    pub fn config(&self) -> &ModelConfig {
        &self.spec.config
    }

    /// The slice that is the whole model.
    pub fn whole(&self) -> Slice {
        Slice { first: 0, end: self.spec.config.layers }
    }

    /// Bytes of the tensors of `slice` in the file.
    pub fn bytes_of(&self, slice: Slice) -> u64 {
        self.spec.bytes_of(slice)
    }

    /// Loads `slice` with `kv_pages` pages of KV cache. `progress`: 0 to 1.
    pub fn load(
        &self,
        slice: Slice,
        kv_pages: u32,
        form: Form,
        progress: &dyn Fn(f64),
    ) -> anyhow::Result<LoadedSlice> {
        let mut config = self.spec.config.clone();
        // The reference of evaluations rounds nothing.
        if form == Form::F32 {
            config.kv = KvPrecision::F32;
        }
        let spec = SliceSpec {
            config,
            slice,
            tensors: self.spec.tensors_of(slice).cloned().collect(),
            kv_pages,
            page_tokens: limits::PAGE_TOKENS,
        };
        LoadedSlice::load_form(spec, self, None, form, progress)
            .with_context(|| format!("the model file {} can't be loaded", self.path.display()))
    }
}

type Opened = (Gguf, Vec<FileMap>, Vec<Vec<Span>>);

fn open_file(path: &Path) -> anyhow::Result<Opened> {
    let map = FileMap::open(path)?;
    let bytes = map.as_ref();
    let gguf = Gguf::parse(bytes, bytes.len() as u64)?;
    let span = |offset, bytes| vec![Span { shard: 0, offset, bytes }];
    let spans = gguf.tensors.iter().map(|tensor| span(tensor.offset, tensor.bytes)).collect();
    Ok((gguf, vec![map], spans))
}

fn open_folder(path: &Path) -> anyhow::Result<Opened> {
    let mut maps = Maps { folder: path, files: BTreeMap::new() };
    let Folder { gguf, shards, spans, .. } = Folder::read(&mut maps)?;
    let mut ordered = Vec::new();
    for shard in &shards {
        ordered.push(maps.files.remove(&shard.name).with_context(|| format!("{} is not open", shard.name))?);
    }
    Ok((gguf, ordered, spans))
}

/// The files of a folder, each mapped when it is first read.
struct Maps<'a> {
    folder: &'a Path,
    files: BTreeMap<String, FileMap>,
}

impl folder::Reader for Maps<'_> {
    fn bytes(&mut self, file: &str) -> Result<Option<u64>, String> {
        match std::fs::metadata(self.folder.join(file)) {
            Ok(about) if about.is_file() => Ok(Some(about.len())),
            Ok(_) => Err("it is not a file".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(&mut self, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
        if !self.files.contains_key(file) {
            let map = FileMap::open(&self.folder.join(file)).map_err(|error| error.to_string())?;
            self.files.insert(file.to_owned(), map);
        }
        let all = self.files.get(file).map(AsRef::as_ref).unwrap_or_default();
        span(all, offset, bytes).map(<[u8]>::to_vec).ok_or("it is shorter than it was".to_owned())
    }
}

fn span(all: &[u8], offset: u64, bytes: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(bytes)?).ok()?;
    all.get(usize::try_from(offset).ok()?..end)
}

impl TensorSource for LocalModel {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        const BEYOND: &str = "it lies beyond the end of the file";
        let spans = self.spans.get(&tensor.offset).context("the file has no tensor there")?;
        let part = |part: &Span| span(self.maps.get(part.shard)?.as_ref(), part.offset, part.bytes);
        if let [one] = &spans[..] {
            return Ok(Box::new(part(one).context(BEYOND)?));
        }
        let mut joined = Vec::with_capacity(usize::try_from(tensor.bytes)?);
        for one in spans {
            joined.extend_from_slice(part(one).context(BEYOND)?);
        }
        Ok(Box::new(joined))
    }
}

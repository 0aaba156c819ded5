//! From tensors of a model file to packed matrices, one at a time.
//!
//! Every tensor is checked for presence, type and shape by name; a tensor that nobody asked for is
//! an error too, because a model that has it would be computed wrongly without it.
//! Must never keep the source's bytes beyond the packing of their tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use caravan_core::ids::Digest;
use caravan_core::model::{TensorSpec, TensorType};
use caravan_kernels::{Matrix, PackError, WeightType};

use crate::slice::TensorSource;

/// In which form matrices are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As the file has them: what is served.
    File,
    /// Every weight unpacked to f32, so that only f32 kernels compute: the reference of evaluations.
    F32,
}

/// Takes tensors by name out of a slice's list.
pub struct Loader<'a> {
    tensors: BTreeMap<&'a str, &'a TensorSpec>,
    asked: Mutex<BTreeSet<&'a str>>,
    source: &'a dyn TensorSource,
    form: Form,
    progress: &'a (dyn Fn(f64) + Sync),
    done_bytes: AtomicU64,
    all_bytes: u64,
    /// Threads that load and pack; what comes out does not depend on them.
    threads: usize,
}

impl<'a> Loader<'a> {
    /// `progress` hears the share of bytes done, 0 to 1.
    pub fn new(
        tensors: &'a [TensorSpec],
        source: &'a dyn TensorSource,
        progress: &'a (dyn Fn(f64) + Sync),
    ) -> Self {
        Loader {
            tensors: tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            asked: Default::default(),
            source,
            form: Form::File,
            progress,
            done_bytes: AtomicU64::new(0),
            all_bytes: tensors.iter().map(|tensor| tensor.bytes).sum::<u64>().max(1),
            threads: std::thread::available_parallelism().map_or(1, |threads| threads.get().min(PACKERS)),
        }
    }

    /// With matrices in another form than the file's.
    pub fn in_form(self, form: Form) -> Self {
        Loader { form, ..self }
    }

    /// The digests of `names` if all are there and real (a digest of zeros stands for "unknown").
    pub fn digests(&self, names: &[String]) -> Option<Vec<Digest>> {
        let digests = names.iter().map(|name| self.tensors.get(name.as_str()).map(|tensor| tensor.digest));
        let digests: Option<Vec<Digest>> = digests.collect();
        digests.filter(|digests| digests.iter().all(|digest| digest.0 != [0; 32]))
    }

    /// Counts tensors as done that were reused and need not be read.
    pub fn reused(&self, names: &[String]) {
        for name in names {
            if let Ok(tensor) = self.find(name) {
                self.count(tensor);
            }
        }
    }

    /// Calls `load` for each of `layers`, on several threads; what it gave, in order. After an error no
    /// further layer is begun, and the error of the first of the layers that failed is given.
    pub fn each<T: Send>(
        &self,
        layers: Range<u32>,
        load: impl Fn(u32) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>> {
        let count = layers.len();
        let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let loaded = Mutex::new(Vec::with_capacity(count));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count.min(failed.load(Ordering::Relaxed)) {
                    return;
                }
                let layer = load(layers.start + index as u32);
                if layer.is_err() {
                    failed.fetch_min(index, Ordering::Relaxed);
                }
                loaded.lock().unwrap_or_else(PoisonError::into_inner).push((index, layer));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(count) {
                scope.spawn(work);
            }
            work();
        });
        let mut loaded = loaded.into_inner().unwrap_or_else(PoisonError::into_inner);
        loaded.sort_unstable_by_key(|(index, _)| *index);
        loaded.into_iter().map(|(_, layer)| layer).collect()
    }

    /// A matrix with `k` inputs (the contiguous dimension) and `n` outputs.
    pub fn matrix(&self, name: &str, k: u32, n: u32) -> anyhow::Result<Matrix> {
        let [matrix] = self.fused(name, k, [n])?;
        Ok(matrix)
    }

    /// Several matrices with the same `k` inputs that lie in one tensor, one's outputs behind the
    /// other's.
    pub fn fused<const N: usize>(&self, name: &str, k: u32, rows: [u32; N]) -> anyhow::Result<[Matrix; N]> {
        let all: u64 = rows.iter().map(|n| u64::from(*n)).sum();
        let matrices = self.matrices(name, &[u64::from(k), all], &rows)?;
        // As many as there are `rows`.
        matrices.try_into().map_err(|_| anyhow::anyhow!("tensor `{name}` can't be cut"))
    }

    /// `count` matrices of `k` inputs and `n` outputs, which are the third dimension of one tensor.
    pub fn stack(&self, name: &str, (k, n): (u32, u32), count: u32) -> anyhow::Result<Vec<Matrix>> {
        let dims = [k, n, count].map(u64::from);
        self.matrices(name, &dims, &vec![n; count as usize])
    }

    /// Cuts a tensor of shape `dims` into matrices of so many `rows` (of `dims[0]` elements) each.
    fn matrices(&self, name: &str, dims: &[u64], rows: &[u32]) -> anyhow::Result<Vec<Matrix>> {
        let tensor = self.find(name)?;
        ensure!(tensor.dims == dims, "tensor `{name}` has shape {:?}, not {dims:?}{ADVICE}", tensor.dims);
        let bytes = self.source.read(tensor).with_context(|| format!("tensor `{name}` can't be read"))?;
        let bytes = (*bytes).as_ref();
        let all: u64 = rows.iter().map(|n| u64::from(*n)).sum();
        let (block, block_bytes) = tensor.kind.block();
        ensure!(
            dims[0].is_multiple_of(block) && bytes.len() as u64 == all * (dims[0] / block * block_bytes),
            "tensor `{name}` of type {} has {} bytes, which is not its size{ADVICE}",
            tensor.kind.name(),
            bytes.len()
        );
        let row_bytes = (dims[0] / block * block_bytes) as usize;
        let (mut first, mut matrices) = (0, Vec::with_capacity(rows.len()));
        for n in rows.iter().map(|n| *n as usize) {
            let part = &bytes[first * row_bytes..(first + n) * row_bytes];
            let shape = (dims[0] as usize, n);
            let matrix = Matrix::pack_with(self.threads, weight_type(tensor.kind), shape, part)
                .and_then(|matrix| match self.form {
                    Form::File => Ok(matrix),
                    Form::F32 => unpacked(&matrix),
                })
                .with_context(|| format!("tensor `{name}` is broken{ADVICE}"))?;
            matrices.push(matrix);
            first += n;
        }
        self.count(tensor);
        Ok(matrices)
    }

    /// A vector of f32 (from F32, F16 or BF16).
    pub fn vector(&self, name: &str, len: u32) -> anyhow::Result<Vec<f32>> {
        let tensor = self.find(name)?;
        ensure!(
            tensor.dims == [u64::from(len)],
            "tensor `{name}` has shape {:?}, not [{len}]{ADVICE}",
            tensor.dims
        );
        if !matches!(tensor.kind, TensorType::F32 | TensorType::F16 | TensorType::Bf16) {
            bail!("tensor `{name}` has type {}, not a float{ADVICE}", tensor.kind.name());
        }
        let bytes = self.source.read(tensor).with_context(|| format!("tensor `{name}` can't be read"))?;
        let row = Matrix::pack(weight_type(tensor.kind), len as usize, 1, (*bytes).as_ref())
            .with_context(|| format!("tensor `{name}` is broken{ADVICE}"))?;
        let mut out = vec![0.0; len as usize];
        row.row(0, &mut out);
        self.count(tensor);
        Ok(out)
    }

    /// Refuses if the list has a tensor that was not asked for.
    pub fn finish(&self) -> anyhow::Result<()> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match self.tensors.keys().find(|name| !asked.contains(*name)) {
            None => Ok(()),
            Some(name) => bail!(
                "tensor `{name}` is not one that this build's model family computes with; \
                 the model needs another build, retrying won't help"
            ),
        }
    }

    fn find(&self, name: &str) -> anyhow::Result<&'a TensorSpec> {
        let (name, tensor) = self
            .tensors
            .get_key_value(name)
            .with_context(|| format!("tensor `{name}` is missing{ADVICE}"))?;
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        Ok(tensor)
    }

    fn count(&self, tensor: &TensorSpec) {
        let done = self.done_bytes.fetch_add(tensor.bytes, Ordering::Relaxed) + tensor.bytes;
        (self.progress)(done as f64 / self.all_bytes as f64);
    }
}

/// Threads that pack one matrix, at most: more wait for memory.
const PACKERS: usize = 8;

/// The same weights, each as the f32 number that it stands for.
fn unpacked(matrix: &Matrix) -> Result<Matrix, PackError> {
    let mut row = vec![0.0; matrix.k()];
    let mut bytes = Vec::with_capacity(4 * matrix.k() * matrix.n());
    for index in 0..matrix.n() {
        matrix.row(index, &mut row);
        bytes.extend(row.iter().flat_map(|weight| weight.to_le_bytes()));
    }
    Matrix::pack(WeightType::F32, matrix.k(), matrix.n(), &bytes)
}

/// What every error about a model's tensors ends in.
const ADVICE: &str = ": the model file does not fit its header; use a sound file, retrying won't help";

fn weight_type(kind: TensorType) -> WeightType {
    match kind {
        TensorType::F32 => WeightType::F32,
        TensorType::F16 => WeightType::F16,
        TensorType::Bf16 => WeightType::Bf16,
        TensorType::Q4_0 => WeightType::Q4_0,
        TensorType::Q4_1 => WeightType::Q4_1,
        TensorType::Q5_0 => WeightType::Q5_0,
        TensorType::Q5_1 => WeightType::Q5_1,
        TensorType::Q8_0 => WeightType::Q8_0,
        TensorType::Q4K => WeightType::Q4K,
        TensorType::Q5K => WeightType::Q5K,
        TensorType::Q6K => WeightType::Q6K,
    }
}

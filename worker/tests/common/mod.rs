//! Models for the suites of this crate: random tiny ones, and the file named by
//! `CARAVAN_TEST_MODEL`, with a way to run sequences through slices.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::quantized::gguf_file;
use caravan_core::gguf::Gguf;
use caravan_core::ids::Digest;
use caravan_core::model::{Family, ModelConfig, Place, TensorSpec, TensorType};
use caravan_core::plan::Slice;
use caravan_kernels::{Team, map::FileMap};
use caravan_worker::slice::{Chunk, LoadedSlice, SliceSpec, StageInput, StageOutput, TensorSource};

pub enum Source {
    Bytes(BTreeMap<String, Vec<u8>>),
    Map(FileMap),
}

impl TensorSource for Source {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        match self {
            Source::Bytes(all) => Ok(Box::new(all[&tensor.name].as_slice())),
            Source::Map(map) => {
                let (start, end) = (tensor.offset as usize, (tensor.offset + tensor.bytes) as usize);
                Ok(Box::new(map.as_ref().get(start..end).expect("tensor beyond the file")))
            }
        }
    }
}

pub struct TestModel {
    pub config: ModelConfig,
    pub tensors: Vec<TensorSpec>,
    pub source: Source,
}

pub const PAGE_TOKENS: u32 = 32;

pub fn place(name: &str) -> Place {
    match name.split('.').collect::<Vec<_>>()[..] {
        ["token_embd", ..] => Place::Embed,
        ["blk", index, ..] => Place::Layer(index.parse().unwrap()),
        ["rope_freqs", ..] => Place::Shared,
        _ => Place::Head,
    }
}

/// The path in `CARAVAN_TEST_MODEL`; `None`, said aloud, if it is not set.
pub fn model_path() -> Option<PathBuf> {
    let path = std::env::var_os("CARAVAN_TEST_MODEL").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: CARAVAN_TEST_MODEL does not name a GGUF file of the Llama family");
    }
    path
}

impl TestModel {
    /// Reads a GGUF file with candle's reader, which is independent of ours.
    pub fn open(path: &PathBuf) -> TestModel {
        let mut file = std::fs::File::open(path).expect("CARAVAN_TEST_MODEL can't be opened");
        let content = gguf_file::Content::read(&mut file).expect("CARAVAN_TEST_MODEL is no GGUF file");
        let number = |key: &str| {
            let value = &content.metadata[&format!("llama.{key}")];
            value.to_u32().unwrap_or_else(|_| panic!("llama.{key}"))
        };
        let float = |key: &str| content.metadata[&format!("llama.{key}")].to_f32().unwrap();
        let (hidden, heads) = (number("embedding_length"), number("attention.head_count"));
        let config = ModelConfig {
            family: Family::Llama,
            layers: number("block_count"),
            hidden,
            heads,
            kv_heads: number("attention.head_count_kv"),
            head_dim: hidden / heads,
            rope_dim: number("rope.dimension_count"),
            rope_base: float("rope.freq_base"),
            norm_eps: float("attention.layer_norm_rms_epsilon"),
            ffn: number("feed_forward_length"),
            vocab: content.tensor_infos["token_embd.weight"].shape.dims()[0] as u32,
            context: number("context_length"),
            tied: !content.tensor_infos.contains_key("output.weight"),
            ..ModelConfig::default()
        };
        let infos = content.tensor_infos.iter();
        let tensors = infos.map(|(name, info)| spec(name, info, content.tensor_data_offset)).collect();
        TestModel { config, tensors, source: Source::Map(FileMap::open(path).unwrap()) }
    }

    /// The model of a file's bytes, read by our own reader.
    pub fn parse(bytes: &[u8]) -> TestModel {
        let gguf = Gguf::parse(bytes, bytes.len() as u64).unwrap();
        let digest = |info: &caravan_core::gguf::TensorInfo| {
            let data = &bytes[info.offset as usize..(info.offset + info.bytes) as usize];
            Digest(*blake3::hash(data).as_bytes())
        };
        let digests: Vec<Digest> = gguf.tensors.iter().map(digest).collect();
        let spec = gguf.spec("random", Digest([1; 32]), &digests, Digest([2; 32])).unwrap();
        let data = |tensor: &TensorSpec| {
            let range = tensor.offset as usize..(tensor.offset + tensor.bytes) as usize;
            (tensor.name.clone(), bytes[range].to_vec())
        };
        let source = Source::Bytes(spec.tensors.iter().map(data).collect());
        TestModel { config: spec.config, tensors: spec.tensors, source }
    }

    /// A random model; its weights mix several types. Deterministic.
    pub fn tiny(tied: bool) -> TestModel {
        let config = ModelConfig {
            family: Family::Llama,
            layers: 5,
            hidden: 256,
            heads: 6,
            kv_heads: 2,
            head_dim: 48,
            rope_dim: 32,
            rope_base: 10_000.0,
            norm_eps: 1e-5,
            ffn: 288,
            vocab: 211,
            context: 400,
            tied,
            ..ModelConfig::default()
        };
        let mut model = TestModel { config, tensors: Vec::new(), source: Source::Bytes(BTreeMap::new()) };
        let kinds = [TensorType::Q4_1, TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_1, TensorType::F16];
        let (hidden, ffn) = (256, 288);
        let (q, kv) = (6 * 48, 2 * 48);
        model.add("token_embd.weight", &[hidden, 211], TensorType::Q8_0);
        for layer in 0..5u64 {
            let parts: [(&str, &[u64]); 9] = [
                ("attn_norm", &[hidden]),
                ("attn_q", &[hidden, q]),
                ("attn_k", &[hidden, kv]),
                ("attn_v", &[hidden, kv]),
                ("attn_output", &[q, hidden]),
                ("ffn_norm", &[hidden]),
                ("ffn_gate", &[hidden, ffn]),
                ("ffn_up", &[hidden, ffn]),
                ("ffn_down", &[ffn, hidden]),
            ];
            for (part, dims) in parts {
                let kind = if dims.len() == 1 { TensorType::F32 } else { kinds[layer as usize] };
                model.add(&format!("blk.{layer}.{part}.weight"), dims, kind);
            }
        }
        model.add("output_norm.weight", &[hidden], TensorType::F32);
        if !tied {
            model.add("output.weight", &[hidden, 211], TensorType::Q6K);
        }
        model
    }

    fn add(&mut self, name: &str, dims: &[u64], kind: TensorType) {
        let (elements, unit) = kind.block();
        let count = dims.iter().product::<u64>() / elements;
        let seed = u64::from_le_bytes(blake3::hash(name.as_bytes()).as_bytes()[..8].try_into().unwrap());
        let mut state = seed;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        let mut bytes = Vec::new();
        for _ in 0..count {
            let mut block: Vec<u8> = (0..unit).map(|_| random() as u8).collect();
            // A half-precision number of 2^-8 to 2^-7, negative now and then.
            let mut half = |low: u16| ((random() as u16 & 0x83ff) | low).to_le_bytes();
            match kind {
                TensorType::F32 => block = (0.5 + (random() % 1024) as f32 / 1024.0).to_le_bytes().to_vec(),
                TensorType::F16 => block = half(0x2800).to_vec(),
                TensorType::Q6K => block[208..210].copy_from_slice(&half(0x0400)),
                TensorType::Q4_1 | TensorType::Q5_1 => {
                    block[..2].copy_from_slice(&half(0x1c00));
                    block[2..4].copy_from_slice(&half(0x2800));
                }
                TensorType::Q8_0 => block[..2].copy_from_slice(&half(0x0c00)),
                _ => block[..2].copy_from_slice(&half(0x1c00)),
            }
            bytes.extend(block);
        }
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        let bytes_len = bytes.len() as u64;
        let Source::Bytes(all) = &mut self.source else { unreachable!() };
        all.insert(name.to_owned(), bytes);
        let (name, dims) = (name.to_owned(), dims.to_vec());
        let place = place(&name);
        self.tensors.push(TensorSpec { name, dims, kind, place, offset: 0, bytes: bytes_len, digest });
    }

    pub fn spec(&self, slice: Slice, kv_pages: u32) -> SliceSpec {
        let (first, last) = (slice.first == 0, slice.end == self.config.layers);
        let wanted = self.tensors.iter().filter(|tensor| match tensor.place {
            Place::Embed => first || (last && self.config.tied),
            Place::Layer(layer) => slice.contains(layer),
            Place::Head => last,
            Place::Shared => true,
        });
        let tensors = wanted.cloned().collect();
        SliceSpec { config: self.config.clone(), slice, tensors, kv_pages, page_tokens: PAGE_TOKENS }
    }

    /// Slices that end at `cuts` and at the last layer.
    pub fn load(&self, cuts: &[u32], kv_pages: u32) -> Vec<LoadedSlice> {
        let mut first = 0;
        let ends = cuts.iter().copied().chain([self.config.layers]);
        ends.map(|end| {
            let spec = self.spec(Slice { first, end }, kv_pages);
            first = end;
            let mut slice = LoadedSlice::load(spec, &self.source, None, &|_| {}).unwrap();
            slice.all_logits(true);
            slice
        })
        .collect()
    }
}

fn spec(name: &str, info: &gguf_file::TensorInfo, data: u64) -> TensorSpec {
    use candle_core::quantized::GgmlDType as G;
    let kind = match info.ggml_dtype {
        G::F32 => TensorType::F32,
        G::F16 => TensorType::F16,
        G::BF16 => TensorType::Bf16,
        G::Q4_0 => TensorType::Q4_0,
        G::Q4_1 => TensorType::Q4_1,
        G::Q5_0 => TensorType::Q5_0,
        G::Q5_1 => TensorType::Q5_1,
        G::Q8_0 => TensorType::Q8_0,
        G::Q4K => TensorType::Q4K,
        G::Q5K => TensorType::Q5K,
        G::Q6K => TensorType::Q6K,
        other => panic!("{name} has type {other:?}"),
    };
    // candle gives the outer dimension first.
    let dims: Vec<u64> = info.shape.dims().iter().rev().map(|dim| *dim as u64).collect();
    let (elements, unit) = kind.block();
    let bytes = dims.iter().product::<u64>() / elements * unit;
    let (name, place) = (name.to_owned(), place(name));
    TensorSpec { name, dims, kind, place, offset: data + info.offset, bytes, digest: Digest([0; 32]) }
}

/// One step through all slices.
pub fn step(slices: &mut [LoadedSlice], team: &mut Team, chunks: &[Chunk]) -> Vec<f32> {
    let mut input = StageInput::Tokens;
    for slice in slices {
        match slice.forward(team, chunks, input).unwrap() {
            StageOutput::Activations(rows) => input = StageInput::Activations(rows),
            StageOutput::Logits(logits) => return logits,
        }
    }
    panic!("the last slice has no head");
}

/// Logits of every position of every sequence, computed together in chunks of `chunk` tokens.
pub fn all_logits(
    slices: &mut [LoadedSlice],
    team: &mut Team,
    sequences: &[&[u32]],
    chunk: usize,
) -> Vec<Vec<f32>> {
    let vocab = slices[0].config().vocab as usize;
    let mut out = vec![Vec::new(); sequences.len()];
    let longest = sequences.iter().map(|sequence| sequence.len()).max().unwrap();
    for start in (0..longest).step_by(chunk) {
        let mut chunks = Vec::new();
        let mut owners = Vec::new();
        for (s, sequence) in sequences.iter().enumerate().filter(|(_, sequence)| start < sequence.len()) {
            let end = sequence.len().min(start + chunk);
            let count = end.div_ceil(PAGE_TOKENS as usize);
            let pages = (0..count).map(|page| (page * sequences.len() + s) as u32).collect();
            chunks.push(Chunk {
                start: start as u32,
                tokens: sequence[start..end].to_vec(),
                pages,
                sample: true,
            });
            owners.push((s, end - start));
        }
        let logits = step(slices, team, &chunks);
        let mut rest = &logits[..];
        for (s, rows) in owners {
            out[s].extend_from_slice(&rest[..rows * vocab]);
            rest = &rest[rows * vocab..];
        }
        assert!(rest.is_empty());
    }
    out
}

pub fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

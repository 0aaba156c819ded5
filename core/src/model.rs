//! What the cluster knows of a model: shape, tensors by layer, digests. No weights.
//!
//! Must never read a file; `gguf` makes these values from bytes that an edge has read.

mod layer;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::plan::Slice;

pub use layer::LayerTensor;

/// Element types of tensors, with the numbers of the GGUF format.
/// Source: the GGUF specification (ggml/docs/gguf.md), `ggml_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl TensorType {
    /// From the number in a GGUF file; `None` for a type this build does not know.
    pub fn from_gguf(number: u32) -> Option<TensorType> {
        Some(match number {
            0 => TensorType::F32,
            1 => TensorType::F16,
            2 => TensorType::Q4_0,
            3 => TensorType::Q4_1,
            6 => TensorType::Q5_0,
            7 => TensorType::Q5_1,
            8 => TensorType::Q8_0,
            12 => TensorType::Q4K,
            13 => TensorType::Q5K,
            14 => TensorType::Q6K,
            30 => TensorType::Bf16,
            _ => return None,
        })
    }

    /// The number in a GGUF file.
    pub fn gguf_number(self) -> u32 {
        match self {
            TensorType::F32 => 0,
            TensorType::F16 => 1,
            TensorType::Q4_0 => 2,
            TensorType::Q4_1 => 3,
            TensorType::Q5_0 => 6,
            TensorType::Q5_1 => 7,
            TensorType::Q8_0 => 8,
            TensorType::Q4K => 12,
            TensorType::Q5K => 13,
            TensorType::Q6K => 14,
            TensorType::Bf16 => 30,
        }
    }

    /// (elements, bytes) of one block along the first dimension.
    pub fn block(self) -> (u64, u64) {
        match self {
            TensorType::F32 => (1, 4),
            TensorType::F16 | TensorType::Bf16 => (1, 2),
            TensorType::Q4_0 => (32, 18),
            TensorType::Q4_1 => (32, 20),
            TensorType::Q5_0 => (32, 22),
            TensorType::Q5_1 => (32, 24),
            TensorType::Q8_0 => (32, 34),
            TensorType::Q4K => (256, 144),
            TensorType::Q5K => (256, 176),
            TensorType::Q6K => (256, 210),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "F32",
            TensorType::F16 => "F16",
            TensorType::Bf16 => "BF16",
            TensorType::Q4_0 => "Q4_0",
            TensorType::Q4_1 => "Q4_1",
            TensorType::Q5_0 => "Q5_0",
            TensorType::Q5_1 => "Q5_1",
            TensorType::Q8_0 => "Q8_0",
            TensorType::Q4K => "Q4_K",
            TensorType::Q5K => "Q5_K",
            TensorType::Q6K => "Q6_K",
        }
    }
}

/// Model families with a file under `worker/models/`. Mistral's models are `Llama`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma3,
    Phi3,
}

/// Dimensions and constants of a transformer, checked.
///
/// `Default` is the plainest Llama; whoever reads a file starts from it and sets what the file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub family: Family,
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Dimensions of a head that are rotated.
    pub rope_dim: u32,
    pub rope_base: f32,
    pub norm_eps: f32,
    /// Weights of norms are kept less 1: it is added when they are loaded (Gemma's in safetensors files).
    pub norm_plus_one: bool,
    /// Width of the feed-forward part; with `experts`, of each of them.
    pub ffn: u32,
    pub vocab: u32,
    /// Tokens of context at most.
    pub context: u32,
    /// Output head is the embedding matrix.
    pub tied: bool,
    pub rope_pairing: RopePairing,
    pub rope_scaling: RopeScaling,
    pub window: Option<Window>,
    /// Scores of attention are multiplied by this; `None`: 1 / sqrt(head_dim).
    pub attention_scale: Option<f32>,
    /// Scores x of attention become cap * tanh(x / cap).
    pub attention_cap: Option<f32>,
    /// Logits likewise.
    pub logit_cap: Option<f32>,
    pub experts: Option<Experts>,
    /// Not of the file but of the operator: how the cache holds keys and values. It decides bits.
    pub kv: KvPrecision,
}

/// How the KV cache holds its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvPrecision {
    #[default]
    F32,
    /// Half the memory; every key and value is rounded once.
    F16,
}

impl KvPrecision {
    pub const NAMES: [&str; 2] = ["f32", "f16"];

    /// `f32` or `f16`.
    pub fn from_name(name: &str) -> Option<KvPrecision> {
        match name {
            "f32" => Some(KvPrecision::F32),
            "f16" => Some(KvPrecision::F16),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            KvPrecision::F32 => "f32",
            KvPrecision::F16 => "f16",
        }
    }

    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            KvPrecision::F32 => 4,
            KvPrecision::F16 => 2,
        }
    }
}

/// Which dimensions of a head are turned together. It follows from how the file orders the rows of
/// query and key, not from the family alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RopePairing {
    /// 2i and 2i + 1 (Llama in GGUF files, whose rows are reordered for it).
    Neighbours,
    /// i and i + rope_dim / 2 (all others, and every safetensors file).
    Halves,
}

/// How the steps of the rotation differ from base^(-2i / rope_dim).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    None,
    /// Every step is divided by `factor`.
    Linear {
        factor: f32,
    },
    /// Step i is divided by factor i. Cosine and sine are multiplied by `magnitude`.
    Factors {
        factors: RopeFactors,
        magnitude: f32,
    },
}

/// Where the rope_dim / 2 factors are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RopeFactors {
    /// In the tensor of this name, which every stage holds (`Place::Shared`).
    Tensor(String),
    Given(Vec<f32>),
}

/// Sliding window of local layers: a token sees the last `tokens` positions, its own among them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub tokens: u32,
    /// Each n-th layer is global: it sees everything. 0: every layer is local.
    pub global_every: u32,
    /// Base of the rotation in local layers, which is then not scaled. `None`: as in global ones.
    pub rope_base: Option<f32>,
}

/// A feed-forward part of many experts, of which a router chooses some for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    pub count: u32,
    /// Chosen for each token.
    pub used: u32,
    /// The weights of the chosen ones are divided by their sum.
    pub normalised: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            family: Family::Llama,
            layers: 1,
            hidden: 64,
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            rope_dim: 64,
            rope_base: 10_000.0,
            norm_eps: 1e-5,
            norm_plus_one: false,
            ffn: 64,
            vocab: 1,
            context: 1,
            tied: true,
            rope_pairing: RopePairing::Neighbours,
            rope_scaling: RopeScaling::None,
            window: None,
            attention_scale: None,
            attention_cap: None,
            logit_cap: None,
            experts: None,
            kv: KvPrecision::F32,
        }
    }
}

impl ModelConfig {
    /// Bytes of KV cache that one token takes in one layer.
    pub fn kv_bytes_per_token_layer(&self) -> u64 {
        2 * self.kv.bytes() * u64::from(self.kv_heads) * u64::from(self.head_dim)
    }

    /// The window of `layer`; `None` if it sees everything.
    pub fn window_of(&self, layer: u32) -> Option<Window> {
        self.window
            .filter(|window| window.global_every == 0 || !(layer + 1).is_multiple_of(window.global_every))
    }
}

/// Which part of the model a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// Token embedding: needed by the first stage, and by the last if `tied`.
    Embed,
    Layer(u32),
    /// Output norm and output matrix: the last stage.
    Head,
    /// Needed by every stage (e.g. rope factors).
    Shared,
}

/// One tensor of a model, addressed by its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSpec {
    pub name: String,
    /// GGUF order: the first dimension is contiguous.
    pub dims: Vec<u64>,
    pub kind: TensorType,
    pub place: Place,
    /// Offset of the first byte in the file.
    pub offset: u64,
    pub bytes: u64,
    pub digest: Digest,
}

/// A model of the catalogue as the cluster keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    pub name: String,
    /// Digest over header and tensor digests: names the weights exactly.
    pub digest: Digest,
    /// Bytes of the file before the tensor data (metadata, tokenizer, chat template), as a blob.
    pub header: Digest,
    pub header_bytes: u64,
    pub config: ModelConfig,
    pub tensors: Vec<TensorSpec>,
}

impl ModelSpec {
    /// Tensors that a stage holding `slice` needs, in file order.
    pub fn tensors_of(&self, slice: Slice) -> impl Iterator<Item = &TensorSpec> {
        let first = slice.first == 0;
        let last = slice.end == self.config.layers;
        let tied = self.config.tied;
        self.tensors.iter().filter(move |tensor| match tensor.place {
            Place::Embed => first || (last && tied),
            Place::Layer(layer) => slice.contains(layer),
            Place::Head => last,
            Place::Shared => true,
        })
    }

    /// Bytes of the tensors of `slice`.
    pub fn bytes_of(&self, slice: Slice) -> u64 {
        self.tensors_of(slice).map(|tensor| tensor.bytes).sum()
    }
}

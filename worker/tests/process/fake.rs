//! A fake arithmetic: every value is a hash over all that came before it, so any missing, doubled or
//! reordered step changes every later result.

use caravan_core::cluster::LayerTime;
use caravan_core::ids::Digest;
use caravan_core::model::{Family, ModelConfig, Place, TensorSpec, TensorType};
use caravan_core::request::{Sampled, Sampling};
use caravan_proto::{pack, wire};
use caravan_worker::compute::{Compute, Sampler};
use caravan_worker::sampler::SampleError;
use caravan_worker::slice::{Chunk, SliceSpec, StageInput, StageOutput, TensorSource};

pub const HIDDEN: usize = 4;
pub const VOCAB: usize = 97;
/// A token that makes the fake panic, and one that it answers with an error.
pub const PANIC: u32 = 90;
pub const BAD: u32 = 91;

pub struct Fake;

pub struct FakeSlice {
    weights: u64,
    last: bool,
    history: u64,
}

fn mix(state: u64, value: u64) -> u64 {
    let mut x = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (x >> 32)
}

impl Compute for Fake {
    type Slice = FakeSlice;
    type Sampler = FakeSampler;

    fn load(
        spec: SliceSpec,
        source: &dyn TensorSource,
        _reuse: Option<&FakeSlice>,
        progress: &(dyn Fn(f64) + Sync),
    ) -> anyhow::Result<FakeSlice> {
        let mut weights = 0;
        for (i, tensor) in spec.tensors.iter().enumerate() {
            anyhow::ensure!(tensor.name != "unloadable", "tensor {} has NaN scales", tensor.name);
            let bytes = source.read(tensor)?;
            for byte in (*bytes).as_ref() {
                weights = mix(weights, u64::from(*byte));
            }
            progress((i + 1) as f64 / spec.tensors.len() as f64);
        }
        Ok(FakeSlice { weights, last: spec.slice.end == spec.config.layers, history: 0 })
    }

    fn forward(
        &mut self,
        slice: &mut FakeSlice,
        chunks: &[Chunk],
        input: StageInput,
    ) -> anyhow::Result<StageOutput> {
        let mut activations = Vec::new();
        let mut logits = Vec::new();
        let mut row = 0;
        for chunk in chunks {
            for (i, token) in chunk.tokens.iter().enumerate() {
                assert_ne!(*token, PANIC, "the fake was told to panic");
                anyhow::ensure!(*token != BAD, "token {token} is not in the vocabulary");
                slice.history = mix(slice.history, slice.weights);
                slice.history = mix(slice.history, u64::from(chunk.start) + i as u64);
                slice.history = mix(slice.history, u64::from(*token));
                for page in &chunk.pages {
                    slice.history = mix(slice.history, u64::from(*page));
                }
                if let StageInput::Activations(values) = &input {
                    for value in &values[row * HIDDEN..(row + 1) * HIDDEN] {
                        slice.history = mix(slice.history, u64::from(value.to_bits()));
                    }
                }
                // Any bits must go through, those of NaNs too.
                activations.extend((0..HIDDEN).map(|j| f32::from_bits((slice.history >> (8 * j)) as u32)));
                row += 1;
            }
            if chunk.sample {
                let best = slice.history as usize % VOCAB;
                logits.extend((0..VOCAB).map(|token| if token == best { 1.0f32 } else { 0.0 }));
            }
        }
        Ok(if slice.last { StageOutput::Logits(logits) } else { StageOutput::Activations(activations) })
    }

    fn measure(
        &mut self,
        config: &ModelConfig,
        tensors: &[TensorSpec],
        throttle: f64,
    ) -> anyhow::Result<LayerTime> {
        assert_eq!(std::thread::current().name(), Some("engine"), "measured off the compute thread");
        Ok(LayerTime {
            decode_ms: f64::from(config.layers),
            prefill_short_ms: tensors.len() as f64,
            prefill_long_ms: 1.0 / throttle,
            head_ms: 4.0,
        })
    }

    fn sampler(sampling: Sampling, prompt_tokens: u32) -> FakeSampler {
        FakeSampler { state: mix(sampling.seed, u64::from(prompt_tokens)), seen: 0 }
    }

    fn renew(&mut self) {}
}

pub struct FakeSampler {
    state: u64,
    seen: u32,
}

impl Sampler for FakeSampler {
    fn see(&mut self, position: u32, token: u32) {
        if position >= self.seen {
            self.seen = position + 1;
            self.state = mix(self.state, u64::from(token));
        }
    }

    fn sample(&mut self, position: u32, logits: &mut [f32]) -> Result<Sampled, SampleError> {
        if position != self.seen {
            return Err(SampleError::Driver(format!("sampled at {position} having seen {}", self.seen)));
        }
        let best = logits.iter().position(|logit| *logit == 1.0).expect("one logit is 1") as u64;
        let token = ((best + self.state) % VOCAB as u64) as u32;
        Ok(Sampled { token: token.min(PANIC - 1), logprob: Some(-0.5), top: Vec::new() })
    }
}

/// A model of `layers` layers.
pub fn config(layers: u32) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        layers,
        hidden: HIDDEN as u32,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        rope_dim: 4,
        rope_base: 10000.0,
        norm_eps: 1e-5,
        ffn: 8,
        vocab: VOCAB as u32,
        context: 1024,
        tied: true,
        ..ModelConfig::default()
    }
}

/// The bytes of layer `layer`'s one tensor: `size` of them.
pub fn weight(layer: u32, size: usize) -> Vec<u8> {
    (0..size).map(|i| mix(u64::from(layer), i as u64) as u8).collect()
}

pub fn tensor(layer: u32, bytes: &[u8]) -> TensorSpec {
    TensorSpec {
        name: format!("blk.{layer}.weight"),
        dims: vec![bytes.len() as u64],
        kind: TensorType::Q8_0,
        place: Place::Layer(layer),
        offset: 0,
        bytes: bytes.len() as u64,
        digest: Digest(*blake3::hash(bytes).as_bytes()),
    }
}

/// A chunk on the wire; `open` with the first one of a sequence.
pub fn chunk(sequence: u64, start: u32, tokens: &[u32], sample: bool, open: bool) -> wire::Chunk {
    let sampling = Sampling { seed: sequence, ..Sampling::default() };
    wire::Chunk {
        sequence,
        start,
        tokens: tokens.to_vec(),
        pages: vec![sequence as u32, 7],
        sample,
        open: open
            .then(|| wire::SequenceOpen { sampling: pack(&sampling).expect("packs"), prompt_tokens: 3 }),
    }
}

pub fn step(epoch: u64, step: u64, chunks: Vec<wire::Chunk>) -> wire::Step {
    wire::Step { epoch, step, chunks, activations: bytes::Bytes::new(), closed: Vec::new() }
}

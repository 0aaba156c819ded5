//! Phi-3 and Phi-3.5 (dense): as Llama, with query, key and value in one tensor and gate and up in
//! another. Long-context models have two sets of rotation factors, of which the length of the
//! context chooses one for all positions (`caravan_core::gguf`).
//! Must never hold anything of a single model: sizes and constants come from its file.

use caravan_kernels::Gate;

use super::Traits;

pub const TRAITS: Traits = Traits { gate: Gate::Silu, scaled_embedding: false };

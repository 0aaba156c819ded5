//! Qwen2 and Qwen2.5: as Llama, with biased query, key and value.
//! Must never hold anything of a single model: sizes and constants come from its file.

use caravan_kernels::Gate;

use super::Traits;

pub const TRAITS: Traits = Traits { gate: Gate::Silu, scaled_embedding: false };

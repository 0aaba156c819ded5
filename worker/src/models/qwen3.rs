//! Qwen3: as Llama, with a norm for each head of query and key before they are rotated, and a head
//! size of its own.
//! Must never hold anything of a single model: sizes and constants come from its file.

use caravan_kernels::Gate;

use super::Traits;

pub const TRAITS: Traits = Traits { gate: Gate::Silu, scaled_embedding: false };

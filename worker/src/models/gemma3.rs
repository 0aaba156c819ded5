//! Gemma 3 (text): scaled embeddings, norms for heads and for what each part gives, a GELU gate,
//! and five local layers with a sliding window and a rotation of their own before each global one.
//!
//! In GGUF files the weights of the norms already hold the 1 that is added to them elsewhere.
//! Must never hold anything of a single model: sizes and constants come from its file.

use caravan_kernels::Gate;

use super::Traits;

pub const TRAITS: Traits = Traits { gate: Gate::GeluTanh, scaled_embedding: true };

//! Llama 1 to 3 and Mistral: pre-norm attention with rotated, grouped heads, then a gated
//! feed-forward part. Rotation may be scaled by a number, or by the factors of Llama 3.1 and later.
//!
//! GGUF files hold query and key rows in the order that makes rotation act on neighbouring pairs.
//! Mistral's early models have a sliding window in every layer.
//! Must never hold anything of a single model: sizes and constants come from its file.

use caravan_kernels::Gate;

use super::Traits;

pub const TRAITS: Traits = Traits { gate: Gate::Silu, scaled_embedding: false };

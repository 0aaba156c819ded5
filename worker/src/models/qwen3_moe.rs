//! Qwen3's mixtures of experts: Qwen3's attention, and in every layer a feed-forward part of many
//! experts of which a router chooses some for each token (`experts`).
//! Must never hold anything of a single model: sizes and constants come from its file.

use super::{Traits, qwen3};

/// An expert is gated as Qwen3's feed-forward part is.
pub const TRAITS: Traits = qwen3::TRAITS;

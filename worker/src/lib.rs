//! The worker: computes a slice of a model. Holds no authority: it does what the current epoch says.
//!
//! Must never import the coordinator crate: the two meet only over gRPC.

#![forbid(unsafe_code)]

pub mod kv;
pub mod measure;
pub mod models;
pub mod node;
pub mod sampler;
pub mod slice;
pub mod weights;

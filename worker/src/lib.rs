//! The worker: computes a slice of a model. Holds no authority: it does what the current epoch says.
//!
//! Must never import the coordinator crate: the two meet only over gRPC.

#![forbid(unsafe_code)]

pub mod assign;
pub mod attach;
pub mod bench;
pub mod blobs;
pub mod compute;
pub mod edges;
pub mod engine;
pub mod evaluate;
pub mod fetch;
pub mod kv;
pub mod links;
pub mod loading;
pub mod local;
pub mod machine;
pub mod measure;
pub mod models;
pub mod node;
pub mod sampler;
pub mod service;
pub mod slice;
pub mod stages;
pub mod steps;
pub mod weights;

//! The product's logic as pure machines: events in, commands out.
//!
//! Invariant: no tokio, sockets, files, tensors, clocks, randomness or threads. Time and random
//! numbers are arguments; maps are ordered.

#![forbid(unsafe_code)]

pub mod batch;
pub mod cluster;
pub mod error;
pub mod folder;
pub mod gguf;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod model;
pub mod placement;
pub mod plan;
pub mod request;
pub mod store;

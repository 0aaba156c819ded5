//! The coordinator: replicated cluster state, placement, the drivers' step loops, the HTTP front door.
//!
//! Must never import the worker crate: the two meet only over gRPC.

#![forbid(unsafe_code)]

pub mod api;
pub mod consensus;
pub mod driver;
pub mod fleet;
pub mod generate;
pub mod model_files;
pub mod node;
mod retention;
pub mod text;

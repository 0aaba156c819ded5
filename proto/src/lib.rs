//! Wire types between nodes and their checked conversions to `caravan-core` types.
//!
//! Must never be imported by `core`; wire types stop here, validation makes core types.

#![forbid(unsafe_code)]

/// Generated from `proto/caravan.proto`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod wire {
    tonic::include_proto!("caravan.v1");
}

mod convert;

pub use convert::*;

//! The worker process against fake coordinators over real loopback gRPC, with a fake arithmetic whose
//! results change when a step is missing, doubled or out of order.
//!
//! Must never need a model file or the real kernels.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attach;
mod blobs;
mod coordinator;
mod edges;
mod fake;
mod pipeline;
mod steps;
mod workers;

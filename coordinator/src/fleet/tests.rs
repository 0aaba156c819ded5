//! The fleet's machine against a log of its own: events in, what the cluster became out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod leases;
mod plans;
mod random;
mod world;

//! Whole-system suites: real processes started by `caravan up`, asked over HTTP, killed by pid.
//!
//! Must never reach beyond loopback, nor end a process that it did not start.
//! `CARAVAN_TEST_MODEL` names the model file (`scripts/test` sets it); `CARAVAN_FULL=1` runs the long forms.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cluster/ask.rs"]
mod ask;
#[path = "cluster/bad_input.rs"]
mod bad_input;
#[path = "cluster/consensus.rs"]
mod consensus;
#[path = "cluster/constrained.rs"]
mod constrained;
#[path = "cluster/exactness.rs"]
mod exactness;
#[path = "cluster/families.rs"]
mod families;
#[path = "cluster/files.rs"]
mod files;
#[path = "cluster/harness.rs"]
mod harness;
#[path = "cluster/kills.rs"]
mod kills;
#[path = "cluster/peers.rs"]
mod peers;
#[path = "cluster/share.rs"]
mod share;

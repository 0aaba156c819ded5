//! The replicated cluster state and the commands that change it. `apply` is the only door.
//!
//! Must never read a clock: times come in commands, stamped by the leader that proposed them.

mod add_model;
mod apply;
mod drain_worker;
mod expire_worker;
mod join_worker;
mod measure_worker;
mod pipeline_ready;
mod register_coordinator;
mod set_plan;
mod state;

pub use state::*;

#[cfg(test)]
mod tests;

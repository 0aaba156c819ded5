//! The replicated cluster state and the commands that change it. `apply` is the only door.
//!
//! Must never read a clock: times come in commands, stamped by the leader that proposed them.

mod state;

pub use state::*;

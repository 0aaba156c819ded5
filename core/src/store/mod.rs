//! The objects that outlive any machine: responses, conversations and their items, idempotency keys,
//! API keys, usage. Commands of the log change them; reads give them in pages.
//!
//! All of it works on ordered rows (`rows`), which a coordinator keeps in a file and a test in a map.
//! Must never read a clock: times come in commands, stamped by whoever proposed them.

mod apply;
mod bodies;
pub mod check;
mod conversations;
mod items;
mod keys;
mod memory;
mod once;
pub mod read;
mod responses;
mod retention;
mod rows;
mod tables;
mod types;

#[cfg(test)]
mod tests;

pub use apply::apply;
pub use memory::MemoryRows;
pub use rows::{Damaged, Key, Look, Order, Parts, Row, Rows, Scan, Table};
pub use tables::object;
pub use types::*;

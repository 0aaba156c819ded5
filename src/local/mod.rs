//! A cluster of processes on this machine: what `caravan up` starts and watches.
//!
//! Must never know what a node does; it sees processes, ports, files, and one HTTP answer.

pub mod backoff;
pub mod child;
pub mod files;
pub mod ports;
pub mod ready;
pub mod specs;
pub mod supervise;

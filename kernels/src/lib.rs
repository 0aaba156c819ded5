//! The arithmetic, bit-exact on every instruction set; the only crate with `unsafe`.
//!
//! Every output element has one fixed order of floating-point operations, which depends on nothing
//! but the weight format and the dimensions: not on the number of rows, the row's place, the
//! threads or the instruction set. Each kernel's body is written once over 16 lanes (`lanes`) and
//! compiled for scalar, AVX2+FMA, AVX-512 and NEON code. The modules state their order of operations.
//!
//! Must never know of models, sequences, files' formats beyond weight blocks, or the network.

mod activations;
pub mod attention;
mod blocks;
mod isa;
mod lanes;
pub mod map;
pub mod math;
mod matmul;
mod packed;
pub mod rows;
mod stored;
mod team;
#[cfg(test)]
mod testing;

pub use activations::Activations;
pub use blocks::WeightType;
pub use isa::Isa;
pub use matmul::{Product, Store, gated, multiply};
pub use packed::{Matrix, PackError};
pub use rows::{Gate, Pairing};
pub use team::Team;

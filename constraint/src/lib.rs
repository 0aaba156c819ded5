//! What an answer may say: JSON schemas, regular expressions and grammars, compiled and walked token
//! by token. The gateway compiles a constraint to refuse what can't work; the last stage walks it.
//!
//! What is allowed after some tokens depends on the constraint, the vocabulary and those tokens, and
//! on nothing else: no clock, no thread, no other sequence. So does the verdict of every limit,
//! provided that a sequence asks after each of its tokens (`Walk` sees to that): the work that a limit
//! counts depends on what was asked before.
//!
//! Must never run on a thread that others wait for: compiling takes up to a second, and both
//! compiling and walking need a deep stack (`limits::CONSTRAINT_STACK_BYTES`).

#![forbid(unsafe_code)]

mod compile;
mod error;
mod walk;

#[cfg(test)]
mod tests;

pub use compile::{Compiled, Compiler, embedded};
pub use error::ConstraintError;
pub use walk::{Allowed, Walk};

//! The arithmetic, bit-exact on every instruction set; the only crate with `unsafe`.

/// A team of compute threads.
pub struct Team {}

impl Team {
    /// `threads` >= 1; 1 runs everything on the caller.
    pub fn new(_threads: usize) -> Team {
        todo!()
    }
}

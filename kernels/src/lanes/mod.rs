//! Sixteen f32 lanes with the few operations the kernels are made of.
//!
//! Every operation is exactly defined (IEEE 754 round to nearest, or a bit manipulation), so the
//! three kinds of lanes agree to the bit. `Scalar` is the definition; the others must equal it.
//! Must never offer an operation whose result an instruction set may choose (estimates, flushes).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use scalar::Scalar;
pub(crate) use scalar::{bf16_to_f32, f16_to_f32};

/// Lanes per vector, and columns per panel of packed weights.
pub(crate) const LANES: usize = 16;

/// Values of an implementing type exist only inside `Isa::run`, which has checked the CPU: that is
/// why arithmetic on them is safe. Every method must be `#[inline(always)]`.
pub(crate) trait Lanes: Copy {
    /// Sixteen 32-bit words of packed nibbles.
    type Words: Copy;
    /// What `nibble` needs to turn 0..16 into numbers.
    type Table: Copy;
    /// One vector is one register, and there are 32 of them.
    const WIDE: bool;

    fn splat(x: f32) -> Self;

    /// # Safety
    /// `p` must be valid for reading 16 f32, unaligned.
    unsafe fn load(p: *const f32) -> Self;

    /// # Safety
    /// `p` must be valid for writing 16 f32, unaligned.
    unsafe fn store(self, p: *mut f32);

    /// Exact conversion of 16 signed bytes.
    /// # Safety
    /// `p` must be valid for reading 16 bytes.
    unsafe fn load_i8(p: *const i8) -> Self;

    /// Exact widening of 16 half-precision numbers.
    /// # Safety
    /// `p` must be valid for reading 16 u16, unaligned.
    unsafe fn load_f16(p: *const u16) -> Self;

    /// Exact widening of 16 bfloat16 numbers.
    /// # Safety
    /// `p` must be valid for reading 16 u16, unaligned.
    unsafe fn load_bf16(p: *const u16) -> Self;

    /// # Safety
    /// `p` must be valid for reading 16 u32, unaligned.
    unsafe fn load_words(p: *const u32) -> Self::Words;

    /// The table for nibbles that stand for `nibble + offset`.
    fn table(offset: i32) -> Self::Table;

    /// The lowest nibble of each word as a number; shifts the words on to the next nibble.
    fn nibble(words: &mut Self::Words, table: Self::Table) -> Self;

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;

    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;

    /// Per lane `if self > other { self } else { other }`: `other` if either is NaN.
    fn max(self, other: Self) -> Self;

    /// Per lane `if self < other { self } else { other }`: `other` if either is NaN.
    fn min(self, other: Self) -> Self;

    /// For lanes that hold `1.5 * 2^23 + n` with whole n in -126..=127: 2^n.
    fn pow2(self) -> Self;

    /// The sum in one fixed tree: lanes j and j+8, then j and j+4, j and j+2, j and j+1.
    fn sum(self) -> f32;
}

//! Sixteen f32 lanes with the few operations the kernels are made of.
//!
//! Every operation is exactly defined (IEEE 754 round to nearest, or a bit manipulation), so all
//! kinds of lanes agree to the bit. `Scalar` is the definition; the others must equal it.
//! Must never offer an operation whose result an instruction set may choose (estimates, flushes).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;
pub(crate) use scalar::{bf16_to_f32, f16_to_f32, f32_to_f16};

/// Lanes per vector, and columns per panel of packed weights.
pub(crate) const LANES: usize = 16;

/// Values of an implementing type exist only inside `Isa::run`, which has checked the CPU: that is
/// why arithmetic on them is safe. Every method must be `#[inline(always)]`.
pub(crate) trait Lanes: Copy {
    /// Sixteen 32-bit words: whole numbers, or pairs of 16-bit numbers (the first in the low half).
    type Words: Copy;
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

    /// Exact conversion of 16 unsigned bytes.
    /// # Safety
    /// `p` must be valid for reading 16 bytes.
    unsafe fn load_u8(p: *const u8) -> Self;

    /// Exact widening of 16 half-precision numbers.
    /// # Safety
    /// `p` must be valid for reading 16 u16, unaligned.
    unsafe fn load_f16(p: *const u16) -> Self;

    /// Exact widening of 16 bfloat16 numbers.
    /// # Safety
    /// `p` must be valid for reading 16 u16, unaligned.
    unsafe fn load_bf16(p: *const u16) -> Self;

    /// Asks for a line of memory ahead of its use. Any address will do: nothing is read.
    fn prefetch(p: *const u8);

    fn splat_words(word: u32) -> Self::Words;

    /// # Safety
    /// `p` must be valid for reading 16 u32, unaligned.
    unsafe fn load_words(p: *const u32) -> Self::Words;

    /// # Safety
    /// `p` must be valid for writing 16 u32, unaligned.
    unsafe fn store_words(words: Self::Words, p: *mut u32);

    /// 32 signed bytes as pairs of 16-bit numbers.
    /// # Safety
    /// `p` must be valid for reading 32 bytes.
    unsafe fn load_pairs_i8(p: *const i8) -> Self::Words;

    fn and(a: Self::Words, b: Self::Words) -> Self::Words;
    fn or(a: Self::Words, b: Self::Words) -> Self::Words;

    /// Each word shifted right by a constant.
    fn shift_right<const N: u32>(words: Self::Words) -> Self::Words;

    /// Each word shifted left by a constant.
    fn shift_left<const N: u32>(words: Self::Words) -> Self::Words;

    /// Differences of the 16-bit numbers.
    fn sub_pairs(a: Self::Words, b: Self::Words) -> Self::Words;

    /// `sum` (whole numbers) plus the dot product of each pair of `a` with that of `b`. The caller
    /// sees to it that nothing overflows.
    fn dot(sum: Self::Words, a: Self::Words, b: Self::Words) -> Self::Words;

    /// Whole numbers to floats, rounded to nearest, ties to even.
    fn from_words(words: Self::Words) -> Self;

    /// Floats to whole numbers, rounded to nearest, ties to even. Only for numbers below 2^31 in
    /// magnitude; others (and NaN) give any number.
    fn to_words(self) -> Self::Words;

    /// Pairs of neighbours: of 32 whole numbers in -32768..=32767, word j gets numbers 2j and 2j + 1.
    fn pairs(low: Self::Words, high: Self::Words) -> Self::Words;

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

#[cfg(test)]
mod tests;

//! The definition of the lanes, in plain Rust.
//!
//! Must never be changed for speed: the other lanes are tested against it.

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

/// Half precision to single, exactly; NaN becomes quiet, as the CPU's conversion does.
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let exponent = u32::from(h >> 10) & 0x1f;
    let fraction = u32::from(h) & 0x3ff;
    let magnitude = match exponent {
        // Zero and subnormals: fraction * 2^-24 is exact.
        0 => (fraction as f32 * (1.0 / 16_777_216.0)).to_bits(),
        31 if fraction == 0 => 0x7f80_0000,
        31 => 0x7fc0_0000 | (fraction << 13),
        _ => ((exponent + 112) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Scalar(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    unsafe fn read<T: Copy>(p: *const T, f: impl Fn(T) -> f32) -> Self {
        // SAFETY: the caller vouches for 16 readable elements.
        Scalar(std::array::from_fn(|i| f(unsafe { p.add(i).read_unaligned() })))
    }
}

impl Lanes for Scalar {
    type Words = [u32; LANES];
    type Table = i32;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Scalar([x; LANES])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for the pointer.
        unsafe { Self::read(p, |x| x) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller vouches for the pointer.
        unsafe { Self::read(p, f32::from) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for the pointer.
        unsafe { Self::read(p, f16_to_f32) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller vouches for the pointer.
        unsafe { Self::read(p, bf16_to_f32) }
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Self::Words {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn table(offset: i32) -> i32 {
        offset
    }

    #[inline(always)]
    fn nibble(words: &mut Self::Words, table: i32) -> Self {
        let lanes = std::array::from_fn(|i| ((words[i] & 15) as i32 + table) as f32);
        for word in words {
            *word >>= 4;
        }
        Scalar(lanes)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Scalar(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        Scalar(self.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(0x3f80_0000))))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for j in 0..half {
                x[j] += x[j + half];
            }
        }
        x[0]
    }
}

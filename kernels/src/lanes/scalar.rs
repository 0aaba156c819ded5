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

/// Single precision to half, rounded to nearest, ties to even; too large becomes infinite, NaN stays NaN.
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14: beside 0.5 the last place of a float is worth 2^-24, as that of such a half is.
        let sum = f32::from_bits(magnitude) + 0.5;
        sum.to_bits() - 0x3f00_0000
    } else {
        // Half of the last place that stays, less one if it is even: a carry may reach the exponent, and
        // infinity.
        let odd = (magnitude >> 13) & 1;
        (magnitude - 0x3800_0000 + 0xfff + odd) >> 13
    };
    sign | half as u16
}

pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

fn pair(low: i16, high: i16) -> u32 {
    u32::from(low as u16) | u32::from(high as u16) << 16
}

fn halves(word: u32) -> [i16; 2] {
    [word as i16, (word >> 16) as i16]
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
    unsafe fn load_u8(p: *const u8) -> Self {
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
    fn prefetch(_: *const u8) {}

    #[inline(always)]
    fn splat_words(word: u32) -> Self::Words {
        [word; LANES]
    }

    #[inline(always)]
    unsafe fn store_words(words: Self::Words, p: *mut u32) {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.cast::<[u32; LANES]>().write_unaligned(words) }
    }

    #[inline(always)]
    unsafe fn load_pairs_i8(p: *const i8) -> Self::Words {
        // SAFETY: the caller vouches for 32 readable bytes.
        let at = |i| i16::from(unsafe { *p.add(i) });
        std::array::from_fn(|j| pair(at(2 * j), at(2 * j + 1)))
    }

    #[inline(always)]
    fn and(a: Self::Words, b: Self::Words) -> Self::Words {
        std::array::from_fn(|j| a[j] & b[j])
    }

    #[inline(always)]
    fn or(a: Self::Words, b: Self::Words) -> Self::Words {
        std::array::from_fn(|j| a[j] | b[j])
    }

    #[inline(always)]
    fn shift_right<const N: u32>(words: Self::Words) -> Self::Words {
        words.map(|word| word >> N)
    }

    #[inline(always)]
    fn shift_left<const N: u32>(words: Self::Words) -> Self::Words {
        words.map(|word| word << N)
    }

    #[inline(always)]
    fn sub_pairs(a: Self::Words, b: Self::Words) -> Self::Words {
        std::array::from_fn(|j| {
            let ([a0, a1], [b0, b1]) = (halves(a[j]), halves(b[j]));
            pair(a0.wrapping_sub(b0), a1.wrapping_sub(b1))
        })
    }

    #[inline(always)]
    fn dot(sum: Self::Words, a: Self::Words, b: Self::Words) -> Self::Words {
        std::array::from_fn(|j| {
            let ([a0, a1], [b0, b1]) = (halves(a[j]), halves(b[j]));
            let products = [i32::from(a0) * i32::from(b0), i32::from(a1) * i32::from(b1)];
            sum[j].wrapping_add(products[0].wrapping_add(products[1]) as u32)
        })
    }

    #[inline(always)]
    fn from_words(words: Self::Words) -> Self {
        Scalar(words.map(|word| word as i32 as f32))
    }

    #[inline(always)]
    fn to_words(self) -> Self::Words {
        self.0.map(|x| x.round_ties_even() as i32 as u32)
    }

    #[inline(always)]
    fn pairs(low: Self::Words, high: Self::Words) -> Self::Words {
        std::array::from_fn(|j| {
            let from = if j < LANES / 2 { &low } else { &high };
            let at = 2 * (j % (LANES / 2));
            pair(from[at] as i16, from[at + 1] as i16)
        })
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

//! Lanes in four 128-bit registers of a 64-bit Arm.
//!
//! Must equal `Scalar` to the bit, and use nothing that an Arm of version 8.0 lacks: a dot product of
//! 16-bit pairs is two widening products and a pairwise sum, all exact.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

/// Not the intrinsic, whose type for half precision is younger than the Rust this builds with.
/// # Safety
/// `p` must be valid for reading 4 u16, unaligned.
#[inline(always)]
unsafe fn widen_f16(p: *const u16) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: the load is the caller's to vouch for; the instruction only touches the registers named.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) vld1_u16(p),
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

#[inline(always)]
fn each<T: Copy, U>(a: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn both<T: Copy, U>(a: [T; 4], b: [T; 4], f: impl Fn(T, T) -> U) -> [U; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Four quarters of 16 lanes, each from its first lane.
#[inline(always)]
fn quarters<U>(f: impl Fn(usize) -> U) -> [U; 4] {
    [f(0), f(4), f(8), f(12)]
}

/// Sixteen bytes as four registers of 32-bit numbers.
#[inline(always)]
fn widen_i8(bytes: int8x16_t) -> [int32x4_t; 4] {
    // SAFETY: every 64-bit Arm has these instructions.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]
    }
}

// SAFETY of every block below: every 64-bit Arm has these instructions; pointers are vouched for by
// the caller.
#[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)]
impl Lanes for Neon {
    type Words = [uint32x4_t; 4];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Neon([unsafe { vdupq_n_f32(x) }; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Neon(quarters(|at| unsafe { vld1q_f32(p.add(at)) }))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        for (i, quarter) in self.0.into_iter().enumerate() {
            unsafe { vst1q_f32(p.add(4 * i), quarter) }
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        Neon(each(widen_i8(unsafe { vld1q_s8(p) }), |x| unsafe { vcvtq_f32_s32(x) }))
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        unsafe {
            let bytes = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let words = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            Neon(each(words, |x| vcvtq_f32_u32(x)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Neon(quarters(|at| unsafe { widen_f16(p.add(at)) }))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        Neon(quarters(|at| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(at)))) }))
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Self::Words {
        quarters(|at| unsafe { vld1q_u32(p.add(at)) })
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        // A hint: it neither faults nor reads.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) p, options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn splat_words(word: u32) -> Self::Words {
        [unsafe { vdupq_n_u32(word) }; 4]
    }

    #[inline(always)]
    unsafe fn store_words(words: Self::Words, p: *mut u32) {
        for (i, quarter) in words.into_iter().enumerate() {
            unsafe { vst1q_u32(p.add(4 * i), quarter) }
        }
    }

    #[inline(always)]
    unsafe fn load_pairs_i8(p: *const i8) -> Self::Words {
        unsafe {
            let (low, high) = (vld1q_s8(p), vld1q_s8(p.add(16)));
            let pairs = [
                vmovl_s8(vget_low_s8(low)),
                vmovl_high_s8(low),
                vmovl_s8(vget_low_s8(high)),
                vmovl_high_s8(high),
            ];
            each(pairs, |x| vreinterpretq_u32_s16(x))
        }
    }

    #[inline(always)]
    fn and(a: Self::Words, b: Self::Words) -> Self::Words {
        both(a, b, |a, b| unsafe { vandq_u32(a, b) })
    }

    #[inline(always)]
    fn or(a: Self::Words, b: Self::Words) -> Self::Words {
        both(a, b, |a, b| unsafe { vorrq_u32(a, b) })
    }

    #[inline(always)]
    fn shift_right<const N: u32>(words: Self::Words) -> Self::Words {
        // The intrinsic's constant has another type; this form becomes the same instruction.
        each(words, |x| unsafe { vshlq_u32(x, vdupq_n_s32(-(N as i32))) })
    }

    #[inline(always)]
    fn shift_left<const N: u32>(words: Self::Words) -> Self::Words {
        each(words, |x| unsafe { vshlq_u32(x, vdupq_n_s32(N as i32)) })
    }

    #[inline(always)]
    fn sub_pairs(a: Self::Words, b: Self::Words) -> Self::Words {
        both(a, b, |a, b| unsafe {
            vreinterpretq_u32_u16(vsubq_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)))
        })
    }

    #[inline(always)]
    fn dot(sum: Self::Words, a: Self::Words, b: Self::Words) -> Self::Words {
        let products = both(a, b, |a, b| unsafe {
            let (a, b) = (vreinterpretq_s16_u32(a), vreinterpretq_s16_u32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vreinterpretq_u32_s32(vpaddq_s32(low, vmull_high_s16(a, b)))
        });
        both(sum, products, |a, b| unsafe { vaddq_u32(a, b) })
    }

    #[inline(always)]
    fn from_words(words: Self::Words) -> Self {
        Neon(each(words, |x| unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(x)) }))
    }

    #[inline(always)]
    fn to_words(self) -> Self::Words {
        each(self.0, |x| unsafe { vreinterpretq_u32_s32(vcvtnq_s32_f32(x)) })
    }

    #[inline(always)]
    fn pairs(low: Self::Words, high: Self::Words) -> Self::Words {
        let narrow = |a, b| unsafe { vreinterpretq_u32_u16(vmovn_high_u32(vmovn_u32(a), b)) };
        [narrow(low[0], low[1]), narrow(low[2], low[3]), narrow(high[0], high[1]), narrow(high[2], high[3])]
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Neon(both(self.0, other.0, |a, b| unsafe { vaddq_f32(a, b) }))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Neon(both(self.0, other.0, |a, b| unsafe { vsubq_f32(a, b) }))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Neon(both(self.0, other.0, |a, b| unsafe { vmulq_f32(a, b) }))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Neon(both(self.0, other.0, |a, b| unsafe { vdivq_f32(a, b) }))
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Neon(std::array::from_fn(|i| unsafe { vfmaq_f32(c.0[i], self.0[i], b.0[i]) }))
    }

    // Not the instructions for the largest and smallest: those prefer NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Neon(both(self.0, other.0, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Neon(both(self.0, other.0, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }))
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        Neon(each(self.0, |x| unsafe {
            let shifted = vshlq_n_u32::<23>(vreinterpretq_u32_f32(x));
            vreinterpretq_f32_u32(vaddq_u32(shifted, vdupq_n_u32(0x3f80_0000)))
        }))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = vaddq_f32(vaddq_f32(self.0[0], self.0[2]), vaddq_f32(self.0[1], self.0[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}

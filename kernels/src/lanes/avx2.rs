//! Lanes in two 256-bit registers.
//!
//! Must equal `Scalar` to the bit. With VNNI (AVX-VNNI), `dot` is one instruction a register.

use std::arch::asm;
use std::arch::x86_64::*;

use super::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(__m256, __m256);

/// The lower three levels of the tree of `Lanes::sum`.
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
pub(super) unsafe fn sum8(x: __m256) -> f32 {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Not the intrinsic: the compiler takes that apart into a product and a sum.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn dot_vnni(mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the instruction only reads and writes the registers named.
    unsafe {
        asm!("{{vex}} vpdpwssd {0}, {1}, {2}", inout(ymm_reg) sum, in(ymm_reg) a, in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

// SAFETY of every block below: values of these types exist only where `Isa::run` found AVX2, FMA
// and F16C (see the trait); pointers are vouched for by the caller.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type Words = (__m256i, __m256i);
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let half = unsafe { _mm256_set1_ps(x) };
        Avx2(half, half)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            Avx2(low, _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Self::Words {
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())) }
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    fn splat_words(word: u32) -> Self::Words {
        let half = unsafe { _mm256_set1_epi32(word as i32) };
        (half, half)
    }

    #[inline(always)]
    unsafe fn store_words(words: Self::Words, p: *mut u32) {
        unsafe {
            _mm256_storeu_si256(p.cast(), words.0);
            _mm256_storeu_si256(p.add(8).cast(), words.1);
        }
    }

    #[inline(always)]
    unsafe fn load_pairs_i8(p: *const i8) -> Self::Words {
        unsafe {
            let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            (low, _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(16).cast())))
        }
    }

    #[inline(always)]
    fn and(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { (_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1)) }
    }

    #[inline(always)]
    fn or(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { (_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }

    #[inline(always)]
    fn shift_right<const N: u32>(words: Self::Words) -> Self::Words {
        // The intrinsic's constant has another type; this form becomes the same instruction.
        let count = unsafe { _mm_cvtsi32_si128(N as i32) };
        unsafe { (_mm256_srl_epi32(words.0, count), _mm256_srl_epi32(words.1, count)) }
    }

    #[inline(always)]
    fn shift_left<const N: u32>(words: Self::Words) -> Self::Words {
        let count = unsafe { _mm_cvtsi32_si128(N as i32) };
        unsafe { (_mm256_sll_epi32(words.0, count), _mm256_sll_epi32(words.1, count)) }
    }

    #[inline(always)]
    fn sub_pairs(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { (_mm256_sub_epi16(a.0, b.0), _mm256_sub_epi16(a.1, b.1)) }
    }

    #[inline(always)]
    fn dot(sum: Self::Words, a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe {
            if VNNI {
                return (dot_vnni(sum.0, a.0, b.0), dot_vnni(sum.1, a.1, b.1));
            }
            let low = _mm256_add_epi32(sum.0, _mm256_madd_epi16(a.0, b.0));
            (low, _mm256_add_epi32(sum.1, _mm256_madd_epi16(a.1, b.1)))
        }
    }

    #[inline(always)]
    fn from_words(words: Self::Words) -> Self {
        unsafe { Avx2(_mm256_cvtepi32_ps(words.0), _mm256_cvtepi32_ps(words.1)) }
    }

    #[inline(always)]
    fn to_words(self) -> Self::Words {
        // The control register rounds to nearest: Rust programs never change it.
        unsafe { (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1)) }
    }

    #[inline(always)]
    fn pairs(low: Self::Words, high: Self::Words) -> Self::Words {
        unsafe {
            // Packing works within halves of 128 bits; the permutation puts the quarters in order.
            let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low.0, low.1));
            (low, _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(high.0, high.1)))
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        unsafe {
            let one = _mm256_set1_epi32(0x3f80_0000);
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.1));
            Avx2(
                _mm256_castsi256_ps(_mm256_add_epi32(low, one)),
                _mm256_castsi256_ps(_mm256_add_epi32(high, one)),
            )
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
    }
}

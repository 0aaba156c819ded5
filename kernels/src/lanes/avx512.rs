//! Lanes in one 512-bit register.
//!
//! Must equal `Scalar` to the bit.

use std::arch::x86_64::*;

use super::Lanes;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY of every block below: values of these types exist only where `Isa::run` found AVX-512 F,
// BW, VL and DQ (see the trait); pointers are vouched for by the caller.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    type Words = __m512i;
    type Table = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        Avx512(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Self::Words {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    fn table(offset: i32) -> __m512 {
        unsafe {
            let steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_cvtepi32_ps(_mm512_add_epi32(steps, _mm512_set1_epi32(offset)))
        }
    }

    #[inline(always)]
    fn nibble(words: &mut Self::Words, table: __m512) -> Self {
        unsafe {
            // The permutation reads only the lowest four bits of each index: no mask is needed.
            let lanes = _mm512_permutexvar_ps(*words, table);
            *words = _mm512_srli_epi32::<4>(*words);
            Avx512(lanes)
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        Avx512(unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
            _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f80_0000)))
        })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            super::avx2::sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }
}

//! Numbers as the KV cache holds them: single or half precision.
//!
//! Must never round but in `Stored::store`: a number that was put is read the same for ever.

use crate::lanes::{Lanes, f16_to_f32, f32_to_f16};

/// A number of the cache.
pub trait Stored: Copy + Send + Sync + 'static + sealed::Sealed {
    /// The type is a `Half`, else f32.
    const HALVES: bool;

    /// `count` zeros, in memory that the system gives only when it is written.
    fn zeros(count: usize) -> Vec<Self>;

    /// The nearest number that the cache can hold; ties to even.
    fn store(x: f32) -> Self;

    /// Exactly what was stored.
    fn value(self) -> f32;
}

/// Half precision (IEEE 754 binary16). Beyond 65,504 a number becomes infinite, as everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Half(u16);

impl Stored for f32 {
    const HALVES: bool = false;

    fn zeros(count: usize) -> Vec<f32> {
        vec![0.0; count]
    }

    #[inline(always)]
    fn store(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

impl Stored for Half {
    const HALVES: bool = true;

    fn zeros(count: usize) -> Vec<Half> {
        // Not `vec![Half(0); count]`, which writes every place.
        let mut words = std::mem::ManuallyDrop::new(vec![0u16; count]);
        // SAFETY: a `Half` is a u16 in all but name, and nobody else owns the memory any more.
        unsafe { Vec::from_raw_parts(words.as_mut_ptr().cast(), count, words.capacity()) }
    }

    #[inline(always)]
    fn store(x: f32) -> Half {
        Half(f32_to_f16(x))
    }

    #[inline(always)]
    fn value(self) -> f32 {
        f16_to_f32(self.0)
    }
}

/// Nobody else's type: `load` takes an implementor for what its `HALVES` says.
mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::Half {}
}

/// Sixteen numbers of the cache, exactly.
/// # Safety
/// `p` must be valid for reading 16 numbers.
#[inline(always)]
pub(crate) unsafe fn load<V: Lanes, E: Stored>(p: *const E) -> V {
    // SAFETY: vouched for by the caller; an `E` is a u16 or an f32, as it says.
    unsafe { if E::HALVES { V::load_f16(p.cast()) } else { V::load(p.cast()) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_half_that_is_a_number_is_stored_as_itself() {
        for bits in 0..=u16::MAX {
            let value = Half(bits).value();
            if value.is_nan() {
                assert!(Half::store(value).value().is_nan(), "{bits:#06x}");
            } else {
                assert_eq!(Half::store(value), Half(bits), "{bits:#06x}");
            }
        }
    }

    /// The halves on both sides of `x`, and where the line between them is; all in f64, exactly.
    fn nearest(x: f32) -> u16 {
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        let magnitude = f64::from(x.abs());
        // Halves of one sign are in the order of their bits; "infinity" stands at 65,536.
        let number = |bits: u16| if bits == 0x7c00 { 65_536.0 } else { f64::from(Half(bits).value()) };
        let above =
            (0..=0x7c00u16).collect::<Vec<_>>().partition_point(|bits| number(*bits) < magnitude) as u16;
        if above == 0 || above > 0x7c00 {
            return sign | above.min(0x7c00);
        }
        let below = above - 1;
        let (down, up) = (magnitude - number(below), number(above) - magnitude);
        let even = if below.is_multiple_of(2) { below } else { above };
        sign | if down < up {
            below
        } else if up < down {
            above
        } else {
            even
        }
    }

    proptest! {
        #[test]
        fn a_number_becomes_the_nearest_half(
            bits: u32, small in -1e-7f32..1e-7, middle in -1000f32..1000.0, half in 0..0x7c00u16
        ) {
            // Exactly between two halves: what ties are.
            let tie = (f64::from(Half(half).value()) + f64::from(Half(half.min(0x7bfe) + 1).value())) / 2.0;
            for x in [f32::from_bits(bits), small, middle, tie as f32, -tie as f32] {
                if !x.is_nan() {
                    prop_assert_eq!(Half::store(x), Half(nearest(x)), "{} {:?}", x, Half(nearest(x)).value());
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_or_no_number_stays_so() {
        assert_eq!(Half::store(65_519.0).value(), 65_504.0);
        assert_eq!(Half::store(65_520.0).value(), f32::INFINITY);
        assert_eq!(Half::store(f32::NEG_INFINITY).value(), f32::NEG_INFINITY);
        assert!(Half::store(f32::NAN).value().is_nan());
        assert_eq!(Half::store(-0.0).value().to_bits(), (-0f32).to_bits());
    }
}

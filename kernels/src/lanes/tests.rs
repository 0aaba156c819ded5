//! Every operation of every kind of lanes against `Scalar`, on the numbers that are easy to get wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::{LANES, Lanes};
use crate::isa::{Isa, Kernel};
use crate::testing::Random;

/// Zeros, subnormals, the ends of ranges, halves between whole numbers, infinities, NaN, others.
fn floats(random: &mut Random) -> Vec<f32> {
    let mut all = vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
    all.extend([f32::MIN_POSITIVE, -f32::MIN_POSITIVE, 1e-45, -1e-45, 1e-40, 65504.0, 16_777_217.0]);
    all.extend((-8..8).map(|half| half as f32 * 0.5));
    all.extend([32767.0, -32768.0, 32766.5, -32767.5, 8_388_607.5, 2_147_483_520.0, -2_147_483_648.0]);
    all.extend((0..83).map(|_| random.number() * f32::from_bits(((random.bits() % 250) as u32) << 23)));
    all.extend((0..16).map(|_| random.number() * 40_000.0));
    all
}

fn words(random: &mut Random) -> Vec<u32> {
    let mut all = vec![0, 1, u32::MAX, 0x8000_0000, 0x7fff_ffff, 0x8000_8000, 0x7fff_7fff, 0x8000_7fff];
    all.extend((0..56).map(|_| random.bits() as u32));
    all
}

/// Everything that can be read, by every operation; the results as bits, NaN as one NaN.
struct Everything {
    floats: Vec<f32>,
    words: Vec<u32>,
}

#[inline(always)]
fn keep<V: Lanes>(out: &mut Vec<u32>, x: V) {
    let mut lanes = [0f32; LANES];
    // SAFETY: 16 elements.
    unsafe { x.store(lanes.as_mut_ptr()) };
    out.extend(lanes.map(canonical));
}

fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

#[inline(always)]
fn keep_words<V: Lanes>(out: &mut Vec<u32>, x: V::Words) {
    let mut lanes = [0u32; LANES];
    // SAFETY: 16 elements.
    unsafe { V::store_words(x, lanes.as_mut_ptr()) };
    out.extend(lanes);
}

#[inline(always)]
fn on_floats<V: Lanes>(floats: &[f32], out: &mut Vec<u32>) {
    // One place further along each time, so that values meet in other lanes and other pairs.
    for at in 0..floats.len() - 2 * LANES {
        // SAFETY: 16 elements from each of these places.
        let (a, b, c) = unsafe {
            let p = floats.as_ptr();
            let other = (at * 7 + 11) % (floats.len() - 2 * LANES);
            (V::load(p.add(at)), V::load(p.add(other)), V::load(p.add(other + LANES)))
        };
        for x in [a.add(b), a.sub(b), a.mul(b), a.div(b), a.fma(b, c), a.max(b), a.min(b)] {
            keep(out, x);
        }
        keep(out, V::splat(floats[at]));
        out.push(canonical(a.sum()));
        // Only what the conversion is defined for.
        let bound = 2_147_483_520.0;
        keep_words::<V>(out, a.max(V::splat(-bound)).min(V::splat(bound)).to_words());
        let short = V::splat(-32768.0).max(a.min(V::splat(32767.0)));
        let other = V::splat(-32768.0).max(b.min(V::splat(32767.0)));
        keep_words::<V>(out, V::pairs(short.to_words(), other.to_words()));
    }
    for n in -126..=127 {
        keep(out, V::splat(12_582_912.0 + n as f32).pow2());
    }
}

#[inline(always)]
fn on_words<V: Lanes>(words: &[u32], out: &mut Vec<u32>) {
    for at in 0..words.len() - LANES {
        // SAFETY: 16 elements from each of these places; 32 and 16 bytes and 16 shorts lie within them.
        unsafe {
            let p = words.as_ptr();
            let (a, b) =
                (V::load_words(p.add(at)), V::load_words(p.add((at * 5 + 3) % (words.len() - LANES))));
            keep_words::<V>(out, V::and(a, b));
            keep_words::<V>(out, V::or(a, b));
            keep_words::<V>(out, V::sub_pairs(a, b));
            keep_words::<V>(out, V::shift_right::<4>(a));
            keep_words::<V>(out, V::shift_right::<12>(a));
            keep_words::<V>(out, V::shift_left::<2>(a));
            keep_words::<V>(out, V::splat_words(words[at]));
            keep(out, V::from_words(a));
            // Pairs below 2^14 on one side, so that no sum leaves 31 bits.
            let small = V::sub_pairs(V::and(b, V::splat_words(0x3fff_3fff)), V::splat_words(0x2000_2000));
            keep_words::<V>(out, V::dot(V::splat_words(at as u32), a, small));
            keep_words::<V>(out, V::dot(V::splat_words((-7i32) as u32), small, a));
            let bytes = p.add(at).cast::<u8>().add(at % 4);
            keep_words::<V>(out, V::load_pairs_i8(bytes.cast()));
            keep(out, V::load_i8(bytes.cast()));
            keep(out, V::load_u8(bytes));
            V::prefetch(bytes);
        }
    }
}

impl Kernel for &Everything {
    type Out = Vec<u32>;

    #[inline(always)]
    fn run<V: Lanes>(self) -> Vec<u32> {
        let mut out = Vec::new();
        on_floats::<V>(&self.floats, &mut out);
        on_words::<V>(&self.words, &mut out);
        // Every half-precision number, and every number of as many bits of the other kind.
        let shorts: Vec<u16> = (0..=u16::MAX).collect();
        for sixteen in shorts.chunks_exact(LANES) {
            // SAFETY: 16 elements.
            unsafe {
                keep(&mut out, V::load_f16(sixteen.as_ptr()));
                keep(&mut out, V::load_bf16(sixteen.as_ptr()));
            }
        }
        out
    }
}

#[test]
fn every_operation_is_that_of_the_scalar_lanes() {
    let mut random = Random(17);
    let everything = Everything { floats: floats(&mut random), words: words(&mut random) };
    let want = Isa::Scalar.run(&everything);
    assert!(want.len() > 100_000);
    for isa in Isa::available() {
        let got = isa.run(&everything);
        let first = got.iter().zip(&want).position(|(a, b)| a != b);
        assert_eq!((first, got.len()), (None, want.len()), "{isa:?}");
    }
}

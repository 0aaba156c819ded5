//! Random weights and numbers for the tests of this crate.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::blocks::WeightType;

/// A small generator: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in -1..1.
    pub fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    pub fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    /// A half-precision number in 2^-9..2^-5, of either sign.
    fn half(&mut self) -> [u8; 2] {
        let bits = self.bits();
        (((bits & 0x83ff) | ((6 + (bits >> 20) % 4) << 10)) as u16).to_le_bytes()
    }

    /// A whole tensor of `n` rows of `k` with scales of sane size.
    pub fn tensor(&mut self, kind: WeightType, k: usize, n: usize) -> Vec<u8> {
        let (elements, bytes) = kind.unit();
        let halves: &[usize] = match kind {
            WeightType::F32 | WeightType::F16 | WeightType::Bf16 => &[],
            WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &[0],
            WeightType::Q6K => &[208],
            _ => &[0, 2],
        };
        let mut out = Vec::new();
        for _ in 0..k / elements * n {
            let mut unit: Vec<u8> = (0..bytes).map(|_| self.bits() as u8).collect();
            match kind {
                WeightType::F32 => unit = self.number().to_le_bytes().to_vec(),
                WeightType::Bf16 => unit = self.number().to_le_bytes()[2..].to_vec(),
                WeightType::F16 => unit = self.half().to_vec(),
                _ => {}
            }
            for &at in halves {
                unit[at..at + 2].copy_from_slice(&self.half());
            }
            out.extend(unit);
        }
        out
    }
}

/// The same bits, or both NaN (whose payload is nobody's business).
pub fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

//! Packing keeps every weight, stays small and refuses what is broken.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::testing::Random;

#[test]
fn rows_come_back_as_the_file_says() {
    let mut random = Random(1);
    for kind in WeightType::ALL {
        let (k, n) = (512, 37);
        let bytes = random.tensor(kind, k, n);
        let matrix = Matrix::pack(kind, k, n, &bytes).unwrap();
        let row_bytes = kind.row_bytes(k).unwrap();
        let size = if kind == WeightType::Q6K { 16 } else { 32 };
        for (row, bytes) in bytes.chunks(row_bytes).enumerate() {
            let mut got = vec![0.0; k];
            matrix.row(row, &mut got);
            for (i, got) in got.iter().enumerate() {
                let want = match kind {
                    WeightType::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()),
                    WeightType::F16 => f16_to_f32(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
                    WeightType::Bf16 => bf16_to_f32(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
                    _ => {
                        let block = blocks::read(kind, bytes, i / size);
                        block.d.mul_add(f32::from(block.q[i % size]), block.m)
                    }
                };
                assert_eq!(got.to_bits(), want.to_bits(), "{kind:?} row {row} element {i}");
            }
        }
    }
}

#[test]
fn packed_weights_are_as_large_as_the_file() {
    for kind in WeightType::ALL {
        let bytes = Random(2).tensor(kind, 768, 192);
        let matrix = Matrix::pack(kind, 768, 192, &bytes).unwrap();
        assert!(matrix.memory_bytes() as f64 <= 1.04 * bytes.len() as f64, "{kind:?}");
    }
}

#[test]
fn broken_tensors_are_refused() {
    let mut bytes = Random(3).tensor(WeightType::Q4_1, 64, 3);
    let pack = |bytes: &[u8], k, n| Matrix::pack(WeightType::Q4_1, k, n, bytes).map(|_| ());
    assert_eq!(pack(&bytes, 63, 3), Err(PackError::RowLength { k: 63, kind: WeightType::Q4_1 }));
    assert_eq!(pack(&bytes[1..], 64, 3), Err(PackError::Bytes { got: 119, want: 120 }));
    assert_eq!(pack(&[], 64, 0), Err(PackError::Size));
    assert_eq!(pack(&[], 64, usize::MAX), Err(PackError::Size));
    bytes[41] = 0x7e;
    assert_eq!(pack(&bytes, 64, 3), Err(PackError::NotFinite { row: 1 }));
}

#[test]
fn half_precision_widens_exactly() {
    for (bits, want) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65504.0)] {
        assert_eq!(f16_to_f32(bits), want);
    }
    assert!(f16_to_f32(0x7c01).is_nan() && f16_to_f32(0xfc00) == f32::NEG_INFINITY);
    assert_eq!(f16_to_f32(0x8000).to_bits(), 0x8000_0000);
}

#[test]
fn several_threads_pack_the_same_and_name_the_first_bad_row() {
    let mut bytes = Random(4).tensor(WeightType::Q8_0, 1024, 5000);
    let pack = |threads, bytes: &[u8]| Matrix::pack_with(threads, WeightType::Q8_0, (1024, 5000), bytes);
    let (one, three) = (pack(1, &bytes).unwrap(), pack(3, &bytes).unwrap());
    assert!(one.lines.iter().zip(&three.lines).all(|(a, b)| a.0 == b.0));
    for row in [4998, 1700] {
        bytes[row * 1024 / 32 * 34 + 1] = 0x7c;
        assert_eq!(pack(3, &bytes).map(|_| ()), Err(PackError::NotFinite { row }));
        assert_eq!(pack(1, &bytes).map(|_| ()), Err(PackError::NotFinite { row }));
    }
}

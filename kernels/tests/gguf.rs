//! Every format against the Python package `gguf`: the weights are the same numbers, and products are
//! as near to those of its weights as 16-bit activations allow.
//!
//! Needs `CARAVAN_TEST_PYTHON`, a Python that has the package (`scripts/test` makes one). Must never
//! pass without having compared.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;

use caravan_kernels::{Activations, Isa, Matrix, Product, Store, Team, WeightType, multiply};

const KINDS: [(WeightType, &str); 11] = [
    (WeightType::F32, "F32"),
    (WeightType::F16, "F16"),
    (WeightType::Bf16, "BF16"),
    (WeightType::Q4_0, "Q4_0"),
    (WeightType::Q4_1, "Q4_1"),
    (WeightType::Q5_0, "Q5_0"),
    (WeightType::Q5_1, "Q5_1"),
    (WeightType::Q8_0, "Q8_0"),
    (WeightType::Q4K, "Q4_K"),
    (WeightType::Q5K, "Q5_K"),
    (WeightType::Q6K, "Q6_K"),
];

const K: usize = 512;
const ROWS: usize = 600;

/// splitmix64
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in -1..1.
    fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// A tensor of any bits, but that every float in it is finite: half precision of every size,
    /// subnormal ones and zeros of both signs among them.
    fn tensor(&mut self, kind: WeightType) -> Vec<u8> {
        let (elements, bytes) = kind.unit();
        // Where the floats lie, and the byte of one that holds most of its exponent, all bits set
        // when it is not finite.
        let (floats, top): (&[usize], (usize, u8)) = match kind {
            WeightType::F32 => (&[0], (3, 0x7f)),
            WeightType::Bf16 => (&[0], (1, 0x7f)),
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => (&[0, 2], (1, 0x7c)),
            WeightType::Q6K => (&[208], (1, 0x7c)),
            _ => (&[0], (1, 0x7c)),
        };
        let mut all = Vec::new();
        for _ in 0..ROWS * K / elements {
            let mut unit: Vec<u8> = (0..bytes).map(|_| self.bits() as u8).collect();
            for at in floats {
                let high = &mut unit[at + top.0];
                if *high & top.1 == top.1 {
                    *high &= 0x83;
                }
            }
            all.extend(unit);
        }
        all
    }
}

/// Runs the package over all tensors: the weights of each, row after row.
fn outside(folder: &Path, tensors: &[Vec<u8>]) -> Vec<Vec<f32>> {
    let python = std::env::var("CARAVAN_TEST_PYTHON")
        .expect("CARAVAN_TEST_PYTHON must name a Python that has the package gguf; scripts/test makes one");
    for ((_, name), bytes) in KINDS.iter().zip(tensors) {
        std::fs::write(folder.join(format!("{name}.bytes")), bytes).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unpack.py");
    let run = Command::new(&python).arg(script).arg(folder).arg(K.to_string()).output().expect(&python);
    assert!(run.status.success(), "{python}: {}", String::from_utf8_lossy(&run.stderr));
    let read = |name| {
        let bytes = std::fs::read(folder.join(format!("{name}.f32"))).unwrap();
        let (numbers, rest) = bytes.as_chunks::<4>();
        assert_eq!((numbers.len(), rest.len()), (ROWS * K, 0), "{name}");
        numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()
    };
    KINDS.iter().map(|(_, name)| read(*name)).collect()
}

/// The weights must be the same bits. Only a zero may have the other sign: where a format has no
/// minimum, the package's product of a negative scale and 0 is -0, and ours adds 0 to it.
fn compare_weights(name: &str, matrix: &Matrix, theirs: &[f32]) {
    let (mut ours, mut zeros) = (vec![0f32; K], 0);
    for (r, theirs) in theirs.chunks(K).enumerate() {
        matrix.row(r, &mut ours);
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let zero = *a == 0.0 && *b == 0.0;
            zeros += usize::from(zero && a.to_bits() != b.to_bits());
            assert!(a.to_bits() == b.to_bits() || zero, "{name} row {r} element {i}: {a:e} for {b:e}");
        }
    }
    println!("{name}: {} weights equal, {zeros} of them zeros of the other sign", theirs.len());
}

/// Activations rounded to `top` steps a side, as a format of other precision would.
fn rounded(group: &[f32], top: f64) -> Vec<f64> {
    let largest = group.iter().fold(0f64, |largest, x| largest.max(f64::from(x.abs())));
    group.iter().map(|x| (f64::from(*x) * top / largest).round() * largest / top).collect()
}

/// What one output is by the package's weights: exact with the activations as they are, exact with
/// 8-bit ones, and how far a product may be off.
///
/// The bound: half a step of each activation (1/32767 of the largest of its 128) times its weight, and
/// half an ulp for each rounding of what is added up. There are at most four for 32 k, one for 128
/// and one for the scale of a group; no partial sum exceeds eight times the products of activations
/// with their block's largest weight, because random blocks use most of their numbers.
fn expected(weights: &[f32], input: &[f32], whole: bool) -> (f64, f64, f64) {
    let (mut exact, mut coarse, mut steps, mut sum) = (0f64, 0f64, 0f64, 0f64);
    for (weights, group) in weights.chunks(128).zip(input.chunks(128)) {
        let step = group.iter().fold(0f64, |top, x| top.max(f64::from(x.abs()))) / 32767.0;
        let coarsely = rounded(group, 127.0);
        for (i, (w, x)) in weights.iter().zip(group).enumerate() {
            let block = &weights[i / 32 * 32..][..32];
            let largest = block.iter().fold(0f64, |top, w| top.max(f64::from(w.abs())));
            let (w, x) = (f64::from(*w), f64::from(*x));
            exact += w * x;
            coarse += w * coarsely[i];
            steps += w.abs() * step * 0.5001;
            sum += 8.0 * largest * x.abs();
        }
    }
    let roundings = if whole { K / 32 * 4 + K / 128 * 2 } else { K + K / 32 };
    let bound = if whole { steps } else { 0.0 } + sum * roundings as f64 * 2f64.powi(-24);
    (exact, coarse, bound)
}

fn compare_products(name: &str, matrix: &Matrix, theirs: &[f32], random: &mut Random) {
    let whole = matches!(name.as_bytes()[0], b'Q');
    let input: Vec<f32> = (0..3 * K).map(|_| random.number()).collect();
    let (mut worst, mut coarse_breaks) = (0f64, 0);
    let wanted: Vec<(f64, f64, f64)> = input
        .chunks(K)
        .flat_map(|input| theirs.chunks(K).map(|weights| expected(weights, input, whole)))
        .collect();
    for isa in Isa::available() {
        let mut out = vec![f32::NAN; 3 * ROWS];
        let mut products = [Product { matrix, out: &mut out, store: Store::Set }];
        multiply(&mut Team::with_isa(2, isa), &mut Activations::default(), 3, &input, &mut products);
        for (out, (exact, coarse, bound)) in out.iter().zip(&wanted) {
            let off = (f64::from(*out) - exact).abs();
            assert!(off <= *bound, "{name} {isa:?}: {out:e} for {exact:e}, off by {off:e} of {bound:e}");
            worst = worst.max(off / bound);
            coarse_breaks += usize::from((coarse - exact).abs() > *bound);
        }
    }
    println!("{name}: products off by at most {worst:.2} of the bound");
    // A bound that 8-bit activations would keep too says nothing about 16-bit ones.
    assert!(!whole || coarse_breaks > ROWS / 10, "{name}: {coarse_breaks}");
}

#[test]
fn weights_equal_those_of_the_gguf_package_and_products_are_near() {
    let mut random = Random(42);
    let folder = std::env::temp_dir().join(format!("caravan-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let tensors: Vec<Vec<u8>> = KINDS.iter().map(|(kind, _)| random.tensor(*kind)).collect();
    let theirs = outside(&folder, &tensors);
    std::fs::remove_dir_all(&folder).unwrap();
    for (((kind, name), bytes), theirs) in KINDS.iter().zip(&tensors).zip(&theirs) {
        let matrix = Matrix::pack(*kind, K, ROWS, bytes).unwrap();
        compare_weights(name, &matrix, theirs);
        // Floats of every exponent have products beyond those of f32.
        if !matches!(kind, WeightType::F32 | WeightType::Bf16) {
            compare_products(name, &matrix, theirs, &mut random);
        }
    }
    assert_eq!(KINDS.map(|(kind, _)| kind), WeightType::ALL);
}

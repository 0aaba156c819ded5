//! Every model family against an outside implementation (candle-transformers, on the same weights
//! dequantised to f32 by candle), and against itself in other slices and chunks.
//!
//! The models are random, of real shapes with few layers and a small vocabulary; of the largest
//! ones the widths are divided, too, unless `CARAVAN_TEST_SHAPES=real` asks for them as they are.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod outside;
mod shapes;

use caravan_core::gguf::synthetic::{GgufWriter, SyntheticModel};
use caravan_core::model::{Family, ModelConfig, RopeFactors, RopeScaling, TensorType};
use caravan_core::plan::Slice;
use caravan_kernels::Team;
use caravan_worker::slice::{Chunk, LoadedSlice, StageInput, StageOutput};
use common::{Source, TestModel, all_logits, same};
use outside::Outside;

/// What the outside implementation and ours may differ by, as a share of the logits' size: the
/// rounding of f32 in another order, with the activations' precision of quantised kernels to spare.
const BOUND: f64 = 1e-3;
const KINDS: [TensorType; 3] = [TensorType::Q8_0, TensorType::Q4_1, TensorType::F16];

fn text(seed: u32, len: usize, vocab: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (seed.wrapping_mul(977) + i * i * 31 + i * 7) % vocab).collect()
}

/// |a - b| as a share of |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    assert!(size > 0.0);
    (off / size).sqrt()
}

/// Distances at the outside implementation's positions: the median, and the largest.
fn distances(ours: &[f32], theirs: &[(usize, Vec<f32>)]) -> (f64, f64) {
    let vocab = theirs[0].1.len();
    let at = |position: usize| &ours[position * vocab..(position + 1) * vocab];
    let mut all: Vec<f64> = theirs.iter().map(|(position, b)| distance(at(*position), b)).collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() - 1])
}

/// Ours against theirs, and ours in slices and chunks against ours.
fn check(name: &str, config: ModelConfig, len: usize, mistakes: &[fn(&mut ModelConfig)]) {
    let synthetic = SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 7 };
    let mut writer = synthetic.writer();
    if config.family == Family::Llama {
        // candle makes Llama's factors by their formula.
        let factors = outside::llama_3_2_factors(&config);
        let data = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        writer = writer.edit_tensor("rope_freqs.weight", |tensor| tensor.data = data);
    }
    let bytes = writer.finish();
    let model = TestModel::parse(&bytes);
    assert_eq!(model.config, config, "the header says what was written");
    let tokens = text(3, len, config.vocab);
    let mut team = Team::new(2);
    let whole = all_logits(&mut model.load(&[], 64), &mut team, &[&tokens], len).remove(0);
    let layers = config.layers;
    for (cuts, chunk) in [(vec![1], 17), (vec![layers - 1], 1), ((1..layers).collect(), 40)] {
        let other: Vec<u32> = text(9, len / 2, config.vocab);
        let got = all_logits(&mut model.load(&cuts, 64), &mut team, &[&other, &tokens], chunk);
        assert!(same(&got[1], &whole), "{name}: cuts {cuts:?}, chunks of {chunk}");
    }
    let theirs = Outside::new(&bytes, &config).logits(&tokens);
    let (median, most) = distances(&whole, &theirs);
    println!("{name}: {} positions, distance median {median:.2e}, most {most:.2e}", theirs.len());
    // Near ties between experts may be decided otherwise here and there.
    let most_allowed = if config.experts.is_some() { f64::INFINITY } else { 2.0 * BOUND };
    assert!(median <= BOUND && most <= most_allowed, "{name}: {median:.2e}, {most:.2e}");
    for (i, mistake) in mistakes.iter().enumerate() {
        let mut wrong = TestModel { config: config.clone(), ..open(&bytes) };
        mistake(&mut wrong.config);
        let got = all_logits(&mut wrong.load(&[], 64), &mut team, &[&tokens], len).remove(0);
        let (_, most) = distances(&got, &theirs);
        assert!(most > 5.0 * BOUND, "{name}: mistake {i} does not show ({most:.2e})");
    }
}

fn other_base(config: &mut ModelConfig) {
    config.rope_base *= 1.5;
}

fn other_pairing(config: &mut ModelConfig) {
    use caravan_core::model::RopePairing::{Halves, Neighbours};
    config.rope_pairing = if config.rope_pairing == Halves { Neighbours } else { Halves };
}

fn window_plus_one(config: &mut ModelConfig) {
    config.window.as_mut().unwrap().tokens += 1;
}

fn window_minus_one(config: &mut ModelConfig) {
    config.window.as_mut().unwrap().tokens -= 1;
}

#[test]
fn llama_3_2_with_its_factors() {
    let mistakes: [fn(&mut ModelConfig); 3] =
        [other_base, other_pairing, |config| config.attention_scale = Some(0.13)];
    check("llama 3.2", shapes::llama_3_2(), 60, &mistakes);
}

#[test]
fn llama_with_linear_scaling() {
    let config = ModelConfig { rope_scaling: RopeScaling::Linear { factor: 4.0 }, ..shapes::small_llama() };
    check("llama, linear", config, 60, &[|config| config.rope_scaling = RopeScaling::None]);
}

#[test]
fn mistral_with_its_window() {
    check("mistral", shapes::mistral(), 70, &[window_plus_one, window_minus_one, other_pairing]);
}

#[test]
fn qwen2_with_its_biases() {
    check("qwen2.5", shapes::qwen_2_5(), 60, &[other_base, other_pairing]);
}

#[test]
fn qwen3_with_its_head_norms() {
    check("qwen3", shapes::qwen3(), 60, &[other_base, other_pairing, |config| config.norm_eps = 0.1]);
}

#[test]
fn qwen3_moe_with_its_experts() {
    let mistakes: [fn(&mut ModelConfig); 2] = [
        |config| config.experts.as_mut().unwrap().used -= 1,
        |config| config.experts.as_mut().unwrap().normalised = false,
    ];
    check("qwen3 moe", shapes::qwen3_moe(), 60, &mistakes);
}

#[test]
fn gemma_3_with_its_local_layers() {
    let mistakes: [fn(&mut ModelConfig); 6] = [
        window_plus_one,
        window_minus_one,
        |config| config.window.as_mut().unwrap().global_every = 3,
        |config| config.window.as_mut().unwrap().rope_base = None,
        |config| config.window.as_mut().unwrap().rope_base = Some(20_000.0),
        other_base,
    ];
    check("gemma 3", shapes::gemma_3(), 60, &mistakes);
}

/// Real weights have what random ones lack: huge activations, scales of every size.
#[test]
fn the_real_gemma_agrees() {
    let Some(path) = std::env::var_os("CARAVAN_TEST_GEMMA") else {
        eprintln!("SKIPPED: CARAVAN_TEST_GEMMA does not name a GGUF file of Gemma 3");
        return;
    };
    let bytes = std::fs::read(path).expect("CARAVAN_TEST_GEMMA can't be read");
    let model = TestModel::parse(&bytes);
    let (config, mut team) = (&model.config, Team::new(2));
    assert_eq!((config.family, config.layers), (Family::Gemma3, 18));
    // The token that begins every text, then tokens of the vocabulary's frequent part.
    let tokens: Vec<u32> = [2].into_iter().chain(text(3, 39, 5_000).into_iter().map(|t| t + 500)).collect();
    let whole = all_logits(&mut model.load(&[], 8), &mut team, &[&tokens], 40).remove(0);
    let parts = all_logits(&mut model.load(&[5, 12], 8), &mut team, &[&tokens], 7).remove(0);
    assert!(same(&parts, &whole));
    let theirs = Outside::new(&bytes, config).logits(&tokens);
    let (median, most) = distances(&whole, &theirs);
    println!("gemma 3 270m: {} positions, distance median {median:.2e}, most {most:.2e}", theirs.len());
    assert!(median <= BOUND && most <= 5.0 * BOUND, "{median:.2e}, {most:.2e}");
}

#[test]
fn gemma_3_with_scale_and_caps() {
    let config = ModelConfig {
        attention_scale: Some(0.11),
        attention_cap: Some(2.0),
        logit_cap: Some(1.5),
        ..shapes::gemma_3()
    };
    let mistakes: [fn(&mut ModelConfig); 3] = [
        |config| config.attention_scale = None,
        |config| config.attention_cap = None,
        |config| config.logit_cap = None,
    ];
    check("gemma 3, caps", config, 50, &mistakes);
}

#[test]
fn phi_3_with_long_factors() {
    let mistakes: [fn(&mut ModelConfig); 2] = [other_base, |config| {
        if let RopeScaling::Factors { magnitude, .. } = &mut config.rope_scaling {
            *magnitude = 1.0;
        }
    }];
    check("phi 3", shapes::phi_3(), 60, &mistakes);
}

#[test]
fn every_type_of_weights_goes_through_every_family() {
    use TensorType::*;
    for config in shapes::all_small() {
        let kinds = [Q4K, Q5K, Q6K, Q4_0, Q5_0, Q5_1, Bf16, F32];
        let layers = 4;
        let config = ModelConfig { layers, ..config };
        for start in [0, 4] {
            let kinds = [&kinds[start..], &kinds[..start]].concat();
            let bytes = SyntheticModel { config: config.clone(), kinds, seed: 5 }.writer().finish();
            let model = TestModel::parse(&bytes);
            let tokens = text(1, 30, config.vocab);
            let mut team = Team::new(2);
            let ours = all_logits(&mut model.load(&[2], 64), &mut team, &[&tokens], 13).remove(0);
            let theirs = Outside::new(&bytes, &config).logits(&tokens);
            let (median, _) = distances(&ours, &theirs);
            println!("{:?}: {median:.2e}", config.family);
            assert!(median <= BOUND, "{:?}: {median:.2e}", config.family);
        }
    }
}

#[test]
fn given_factors_are_those_of_a_tensor() {
    let config = shapes::small_llama();
    let factors: Vec<f32> = (0..config.rope_dim / 2).map(|i| 1.0 + i as f32 / 7.0).collect();
    let bytes = |writer: GgufWriter| writer.finish();
    let plain = SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 2 };
    let mut given = TestModel::parse(&bytes(plain.writer()));
    let factors_in_config = RopeFactors::Given(factors.clone());
    given.config.rope_scaling = RopeScaling::Factors { factors: factors_in_config, magnitude: 1.0 };
    let tensor =
        RopeScaling::Factors { factors: RopeFactors::Tensor("rope_freqs.weight".into()), magnitude: 1.0 };
    let scaled = SyntheticModel { config: ModelConfig { rope_scaling: tensor, ..config }, ..plain };
    let data: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let in_file = TestModel::parse(&bytes(
        scaled.writer().edit_tensor("rope_freqs.weight", |tensor| tensor.data = data),
    ));
    let tokens = text(1, 40, given.config.vocab);
    let mut team = Team::new(2);
    let one = all_logits(&mut given.load(&[], 8), &mut team, &[&tokens], 40);
    let other = all_logits(&mut in_file.load(&[1], 8), &mut team, &[&tokens], 9);
    assert!(same(&one[0], &other[0]));
}

/// The error of loading a spoilt model.
fn refusal(model: &TestModel, slice: Slice) -> String {
    let spec = model.spec(slice, 8);
    let error = LoadedSlice::load(spec, &model.source, None, &|_| {}).err().expect("it was taken");
    format!("{error:#}")
}

#[test]
fn spoilt_tensors_are_refused_by_name_in_every_family() {
    for config in shapes::all_small() {
        let bytes =
            SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 1 }.writer().finish();
        let whole = Slice { first: 0, end: config.layers };
        for part in config.layer_tensors() {
            let name = part.name(1);
            let mut model = TestModel::parse(&bytes);
            let at = model.tensors.iter().position(|tensor| tensor.name == name).unwrap();
            model.tensors[at].dims[0] += 1;
            assert!(refusal(&model, whole).contains(&name), "{name} of a wrong shape");
            model.tensors.remove(at);
            assert!(refusal(&model, whole).contains(&name), "{name} missing");

            let mut model = TestModel::parse(&bytes);
            let kind = model.tensors[at].kind;
            let Source::Bytes(all) = &mut model.source else { unreachable!() };
            let data = all.get_mut(&name).unwrap();
            let block = match kind {
                TensorType::F32 => f32::NAN.to_le_bytes().to_vec(),
                // A half that is not a number, as a scale or as a weight.
                _ => vec![0x01, 0x7e],
            };
            // In the last block: the last expert, the last row.
            let last = data.len() - kind.block().1 as usize;
            data[last..last + block.len()].copy_from_slice(&block);
            assert!(refusal(&model, whole).contains(&name), "{name} with a NaN");
        }
    }
}

#[test]
fn factors_that_are_no_factors_are_refused_by_name() {
    let config = shapes::phi_3_small();
    let bytes = SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 1 }.writer().finish();
    for bad in [0.0f32, -1.0, f32::NAN] {
        let mut model = TestModel::parse(&bytes);
        let Source::Bytes(all) = &mut model.source else { unreachable!() };
        all.get_mut("rope_factors_long.weight").unwrap()[4..8].copy_from_slice(&bad.to_le_bytes());
        let error = refusal(&model, Slice { first: 0, end: 1 });
        assert!(error.contains("rope_factors_long.weight"), "{error}");
    }
}

#[test]
fn nonsense_configurations_are_refused_and_never_panic() {
    let base = shapes::all_small();
    let spoil: [fn(&mut ModelConfig); 10] = [
        |config| config.attention_scale = Some(f32::NAN),
        |config| config.logit_cap = Some(0.0),
        |config| config.attention_cap = Some(f32::INFINITY),
        |config| config.rope_scaling = RopeScaling::Linear { factor: 0.0 },
        |config| {
            let factors = RopeFactors::Given(vec![1.0; 3]);
            config.rope_scaling = RopeScaling::Factors { factors, magnitude: 1.0 };
        },
        |config| {
            let factors = RopeFactors::Given(vec![-1.0; config.rope_dim as usize / 2]);
            config.rope_scaling = RopeScaling::Factors { factors, magnitude: 1.0 };
        },
        |config| {
            let window = caravan_core::model::Window { tokens: 0, global_every: 0, rope_base: None };
            config.window = Some(window);
        },
        |config| {
            let experts = caravan_core::model::Experts { count: 4, used: 5, normalised: true };
            config.experts = Some(experts);
        },
        |config| config.rope_base = -1.0,
        |config| config.heads = u32::MAX,
    ];
    for config in base {
        let bytes =
            SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 1 }.writer().finish();
        for (i, spoil) in spoil.iter().enumerate() {
            let mut model = TestModel::parse(&bytes);
            spoil(&mut model.config);
            let error = refusal(&model, Slice { first: 0, end: 1 });
            assert!(error.contains("make no sense"), "{i}: {error}");
        }
    }
}

#[test]
fn layers_of_every_family_are_measured() {
    for config in shapes::all_small() {
        let bytes =
            SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 1 }.writer().finish();
        let model = TestModel::parse(&bytes);
        let time =
            caravan_worker::measure::measure_layers(&config, &model.tensors, &mut Team::new(2), 1.0).unwrap();
        for ms in [time.decode_ms, time.prefill_short_ms, time.prefill_long_ms, time.head_ms] {
            assert!(ms > 0.0 && ms < 1_000.0, "{:?} {time:?}", config.family);
        }
    }
}

#[test]
fn a_number_that_is_none_stays_in_its_sequence_in_every_family() {
    for config in shapes::all_small() {
        let bytes =
            SyntheticModel { config: config.clone(), kinds: KINDS.to_vec(), seed: 1 }.writer().finish();
        let model = TestModel::parse(&bytes);
        let vocab = config.vocab as usize;
        let chunk = |page: u32, len: u32| Chunk {
            start: 0,
            tokens: text(page, len as usize, config.vocab),
            pages: vec![page],
            sample: true,
        };
        let chunks = [chunk(0, 5), chunk(1, 7), chunk(2, 1), chunk(3, 9)];
        let mut team = Team::new(2);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut last = model.load(&[1], 8).remove(1);
            last.all_logits(false);
            let mut logits = |spoil: Option<usize>| {
                let mut first = model.load(&[1], 8);
                let output = first[0].forward(&mut team, &chunks, StageInput::Tokens).unwrap();
                let StageOutput::Activations(mut rows) = output else { panic!("the first of two") };
                // One number of a row in the middle of the second sequence.
                spoil.into_iter().for_each(|at| rows[at] = bad);
                match last.forward(&mut team, &chunks, StageInput::Activations(rows)).unwrap() {
                    StageOutput::Logits(logits) => logits,
                    StageOutput::Activations(_) => panic!("the last of two"),
                }
            };
            let want = logits(None);
            let got = logits(Some((5 + 3) * config.hidden as usize + 11));
            let family = config.family;
            assert!(got[vocab..2 * vocab].iter().all(|logit| !logit.is_finite()), "{family:?} {bad}");
            assert!(same(&got[..vocab], &want[..vocab]), "{family:?} {bad}");
            assert!(same(&got[2 * vocab..], &want[2 * vocab..]), "{family:?} {bad}");
            assert!(same(&logits(None), &want), "{family:?} {bad}: the pages are written anew");
        }
    }
}

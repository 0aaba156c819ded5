//! The same bits whatever the slices, chunks, company, threads and instruction set: on tiny random
//! models always, and on the file named by `CARAVAN_TEST_MODEL` if it is set.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use caravan_core::model::TensorSpec;
use caravan_core::plan::Slice;
use caravan_core::request::Sampling;
use caravan_kernels::{Isa, Team};
use caravan_proto::{pack, wire};
use caravan_worker::compute::Native;
use caravan_worker::slice::{Chunk, LoadedSlice, StageInput, StageOutput, TensorSource};
use caravan_worker::stages::OutFrame;
use caravan_worker::steps::{Shape, StageWork, decode, encode};
use common::{TestModel, all_logits, same};

fn text(seed: u32, len: usize, vocab: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (seed.wrapping_mul(977) + i * i * 31 + i * 7) % vocab).collect()
}

/// Compares everything with one slice, one thread, one chunk, alone.
fn check(model: &TestModel, cuts: &[&[u32]], len: usize, chunks: &[usize]) {
    let vocab = model.config.vocab;
    let main = text(1, len, vocab);
    let strangers: Vec<Vec<u32>> = (2..6).map(|seed| text(seed, len * seed as usize / 5, vocab)).collect();
    let mut slices = model.load(&[], 64);
    let want = &all_logits(&mut slices, &mut Team::new(1), &[&main], len)[0];
    assert!(want.iter().all(|logit| logit.is_finite()));
    assert!(want.iter().any(|logit| logit.abs() > 0.1), "the logits are not all alike");
    for isa in Isa::available() {
        // The scalar definition is slow: a short prefix of the text is enough for it.
        let len = if isa == Isa::Scalar { len.min(12) } else { len };
        let got = all_logits(&mut slices, &mut Team::with_isa(2, isa), &[&main[..len]], 7);
        assert!(same(&got[0], &want[..len * vocab as usize]), "{isa:?}");
    }
    for cuts in cuts {
        let mut slices = model.load(cuts, 64);
        for (i, &chunk) in chunks.iter().enumerate() {
            let threads = 1 + i % 3;
            let mut team = Team::new(threads);
            let got = all_logits(&mut slices, &mut team, &[&main], chunk);
            assert!(same(&got[0], want), "cuts {cuts:?} chunk {chunk} threads {threads}");
            let mut all: Vec<&[u32]> = strangers.iter().map(Vec::as_slice).collect();
            all.insert(2, &main);
            let got = all_logits(&mut slices, &mut team, &all, chunk.min(100));
            assert!(same(&got[2], want), "cuts {cuts:?} chunk {chunk} threads {threads} in company");
        }
    }
}

#[test]
fn tiny_models_give_the_same_bits() {
    for tied in [true, false] {
        check(&TestModel::tiny(tied), &[&[], &[2], &[1, 4]], 90, &[1, 7, 16, 64, 90]);
    }
}

#[test]
fn the_real_model_gives_the_same_bits() {
    let Some(path) = common::model_path() else { return };
    let model = TestModel::open(&path);
    check(&model, &[&[14], &[9, 20]], 150, &[1, 7, 16, 64, 150]);
}

/// Counts what is read.
struct Counting<'a>(&'a TestModel, AtomicUsize);

impl TensorSource for Counting<'_> {
    fn read(&self, tensor: &TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.source.read(tensor)
    }
}

#[test]
fn layers_that_are_held_are_shared_and_not_read_again() {
    let model = TestModel::tiny(true);
    let source = Counting(&model, AtomicUsize::new(0));
    let old = LoadedSlice::load(model.spec(Slice { first: 0, end: 3 }, 8), &source, None, &|_| {}).unwrap();
    assert_eq!(source.1.swap(0, Ordering::Relaxed), 1 + 3 * 9);
    let spec = model.spec(Slice { first: 1, end: 5 }, 8);
    let new = LoadedSlice::load(spec, &source, Some(&old), &|_| {}).unwrap();
    assert_eq!(source.1.swap(0, Ordering::Relaxed), 2 * 9 + 1, "two new layers and the norm");
    drop(old);
    let first = LoadedSlice::load(model.spec(Slice { first: 0, end: 1 }, 8), &source, None, &|_| {}).unwrap();
    let (mut moved, mut whole) = ([first, new], model.load(&[], 8));
    moved[1].all_logits(true);
    let text = text(3, 20, 211);
    let mut team = Team::new(1);
    let want = all_logits(&mut whole, &mut team, &[&text], 20);
    assert!(same(&all_logits(&mut moved, &mut team, &[&text], 20)[0], &want[0]));
}

#[test]
fn bad_slices_are_refused_by_name() {
    let model = TestModel::tiny(true);
    let load = |change: &dyn Fn(&mut Vec<TensorSpec>)| {
        let mut spec = model.spec(Slice { first: 1, end: 2 }, 8);
        change(&mut spec.tensors);
        LoadedSlice::load(spec, &model.source, None, &|_| {}).err().map(|error| format!("{error:#}"))
    };
    let at = |tensors: &[TensorSpec]| tensors.iter().position(|t| t.name == "blk.1.attn_k.weight").unwrap();
    assert_eq!(load(&|_| {}), None);
    let says = |message: Option<String>| assert!(message.unwrap().contains("blk.1.attn_k.weight"));
    says(load(&|tensors| drop(tensors.remove(at(tensors)))));
    says(load(&|tensors| {
        let at = at(tensors);
        tensors[at].dims.reverse();
    }));
    says(load(&|tensors| {
        let at = at(tensors);
        tensors[at].kind = caravan_core::model::TensorType::F32;
    }));
    let extra = load(&|tensors| {
        let mut bias = tensors[0].clone();
        bias.name = "blk.1.attn_q.bias".into();
        tensors.push(bias);
    });
    assert!(extra.unwrap().contains("blk.1.attn_q.bias"));
}

#[test]
fn bad_chunks_are_errors_and_change_nothing() {
    let model = TestModel::tiny(true);
    let mut slices = model.load(&[], 4);
    let mut team = Team::new(2);
    let good = Chunk { start: 0, tokens: vec![5, 6, 7], pages: vec![2], sample: true };
    let StageOutput::Logits(want) =
        slices[0].forward(&mut team, std::slice::from_ref(&good), StageInput::Tokens).unwrap()
    else {
        panic!("a whole model gives logits");
    };
    let bad = [
        Chunk { tokens: vec![], ..good.clone() },
        Chunk { tokens: vec![211], ..good.clone() },
        Chunk { pages: vec![4], ..good.clone() },
        Chunk { pages: vec![], ..good.clone() },
        Chunk { start: 30, ..good.clone() },
        Chunk { start: u32::MAX, ..good.clone() },
        Chunk { start: 399, pages: vec![0; 13], ..good.clone() },
    ];
    for chunk in bad {
        assert!(
            slices[0].forward(&mut team, &[good.clone(), chunk.clone()], StageInput::Tokens).is_err(),
            "{chunk:?}"
        );
    }
    assert!(
        slices[0]
            .forward(&mut team, std::slice::from_ref(&good), StageInput::Activations(vec![0.0; 768]))
            .is_err()
    );
    let next = Chunk { start: 3, tokens: vec![8], ..good.clone() };
    let StageOutput::Logits(last) = slices[0].forward(&mut team, &[next], StageInput::Tokens).unwrap() else {
        panic!("a whole model gives logits");
    };
    let whole = all_logits(&mut model.load(&[], 4), &mut team, &[&[5, 6, 7, 8]], 4);
    assert!(same(&whole[0], &[want, last].concat()));
}

#[test]
fn dequantised_rows_are_candles() {
    use candle_core::quantized::{GgmlDType as G, QTensor, ggml_file::qtensor_from_ggml};
    use caravan_kernels::{Matrix, WeightType as W};
    let kinds = [
        (W::Q4_0, G::Q4_0),
        (W::Q4_1, G::Q4_1),
        (W::Q5_0, G::Q5_0),
        (W::Q5_1, G::Q5_1),
        (W::Q8_0, G::Q8_0),
        (W::Q4K, G::Q4K),
        (W::Q5K, G::Q5K),
        (W::Q6K, G::Q6K),
    ];
    let device = candle_core::Device::Cpu;
    let (k, n) = (512, 19);
    for (kind, theirs) in kinds {
        let numbers: Vec<f32> =
            (0..k * n).map(|i| ((i * i * 31 + i * 7) % 1999) as f32 / 500.0 - 1.7).collect();
        let tensor = candle_core::Tensor::from_vec(numbers, (n, k), &device).unwrap();
        let quantised = QTensor::quantize(&tensor, theirs).unwrap();
        let bytes = quantised.data().unwrap();
        let again = qtensor_from_ggml(theirs, &bytes, vec![n, k], &device).unwrap();
        let want = again.dequantize(&device).unwrap().to_vec2::<f32>().unwrap();
        let matrix = Matrix::pack(kind, k, n, &bytes).unwrap();
        let mut row = vec![0.0; k];
        for (i, want) in want.iter().enumerate() {
            matrix.row(i, &mut row);
            // Ours is rounded once, candle's may be twice.
            let near = row.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + b.abs()));
            assert!(near, "{kind:?} row {i}");
        }
    }
}

#[test]
fn layer_times_are_measured() {
    let model = TestModel::tiny(true);
    let begin = std::time::Instant::now();
    let mut team = Team::new(2);
    let time =
        caravan_worker::measure::measure_layers(&model.config, &model.tensors, &mut team, 1.0).unwrap();
    assert!(begin.elapsed().as_secs() < 10);
    for ms in [time.decode_ms, time.prefill_short_ms, time.prefill_long_ms, time.head_ms] {
        assert!(ms > 0.0 && ms < 1_000.0, "{time:?}");
    }
    assert!(caravan_worker::measure::measure_layers(&model.config, &[], &mut team, 1.0).is_err());
}

/// One step of three sequences: its message for the first stage.
fn three_sequences(step: u64, starts: [u32; 3], tokens: [&[u32]; 3]) -> wire::Step {
    let sampling = Sampling { temperature: 0.8, logprobs: Some(5), ..Sampling::default() };
    let chunk = |i: usize| wire::Chunk {
        sequence: i as u64,
        start: starts[i],
        tokens: tokens[i].to_vec(),
        pages: vec![i as u32],
        sample: true,
        open: (starts[i] == 0).then(|| wire::SequenceOpen {
            sampling: pack(&Sampling { seed: i as u64, ..sampling.clone() }).unwrap(),
            prompt_tokens: tokens[i].len() as u32,
        }),
    };
    let chunks = (0..3).filter(|i| !tokens[*i].is_empty()).map(chunk).collect();
    wire::Step { epoch: 1, step, chunks, activations: Default::default(), closed: Vec::new() }
}

#[test]
fn a_number_that_is_none_fails_one_sequence_and_its_neighbours_do_not_notice() {
    let model = TestModel::tiny(true);
    let hidden = model.config.hidden as usize;
    let mut compute = Native::new(2);
    let stages = || {
        let shape = |first, last| Shape { hidden, vocab: model.config.vocab as usize, first, last };
        let [mut a, mut b] = <[LoadedSlice; 2]>::try_from(model.load(&[2], 8)).ok().unwrap();
        a.all_logits(false);
        b.all_logits(false);
        [StageWork::new(a, shape(true, false), None), StageWork::new(b, shape(false, true), None)]
    };
    let mut run = |stages: &mut [StageWork<Native>; 2], step: wire::Step, spoil: Option<usize>| {
        let OutFrame::Step(mut step) = stages[0].run(&mut compute, step).unwrap() else { panic!() };
        if let Some(at) = spoil {
            let mut numbers = decode(&step.activations);
            numbers[at] = f32::NAN;
            step.activations = encode(&numbers);
        }
        let OutFrame::Result(result) = stages[1].run(&mut compute, step).unwrap() else { panic!() };
        result.tokens
    };
    let prompt = || three_sequences(0, [0; 3], [&[3, 4, 5, 6], &[7, 8, 9], &[10, 11]]);
    let (mut well, mut sick) = (stages(), stages());
    let want = run(&mut well, prompt(), None);
    // A number of the second sequence's first row: its last row sees it through attention.
    let got = run(&mut sick, prompt(), Some(4 * hidden + 9));
    assert_eq!((&got[0], &got[2]), (&want[0], &want[2]));
    assert!(want.iter().all(|token| token.failed.is_empty()));
    assert_eq!(got[1].sequence, 1);
    assert!(got[1].failed.contains("not a finite number"), "{:?}", got[1]);
    let next = |tokens: &[wire::SampledToken]| {
        three_sequences(1, [4, 3, 2], [&[tokens[0].token], &[], &[tokens[2].token]])
    };
    let want = run(&mut well, next(&want), None);
    assert_eq!(run(&mut sick, next(&got), None), want);
    // Bits, as logarithms of probabilities show them.
    assert!(want.iter().all(|token| token.logprob.is_some() && token.top.len() == 5));
}

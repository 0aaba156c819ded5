//! One step at one stage, without any network.

use caravan_core::limits;
use caravan_core::model::ModelConfig;
use caravan_core::plan::Slice;
use caravan_proto::wire;
use caravan_worker::compute::Compute;
use caravan_worker::slice::{SliceSpec, TensorSource};
use caravan_worker::stages::OutFrame;
use caravan_worker::steps::{Shape, StageWork, decode, encode};

use crate::fake::{self, Fake, HIDDEN, VOCAB, chunk, config, step, tensor, weight};

/// Reads the fake weights without a cache.
struct Direct(usize);

impl TensorSource for Direct {
    fn read(&self, tensor: &caravan_core::model::TensorSpec) -> anyhow::Result<Box<dyn AsRef<[u8]> + '_>> {
        let caravan_core::model::Place::Layer(layer) = tensor.place else { anyhow::bail!("no layer") };
        Ok(Box::new(weight(layer, self.0)))
    }
}

/// The stages of a pipeline in this thread, with one layer each: what a chain of workers must equal.
pub fn reference(stages: u32, size: usize) -> Vec<StageWork<Fake>> {
    let config: ModelConfig = config(stages);
    (0..stages)
        .map(|stage| {
            let spec = SliceSpec {
                config: config.clone(),
                slice: Slice { first: stage, end: stage + 1 },
                tensors: vec![tensor(stage, &weight(stage, size))],
                kv_pages: 8,
                page_tokens: 32,
            };
            let slice = Fake::load(spec, &Direct(size), None, &|_| ()).unwrap();
            let shape = Shape { hidden: HIDDEN, vocab: VOCAB, first: stage == 0, last: stage + 1 == stages };
            StageWork::new(slice, shape, None)
        })
        .collect()
}

/// Runs a step through all of `stages`.
pub fn through(stages: &mut [StageWork<Fake>], step: wire::Step) -> wire::StepResult {
    let mut frame = OutFrame::Step(step);
    for stage in stages {
        let OutFrame::Step(step) = frame else { panic!("a result in the middle") };
        frame = stage.run(&mut Fake, step).unwrap();
    }
    let OutFrame::Result(result) = frame else { panic!("no result at the end") };
    result
}

#[test]
fn activations_keep_every_bit() {
    let values = [0.0f32, -0.0, f32::NAN, f32::from_bits(0x7f80_0001), f32::MIN_POSITIVE / 2.0, -1.5e30];
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let bytes = encode(&values);
    assert_eq!(bytes.len(), 24);
    assert_eq!(&bytes[20..], (-1.5e30f32).to_le_bytes());
    assert_eq!(bits(&decode(&bytes)), bits(&values));
    // Not aligned.
    let mut shifted = vec![0u8];
    shifted.extend_from_slice(&bytes);
    assert_eq!(bits(&decode(&shifted[1..])), bits(&values));
}

#[test]
fn a_middle_stage_hands_on_all_but_the_activations() {
    let mut stages = reference(3, 10);
    let mut sent = step(1, 5, vec![chunk(3, 0, &[1, 2], false, true), chunk(4, 9, &[3], true, false)]);
    sent.closed = vec![8, 9];
    let OutFrame::Step(first) = stages[0].run(&mut Fake, sent.clone()).unwrap() else { panic!() };
    assert_eq!((&first.chunks, &first.closed, first.step), (&sent.chunks, &sent.closed, 5));
    assert_eq!(first.activations.len(), 3 * HIDDEN * 4);
    let OutFrame::Step(second) = stages[1].run(&mut Fake, first.clone()).unwrap() else { panic!() };
    assert_eq!(second.chunks, sent.chunks);
    assert_ne!(second.activations, first.activations);
}

#[test]
fn the_last_stage_samples_what_is_asked_in_chunk_order() {
    let mut stages = reference(1, 10);
    let result = through(
        &mut stages,
        step(
            1,
            0,
            vec![
                chunk(9, 0, &[1], true, true),
                chunk(2, 0, &[1, 2], false, true),
                chunk(5, 0, &[4], true, true),
            ],
        ),
    );
    let sequences: Vec<u64> = result.tokens.iter().map(|token| token.sequence).collect();
    assert_eq!(sequences, [9, 5]);
    assert_eq!(result.tokens[0].logprob, Some(-0.5));
    // The sampler of 2 saw both tokens, so it samples at position 2 next time with one more.
    let result = through(&mut stages, step(1, 1, vec![chunk(2, 2, &[8], true, false)]));
    assert_eq!(result.tokens.len(), 1);
    // A step that only closes has an empty result, and the sampler is gone.
    let mut closing = step(1, 2, Vec::new());
    closing.closed = vec![2];
    assert_eq!(through(&mut stages, closing).tokens, []);
    let error = stages[0].run(&mut Fake, step(1, 3, vec![chunk(2, 3, &[8], true, false)])).unwrap_err();
    assert!(error.to_string().contains("sequence 2 was never opened"), "{error}");
}

#[test]
fn bad_steps_are_errors_in_words() {
    let mut first = reference(2, 10).remove(0);
    let mut middle = reference(3, 10).remove(1);
    let mut with = step(1, 0, vec![chunk(1, 0, &[1], false, true)]);
    with.activations = vec![0u8; 16].into();
    let mut short = with.clone();
    short.activations = vec![0u8; 15].into();
    let many = vec![1u32; limits::STEP_ROWS as usize + 1];
    let cases = [
        (first.run(&mut Fake, with.clone()), "16 bytes of activations"),
        (middle.run(&mut Fake, short), "15 bytes of activations"),
        (first.run(&mut Fake, step(1, 0, vec![chunk(1, 0, &[], false, true)])), "without tokens"),
        (first.run(&mut Fake, step(1, 0, vec![chunk(1, 0, &many, false, true)])), "are allowed"),
        (first.run(&mut Fake, step(1, 0, vec![chunk(1, 0, &[fake::BAD], false, true)])), "vocabulary"),
    ];
    for (outcome, words) in cases {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(middle.run(&mut Fake, with).is_ok());

    let mut last = reference(1, 10).remove(0);
    let mut bad = chunk(1, 0, &[1], true, true);
    bad.open = Some(wire::SequenceOpen { sampling: vec![255u8; 3].into(), prompt_tokens: 1 });
    assert!(last.run(&mut Fake, step(1, 0, vec![bad])).unwrap_err().to_string().contains("sampling"));
}

#[test]
fn a_lost_step_changes_what_follows() {
    let (mut whole, mut lossy) = (reference(2, 10), reference(2, 10));
    let prompt = step(1, 0, vec![chunk(1, 0, &[1, 2, 3], true, true)]);
    through(&mut whole, prompt.clone());
    through(&mut lossy, prompt);
    let other = step(1, 1, vec![chunk(2, 0, &[4], true, true)]);
    through(&mut whole, other);
    let next = step(1, 2, vec![chunk(1, 3, &[5], true, false)]);
    assert_ne!(through(&mut whole, next.clone()), through(&mut lossy, next), "the fake would hide a loss");
}

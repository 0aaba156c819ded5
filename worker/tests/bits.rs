//! A million logits, to the bit: batches of 1 to 64 with random companions, random chunks, slices,
//! threads and instruction sets, against each sequence alone on one thread in one chunk.
//!
//! Must never compare with a tolerance.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use caravan_kernels::{Isa, Team};
use caravan_worker::slice::{Chunk, LoadedSlice, StageInput, StageOutput};
use common::{PAGE_TOKENS, TestModel, all_logits, same};

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % end as u64) as usize
    }

    fn text(&mut self, len: usize, vocab: u32) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab as usize) as u32).collect()
    }
}

/// A sequence in progress, and the logits each of its tokens gave.
struct Running {
    text: Vec<u32>,
    done: usize,
    pages: Vec<u32>,
    got: Vec<f32>,
}

/// Runs all texts together: each step a random few of them, each by a random number of tokens.
fn together(
    slices: &mut [LoadedSlice],
    team: &mut Team,
    texts: &[Vec<u32>],
    random: &mut Random,
) -> Vec<Vec<f32>> {
    let mut free: Vec<u32> = (0..400).collect();
    let mut page = |random: &mut Random| free.swap_remove(random.below(free.len()));
    let mut all: Vec<Running> = texts
        .iter()
        .map(|text| {
            let pages = text.len().div_ceil(PAGE_TOKENS as usize);
            let pages = (0..pages).map(|_| page(random)).collect();
            Running { text: text.clone(), done: 0, pages, got: Vec::new() }
        })
        .collect();
    while all.iter().any(|running| running.done < running.text.len()) {
        let mut picked: Vec<usize> = Vec::new();
        let mut chunks = Vec::new();
        let mut rows = 0;
        for (i, running) in all.iter().enumerate() {
            let left = running.text.len() - running.done;
            if left == 0 || random.below(4) == 0 || rows > 400 {
                continue;
            }
            // Mostly single tokens, as in decoding.
            let count = if random.below(3) > 0 { 1 } else { 1 + random.below(left) };
            rows += count;
            picked.push(i);
            let tokens = running.text[running.done..running.done + count].to_vec();
            chunks.push(Chunk {
                start: running.done as u32,
                tokens,
                pages: running.pages.clone(),
                sample: true,
            });
        }
        if chunks.is_empty() {
            continue;
        }
        let mut input = StageInput::Tokens;
        for slice in slices.iter_mut() {
            match slice.forward(team, &chunks, input).unwrap() {
                StageOutput::Activations(rows) => input = StageInput::Activations(rows),
                StageOutput::Logits(logits) => {
                    let width = logits.len() / rows;
                    let mut rest = &logits[..];
                    for (i, chunk) in picked.iter().zip(&chunks) {
                        let (own, others) = rest.split_at(chunk.tokens.len() * width);
                        all[*i].got.extend_from_slice(own);
                        all[*i].done += chunk.tokens.len();
                        rest = others;
                    }
                    break;
                }
            }
        }
    }
    all.into_iter().map(|running| running.got).collect()
}

#[test]
fn a_million_logits_do_not_differ_in_a_bit() {
    let model = TestModel::tiny(true);
    let vocab = model.config.vocab;
    let mut random = Random(20);
    let mut whole = model.load(&[], 400);
    let (mut compared, mut batches) = (0usize, 0);
    let isas: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar).collect();
    assert!(
        !isas.is_empty() || cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))),
        "vector code runs on this machine"
    );
    while compared < 1_000_000 {
        batches += 1;
        let batch = 1 + random.below(64);
        let texts: Vec<Vec<u32>> = (0..batch)
            .map(|_| {
                let len = 1 + random.below(40) + random.below(2) * random.below(60);
                random.text(len, vocab)
            })
            .collect();
        let alone: Vec<Vec<f32>> = texts
            .iter()
            .map(|text| all_logits(&mut whole, &mut Team::new(1), &[text], text.len()).remove(0))
            .collect();
        let cut = random.below(model.config.layers as usize) as u32;
        let cuts: Vec<u32> = if cut == 0 { Vec::new() } else { vec![cut] };
        let mut slices = model.load(&cuts, 400);
        let isa = isas.get(random.below(isas.len().max(1))).copied().unwrap_or(Isa::Scalar);
        let mut team = Team::with_isa(1 + random.below(4), isa);
        let got = together(&mut slices, &mut team, &texts, &mut random);
        for ((got, alone), text) in got.iter().zip(&alone).zip(&texts) {
            assert!(same(got, alone), "batch {batch}, cuts {cuts:?}, {isa:?}, {} tokens", text.len());
            compared += got.len();
        }
    }
    // The scalar definition is slow: a few short texts, against the fastest code.
    let text = random.text(24, vocab);
    let want = all_logits(&mut whole, &mut Team::new(1), &[&text], 24);
    let scalar = all_logits(&mut whole, &mut Team::with_isa(2, Isa::Scalar), &[&text], 5);
    assert!(same(&scalar[0], &want[0]), "scalar");
    compared += scalar[0].len();
    println!("{compared} logits in {batches} batches, 0 bits differ");
}

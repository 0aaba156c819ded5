//! Greedy text of the real Gemma 3 270M beside an outside implementation: candle-transformers' model on
//! the same weights dequantised to f32, given our text, which should have chosen the same tokens.
//!
//! Set `CARAVAN_TEST_GEMMA` to gemma-3-270m-q4_k_m.gguf; without it the test says that it is skipped.
//! `data/gemma.prompts.json`: the first tokens, by the file's own tokenizer, of ten sentences.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod outside;

use caravan_kernels::Team;
use caravan_worker::slice::{Chunk, LoadedSlice};
use common::{PAGE_TOKENS, TestModel, step};
use outside::Outside;

const ANSWER: usize = 200;
/// Of two candidates whose log-probabilities are nearer than this either may come.
const NEAR: f64 = 0.05;

fn prompts() -> Vec<Vec<u32>> {
    let lists = include_str!("data/gemma.prompts.json").split(']');
    let numbers = |list: &str| -> Vec<u32> {
        let words = list.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        words.map(|word| word.parse().unwrap()).collect()
    };
    lists.map(numbers).filter(|prompt| !prompt.is_empty()).collect()
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Every prompt with its greedy answer. All go through two slices together.
fn texts(slices: &mut [LoadedSlice], team: &mut Team, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let vocab = slices[0].config().vocab as usize;
    let mut texts = prompts.to_vec();
    let mut start = 0;
    for _ in 0..ANSWER {
        let chunk = |(s, text): (usize, &Vec<u32>)| {
            let pages = text.len().div_ceil(PAGE_TOKENS as usize);
            Chunk {
                start: start as u32,
                tokens: text[start..].to_vec(),
                pages: (0..pages).map(|page| (page * prompts.len() + s) as u32).collect(),
                sample: true,
            }
        };
        let chunks: Vec<Chunk> = texts.iter().enumerate().map(chunk).collect();
        start = texts[0].len();
        let logits = step(slices, team, &chunks);
        for (text, logits) in texts.iter_mut().zip(logits.chunks_exact(vocab)) {
            text.push(likeliest(logits));
        }
    }
    texts
}

#[test]
fn greedy_text_of_the_real_gemma_is_that_of_the_outside() {
    let Some(path) = std::env::var_os("CARAVAN_TEST_GEMMA") else {
        eprintln!("SKIPPED: CARAVAN_TEST_GEMMA does not name a GGUF file of Gemma 3");
        return;
    };
    let bytes = std::fs::read(path).expect("CARAVAN_TEST_GEMMA can't be read");
    let (prompts, model) = (prompts(), TestModel::parse(&bytes));
    assert!(prompts.len() == 10 && prompts.iter().all(|prompt| prompt.len() == prompts[0].len()));
    let length = prompts[0].len() + ANSWER;
    let pages = (length as u32).div_ceil(PAGE_TOKENS) * prompts.len() as u32;
    let mut slices = model.load(&[9], pages);
    slices.iter_mut().for_each(|slice| slice.all_logits(false));
    let texts = texts(&mut slices, &mut Team::new(2), &prompts);
    drop(slices);
    let mut outside = Outside::new(&bytes, &model.config);
    let (mut partings, mut wrong) = (0, 0);
    for position in 0..length - 1 {
        let column: Vec<u32> = texts.iter().map(|text| text[position]).collect();
        let logits = outside.column(&column, position);
        if position + 1 < prompts[0].len() {
            continue;
        }
        for (prompt, (text, logits)) in texts.iter().zip(&logits).enumerate() {
            let (ours, theirs) = (text[position + 1], likeliest(logits));
            if ours != theirs {
                // A difference of logits is one of log-probabilities.
                let apart = f64::from(logits[theirs as usize]) - f64::from(logits[ours as usize]);
                println!("prompt {prompt}, position {position}: {ours} for {theirs}, {apart:.6} apart");
                partings += 1;
                wrong += usize::from(apart >= NEAR);
            }
        }
    }
    println!("{} positions, {partings} partings, {wrong} of {NEAR} or more", ANSWER * texts.len());
    assert_eq!(wrong, 0);
}

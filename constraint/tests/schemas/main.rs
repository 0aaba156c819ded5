//! 500 generated JSON schemas over the test model's vocabulary: the answers of a random "model" at
//! temperature 1 are valid by an outside validator, or cut by length, and walked anew they are the same.
//!
//! The logits come of a hash, with a liking for what closes things, so that most answers end.
//! Must never pass because nothing was tried: most answers have to be complete.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod generate;

use caravan_constraint::{Allowed, Compiled, Compiler};
use caravan_core::gguf::{Gguf, Vocabulary};
use caravan_core::limits;
use caravan_core::request::{Constraint, ConstraintKind};
use generate::{Random, schema};
use serde_json::Value;

const SCHEMAS: u64 = 500;
const MAX_TOKENS: u32 = 400;

/// How one answer ended.
struct Answer {
    tokens: Vec<u32>,
    complete: bool,
}

/// A liking for each token: closing signs most, then other signs and digits, then short words.
fn likings(vocabulary: &Vocabulary, ends: &[u32]) -> Vec<f32> {
    let liking = |token: u32| {
        let bytes = vocabulary.bytes(token);
        let all = |signs: &[u8]| !bytes.is_empty() && bytes.iter().all(|byte| signs.contains(byte));
        match () {
            () if ends.contains(&token) => 12.0,
            () if all(b"}]\"") => 11.0,
            () if all(b",:{[") => 6.0,
            () if all(b"0123456789-.") => 5.0,
            () => 4.0 - bytes.len() as f32,
        }
    };
    (0..vocabulary.len()).map(liking).collect()
}

fn answer(compiled: &Compiled, likings: &[f32], seed: u64, ends: &[u32]) -> Answer {
    let mut walk = compiled.begin();
    let mut tokens = Vec::new();
    let mut masks = Vec::new();
    while (tokens.len() as u32) < MAX_TOKENS {
        let allowed = walk.allowed().unwrap();
        let mut random = Random(seed.wrapping_mul(31).wrapping_add(tokens.len() as u64));
        // Every answer ends some day: the longer it is, the better it likes to close.
        let pull = 1.0 + tokens.len() as f32 / 60.0;
        let mut logits: Vec<f32> =
            likings.iter().map(|liking| liking * pull + 3.0 * random.share()).collect();
        let token = sampler.sample(tokens.len() as u32, &mut logits, Some(&allowed)).unwrap().token;
        assert!(allowed.contains(token));
        masks.push(allowed);
        if ends.contains(&token) {
            again(compiled, &tokens, &masks, seed);
            return Answer { tokens, complete: true };
        }
        walk.advance(token).unwrap();
        tokens.push(token);
    }
    again(compiled, &tokens, &masks, seed);
    Answer { tokens, complete: false }
}

/// A draw at temperature 1: the highest of logit plus Gumbel noise.
fn draw(likings: &[f32], pull: f32, allowed: &Allowed, random: &mut Random) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (token, liking) in (0u32..).zip(likings).filter(|(token, _)| allowed.contains(*token)) {
        let noise = -(-(random.share().max(1e-7)).ln()).ln();
        if liking * pull + noise > best.0 {
            best = (liking * pull + noise, token);
        }
    }
    best.1
}

/// A walk begun anew, as after a kill, allows the same at every place.
fn again(compiled: &Compiled, tokens: &[u32], masks: &[Allowed], seed: u64) {
    if !seed.is_multiple_of(5) {
        return;
    }
    let mut walk = compiled.begin();
    for (at, mask) in masks.iter().enumerate() {
        assert_eq!(&walk.allowed().unwrap(), mask, "at token {at} of answer {seed}");
        if let Some(token) = tokens.get(at) {
            walk.advance(*token).unwrap();
        }
    }
}

fn run(vocabulary: &Vocabulary) {
    let ends: Vec<u32> = vocabulary
        .control()
        .iter()
        .filter(|(_, name)| name == "<|im_end|>")
        .map(|(token, _)| *token)
        .collect();
    let compiler = Compiler::new(vocabulary, &ends).unwrap();
    let likings = likings(vocabulary, &ends);
    let (mut valid, mut cut, mut tokens) = (0, 0, 0);
    for seed in 0..SCHEMAS {
        let schema = schema(seed);
        let text = schema.to_string();
        let kind = ConstraintKind::JsonSchema { lenient: false };
        let constraint = Constraint { kind, text: text.clone(), ends: ends.clone(), control: Vec::new() };
        let compiled =
            compiler.compile(&constraint).unwrap_or_else(|error| panic!("schema {seed}: {error}\n{text}"));
        let answer = answer(&compiled, &likings, seed, &ends);
        tokens += answer.tokens.len();
        if !answer.complete {
            cut += 1;
            continue;
        }
        let bytes: Vec<u8> =
            answer.tokens.iter().flat_map(|token| vocabulary.bytes(*token)).copied().collect();
        let said = String::from_utf8(bytes).unwrap();
        let value: Value =
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{text}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        if let Err(error) = validator.validate(&value) {
            panic!("schema {seed}: {error}\n{text}\n{said}");
        }
        valid += 1;
    }
    eprintln!("{SCHEMAS} schemas: {valid} answers valid, {cut} cut at {MAX_TOKENS} tokens; {tokens} tokens");
    assert_eq!(valid + cut, SCHEMAS);
    assert!(valid >= SCHEMAS * 9 / 10, "{cut} answers were cut");
}

#[test]
fn answers_are_valid_or_cut_and_the_same_walked_anew() {
    let Some(path) = std::env::var_os("CARAVAN_TEST_MODEL") else {
        eprintln!("SKIPPED: CARAVAN_TEST_MODEL does not name a GGUF file");
        return;
    };
    let file = std::fs::read(path).unwrap();
    let vocabulary = Gguf::parse(&file, file.len() as u64).unwrap().vocabulary().unwrap();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(limits::CONSTRAINT_STACK_BYTES);
        thread.spawn_scoped(scope, || run(&vocabulary)).unwrap().join().unwrap();
    });
}

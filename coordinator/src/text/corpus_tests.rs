//! Texts that would embarrass a tokenizer, shared by the tests: a list made by hand, and 10,000 drawn from
//! a pool by a fixed rule. What outside tokenizers made of the drawn ones is kept as one number a hundred.
//!
//! Must never change without the numbers in `testdata`: they were made from these very texts.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use caravan_core::gguf::synthetic::mixed;

/// Texts by hand: scripts, emoji, white space, control characters, look-alikes of special tokens.
pub fn by_hand() -> Vec<String> {
    serde_json::from_str(include_str!("testdata/corpus.json")).unwrap()
}

/// 10,000 texts of 1 to 24 parts of the pool.
pub fn drawn() -> impl Iterator<Item = String> {
    let pool: Vec<String> = serde_json::from_str(include_str!("testdata/pool.json")).unwrap();
    (0..10_000u64).map(move |index| {
        let parts = 1 + mixed(index * 64) % 24;
        (0..parts).map(|part| &*pool[(mixed(index * 64 + 1 + part) % pool.len() as u64) as usize]).collect()
    })
}

/// FNV-1a over the tokens, little-endian, each text ended by `u32::MAX`.
pub fn digest(texts: &[Vec<u32>]) -> u64 {
    let numbers = texts.iter().flat_map(|tokens| tokens.iter().copied().chain([u32::MAX]));
    numbers
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Blocks of a hundred drawn texts whose tokens are not those of the outside numbers, a block a line.
pub fn wrong_blocks(numbers: &str, encode: impl Fn(&str) -> Vec<u32>) -> Vec<usize> {
    let texts: Vec<String> = drawn().collect();
    let numbers: Vec<u64> = numbers.lines().map(|line| u64::from_str_radix(line, 16).unwrap()).collect();
    assert_eq!(numbers.len() * 100, texts.len());
    let found = texts.chunks(100).map(|block| block.iter().map(|text| encode(text)).collect::<Vec<_>>());
    let compared = found.zip(&numbers).enumerate();
    compared.filter(|(_, (tokens, number))| digest(tokens) != **number).map(|(block, _)| block).collect()
}

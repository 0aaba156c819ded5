//! What the threads find out, against a walk done here; and that nobody waits for them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use caravan_core::gguf::synthetic::TinyLlama;
use caravan_core::request::ConstraintKind;

use super::*;

struct World {
    _folder: tempfile::TempDir,
    grammars: Grammars,
    vocabulary: Vocabulary,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let bytes = TinyLlama::default().writer().finish();
    let header = folder.path().join("header");
    std::fs::write(&header, &bytes).unwrap();
    let vocabulary = Gguf::parse(&bytes, bytes.len() as u64).unwrap().vocabulary().unwrap();
    let masks = Masks::start().unwrap();
    let words = masks.words(Digest([1; 32]), header);
    World { _folder: folder, grammars: Grammars { masks, words }, vocabulary }
}

fn constraint(world: &World, text: &str) -> Constraint {
    let end = world.vocabulary.control().last().unwrap().0;
    Constraint { kind: ConstraintKind::Regex, text: text.into(), ends: vec![end], control: Vec::new() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn allowed(constrained: &Constrained, position: u32) -> Vec<u32> {
    match constrained.next(position, soon()) {
        Next::Allowed(allowed) => (0..300).filter(|token| allowed.contains(*token)).collect(),
        Next::Later => panic!("not within 30 s"),
        Next::Fault(fault) => panic!("{fault:?}"),
    }
}

#[test]
fn a_walk_is_followed_and_begun_anew() {
    let world = world();
    let constraint = constraint(&world, "(yes|no)[!?]{2}");
    let end = constraint.ends[0];
    let prompt = 3;
    let mut first = world.grammars.open(constraint.clone(), prompt);
    (0..prompt).for_each(|position| first.see(position, 7));
    let mut tokens = Vec::new();
    let mut seen = Vec::new();
    loop {
        let position = prompt + tokens.len() as u32;
        let here = allowed(&first, position);
        let token = here[here.len() / 2];
        seen.push(here);
        if token == end {
            break;
        }
        first.see(position, token);
        // Told twice, as decode chunks do.
        first.see(position, token);
        tokens.push(token);
    }
    let text: Vec<u8> = tokens.iter().flat_map(|token| world.vocabulary.bytes(*token)).copied().collect();
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("yes") || text.starts_with("no"), "{text}");
    assert!(text.len() == 4 || text.len() == 5, "{text}");
    assert_eq!(seen.last().unwrap(), &[end]);
    for cut in 0..=tokens.len() {
        let mut again = world.grammars.open(constraint.clone(), prompt);
        (0..prompt).for_each(|position| again.see(position, 7));
        for (at, token) in tokens[..cut].iter().enumerate() {
            again.see(prompt + at as u32, *token);
        }
        assert_eq!(allowed(&again, prompt + cut as u32), seen[cut]);
    }
}

#[test]
fn who_does_not_wait_is_told_so_and_nothing_is_lost() {
    let world = world();
    let constrained = world.grammars.open(constraint(&world, "a{1,50}(b|c)"), 0);
    // The vocabulary is not even read yet.
    assert!(matches!(constrained.next(0, Instant::now()), Next::Later));
    assert!(!allowed(&constrained, 0).is_empty());
}

#[test]
fn faults_are_told_and_stay_with_their_sequence() {
    let world = world();
    let bad = world.grammars.open(constraint(&world, "("), 0);
    let good = world.grammars.open(constraint(&world, "x"), 0);
    let Next::Fault(fault) = bad.next(0, soon()) else { panic!("it was taken") };
    assert_eq!(fault.fault, Fault::Operator, "the gateway should have refused it");
    assert!(matches!(good.next(0, soon()), Next::Allowed(_)));
    let missing = world.grammars.masks.words(Digest([2; 32]), "/nonexistent/header".into());
    let lost = Grammars { masks: world.grammars.masks.clone(), words: missing };
    let lost = lost.open(constraint(&world, "x"), 0);
    assert!(matches!(lost.next(0, soon()), Next::Fault(_)));
}

#[test]
fn many_sequences_share_what_is_compiled_and_the_threads() {
    let world = world();
    let mut all: Vec<Constrained> =
        (0..100).map(|i| world.grammars.open(constraint(&world, ["[ab]+c", "[cd]+e"][i % 2]), 0)).collect();
    for step in 0..4 {
        for (i, constrained) in all.iter_mut().enumerate() {
            let token = allowed(constrained, step)[0];
            let bytes = world.vocabulary.bytes(token);
            assert!(bytes.iter().all(|byte| ["abc", "cde"][i % 2].as_bytes().contains(byte)), "{bytes:?}");
            constrained.see(step, token);
        }
    }
    assert_eq!(world.grammars.masks.inner.queue.kept.lock().unwrap().len(), 2);
}

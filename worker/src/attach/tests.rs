//! Whom to try next, and when.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_address_is_tried_in_turn_and_a_hint_comes_first() {
    let mut contacts = Contacts::new(names(&["a", "b"]));
    assert_eq!(contacts.pick().unwrap(), "a");
    contacts.hint("x".to_owned());
    assert_eq!(contacts.pick().unwrap(), "x");
    assert_eq!(contacts.pick().unwrap(), "b");
    assert_eq!(contacts.pick().unwrap(), "a");

    contacts.learn(names(&["b", "c", "c"]));
    let mut tried: Vec<String> = (0..3).map(|_| contacts.pick().unwrap()).collect();
    tried.sort();
    assert_eq!(tried, names(&["a", "b", "c"]));
    contacts.learn(Vec::new());
    assert_ne!(contacts.pick().unwrap(), contacts.pick().unwrap());
    assert_eq!(Contacts::new(Vec::new()).pick(), None);
}

#[test]
fn pauses_grow_within_bounds() {
    for random in [0, 511, 1023] {
        let first = backoff(0, random);
        assert!(first >= Duration::from_millis(37) && first <= Duration::from_millis(63), "{first:?}");
        assert!(backoff(5, random) > first);
        assert!(backoff(1000, random) <= Duration::from_millis(limits::ATTACH_BACKOFF_MAX_MS));
        assert!(backoff(1000, random) >= Duration::from_millis(500));
    }
    assert_ne!(backoff(3, 0), backoff(3, 1023));
}

//! Detokeniser and stop matcher against whole-string definitions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::{Detokenizer, StopMatcher};

fn joined(pieces: &[&[u8]]) -> String {
    let mut detokenizer = Detokenizer::default();
    let mut text: String = pieces.iter().map(|piece| detokenizer.push(piece)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn a_character_is_shown_when_it_is_whole() {
    let mut detokenizer = Detokenizer::default();
    let bytes = "né🚚".as_bytes();
    let shown: Vec<String> = bytes.iter().map(|byte| detokenizer.push(&[*byte])).collect();
    assert_eq!(shown, ["n", "", "é", "", "", "", "🚚"]);
    assert_eq!(detokenizer.finish(), "");
    assert_eq!(detokenizer.push(&[0xf0, 0x9f]), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

/// Naive definition: the smallest prefix that ends in a stop string, without the longest such one.
fn naive(text: &str, stops: &[String]) -> (String, bool) {
    for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
        let ended = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
        if let Some(length) = ended.map(String::len).max() {
            return (text[..end - length].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

fn streamed(pieces: &[&str], stops: &[String]) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops.to_vec());
    let mut shown = String::new();
    for piece in pieces {
        let (text, found) = matcher.push(piece);
        shown.push_str(&text);
        if found {
            assert_eq!(matcher.push("more"), (String::new(), true));
            assert_eq!(matcher.finish(), "");
            return (shown, true);
        }
    }
    shown.push_str(&matcher.finish());
    (shown, false)
}

#[test]
fn the_stop_that_is_complete_first_wins() {
    let stops = |stops: &[&str]| stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>();
    assert_eq!(streamed(&["ab", "cd"], &stops(&["abcd", "bc"])), ("a".into(), true));
    assert_eq!(streamed(&["xabc"], &stops(&["bc", "abc"])), ("x".into(), true));
    assert_eq!(streamed(&["END"], &stops(&[""])), ("END".into(), false));
    assert_eq!(streamed(&["aa", "ab"], &stops(&["aab"])), ("a".into(), true));
}

#[test]
fn only_a_possible_beginning_is_held_back() {
    let mut matcher = StopMatcher::new(vec!["\n\nUser:".into(), "🚚🚚".into()]);
    assert_eq!(matcher.push("hello"), ("hello".into(), false));
    assert_eq!(matcher.push("\n"), ("".into(), false));
    assert_eq!(matcher.push("\nUs"), ("".into(), false));
    assert_eq!(matcher.push("ually 🚚"), ("\n\nUsually ".into(), false));
    assert_eq!(matcher.push(" "), ("🚚 ".into(), false));
    assert_eq!(matcher.finish(), "");
}

/// Cuts at the given places, wherever a character begins.
fn cut<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    places.retain(|place| text.is_char_boundary(*place));
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

fn byte() -> impl Strategy<Value = u8> {
    // Mostly the bytes of which characters and their damage are made.
    prop_oneof![
        Just(b'a'),
        0x80u8..0xc0,
        0xc0u8..=0xff,
        Just(0xf0),
        Just(0x9f),
        Just(0xe2),
        Just(0xed),
        any::<u8>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn pieces_join_to_the_lossy_whole(pieces in prop::collection::vec(prop::collection::vec(byte(), 0..6), 0..12)) {
        let parts: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let whole = pieces.concat();
        prop_assert_eq!(joined(&parts), String::from_utf8_lossy(&whole));
    }

    #[test]
    fn stops_are_found_as_in_the_whole(
        text in "[ab\u{e9}\u{1f69a}]{0,24}",
        stops in prop::collection::vec("[ab\u{e9}\u{1f69a}]{0,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        prop_assert_eq!(streamed(&cut(&text, &cuts), &stops), naive(&text, &stops));
    }
}

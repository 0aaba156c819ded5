//! Control and user-defined tokens written out in text, and the guard that keeps a client from writing them.
//!
//! The guard: before a conversation is rendered, a character that occurs nowhere in it (the mark) is put
//! behind the first character of everything in a message that is, or at the message's end may become,
//! a control token's text. The tokenizer looks for control tokens first and drops the marks afterwards,
//! so that the text it encodes is what the client wrote. A template that trims, cuts or copies content can
//! lose a mark only together with the text that needed it. Must never mark a message that has no need:
//! templates may look into the content.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use caravan_core::error::Refusal;

use super::Conversation;

/// A token that ends at a node.
#[derive(Clone, Copy, Debug)]
struct Special {
    token: u32,
    control: bool,
    /// White space behind it belongs to it.
    strip: bool,
}

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<u8, u32>,
    token: Option<Special>,
    /// A control token ends here or below.
    control: bool,
}

/// Finds tokens by their text. A trie over bytes.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    nodes: Vec<Node>,
}

/// A token found in a text.
pub(super) struct Found {
    pub start: usize,
    pub end: usize,
    pub token: u32,
    /// White space behind it belongs to it.
    pub strip: bool,
}

impl SpecialTokens {
    pub(super) fn new() -> SpecialTokens {
        SpecialTokens { nodes: vec![Node::default()] }
    }

    /// `text` must not be empty.
    pub(super) fn insert(&mut self, text: &str, token: u32, control: bool, strip: bool) {
        let mut at = 0;
        self.nodes[0].control |= control;
        for byte in text.bytes() {
            let next = self.nodes.len() as u32;
            let child = *self.nodes[at].children.entry(byte).or_insert(next);
            if child == next {
                self.nodes.push(Node::default());
            }
            at = child as usize;
            self.nodes[at].control |= control;
        }
        self.nodes[at].token = Some(Special { token, control, strip });
    }

    /// The first token in `text`; of those that begin there, the longest. Control tokens only if `control`.
    pub(super) fn find(&self, text: &str, control: bool) -> Option<Found> {
        let bytes = text.as_bytes();
        let starts = bytes.iter().enumerate().filter(|(_, byte)| self.nodes[0].children.contains_key(byte));
        starts.map(|(start, _)| start).find_map(|start| {
            let mut at = 0;
            let mut longest = None;
            for (length, byte) in bytes[start..].iter().enumerate() {
                let Some(child) = self.nodes[at].children.get(byte) else {
                    break;
                };
                at = *child as usize;
                if let Some(special) = self.nodes[at].token.filter(|special| control || !special.control) {
                    let Special { token, strip, .. } = special;
                    longest = Some(Found { start, end: start + length + 1, token, strip });
                }
            }
            longest
        })
    }

    /// Whether a control token's text begins here, or may begin here and go on in what follows.
    fn control_may_begin(&self, bytes: &[u8]) -> bool {
        let mut at = 0;
        for byte in bytes {
            let Some(child) = self.nodes[at].children.get(byte) else {
                return false;
            };
            at = *child as usize;
            if self.nodes[at].token.is_some_and(|special| special.control) {
                return true;
            }
        }
        self.nodes[at].control
    }

    /// Places behind the first character of what must not become a control token.
    fn places<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let root = &self.nodes[0].children;
        let starts = text.char_indices().filter(|(at, _)| root.contains_key(&text.as_bytes()[*at]));
        // Templates trim: what stands before white space at the end may end up at the end.
        let trimmed = text.trim_end().len();
        let risky = starts.filter(move |(at, _)| {
            let (whole, ends) = (&text.as_bytes()[*at..], text.as_bytes().get(*at..trimmed));
            self.control_may_begin(whole) || ends.is_some_and(|ends| self.control_may_begin(ends))
        });
        risky.map(|(at, character)| at + character.len_utf8())
    }

    fn marked(&self, text: &str, mark: char) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let mut from = 0;
        for place in self.places(text) {
            out.push_str(&text[from..place]);
            out.push(mark);
            from = place;
        }
        out.push_str(&text[from..]);
        out
    }
}

/// A conversation to render, and the character to drop from the result.
pub(super) struct Guarded<'a> {
    pub conversation: Cow<'a, Conversation>,
    pub mark: Option<char>,
}

/// Puts marks into the texts that need them. Refuses only a conversation in which every
/// character that could be the mark occurs.
pub(super) fn guard<'a>(
    conversation: &'a Conversation,
    special: &SpecialTokens,
    template: &str,
) -> Result<Guarded<'a>, Refusal> {
    let mut texts = Vec::new();
    conversation.texts(&mut |text| texts.push(text));
    if !texts.iter().any(|text| special.places(text).next().is_some()) {
        return Ok(Guarded { conversation: Cow::Borrowed(conversation), mark: None });
    }
    // Characters that mean nothing: non-characters first, then the private planes.
    let candidates = || ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{10ffff}');
    texts.push(template);
    let characters = texts.into_iter().flat_map(str::chars);
    let taken: HashSet<char> = characters.filter(|character| *character >= '\u{fdd0}').collect();
    let Some(mark) = candidates().find(|candidate| !taken.contains(candidate)) else {
        return Err(Refusal::client(
            "invalid_messages",
            "messages",
            "the messages hold control tokens and every private-use character; leave out either",
        ));
    };
    let guarded = conversation.map(&|text| special.marked(text, mark));
    Ok(Guarded { conversation: Cow::Owned(guarded), mark: Some(mark) })
}

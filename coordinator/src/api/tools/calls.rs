//! Finds tool calls in an answer's text while it grows, in the form of the model's family.
//!
//! Text that only looks like a call (broken JSON, a function that was not offered) stays text.
//! Must never depend on how the text was cut into pieces, nor lose or double a character of it.

use crate::text::{MISTRAL_MARKER, ToolStyle};

/// A part of a call, as streams send it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallDelta {
    /// Place among the answer's calls.
    pub index: usize,
    /// With a call's first part.
    pub head: Option<CallHead>,
    /// More of the arguments' JSON text.
    pub arguments: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CallHead {
    pub id: String,
    pub name: String,
}

/// What came of some more text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    pub text: String,
    pub calls: Vec<CallDelta>,
}

/// The calls of one choice.
pub struct CallParser {
    style: ToolStyle,
    /// Functions that may be called.
    names: Vec<String>,
    /// What ids are derived from: unique to the choice.
    key: String,
    place: Place,
    /// Text that was not decided about yet.
    held: String,
    /// Calls begun.
    count: usize,
    /// More than one is allowed.
    parallel: bool,
}

enum Place {
    /// At the very beginning.
    Start,
    Text,
    /// In a call, with the text since its marker for the case that it is none.
    Call {
        scanner: Scanner,
        raw: String,
        begun: bool,
    },
    /// Behind a call: what closes it, and what opens another one.
    Behind,
    /// Behind the only call there may be: nothing counts any more.
    Over,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

impl CallParser {
    /// `key`: the id of the choice's record. `parallel`: more than one call may be made.
    pub fn new(style: ToolStyle, names: Vec<String>, parallel: bool, key: &str) -> CallParser {
        let (key, held) = (key.to_owned(), String::new());
        CallParser { style, names, key, place: Place::Start, held, count: 0, parallel }
    }

    /// Whether a call was found.
    pub fn called(&self) -> bool {
        self.count > 0
    }

    /// More of the answer.
    pub fn push(&mut self, text: &str) -> Parsed {
        self.held.push_str(text);
        let mut out = Parsed::default();
        while self.advance(&mut out, false) {}
        out
    }

    /// The answer has ended: what is held back is text, unless it closes a call.
    pub fn finish(&mut self) -> Parsed {
        let mut out = Parsed::default();
        while self.advance(&mut out, true) {}
        if let Place::Call { raw, begun: false, .. } = &mut self.place {
            out.text.push_str(&std::mem::take(raw));
        }
        if !matches!(self.place, Place::Behind) {
            out.text.push_str(&std::mem::take(&mut self.held));
        }
        out
    }

    /// Decides about some of what is held; false if more must come first.
    fn advance(&mut self, out: &mut Parsed, last: bool) -> bool {
        match &self.place {
            Place::Start => self.start(last),
            Place::Text => self.text(out),
            Place::Call { .. } => self.call(out),
            Place::Behind => self.behind(out, last),
            Place::Over => {
                self.held.clear();
                false
            }
        }
    }

    fn start(&mut self, last: bool) -> bool {
        let trimmed = self.held.trim_start();
        if trimmed.is_empty() && !last {
            return false;
        }
        self.place = match self.style {
            ToolStyle::Llama if trimmed.starts_with('{') => {
                let raw = self.held[..self.held.len() - trimmed.len()].to_owned();
                self.held = trimmed.to_owned();
                Place::Call { scanner: Scanner::default(), raw, begun: false }
            }
            _ => Place::Text,
        };
        !self.held.is_empty()
    }

    /// The text that opens calls, if any place may have one.
    fn marker(&self) -> Option<&'static str> {
        match self.style {
            ToolStyle::Hermes => Some(OPEN),
            ToolStyle::Mistral => Some(MISTRAL_MARKER),
            ToolStyle::Llama => None,
        }
    }

    fn text(&mut self, out: &mut Parsed) -> bool {
        let Some(marker) = self.marker() else {
            out.text.push_str(&std::mem::take(&mut self.held));
            return false;
        };
        if let Some(at) = self.held.find(marker) {
            let rest = self.held.split_off(at + marker.len());
            let text = std::mem::replace(&mut self.held, rest);
            let before = &text[..at];
            // Line ends before the first call belong to the form, not to the text.
            let shown = before.trim_end();
            out.text.push_str(shown);
            let raw = text[shown.len()..].to_owned();
            self.place = Place::Call { scanner: Scanner::default(), raw, begun: false };
            return true;
        }
        // White space and the beginning of a marker wait for what follows.
        let kept = self.held.trim_end().len();
        let may_begin = |at: &usize| self.held.is_char_boundary(*at) && marker.starts_with(&self.held[*at..]);
        let from = self.held.len().saturating_sub(marker.len() - 1);
        let at = (from..self.held.len()).find(may_begin).unwrap_or(self.held.len());
        let safe = self.held[..at].trim_end().len().min(kept);
        let rest = self.held.split_off(safe);
        out.text.push_str(&std::mem::replace(&mut self.held, rest));
        false
    }

    fn call(&mut self, out: &mut Parsed) -> bool {
        let Place::Call { scanner, raw, begun } = &mut self.place else { return false };
        let list = self.style == ToolStyle::Mistral;
        for (at, character) in self.held.char_indices() {
            if !*begun {
                raw.push(character);
            }
            let step = scanner.push(character, list && self.count == 0);
            let known = scanner.name.as_ref().is_some_and(|name| self.names.contains(name));
            let named = scanner.name.is_none() || known;
            if step == Step::Wrong || !named {
                let rest = self.held.split_off(at + character.len_utf8());
                self.held = rest;
                if !*begun {
                    out.text.push_str(&std::mem::take(raw));
                }
                self.place = Place::Text;
                return true;
            }
            let ready = known && (scanner.arguments_begun || step == Step::Done);
            if ready && !*begun {
                *begun = true;
                let name = scanner.name.clone().unwrap_or_default();
                let head = CallHead { id: call_id(&self.key, self.count), name };
                out.calls.push(CallDelta { index: self.count, head: Some(head), ..CallDelta::default() });
                self.count += 1;
            }
            if *begun {
                if step == Step::Done && !scanner.arguments_begun {
                    scanner.arguments.push_str("{}");
                }
                argue(out, self.count - 1, std::mem::take(&mut scanner.arguments));
            }
            if step == Step::Done {
                if !*begun {
                    // No name: not a call.
                    out.text.push_str(&std::mem::take(raw));
                }
                let begun = *begun;
                self.held = self.held.split_off(at + character.len_utf8());
                self.place = match begun {
                    false => Place::Text,
                    true if self.parallel => Place::Behind,
                    true => Place::Over,
                };
                return true;
            }
        }
        self.held.clear();
        false
    }

    fn behind(&mut self, out: &mut Parsed, last: bool) -> bool {
        let trimmed = self.held.trim_start();
        let begins: &[(&str, bool)] = match self.style {
            ToolStyle::Hermes => &[(CLOSE, false), (OPEN, true)],
            ToolStyle::Mistral => &[(",", true), ("]", false)],
            ToolStyle::Llama => &[(";", true)],
        };
        for (begin, another) in begins {
            if let Some(rest) = trimmed.strip_prefix(begin) {
                let raw = self.held[..self.held.len() - rest.len()].to_owned();
                self.held = rest.to_owned();
                if *another {
                    self.place = Place::Call { scanner: Scanner::default(), raw, begun: false };
                }
                return true;
            }
            if begin.starts_with(trimmed) && !last {
                return false;
            }
        }
        if trimmed.is_empty() {
            self.held.clear();
            return false;
        }
        // Text behind calls.
        self.place = Place::Text;
        self.text(out);
        true
    }
}

fn argue(out: &mut Parsed, index: usize, more: String) {
    if more.is_empty() {
        return;
    }
    match out.calls.last_mut().filter(|call| call.index == index) {
        Some(call) => call.arguments.push_str(&more),
        None => out.calls.push(CallDelta { index, head: None, arguments: more }),
    }
}

/// A pure function of the choice and the call's place in it: the same after a failure. Letters and
/// digits behind `call_`.
pub fn call_id(key: &str, index: usize) -> String {
    let digest = blake3::derive_key("caravan id of a tool call", format!("{key} {index}").as_bytes());
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("call_{hex}")
}

/// What a character did to a call's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    More,
    Done,
    Wrong,
}

/// Reads `{"name": "…", "arguments": {…}}` character by character, in any order of its keys.
#[derive(Default)]
struct Scanner {
    stage: Stage,
    key: String,
    name: Option<String>,
    arguments_begun: bool,
    /// Not taken yet.
    arguments: String,
    /// Of a value that is a string or nested.
    value: String,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// A key, or (after `{` only) the end.
    Key,
    InKey,
    Colon,
    Value,
    InName,
    InArguments,
    InOther,
    Comma,
}

impl Scanner {
    /// `list`: the call may stand first in a list.
    fn push(&mut self, character: char, list: bool) -> Step {
        let space = matches!(character, ' ' | '\t' | '\n' | '\r');
        match self.stage {
            Stage::InKey => self.string(character, Stage::Colon),
            Stage::InName => self.string(character, Stage::Comma),
            Stage::InArguments | Stage::InOther => self.nested(character),
            _ if space => Step::More,
            Stage::Open if character == '[' && list => Step::More,
            Stage::Open => self.to(character == '{', Stage::Key),
            Stage::Key if character == '}' => Step::Done,
            Stage::Key => self.to(character == '"', Stage::InKey),
            Stage::Colon => self.to(character == ':', Stage::Value),
            Stage::Value => self.value(character),
            Stage::Comma if character == '}' => Step::Done,
            Stage::Comma => self.to(character == ',', Stage::Key),
        }
    }

    fn to(&mut self, good: bool, stage: Stage) -> Step {
        self.stage = stage;
        if good { Step::More } else { Step::Wrong }
    }

    /// Of a key or of the name.
    fn string(&mut self, character: char, then: Stage) -> Step {
        if self.escaped || character != '"' {
            self.escaped = !self.escaped && character == '\\';
            self.value.push(character);
            return Step::More;
        }
        let text = format!("\"{}\"", std::mem::take(&mut self.value));
        let Ok(text) = serde_json::from_str::<String>(&text) else { return Step::Wrong };
        match self.stage {
            Stage::InKey => self.key = text,
            _ if self.name.is_some() => return Step::Wrong,
            _ => self.name = Some(text),
        }
        self.stage = then;
        Step::More
    }

    /// The first character of a value.
    fn value(&mut self, character: char) -> Step {
        self.depth = 0;
        match self.key.as_str() {
            "name" => self.to(character == '"', Stage::InName),
            "arguments" | "parameters" if character == '{' && !self.arguments_begun => {
                self.stage = Stage::InArguments;
                self.arguments_begun = true;
                self.nested(character)
            }
            "arguments" | "parameters" => Step::Wrong,
            _ => {
                self.stage = Stage::InOther;
                self.nested(character)
            }
        }
    }

    /// Of a value of any kind, up to its end.
    fn nested(&mut self, character: char) -> Step {
        // A bare word or number ends with what follows it.
        if self.depth == 0 && !self.in_string && matches!(character, ',' | '}') {
            self.stage = Stage::Comma;
            return self.push(character, false);
        }
        if self.stage == Stage::InArguments {
            self.arguments.push(character);
        }
        if self.in_string {
            let ends = character == '"' && !self.escaped;
            self.escaped = !self.escaped && character == '\\';
            self.in_string = !ends;
        } else {
            match character {
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth = self.depth.saturating_sub(1),
                _ => return Step::More,
            }
        }
        if self.depth == 0 && !self.in_string {
            self.stage = Stage::Comma;
        }
        Step::More
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;

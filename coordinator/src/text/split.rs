//! Cuts text into the words inside which a byte-level BPE merges: the pre-tokenizers of GGUF files.
//!
//! The common ones are scanners written out by hand, equal to the regular expression that they are named after. A
//! backtracking engine would do, but it gives up on a run of a million spaces and then (in the
//! `tokenizers` crate) leaves the rest of the text uncut without a word. A scanner passes over the text
//! once. Must never need more than time proportional to the text.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use tokenizers::utils::SysRegex;

use super::stages::Stages;

/// The expressions of the variants below, as `tokenizer.json` has them.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The step that takes every numeric character by itself.
const DIGITS: &str = "digits";

/// How a text is cut, by `tokenizer.ggml.pre` of a file.
#[derive(Clone, Debug)]
pub(super) enum Splitter {
    /// `GPT2`
    Gpt2,
    /// Every numeric character (by the standard library) by itself, and `Gpt2` between them.
    Smollm,
    /// `LLAMA3`
    Llama3,
    /// As `Llama3` with `\p{N}` for `\p{N}{1,3}`.
    Qwen2,
    /// Rarer ones, by their expressions.
    Staged(Stages),
}

impl Splitter {
    /// By the name in the file; `None` for one that this build does not know.
    pub(super) fn from_name(name: &str) -> Option<Splitter> {
        Some(match name {
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "gigachat"
            | "a.x-4.0" | "mellum" | "exaone4" => Splitter::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
            | "mellum2" => Splitter::Smollm,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => Splitter::Llama3,
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "hunyuan" | "megrez"
            | "grok-2" | "solar-open" => Splitter::Qwen2,
            _ => Splitter::Staged(Stages::from_name(name)?),
        })
    }

    /// By the expressions (and names of steps) of a `tokenizer.json`; `None` for ones that this build does not
    /// know, for an engine that backtracks would run them without a bound.
    pub(super) fn from_expressions(steps: &[&str]) -> Option<Splitter> {
        Some(match steps {
            [GPT2] => Splitter::Gpt2,
            [DIGITS, GPT2] => Splitter::Smollm,
            [LLAMA3] => Splitter::Llama3,
            [QWEN2] => Splitter::Qwen2,
            _ => Splitter::Staged(Stages::from_expressions(steps)?),
        })
    }

    /// Gives every word of `text` in order; together they are `text`. Ends early if `word` breaks.
    pub(super) fn words<'a>(
        &self,
        text: &'a str,
        mut word: impl FnMut(&'a str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self {
            Splitter::Gpt2 => cut(text, gpt2, &mut word),
            Splitter::Smollm => smollm(text, &mut word),
            Splitter::Llama3 => cut(text, |text| llama3(text, 3), &mut word),
            Splitter::Qwen2 => cut(text, |text| llama3(text, 1), &mut word),
            Splitter::Staged(stages) => stages.words(text, &mut word),
        }
    }
}

/// Words of which `next` gives the length of the first one.
fn cut<'a>(
    text: &'a str,
    next: impl Fn(&str) -> usize,
    word: &mut impl FnMut(&'a str) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut rest = text;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(next(rest));
        word(head)?;
        rest = tail;
    }
    ControlFlow::Continue(())
}

fn smollm<'a>(text: &'a str, word: &mut impl FnMut(&'a str) -> ControlFlow<()>) -> ControlFlow<()> {
    let mut rest = text;
    while !rest.is_empty() {
        let (between, tail) = rest.split_at(rest.find(char::is_numeric).unwrap_or(rest.len()));
        cut(between, gpt2, word)?;
        let (digit, tail) = tail.split_at(tail.chars().next().map_or(0, char::len_utf8));
        if !digit.is_empty() {
            word(digit)?;
        }
        rest = tail;
    }
    ControlFlow::Continue(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// One bit a character of a class that an expression names.
struct Table {
    bits: Vec<u64>,
}

impl Table {
    /// From the expression itself, in some tens of milliseconds: the standard library lacks `\p{L}`,
    /// and its `\p{N}` is of another version of Unicode than the expressions'.
    fn of(pattern: &str) -> Table {
        let mut bits = vec![0u64; 0x11_0000 / 64];
        let all: String = ('\u{80}'..=char::MAX).collect();
        // The patterns are constants: they compile, or the tests of this file fail.
        for (start, end) in SysRegex::new(pattern).iter().flat_map(|class| class.find_iter(&all)) {
            for character in all[start..end].chars() {
                bits[character as usize / 64] |= 1 << (character as usize % 64);
            }
        }
        Table { bits }
    }

    fn has(&self, character: char) -> bool {
        self.bits[character as usize / 64] >> (character as usize % 64) & 1 == 1
    }
}

static LETTERS: LazyLock<Table> = LazyLock::new(|| Table::of(r"\p{L}+"));
static NUMBERS: LazyLock<Table> = LazyLock::new(|| Table::of(r"\p{N}+"));

/// Makes the tables now rather than with the first request.
pub(super) fn prepare(splitter: &Splitter) {
    if !matches!(splitter, Splitter::Staged(_)) {
        LazyLock::force(&LETTERS);
        LazyLock::force(&NUMBERS);
    }
}

/// Whether a word that is a token is that token, whatever the merges say.
pub(super) fn whole_words(name: &str) -> bool {
    const NAMES: [&str; 13] = [
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "glm4",
        "glm5",
        "tekken",
        "minicpm5",
        "youtu",
    ];
    NAMES.contains(&name)
}

/// Whether files with this pre-tokenizer that lack `add_bos_token` want the first token.
pub(super) fn first_token_wanted(name: &str) -> bool {
    const NAMES: [&str; 9] =
        ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"];
    NAMES.contains(&name)
}

fn class(character: char) -> Class {
    match character {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        ' ' | '\t'..='\r' => Class::Space,
        '\0'..='\x7f' => Class::Other,
        _ if character.is_whitespace() => Class::Space,
        _ if LETTERS.has(character) => Class::Letter,
        _ if NUMBERS.has(character) => Class::Number,
        _ => Class::Other,
    }
}

/// Length of the characters of this class at the beginning of `text`.
fn run(text: &str, wanted: Class) -> usize {
    text.find(|character| class(character) != wanted).unwrap_or(text.len())
}

/// Length of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at the beginning, if one is there.
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let tail = text.strip_prefix('\'')?;
    let mut folded = tail.chars().map(|letter| match letter {
        // The one letter beyond ASCII that case folding takes for one of these.
        'ſ' if any_case => 's',
        _ if any_case => letter.to_ascii_lowercase(),
        _ => letter,
    });
    let length = match (folded.next()?, folded.next()) {
        ('s' | 't' | 'm' | 'd', _) => 1,
        ('r' | 'v', Some('e')) | ('l', Some('l')) => 2,
        _ => return None,
    };
    Some(1 + tail.chars().take(length).map(char::len_utf8).sum::<usize>())
}

/// `\s+(?!\S)|\s+` where `text` begins with white space: all of the run but its last character if
/// something follows it, and at least one.
fn spaces(text: &str) -> usize {
    let end = run(text, Class::Space);
    let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
    match end == text.len() || end == last {
        true => end,
        false => end - last,
    }
}

/// Length of the first word of a text that is not empty.
fn gpt2(text: &str) -> usize {
    if let Some(length) = contraction(text, false) {
        return length;
    }
    let body = text.strip_prefix(' ').unwrap_or(text);
    let space = text.len() - body.len();
    match body.chars().next().map(class) {
        None | Some(Class::Space) => spaces(text),
        Some(wanted) => space + run(body, wanted),
    }
}

/// Length of the first word of a text that is not empty; `digits`: of a number at most.
fn llama3(text: &str, digits: usize) -> usize {
    if let Some(length) = contraction(text, true) {
        return length;
    }
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return 0;
    };
    let (kind, rest) = (class(first), characters.as_str());
    let second = rest.chars().next().map(class);
    if kind == Class::Letter {
        return run(text, Class::Letter);
    }
    if second == Some(Class::Letter) && kind != Class::Number && !matches!(first, '\r' | '\n') {
        return first.len_utf8() + run(rest, Class::Letter);
    }
    if kind == Class::Number {
        let number = text.chars().take_while(|character| class(*character) == Class::Number);
        return number.take(digits).map(char::len_utf8).sum();
    }
    if kind == Class::Other || first == ' ' && second == Some(Class::Other) {
        let start = if kind == Class::Other { 0 } else { 1 };
        let end = start + run(&text[start..], Class::Other);
        let lines = text[end..].find(|character| !matches!(character, '\r' | '\n'));
        return lines.map_or(text.len(), |lines| end + lines);
    }
    match text[..run(text, Class::Space)].rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => spaces(text),
    }
}

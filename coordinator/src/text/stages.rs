//! Pre-tokenizers that are lists of regular expressions: each cuts what the one before it left whole.
//!
//! The expressions are written without look-ahead, so that the engine passes over the text in linear time;
//! the one look-ahead that they have in the models' own files, `\s+(?!\S)|\s+` at the end, is done here by
//! hand. Must never need an expression that backtracks, nor lose a byte of the text.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokenizers::utils::SysRegex;

/// What stands for white space after the other alternatives of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spaces {
    /// Nothing.
    Left,
    /// `|\s+(?!\S)|\s+`
    Cut,
    /// The same, after alternatives that take every run with a line break as far as its last one.
    CutBehindLines,
}

/// One expression and what became of it.
#[derive(Debug)]
struct Stage {
    regex: SysRegex,
    spaces: Spaces,
}

/// GPT-2's expression up to its white space.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";
const ASCII_PUNCTUATION: &str = r"[\p{P}$+<=>^~|`]+";
const THOUSANDS: &str = r"\p{N}{1,3}";
const LINES: &str = r"[\r\n]";
/// Letters with a case, as the model's file spells them out.
const CASED: &str = concat!(
    r"\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    r"\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}",
    r"\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}",
    r"\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}",
    r"\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}",
    r"\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}",
    r"\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}",
    r"\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}",
    r"\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}",
    r"\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}",
    r"\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}",
    r"\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}",
    r"\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}",
    r"\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+",
);
const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK_CJK: &str = r"[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const CJK: &str = r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
);
const SPARK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+|[\r\n]"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
);
const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
);
const YOUTU_CJK: &str = concat!(
    r"[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+",
    r"|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+",
    r"|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"
);
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
);
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
const EXAONE_MOE: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
);
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
const KIMI_K2: &str = concat!(
    r"\p{Han}+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
);
const BLOOM: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";

/// Where llama.cpp does not know better: for files that say `default`.
const FALLBACK_PUNCTUATION: &str = r"[\p{P}$+<=>^~|]+";

use Spaces::{Cut, CutBehindLines, Left};

/// Names, and the expressions that their texts are cut by, one after the other.
type List = (&'static [&'static str], &'static [(&'static str, Spaces)]);

/// Names in `tokenizer.ggml.pre`, and the expressions in order. Sources: the `tokenizer.json` of the models
/// that brought them; the names are llama.cpp's.
const LISTS: &[List] = &[
    (&["default"], &[(FALLBACK_PUNCTUATION, Left), (GPT2, Cut), (r"\p{N}+", Left), ("[0-9]{3}", Left)]),
    (&["falcon"], &[(ASCII_PUNCTUATION, Left), (GPT2, Cut), ("[0-9]{3}", Left)]),
    (
        &["deepseek-llm"],
        &[
            (LINES, Left),
            (CASED, Left),
            (DEEPSEEK_PUNCTUATION, Left),
            (r"\s+$", Left),
            (DEEPSEEK_CJK, Left),
            (r"\p{N}+", Left),
        ],
    ),
    (
        &["deepseek-coder"],
        &[(LINES, Left), (r"\s?\p{L}+", Left), (r"\s?\p{P}+", Left), (DEEPSEEK_CJK, Left), (r"\p{N}", Left)],
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[(THOUSANDS, Left), (CJK, Left), (DEEPSEEK_V3, CutBehindLines)],
    ),
    (&["tekken"], &[(TEKKEN, CutBehindLines)]),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[(GPT4O, CutBehindLines)]),
    (&["qwen35"], &[(QWEN35, CutBehindLines)]),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], &[(BAILING, CutBehindLines)]),
    (&["seed-coder"], &[(SEED_CODER, CutBehindLines)]),
    (&["ufakzeka"], &[(UFAKZEKA, CutBehindLines)]),
    (&["exaone-moe"], &[(EXAONE_MOE, CutBehindLines)]),
    (&["minicpm5"], &[(THOUSANDS, Left), (MINICPM5, CutBehindLines)]),
    (&["youtu"], &[(YOUTU_CJK, Left), (YOUTU, CutBehindLines)]),
    (&["spark2_5"], &[(THOUSANDS, Left), (CJK, Left), (SPARK, Cut), (r"\p{N}", Left)]),
    (&["laguna"], &[(r"[^\n]+|\n+", Left), (QWEN2, CutBehindLines)]),
    (&["kimi-k2"], &[(KIMI_K2, CutBehindLines)]),
    (&["bloom", "poro-chat", "gpt3-finnish"], &[(BLOOM, Left)]),
    (&["viking"], &[(BLOOM, Left), (r"\p{N}", Left)]),
];

/// One name of each list.
#[cfg(test)]
pub(super) fn first_names() -> impl Iterator<Item = &'static str> {
    LISTS.iter().flat_map(|(names, _)| names.first().copied())
}

/// The expressions of a name, with the white space as the models' files write it.
#[cfg(test)]
pub(super) fn expressions(name: &str) -> Vec<String> {
    let found = LISTS.iter().find(|(names, _)| names.contains(&name));
    found.map_or(Vec::new(), |(_, list)| written(list))
}

fn written(list: &[(&str, Spaces)]) -> Vec<String> {
    let whole = |(pattern, spaces): &(&str, Spaces)| match spaces {
        Left => (*pattern).to_owned(),
        Cut | CutBehindLines => format!(r"{pattern}|\s+(?!\S)|\s+"),
    };
    list.iter().map(whole).collect()
}

/// A list, compiled.
#[derive(Clone, Debug)]
pub(super) struct Stages {
    stages: Arc<[Stage]>,
}

impl Stages {
    /// The list of this name, compiled (some milliseconds); `None` for one that is not here.
    pub(super) fn from_name(name: &str) -> Option<Stages> {
        let (_, list) = LISTS.iter().find(|(names, _)| names.contains(&name))?;
        Stages::compiled(list)
    }

    /// The list whose expressions are these, as the models' files write them.
    pub(super) fn from_expressions(expressions: &[&str]) -> Option<Stages> {
        let (_, list) = LISTS.iter().find(|(_, list)| written(list) == expressions)?;
        Stages::compiled(list)
    }

    fn compiled(list: &[(&str, Spaces)]) -> Option<Stages> {
        let stages: Option<Arc<[Stage]>> =
            list.iter().map(|(pattern, spaces)| Stage::new(pattern, *spaces)).collect();
        Some(Stages { stages: stages? })
    }

    /// Gives every word of `text` in order; together they are `text`. Ends early if `word` breaks.
    pub(super) fn words<'a>(
        &self,
        text: &'a str,
        word: &mut dyn FnMut(&'a str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        pieces(&self.stages, text, word)
    }
}

/// Cuts by the first stage, and what it gives by the others.
fn pieces<'a>(
    stages: &[Stage],
    text: &'a str,
    word: &mut dyn FnMut(&'a str) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Some((stage, later)) = stages.split_first() else {
        return word(text);
    };
    let mut rest = text;
    while !rest.is_empty() {
        let (start, end) = stage.find(rest).unwrap_or((rest.len(), rest.len()));
        for piece in [&rest[..start], &rest[start..end]] {
            if !piece.is_empty() {
                pieces(later, piece, word)?;
            }
        }
        rest = &rest[end..];
    }
    ControlFlow::Continue(())
}

impl Stage {
    /// The patterns are constants: they compile, or the tests fail.
    fn new(pattern: &str, spaces: Spaces) -> Option<Stage> {
        let pattern = match spaces {
            Left => pattern.to_owned(),
            Cut | CutBehindLines => format!(r"{pattern}|\s+"),
        };
        Some(Stage { regex: SysRegex::new(&pattern).ok()?, spaces })
    }

    /// Where the first match begins and ends; it is never empty.
    fn find(&self, text: &str) -> Option<(usize, usize)> {
        let (start, end) = self.regex.find_iter(text).next()?;
        let found = &text[start..end];
        let behind_lines = self.spaces == CutBehindLines && found.ends_with(['\r', '\n']);
        if self.spaces == Left || behind_lines || end == text.len() {
            return Some((start, end));
        }
        // White space before a character that is none: its last character goes with what follows.
        let last = found.chars().next_back().map_or(0, char::len_utf8);
        let alone = found.len() == last || !found.chars().all(char::is_whitespace);
        Some((start, if alone { end } else { end - last }))
    }
}

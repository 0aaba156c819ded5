//! A small lexer of Rust: blanks out what is not code, so that rules see code only.
//!
//! Must never move anything: the masked text has the lines and columns of the source.

/// The source with comments, strings and character literals replaced by blanks. Newlines stay.
pub fn mask(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut masked = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skip(&chars, at);
        if end == at {
            masked.push(chars[at]);
            at += 1;
        } else {
            masked.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    masked
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn skip(chars: &[char], at: usize) -> usize {
    let inside_word = at > 0 && is_word(chars[at - 1]);
    match (chars[at], chars.get(at + 1)) {
        ('/', Some('/')) => line_end(chars, at),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => string_end(chars, at),
        ('\'', _) => char_end(chars, at),
        ('b' | 'c' | 'r', _) if !inside_word => prefixed_end(chars, at),
        _ => at,
    }
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| at + length)
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut here = at;
    while here < chars.len() {
        match (chars[here], chars.get(here + 1)) {
            ('/', Some('*')) => (depth, here) = (depth + 1, here + 2),
            ('*', Some('/')) => (depth, here) = (depth - 1, here + 2),
            _ => here += 1,
        }
        if depth == 0 {
            break;
        }
    }
    here.min(chars.len())
}

/// `at` is the opening quote.
fn string_end(chars: &[char], at: usize) -> usize {
    let mut here = at + 1;
    while here < chars.len() {
        match chars[here] {
            '\\' => here += 2,
            '"' => return here + 1,
            _ => here += 1,
        }
    }
    chars.len()
}

/// `at` is a single quote: of a character, or of a lifetime or label, which is code.
fn char_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            // The escaped character may be a quote; what follows in braces has none.
            let rest = chars.iter().skip(at + 3).position(|c| *c == '\'');
            rest.map_or(chars.len(), |length| at + 3 + length + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// Literals with a prefix: b"…", c"…", r"…", r#"…"#, br#"…"#, b'…'. Raw names (r#type) are code.
fn prefixed_end(chars: &[char], at: usize) -> usize {
    let mut here = at;
    let mut raw = false;
    while here < chars.len() && here - at < 2 && matches!(chars[here], 'b' | 'c' | 'r') {
        raw = chars[here] == 'r';
        here += 1;
    }
    if raw {
        let hashes = chars[here..].iter().take_while(|c| **c == '#').count();
        if chars.get(here + hashes) != Some(&'"') {
            return at;
        }
        return raw_end(chars, here + hashes + 1, hashes);
    }
    match chars.get(here) {
        Some('"') => string_end(chars, here),
        Some('\'') if here == at + 1 && chars[at] == 'b' => char_end(chars, here),
        _ => at,
    }
}

/// `at` is behind the opening quote of a raw string.
fn raw_end(chars: &[char], at: usize, hashes: usize) -> usize {
    let mut here = at;
    while here < chars.len() {
        let closing = chars[here + 1..].iter().take(hashes).filter(|c| **c == '#').count();
        if chars[here] == '"' && closing == hashes {
            return here + 1 + hashes;
        }
        here += 1;
    }
    chars.len()
}

/// Where the bracket that opens at `open` closes; the last character if it never does.
pub fn matching(masked: &[char], open: usize) -> usize {
    let mut depth = 0i64;
    for (at, c) in masked.iter().enumerate().skip(open) {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    masked.len().saturating_sub(1)
}

/// Positions at which `word` stands alone: not as a part of a longer name.
pub fn words(masked: &[char], word: &str) -> Vec<usize> {
    let wanted: Vec<char> = word.chars().collect();
    let mut found = Vec::new();
    for at in 0..masked.len().saturating_sub(wanted.len() - 1) {
        let end = at + wanted.len();
        let before = at == 0 || !is_word(masked[at - 1]) || !is_word(wanted[0]);
        let after = masked.get(end).is_none_or(|c| !is_word(*c)) || !is_word(wanted[wanted.len() - 1]);
        if before && after && masked[at..end] == wanted[..] {
            found.push(at);
        }
    }
    found
}

/// Line of a position, from 1.
pub fn line(masked: &[char], at: usize) -> usize {
    1 + masked[..at].iter().filter(|c| **c == '\n').count()
}

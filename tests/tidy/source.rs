//! A source file as the rules see it: masked code, and which of its lines are tests.
//!
//! Must never read a file: `tree` does.

use super::lexer::{is_word, line, mask, matching, words};

/// A Rust file.
pub struct Source {
    /// From the root of the repository, with `/`.
    pub path: String,
    pub text: String,
    /// The code alone.
    pub masked: Vec<char>,
    /// Ranges of positions that are only compiled for tests.
    tests: Vec<(usize, usize)>,
    whole_is_test: bool,
}

/// Every Rust file of `texts`. What a file declares for tests only is a test, and so is what that declares.
pub fn sources(texts: &[(String, String)]) -> Vec<Source> {
    let rust = texts.iter().filter(|(path, _)| path.ends_with(".rs"));
    let mut all: Vec<Source> = rust.map(|(path, text)| Source::new(path, text)).collect();
    loop {
        let tests: Vec<String> = all.iter().flat_map(Source::test_modules).collect();
        let mut changed = false;
        all = all
            .into_iter()
            .map(|source| {
                let new = !source.whole_is_test && tests.contains(&source.path);
                changed |= new;
                if new { source.into_test() } else { source }
            })
            .collect();
        if !changed {
            return all;
        }
    }
}

/// A function and where it is.
pub struct Function {
    pub name: String,
    /// Lines, from 1, both included.
    pub first: usize,
    pub last: usize,
    /// Without the receiver.
    pub arguments: usize,
    /// Position of `fn`.
    pub at: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let masked: Vec<char> = mask(text).chars().collect();
        let tests = test_regions(&masked);
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            whole_is_test: is_test_path(path) || !words(&masked, "#![cfg(test)]").is_empty(),
            masked,
            tests,
        }
    }

    /// The same file, of which the module that declares it says that it is only compiled for tests.
    pub fn into_test(mut self) -> Source {
        self.whole_is_test = true;
        self
    }

    /// Files that this one declares as modules for tests: every path at which each may be.
    pub fn test_modules(&self) -> Vec<String> {
        let mut found = Vec::new();
        for at in words(&self.masked, "mod").into_iter().filter(|at| self.in_test(*at)) {
            let start = skip_blank(&self.masked, at + 3);
            let name: String = self.masked[start..].iter().take_while(|c| is_word(**c)).collect();
            let end = skip_blank(&self.masked, start + name.chars().count());
            if !name.is_empty() && self.masked.get(end) == Some(&';') {
                found.extend(self.module_paths(&name));
                found.extend(self.named_path(at));
            }
        }
        found
    }

    fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// Where a module of this file is by default.
    fn module_paths(&self, name: &str) -> [String; 2] {
        let own = ["/mod.rs", "/lib.rs", "/main.rs"].iter().any(|file| self.path.ends_with(file));
        let base = if own { self.folder() } else { self.path.strip_suffix(".rs").unwrap_or_default() };
        [format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs")]
    }

    /// The path that an attribute on the line before the declaration at `at` gives.
    fn named_path(&self, at: usize) -> Option<String> {
        let before = line(&self.masked, at).checked_sub(2)?;
        let attribute = self.text.lines().nth(before)?.trim();
        let path = attribute.strip_prefix("#[path = \"")?.strip_suffix("\"]")?;
        Some(format!("{}/{path}", self.folder()))
    }

    /// Whether a position is only compiled for tests and benches.
    pub fn in_test(&self, at: usize) -> bool {
        self.whole_is_test || self.tests.iter().any(|(first, last)| (*first..=*last).contains(&at))
    }

    /// Positions of a word in code that is not a test.
    pub fn found(&self, word: &str) -> Vec<usize> {
        words(&self.masked, word).into_iter().filter(|at| !self.in_test(*at)).collect()
    }

    /// `path:line`
    pub fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, line(&self.masked, at))
    }

    /// Every function with a body.
    pub fn functions(&self) -> Vec<Function> {
        words(&self.masked, "fn").into_iter().filter_map(|at| self.function(at)).collect()
    }

    fn function(&self, at: usize) -> Option<Function> {
        let code = &self.masked;
        let start = skip_blank(code, at + 2);
        let name: String = code[start..].iter().take_while(|c| is_word(**c)).collect();
        // `fn(…)` is a type.
        if name.is_empty() {
            return None;
        }
        let mut here = skip_blank(code, start + name.chars().count());
        if code.get(here) == Some(&'<') {
            here = skip_blank(code, generics_end(code, here));
        }
        if code.get(here) != Some(&'(') {
            return None;
        }
        let close = matching(code, here);
        let arguments = count_arguments(&code[here + 1..close]);
        let open = body(code, close + 1)?;
        let last = line(code, matching(code, open));
        Some(Function { name, first: line(code, at), last, arguments, at })
    }
}

/// Files that hold nothing but tests and benches.
fn is_test_path(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split('/').collect();
    let file = parts.pop().unwrap_or_default();
    parts.iter().any(|part| *part == "tests" || *part == "benches")
        || file == "tests.rs"
        || file.ends_with("_tests.rs")
}

fn skip_blank(code: &[char], mut at: usize) -> usize {
    while code.get(at).is_some_and(|c| c.is_whitespace()) {
        at += 1;
    }
    at
}

/// Items behind `#[cfg(test)]`, from the attribute to the end of the item.
fn test_regions(code: &[char]) -> Vec<(usize, usize)> {
    let mut regions = Vec::new();
    for at in words(code, "#[cfg") {
        let end = matching(code, at + 1);
        let inside: String = code[at..=end].iter().filter(|c| !c.is_whitespace()).collect();
        if inside != "#[cfg(test)]" && !inside.starts_with("#[cfg(all(test,") {
            continue;
        }
        regions.push((at, item_end(code, end + 1)));
    }
    regions
}

/// Where the item that begins at `at`, perhaps with attributes, ends.
fn item_end(code: &[char], at: usize) -> usize {
    let mut here = at;
    while here < code.len() {
        match code[here] {
            ';' => return here,
            '{' => return matching(code, here),
            '(' | '[' => here = matching(code, here) + 1,
            _ => here += 1,
        }
    }
    code.len()
}

/// The brace that opens a function's body; none for a declaration.
fn body(code: &[char], at: usize) -> Option<usize> {
    let end = item_end(code, at);
    let mut here = at;
    while here <= end && here < code.len() {
        match code[here] {
            '{' => return Some(here),
            ';' => return None,
            '(' | '[' => here = matching(code, here) + 1,
            _ => here += 1,
        }
    }
    None
}

/// Behind the generics that open at `at`. Arrows inside them close nothing.
fn generics_end(code: &[char], at: usize) -> usize {
    let mut depth = 0;
    for here in at..code.len() {
        match code[here] {
            '<' => depth += 1,
            '>' if code[here - 1] != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return here + 1;
        }
    }
    code.len()
}

/// Arguments between the parentheses, the receiver not counted.
fn count_arguments(inside: &[char]) -> usize {
    let (mut depth, mut parts, mut current) = (0i64, Vec::new(), String::new());
    for (at, c) in inside.iter().enumerate() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if at > 0 && inside[at - 1] == '-' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(*c);
    }
    parts.push(current);
    let receiver = |part: &str| {
        let name = part.split(':').next().unwrap_or_default();
        name.split(|c: char| !is_word(c)).any(|word| word == "self")
    };
    parts.iter().filter(|part| !part.trim().is_empty() && !receiver(part)).count()
}

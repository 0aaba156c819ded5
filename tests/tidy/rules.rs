//! The rules over source files. Each gives its violations, in words that say what to do.
//!
//! Must never look at more than it is given: every rule is tested with planted violations.

use super::lexer::words;
use super::source::Source;

pub const FUNCTION_LINES: usize = 70;
pub const FILE_LINES: usize = 500;
pub const ARGUMENTS: usize = 6;

/// Every rule over one Rust file.
pub fn rust_file(source: &Source) -> Vec<String> {
    let rules: [fn(&Source) -> Vec<String>; 7] =
        [begins_with_doc, file_length, function_length, arguments, no_unsafe, no_panics, pure_core];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

pub fn begins_with_doc(source: &Source) -> Vec<String> {
    match source.text.starts_with("//!") {
        true => Vec::new(),
        false => vec![format!(
            "{}:1: begin with a `//!` doc: what the file is for, and must never do",
            source.path
        )],
    }
}

pub fn file_length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    match lines > FILE_LINES {
        true => vec![format!("{}: {lines} lines, at most {FILE_LINES}: split it", source.path)],
        false => Vec::new(),
    }
}

pub fn function_length(source: &Source) -> Vec<String> {
    let functions = source.functions().into_iter().filter(|function| !source.in_test(function.at));
    let long = functions.filter(|function| function.last - function.first + 1 > FUNCTION_LINES);
    long.map(|function| {
        let lines = function.last - function.first + 1;
        format!(
            "{}: `{}` has {lines} lines, at most {FUNCTION_LINES}",
            source.place(function.at),
            function.name
        )
    })
    .collect()
}

pub fn arguments(source: &Source) -> Vec<String> {
    let functions = source.functions().into_iter().filter(|function| !source.in_test(function.at));
    let wide = functions.filter(|function| function.arguments > ARGUMENTS);
    wide.map(|function| {
        let count = function.arguments;
        format!(
            "{}: `{}` has {count} arguments, at most {ARGUMENTS}",
            source.place(function.at),
            function.name
        )
    })
    .collect()
}

/// In tests too: whatever is unsafe belongs in `kernels`.
pub fn no_unsafe(source: &Source) -> Vec<String> {
    if source.path.starts_with("kernels/") {
        return Vec::new();
    }
    let found = words(&source.masked, "unsafe").into_iter();
    found.map(|at| format!("{}: `unsafe` outside kernels", source.place(at))).collect()
}

pub fn no_panics(source: &Source) -> Vec<String> {
    let banned = [".unwrap()", ".expect(", "panic!", "todo!", "unimplemented!"];
    let found = banned.iter().flat_map(|word| source.found(word).into_iter().map(move |at| (at, word)));
    found.map(|(at, word)| format!("{}: `{word}` outside tests: return an error", source.place(at))).collect()
}

/// `core` takes time and randomness as arguments, and reaches nothing outside itself.
pub fn pure_core(source: &Source) -> Vec<String> {
    if !source.path.starts_with("core/src/") {
        return Vec::new();
    }
    let mut found: Vec<(usize, String)> = Vec::new();
    for word in ["Instant", "SystemTime", "UNIX_EPOCH", "HashMap", "HashSet", "RandomState", "rand", "tokio"]
    {
        found.extend(source.found(word).into_iter().map(|at| (at, word.to_owned())));
    }
    for part in ["env", "fs", "net", "thread", "process"] {
        let path = format!("std::{part}");
        found.extend(source.found(&path).into_iter().map(|at| (at, path.clone())));
        found.extend(grouped(source, part).into_iter().map(|at| (at, path.clone())));
    }
    found
        .iter()
        .map(|(at, word)| format!("{}: `{word}` in core, which must be pure", source.place(*at)))
        .collect()
}

/// Positions of `part` as a member of `std::{…}`, at its first level.
fn grouped(source: &Source, part: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for at in source.found("std::{") {
        let open = at + "std::".len();
        let close = super::lexer::matching(&source.masked, open);
        let mut depth = 0;
        let mut begins = true;
        for here in open + 1..close {
            match source.masked[here] {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if c.is_whitespace() => {}
                _ if depth == 0 && begins => {
                    begins = false;
                    let rest: String = source.masked[here..close].iter().collect();
                    let name: String = rest.chars().take_while(|c| super::lexer::is_word(*c)).collect();
                    if name == part {
                        found.push(here);
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// Folders of one machine in any text file. A path of a repository or a variable is none.
pub fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for folder in ["wo", "ho", "Use", "roo"].iter().zip(["rk/", "me/", "rs/", "t/"]) {
            let folder = format!("/{}{}", folder.0, folder.1);
            for (at, _) in line.match_indices(&folder) {
                let before = line[..at].chars().next_back();
                let begins = before.is_none_or(|c| !c.is_alphanumeric() && !"._-/}~*".contains(c));
                if begins {
                    found.push(format!("{path}:{}: `{folder}…` is a folder of one machine", index + 1));
                }
            }
        }
    }
    found
}

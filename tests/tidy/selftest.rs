//! Planted violations: each rule must find its own, and must not find what only looks like one.

use super::lexer::mask;
use super::source::{Source, sources};
use super::{arrows, rules};

fn source(path: &str, body: &str) -> Source {
    Source::new(path, &format!("//! Doc.\n{body}"))
}

#[track_caller]
fn finds(rule: fn(&Source) -> Vec<String>, path: &str, body: &str, count: usize) {
    let found = rule(&source(path, body));
    assert_eq!(found.len(), count, "in {body:?}: {found:?}");
}

#[test]
fn the_mask_keeps_code_and_places_and_nothing_else() {
    for (text, expected) in [
        ("a // b\nc", "a c"),
        ("a /* b /* c */ d */ e", "a e"),
        ("f(\"x\\\"y\") + g", "f( ) + g"),
        ("r#\"a\"b\"# z", "z"),
        ("br##\"a\"# b\"## z", "z"),
        ("b\"\\\\\" z", "z"),
        ("'a' 'b 'static", "'b 'static"),
        ("'\\'' '\\\\' '\\u{1F600}' x", "x"),
        ("b'\\'' x", "x"),
        ("'\"' + \"'\" + y", "+ + y"),
        ("r#type + xr\"y\"", "r#type + xr"),
        ("\"never closed", ""),
        ("for<'a> Fn(&'a str) 'é'", "for<'a> Fn(&'a str)"),
    ] {
        let masked = mask(text);
        assert_eq!(masked.chars().count(), text.chars().count(), "{text} moved");
        assert_eq!(masked.matches('\n').count(), text.matches('\n').count(), "{text} lost a line");
        assert_eq!(masked.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{text}");
    }
}

#[test]
fn files_must_begin_with_their_doc_and_end_in_time() {
    assert_eq!(rules::begins_with_doc(&Source::new("a.rs", "// no\n")).len(), 1);
    assert_eq!(rules::begins_with_doc(&Source::new("a.rs", "")).len(), 1);
    finds(rules::begins_with_doc, "a.rs", "", 0);
    finds(rules::file_length, "a.rs", &"\n".repeat(rules::FILE_LINES - 1), 0);
    finds(rules::file_length, "a.rs", &"\n".repeat(rules::FILE_LINES), 1);
}

/// A function of exactly so many lines.
fn long(lines: usize) -> String {
    format!(
        "fn f<T: Fn(u8) -> [u8; 2]>(t: T) -> [u8; 2]\nwhere\n    T: Copy,\n{{\n{}}}",
        "    x();\n".repeat(lines - 5)
    )
}

#[test]
fn long_functions_are_found_unless_they_are_tests() {
    finds(rules::function_length, "src/a.rs", &long(rules::FUNCTION_LINES), 0);
    finds(rules::function_length, "src/a.rs", &long(rules::FUNCTION_LINES + 1), 1);
    finds(rules::function_length, "src/tests.rs", &long(200), 0);
    finds(rules::function_length, "src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{}\n}}", long(200)), 0);
    finds(rules::function_length, "src/a.rs", &format!("#[cfg(test)]\nmod tests;\n{}", long(200)), 1);
    // Braces in strings and comments close nothing.
    let text = long(80).replacen("x();", "s(\"}\"); // }", 1);
    finds(rules::function_length, "src/a.rs", &text, 1);
    // A long inner function makes the outer one long too.
    finds(rules::function_length, "src/a.rs", &format!("fn g() {{\n{}\n}}", long(80)), 2);
    finds(rules::function_length, "src/a.rs", "type F = fn(u8) -> u8;\ntrait T { fn f(&self); }", 0);
}

#[test]
fn arguments_are_counted_without_the_receiver() {
    finds(rules::arguments, "a.rs", "fn f(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) {}", 0);
    finds(rules::arguments, "a.rs", "fn f(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8,) {}", 1);
    finds(rules::arguments, "a.rs", "fn f(&'a mut self, a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) {}", 0);
    finds(rules::arguments, "a.rs", "fn f(self: Arc<Self>, a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) {}", 0);
    let nested = "fn f(a: M<K, V>, (b, c): (u8, u8), d: impl Fn(u8, u8) -> R<A, B>, e: [u8; 2], f: u8) {}";
    finds(rules::arguments, "a.rs", nested, 0);
    finds(rules::arguments, "a.rs", &nested.replace("f: u8", "f: u8, g: u8, h: u8"), 1);
}

#[test]
fn unsafe_is_found_everywhere_but_in_kernels() {
    finds(rules::no_unsafe, "worker/src/a.rs", "fn f() { unsafe { g() } }", 1);
    finds(rules::no_unsafe, "worker/src/tests.rs", "unsafe impl Send for A {}", 1);
    finds(rules::no_unsafe, "kernels/src/a.rs", "fn f() { unsafe { g() } }", 0);
    finds(
        rules::no_unsafe,
        "worker/src/a.rs",
        "#![forbid(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe\";",
        0,
    );
}

#[test]
fn panics_are_found_unless_they_are_tests() {
    let body = "fn f() { a.unwrap(); b.expect(\"x\"); panic!(\"y\"); todo!(); unimplemented!() }";
    finds(rules::no_panics, "src/a.rs", body, 5);
    for path in ["src/tests.rs", "src/a_tests.rs", "core/tests/a.rs", "kernels/benches/a.rs"] {
        finds(rules::no_panics, path, body, 0);
    }
    finds(rules::no_panics, "src/a.rs", &format!("#[cfg(test)]\nmod t {{ {body} }}"), 0);
    finds(
        rules::no_panics,
        "src/a.rs",
        &format!("#[cfg(all(test, unix))]\n#[allow(x)]\nfn t() {{ {body} }}"),
        0,
    );
    finds(rules::no_panics, "src/a.rs", &format!("#[cfg(test)]\nmod t {{}}\n{body}"), 5);
    finds(rules::no_panics, "src/a.rs", &format!("#[cfg(not(test))]\nmod t {{ {body} }}"), 5);
    let harmless = "// a.unwrap()\nfn f() { a.unwrap_or(b); std::panic::catch_unwind(g); s(\"panic!\"); a.expect_err(c) }";
    finds(rules::no_panics, "src/a.rs", harmless, 0);
}

#[test]
fn modules_declared_for_tests_are_tests_wherever_they_are() {
    let file = |path: &str, text: &str| (path.to_owned(), format!("//! Doc.\n{text}"));
    let panics = "fn f() { a.unwrap() }";
    let texts = [
        file(
            "a/src/lib.rs",
            "#[cfg(test)]\nmod kit;\n#[cfg(test)]\n#[path = \"odd/name.rs\"]\nmod odd;\nmod b;",
        ),
        file("a/src/kit.rs", &format!("mod inner;\n{panics}")),
        file("a/src/kit/inner.rs", panics),
        file("a/src/odd/name.rs", panics),
        file("a/src/b.rs", &format!("#[cfg(test)]\nmod kit;\n{panics}")),
        file("a/src/b/kit.rs", panics),
        file("a/src/c/kit.rs", panics),
    ];
    let found: Vec<String> = sources(&texts).iter().flat_map(rules::no_panics).collect();
    let places: Vec<&str> = found.iter().filter_map(|text| text.split(": ").next()).collect();
    assert_eq!(places, ["a/src/b.rs:4", "a/src/c/kit.rs:2"]);
}

#[test]
fn core_must_be_pure() {
    for body in [
        "use std::time::Instant;",
        "use std::time::{Duration, SystemTime};",
        "use std::collections::HashMap;",
        "fn f() { std::env::var(\"X\"); }",
        "use std::{fmt, fs::File};",
        "use std::{\n    collections::{BTreeMap, BTreeSet},\n    net,\n};",
        "fn f() { std::thread::spawn(g); }",
        "fn f() -> u64 { rand::random() }",
    ] {
        finds(rules::pure_core, "core/src/a.rs", body, 1);
        finds(rules::pure_core, "worker/src/a.rs", body, 0);
        finds(rules::pure_core, "core/src/tests.rs", body, 0);
    }
    finds(rules::pure_core, "core/src/a.rs", "use std::{fmt, time::Duration};\nfn operand(net: u8) {}", 0);
}

#[test]
fn machine_paths_are_found_in_any_text() {
    let folder = |name: &str| format!("/{name}/");
    for text in [
        format!("cd {}main", folder("work")),
        format!("\"{}me/x\"", folder("home")),
        format!("a\nb={}x", folder("root")),
    ] {
        assert_eq!(rules::machine_paths("README.md", &text).len(), 1, "{text}");
    }
    for text in
        [format!("$HOME{}x", folder("work")), format!("a{}b", folder("home")), "network/root".to_owned()]
    {
        assert_eq!(rules::machine_paths("README.md", &text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn arrows_that_the_house_does_not_have_are_found() {
    let with = |section: &str, line: &str| format!("[package]\nname = \"x\"\n[{section}]\n{line}\n");
    for (folder, section, line) in [
        ("core", "dependencies", "tokio.workspace = true"),
        ("core", "dependencies", "proptest = \"1\""),
        ("core", "build-dependencies", "prost = \"1\""),
        ("proto", "dependencies", "caravan-worker.workspace = true"),
        ("worker", "dependencies", "caravan-coordinator.workspace = true"),
        ("worker", "dev-dependencies", "caravan-coordinator.workspace = true"),
        ("worker", "target.'cfg(unix)'.dependencies", "caravan-coordinator.workspace = true"),
        ("coordinator", "dependencies", "caravan-kernels.workspace = true"),
        ("coordinator", "dependencies", "w = { package = \"caravan-worker\", path = \"../worker\" }"),
        ("coordinator", "dependencies", "w = { path = \"../worker\" }"),
        ("kernels", "dependencies", "caravan-core.workspace = true"),
        ("attic", "dependencies", ""),
    ] {
        assert_eq!(arrows::manifest(folder, &with(section, line)).len(), 1, "{folder} {section} {line}");
    }
    assert_eq!(arrows::manifest("core", &with("dependencies", "caravan-proto.workspace = true")).len(), 2);
    for (folder, section, line) in [
        ("core", "dependencies", "serde.workspace = true"),
        ("core", "dev-dependencies", "proptest.workspace = true"),
        ("worker", "dependencies", "caravan-kernels.workspace = true\ntokio = \"1\""),
        ("", "dependencies", "caravan-worker.workspace = true\ncaravan-coordinator.workspace = true"),
    ] {
        assert_eq!(arrows::manifest(folder, &with(section, line)), Vec::<String>::new(), "{folder} {line}");
    }
}

//! The house rules, over the whole repository: arrows between crates, lengths, docs, purity of core.
//!
//! Must never be loosened for one file: a rule that is wrong is changed for all.

#[path = "tidy/arrows.rs"]
mod arrows;
#[path = "tidy/lexer.rs"]
mod lexer;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/selftest.rs"]
mod selftest;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;

use std::path::Path;

fn repository() -> Vec<(String, String)> {
    let texts = tree::texts(Path::new(env!("CARGO_MANIFEST_DIR")));
    // An empty list would pass every rule.
    for known in ["Cargo.toml", "core/src/lib.rs", "src/main.rs", "tests/tidy.rs"] {
        assert!(texts.iter().any(|(path, _)| path == known), "{known} was not found");
    }
    texts
}

#[track_caller]
fn none(found: &[String]) {
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

#[test]
fn crates_keep_their_arrows() {
    let texts = repository();
    let manifests = texts.iter().filter_map(|(path, text)| match path.as_str() {
        "Cargo.toml" => Some(("", text)),
        _ => path.strip_suffix("/Cargo.toml").map(|folder| (folder, text)),
    });
    let found: Vec<String> = manifests.flat_map(|(folder, text)| arrows::manifest(folder, text)).collect();
    none(&found);
}

#[test]
fn rust_files_keep_the_rules() {
    let found: Vec<String> = source::sources(&repository()).iter().flat_map(rules::rust_file).collect();
    none(&found);
}

#[test]
fn no_text_names_folders_of_one_machine() {
    let found: Vec<String> =
        repository().iter().flat_map(|(path, text)| rules::machine_paths(path, text)).collect();
    none(&found);
}

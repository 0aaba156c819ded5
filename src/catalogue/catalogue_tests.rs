//! The catalogue: what is accepted, which source is used, and that a wrong digest never is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use super::*;

/// sha256 of "hello".
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn model(sources: &str, sha256: &str) -> Model {
    let text = format!(
        "[[model]]\nname = \"hello\"\naliases = [\"hi\"]\nfile = \"hello.gguf\"\nbytes = 5\n\
         sha256 = \"{sha256}\"\nlicence = \"CC0\"\n{sources}"
    );
    parse(&text).unwrap().remove(0)
}

fn path_source(path: &Path) -> String {
    format!("[[model.source]]\nkind = \"path\"\npath = \"{}\"\n", path.display())
}

#[test]
fn the_default_model_is_built_in_and_has_two_sources() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::load(dir.path()).unwrap();
    let model = catalogue.find("SmolLM2").unwrap();
    assert_eq!(model.name, "smollm2-135m-instruct");
    let kinds: Vec<&str> = model.sources.iter().map(Source::kind).collect();
    assert_eq!(kinds, ["package", "hub"]);
    let refused = catalogue.find("gpt-5").unwrap_err().to_string();
    assert!(refused.contains("smollm2-135m-instruct"), "{refused}");
}

#[test]
fn the_users_catalogue_adds_and_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let own =
        include_str!("models.toml").replace("Apache-2.0", "changed").replace("\"smollm2\"", "\"other\"");
    fs::write(dir.path().join("models.toml"), own).unwrap();
    let catalogue = Catalogue::load(dir.path()).unwrap();
    assert_eq!(catalogue.models().len(), 2);
    assert_eq!(catalogue.find("other").unwrap().licence, "changed");
    fs::write(dir.path().join("models.toml"), "[[model]]\nname = 3").unwrap();
    let refused = format!("{:#}", Catalogue::load(dir.path()).unwrap_err());
    assert!(refused.contains("models.toml") && refused.contains("name"), "{refused}");
}

#[test]
fn bad_entries_are_refused() {
    let good = include_str!("models.toml");
    for (from, to) in [
        ("name = \"smollm2-135m-instruct\"", "name = \"../x\""),
        ("file = \"SmolLM2-135M-Instruct.Q4_1.gguf\"\nbytes", "file = \"/etc/x\"\nbytes"),
        ("b179", "B179"),
        ("kind = \"hub\"", "kind = \"carrier-pigeon\""),
        ("bytes = 98362432", "bytes = 0"),
        ("licence", "license"),
        ("bytes = 63963136", "bytes = 63963137"),
        ("bytes = 61223616", "bytes = 0"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(parse(&good.replacen(from, to, 1)).is_err(), "{to} was accepted");
    }
}

#[test]
fn sources_are_tried_in_order_until_one_works() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("here"), "hello").unwrap();
    let sources = path_source(&dir.path().join("gone")) + &path_source(&dir.path().join("here"));
    let model = model(&sources, HELLO);
    let cache = Cache::of(dir.path());
    assert_eq!(cache.find(&model), None);
    let path = obtain(&model, &cache, None, &Term::new()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert!(cache.find(&model).unwrap().source.ends_with("here"));
    // From now on no source is needed.
    fs::remove_file(dir.path().join("here")).unwrap();
    assert_eq!(obtain(&model, &cache, None, &Term::new()).unwrap(), path);
    fs::write(&path, "hell").unwrap();
    assert_eq!(cache.find(&model), None, "a file of another length is not the model");
}

#[test]
fn a_wrong_digest_is_refused_said_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("here"), "jello").unwrap();
    let model = model(&path_source(&dir.path().join("here")), HELLO);
    let cache = Cache::of(dir.path());
    let refused = format!("{:#}", obtain(&model, &cache, None, &Term::new()).unwrap_err());
    assert!(refused.contains(HELLO) && refused.contains("refused"), "{refused}");
    let left: Vec<_> =
        fs::read_dir(cache.folder(&model)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn too_short_and_too_long_sources_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for content in ["hell", "hello!"] {
        fs::write(dir.path().join("here"), content).unwrap();
        let model = model(&path_source(&dir.path().join("here")), HELLO);
        let refused =
            format!("{:#}", obtain(&model, &Cache::of(dir.path()), None, &Term::new()).unwrap_err());
        assert!(refused.contains('5'), "{refused}");
    }
}

#[test]
fn a_source_of_another_kind_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&path_source(&dir.path().join("here")), HELLO);
    let refused = obtain(&model, &Cache::of(dir.path()), Some("hub"), &Term::new()).unwrap_err().to_string();
    assert!(refused.contains("no hub source"), "{refused}");
}

#[test]
fn two_fetches_at_once_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&path_source(&dir.path().join("here")), HELLO);
    let cache = Cache::of(dir.path());
    let _first = cache.lock(&model).unwrap();
    assert!(cache.lock(&model).is_err());
}

#[test]
fn a_file_is_a_model_of_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("My-Model.Q4_1.gguf");
    assert!(as_file(&path.display().to_string()).is_err(), "it is not there yet");
    fs::write(&path, "x").unwrap();
    let found = as_file(&path.display().to_string()).unwrap().unwrap();
    assert_eq!(found.name, "my-model.q4_1");
    assert_eq!(as_file("smollm2-135m-instruct").unwrap(), None);
}

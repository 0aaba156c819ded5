//! The arrows between crates, read from their manifests.
//!
//! Must never allow what the design's house does not: core <- proto <- worker and coordinator,
//! core <- constraint <- worker and coordinator, kernels <- worker, all <- the command line.

use toml::{Table, Value};

/// A crate of the workspace and which crates of the workspace it may use.
const ARROWS: [(&str, &[&str]); 7] = [
    ("core", &[]),
    ("constraint", &["caravan-core"]),
    ("kernels", &[]),
    ("proto", &["caravan-core"]),
    ("worker", &["caravan-core", "caravan-constraint", "caravan-proto", "caravan-kernels"]),
    ("coordinator", &["caravan-core", "caravan-constraint", "caravan-proto"]),
    ("", &["caravan-core", "caravan-proto", "caravan-worker", "caravan-coordinator"]),
];

/// What `core` may use at all: nothing that has a clock, a socket, a file or a thread.
const CORE: [&str; 2] = ["serde", "thiserror"];
const CORE_TESTS: [&str; 2] = ["proptest", "serde_json"];

/// Violations of one manifest. `folder`: of the crate, empty for the root.
pub fn manifest(folder: &str, text: &str) -> Vec<String> {
    let path = if folder.is_empty() { "Cargo.toml".to_owned() } else { format!("{folder}/Cargo.toml") };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return vec![format!("{path}: can't be read: {error}")],
    };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == folder) else {
        return vec![format!(
            "{path}: a crate that the house does not have; give it its arrows in tests/tidy"
        )];
    };
    let mut found = Vec::new();
    for (section, name, package) in dependencies(&table) {
        let ours = package.starts_with("caravan");
        if ours && !allowed.contains(&package.as_str()) {
            found.push(format!("{path}: {section} has {package}, an arrow that the house does not have"));
        }
        let tests = section.ends_with("dev-dependencies");
        let listed = CORE.contains(&package.as_str()) || (tests && CORE_TESTS.contains(&package.as_str()));
        if folder == "core" && !listed {
            found.push(format!(
                "{path}: {section} has {name}; core is pure and uses only {}",
                CORE.join(", ")
            ));
        }
    }
    found
}

/// Every dependency: its section, its name here, and its package.
fn dependencies(table: &Table) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut tables = vec![(String::new(), table)];
    if let Some(Value::Table(targets)) = table.get("target") {
        let inner =
            targets.iter().filter_map(|(name, value)| Some((format!("target.{name}."), value.as_table()?)));
        tables.extend(inner);
    }
    for (prefix, table) in tables {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(Value::Table(entries)) = table.get(section) else { continue };
            for (name, value) in entries {
                let renamed = value.get("package").and_then(Value::as_str);
                let by_path =
                    value.get("path").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
                let by_path = by_path.map(|folder| format!("caravan-{folder}"));
                let package = renamed.map(str::to_owned).or(by_path).unwrap_or_else(|| name.clone());
                found.push((format!("{prefix}{section}"), name.clone(), package));
            }
        }
    }
    found
}

//! The files of the repository.
//!
//! Must never follow links nor enter folders that are not the repository's own.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold nothing of ours.
const SKIPPED: [&str; 5] = ["target", "node_modules", "shared", ".git", ".venv"];
/// Longer files are data.
const TEXT_BYTES: u64 = 2 << 20;

/// Text files below `root`: path from it, and content; in order.
pub fn texts(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Ok(about) = fs::symlink_metadata(&path) else { continue };
            if SKIPPED.contains(&name.as_str()) || name.starts_with("target-") {
                continue;
            }
            if about.is_dir() {
                folders.push(path);
            } else if about.is_file() && about.len() <= TEXT_BYTES {
                let Ok(text) = fs::read_to_string(&path) else { continue };
                let relative = path.strip_prefix(root).unwrap_or(&path);
                found.push((relative.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    found.sort();
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    read.unwrap_or_default()
}

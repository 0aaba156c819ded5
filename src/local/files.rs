//! Files of a local cluster's data folder: lock, remembered ports, list of processes.
//!
//! Must never leave a half-written file under its name.

use std::fs::{self, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Which kind of node a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Coordinator,
    Worker,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
        })
    }
}

/// A process of the list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessEntry {
    pub role: Role,
    pub id: String,
    pub pid: u32,
    /// Address of its HTTP, `http://…`; a worker has none.
    pub http: Option<String>,
    /// `host:port`.
    pub grpc: String,
}

/// DATA/processes.json: part of the public contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Processes {
    pub http: String,
    pub processes: Vec<ProcessEntry>,
}

pub fn processes_path(data_dir: &Path) -> PathBuf {
    data_dir.join("processes.json")
}

/// Replaces a file in one step: a reader sees the old one or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let at = || format!("can't write {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.with_context(at)
}

/// Held as long as an `up` runs on a data folder; freed by the system if it is killed.
pub struct DataLock {
    _file: fs::File,
}

impl DataLock {
    /// Makes the folder and takes its lock.
    pub fn take(data_dir: &Path) -> anyhow::Result<DataLock> {
        let at =
            || format!("can't write in the data folder {}; choose another with --data", data_dir.display());
        fs::create_dir_all(data_dir).with_context(at)?;
        let path = data_dir.join("up.lock");
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).with_context(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(32).read_to_string(&mut holder);
                bail!(
                    "another `caravan up` (process {}) runs on {}; stop it, or choose another folder with --data",
                    holder.trim(),
                    data_dir.display()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(at),
        }
        file.set_len(0).with_context(at)?;
        file.seek(SeekFrom::Start(0)).with_context(at)?;
        writeln!(file, "{}", std::process::id()).with_context(at)?;
        Ok(DataLock { _file: file })
    }
}

/// The last lines of a log file, for an error message.
pub fn tail(path: &Path, lines: usize) -> String {
    const TAIL_BYTES: u64 = 8 << 10;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_list_of_processes_has_the_shape_of_the_contract() {
        let list = Processes {
            http: "http://127.0.0.1:8080".to_owned(),
            processes: vec![ProcessEntry {
                role: Role::Worker,
                id: "w1".to_owned(),
                pid: 7,
                http: None,
                grpc: "127.0.0.1:4000".to_owned(),
            }],
        };
        let text = serde_json::to_string(&list).unwrap();
        let expected = "{\"http\":\"http://127.0.0.1:8080\",\"processes\":[{\"role\":\"worker\",\"id\":\"w1\",\
                        \"pid\":7,\"http\":null,\"grpc\":\"127.0.0.1:4000\"}]}";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_second_lock_names_the_holder_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataLock::take(dir.path()).unwrap();
        let refused = DataLock::take(dir.path()).err().expect("two at once").to_string();
        assert!(refused.contains(&std::process::id().to_string()) && refused.contains("--data"), "{refused}");
        drop(first);
        DataLock::take(dir.path()).expect("free again");
    }

    #[test]
    fn tail_gives_whole_last_lines_of_any_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail(&path, 3), "");
        fs::write(&path, format!("{}\none\ntwo\n", "x".repeat(20_000))).unwrap();
        assert_eq!(tail(&path, 2), "one\ntwo");
    }

    #[test]
    fn writing_leaves_one_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"1").unwrap();
        write_atomic(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

//! One child process: started with a log file and a pipe that asks it to stop, ended by handle.
//!
//! Must never signal a process by its number: it may be another's by then.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::files::Role;

/// How long a child may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// A log that is longer when its process starts becomes FILE.1.
const LOG_BYTES: u64 = 16 << 20;

/// A process of the cluster.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    pub role: Role,
    pub id: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub http: Option<String>,
    pub grpc: String,
    pub log: PathBuf,
}

/// A process that was started and not yet waited for.
pub struct Running {
    pub pid: u32,
    child: Child,
    /// Its end asks the child to stop. Held here, so the child stops too if this process is killed.
    stdin: Option<ChildStdin>,
}

impl ProcessSpec {
    /// `worker w1`
    pub fn title(&self) -> String {
        format!("{} {}", self.role, self.id)
    }

    /// Starts it. Needs a running tokio runtime.
    pub fn start(&self) -> anyhow::Result<Running> {
        let log = open_log(&self.log)?;
        let errors = log.try_clone().context("can't open a log twice")?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::piped()).stdout(log).stderr(errors).kill_on_drop(true);
        // Everything is said by flags. The variables of `up` mean other things to its children.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARAVAN_") {
                command.env_remove(name);
            }
        }
        command.env("CARAVAN_CONFIG", "");
        // A group of its own: ^C in a terminal goes to `up`, which stops its children in order.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("can't start {}", self.program.display()))?;
        let stdin = child.stdin.take();
        let pid = child.id().context("the process ended while it started")?;
        Ok(Running { pid, child, stdin })
    }
}

impl Running {
    /// Waits until it ended by itself, or, once `stop` says so, asks it to and kills it if it does not.
    pub async fn ended(mut self, mut stop: watch::Receiver<bool>) -> std::io::Result<ExitStatus> {
        tokio::select! {
            status = self.child.wait() => return status,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        drop(self.stdin.take());
        match tokio::time::timeout(STOP_WAIT, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.child.start_kill()?;
                self.child.wait().await
            }
        }
    }
}

/// Opens a log for appending; one that has grown too long is put aside first.
fn open_log(path: &Path) -> anyhow::Result<fs::File> {
    let at = || format!("can't write the log {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(at)?;
    }
    if fs::metadata(path).is_ok_and(|about| about.len() > LOG_BYTES) {
        fs::rename(path, path.with_extension("log.1")).with_context(at)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path).with_context(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_long_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/w1.log");
        drop(open_log(&path).unwrap());
        fs::File::options().write(true).open(&path).unwrap().set_len(LOG_BYTES + 1).unwrap();
        drop(open_log(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("logs/w1.log.1")).unwrap().len(), LOG_BYTES + 1);
    }
}

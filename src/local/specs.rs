//! Which processes a local cluster has, and their flags.
//!
//! Must never start them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::child::ProcessSpec;
use super::files::Role;
use super::ports::Ports;
use crate::catalogue::Resolved;
use crate::cli::UpArgs;

/// Log settings that the children inherit.
#[derive(Clone, Debug)]
pub struct LogSettings {
    pub level: String,
    pub json: bool,
}

/// What the processes of a cluster have in common.
pub struct Cluster<'a> {
    pub program: &'a Path,
    pub args: &'a UpArgs,
    pub model: &'a Resolved,
    pub ports: &'a Ports,
    pub threads: u32,
    pub log: &'a LogSettings,
}

/// Name of a worker, from its index.
pub fn worker_id(index: usize) -> String {
    format!("w{}", index + 1)
}

/// The folder of a group of coordinators. A group of another size is another group, with a state of
/// its own: changing the size of a living one is an operator's act, not a restart.
pub fn group_folder(data_dir: &Path, coordinators: u32) -> PathBuf {
    data_dir.join(format!("coordinators-{coordinators}"))
}

impl Cluster<'_> {
    /// Coordinators, then workers.
    pub fn processes(&self) -> Vec<ProcessSpec> {
        let coordinators = (0..self.ports.coordinators.len()).map(|index| self.coordinator(index));
        let workers = (0..self.ports.workers.len()).map(|index| self.worker(index));
        coordinators.chain(workers).collect()
    }

    fn grpc_of_all(&self) -> impl Iterator<Item = String> {
        self.ports.coordinators.iter().map(|ports| ports.grpc.to_string())
    }

    fn coordinator(&self, index: usize) -> ProcessSpec {
        let ports = self.ports.coordinators[index];
        let id = (index + 1).to_string();
        let peers: Vec<String> =
            self.grpc_of_all().enumerate().map(|(index, at)| format!("{}={at}", index + 1)).collect();
        let data = group_folder(&self.args.data, self.args.coordinators).join(&id);
        let mut model = OsString::from(format!("{}=", self.model.name));
        model.push(&self.model.path);
        let mut flags = Flags::of("coordinator");
        flags.add("--id", &id);
        flags.add("--http", ports.http.to_string());
        flags.add("--grpc", ports.grpc.to_string());
        flags.add("--peers", peers.join(","));
        flags.add("--data", data);
        flags.add("--model", model);
        flags.add("--prefill-chunk", self.args.prefill_chunk.to_string());
        flags.add("--lease-ms", self.args.lease_ms.to_string());
        flags.add("--kv", self.args.kv.name());
        self.spec(Role::Coordinator, id, flags, (Some(url(ports.http)), ports.grpc))
    }

    fn worker(&self, index: usize) -> ProcessSpec {
        let grpc = self.ports.workers[index];
        let id = worker_id(index);
        let throttle =
            self.args.throttle.iter().rfind(|(worker, _)| *worker == id).map_or(1.0, |(_, share)| *share);
        let join: Vec<String> = self.grpc_of_all().collect();
        let mut flags = Flags::of("worker");
        flags.add("--join", join.join(","));
        flags.add("--id", &id);
        flags.add("--listen", grpc.to_string());
        flags.add("--advertise", grpc.to_string());
        flags.add("--threads", self.threads.to_string());
        flags.add("--kv-mib", self.args.kv_mib.to_string());
        flags.add("--throttle", throttle.to_string());
        flags.add("--data", self.args.data.join("workers").join(&id));
        self.spec(Role::Worker, id, flags, (None, grpc))
    }

    fn spec(
        &self,
        role: Role,
        id: String,
        mut flags: Flags,
        (http, grpc): (Option<String>, SocketAddr),
    ) -> ProcessSpec {
        flags.0.push("--stop-with-stdin".into());
        flags.add("--log", &self.log.level);
        if self.log.json {
            flags.0.push("--log-json".into());
        }
        let log = self.args.data.join("logs").join(format!("{role}-{id}.log"));
        let program = self.program.to_owned();
        ProcessSpec { role, id, program, args: flags.0, http, grpc: grpc.to_string(), log }
    }
}

/// `http://…` at which this machine reaches an address that a node serves at.
pub fn url(at: SocketAddr) -> String {
    let reachable = match at {
        SocketAddr::V4(four) if four.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], at.port())),
        SocketAddr::V6(six) if six.ip().is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), at.port())
        }
        _ => at,
    };
    format!("http://{reachable}")
}

struct Flags(Vec<OsString>);

impl Flags {
    fn of(command: &str) -> Flags {
        Flags(vec![command.into()])
    }

    fn add(&mut self, flag: &str, value: impl Into<OsString>) {
        // In one word, so that no value can be read as another flag.
        let mut word = OsString::from(flag);
        word.push("=");
        word.push(value.into());
        self.0.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_reachable_from_this_machine() {
        assert_eq!(url(SocketAddr::from(([0, 0, 0, 0], 80))), "http://127.0.0.1:80");
        assert_eq!(url(SocketAddr::from(([10, 0, 0, 2], 8080))), "http://10.0.0.2:8080");
        assert_eq!(url(SocketAddr::from(([0u16; 8], 8080))), "http://[::1]:8080");
    }
}

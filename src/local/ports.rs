//! Ports of a local cluster: chosen once, remembered, used again at the next start.
//!
//! Must never take a port that another program listens at.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::files::{processes_path, write_atomic};

/// How long the children of an `up` that was killed may take to free their ports.
const LEFTOVER_WAIT: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How far above the first HTTP port to look for those of the other coordinators.
const SEARCHED_PORTS: u16 = 200;

/// Ports of one cluster. Indices are those of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ports {
    pub coordinators: Vec<CoordinatorPorts>,
    /// gRPC of the workers.
    pub workers: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorPorts {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
}

/// Ports held open until all are chosen, so that no two nodes get the same.
struct Held(Vec<TcpListener>);

impl Held {
    /// Holds `at`, or says why not.
    fn hold(&mut self, at: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(at)?;
        let bound = listener.local_addr()?;
        self.0.push(listener);
        Ok(bound)
    }

    /// Holds the remembered address if it is free, else a free one of the same host.
    fn hold_or_free(&mut self, remembered: Option<SocketAddr>, host: IpAddr) -> anyhow::Result<SocketAddr> {
        if let Some(at) = remembered.filter(|at| at.ip() == host)
            && let Ok(bound) = self.hold(at)
        {
            return Ok(bound);
        }
        self.hold(SocketAddr::new(host, 0)).context("this machine has no free port")
    }

    /// Holds the first free port above `first`.
    fn hold_above(&mut self, first: SocketAddr) -> anyhow::Result<SocketAddr> {
        for port in (1..=SEARCHED_PORTS).filter_map(|more| first.port().checked_add(more)) {
            if let Ok(bound) = self.hold(SocketAddr::new(first.ip(), port)) {
                return Ok(bound);
            }
        }
        self.hold_or_free(None, first.ip())
    }
}

/// Chooses ports: `http` for the first coordinator, the next free ones for the others, any free ones
/// for gRPC; those of the last start where they are free.
pub fn choose(
    data_dir: &Path,
    http: SocketAddr,
    coordinators: usize,
    workers: usize,
) -> anyhow::Result<Ports> {
    let path = data_dir.join("cluster.json");
    let remembered = remembered(&path);
    if processes_path(data_dir).exists() {
        wait_for_leftovers(http, &remembered);
    }
    let mut held = Held(Vec::new());
    let mut ports = Ports::default();
    let first = match http.port() {
        0 => held.hold_or_free(remembered.coordinators.first().map(|ports| ports.http), http.ip())?,
        _ => held.hold(http).map_err(|error| taken(http, &error))?,
    };
    for index in 0..coordinators {
        let before = remembered.coordinators.get(index);
        let http = match (index, before.map(|ports| ports.http).filter(|at| at.ip() == first.ip())) {
            (0, _) => first,
            (_, Some(at)) => match held.hold(at) {
                Ok(at) => at,
                Err(_) => held.hold_above(first)?,
            },
            (_, None) => held.hold_above(first)?,
        };
        let grpc = held.hold_or_free(before.map(|ports| ports.grpc), Ipv4Addr::LOCALHOST.into())?;
        ports.coordinators.push(CoordinatorPorts { http, grpc });
    }
    for index in 0..workers {
        let before = remembered.workers.get(index).copied();
        ports.workers.push(held.hold_or_free(before, Ipv4Addr::LOCALHOST.into())?);
    }
    write_atomic(&path, &serde_json::to_vec_pretty(&ports)?)?;
    Ok(ports)
}

/// Ports of the last start; none if there was none, or its file is damaged: they are a convenience.
fn remembered(path: &PathBuf) -> Ports {
    let Ok(text) = fs::read_to_string(path) else { return Ports::default() };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), "the remembered ports can't be read, choosing new ones: {error}");
        Ports::default()
    })
}

/// An `up` that was killed leaves its list of processes, and children that stop by themselves a
/// moment later. Their ports and state must be free before new ones start.
fn wait_for_leftovers(http: SocketAddr, remembered: &Ports) {
    let mut wanted: Vec<SocketAddr> = remembered.workers.clone();
    wanted.extend(remembered.coordinators.iter().flat_map(|ports| [ports.http, ports.grpc]));
    if http.port() != 0 {
        wanted.push(http);
    }
    let begun = Instant::now();
    while begun.elapsed() < LEFTOVER_WAIT && wanted.iter().any(|at| TcpListener::bind(at).is_err()) {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn taken(http: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let port = http.port();
    match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {port} of {} is in use by another program; stop it, or choose another port, e.g. --http {} \
             (port 0 takes a free one)",
            http.ip(),
            SocketAddr::new(http.ip(), port.checked_add(1).unwrap_or(8080))
        ),
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("port {port} may not be opened by this user; choose one above 1023 with --http")
        }
        _ => anyhow::anyhow!("can't listen at {http}: {error}; choose another address with --http"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn every_node_gets_a_port_of_its_own_and_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = choose(dir.path(), any(), 3, 2).unwrap();
        let mut all: Vec<u16> = first.workers.iter().map(SocketAddr::port).collect();
        all.extend(first.coordinators.iter().flat_map(|ports| [ports.http.port(), ports.grpc.port()]));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
        assert_eq!(choose(dir.path(), any(), 3, 2).unwrap(), first);
    }

    #[test]
    fn a_remembered_port_that_is_taken_is_replaced_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let first = choose(dir.path(), any(), 1, 2).unwrap();
        let _other = TcpListener::bind(first.workers[0]).unwrap();
        let second = choose(dir.path(), any(), 1, 2).unwrap();
        assert_ne!(second.workers[0], first.workers[0]);
        assert_eq!(second.workers[1], first.workers[1]);
        assert_eq!(second.coordinators, first.coordinators);
    }

    #[test]
    fn a_port_in_use_is_named_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let other = TcpListener::bind(any()).unwrap();
        let at = other.local_addr().unwrap();
        let refused = choose(dir.path(), at, 1, 1).unwrap_err().to_string();
        assert!(refused.contains(&at.port().to_string()) && refused.contains("--http"), "{refused}");
    }

    #[test]
    fn a_damaged_memory_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cluster.json"), "{\"coordinators\": 3").unwrap();
        assert_eq!(choose(dir.path(), any(), 1, 1).unwrap().workers.len(), 1);
    }
}

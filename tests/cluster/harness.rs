//! Starts a cluster with `caravan up` and knows its processes; ends all of it when dropped.
//!
//! Must never be used by two tests at a time: two cores carry one cluster. The guard sees to that.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Longest wait for a cluster to be ready or to recover; a bound, not an expectation.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Options {
    pub workers: usize,
    pub coordinators: usize,
    pub threads: usize,
    pub extra: Vec<String>,
    /// Another file than the model of the tests.
    pub model: Option<PathBuf>,
    /// Use this folder instead of a fresh one.
    pub dir: Option<PathBuf>,
}

impl Options {
    pub fn new(workers: usize, coordinators: usize) -> Options {
        Options { workers, coordinators, threads: 1, extra: Vec::new(), model: None, dir: None }
    }

    pub fn threads(mut self, threads: usize) -> Options {
        self.threads = threads;
        self
    }

    pub fn flag(mut self, name: &str, value: &str) -> Options {
        self.extra.push(name.to_owned());
        self.extra.push(value.to_owned());
        self
    }

    pub fn switch(mut self, name: &str) -> Options {
        self.extra.push(name.to_owned());
        self
    }

    pub fn model(mut self, file: &Path) -> Options {
        self.model = Some(file.to_owned());
        self
    }

    pub fn dir(mut self, dir: &Path) -> Options {
        self.dir = Some(dir.to_owned());
        self
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub role: String,
    pub id: String,
    pub pid: u64,
    pub http: Option<String>,
    pub grpc: String,
}

pub struct Cluster {
    up: Child,
    pub dir: PathBuf,
    pub http: String,
    /// From the start of `up` to its `ready` line.
    pub ready_after: Duration,
    _folder: Option<tempfile::TempDir>,
    _guard: MutexGuard<'static, ()>,
}

/// The model file of the tests.
pub fn model_file() -> PathBuf {
    let file = std::env::var("CARAVAN_TEST_MODEL")
        .expect("CARAVAN_TEST_MODEL must name the model file; scripts/test sets it");
    PathBuf::from(file)
}

/// Long forms of the suites: the whole matrix, all kills.
pub fn full() -> bool {
    std::env::var("CARAVAN_FULL").is_ok_and(|value| value == "1")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

impl Cluster {
    /// Starts and waits for the `ready` line.
    pub fn start(options: Options) -> Cluster {
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let folder = options.dir.is_none().then(|| tempfile::tempdir().expect("a folder"));
        let dir = match (&options.dir, &folder) {
            (Some(dir), _) => dir.clone(),
            (None, Some(folder)) => folder.path().to_owned(),
            (None, None) => unreachable!("one of the two is set"),
        };
        let started = Instant::now();
        let mut up = Command::new(env!("CARGO_BIN_EXE_caravan"))
            .arg("up")
            .args(["--model", &options.model.clone().unwrap_or_else(model_file).to_string_lossy()])
            .args(["--workers", &options.workers.to_string()])
            .args(["--coordinators", &options.coordinators.to_string()])
            .args(["--threads", &options.threads.to_string()])
            .args(["--http", &format!("127.0.0.1:{}", free_port())])
            .args(["--data", &dir.to_string_lossy()])
            .args(&options.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("caravan starts");
        let stdout = up.stdout.take().expect("piped");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let http = wait_ready(&lines, &mut up);
        Cluster { up, dir, http, ready_after: started.elapsed(), _folder: folder, _guard: guard }
    }

    pub fn processes(&self) -> Vec<Process> {
        let file = std::fs::read(self.dir.join("processes.json")).expect("processes.json");
        let value: Value = serde_json::from_slice(&file).expect("processes.json is JSON");
        let list = value["processes"].as_array().expect("a list of processes");
        list.iter()
            .map(|process| Process {
                role: process["role"].as_str().expect("role").to_owned(),
                id: process["id"].as_str().expect("id").to_owned(),
                pid: process["pid"].as_u64().expect("pid"),
                http: process["http"].as_str().map(|http| http.trim_end_matches("/v1").to_owned()),
                grpc: process["grpc"].as_str().unwrap_or_default().to_owned(),
            })
            .collect()
    }

    pub fn role(&self, role: &str) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.role == role).collect()
    }

    /// The process of the leading coordinator, as the cluster itself says.
    pub fn leader(&self) -> Process {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for coordinator in self.role("coordinator") {
                let Some(http) = &coordinator.http else { continue };
                let Ok(cluster) = get(&format!("{http}/admin/v1/cluster")) else { continue };
                let Some(leader) = cluster["leader"].as_str() else { continue };
                if let Some(found) = self.role("coordinator").into_iter().find(|c| c.id == leader) {
                    return found;
                }
            }
            assert!(Instant::now() < deadline, "no leader within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// HTTP addresses of all coordinators.
    pub fn doors(&self) -> Vec<String> {
        self.role("coordinator").into_iter().filter_map(|coordinator| coordinator.http).collect()
    }

    /// Waits until a door says that it is ready.
    pub fn wait_ready(&self, door: &str) {
        wait_for("a ready cluster", || get(&format!("{door}/readyz")).is_ok());
    }

    pub fn admin(&self, path: &str) -> Value {
        get(&format!("{}/admin/v1/{path}", self.http)).expect("the admin endpoint answers")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        signal(u64::from(self.up.id()), "-TERM");
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.up.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

fn wait_ready(lines: &mpsc::Receiver<String>, up: &mut Child) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                if let Some(address) = line.strip_prefix("ready: ") {
                    return address.trim_end_matches("/v1").to_owned();
                }
            }
            Err(_) => {
                let status = up.try_wait();
                signal(u64::from(up.id()), "-TERM");
                panic!("`caravan up` did not get ready within {PATIENCE:?} ({status:?})");
            }
        }
    }
}

/// Sends a signal to a process that `caravan up` started for us.
pub fn signal(pid: u64, signal: &str) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Waits for a condition, with the common bound.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// GET that answers JSON with status 200; anything else is an `Err` with status and body.
pub fn get(url: &str) -> Result<Value, (u16, String)> {
    let (status, body) = raw(ureq::get(url).config().http_status_as_error(false).build().call())?;
    if status != 200 {
        return Err((status, body));
    }
    serde_json::from_str(&body).map_err(|error| (status, format!("{error}: {body}")))
}

/// POST of any bytes; status and body.
pub fn post(url: &str, body: &[u8]) -> Result<(u16, String), (u16, String)> {
    let request = ureq::post(url)
        .config()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .header("content-type", "application/json");
    raw(request.send(body))
}

type Answered = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

fn raw(answer: Answered) -> Result<(u16, String), (u16, String)> {
    match answer {
        Ok(mut response) => {
            let status = response.status().as_u16();
            let body = response.body_mut().read_to_string().map_err(|error| (0, error.to_string()))?;
            Ok((status, body))
        }
        Err(error) => Err((0, error.to_string())),
    }
}

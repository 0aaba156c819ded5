//! Bars 1, 5 (placement), 6 and 7: start-up time, both stages busy, unequal workers, only its own share.
//!
//! Must never assert on seconds save the five of the issue; speed is compared within one run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ask::{Question, ask_all, prose};
use super::harness::{Cluster, Options, get};

fn stages(cluster: &Cluster) -> Vec<Value> {
    let plan = cluster.admin("plan");
    plan["models"][0]["pipelines"][0]["stages"].as_array().expect("stages").clone()
}

fn layers(stage: &Value) -> u64 {
    stage["layers"][1].as_u64().unwrap_or(0) - stage["layers"][0].as_u64().unwrap_or(0)
}

/// Bytes of blobs that each worker says it received.
fn received(cluster: &Cluster) -> BTreeMap<String, u64> {
    let workers = cluster.admin("workers");
    let list = workers.as_array().expect("workers").clone();
    list.iter()
        .map(|w| {
            let bytes = w["blob_bytes_received"].as_u64().expect("counts bytes");
            (w["id"].as_str().unwrap_or_default().to_owned(), bytes)
        })
        .collect()
}

/// The same when no heartbeat says anything new any more: they come five times a second.
fn settled(cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut before = received(cluster);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = received(cluster);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Resident bytes of a process.
fn resident(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib * 1024
}

#[test]
fn each_worker_gets_its_own_tensors_once_and_is_ready_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let kv_mib = 64u64;
    let options = || Options::new(3, 1).flag("--kv-mib", &kv_mib.to_string()).dir(folder.path());
    let mut epochs = 0;
    {
        let cluster = Cluster::start(options());
        let got = settled(&cluster);
        for stage in stages(&cluster) {
            let id = stage["worker"].as_str().expect("a worker");
            let own = stage["tensor_bytes"].as_u64().expect("the plan says how many bytes");
            let ratio = got[id] as f64 / own as f64;
            eprintln!("share: {id} holds {own} bytes, received {} ({ratio:.3} x)", got[id]);
            assert!((0.98..=1.02).contains(&ratio), "{id} received {} for {own}", got[id]);
            let process = cluster.role("worker").into_iter().find(|p| p.id == id).expect("its process");
            let bound = own * 115 / 100 + (kv_mib << 20) + (60 << 20);
            let rss = resident(process.pid);
            eprintln!("share: {id} resident {rss} of at most {bound}");
            assert!(rss <= bound, "{id}: {rss} resident, {bound} allowed");
            epochs += 1;
        }
    }
    assert_eq!(epochs, 3, "three stages");
    let cluster = Cluster::start(options());
    let moved: u64 = settled(&cluster).values().sum();
    let total: u64 = stages(&cluster).iter().filter_map(|stage| stage["tensor_bytes"].as_u64()).sum();
    eprintln!("share: second start received {moved} of {total} bytes, ready after {:?}", cluster.ready_after);
    // The measured speeds differ a little from start to start, and with them the borders of the slices.
    assert!(moved * 10 < total, "the second start fetches nothing that is cached: {moved}");
}

#[test]
fn up_is_ready_within_five_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut times = Vec::new();
    for _ in 0..3 {
        let cluster = Cluster::start(Options::new(2, 1).dir(folder.path()));
        times.push(cluster.ready_after);
    }
    eprintln!("up: ready after {times:?}");
    assert!(times.iter().min() < Some(&Duration::from_secs(5)), "{times:?}");
}

#[test]
fn a_throttled_worker_gets_fewer_layers() {
    let cluster = Cluster::start(Options::new(2, 1).flag("--throttle", "w2=0.5"));
    let shares: BTreeMap<String, u64> = stages(&cluster)
        .iter()
        .map(|stage| (stage["worker"].as_str().unwrap_or_default().to_owned(), layers(stage)))
        .collect();
    eprintln!("throttled: {shares:?}");
    let (slow, fast) = (shares["w2"], shares["w1"]);
    assert!(slow + 5 <= fast, "half the speed, fewer layers: {shares:?}");
}

#[test]
fn eight_clients_keep_both_stages_busy() {
    let cluster = Cluster::start(Options::new(2, 1));
    let prose = prose();
    let question = |i: usize| Question {
        prompt: prose[i * 20..i * 20 + 16].to_vec(),
        max_tokens: 64,
        seed: i as u64,
        temperature: 0.0,
        top_p: 1.0,
    };
    let doors = [cluster.http.clone()];
    let rate = |clients: usize| {
        let questions: Vec<_> = (0..2 * clients).map(question).collect();
        let started = Instant::now();
        let answers = ask_all(&doors, &questions, clients);
        let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
        tokens as f64 / started.elapsed().as_secs_f64()
    };
    rate(8);
    let mut ratios: Vec<f64> = (0..3).map(|_| 1.0 / rate(1) * rate(8)).collect();
    ratios.sort_by(f64::total_cmp);
    eprintln!("busy: 8 clients over 1 client: {ratios:.2?}");
    assert!(ratios[1] >= 1.7, "{ratios:?}");
    let measured = get(&format!("{}/admin/v1/plan", cluster.http)).expect("the plan");
    let rate = measured["models"][0]["pipelines"][0]["measured_tokens_per_s"].as_f64();
    assert!(rate.is_some_and(|rate| rate > 0.0), "{measured}");
}

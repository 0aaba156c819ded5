//! Supervision of real, small processes: restart, give-up, list, stop.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::*;
use crate::local::files::Role;

/// A shell script as a process of the cluster.
fn script(dir: &Path, id: &str, text: &str) -> ProcessSpec {
    ProcessSpec {
        role: Role::Worker,
        id: id.to_owned(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), text.into()],
        http: None,
        grpc: "127.0.0.1:1".to_owned(),
        log: dir.join(format!("logs/{id}.log")),
    }
}

fn setup(dir: &Path, processes: Vec<ProcessSpec>) -> Supervision {
    Supervision {
        processes,
        http: "http://127.0.0.1:1".to_owned(),
        list: dir.join("processes.json"),
        restart: true,
        ready_wait: Duration::from_secs(60),
        term: Term::new(),
    }
}

fn read_list(path: &Path) -> Option<Processes> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Waits until `found` finds something.
async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(value) = found() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not happen within 10 s");
}

fn never_ready() -> watch::Receiver<Readiness> {
    watch::channel(Readiness::default()).1
}

/// Ends when its standard input does, like a node.
const NODE: &str = "cat; exit 0";

#[tokio::test]
async fn a_dead_process_is_replaced_in_the_list_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("processes.json");
    // Dies once, then runs.
    let marker = dir.path().join("died");
    let text = format!("if [ -e {0} ]; then {NODE}; else : > {0}; sleep 0.3; exit 3; fi", marker.display());
    let setup = setup(dir.path(), vec![script(dir.path(), "w1", &text), script(dir.path(), "w2", NODE)]);
    let stop = async {
        let first = until(|| read_list(&list)).await;
        let second = until(|| read_list(&list).filter(|now| *now != first)).await;
        assert_ne!(second.processes[0].pid, first.processes[0].pid);
        assert_eq!(second.processes[1], first.processes[1]);
        assert_eq!(second.processes.len(), 2);
        "SIGTERM"
    };
    supervise(setup, never_ready(), stop, || {}).await.unwrap();
    assert!(!list.exists(), "the list goes with the cluster");
}

#[tokio::test]
async fn a_process_that_never_comes_up_ends_it_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let processes = vec![
        script(dir.path(), "w1", "echo the disk is upside down >&2; exit 1"),
        script(dir.path(), "w2", NODE),
    ];
    let begun = std::time::Instant::now();
    let refused = supervise(setup(dir.path(), processes), never_ready(), std::future::pending(), || {}).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("worker w1 exited with code 1") && said.contains("upside down"), "{said}");
    assert!(begun.elapsed() >= Duration::from_millis(200 + 400 + 800 + 1600), "no back-off");
}

#[tokio::test]
async fn after_ready_no_number_of_deaths_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, ready) = watch::channel(Readiness::default());
    tell.send_replace(Readiness { ready: true, detail: String::new() });
    let called = std::cell::Cell::new(0);
    let log = dir.path().join("logs/w1.log");
    let stop = async {
        until(|| std::fs::read_to_string(&log).ok().filter(|text| text.lines().count() >= 6)).await;
        "SIGINT"
    };
    let processes = vec![script(dir.path(), "w1", "echo x; exit 1")];
    supervise(setup(dir.path(), processes), ready, stop, || called.set(called.get() + 1)).await.unwrap();
    assert_eq!(called.get(), 1, "ready is said once");
}

#[tokio::test]
async fn without_restart_the_dead_leave_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("processes.json");
    let processes = vec![script(dir.path(), "w1", "sleep 0.2"), script(dir.path(), "w2", NODE)];
    let setup = Supervision { restart: false, ..setup(dir.path(), processes) };
    let stop = async {
        let left = until(|| read_list(&list).filter(|now| now.processes.len() == 1)).await;
        assert_eq!(left.processes[0].id, "w2");
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(read_list(&list).unwrap(), left);
        "SIGTERM"
    };
    supervise(setup, never_ready(), stop, || {}).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_is_never_ready_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Supervision {
        ready_wait: Duration::from_millis(300),
        ..setup(dir.path(), vec![script(dir.path(), "w1", NODE)])
    };
    let said = supervise(setup, never_ready(), std::future::pending(), || {}).await.unwrap_err().to_string();
    assert!(said.contains("logs"), "{said}");
}

#[tokio::test]
async fn a_process_that_ignores_the_end_of_its_input_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("processes.json");
    let setup = setup(dir.path(), vec![script(dir.path(), "w1", "exec sleep 60")]);
    let stop = async {
        until(|| read_list(&list)).await;
        "SIGTERM"
    };
    let begun = std::time::Instant::now();
    supervise(setup, never_ready(), stop, || {}).await.unwrap();
    assert!((5..10).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

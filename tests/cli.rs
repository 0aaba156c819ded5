//! The command line from outside: exit codes, help, where settings come from, and clear refusals.
//!
//! Must never need a model, a network, or a free well-known port.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program with nothing of this machine's configuration.
fn caravan(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caravan"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARAVAN_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", home).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
    command
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

#[test]
fn every_command_has_help_with_an_example() {
    let home = tempfile::tempdir().unwrap();
    let commands = ["", "up", "coordinator", "worker", "status", "chat", "model", "bench", "eval"];
    let inner = ["model pull", "model list", "model inspect", "bench engine", "bench http", "bench load"];
    for words in commands.iter().chain(&inner) {
        let said = run(caravan(home.path()).args(words.split_whitespace()).arg("--help"));
        assert_eq!(said.code, Some(0), "{words}");
        assert!(said.out.contains("Example:\n  caravan"), "{words}: {}", said.out);
    }
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    let home = tempfile::tempdir().unwrap();
    for words in [
        "",
        "dance",
        "up --workers 0",
        "up --coordinators 2",
        "up --http nowhere",
        "up --throttle w9=0.5",
        "worker --id a --data d",
        "worker --id a/b --join x:1 --data d",
        "coordinator --id 2 --peers 1=h:1,3=h:3 --data d",
        "model pull",
        "bench",
        "bench engine --batch 0",
        "bench engine --layers 5..5",
        "bench engine --prompt 0 --generate 0 --model tests/cli.rs",
        "bench http --rate 0",
        "bench http --rate 1 --clients 2",
        "bench http --url nowhere",
        "eval",
        "--log nonsense=nonsense model list",
        "--config missing.toml model list",
    ] {
        let said = run(caravan(home.path()).args(words.split_whitespace()));
        assert_eq!(said.code, Some(2), "{words}: {}", said.err);
        assert!(!said.err.is_empty(), "{words}");
    }
    for words in [
        "model pull no-such-model",
        "model inspect gone.gguf",
        "status --http 127.0.0.1:1",
        "bench engine --model gone.gguf",
        "bench http --url http://127.0.0.1:1/v1 --requests 1",
        "eval gone.txt",
    ] {
        let said = run(caravan(home.path()).args(words.split_whitespace()));
        assert_eq!(said.code, Some(1), "{words}: {}", said.err);
        assert!(said.err.starts_with("error: "), "{words}: {}", said.err);
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/caravan");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), "[up]\nworkers = 3\nkv-mib = 64\nthreads = 2\n").unwrap();
    let mut command = caravan(home.path());
    command.env("CARAVAN_WORKERS", "4").env("CARAVAN_KV_MIB", "128").env("CARAVAN_NO_RESTART", "1");
    let said = run(command.args(["up", "--print-config", "--workers", "5"]));
    assert_eq!(said.code, Some(0), "{}", said.err);
    let file = folder.join("config.toml").display().to_string();
    for line in [
        "workers = 5 # flag --workers",
        "kv-mib = 128 # environment CARAVAN_KV_MIB",
        &format!("threads = 2 # file {file}"),
        "no-restart = 1 # environment CARAVAN_NO_RESTART",
        "coordinators = 1 # default",
        &format!("data = \"{}/.local/share/caravan\" # default", home.path().display()),
    ] {
        assert!(said.out.lines().any(|one| one == line), "{line:?} is not in\n{}", said.out);
    }
    for by_flag in [true, false] {
        let mut command = caravan(home.path());
        if by_flag {
            command.args(["--config", ""]);
        } else {
            command.env("CARAVAN_CONFIG", "");
        }
        let none = run(command.args(["up", "--print-config"]));
        assert!(none.out.contains("workers = 2 # default"), "{}", none.err);
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let mut command = caravan(home.path());
    let mut child =
        command.args(["model", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said, "");
}

#[test]
fn up_says_when_its_port_belongs_to_another_program() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("m.gguf");
    std::fs::write(&model, "GGUF").unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap();
    let said =
        run(caravan(home.path()).args(["up", "--model"]).arg(&model).args(["--http", &at.to_string()]));
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains(&at.port().to_string()) && said.err.contains("--http"), "{}", said.err);
}

#[test]
fn up_ends_with_the_log_of_a_node_that_does_not_start() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("m.gguf");
    std::fs::write(&model, "this is no model").unwrap();
    let mut command = caravan(home.path());
    let said = run(command.args(["up", "--http", "127.0.0.1:0", "--workers", "1", "--model"]).arg(&model));
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("times in a row") && said.err.contains(".log"), "{}", said.err);
    assert!(!said.err.contains("Usage"), "the flags that `up` gives must fit: {}", said.err);
    assert!(!home.path().join(".local/share/caravan/processes.json").exists());
}

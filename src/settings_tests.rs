//! Settings: which source wins, and that each mistake is named. The environment is tested from
//! outside, in `tests/cli.rs`: it can't be changed safely in a process with threads.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn report_of(file: &str, args: &[&str]) -> Result<String, String> {
    let config: Table = file.parse().expect("a test's TOML");
    let (command, from_file) = with_file(cli::command("/data"), &config)?;
    let args = ["caravan"].iter().chain(args).copied();
    let matches = command.clone().try_get_matches_from(args).map_err(|error| error.to_string())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    Ok(report(&command, &matches, &from_file, "c.toml"))
}

#[track_caller]
fn has(report: &str, line: &str) {
    assert!(report.lines().any(|one| one == line), "{line:?} is not in\n{report}");
}

#[test]
fn clap_finds_no_fault_in_the_command_line() {
    cli::command("/data").debug_assert();
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file =
        "log = \"info\"\n[up]\nworkers = 3\ncoordinators = 3\nno-restart = true\nthrottle = [\"w1=0.5\"]";
    let report = report_of(file, &["up", "--workers", "5"]).unwrap();
    has(&report, "workers = 5 # flag --workers");
    has(&report, "coordinators = 3 # file c.toml");
    has(&report, "no-restart = true # file c.toml");
    has(&report, "throttle = [\"w1=0.5\"] # file c.toml");
    has(&report, "log = \"info\" # file c.toml");
    has(&report, "kv-mib = 256 # default");
    has(&report, "data = \"/data\" # default");
    has(&report, "# threads is not set");
}

#[test]
fn a_section_wins_over_the_top_and_stays_in_its_command() {
    let file = "kv_mib = 64\ndata = \"/top\"\n[worker]\nkv-mib = 32\njoin = [\"a:1\", \"b:2\"]\nid = \"w\"";
    let worker = report_of(file, &["worker"]).unwrap();
    has(&worker, "kv-mib = 32 # file c.toml");
    has(&worker, "join = [\"a:1\", \"b:2\"] # file c.toml");
    has(&worker, "data = \"/top\" # file c.toml");
    has(&report_of(file, &["up"]).unwrap(), "kv-mib = 64 # file c.toml");
    has(&report_of("[model]\ndata = \"/m\"", &["model", "list"]).unwrap(), "data = \"/m\" # file c.toml");
}

#[test]
fn what_is_printed_can_be_read_back() {
    let report =
        report_of("", &["up", "--throttle", "w1=0.5", "--throttle", "w2=1", "--no-restart"]).unwrap();
    let again: Table = report.parse().unwrap();
    assert_eq!(again["throttle"].as_array().unwrap().len(), 2);
    assert_eq!(again["no-restart"].as_bool(), Some(true));
    has(&report_of(&report, &["up"]).unwrap(), "throttle = [\"w1=0.5\", \"w2=1\"] # file c.toml");
}

#[test]
fn a_wrong_file_is_named_not_ignored() {
    assert!(report_of("wrokers = 3", &["up"]).unwrap_err().contains("--wrokers"));
    assert!(report_of("[up]\nid = \"x\"", &["up"]).unwrap_err().contains("`caravan up`"));
    assert!(report_of("[uo]\nworkers = 3", &["up"]).unwrap_err().contains("uo"));
    assert!(report_of("[up]\nworkers = 0", &["up"]).is_err());
    assert!(report_of("[up.deep]\nworkers = 1", &["up"]).is_err());
}

#[test]
fn the_file_is_found_wherever_the_flag_stands() {
    let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let found =
        |words: &[&str], variable: Option<&str>| config_file(&args(words), variable.map(OsString::from));
    assert_eq!(found(&["caravan", "up", "--config", "a"], None), Some("a".into()));
    assert_eq!(found(&["caravan", "--config=a", "up"], Some("b")), Some("a".into()));
    assert_eq!(found(&["caravan", "up"], Some("b")), Some("b".into()));
    assert_eq!(found(&["caravan", "up", "--config="], Some("b")), None);
    assert_eq!(found(&["caravan", "up"], Some("")), None);
    assert_eq!(found(&["caravan", "chat", "--", "--config=a"], Some("b")), Some("b".into()));
}

#[test]
fn every_command_has_an_example() {
    fn check(command: &clap::Command) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example:\n  caravan"), "{} has no example", command.get_name());
        command.get_subcommands().for_each(check);
    }
    check(&cli::command("/data"));
}

//! Bar 4: `kill -9` of workers and of the leading coordinator in the middle of answers.
//!
//! Must never accept an answer that differs from the undisturbed one in a single token.

use std::time::Duration;

use super::ask::{Answer, Question, ask, prose};
use super::harness::{Cluster, Options, Process, full, signal, wait_for};

/// Small counter-based generator: which victim, which token. Same every run.
fn random(round: u64, salt: u64) -> u64 {
    let mut x = (round + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 29)
}

fn question(round: u64) -> Question {
    let prose = prose();
    let length = 5 + (random(round, 1) % 200) as usize;
    let start = (random(round, 2) % (prose.len() as u64 - 300)) as usize;
    let greedy = round.is_multiple_of(2);
    Question {
        prompt: prose[start..start + length].to_vec(),
        max_tokens: 64,
        seed: round,
        temperature: if greedy { 0.0 } else { 0.8 },
        top_p: if greedy { 1.0 } else { 0.9 },
    }
}

/// Asks, and kills `victim` when token `at` has come.
fn disturbed(door: &str, question: &Question, victim: &Process, at: usize) -> (Answer, Duration) {
    let mut killed = false;
    let timed = ask(door, question, |tokens| {
        if tokens >= at && !killed {
            killed = true;
            signal(victim.pid, "-9");
        }
    })
    .expect("the stream goes on over a kill");
    assert!(killed, "the answer was long enough for the kill at token {at}");
    (timed.answer, timed.longest_gap)
}

fn report(what: &str, gaps: &mut [Duration]) {
    gaps.sort();
    eprintln!(
        "{what}: {} kills, every answer the same; pause median {:?}, longest {:?}",
        gaps.len(),
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1]
    );
}

/// Until `up` has replaced the victim and the cluster is whole again.
fn wait_replaced(cluster: &Cluster, victim: &Process) {
    wait_for("the process to be replaced", || {
        cluster.processes().iter().any(|p| p.id == victim.id && p.role == victim.role && p.pid != victim.pid)
    });
}

#[test]
fn a_killed_worker_makes_a_pause_and_the_same_text() {
    let cluster = Cluster::start(Options::new(3, 1));
    let kills = if full() { 30 } else { 10 };
    let mut gaps = Vec::new();
    for round in 0..kills {
        let question = question(round);
        cluster.wait_ready(&cluster.http);
        let expected = ask(&cluster.http, &question, |_| {}).expect("undisturbed").answer;
        let workers = cluster.role("worker");
        let victim = &workers[(random(round, 3) % workers.len() as u64) as usize];
        let at = 1 + (random(round, 4) % 60) as usize;
        let (answer, gap) = disturbed(&cluster.http, &question, victim, at);
        assert_eq!(expected, answer, "round {round}: worker {} killed at token {at}", victim.id);
        gaps.push(gap);
        wait_replaced(&cluster, victim);
    }
    report("workers", &mut gaps);
}

#[test]
fn with_no_spare_the_layers_go_to_those_left() {
    let cluster = Cluster::start(Options::new(2, 1).switch("--no-restart"));
    let question = question(100);
    let expected = ask(&cluster.http, &question, |_| {}).expect("undisturbed").answer;
    let victim = cluster.role("worker")[0].clone();
    let (answer, _) = disturbed(&cluster.http, &question, &victim, 10);
    assert_eq!(expected, answer);
    let plan = cluster.admin("plan");
    let stages = plan["models"][0]["pipelines"][0]["stages"].as_array().expect("stages").clone();
    assert_eq!(stages.len(), 1, "{plan}");
    assert_eq!(stages[0]["layers"], serde_json::json!([0, 30]));
    assert_ne!(stages[0]["worker"].as_str(), Some(victim.id.as_str()));
}

#[test]
fn a_killed_leader_makes_a_pause_on_another_door() {
    let cluster = Cluster::start(Options::new(2, 3));
    let kills = if full() { 10 } else { 4 };
    let mut gaps = Vec::new();
    for round in 200..200 + kills {
        let question = question(round);
        let leader = cluster.leader();
        let other = cluster.role("coordinator").into_iter().find(|c| c.id != leader.id).expect("a follower");
        let door = other.http.clone().expect("a door");
        cluster.wait_ready(&door);
        let expected = ask(&door, &question, |_| {}).expect("undisturbed").answer;
        let leader = cluster.leader();
        if leader.id == other.id {
            continue;
        }
        let at = 1 + (random(round, 4) % 60) as usize;
        let (answer, gap) = disturbed(&door, &question, &leader, at);
        assert_eq!(expected, answer, "round {round}: leader {} killed at token {at}", leader.id);
        gaps.push(gap);
        wait_replaced(&cluster, &leader);
    }
    assert!(gaps.len() as u64 * 2 > kills, "most rounds had a leader to kill");
    report("leaders", &mut gaps);
}

#[test]
fn a_frozen_worker_is_noticed_and_its_late_words_are_refused() {
    let cluster = Cluster::start(Options::new(3, 1).switch("--no-restart"));
    let question = question(300);
    let expected = ask(&cluster.http, &question, |_| {}).expect("undisturbed").answer;
    let victim = cluster.role("worker")[1].clone();
    let mut frozen = false;
    let answer = ask(&cluster.http, &question, |tokens| {
        if tokens == 12 && !frozen {
            frozen = true;
            signal(victim.pid, "-STOP");
        }
    })
    .expect("the stream goes on")
    .answer;
    assert_eq!(expected, answer);
    signal(victim.pid, "-CONT");
    let again = ask(&cluster.http, &question, |_| {}).expect("after the return").answer;
    assert_eq!(expected, again);
    wait_for("the frozen worker to be taken back", || {
        let workers = cluster.admin("workers");
        workers.as_array().is_some_and(|list| list.iter().filter(|w| w["state"] == "active").count() == 3)
    });
    let last = ask(&cluster.http, &question, |_| {}).expect("at the end").answer;
    assert_eq!(expected, last);
}

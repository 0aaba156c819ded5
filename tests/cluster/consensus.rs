//! Bar 5: what three coordinators promise when some of them die.
//!
//! Must never look inside a process: everything is seen through the HTTP doors.

use serde_json::Value;

use super::ask::{Question, ask, prose};
use super::harness::{Cluster, Options, get, post, signal, wait_for};

fn question() -> Question {
    Question { prompt: prose()[40..60].to_vec(), max_tokens: 16, seed: 5, temperature: 0.0, top_p: 1.0 }
}

fn epoch(door: &str) -> u64 {
    get(&format!("{door}/admin/v1/cluster")).ok().and_then(|c| c["epoch"].as_u64()).unwrap_or(0)
}

fn state_of(door: &str, id: &str) -> Option<String> {
    let cluster = get(&format!("{door}/admin/v1/cluster")).ok()?;
    let list = cluster["coordinators"].as_array()?;
    list.iter().find(|c| c["id"] == id)?["state"].as_str().map(str::to_owned)
}

fn models(door: &str) -> Option<Value> {
    get(&format!("{door}/v1/models")).ok().map(|models| models["data"][0]["id"].clone())
}

#[test]
fn two_go_on_one_refuses_and_the_restarted_catch_up() {
    let cluster = Cluster::start(Options::new(1, 3).switch("--no-restart"));
    let expected = ask(&cluster.http, &question(), |_| {}).expect("undisturbed").answer;
    let leader = cluster.leader();
    let others: Vec<_> = cluster.role("coordinator").into_iter().filter(|c| c.id != leader.id).collect();
    let door = others[0].http.clone().expect("a door");

    signal(leader.pid, "-9");
    wait_for("a new leader", || cluster_leader(&door).is_some_and(|id| id != leader.id));
    wait_for("the two to be ready", || get(&format!("{door}/readyz")).is_ok());
    assert_eq!(expected, ask(&door, &question(), |_| {}).expect("two of three").answer);
    wait_for("the dead one to be seen as down", || state_of(&door, &leader.id).as_deref() == Some("down"));

    // The door that is left must be able to say that it can't write.
    signal(others[1].pid, "-9");
    wait_for("the last one to refuse a write", || {
        match post(&format!("{door}/admin/v1/plan/rebalance"), b"{}") {
            Ok((503, body)) => {
                let error: Value = serde_json::from_str(&body).expect("an error body");
                let message = error["error"]["message"].as_str().unwrap_or_default().to_lowercase();
                assert!(
                    message.contains("quorum") || message.contains("majority") || message.contains("leader"),
                    "{body}"
                );
                true
            }
            _ => false,
        }
    });
    assert_eq!(
        get(&format!("{door}/livez")).map_err(|e| e.0).err().unwrap_or(200),
        200,
        "alive all the same"
    );
}

fn cluster_leader(door: &str) -> Option<String> {
    let cluster = get(&format!("{door}/admin/v1/cluster")).ok()?;
    cluster["leader"].as_str().map(str::to_owned)
}

#[test]
fn a_killed_coordinator_catches_up() {
    let cluster = Cluster::start(Options::new(1, 3));
    let leader = cluster.leader();
    let follower = cluster.role("coordinator").into_iter().find(|c| c.id != leader.id).expect("a follower");
    signal(follower.pid, "-9");
    // Something it has to catch up on: the only worker is replaced, the epoch grows.
    let before = epoch(&cluster.http);
    signal(cluster.role("worker")[0].pid, "-9");
    let door = follower.http.clone().expect("a door");
    wait_for("the follower to know the new epoch", || {
        let now = epoch(&door);
        now > before && now == epoch(leader.http.as_deref().unwrap_or_default())
    });
    wait_for("the follower to be a follower again", || {
        state_of(leader.http.as_deref().unwrap_or_default(), &follower.id).as_deref() == Some("follower")
    });
}

#[test]
fn all_killed_and_restarted_keep_plan_models_and_members() {
    let cluster = Cluster::start(Options::new(2, 3));
    let expected = ask(&cluster.http, &question(), |_| {}).expect("undisturbed").answer;
    let before = epoch(&cluster.http);
    let model = models(&cluster.http).expect("a model");
    let old = cluster.role("coordinator");
    for coordinator in &old {
        signal(coordinator.pid, "-9");
    }
    wait_for("three new processes", || {
        let now = cluster.role("coordinator");
        now.iter().zip(&old).all(|(new, old)| new.pid != old.pid)
    });
    let door = &cluster.http;
    wait_for("a leader", || cluster_leader(door).is_some());
    cluster.wait_ready(door);
    assert!(epoch(door) >= before, "the epoch never goes back: {} after {before}", epoch(door));
    assert_eq!(models(door), Some(model));
    let cluster_now = cluster.admin("cluster");
    assert_eq!(cluster_now["coordinators"].as_array().map(Vec::len), Some(3), "{cluster_now}");
    assert_eq!(cluster.admin("workers").as_array().map(Vec::len), Some(2));
    assert_eq!(expected, ask(door, &question(), |_| {}).expect("after all").answer);
}

#[test]
fn status_and_admin_answer_as_promised() {
    let cluster = Cluster::start(Options::new(2, 1));
    let plan = cluster.admin("plan");
    assert_eq!(plan["models"][0]["layers"], 30, "{plan}");
    let pipeline = &plan["models"][0]["pipelines"][0];
    let stages = pipeline["stages"].as_array().expect("stages");
    assert_eq!(stages.len(), 2);
    assert_eq!(stages[0]["layers"][0], 0);
    assert_eq!(stages[0]["layers"][1], stages[1]["layers"][0]);
    assert_eq!(stages[1]["layers"][1], 30);
    assert!(stages.iter().all(|stage| stage["state"] == "ready"), "{plan}");
    assert!(pipeline["predicted_tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
    let workers = cluster.admin("workers");
    for worker in workers.as_array().expect("workers") {
        assert!(worker["ms_per_layer"]["decode"].as_f64().is_some_and(|ms| ms > 0.0), "{worker}");
        assert!(worker["memory_bytes"]["total"].as_u64().is_some_and(|bytes| bytes > 0));
        assert_eq!(worker["device"], "cpu");
    }
    let dry = post(&format!("{}/admin/v1/plan/rebalance", cluster.http), b"{\"dry_run\":true}");
    assert_eq!(dry.expect("an answer").0, 200);
    assert_eq!(cluster.admin("plan")["epoch"], plan["epoch"], "a dry run changes nothing");

    let status = std::process::Command::new(env!("CARGO_BIN_EXE_caravan"))
        .args(["status", "--json", "--http", &cluster.http])
        .output()
        .expect("caravan status runs");
    assert!(status.status.success());
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert!(status.to_string().contains("\"leader\""), "{status}");
    let metrics = ureq::get(format!("{}/metrics", cluster.http)).call().expect("metrics");
    let text = metrics.into_body().read_to_string().expect("text");
    assert!(text.contains("# TYPE"), "{text}");
}

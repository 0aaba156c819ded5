//! Asks a coordinator whether the cluster can answer, until it can.
//!
//! Must never say ready by itself: `/readyz` does, after a token went through every stage; and must
//! not believe it of processes that are gone. A coordinator that starts again remembers the plan of
//! the workers before these, and that it was ready.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::watch;

use crate::client::Client;

const ASK_EVERY: Duration = Duration::from_millis(50);
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// How long a cluster that answers already may wait for its last worker to join.
const LATE_WORKERS: Duration = Duration::from_secs(3);

/// What the cluster last said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readiness {
    pub ready: bool,
    /// What it is busy with.
    pub detail: String,
}

impl Readiness {
    fn not_yet(detail: impl Into<String>) -> Readiness {
        Readiness { ready: false, detail: detail.into() }
    }
}

/// Asks `http` from a thread of its own, until it is ready or nobody listens. `workers` are about to
/// be started: only they count, and a cluster that would make a new plan in a moment for the last of
/// them is not called ready yet.
pub fn poll(http: &str, workers: usize) -> watch::Receiver<Readiness> {
    let (tell, told) = watch::channel(Readiness::default());
    let client = Client::with_timeout(http, ANSWER_WAIT);
    let since_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    std::thread::spawn(move || {
        let mut answers_since = None;
        while !tell.is_closed() {
            let now = match look(&client, u64::try_from(since_ms).unwrap_or(0)) {
                Ok(seen) => judge(&seen, workers, &mut answers_since),
                Err(_) => Readiness::not_yet("the coordinator is starting"),
            };
            let done = now.ready;
            tell.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
            if done {
                return;
            }
            std::thread::sleep(ASK_EVERY);
        }
    });
    told
}

/// What one look at the cluster found.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    /// A pipeline of workers that joined since is ready.
    answers: bool,
    /// Workers that joined since and may hold slices.
    active: usize,
    detail: String,
}

fn look(client: &Client, since_ms: u64) -> anyhow::Result<Seen> {
    let (status, body) = client.get("/readyz")?;
    let detail = body.get("detail").and_then(Value::as_str).unwrap_or("not ready yet").to_owned();
    if status != 200 {
        return Ok(Seen { detail, ..Seen::default() });
    }
    // This coordinator's own view, workers first: a worker that joins makes the pipelines of its
    // former life unready in the same step, so the plan that is read later can't be an old one.
    let workers = client.ask("/admin/v1/workers?stale=true")?;
    let plan = client.ask("/admin/v1/plan?stale=true")?;
    Ok(read(&workers, &plan, since_ms, detail))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn read(workers: &Value, plan: &Value, since_ms: u64, detail: String) -> Seen {
    let mut here = BTreeSet::new();
    let mut active = 0;
    for worker in items(workers) {
        let state = worker["state"].as_str().unwrap_or_default();
        if worker["since_ms"].as_u64().is_some_and(|at| at >= since_ms) && state != "lost" {
            here.extend(worker["id"].as_str());
            active += usize::from(state == "active");
        }
    }
    let mut pipelines = items(&plan["models"]).flat_map(|model| items(&model["pipelines"]));
    let answers = pipelines.any(|pipeline| {
        let mut stages = items(&pipeline["stages"]).map(|stage| stage["worker"].as_str());
        pipeline["ready"] == true && stages.all(|id| id.is_some_and(|id| here.contains(id)))
    });
    Seen { answers, active, detail }
}

/// `answers_since`: since when the cluster has been able to answer.
fn judge(seen: &Seen, workers: usize, answers_since: &mut Option<Instant>) -> Readiness {
    if !seen.answers {
        *answers_since = None;
        return Readiness::not_yet(seen.detail.clone());
    }
    let since = *answers_since.get_or_insert_with(Instant::now);
    if seen.active < workers && since.elapsed() < LATE_WORKERS {
        return Readiness::not_yet(format!("{} of {workers} workers are active", seen.active));
    }
    Readiness { ready: true, detail: seen.detail.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workers(joined: [u64; 2], state: &str) -> Value {
        json!([{"id": "w1", "state": "active", "since_ms": joined[0]},
               {"id": "w2", "state": state, "since_ms": joined[1]}])
    }

    fn plan(ready: bool) -> Value {
        let stages = json!([{"worker": "w1"}, {"worker": "w2"}]);
        json!({"models": [{"pipelines": [{"ready": ready, "stages": stages}]}]})
    }

    fn answers(workers: &Value, plan: &Value) -> (bool, usize) {
        let seen = read(workers, plan, 100, String::new());
        (seen.answers, seen.active)
    }

    #[test]
    fn a_plan_of_workers_that_are_gone_is_not_believed() {
        assert_eq!(answers(&workers([100, 101], "active"), &plan(true)), (true, 2));
        assert_eq!(answers(&workers([100, 99], "active"), &plan(true)), (false, 1));
        assert_eq!(answers(&workers([100, 101], "lost"), &plan(true)), (false, 1));
        assert_eq!(answers(&workers([100, 101], "joining"), &plan(false)), (false, 1));
        assert_eq!(answers(&json!([]), &plan(true)), (false, 0));
        assert_eq!(answers(&json!(null), &json!("x")), (false, 0));
    }

    #[test]
    fn the_last_worker_is_waited_for_but_not_for_ever() {
        let seen = |active| Seen { answers: true, active, detail: String::new() };
        assert!(judge(&seen(2), 2, &mut None).ready);
        let mut since = None;
        assert!(!judge(&seen(1), 2, &mut since).ready);
        assert!(since.is_some());
        assert!(!judge(&Seen::default(), 0, &mut since).ready);
        assert!(since.is_none(), "patience begins again");
        let mut long_ago = Instant::now().checked_sub(LATE_WORKERS);
        assert!(long_ago.is_none() || judge(&seen(1), 2, &mut long_ago).ready);
    }
}

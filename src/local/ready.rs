//! Asks a coordinator whether the cluster can answer, until it can.
//!
//! Must never say ready by itself: `/readyz` does, after a token went through every stage.

use std::time::{Duration, Instant};

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

/// Asks `http` from a thread of its own, until it is ready or nobody listens. `workers` is how many
/// of them were started: a cluster that would make a new plan in a moment is not called ready yet.
pub fn poll(http: &str, workers: usize) -> watch::Receiver<Readiness> {
    let (tell, told) = watch::channel(Readiness::default());
    let client = Client::with_timeout(http, ANSWER_WAIT);
    std::thread::spawn(move || {
        let mut first_yes = None;
        while !tell.is_closed() {
            let now = match client.get("/readyz") {
                Ok((status, body)) => {
                    let yes = (status == 200).then(|| *first_yes.get_or_insert_with(Instant::now));
                    if yes.is_none() {
                        first_yes = None;
                    }
                    read(yes.map(|since| since.elapsed()), &body, workers)
                }
                Err(_) => Readiness { ready: false, detail: "the coordinator is starting".to_owned() },
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

/// `yes_for`: how long the answer has been 200.
fn read(yes_for: Option<Duration>, body: &Value, workers: usize) -> Readiness {
    let said = body.get("detail").and_then(Value::as_str).unwrap_or("not ready yet");
    let Some(yes_for) = yes_for else { return Readiness { ready: false, detail: said.to_owned() } };
    let known = body.get("workers").and_then(Value::as_array);
    let active = known.map_or(workers, |known| {
        known.iter().filter(|one| one.get("state").and_then(Value::as_str) == Some("active")).count()
    });
    if active < workers && yes_for < LATE_WORKERS {
        return Readiness { ready: false, detail: format!("{active} of {workers} workers are active") };
    }
    Readiness { ready: true, detail: said.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_needs_a_yes_and_every_worker_or_patience() {
        let body = json!({"detail": "x", "workers": [{"state": "active"}, {"state": "joining"}]});
        assert!(!read(None, &body, 1).ready);
        assert!(read(Some(Duration::ZERO), &body, 1).ready);
        assert!(!read(Some(Duration::ZERO), &body, 2).ready);
        assert!(read(Some(LATE_WORKERS), &body, 2).ready);
        assert!(read(Some(Duration::ZERO), &json!({}), 2).ready);
    }
}

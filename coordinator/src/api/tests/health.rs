//! Liveness, readiness with its phases, metrics, and requests of a cluster that is not ready.

use std::sync::Arc;
use std::time::Duration;

use caravan_core::cluster::{ClusterState, WorkerState};
use serde_json::json;

use super::fake::{Fake, speak, speaking};
use super::{chat, get, post};

#[tokio::test]
async fn ready_means_that_a_pipeline_answers() {
    let (_fake, router) = speaking("ok");
    assert_eq!(get(&router, "/livez").await.status, 200);
    let reply = get(&router, "/readyz").await;
    assert_eq!(reply.status, 200);
    let body = reply.json();
    assert_eq!(
        (&body["ready"], &body["epoch"], &body["models"]),
        (&json!(true), &json!(7), &json!(["tiny"]))
    );
}

/// Found with a data folder that was started a second time: the log remembered `ready`, and the
/// cluster said so before any of the new processes could answer.
#[tokio::test]
async fn a_remembered_ready_is_not_believed() {
    let fake = Arc::new(Fake::new(|record| speak(record, "ok")));
    let router = fake.router();
    assert_eq!(get(&router, "/readyz").await.status, 200);
    fake.serving.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(get(&router, "/readyz").await.status, 503, "this driver started again");
    // The same plan, driven by a coordinator that can't be reached.
    fake.edit(|state| state.plan.pipelines[0].driver = caravan_core::ids::CoordinatorId(3));
    assert_eq!(get(&router, "/readyz").await.status, 503, "that driver is away");
    fake.edit(|state| state.plan.pipelines[0].driver = caravan_core::ids::CoordinatorId(2));
    assert_eq!(get(&router, "/readyz").await.status, 200);
}

#[tokio::test]
async fn every_phase_has_its_name() {
    type Edit = fn(&mut ClusterState);
    let cases: [(&str, f64, Edit); 5] = [
        ("no_model", 0.0, |state| *state = ClusterState::default()),
        ("waiting_for_workers", 0.0, |state| {
            state.plan.pipelines.clear();
            state.workers.values_mut().for_each(|worker| worker.state = WorkerState::Lost);
        }),
        ("measuring", 0.0, |state| {
            state.plan.pipelines.clear();
            state.workers.values_mut().for_each(|worker| worker.state = WorkerState::Joining);
        }),
        ("planning", 0.0, |state| state.plan.pipelines.clear()),
        // One stage is half loaded, the other ready.
        ("loading", 0.875, |state| state.plan.pipelines[0].ready = false),
    ];
    for (phase, progress, edit) in cases {
        let (fake, router) = speaking("ok");
        fake.edit(edit);
        let reply = get(&router, "/readyz").await;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.headers["retry-after"], "1");
        let body = reply.json();
        assert_eq!((&body["phase"], &body["progress"]), (&json!(phase), &json!(progress)), "{body}");
        assert!(body["detail"].is_string() && body["workers"].is_array());
        assert_eq!(get(&router, "/livez").await.status, 200);
        assert!(get(&router, "/metrics").await.text.contains("caravan_ready 0"));
    }
    let fake = Arc::new(Fake::new(|record| speak(record, "ok")).following(None));
    assert_eq!(get(&fake.router(), "/readyz").await.json()["phase"], "no_leader");
}

#[tokio::test]
async fn a_cluster_that_was_never_ready_says_so_at_once() {
    let (fake, router) = speaking("ok");
    fake.edit(|state| {
        state.workers.clear();
        state.plan.pipelines.clear();
    });
    let begun = std::time::Instant::now();
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    assert!(begun.elapsed() < Duration::from_millis(150));
    assert_eq!(reply.status, 503);
    assert!(reply.headers.contains_key("retry-after"));
    let error = reply.json()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&json!("not_ready"), &json!("server_error")));
    assert!(error["message"].as_str().unwrap().contains("waiting_for_workers"));
    // A cluster that knows no model yet has not found the name wrong.
    fake.edit(|state| state.models.clear());
    assert_eq!(post(&router, "/v1/chat/completions", chat("hi", json!({}))).await.status, 503);
}

#[tokio::test]
async fn a_request_waits_through_a_recovery_for_a_while() {
    let (fake, router) = speaking("ok");
    fake.edit(|state| state.plan.pipelines[0].ready = false);
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    assert_eq!(reply.status, 503);
    assert!(reply.text.contains("loading"), "{}", reply.text);
    let later = fake.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        later.edit(|state| state.plan.pipelines[0].ready = true);
    });
    let reply = post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn metrics_count() {
    let (_fake, router) = speaking("hello");
    post(&router, "/v1/chat/completions", chat("hi", json!({}))).await;
    post(&router, "/v1/chat/completions", json!({})).await;
    get(&router, "/nothing/here?x=1").await;
    get(&router, "/metrics").await;
    let text = get(&router, "/metrics").await.text;
    for line in [
        "caravan_tokens_emitted_total 5",
        "caravan_prompt_tokens_total 5",
        "caravan_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "caravan_http_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1",
        "caravan_http_requests_total{route=\"other\",status=\"404\"} 1",
        "caravan_http_requests_total{route=\"/metrics\",status=\"200\"} 1",
        "caravan_http_in_flight 1",
        "caravan_requests_serving 0",
        "caravan_first_token_seconds_count 1",
        "caravan_epoch 7",
        "caravan_ready 1",
        "caravan_workers{state=\"active\"} 2",
        "caravan_consensus{what=\"term\"} 3",
        "caravan_consensus{what=\"leader\"} 1",
        "caravan_pipeline{pipeline=\"tiny/0\",what=\"running\"} 2",
        "caravan_pipeline{pipeline=\"tiny/0\",what=\"pages\"} 12",
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    }
}

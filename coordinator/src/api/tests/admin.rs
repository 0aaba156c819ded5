//! The admin API: exact shapes, forwarding to the leader, staleness, commands, events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use caravan_core::cluster::WorkerState;
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, WorkerId};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::fake::{Fake, speak, speaking};
use super::{Reply, get, post, send};
use crate::api::control;

fn worker_shape(name: &str, port: u16, slice: [u32; 2]) -> Value {
    json!({
        "id": name,
        "addr": format!("127.0.0.1:{port}"),
        "state": "active",
        "device": "cpu",
        "threads": 2,
        "memory_bytes": {"total": 1u64 << 30, "used": 1000},
        "slices": [{"model": "tiny", "layers": slice}],
        "ms_per_layer": {"decode": 0.5, "prefill": 0.125},
    })
}

/// Every field of `wanted` is in `found`, with its value; more fields are allowed.
fn assert_holds(found: &Value, wanted: &Value) {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            for (name, value) in wanted {
                assert_holds(found.get(name).unwrap_or_else(|| panic!("no {name} in {found:?}")), value);
            }
        }
        (Value::Array(found), Value::Array(wanted)) => {
            assert_eq!(found.len(), wanted.len());
            found.iter().zip(wanted).for_each(|(found, wanted)| assert_holds(found, wanted));
        }
        _ => assert_eq!(found, wanted),
    }
}

fn plan_shape() -> Value {
    json!({"epoch": 7, "models": [{"model": "tiny", "layers": 30, "pipelines": [{
        "id": "tiny/0",
        "driver": "1",
        "stages": [
            {"worker": "w1", "layers": [0, 14], "state": "ready"},
            {"worker": "w2", "layers": [14, 30], "state": "ready"},
        ],
        "predicted_tokens_per_s": 40.0,
        "measured_tokens_per_s": 33.5,
    }]}]})
}

#[tokio::test]
async fn cluster_workers_and_plan_have_the_shapes_of_the_contract() {
    let (_fake, router) = speaking("ok");
    let coordinator = |id: u64, state: &str| {
        json!({
            "id": id.to_string(),
            "http": format!("127.0.0.1:{}", 8000 + id),
            "grpc": format!("127.0.0.1:{}", 9000 + id),
            "state": state,
        })
    };
    let cluster = json!({"leader": "1", "term": 3, "epoch": 7, "coordinators": [
        coordinator(1, "leader"), coordinator(2, "follower"), coordinator(3, "down"),
    ]});
    assert_holds(&get(&router, "/admin/v1/cluster").await.json(), &cluster);
    let workers = json!([worker_shape("w1", 9101, [0, 14]), worker_shape("w2", 9102, [14, 30])]);
    assert_holds(&get(&router, "/admin/v1/workers").await.json(), &workers);
    assert_holds(&get(&router, "/admin/v1/plan").await.json(), &plan_shape());
    assert_eq!(get(&router, "/admin/v1/requests").await.json(), json!([]));
}

#[tokio::test]
async fn stages_show_what_their_workers_report() {
    let (fake, router) = speaking("ok");
    fake.edit(|state| state.plan.pipelines[0].ready = false);
    let plan = get(&router, "/admin/v1/plan").await.json();
    let stages = &plan["models"][0]["pipelines"][0]["stages"];
    assert_eq!((&stages[0]["state"], &stages[1]["state"]), (&json!("loading"), &json!("ready")));
    // Reports of another epoch say nothing about this one.
    fake.edit(|state| state.plan.epoch.0 = 8);
    let plan = get(&router, "/admin/v1/plan").await.json();
    assert_eq!(plan["models"][0]["pipelines"][0]["stages"][0]["state"], "unknown");
}

#[tokio::test]
async fn commands_are_carried_out() {
    let (fake, router) = speaking("ok");
    let reply = post(&router, "/admin/v1/plan/rebalance", json!({"dry_run": true})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let body = reply.json();
    assert_eq!(
        (&body["dry_run"], &body["changed"], &body["plan"]["epoch"]),
        (&json!(true), &json!(true), &json!(8))
    );
    assert_eq!(body["plan"]["models"][0]["pipelines"][0]["stages"].as_array().unwrap().len(), 1);
    assert_eq!(fake.state.borrow().plan.epoch.0, 7);

    let reply = send(&router, Request::post("/admin/v1/workers/w2/drain").body(Body::empty()).unwrap()).await;
    assert_eq!(reply.json(), json!({"worker": "w2", "state": "draining", "changed": true}));
    assert_eq!(fake.state.borrow().workers[&WorkerId("w2".into())].state, WorkerState::Draining);
    let reply = post(&router, "/admin/v1/workers/w9/drain", json!({})).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (404, &json!("worker_not_found")));

    let reply = post(&router, "/admin/v1/plan/rebalance", json!({"dry": true})).await;
    assert_eq!(reply.json()["error"]["code"], "unknown_parameter");
    let reply = post(&router, "/admin/v1/plan/rebalance", json!({"dry_run": "yes"})).await;
    assert_eq!(reply.json()["error"]["param"], "dry_run");
    assert_eq!(fake.state.borrow().plan.epoch.0, 7);
    post(&router, "/admin/v1/plan/rebalance", json!({})).await;
    assert_eq!(fake.state.borrow().plan.epoch.0, 8);
}

#[tokio::test]
async fn a_page_of_another_site_commands_nothing() {
    let (fake, router) = speaking("ok");
    let request = Request::post("/admin/v1/plan/rebalance").header("sec-fetch-site", "cross-site");
    let reply = send(&router, request.body(Body::empty()).unwrap()).await;
    assert_eq!(reply.status, 403);
    assert_eq!(fake.state.borrow().plan.epoch.0, 7);
}

/// A follower whose leader listens on a real port.
async fn pair() -> (Arc<Fake>, axum::Router) {
    let leader = Arc::new(Fake::new(|record| speak(record, "ok")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = control::service(leader.clone());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let follower = Arc::new(Fake::new(|record| speak(record, "ok")).following(Some(1)));
    follower.edit(|state| {
        state.coordinators.get_mut(&CoordinatorId(1)).unwrap().grpc = address.to_string();
        state.plan.epoch.0 = 6;
    });
    (leader, follower.router())
}

#[tokio::test]
async fn a_follower_asks_the_leader() {
    let (leader, router) = pair().await;
    let workers = json!([worker_shape("w1", 9101, [0, 14]), worker_shape("w2", 9102, [14, 30])]);
    assert_holds(&get(&router, "/admin/v1/workers").await.json(), &workers);
    assert_holds(&get(&router, "/admin/v1/plan").await.json(), &plan_shape());
    // Its own view, without the leader's reports.
    assert_eq!(get(&router, "/admin/v1/plan?stale=true").await.json()["epoch"], 6);
    let reply = post(&router, "/admin/v1/workers/w1/drain", json!({})).await;
    assert_eq!(reply.json()["state"], "draining");
    assert_eq!(leader.state.borrow().workers[&WorkerId("w1".into())].state, WorkerState::Draining);
    let reply = post(&router, "/admin/v1/plan/rebalance?dry_run=true", json!({})).await;
    assert_eq!((&reply.json()["dry_run"], leader.state.borrow().plan.epoch.0), (&json!(true), 7));
    let reply = post(&router, "/admin/v1/workers/w9/drain", json!({})).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (404, &json!("worker_not_found")));
    // The leader's refusals arrive with its words and its Retry-After.
    *leader.quorum.lock().unwrap() = Err(Refusal::cluster("no_quorum", 2_000, "alone"));
    let reply = get(&router, "/admin/v1/plan").await;
    assert_unavailable(&reply, "no_quorum");
    assert_eq!(reply.headers["retry-after"], "2");
}

fn assert_unavailable(reply: &Reply, code: &str) {
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert_eq!(reply.json()["error"]["code"], code);
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn without_a_leader_only_stale_reads_are_answered() {
    let follower = Arc::new(Fake::new(|record| speak(record, "ok")).following(None));
    let router = follower.router();
    for path in ["/admin/v1/workers", "/admin/v1/plan"] {
        assert_unavailable(&get(&router, path).await, "no_leader");
        assert_eq!(get(&router, &format!("{path}?stale=true")).await.status, 200);
    }
    assert_unavailable(&post(&router, "/admin/v1/plan/rebalance", json!({})).await, "no_leader");
    let cluster = get(&router, "/admin/v1/cluster").await.json();
    assert_eq!(cluster["leader"], Value::Null);
    // A leader nobody can connect to.
    let follower = Arc::new(Fake::new(|record| speak(record, "ok")).following(Some(1)));
    follower.edit(|state| state.coordinators.get_mut(&CoordinatorId(1)).unwrap().grpc = "127.0.0.1:1".into());
    assert_unavailable(&get(&follower.router(), "/admin/v1/plan").await, "leader_unreachable");
}

#[tokio::test]
async fn events_tell_what_changed() {
    let (fake, router) = speaking("ok");
    let request = Request::get("/admin/v1/events").body(Body::empty()).unwrap();
    let mut frames = router.clone().oneshot(request).await.unwrap().into_body().into_data_stream();
    let mut text = String::new();
    let mut wait_for = async |word: &str| {
        while !text.contains(word) {
            let frame = tokio::time::timeout(Duration::from_secs(5), frames.next()).await;
            let frame = frame.unwrap_or_else(|_| panic!("no {word} in {text}")).unwrap().unwrap();
            text.push_str(std::str::from_utf8(&frame).unwrap());
        }
        text.clone()
    };
    wait_for("event: pipeline_ready\n").await;
    fake.edit(|state| {
        state.workers.get_mut(&WorkerId("w2".into())).unwrap().state = WorkerState::Lost;
        state.plan.epoch.0 = 8;
        state.plan.pipelines.clear();
    });
    wait_for("event: worker_lost\n").await;
    let text = wait_for("\"epoch\":8").await;
    fake.status.send_replace(super::fake::status(1, None));
    wait_for("\"leader\":null").await;
    assert!(text.starts_with(": events\n\nid: 1\nevent: leader_changed\ndata: {\"id\":1,"), "{text}");

    // Another reader goes on behind what it has seen.
    let lost = text.split("\n\n").find(|frame| frame.contains("worker_lost")).unwrap();
    let id: u64 = lost.lines().next().unwrap().strip_prefix("id: ").unwrap().parse().unwrap();
    let request = Request::get("/admin/v1/events").header("last-event-id", id.to_string());
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut frames = response.into_body().into_data_stream();
    let _hello = frames.next().await;
    let frame = frames.next().await.unwrap().unwrap();
    assert!(std::str::from_utf8(&frame).unwrap().starts_with(&format!("id: {}\n", id + 1)));
}

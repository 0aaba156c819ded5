//! `/admin/v1/events`: what happened to the cluster, as server-sent events with ids.
//!
//! Must never slow the cluster down: events are derived by watching, kept in a ring, and a reader that
//! is too slow misses the oldest (it sees the gap in the ids).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use caravan_core::cluster::{ClusterState, WorkerState};
use caravan_core::limits;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::App;
use super::job::now_ms;
use super::stream::sse_response;
use crate::consensus::ConsensusStatus;

struct Event {
    id: u64,
    kind: &'static str,
    body: Value,
}

/// The last events, and a bell for those who wait for the next. Ids count from 1 in each process.
#[derive(Clone)]
pub struct Events {
    ring: Arc<Mutex<VecDeque<Event>>>,
    last: watch::Receiver<u64>,
}

impl Events {
    /// Starts the task that derives events; it ends with the two senders.
    pub fn watch(
        mut state: watch::Receiver<Arc<ClusterState>>,
        mut status: watch::Receiver<ConsensusStatus>,
    ) -> Events {
        let ring = Arc::new(Mutex::new(VecDeque::new()));
        let (bell, last) = watch::channel(0);
        let mut recorder = Recorder { ring: ring.clone(), bell };
        tokio::spawn(async move {
            let mut seen = Arc::new(ClusterState::default());
            let mut leader = None;
            loop {
                let now = status.borrow_and_update().clone();
                if now.leader != leader {
                    leader = now.leader;
                    let leader = leader.map(|leader| leader.to_string());
                    recorder.record("leader_changed", json!({"leader": leader, "term": now.term}));
                }
                let next = state.borrow_and_update().clone();
                differences(&seen, &next, &mut |kind, body| recorder.record(kind, body));
                seen = next;
                let alive = tokio::select! {
                    changed = state.changed() => changed.is_ok(),
                    changed = status.changed() => changed.is_ok(),
                };
                if !alive {
                    return;
                }
            }
        });
        Events { ring, last }
    }

    /// Frames of the events after `id`.
    fn after(&self, id: u64) -> (u64, Option<Bytes>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = ring.back().map_or(0, |event| event.id);
        // An id of another process's life: begin again.
        let id = if id > newest { 0 } else { id };
        let frames: String = ring.iter().filter(|event| event.id > id).map(Event::frame).collect();
        (newest, (!frames.is_empty()).then(|| Bytes::from(frames)))
    }
}

impl Event {
    fn frame(&self) -> String {
        format!("id: {}\nevent: {}\ndata: {}\n\n", self.id, self.kind, self.body)
    }
}

struct Recorder {
    ring: Arc<Mutex<VecDeque<Event>>>,
    bell: watch::Sender<u64>,
}

impl Recorder {
    fn record(&mut self, kind: &'static str, details: Value) {
        let id = *self.bell.borrow() + 1;
        let mut body = json!({"id": id, "kind": kind, "at_ms": now_ms()});
        if let (Some(body), Value::Object(details)) = (body.as_object_mut(), details) {
            body.extend(details);
        }
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            if ring.len() >= limits::EVENTS_KEPT {
                ring.pop_front();
            }
            ring.push_back(Event { id, kind, body });
        }
        self.bell.send_replace(id);
    }
}

/// Tells `record` what changed between two applied states.
fn differences(old: &ClusterState, new: &ClusterState, record: &mut dyn FnMut(&'static str, Value)) {
    for id in new.coordinators.keys().filter(|id| !old.coordinators.contains_key(id)) {
        record("coordinator_joined", json!({"coordinator": id.to_string()}));
    }
    for name in new.models.keys().filter(|name| !old.models.contains_key(*name)) {
        record("model_added", json!({"model": name}));
    }
    for (id, worker) in &new.workers {
        let before = old.workers.get(id);
        let lost = worker.state == WorkerState::Lost;
        let kind = match before {
            None if lost => continue,
            None => "worker_joined",
            Some(before) if before.state == WorkerState::Lost && !lost => "worker_joined",
            Some(before) if before.incarnation != worker.incarnation => "worker_restarted",
            Some(before) if before.state == worker.state => continue,
            Some(_) => match worker.state {
                WorkerState::Joining => "worker_joined",
                WorkerState::Active => "worker_active",
                WorkerState::Draining => "worker_draining",
                WorkerState::Lost => "worker_lost",
            },
        };
        record(kind, json!({"worker": id.0, "state": super::views::worker_state(worker.state)}));
    }
    for id in old.workers.keys().filter(|id| !new.workers.contains_key(id)) {
        record("worker_left", json!({"worker": id.0}));
    }
    if new.plan.epoch != old.plan.epoch {
        let pipelines: Vec<&str> = new.plan.pipelines.iter().map(|one| one.id.0.as_str()).collect();
        record("plan_committed", json!({"epoch": new.plan.epoch.0, "pipelines": pipelines}));
    }
    let same_epoch = new.plan.epoch == old.plan.epoch;
    for pipeline in new.plan.pipelines.iter().filter(|pipeline| pipeline.ready) {
        let was = same_epoch && old.plan.pipeline(&pipeline.id).is_some_and(|old| old.ready);
        if !was {
            record("pipeline_ready", json!({"epoch": new.plan.epoch.0, "pipeline": pipeline.id.0}));
        }
    }
}

/// The kept events after `Last-Event-ID` (all of them without it), then live ones.
pub async fn stream(State(app): State<Arc<App>>, request: Request) -> Response {
    let header = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let after: u64 = header.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let pause = Duration::from_millis(app.waits.keepalive_ms);
    let events = app.events.clone();
    // The first frame goes out at once, so that the reader knows that it is connected.
    let hello = Bytes::from_static(b": events\n\n");
    let state = (events, after, Some(hello));
    let frames = futures::stream::unfold(state, move |(mut events, mut after, hello)| async move {
        if let Some(hello) = hello {
            return Some((Ok::<Bytes, Infallible>(hello), (events, after, None)));
        }
        loop {
            events.last.borrow_and_update();
            let (newest, frames) = events.after(after);
            after = newest;
            if let Some(frames) = frames {
                return Some((Ok(frames), (events, after, None)));
            }
            match tokio::time::timeout(pause, events.last.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((Ok(Bytes::from_static(b": waiting\n\n")), (events, after, None))),
            }
        }
    });
    sse_response(Body::from_stream(frames))
}

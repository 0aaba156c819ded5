//! Measurements of a worker for one model; they make a joining worker active.
//!
//! Must never let a number in that is not finite: states of two coordinators are compared.

use std::collections::BTreeMap;

use super::*;
use crate::ids::WorkerId;

pub(super) fn apply(
    state: &mut ClusterState,
    id: &WorkerId,
    incarnation: u64,
    model: &str,
    (time, links): (&LayerTime, &BTreeMap<WorkerId, LinkTime>),
) -> Outcome {
    let times = [time.decode_ms, time.prefill_short_ms, time.prefill_long_ms, time.head_ms];
    let rates = links.values().flat_map(|link| [link.latency_ms, link.bytes_per_s]);
    if times.into_iter().chain(rates).any(|number| !number.is_finite() || number < 0.0) {
        return Outcome::Refused(format!("worker {id} measured a time that is not a positive number"));
    }
    if !state.models.contains_key(model) {
        return Outcome::Refused(format!("worker {id} measured {model:?}, which is not in the catalogue"));
    }
    let known: BTreeMap<WorkerId, LinkTime> = links
        .iter()
        .filter(|(peer, _)| *peer != id && state.workers.contains_key(*peer))
        .map(|(peer, link)| (peer.clone(), *link))
        .collect();
    let Some(worker) = state.workers.get_mut(id) else {
        return Outcome::Refused(format!("worker {id} is not known; it has to join first"));
    };
    if worker.incarnation != incarnation || worker.state == WorkerState::Lost {
        return Outcome::Unchanged;
    }
    let before = worker.clone();
    worker.layer_times.insert(model.to_owned(), *time);
    worker.links.extend(known);
    if worker.state == WorkerState::Joining {
        worker.state = WorkerState::Active;
    }
    if *worker == before { Outcome::Unchanged } else { Outcome::Done }
}

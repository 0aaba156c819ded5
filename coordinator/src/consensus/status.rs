//! Who leads and who is there, for the rest of the coordinator.
//!
//! Must never call this coordinator the leader while its majority has not answered for longer than
//! an election takes: another one may lead by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use openraft::ServerState;
use tokio::sync::watch;

use super::network::Peers;
use super::types::{NodeId, RaftMetrics};
use super::{ConsensusStatus, Role};

/// Publishes the status until consensus stops.
pub(super) async fn run(
    mut metrics: watch::Receiver<RaftMetrics>,
    peers: Arc<Peers>,
    status: watch::Sender<ConsensusStatus>,
) {
    let mut tick = tokio::time::interval(Duration::from_millis(limits::RAFT_HEARTBEAT_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = Instant::now();
    loop {
        let stopped = tokio::select! {
            changed = metrics.changed() => {
                reported = Instant::now();
                changed.is_err()
            }
            _ = tick.tick() => false,
        };
        let now = read(&metrics.borrow_and_update(), &peers, reported.elapsed());
        status.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        if stopped {
            return;
        }
    }
}

/// `age`: how long ago the library reported these metrics.
pub(super) fn read(metrics: &RaftMetrics, peers: &Peers, age: Duration) -> ConsensusStatus {
    let role = role(metrics, age);
    let me = metrics.id;
    let running = metrics.running_state.is_ok();
    // A leader without its majority does not know who leads.
    let leader = metrics.current_leader.filter(|id| running && (*id != me || role == Role::Leader));
    let within = Duration::from_millis(limits::RAFT_DOWN_MS);
    let members: BTreeMap<CoordinatorId, bool> =
        member_ids(metrics).map(|id| (CoordinatorId(id), peers.reachable(id, within))).collect();
    ConsensusStatus {
        me: CoordinatorId(me),
        role,
        leader: leader.map(CoordinatorId),
        term: metrics.current_term,
        applied: metrics.last_applied.map_or(0, |id| id.index),
        members,
    }
}

fn role(metrics: &RaftMetrics, age: Duration) -> Role {
    match metrics.state {
        ServerState::Leader => {
            let limit = Duration::from_millis(limits::RAFT_ELECTION_MAX_MS);
            let acknowledged = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            match acknowledged {
                Some(since) if since + age <= limit => Role::Leader,
                _ => Role::Candidate,
            }
        }
        ServerState::Candidate => Role::Candidate,
        ServerState::Follower | ServerState::Shutdown => Role::Follower,
        ServerState::Learner => Role::Learner,
    }
}

pub(super) fn member_ids(metrics: &RaftMetrics) -> impl Iterator<Item = NodeId> + '_ {
    metrics.membership_config.nodes().map(|(id, _)| *id)
}

/// Asks the members that have been silent whether they are there. Only the leader hears from
/// everybody by itself; any answer counts, "I don't lead" too.
pub(super) async fn probe(metrics: watch::Receiver<RaftMetrics>, peers: Arc<Peers>) {
    let pause = Duration::from_millis(limits::RAFT_PROBE_MS);
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while metrics.has_changed().is_ok() {
        tick.tick().await;
        let silent: Vec<(NodeId, String)> = metrics
            .borrow()
            .membership_config
            .nodes()
            .filter(|(id, _)| !peers.reachable(**id, pause))
            .map(|(id, node)| (*id, node.addr.clone()))
            .collect();
        let asked = silent.iter().map(|(id, addr)| peers.read_index(*id, addr));
        let _ = tokio::time::timeout(pause, futures::future::join_all(asked)).await;
    }
}

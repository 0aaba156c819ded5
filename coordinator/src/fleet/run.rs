//! The shell around the machine: feeds it events, carries out its actions.
//!
//! Must never decide anything: what is not in an action does not happen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use caravan_core::cluster::Command;
use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_proto::wire;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::Status;

use super::Shared;
use super::machine::{Action, Connection, Event, Ticket};
use crate::consensus::Role;

/// A worker's stream, as the shell holds it. Dropping it ends both directions.
pub(super) struct Link {
    pub directives: mpsc::Sender<Result<wire::Directive, Status>>,
    /// Its other end stops the task that reads reports.
    pub _reader: oneshot::Sender<()>,
}

#[derive(Default)]
pub(super) struct Links {
    next: Connection,
    open: BTreeMap<Connection, Link>,
}

impl Links {
    /// Numbers a new stream; `None` if there are too many.
    pub fn add(&mut self, link: Link) -> Option<Connection> {
        if self.open.len() >= limits::FLEET_CONNECTIONS {
            return None;
        }
        self.next += 1;
        self.open.insert(self.next, link);
        Some(self.next)
    }

    pub fn remove(&mut self, connection: Connection) {
        self.open.remove(&connection);
    }
}

/// The loop of one coordinator, for as long as its consensus node lives.
pub(super) async fn run(shared: Arc<Shared>, events: mpsc::Sender<Event>, mut inbox: mpsc::Receiver<Event>) {
    let mut state = shared.consensus.state();
    let mut status = shared.consensus.status();
    let mut tick = interval(Duration::from_millis(limits::FLEET_TICK_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut term = None;
    let mut catching_up = None;
    status.mark_changed();
    state.mark_changed();
    loop {
        let event = tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => event,
                None => return,
            },
            () = caught_up(&mut catching_up) => {
                // What was committed before this coordinator led is applied: let the machine see it first.
                let applied = state.borrow_and_update().clone();
                feed(&shared, &events, Event::State(applied));
                Event::Leading(true)
            }
            changed = state.changed() => match changed {
                Ok(()) => Event::State(state.borrow_and_update().clone()),
                Err(_) => return,
            },
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                let (role, now) = { let status = status.borrow_and_update(); (status.role, status.term) };
                let led = (role == Role::Leader).then_some(now);
                if led == term {
                    continue;
                }
                term = led;
                if let Some(task) = catching_up.take() {
                    task.abort();
                }
                if led.is_some() {
                    catching_up = Some(tokio::spawn(catch_up(Arc::clone(&shared))));
                }
                // A new term begins anew even if this coordinator led the one before.
                Event::Leading(false)
            },
            _ = tick.tick() => Event::Tick,
        };
        feed(&shared, &events, event);
    }
}

fn feed(shared: &Arc<Shared>, events: &mpsc::Sender<Event>, event: Event) {
    let stopped = matches!(event, Event::Leading(false));
    let (actions, leads) = {
        let mut machine = shared.machine();
        let actions = machine.handle(shared.now(), event);
        (actions, machine.leads())
    };
    act(shared, events, actions);
    shared.leading.send_if_modified(|leading| std::mem::replace(leading, leads) != leads);
    if stopped {
        // Streams that have not said hello yet included.
        shared.links().open.clear();
    }
}

/// Waits until this coordinator has applied what was committed before it led. Without a quorum that
/// fails for as long as there is none; the role changes when another leads.
async fn catch_up(shared: Arc<Shared>) {
    while shared.consensus.linearize().await.is_err() {
        sleep(Duration::from_millis(limits::RAFT_HEARTBEAT_MS)).await;
    }
}

/// Ends when the present catching up does, once; never if there is none.
async fn caught_up(task: &mut Option<JoinHandle<()>>) {
    let Some(handle) = task else { return std::future::pending().await };
    let ended = handle.await;
    *task = None;
    if ended.is_err() {
        std::future::pending().await
    }
}

/// Carries out what the machine asked for. Never waits.
pub(super) fn act(shared: &Arc<Shared>, events: &mpsc::Sender<Event>, actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::Propose { ticket, command } => {
                tokio::spawn(propose(Arc::clone(shared), events.clone(), ticket, command));
            }
            Action::Send { connection, directive } => {
                let mut links = shared.links();
                let full = links.open.get(&connection).is_some_and(|link| {
                    link.directives.try_send(Ok(wire::Directive { directive: Some(directive) })).is_err()
                });
                if full {
                    tracing::warn!("a worker does not read what it is told; its stream is closed");
                    links.remove(connection);
                }
            }
            Action::Close { connection } => shared.links().remove(connection),
        }
    }
}

async fn propose(shared: Arc<Shared>, events: mpsc::Sender<Event>, ticket: Ticket, command: Command) {
    let limit = Duration::from_millis(limits::PROPOSE_MS + limits::CONNECT_MS);
    let result = timeout(limit, shared.consensus.propose(command)).await.unwrap_or_else(|_| {
        Err(Refusal::cluster("propose_timeout", limits::PROPOSE_AGAIN_MS, "no answer from the log in time"))
    });
    // The receiver is gone only when the process ends.
    let _ = events.send(Event::Proposed { ticket, result }).await;
}

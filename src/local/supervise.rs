//! Keeps the processes of a local cluster alive, keeps their list, and stops them at the end.
//!
//! Must never touch a process that it did not start.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::backoff::Backoff;
use super::child::{ProcessSpec, Running};
use super::files::{ProcessEntry, Processes, tail, write_atomic};
use super::ready::Readiness;
use crate::term::{Bar, Term};

/// A process that dies this often before the cluster was ever ready will not come up.
const QUICK_DEATHS: u32 = 5;
const TAIL_LINES: usize = 12;

/// What to run and how.
pub struct Supervision {
    pub processes: Vec<ProcessSpec>,
    /// Address that clients use.
    pub http: String,
    /// Where the list of processes is written.
    pub list: PathBuf,
    pub restart: bool,
    pub ready_wait: Duration,
    pub term: Term,
}

enum State {
    Running {
        since: Instant,
    },
    Waiting {
        until: Instant,
    },
    /// Not to be started again.
    Dead,
}

struct Slot {
    spec: ProcessSpec,
    backoff: Backoff,
    state: State,
    /// The last process, until another takes its place.
    pid: Option<u32>,
}

struct Exit {
    index: usize,
    how: String,
}

struct Supervisor {
    slots: Vec<Slot>,
    setup: Supervision,
    was_ready: bool,
    stop: watch::Sender<bool>,
    exit: mpsc::Sender<Exit>,
}

/// Runs the processes until `asked` resolves (with who asked), then stops them. `on_ready` is called
/// once, when the cluster can answer. Fails if a process can't be brought up.
pub async fn supervise(
    setup: Supervision,
    ready: watch::Receiver<Readiness>,
    asked: impl Future<Output = &'static str>,
    on_ready: impl FnOnce(),
) -> anyhow::Result<()> {
    // Each process has at most one exit on its way.
    let (exit, mut exits) = mpsc::channel(setup.processes.len().max(1));
    let slots = setup.processes.iter().map(|spec| Slot {
        spec: spec.clone(),
        backoff: Backoff::default(),
        state: State::Waiting { until: Instant::now() },
        pid: None,
    });
    let mut supervisor =
        Supervisor { slots: slots.collect(), setup, was_ready: false, stop: watch::channel(false).0, exit };
    let result = supervisor.watch(&mut exits, ready, asked, on_ready).await;
    supervisor.stop_all(&mut exits).await;
    result
}

impl Supervisor {
    async fn watch(
        &mut self,
        exits: &mut mpsc::Receiver<Exit>,
        mut ready: watch::Receiver<Readiness>,
        asked: impl Future<Output = &'static str>,
        on_ready: impl FnOnce(),
    ) -> anyhow::Result<()> {
        tokio::pin!(asked);
        let mut on_ready = Some(on_ready);
        let mut bar: Option<Bar> = Some(self.setup.term.waiting("starting"));
        let give_up = Instant::now() + self.setup.ready_wait;
        self.start_due()?;
        loop {
            let next_start = self.next_start();
            tokio::select! {
                name = &mut asked => {
                    self.setup.term.line(&format!("{name}: stopping the cluster"));
                    return Ok(());
                }
                Some(exit) = exits.recv() => self.exited(&exit)?,
                () = sleep_until(next_start.unwrap_or(give_up)), if next_start.is_some() => self.start_due()?,
                Ok(()) = ready.changed(), if !self.was_ready => {
                    let now = ready.borrow_and_update().clone();
                    if let Some(bar) = &bar {
                        bar.say(&now.detail);
                    }
                    if now.ready {
                        self.was_ready = true;
                        if let Some(bar) = bar.take() {
                            bar.done();
                        }
                        if let Some(call) = on_ready.take() {
                            call();
                        }
                    }
                }
                () = sleep_until(give_up), if !self.was_ready => bail!(
                    "the cluster can't answer after {} s (last: {}); its logs are in {}",
                    self.setup.ready_wait.as_secs(),
                    ready.borrow().detail,
                    self.log_folder()
                ),
            }
        }
    }

    fn log_folder(&self) -> String {
        let folder = self.slots.first().and_then(|slot| slot.spec.log.parent());
        folder.map(|folder| folder.display().to_string()).unwrap_or_default()
    }

    /// When the next process that waits is due.
    fn next_start(&self) -> Option<Instant> {
        let waiting = self.slots.iter().filter_map(|slot| match slot.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } | State::Dead => None,
        });
        waiting.min()
    }

    /// Starts every process whose wait is over, and renews the list.
    fn start_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if !matches!(slot.state, State::Waiting { until } if until <= now) {
                continue;
            }
            match slot.spec.start() {
                Ok(running) => {
                    slot.state = State::Running { since: Instant::now() };
                    slot.pid = Some(running.pid);
                    if slot.backoff.quick_deaths() > 0 {
                        let line = format!("{} runs again, as process {}", slot.spec.title(), running.pid);
                        self.setup.term.line(&line);
                    }
                    self.await_end(index, running);
                }
                Err(error) => self.died(index, Duration::ZERO, &format!("did not start: {error:#}"))?,
            }
        }
        self.publish()
    }

    /// Waits for a process in a task of its own.
    fn await_end(&self, index: usize, running: Running) {
        let (stop, exit) = (self.stop.subscribe(), self.exit.clone());
        tokio::spawn(async move {
            let how = match running.ended(stop).await {
                Ok(status) => how(status),
                Err(error) => format!("can't be waited for: {error}"),
            };
            // Nobody listens any more when `up` itself ends; then it does not matter.
            let _ = exit.send(Exit { index, how }).await;
        });
    }

    fn exited(&mut self, exit: &Exit) -> anyhow::Result<()> {
        let lived = match self.slots[exit.index].state {
            State::Running { since } => since.elapsed(),
            State::Waiting { .. } | State::Dead => Duration::ZERO,
        };
        self.died(exit.index, lived, &exit.how)
    }

    /// Decides what happens after a death.
    fn died(&mut self, index: usize, lived: Duration, how: &str) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        let title = slot.spec.title();
        let wait = slot.backoff.died(lived);
        if !self.was_ready && slot.backoff.quick_deaths() >= QUICK_DEATHS {
            slot.state = State::Dead;
            bail!(
                "{title} {how}, {QUICK_DEATHS} times in a row, and the cluster can't start without it; the end of \
                 its log {}:\n{}",
                slot.spec.log.display(),
                tail(&slot.spec.log, TAIL_LINES)
            );
        }
        if !self.setup.restart {
            (slot.state, slot.pid) = (State::Dead, None);
            self.setup.term.line(&format!("{title} {how}"));
            return self.publish();
        }
        slot.state = State::Waiting { until: Instant::now() + wait };
        let log = slot.spec.log.display();
        self.setup
            .term
            .line(&format!("{title} {how}; starting it again in {} ms (log: {log})", wait.as_millis()));
        Ok(())
    }

    /// Writes the list of processes. One that is being replaced stays in it until it is.
    fn publish(&self) -> anyhow::Result<()> {
        let processes = self.slots.iter().filter_map(|slot| {
            Some(ProcessEntry {
                role: slot.spec.role,
                id: slot.spec.id.clone(),
                pid: slot.pid?,
                http: slot.spec.http.clone(),
                grpc: slot.spec.grpc.clone(),
            })
        });
        let list = Processes { http: self.setup.http.clone(), processes: processes.collect() };
        write_atomic(&self.setup.list, &serde_json::to_vec_pretty(&list)?)
    }

    /// Asks all to stop and waits for each; a child that does not is killed (see `child`).
    async fn stop_all(&mut self, exits: &mut mpsc::Receiver<Exit>) {
        self.stop.send_replace(true);
        while self.slots.iter().any(|slot| matches!(slot.state, State::Running { .. })) {
            let Some(exit) = exits.recv().await else { break };
            self.slots[exit.index].state = State::Dead;
        }
        if let Err(error) = std::fs::remove_file(&self.setup.list) {
            tracing::warn!(list = %self.setup.list.display(), "can't remove the list of processes: {error}");
        }
    }
}

/// `exited with code 1`, `was killed by signal 9`
fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended ({status})"),
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;

//! What this worker is to be in the newest epoch it knows: its stages, how far each of them is, and
//! what was refused because it came from an older epoch.
//!
//! Must never open a connection or compute: others act, this file says what is current.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use caravan_proto::wire;
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// What leaves a stage: a step for the next stage, or a result for the driver.
#[derive(Clone, Debug, PartialEq)]
pub enum OutFrame {
    Step(wire::Step),
    Result(wire::StepResult),
}

/// How far a stage is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Share of the missing bytes that are here, 0 to 1.
    Fetching(f64),
    /// Share of the tensors that are loaded, 0 to 1.
    Loading(f64),
    Connecting,
    Ready,
}

/// Why a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A newer epoch took its place.
    Overtaken,
    /// This worker can't hold the slice (bad tensor, too little memory): the same assignment fails again.
    Unfit,
    /// An edge broke, a step was bad or the worker is leaving: the next epoch may work.
    Broken,
}

#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub cause: Cause,
    pub why: String,
}

impl End {
    /// What the stage before is told when its edge ends.
    pub fn status(&self) -> Status {
        match self.cause {
            Cause::Overtaken => Status::failed_precondition(self.why.clone()),
            Cause::Unfit | Cause::Broken => Status::aborted(self.why.clone()),
        }
    }
}

#[derive(Clone, Debug)]
struct Progress {
    phase: Phase,
    end: Option<End>,
}

/// One stage of one epoch at this worker.
#[derive(Debug)]
pub struct StageCell {
    /// Unique in this process.
    pub id: u64,
    pub epoch: u64,
    pub pipeline: String,
    pub stage: u32,
    progress: watch::Sender<Progress>,
    /// An incoming edge is there.
    claimed: AtomicBool,
    /// To the outgoing edge; present while the stage is ready.
    out: Mutex<Option<mpsc::Sender<OutFrame>>>,
}

impl StageCell {
    /// A stage that has just been assigned.
    pub fn new(epoch: u64, pipeline: &str, stage: u32) -> StageCell {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let progress = Progress { phase: Phase::Fetching(0.0), end: None };
        StageCell {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            epoch,
            pipeline: pipeline.to_owned(),
            stage,
            progress: watch::Sender::new(progress),
            claimed: AtomicBool::new(false),
            out: Mutex::new(None),
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    /// The outgoing edge is accepted: frames may go.
    pub fn make_ready(&self, out: mpsc::Sender<OutFrame>) {
        *self.out.lock().unwrap_or_else(PoisonError::into_inner) = Some(out);
        self.set_phase(Phase::Ready);
        if self.end().is_some() {
            self.close_out();
        }
    }

    /// The outgoing edge, if the stage is ready.
    pub fn out(&self) -> Option<mpsc::Sender<OutFrame>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close_out(&self) {
        *self.out.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends the stage for good; the first reason given stays. Whoever waits on it is released.
    pub fn finish(&self, cause: Cause, why: impl Into<String>) {
        let why = why.into();
        let first = self.progress.send_if_modified(|progress| {
            let first = progress.end.is_none();
            if first {
                progress.end = Some(End { cause, why: why.clone() });
            }
            first
        });
        self.close_out();
        if first && cause != Cause::Overtaken {
            tracing::warn!(
                epoch = self.epoch,
                pipeline = self.pipeline,
                stage = self.stage,
                why,
                "stage ended"
            );
        }
    }

    pub fn end(&self) -> Option<End> {
        self.progress.borrow().end.clone()
    }

    /// Resolves when the stage has ended.
    pub fn ended(&self) -> impl Future<Output = End> + Send + 'static {
        let mut progress = self.progress.subscribe();
        async move {
            let gone = End { cause: Cause::Broken, why: "the worker is stopping".to_owned() };
            match progress.wait_for(|progress| progress.end.is_some()).await {
                Ok(progress) => progress.end.clone().unwrap_or(gone),
                Err(_) => gone,
            }
        }
    }

    /// Resolves when the stage is ready, with its outgoing edge, or has ended.
    pub async fn ready(&self) -> Result<mpsc::Sender<OutFrame>, End> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|p| p.end.is_some() || p.phase == Phase::Ready).await;
        drop(reached);
        match (self.end(), self.out()) {
            (None, Some(out)) => Ok(out),
            (Some(end), _) => Err(end),
            (None, None) => Err(End { cause: Cause::Broken, why: "the worker is stopping".to_owned() }),
        }
    }

    /// Takes the one place for an incoming edge; `None` if it is taken.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let free = !self.claimed.swap(true, Ordering::AcqRel);
        free.then(|| Claim { cell: self.clone(), established: false })
    }

    /// For the heartbeat. `failed` is a slice that this worker can't hold; a stage whose edges
    /// broke says `connecting` with the reason until the next epoch.
    pub fn status(&self) -> wire::StageStatus {
        let progress = self.progress.borrow().clone();
        let (state, share) = match (&progress.end, &progress.phase) {
            (Some(End { cause: Cause::Unfit, .. }), _) => ("failed", 0.0),
            (Some(_), _) | (None, Phase::Connecting) => ("connecting", 0.0),
            (None, Phase::Fetching(share)) => ("fetching", *share),
            (None, Phase::Loading(share)) => ("loading", *share),
            (None, Phase::Ready) => ("ready", 1.0),
        };
        wire::StageStatus {
            epoch: self.epoch,
            pipeline: self.pipeline.clone(),
            state: state.to_owned(),
            progress: share,
            error: progress.end.map(|end| end.why).unwrap_or_default(),
        }
    }
}

/// The place of the one incoming edge. Lost before the stage said ready, the place is free again;
/// lost afterwards, the stage ends, because steps may be missing.
#[derive(Debug)]
pub struct Claim {
    cell: Arc<StageCell>,
    established: bool,
}

impl Claim {
    /// From now on the loss of this edge ends the stage.
    pub fn establish(&mut self) {
        self.established = true;
    }

    pub fn cell(&self) -> &Arc<StageCell> {
        &self.cell
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.established {
            self.cell.finish(Cause::Broken, "the edge into this stage ended");
        } else {
            self.cell.claimed.store(false, Ordering::Release);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Board {
    epoch: u64,
    cells: BTreeMap<(String, u32), Arc<StageCell>>,
}

/// What a message of some epoch meets here.
#[derive(Debug)]
pub enum Found {
    /// The message is of an older epoch; the newest one known here.
    Older(u64),
    /// This worker has not heard of that epoch yet.
    Newer,
    /// The epoch is current and gives this worker no such stage.
    Nothing,
    Stage(Arc<StageCell>),
}

/// The stages of the newest epoch.
#[derive(Debug, Default)]
pub struct Stages {
    board: watch::Sender<Board>,
    fenced: AtomicU64,
}

impl Stages {
    /// The newest epoch this worker knows; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.board.borrow().epoch
    }

    /// Enters `epoch` with these stages and ends those of the epoch before. `None`, and nothing
    /// changes, if `epoch` is not newer than the one known.
    pub fn begin(&self, epoch: u64, keys: &[(String, u32)]) -> Option<Vec<Arc<StageCell>>> {
        let fresh: Vec<Arc<StageCell>> =
            keys.iter().map(|(pipeline, stage)| Arc::new(StageCell::new(epoch, pipeline, *stage))).collect();
        let cells = fresh.iter().map(|cell| ((cell.pipeline.clone(), cell.stage), cell.clone())).collect();
        let mut old = Board { epoch, cells };
        let entered = self.board.send_if_modified(|board| {
            let newer = epoch > board.epoch;
            if newer {
                std::mem::swap(board, &mut old);
            }
            newer
        });
        if !entered {
            return None;
        }
        for cell in old.cells.values() {
            cell.finish(Cause::Overtaken, format!("epoch {} was overtaken by epoch {epoch}", cell.epoch));
        }
        Some(fresh)
    }

    /// Ends every stage, e.g. because the worker is stopping.
    pub fn finish_all(&self, why: &str) {
        let board = self.board.borrow().clone();
        for cell in board.cells.values() {
            cell.finish(Cause::Broken, why);
        }
    }

    pub fn find(&self, epoch: u64, pipeline: &str, stage: u32) -> Found {
        let board = self.board.borrow();
        if epoch < board.epoch {
            return Found::Older(board.epoch);
        }
        if epoch > board.epoch {
            return Found::Newer;
        }
        match board.cells.get(&(pipeline.to_owned(), stage)) {
            Some(cell) => Found::Stage(cell.clone()),
            None => Found::Nothing,
        }
    }

    /// Resolves when `epoch` or a newer one is known here.
    pub async fn reaches(&self, epoch: u64) {
        let mut board = self.board.subscribe();
        // The sender lives in `self`, so the wait ends only with the epoch.
        let _ = board.wait_for(|board| board.epoch >= epoch).await;
    }

    /// Counts and logs a message of an older epoch; the words for the one who sent it.
    pub fn fence(&self, what: &str, epoch: u64, current: u64) -> Status {
        self.fenced.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(epoch, current, "refused {what} of an older epoch");
        Status::failed_precondition(format!(
            "{what} of epoch {epoch} refused: the current epoch is {current}; ask the leader for the plan again"
        ))
    }

    pub fn fenced(&self) -> u64 {
        self.fenced.load(Ordering::Relaxed)
    }

    /// For the heartbeat.
    pub fn statuses(&self) -> Vec<wire::StageStatus> {
        self.board.borrow().cells.values().map(|cell| cell.status()).collect()
    }
}

#[cfg(test)]
mod tests;

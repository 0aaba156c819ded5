//! Carries out the assignments of the newest epoch: fetch, load, connect; and lets go of what the epoch
//! before held.
//!
//! Must never act for an epoch that was overtaken, and never let a weight be in memory twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use caravan_core::model::{ModelConfig, Place, TensorSpec, TensorType};
use caravan_core::plan::Slice;
use caravan_proto::{WireError, unpack, wire};
use tokio::sync::watch;

use crate::blobs::BlobCache;
use crate::compute::Compute;
use crate::edges::{self, Target};
use crate::engine::{Engine, Held};
use crate::fetch::{self, Stop};
use crate::masks::{Grammars, Masks};
use crate::slice::SliceSpec;
use crate::stages::{Cause, End, Phase, StageCell, Stages};
use crate::steps::Shape;

/// The stages of one epoch that this worker has to bring up.
struct Work {
    parts: Vec<(Arc<StageCell>, wire::Assignment)>,
}

/// One assignment, checked.
struct Task {
    model: String,
    spec: SliceSpec,
    shape: Shape,
    /// The model file's header, to be fetched with the tensors: a worker that is not the last stage
    /// now may be the next time, and then there is no time to fetch it.
    header: Option<TensorSpec>,
    sources: Vec<String>,
    target: Target,
}

/// Takes assignments and carries them out, one epoch at a time.
pub struct Assigner<C: Compute> {
    stages: Arc<Stages>,
    cache: Arc<BlobCache>,
    engine: Engine<C>,
    masks: Masks,
    /// Where others reach this worker: no source for itself.
    own_addr: String,
    newest: watch::Sender<Arc<Work>>,
    /// Slices of the epoch before, whose layers may be used again.
    pool: Mutex<Vec<Held<C::Slice>>>,
    busy: tokio::sync::Mutex<()>,
}

impl<C: Compute> Assigner<C> {
    pub fn new(
        stages: Arc<Stages>,
        cache: Arc<BlobCache>,
        engine: Engine<C>,
        masks: Masks,
        own_addr: String,
    ) -> Self {
        Assigner {
            stages,
            cache,
            engine,
            masks,
            own_addr,
            newest: watch::Sender::new(Arc::new(Work { parts: Vec::new() })),
            pool: Mutex::new(Vec::new()),
            busy: tokio::sync::Mutex::new(()),
        }
    }

    /// Takes the leader's word for an epoch. Ends what runs in an older one at once; ignores an
    /// epoch that is not newer.
    pub fn offer(&self, assignments: wire::Assignments) {
        let epoch = assignments.epoch;
        let mut by_key: BTreeMap<(String, u32), wire::Assignment> = BTreeMap::new();
        for assignment in assignments.assignments {
            by_key.insert((assignment.pipeline.clone(), assignment.stage), assignment);
        }
        let keys: Vec<(String, u32)> = by_key.keys().cloned().collect();
        let Some(cells) = self.stages.begin(epoch, &keys) else {
            tracing::debug!(epoch, current = self.stages.epoch(), "ignored assignments that are not newer");
            return;
        };
        tracing::debug!(epoch, stages = cells.len(), "entering epoch");
        let parts = cells.into_iter().zip(by_key.into_values()).collect();
        self.newest.send_replace(Arc::new(Work { parts }));
    }

    /// Runs for the life of the worker.
    pub async fn run(&self) {
        let mut newest = self.newest.subscribe();
        // Work offered before the first subscription counts too.
        newest.mark_changed();
        while newest.changed().await.is_ok() {
            let work = newest.borrow_and_update().clone();
            let _busy = self.busy.lock().await;
            self.epoch(&work).await;
        }
    }

    /// Resolves when nothing is under way.
    pub async fn idle(&self) {
        drop(self.busy.lock().await);
    }

    async fn epoch(&self, work: &Work) {
        match self.engine.retire().await {
            Ok(held) => self.put_back(held),
            Err(stopped) => {
                for (cell, _) in &work.parts {
                    cell.finish(Cause::Unfit, stopped.to_string());
                }
                return;
            }
        }
        self.prune(&work.parts).await;
        let turns = Turns {
            fetch: tokio::sync::Mutex::new(()),
            load: tokio::sync::Mutex::new(()),
            left: watch::Sender::new(work.parts.len()),
        };
        let mut stages = Vec::new();
        for (cell, assignment) in &work.parts {
            stages.push(self.stage(cell, assignment, &turns));
        }
        let bring_up = futures::future::join_all(stages);
        let let_go = async {
            let loaded = turns.left.subscribe().wait_for(|left| *left == 0).await.is_ok();
            let current = work.parts.iter().all(|(cell, _)| !overtaken(cell));
            // An overtaken epoch leaves its weights for the next one to choose from.
            if loaded && current {
                self.prune(&[]).await;
            }
        };
        futures::future::join(bring_up, let_go).await;
    }

    async fn stage(&self, cell: &Arc<StageCell>, assignment: &wire::Assignment, turns: &Turns) {
        let prepared = self.prepare(cell, assignment, turns).await;
        turns.left.send_modify(|left| *left -= 1);
        match prepared {
            Ok(target) => edges::run(cell, &target).await,
            Err(end) => cell.finish(end.cause, end.why),
        }
    }

    /// Fetches, loads, and puts the slice into the engine.
    async fn prepare(
        &self,
        cell: &Arc<StageCell>,
        assignment: &wire::Assignment,
        turns: &Turns,
    ) -> Result<Target, End> {
        let task = self.read(assignment).map_err(|error| unfit(error.to_string()))?;
        {
            // One stage at a time, so that two never write the same blob.
            let _turn = turns.fetch.lock().await;
            let blobs = [task.spec.tensors.as_slice(), task.header.as_slice()].concat();
            fetch::ensure(&self.cache, cell, &blobs, &task.sources).await.map_err(|stop| match stop {
                Stop::Ended(end) => end,
                Stop::Disk(_) => unfit(stop.to_string()),
            })?;
        }
        let grammars = task.header.filter(|_| task.shape.last).map(|header| Grammars {
            masks: self.masks.clone(),
            words: self.masks.words(header.digest, self.cache.path(header.digest)),
        });
        let _turn = turns.load.lock().await;
        if let Some(end) = cell.end() {
            return Err(end);
        }
        let held = self.load(cell, task.model, task.spec).await?;
        self.engine
            .open(cell.clone(), held, task.shape, grammars)
            .await
            .map_err(|stopped| unfit(stopped.to_string()))?;
        Ok(task.target)
    }

    fn read(&self, assignment: &wire::Assignment) -> Result<Task, WireError> {
        let config: ModelConfig = unpack(&assignment.config, "config")?;
        let tensors: Vec<TensorSpec> = unpack(&assignment.tensors, "tensors")?;
        let slice = Slice { first: assignment.first, end: assignment.end };
        if slice.first >= slice.end || slice.end > config.layers {
            return Err(WireError::Bad("layers"));
        }
        let last = assignment.stage.checked_add(1) == Some(assignment.stages);
        let shape = Shape {
            hidden: config.hidden as usize,
            vocab: config.vocab as usize,
            first: assignment.stage == 0,
            last,
        };
        let addr = if last { &assignment.driver } else { &assignment.next };
        if addr.is_empty() {
            return Err(WireError::Missing(if last { "driver" } else { "next" }));
        }
        let target = if last { Target::Driver(addr.clone()) } else { Target::Next(addr.clone()) };
        let (kv_pages, page_tokens) = (assignment.kv_pages, assignment.page_tokens);
        let sources = assignment.sources.iter().filter(|addr| **addr != self.own_addr).cloned().collect();
        Ok(Task {
            model: assignment.model.clone(),
            spec: SliceSpec { config, slice, tensors, kv_pages, page_tokens },
            shape,
            header: header_blob(assignment)?,
            sources,
            target,
        })
    }

    /// On a blocking thread. Not broken off when the epoch is overtaken: what is loaded then serves
    /// the next one, so that a quick series of epochs still gets somewhere.
    async fn load(
        &self,
        cell: &Arc<StageCell>,
        model: String,
        spec: SliceSpec,
    ) -> Result<Held<C::Slice>, End> {
        cell.set_phase(Phase::Loading(0.0));
        let layers = spec.slice;
        let reuse = self.take_best(&model, layers);
        let (cache, observer) = (self.cache.clone(), cell.clone());
        let job = tokio::task::spawn_blocking(move || {
            let progress = |share: f64| observer.set_phase(Phase::Loading(share));
            let loaded = C::load(spec, &*cache, reuse.as_ref().map(|held| &held.slice), &progress);
            (loaded, reuse)
        });
        let (loaded, reuse) = job.await.map_err(|error| unfit(format!("loading panicked: {error}")))?;
        self.put_back(reuse);
        match loaded {
            Ok(slice) => Ok(Held { model, layers, slice }),
            Err(error) => {
                Err(unfit(format!("loading {model} layers {}..{}: {error:#}", layers.first, layers.end)))
            }
        }
    }

    fn put_back(&self, held: impl IntoIterator<Item = Held<C::Slice>>) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).extend(held);
    }

    /// The slice of `model` that shares most layers with `layers`.
    fn take_best(&self, model: &str, layers: Slice) -> Option<Held<C::Slice>> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let best = (0..pool.len())
            .filter(|i| pool[*i].model == model)
            .max_by_key(|i| overlap(pool[*i].layers, layers))?;
        Some(pool.swap_remove(best))
    }

    /// Drops what shares no layer with any of `parts`.
    async fn prune(&self, parts: &[(Arc<StageCell>, wire::Assignment)]) {
        let wanted = |held: &Held<C::Slice>| {
            parts.iter().any(|(_, part)| {
                part.model == held.model
                    && overlap(held.layers, Slice { first: part.first, end: part.end }) > 0
            })
        };
        let dropped = {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            let (keep, dropped): (Vec<_>, Vec<_>) = pool.drain(..).partition(wanted);
            *pool = keep;
            dropped
        };
        // Giving back gigabytes takes the operating system a while.
        let _ = tokio::task::spawn_blocking(move || drop(dropped)).await;
    }
}

/// What the stages of one epoch take turns at.
struct Turns {
    fetch: tokio::sync::Mutex<()>,
    load: tokio::sync::Mutex<()>,
    /// Stages that are not loaded (or given up) yet.
    left: watch::Sender<usize>,
}

/// The header as a blob among tensors; only its digest and length count.
fn header_blob(assignment: &wire::Assignment) -> Result<Option<TensorSpec>, WireError> {
    if assignment.header.is_empty() {
        return Ok(None);
    }
    Ok(Some(TensorSpec {
        name: "header".to_owned(),
        dims: Vec::new(),
        kind: TensorType::F32,
        place: Place::Head,
        offset: 0,
        bytes: assignment.header_bytes,
        digest: caravan_proto::digest(&assignment.header)?,
    }))
}

fn overlap(a: Slice, b: Slice) -> u32 {
    Slice { first: a.first.max(b.first), end: a.end.min(b.end) }.layers()
}

fn overtaken(cell: &StageCell) -> bool {
    cell.end().is_some_and(|end| end.cause == Cause::Overtaken)
}

fn unfit(why: String) -> End {
    End { cause: Cause::Unfit, why }
}

//! The engine: the one thread that computes. It owns the compute team, every loaded slice with its
//! KV pages, and the samplers.
//!
//! Must never touch the async runtime and never wait for a peer: each step comes with a permit for
//! the place its output takes on the outgoing edge.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use caravan_core::cluster::LayerTime;
use caravan_core::limits;
use caravan_core::model::{ModelConfig, TensorSpec};
use caravan_core::plan::Slice;
use caravan_proto::wire;
use tokio::sync::{mpsc, oneshot};

use crate::compute::Compute;
use crate::masks::Grammars;
use crate::stages::{Cause, OutFrame, StageCell};
use crate::steps::{Shape, StageWork};

/// A loaded slice and what it is of; kept between epochs so that its layers can be used again.
pub struct Held<S> {
    pub model: String,
    pub layers: Slice,
    pub slice: S,
}

enum Order<C: Compute> {
    Open {
        cell: Arc<StageCell>,
        held: Held<C::Slice>,
        shape: Shape,
        grammars: Option<Grammars>,
    },
    Step {
        cell: Arc<StageCell>,
        step: wire::Step,
        place: mpsc::OwnedPermit<OutFrame>,
    },
    Measure {
        config: ModelConfig,
        tensors: Vec<TensorSpec>,
        reply: oneshot::Sender<anyhow::Result<LayerTime>>,
    },
    Retire {
        reply: oneshot::Sender<Vec<Held<C::Slice>>>,
    },
}

/// Sends orders to the engine's thread. The thread ends when the last handle is gone.
pub struct Engine<C: Compute> {
    orders: mpsc::Sender<Order<C>>,
}

impl<C: Compute> Clone for Engine<C> {
    fn clone(&self) -> Self {
        Engine { orders: self.orders.clone() }
    }
}

/// The engine's thread is gone; only a bug or the end of the process does that.
#[derive(Debug, thiserror::Error)]
#[error("the worker's engine has stopped; restart the worker")]
pub struct Stopped;

impl<C: Compute> Engine<C> {
    /// Starts the thread; `make` runs on it. `throttle` in (0, 1]: 0.5 takes twice the time.
    pub fn start<F>(throttle: f64, make: F) -> std::io::Result<Engine<C>>
    where
        F: FnOnce() -> C + Send + 'static,
    {
        let (orders, inbox) = mpsc::channel(limits::EDGE_FRAMES);
        let pause = if throttle < 1.0 { 1.0 / throttle.max(0.001) - 1.0 } else { 0.0 };
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            Loop { compute: make(), open: BTreeMap::new(), pause, throttle }.run(inbox);
        })?;
        Ok(Engine { orders })
    }

    /// Puts a loaded slice in its place. Steps for `cell` may follow. `grammars`: see `StageWork::new`.
    pub async fn open(
        &self,
        cell: Arc<StageCell>,
        held: Held<C::Slice>,
        shape: Shape,
        grammars: Option<Grammars>,
    ) -> Result<(), Stopped> {
        self.orders.send(Order::Open { cell, held, shape, grammars }).await.map_err(|_| Stopped)
    }

    /// Queues a step; waits while the queue is full. Its output goes through `place`.
    pub async fn step(
        &self,
        cell: Arc<StageCell>,
        step: wire::Step,
        place: mpsc::OwnedPermit<OutFrame>,
    ) -> Result<(), Stopped> {
        self.orders.send(Order::Step { cell, step, place }).await.map_err(|_| Stopped)
    }

    /// Measures a model's shape, between steps.
    pub async fn measure(&self, config: ModelConfig, tensors: Vec<TensorSpec>) -> anyhow::Result<LayerTime> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Measure { config, tensors, reply }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)?
    }

    /// Takes every slice out of the engine; what was queued before runs first.
    pub async fn retire(&self) -> Result<Vec<Held<C::Slice>>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Retire { reply }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

struct OpenStage<C: Compute> {
    model: String,
    layers: Slice,
    work: StageWork<C>,
}

struct Loop<C: Compute> {
    compute: C,
    /// By `StageCell::id`.
    open: BTreeMap<u64, OpenStage<C>>,
    /// Seconds to sleep for each second of computing.
    pause: f64,
    throttle: f64,
}

impl<C: Compute> Loop<C> {
    fn run(mut self, mut inbox: mpsc::Receiver<Order<C>>) {
        while let Some(order) = inbox.blocking_recv() {
            match order {
                Order::Open { cell, held, shape, grammars } => {
                    let Held { model, layers, slice } = held;
                    let work = StageWork::new(slice, shape, grammars);
                    self.open.insert(cell.id, OpenStage { model, layers, work });
                }
                Order::Step { cell, step, place } => self.step(&cell, step, place),
                Order::Measure { config, tensors, reply } => {
                    // The asker may be gone; the answer is then nobody's.
                    let _ = reply.send(self.measure(&config, &tensors));
                }
                Order::Retire { reply } => {
                    let held = std::mem::take(&mut self.open).into_values().map(|stage| Held {
                        model: stage.model,
                        layers: stage.layers,
                        slice: stage.work.slice,
                    });
                    let _ = reply.send(held.collect());
                }
            }
        }
    }

    fn step(&mut self, cell: &StageCell, step: wire::Step, place: mpsc::OwnedPermit<OutFrame>) {
        if cell.end().is_some() {
            return;
        }
        let Some(stage) = self.open.get_mut(&cell.id) else {
            cell.finish(Cause::Broken, "a step came before the slice was in place");
            return;
        };
        let number = step.step;
        let begun = Instant::now();
        let compute = &mut self.compute;
        let outcome = catch_unwind(AssertUnwindSafe(|| stage.work.run(compute, step)));
        if self.pause > 0.0 {
            std::thread::sleep(begun.elapsed().mul_f64(self.pause).min(Duration::from_secs(60)));
        }
        match outcome {
            Ok(Ok(frame)) => {
                place.send(frame);
            }
            Ok(Err(error)) => cell.finish(Cause::Broken, format!("step {number} failed: {error:#}")),
            Err(panic) => {
                // The slice may be half-written, so its layers must not be used again.
                self.open.remove(&cell.id);
                self.compute.renew();
                let what = panic_text(&*panic);
                tracing::error!(
                    epoch = cell.epoch,
                    pipeline = cell.pipeline,
                    step = number,
                    what,
                    "compute panicked"
                );
                cell.finish(Cause::Broken, format!("step {number} panicked, a bug of the worker: {what}"));
            }
        }
    }

    fn measure(&mut self, config: &ModelConfig, tensors: &[TensorSpec]) -> anyhow::Result<LayerTime> {
        let (compute, throttle) = (&mut self.compute, self.throttle);
        let outcome = catch_unwind(AssertUnwindSafe(|| compute.measure(config, tensors, throttle)));
        outcome.unwrap_or_else(|panic| {
            self.compute.renew();
            Err(anyhow!("the measurement panicked, a bug of the worker: {}", panic_text(&*panic)))
        })
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

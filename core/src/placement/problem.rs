//! Placement of one model as numbers: workers, hops, layers, and what an arrangement costs.
//!
//! Must never know names or the cluster state; `inventory` makes these values.
//!
//! The cost of an arrangement (an order of workers and how many layers each takes) is its *period*:
//! milliseconds between two tokens of a pipeline that is kept busy by the standard load of
//! `max(sequences, 2 x stages)` sequences,
//!
//! `period = max(slowest stage, slowest transfer, latency / load)`, where
//! `stage = layers x layer_ms (+ head_ms at the last)`, `transfer = activation bytes / bandwidth`, and
//! `latency = all stages + all hops (link latency + transfer)`, the time of one token alone.
//!
//! A link's latency counts in the latency only, not in a stage's time: a stage computes the next
//! micro-batch while the last one travels. The hops from and to the driver are the same for every
//! arrangement and left out.

use crate::plan::Slice;

/// A worker that may hold layers.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Milliseconds of one layer for one token; more than 0.
    pub layer_ms: f64,
    /// Milliseconds of the output head for one token.
    pub head_ms: f64,
    /// Memory for weights, in bytes as loaded (see `loaded_bytes`).
    pub weight_bytes: u64,
    /// Layers for which its KV budget has the fewest pages that are allowed.
    pub most_layers: u32,
    /// What it holds now of this model.
    pub held: Option<Slice>,
}

/// Way from one worker to another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hop {
    pub latency_ms: f64,
    pub transfer_ms: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub layers: u32,
    /// Bytes of all layers below `i`; `layers + 1` values.
    pub sums: Vec<u64>,
    pub embed: u64,
    pub head: u64,
    pub shared: u64,
    pub tied: bool,
    pub nodes: Vec<Node>,
    /// `hops[from][to]`
    pub hops: Vec<Vec<Hop>>,
    /// Sequences of the standard load.
    pub sequences: u32,
}

/// What an arrangement costs; milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub period_ms: f64,
    pub latency_ms: f64,
}

/// Bytes that tensors take once they are loaded and packed: at most 1.3 times their file bytes.
pub(super) fn loaded_bytes(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 10 * 3)
}

impl Problem {
    pub fn load(&self, stages: usize) -> f64 {
        f64::from(self.sequences).max(2.0 * stages as f64)
    }

    pub fn stage_ms(&self, node: usize, layers: u32, last: bool) -> f64 {
        let node = &self.nodes[node];
        f64::from(layers) * node.layer_ms + if last { node.head_ms } else { 0.0 }
    }

    /// Whether a worker has the memory for `slice`.
    pub fn fits(&self, node: usize, slice: Slice) -> bool {
        let node = &self.nodes[node];
        let (first, last) = (slice.first == 0, slice.end == self.layers);
        let layers = self.sums[slice.end as usize] - self.sums[slice.first as usize];
        let embed = if first || (last && self.tied) { self.embed } else { 0 };
        let head = if last { self.head } else { 0 };
        slice.layers() <= node.most_layers
            && loaded_bytes(layers + embed + head + self.shared) <= node.weight_bytes
    }

    pub fn cost(&self, order: &[usize], counts: &[u32]) -> Cost {
        let mut slowest: f64 = 0.0;
        let mut latency = 0.0;
        for (i, (&node, &layers)) in order.iter().zip(counts).enumerate() {
            let stage = self.stage_ms(node, layers, i + 1 == order.len());
            slowest = slowest.max(stage);
            latency += stage;
        }
        latency += self.hops_ms(order);
        let period = slowest.max(self.slowest_transfer_ms(order)).max(latency / self.load(order.len()));
        Cost { period_ms: period, latency_ms: latency }
    }

    pub fn hops_ms(&self, order: &[usize]) -> f64 {
        self.hops_of(order).map(|hop| hop.latency_ms + hop.transfer_ms).sum()
    }

    pub fn slowest_transfer_ms(&self, order: &[usize]) -> f64 {
        self.hops_of(order).fold(0.0, |slowest, hop| slowest.max(hop.transfer_ms))
    }

    fn hops_of<'a>(&'a self, order: &'a [usize]) -> impl Iterator<Item = Hop> + 'a {
        order.windows(2).map(|pair| self.hops[pair[0]][pair[1]])
    }

    /// Layers of `slice` that the worker would have to load.
    pub fn moved(&self, node: usize, slice: Slice) -> u32 {
        let kept = self.nodes[node]
            .held
            .map_or(0, |held| held.end.min(slice.end).saturating_sub(held.first.max(slice.first)));
        slice.layers() - kept
    }

    /// Layers each stage takes if each takes as many as it can within `limit_ms` and its memory, from
    /// the first to the last. Finds an arrangement whenever there is one: to take more layers early
    /// never makes it harder for those behind.
    pub fn pack(&self, order: &[usize], limit_ms: f64) -> Option<Vec<u32>> {
        let mut counts = Vec::with_capacity(order.len());
        let mut first = 0;
        for (i, &node) in order.iter().enumerate() {
            let behind = (order.len() - 1 - i) as u32;
            let room = self.layers.checked_sub(first + behind).filter(|room| *room > 0)?;
            let layers = if behind == 0 {
                let whole = Slice { first, end: self.layers };
                let ok = self.stage_ms(node, room, true) <= limit_ms && self.fits(node, whole);
                ok.then_some(room)?
            } else {
                self.most(node, first, room, limit_ms).filter(|layers| *layers > 0)?
            };
            counts.push(layers);
            first += layers;
        }
        Some(counts)
    }

    /// Most layers from `first` on, `room` at most, that a stage before the last can take.
    fn most(&self, node: usize, first: u32, room: u32, limit_ms: f64) -> Option<u32> {
        let mut layers = ((limit_ms / self.nodes[node].layer_ms) as u32).min(room);
        // The division may round either way; the stage's own time decides.
        if layers < room && self.stage_ms(node, layers + 1, false) <= limit_ms {
            layers += 1;
        }
        if layers > 0 && self.stage_ms(node, layers, false) > limit_ms {
            layers -= 1;
        }
        let fits = |layers: u32| self.fits(node, Slice { first, end: first + layers });
        if layers == 0 || fits(layers) {
            return Some(layers);
        }
        let (mut low, mut high) = (0, layers);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(low)
    }
}

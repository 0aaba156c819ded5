//! For one order of workers: the least period, and the best slices within a given period. Exact.
//!
//! Must never compare orders; that is `choose`.

use super::problem::Problem;
use crate::plan::Slice;

/// Halvings of an interval of periods: enough for six digits, the rest is done exactly.
const HALVINGS: usize = 24;

impl Problem {
    /// The least period of any slices for this order, if it is less than `below_ms`.
    pub fn least_period(&self, order: &[usize], below_ms: f64) -> Option<f64> {
        let floor = self.slowest_transfer_ms(order);
        if floor >= below_ms {
            return None;
        }
        let counts = self.pack(order, below_ms.next_down())?;
        let (slowest, counts) = self.least_bottleneck(order, counts);
        let enough = slowest.max(floor);
        if self.cost(order, &counts).period_ms <= enough {
            return Some(enough);
        }
        self.least_by_latency(order, enough, below_ms)
    }

    /// The least time of the slowest stage, and slices that reach it, from any slices that work.
    fn least_bottleneck(&self, order: &[usize], mut counts: Vec<u32>) -> (f64, Vec<u32>) {
        let slowest = |counts: &[u32]| {
            let stages = order.iter().zip(counts).enumerate();
            stages.fold(0.0_f64, |slowest, (i, (&node, &layers))| {
                slowest.max(self.stage_ms(node, layers, i + 1 == order.len()))
            })
        };
        let (mut low, mut high) = (0.0, slowest(&counts));
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2.0;
            match self.pack(order, middle) {
                Some(better) => {
                    high = slowest(&better);
                    counts = better;
                }
                None => low = middle,
            }
        }
        // Stage times are discrete: step down through those that are left.
        while let Some(better) = self.pack(order, high.next_down()) {
            high = slowest(&better);
            counts = better;
        }
        (high, counts)
    }

    /// The least period where the latency over the load is what binds: a longer slowest stage allows
    /// a shorter sum, so the two meet at the least period.
    fn least_by_latency(&self, order: &[usize], bottleneck_ms: f64, below_ms: f64) -> Option<f64> {
        let hops = self.hops_ms(order);
        let load = self.load(order.len());
        let by_latency = |limit_ms: f64| {
            let counts = self.cover(order, limit_ms, |_, _, time| (0, time))?;
            let cost = self.cost(order, &counts);
            Some(cost.latency_ms / load)
        };
        // Cheap bound first: no slices have a shorter sum than all layers on the fastest worker.
        let fastest = order.iter().map(|&node| self.nodes[node].layer_ms).fold(f64::INFINITY, f64::min);
        if (f64::from(self.layers) * fastest + hops) / load >= below_ms {
            return None;
        }
        let highest = by_latency(below_ms.next_down())?;
        if highest >= below_ms {
            return None;
        }
        let at_bottleneck = by_latency(bottleneck_ms)?;
        if at_bottleneck <= bottleneck_ms {
            return Some(bottleneck_ms);
        }
        let (mut low, mut high) = (bottleneck_ms, at_bottleneck.min(below_ms));
        let mut best = high;
        for _ in 0..2 * HALVINGS {
            let middle = low + (high - low) / 2.0;
            let Some(period) = by_latency(middle).map(|latency| latency.max(middle)) else { break };
            best = best.min(period);
            if period > middle { low = middle } else { high = middle }
        }
        Some(best).filter(|best| *best < below_ms)
    }

    /// Slices with no stage longer than `limit_ms` and all in memory, with the least sum of
    /// `price(node, slice, stage ms)`, compared first by its first number. Exact, by dynamic
    /// programming over (stages, layers covered).
    pub fn cover(
        &self,
        order: &[usize],
        limit_ms: f64,
        price: impl Fn(usize, Slice, f64) -> (u32, f64),
    ) -> Option<Vec<u32>> {
        let layers = self.layers as usize;
        let stages = order.len();
        if stages == 0 || stages > layers {
            return None;
        }
        let mut best: Vec<Option<(u32, f64)>> = vec![None; layers + 1];
        best[0] = Some((0, 0.0));
        let mut taken = vec![vec![0u32; layers + 1]; stages];
        for (i, &node) in order.iter().enumerate() {
            let behind = stages - 1 - i;
            let ends = if behind == 0 { layers..=layers } else { i + 1..=layers - behind };
            let mut next = vec![None; layers + 1];
            for end in ends {
                for count in 1..=(end - i) as u32 {
                    let slice = Slice { first: end as u32 - count, end: end as u32 };
                    let time = self.stage_ms(node, count, behind == 0);
                    // Both only grow with the slice.
                    if time > limit_ms || !self.fits(node, slice) {
                        break;
                    }
                    let Some(before) = best[slice.first as usize] else { continue };
                    let (first, second) = price(node, slice, time);
                    let sum = (before.0 + first, before.1 + second);
                    if next[end].is_none_or(|old| less(sum, old)) {
                        next[end] = Some(sum);
                        taken[i][end] = count;
                    }
                }
            }
            best = next;
        }
        best[layers]?;
        let mut counts = vec![0; stages];
        let mut end = layers;
        for i in (0..stages).rev() {
            counts[i] = taken[i][end];
            end -= counts[i] as usize;
        }
        Some(counts)
    }
}

fn less(one: (u32, f64), two: (u32, f64)) -> bool {
    one.0 < two.0 || (one.0 == two.0 && one.1 < two.1)
}

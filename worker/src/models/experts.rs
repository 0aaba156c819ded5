//! A feed-forward part of many experts: a router chooses some of them for each row, and an expert
//! computes only the rows that chose it.
//!
//! The definition, for one row x:
//!   logit[e] = router x x; the `used` highest are chosen, ties to the lower expert
//!   weight[e] = exp(logit[e] - highest) / sum of these, in f64, rounded once; the sum runs over the
//!   chosen ones, or over all if weights are not normalised, in the order of the experts
//!   y = 0; for the chosen e in order: y = y + weight[e] * expert[e](x), each product and sum rounded
//! Must never let the rows of other sequences show: neither in which experts a row has, nor in
//! which order they are added.

use caravan_core::model;
use caravan_kernels::math::exp_f64;
use caravan_kernels::{Gate, Matrix, Product, Store, Team, multiply};

use super::layer::Dense;
use super::{Scratch, resize};

/// The experts of one layer.
#[derive(Clone)]
pub struct Experts {
    pub choice: model::Experts,
    pub router: Matrix,
    pub experts: Vec<Dense>,
}

/// Buffers of routing, kept from step to step.
#[derive(Default)]
pub struct Routed {
    logits: Vec<f32>,
    ranked: Vec<u32>,
    /// For each expert the rows that chose it, with their weights.
    rows: Vec<Vec<(usize, f32)>>,
    input: Vec<f32>,
    output: Vec<f32>,
    /// rows x hidden
    blend: Vec<f32>,
}

impl Experts {
    /// The normed rows of the scratch through their experts, into `target` (rows x hidden).
    pub fn forward(
        &self,
        gate: Gate,
        team: &mut Team,
        s: &mut Scratch,
        (target, store): (&mut [f32], Store),
    ) {
        // Taken out for a moment, because the experts need the rest of the scratch.
        let mut routed = std::mem::take(&mut s.routed);
        let hidden = self.router.k();
        self.route(team, s, &mut routed);
        resize(&mut routed.blend, target.len());
        routed.blend.fill(0.0);
        for (expert, rows) in self.experts.iter().zip(&routed.rows) {
            if rows.is_empty() {
                continue;
            }
            routed.input.clear();
            for (row, _) in rows {
                routed.input.extend_from_slice(&s.normed[row * hidden..(row + 1) * hidden]);
            }
            resize(&mut routed.output, routed.input.len());
            expert.forward(gate, team, (&routed.input, s), (&mut routed.output, Store::Set));
            for ((row, weight), output) in rows.iter().zip(routed.output.chunks_exact(hidden)) {
                let blend = &mut routed.blend[row * hidden..(row + 1) * hidden];
                blend.iter_mut().zip(output).for_each(|(y, x)| *y += weight * x);
            }
        }
        match store {
            Store::Set => target.copy_from_slice(&routed.blend),
            Store::Add => target.iter_mut().zip(&routed.blend).for_each(|(x, y)| *x += y),
        }
        s.routed = routed;
    }

    /// Finds the rows of each expert.
    fn route(&self, team: &mut Team, s: &mut Scratch, routed: &mut Routed) {
        let count = s.normed.len() / self.router.k();
        resize(&mut routed.logits, count * self.router.n());
        let mut products = [Product { matrix: &self.router, out: &mut routed.logits, store: Store::Set }];
        multiply(team, &mut s.acts, count, &s.normed, &mut products);
        routed.rows.resize(self.experts.len(), Vec::new());
        routed.rows.iter_mut().for_each(Vec::clear);
        for (row, logits) in routed.logits.chunks_exact(self.router.n()).enumerate() {
            choose(self.choice, logits, &mut routed.ranked);
            let weights = Weights::new(self.choice, logits, &routed.ranked);
            for expert in &routed.ranked {
                routed.rows[*expert as usize].push((row, weights.of(logits[*expert as usize])));
            }
        }
    }

    pub fn memory_bytes(&self) -> usize {
        self.router.memory_bytes() + self.experts.iter().map(Dense::memory_bytes).sum::<usize>()
    }
}

/// Leaves the chosen experts in `ranked`, in their own order.
fn choose(choice: model::Experts, logits: &[f32], ranked: &mut Vec<u32>) {
    ranked.clear();
    ranked.extend(0..logits.len() as u32);
    let used = (choice.used as usize).min(ranked.len());
    // A total order, so that a NaN changes nothing but its own row.
    let rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if used < ranked.len() {
        ranked.select_nth_unstable_by(used, rank);
        ranked.truncate(used);
    }
    ranked.sort_unstable();
}

/// What turns logits into weights.
struct Weights {
    highest: f64,
    total: f64,
}

impl Weights {
    fn new(choice: model::Experts, logits: &[f32], chosen: &[u32]) -> Weights {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let highest = f64::from(highest);
        let exp = |logit: f32| exp_f64(f64::from(logit) - highest);
        let total = if choice.normalised {
            chosen.iter().map(|expert| exp(logits[*expert as usize])).sum()
        } else {
            logits.iter().map(|logit| exp(*logit)).sum()
        };
        Weights { highest, total }
    }

    fn of(&self, logit: f32) -> f32 {
        (exp_f64(f64::from(logit) - self.highest) / self.total) as f32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn chosen(used: u32, normalised: bool, logits: &[f32]) -> Vec<(u32, f32)> {
        let choice = model::Experts { count: logits.len() as u32, used, normalised };
        let mut ranked = Vec::new();
        choose(choice, logits, &mut ranked);
        let weights = Weights::new(choice, logits, &ranked);
        ranked.into_iter().map(|expert| (expert, weights.of(logits[expert as usize]))).collect()
    }

    #[test]
    fn the_highest_are_chosen_with_ties_to_the_lower_expert() {
        let of = |used, logits: &[f32]| -> Vec<u32> {
            chosen(used, true, logits).into_iter().map(|(expert, _)| expert).collect()
        };
        assert_eq!(of(2, &[0.1, 3.0, 2.0, -1.0]), [1, 2]);
        assert_eq!(of(3, &[1.0, 2.0, 1.0, 1.0, 1.0]), [0, 1, 2]);
        assert_eq!(of(1, &[5.0; 128]), [0]);
        assert_eq!(of(4, &[1.0, 2.0, 3.0, 4.0]), [0, 1, 2, 3]);
        assert_eq!(of(2, &[f32::NAN; 4]), [0, 1]);
    }

    #[test]
    fn weights_are_the_softmax_of_the_chosen_or_of_all() {
        let logits = [0.5f32, 2.0, -1.0, 1.0];
        let exp: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        let near = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-7, "{got} {want}");
        let normalised = chosen(2, true, &logits);
        near(normalised[0].1, exp[1] / (exp[1] + exp[3]));
        near(normalised[1].1, exp[3] / (exp[1] + exp[3]));
        near(chosen(2, false, &logits)[0].1, exp[1] / exp.iter().sum::<f64>());
        assert!(chosen(2, true, &[f32::NAN, 1.0, 2.0])[0].1.is_nan());
    }
}

//! The best arrangement over all orders that are looked at.
//!
//! Must never know why a plan is wanted; `decide` does.

use super::problem::{Cost, Problem};
use crate::plan::Slice;

/// Orders whose slices are worked out among those that are about equally good.
const FINALISTS: usize = 256;
/// Two periods are the same if they differ by less: sums of the same times in another order.
const SAME: f64 = 1e-9;

#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub order: Vec<usize>,
    pub counts: Vec<u32>,
    pub cost: Cost,
}

/// What counts as about equally good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slack {
    /// Share by which a period may be longer than the least one.
    pub share: f64,
    /// Longest period that is of any use (unless even the least is longer).
    pub cap_ms: f64,
}

/// 1. As many workers take part as can without a longer period: more stages mean quicker prefill, more
///    KV pages and less memory on each, and a worker is not left out for a tie.
/// 2. Of the arrangements of so many workers within the slack of the least period, the one that moves
///    the fewest layers;
/// 3. of those the one with the least sum of `stage² / period` and hops: a single stream's latency in
///    which a busy stage weighs more, so that work is spread evenly and near workers are neighbours.
pub(super) fn choose(problem: &Problem, orders: &[Vec<usize>], slack: Slack) -> Option<Choice> {
    let mut least = vec![f64::INFINITY; problem.nodes.len() + 1];
    let mut quickest: Vec<Option<&Vec<usize>>> = vec![None; least.len()];
    for order in orders {
        if let Some(period) = problem.least_period(order, least[order.len()]) {
            least[order.len()] = period;
            quickest[order.len()] = Some(order);
        }
    }
    let best = least.iter().copied().fold(f64::INFINITY, f64::min);
    if !best.is_finite() {
        return None;
    }
    let stages = least.iter().rposition(|period| *period <= best * (1.0 + SAME))?;
    let (least, quickest) = (least[stages], quickest[stages]);
    let limit = (least * (1.0 + slack.share)).min(slack.cap_ms).max(least * (1.0 + SAME));
    // Where latency binds, none of the other finalists may keep the limit; the quickest order does.
    quickest
        .into_iter()
        .chain(finalists(problem, orders, stages, limit))
        .filter_map(|order| rate(problem, order, (least, limit)))
        .reduce(|best, next| if less(&next, &best) { next } else { best })
        .map(|(choice, ..)| choice)
}

/// Orders of `stages` workers that can keep the limit: those nearest to the present order and with the
/// shortest hops first.
fn finalists<'a>(
    problem: &Problem,
    orders: &'a [Vec<usize>],
    stages: usize,
    limit_ms: f64,
) -> Vec<&'a Vec<usize>> {
    let mut able: Vec<_> = orders
        .iter()
        .filter(|order| order.len() == stages)
        .filter(|order| problem.slowest_transfer_ms(order) <= limit_ms)
        .filter(|order| problem.pack(order, limit_ms).is_some())
        .map(|order| (disorder(problem, order), problem.hops_ms(order), order))
        .collect();
    able.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(b.2)));
    able.truncate(FINALISTS);
    able.into_iter().map(|(_, _, order)| order).collect()
}

/// Pairs of workers whose present slices are in the other order.
fn disorder(problem: &Problem, order: &[usize]) -> usize {
    let held: Vec<u32> =
        order.iter().filter_map(|&node| problem.nodes[node].held).map(|held| held.first).collect();
    held.iter()
        .enumerate()
        .map(|(i, first)| held[i + 1..].iter().filter(|later| *later < first).count())
        .sum()
}

type Rated = (Choice, u32, f64);

fn less(one: &Rated, two: &Rated) -> bool {
    one.1 < two.1 || (one.1 == two.1 && one.2 < two.2)
}

fn rate(problem: &Problem, order: &[usize], (least_ms, limit_ms): (f64, f64)) -> Option<Rated> {
    let price = |node, slice, time: f64| (problem.moved(node, slice), time * time / least_ms);
    let mut counts = problem.cover(order, limit_ms, price)?;
    let mut cost = problem.cost(order, &counts);
    if cost.period_ms > limit_ms {
        // The latency binds: only the shortest sum can keep the limit.
        counts = problem.cover(order, limit_ms, |_, _, time| (0, time))?;
        cost = problem.cost(order, &counts);
        if cost.period_ms > limit_ms {
            return None;
        }
    }
    let mut moved = 0;
    let mut weight = problem.hops_ms(order);
    let mut first = 0;
    for (i, (&node, &layers)) in order.iter().zip(&counts).enumerate() {
        let slice = Slice { first, end: first + layers };
        let time = problem.stage_ms(node, layers, i + 1 == order.len());
        let (more, ms) = price(node, slice, time);
        moved += more;
        weight += ms;
        first = slice.end;
    }
    Some((Choice { order: order.to_vec(), counts, cost }, moved, weight))
}

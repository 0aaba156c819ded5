//! Which orders of workers are looked at: all of them for few workers, a bounded choice beyond.
//!
//! Must never judge an order.

use super::problem::Problem;

/// How many output ends are tried, and how many sizes, where not all orders can be.
const LASTS: usize = 8;
const SIZES: usize = 12;

/// Orders of 1 to all workers; every order of every subset if there are at most `exact`.
pub(super) fn orders(problem: &Problem, exact: usize) -> Vec<Vec<usize>> {
    let count = problem.nodes.len();
    if count <= exact { all(count, problem.layers as usize) } else { some(problem) }
}

/// Every ordered subset of `0..count`, not longer than `longest`.
fn all(count: usize, longest: usize) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
    let mut begin = 0;
    for _ in 0..count.min(longest) {
        let end = orders.len();
        for at in begin..end {
            for node in 0..count {
                if !orders[at].contains(&node) {
                    let mut longer = orders[at].clone();
                    longer.push(node);
                    orders.push(longer);
                }
            }
        }
        begin = end;
    }
    orders.remove(0);
    orders
}

/// From a few sensible orders of all workers: leave out the slowest, or those with the least room, one
/// number after another, and try the workers with the quickest heads at the end.
fn some(problem: &Problem) -> Vec<Vec<usize>> {
    let nodes = &problem.nodes;
    let mut by_speed: Vec<usize> = (0..nodes.len()).collect();
    by_speed.sort_by(|&a, &b| nodes[a].layer_ms.total_cmp(&nodes[b].layer_ms).then(a.cmp(&b)));
    let mut by_head = by_speed.clone();
    by_head.sort_by(|&a, &b| nodes[a].head_ms.total_cmp(&nodes[b].head_ms).then(a.cmp(&b)));
    let mut as_held = by_speed.clone();
    as_held.sort_by_key(|&node| nodes[node].held.map_or(u32::MAX, |held| held.first));
    // A worker that is quick and small can be neither first nor last, where the embedding lies.
    let mut by_room = by_speed.clone();
    by_room.sort_by_key(|&node| std::cmp::Reverse(nodes[node].weight_bytes));
    let bases = [as_held, nearest_next(problem), by_speed.clone(), by_room.clone()];

    let mut orders = Vec::new();
    let sizes = sizes(nodes.len().min(problem.layers as usize));
    let chosen = sizes.iter().flat_map(|&size| [&by_speed[..size], &by_room[..size]]);
    for kept in chosen {
        let lasts: Vec<usize> =
            by_head.iter().copied().filter(|node| kept.contains(node)).take(LASTS).collect();
        for base in &bases {
            let order: Vec<usize> = base.iter().copied().filter(|node| kept.contains(node)).collect();
            for &last in &lasts {
                let mut moved: Vec<usize> = order.iter().copied().filter(|node| *node != last).collect();
                moved.push(last);
                orders.push(moved);
            }
            orders.push(order);
        }
    }
    orders.sort();
    orders.dedup();
    orders
}

/// Each worker followed by the one it reaches most quickly, so that machines in one place follow
/// each other.
fn nearest_next(problem: &Problem) -> Vec<usize> {
    let mut left: Vec<usize> = (0..problem.nodes.len()).collect();
    let mut order = Vec::with_capacity(left.len());
    let mut at = 0;
    while !left.is_empty() {
        let node = left.remove(at);
        order.push(node);
        let way = |&to: &usize| problem.hops[node][to].latency_ms + problem.hops[node][to].transfer_ms;
        at = (0..left.len()).min_by(|&a, &b| way(&left[a]).total_cmp(&way(&left[b]))).unwrap_or(0);
    }
    order
}

/// All sizes of a small cluster; of a big one the large ones and some smaller ones.
fn sizes(most: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut size = most;
    while size > 0 {
        sizes.push(size);
        size = if sizes.len() < SIZES { size - 1 } else { size / 2 };
    }
    sizes
}

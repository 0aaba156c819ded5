//! Every order and every slicing of small instances, judged by the documented cost written out again.

use proptest::prelude::*;

use super::*;
use crate::plan::Slice;

/// Least period by number of stages, over everything.
fn least_by_size(state: &ClusterState, policy: &Policy) -> Vec<f64> {
    let spec = &state.models["m"];
    let ids: Vec<&WorkerId> = state.workers.keys().collect();
    let mut least = vec![f64::INFINITY; ids.len() + 1];
    let mut arrangement: Vec<(usize, Slice)> = Vec::new();
    extend(state, spec, policy, &ids, &mut arrangement, &mut least);
    least
}

fn extend(
    state: &ClusterState,
    spec: &ModelSpec,
    policy: &Policy,
    ids: &[&WorkerId],
    arrangement: &mut Vec<(usize, Slice)>,
    least: &mut [f64],
) {
    let first = arrangement.last().map_or(0, |(_, slice)| slice.end);
    if first == spec.config.layers {
        let size = arrangement.len();
        least[size] = least[size].min(period(state, policy, ids, arrangement));
        return;
    }
    for node in 0..ids.len() {
        if arrangement.iter().any(|(taken, _)| *taken == node) {
            continue;
        }
        for end in first + 1..=spec.config.layers {
            let slice = Slice { first, end };
            let profile = &state.workers[ids[node]].profile;
            let bytes = problem::loaded_bytes(spec.bytes_of(slice));
            if bytes + profile.kv_bytes + policy.overhead_bytes <= profile.memory_bytes {
                arrangement.push((node, slice));
                extend(state, spec, policy, ids, arrangement, least);
                arrangement.pop();
            }
        }
    }
}

fn period(state: &ClusterState, policy: &Policy, ids: &[&WorkerId], stages: &[(usize, Slice)]) -> f64 {
    let (mut slowest, mut latency) = (0.0_f64, 0.0);
    for (i, (node, slice)) in stages.iter().enumerate() {
        let worker = &state.workers[ids[*node]];
        let time = worker.layer_times["m"];
        let last = i + 1 == stages.len();
        let stage = f64::from(slice.layers()) * time.decode_ms + if last { time.head_ms } else { 0.0 };
        let (mut hop, mut transfer) = (0.0, 0.0);
        if !last {
            let link = worker.links[ids[stages[i + 1].0]];
            transfer = 576.0 * 4.0 / link.bytes_per_s * 1e3;
            hop = link.latency_ms + transfer;
        }
        slowest = slowest.max(stage).max(transfer);
        latency += stage + hop;
    }
    let load = f64::from(policy.load_sequences).max(2.0 * stages.len() as f64);
    slowest.max(latency / load)
}

fn worker() -> impl Strategy<Value = Spec> {
    (0.2..4.0f64, 0.0..6.0f64, prop_oneof![3 => Just(1000u64), 2 => 14u64..90])
        .prop_map(|(layer_ms, head_ms, weight_mib)| Spec { layer_ms, head_ms, weight_mib })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn equal_to_brute_force(
        layers in 1u32..8,
        workers in proptest::collection::vec(worker(), 1..5),
        latencies in proptest::collection::vec(prop_oneof![2 => 0.0..0.5f64, 1 => 0.5..40.0f64], 16),
        rates in proptest::collection::vec(prop_oneof![3 => Just(1e9), 1 => 1e5..1e7f64], 16),
    ) {
        against_brute_force(layers, &workers, &latencies, &rates)?;
    }

    /// No worker has room for all layers and the ways are long: the latency binds.
    #[test]
    fn equal_to_brute_force_where_latency_binds(
        layers in 4u32..8,
        workers in proptest::collection::vec((0.2..9.0f64, 0.0..3.0f64, 50u64..90), 2..5),
        latencies in proptest::collection::vec(1.0..80.0f64, 16),
    ) {
        let workers: Vec<Spec> = workers.into_iter()
            .map(|(layer_ms, head_ms, weight_mib)| Spec { layer_ms, head_ms, weight_mib })
            .collect();
        against_brute_force(layers, &workers, &latencies, &[1e9; 16])?;
    }
}

fn against_brute_force(
    layers: u32,
    workers: &[Spec],
    latencies: &[f64],
    rates: &[f64],
) -> Result<(), TestCaseError> {
    let mut state = cluster(layers, workers, 0.0);
    for (i, worker) in state.workers.values_mut().enumerate() {
        for j in 0..4 {
            let link = LinkTime { latency_ms: latencies[i * 4 + j], bytes_per_s: rates[i * 4 + j] };
            worker.links.insert(name(j), link);
        }
    }
    let policy = Policy { near_tie: 0.0, ..Policy::default() };
    let least = least_by_size(&state, &policy);
    let best = least.iter().copied().fold(f64::INFINITY, f64::min);
    let decision = next_plan(&state, LEADER, &policy);
    let Some(plan) = decision.plan else {
        prop_assert!(best.is_infinite(), "a fit exists: {}", best);
        prop_assert_eq!(decision.no_fit.len(), 1);
        return Ok(());
    };
    check(&state, &plan, &policy);
    let pipeline = &plan.pipelines[0];
    let ours = 1e3 / pipeline.predicted_tokens_per_s;
    prop_assert!((ours - best).abs() <= best * 1e-6, "{} instead of {}", ours, best);
    let most = least.iter().rposition(|period| *period <= best * (1.0 + 1e-12)).unwrap();
    prop_assert!(pipeline.stages.len() >= most, "{} stages instead of {}", pipeline.stages.len(), most);
    Ok(())
}

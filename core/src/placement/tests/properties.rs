//! What must hold of any cluster.

use proptest::prelude::*;

use super::*;

fn near(spread: f64) -> impl Strategy<Value = f64> {
    (1.0 - spread)..(1.0 + spread)
}

fn any_worker() -> impl Strategy<Value = Spec> {
    (0.1..3.0f64, 0.0..4.0f64, prop_oneof![2 => Just(4000u64), 1 => 20u64..400])
        .prop_map(|(layer_ms, head_ms, weight_mib)| Spec { layer_ms, head_ms, weight_mib })
}

fn throughput(state: &ClusterState, policy: &Policy) -> f64 {
    let decision = next_plan(state, LEADER, policy);
    decision.plan.map_or(0.0, |plan| plan.pipelines[0].predicted_tokens_per_s)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn all_layers_once_and_memory_kept_or_numbers_why_not(
        layers in 1u32..40,
        workers in proptest::collection::vec(any_worker(), 0..10),
        latency in 0.0..3.0f64,
    ) {
        let mut state = cluster(layers, &workers, latency);
        let decision = settle(&mut state);
        match &decision.plan {
            Some(plan) => {
                prop_assert_eq!(plan.epoch, Epoch(1));
                check(&state, plan, &Policy::default());
                prop_assert_eq!(next_plan(&state, LEADER, &Policy::default()).plan, None, "settled");
            }
            None => {
                let no_fit = &decision.no_fit[0];
                prop_assert_eq!(no_fit.workers.len(), workers.len());
                let room: u64 = no_fit.workers.iter().map(|room| room.weight_bytes).sum();
                // Each stage may waste less than a layer, and both ends hold the embedding.
                let waste = (workers.len() as u64 + 2) * problem::loaded_bytes(10 * MIB);
                prop_assert!(room < no_fit.needed_bytes + waste, "{}", no_fit);
            }
        }
    }

    #[test]
    fn near_equal_workers_all_take_part(
        speeds in proptest::collection::vec((near(0.2), near(0.2)), 1..9),
        head_layers in 0.0..12.0f64,
    ) {
        let workers: Vec<Spec> = speeds.iter()
            .map(|(layer, head)| Spec { layer_ms: 0.2 * layer, head_ms: 0.2 * head_layers * head, ..PLAIN })
            .collect();
        let mut state = cluster(30, &workers, 5.0);
        for worker in state.workers.values_mut() {
            // On one machine what a busy link measured does not count.
            worker.profile.grpc = "127.0.0.1:1".into();
        }
        settle(&mut state);
        prop_assert_eq!(state.plan.pipelines[0].stages.len(), workers.len());
    }

    #[test]
    fn measurements_five_percent_off_change_nothing(
        base in proptest::collection::vec(near(0.2), 2..7),
        noise in proptest::collection::vec((near(0.05), near(0.05)), 7),
        head_layers in 0.0..10.0f64,
    ) {
        let workers: Vec<Spec> = base.iter()
            .map(|speed| Spec { layer_ms: *speed, head_ms: head_layers * speed, ..PLAIN })
            .collect();
        let mut state = cluster(30, &workers, 0.1);
        settle(&mut state);
        for (worker, (layer, head)) in state.workers.values_mut().zip(&noise) {
            let time = worker.layer_times.get_mut("m").unwrap();
            time.decode_ms *= layer;
            time.head_ms *= head;
        }
        prop_assert_eq!(next_plan(&state, LEADER, &Policy::default()).plan, None);
    }

    #[test]
    fn another_worker_never_lowers_the_throughput(
        workers in proptest::collection::vec(any_worker(), 2..7),
        latency in prop_oneof![0.0..0.5f64, 0.5..20.0f64],
    ) {
        let exact = Policy { near_tie: 0.0, ..Policy::default() };
        let state = cluster(24, &workers, latency);
        let mut fewer = state.clone();
        fewer.workers.pop_last();
        for (policy, least) in [(exact, 1.0 - 1e-6), (Policy::default(), 1.0 / 1.02 - 1e-6)] {
            let (before, after) = (throughput(&fewer, &policy), throughput(&state, &policy));
            prop_assert!(after >= before * least, "{} tokens/s, then {}", before, after);
        }
        // Nor does it when it joins a cluster that serves.
        if settle(&mut fewer).plan.is_some() {
            let before = fewer.plan.pipelines[0].predicted_tokens_per_s;
            let (id, worker) = state.workers.last_key_value().unwrap();
            fewer.workers.insert(id.clone(), worker.clone());
            settle(&mut fewer);
            prop_assert!(fewer.plan.pipelines[0].predicted_tokens_per_s >= before * (1.0 - 1e-6));
        }
    }

    #[test]
    fn the_layers_of_the_lost_go_to_those_that_are_left(
        workers in proptest::collection::vec(any_worker(), 2..8),
        lost in 0usize..8,
        latency in 0.0..1.0f64,
    ) {
        let mut state = cluster(24, &workers, latency);
        settle(&mut state);
        let epoch = state.plan.epoch;
        let lost = lost % workers.len();
        let held = state.plan.pipelines.first()
            .is_some_and(|pipeline| layers(pipeline).contains_key(&name(lost).0));
        lose(&mut state, lost);
        let decision = settle(&mut state);
        prop_assert_eq!(decision.plan.is_some(), held, "a plan changes if it has to");
        if let Some(plan) = decision.plan {
            prop_assert_eq!(plan.epoch.0, epoch.0 + 1);
            check(&state, &plan, &Policy::default());
            prop_assert_eq!(plan.pipelines.is_empty(), !decision.no_fit.is_empty());
            prop_assert!(plan.pipelines.iter().all(|pipeline| !layers(pipeline).contains_key(&name(lost).0)));
            prop_assert_eq!(decision.urgent, !plan.pipelines.is_empty());
        }
    }
}

//! The sampler against its definition done naively, and its recovery.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

/// The definition with full sorts and no shortcuts; `text` holds the tokens so far.
fn naive(s: &Sampling, prompt: usize, text: &[u32], logits: &[f32]) -> u32 {
    let mut l = logits.to_vec();
    for (token, bias) in &s.logit_bias {
        l[*token as usize] += bias;
    }
    for (token, logit) in l.iter_mut().enumerate() {
        if s.repetition_penalty != 1.0 && text.contains(&(token as u32)) {
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
        }
        let count = text.iter().skip(prompt).filter(|t| **t as usize == token).count();
        if count > 0 {
            *logit -= s.frequency_penalty * count as f32;
            *logit -= s.presence_penalty;
        }
    }
    let mut order: Vec<usize> = (0..l.len()).collect();
    order.sort_by(|a, b| l[*b].partial_cmp(&l[*a]).unwrap().then(a.cmp(b)));
    if s.temperature == 0.0 {
        return order[0] as u32;
    }
    let highest = f64::from(l[order[0]]);
    let weight = |token: usize| exp_f64((f64::from(l[token]) - highest) / f64::from(s.temperature));
    if s.top_k > 0 {
        order.truncate(s.top_k as usize);
    }
    if s.top_p < 1.0 {
        let mut by_token = order.clone();
        by_token.sort_unstable();
        let goal = f64::from(s.top_p) * by_token.iter().map(|t| weight(*t)).sum::<f64>();
        let mut sum = 0.0;
        let reached = order.iter().position(|t| {
            sum += weight(*t);
            sum >= goal
        });
        order.truncate(reached.map_or(order.len(), |at| at + 1));
    }
    order.retain(|t| weight(*t) >= f64::from(s.min_p));
    order.sort_unstable();
    let goal = uniform(s.seed, text.len() as u32) * order.iter().map(|t| weight(*t)).sum::<f64>();
    let mut sum = 0.0;
    let chosen = order.iter().find(|t| {
        sum += weight(**t);
        sum > goal
    });
    *chosen.or(order.last()).unwrap() as u32
}

fn parameters() -> impl Strategy<Value = Sampling> {
    let penalties = (prop_oneof![Just(1.0f32), 0.5f32..2.0], prop_oneof![Just(0f32), -2f32..2.0], -2f32..2.0);
    let filters = (
        prop_oneof![Just(0f32), 0.1f32..3.0],
        prop_oneof![Just(0u32), 1u32..400],
        prop_oneof![Just(1f32), 0.0f32..1.0],
        prop_oneof![Just(0f32), 0.0f32..1.0],
    );
    let bias = proptest::collection::btree_map(0u32..300, -5f32..5.0, 0..4);
    (penalties, filters, bias, any::<u64>()).prop_map(
        |((repetition, frequency, presence), filters, bias, seed)| Sampling {
            logit_bias: bias.into_iter().collect(),
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            temperature: filters.0,
            top_k: filters.1,
            top_p: filters.2,
            min_p: filters.3,
            seed,
            logprobs: None,
            constraint: None,
        },
    )
}

/// Logits with many ties.
fn logits(seed: u64, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((mix(seed ^ mix(i as u64)) % 97) as f32 - 60.0) / 8.0).collect()
}

proptest! {
    #[test]
    fn choices_are_the_definitions_and_recovery_is_exact(
        sampling in parameters(), vocab in 300usize..900, prompt in 1u32..6, seed: u64, cut in 0usize..8,
    ) {
        let mut sampler = SequenceSampler::new(sampling.clone(), prompt);
        let mut text: Vec<u32> = (0..prompt).map(|i| (mix(seed + u64::from(i)) % vocab as u64) as u32).collect();
        for (position, token) in text.iter().enumerate() {
            sampler.see(position as u32, *token);
        }
        for step in 0..8 {
            let logits = logits(seed + step as u64, vocab);
            let want = naive(&sampling, prompt as usize, &text, &logits);
            if step == cut {
                sampler = SequenceSampler::new(sampling.clone(), prompt);
                for (position, token) in text.iter().enumerate() {
                    sampler.see(position as u32, *token);
                }
            }
            let got = sampler.sample(text.len() as u32, &mut logits.clone(), None).unwrap();
            prop_assert_eq!(got.token, want);
            sampler.see(text.len() as u32, got.token);
            text.push(got.token);
        }
    }
}

#[test]
fn log_probabilities_are_those_before_temperature() {
    let sampling = Sampling { temperature: 2.0, logprobs: Some(3), ..Sampling::default() };
    let mut logits = vec![1.0f32, 3.0, -2.0, 3.0];
    logits.extend(vec![-4.0; 50]);
    let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let mut sampler = SequenceSampler::new(sampling, 0);
    let sampled = sampler.sample(0, &mut logits.clone(), None).unwrap();
    assert_eq!(sampled.top.iter().map(|top| top.token).collect::<Vec<_>>(), [1, 3, 0]);
    for top in &sampled.top {
        let want = f64::from(logits[top.token as usize]) - total.ln();
        assert!((f64::from(top.logprob) - want).abs() < 1e-6);
    }
    let want = f64::from(logits[sampled.token as usize]) - total.ln();
    assert!((f64::from(sampled.logprob.unwrap()) - want).abs() < 1e-6);
}

#[test]
fn broken_logits_and_gaps_are_errors_and_change_nothing() {
    let mut sampler = SequenceSampler::new(Sampling::default(), 1);
    assert!(sampler.sample(1, &mut [0.0], None).is_err(), "position 0 is unknown");
    sampler.see(0, 0);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(sampler.sample(1, &mut [0.0, bad], None).is_err());
    }
    assert!(sampler.sample(1, &mut [], None).is_err());
    assert_eq!(sampler.sample(1, &mut [0.0, 1.0, 1.0], None).unwrap().token, 1);
    sampler.see(3, 0);
    assert!(sampler.sample(4, &mut [0.0], None).is_err(), "position 2 was left out");
}

#[test]
fn random_numbers_are_even_and_independent_of_neighbours() {
    let count = 40_000;
    let mut tenths = [0u32; 10];
    let (mut sum, mut product) = (0.0, 0.0);
    for i in 0..count {
        let (u, v) = (uniform(7, i), uniform(8, i));
        assert!((0.0..1.0).contains(&u));
        tenths[(u * 10.0) as usize] += 1;
        sum += u;
        product += (u - 0.5) * (v - 0.5) + (u - 0.5) * (uniform(7, i + 1) - 0.5);
    }
    assert!(tenths.iter().all(|tenth| (3_700..4_300).contains(tenth)), "{tenths:?}");
    assert!((sum / f64::from(count) - 0.5).abs() < 0.01);
    assert!((product / f64::from(count)).abs() < 0.003);
}

//! The journal alone: what follows what.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn tokens(output: u64) -> Tokens {
    Tokens { prompt: 3, cached: 1, output, reasoning: 0 }
}

/// The entries of an undisturbed run with `items` items.
fn entries(items: u32, end: &TurnEnd) -> Vec<Entry> {
    let item = |item: u32| Entry::ItemComplete {
        item,
        tokens: tokens(u64::from(item) + 1),
        end: (item + 1 == items).then(|| end.clone()),
    };
    match items {
        0 => vec![Entry::TurnEnded { items: 0, tokens: tokens(0), end: end.clone() }],
        _ => (0..items).map(item).collect(),
    }
}

fn ends() -> impl Strategy<Value = TurnEnd> {
    prop_oneof![
        Just(TurnEnd::Answered),
        Just(TurnEnd::Cut(Cut::Length)),
        Just(TurnEnd::HandedOver(vec!["call_1".to_owned(), "call_2".to_owned()])),
    ]
}

proptest! {
    /// Several nodes commit the same steps, each from where it began: the run is the undisturbed one.
    #[test]
    fn repeats_change_nothing(items in 0u32..6, end in ends(), order in prop::collection::vec(0usize..8, 0..60)) {
        let all = entries(items, &end);
        let mut undisturbed = Run::accepted();
        let mut sum = Tokens::default();
        for entry in &all {
            prop_assert!(matches!(undisturbed.apply(entry), Effect::Taken(_)));
        }
        let mut run = Run::accepted();
        for at in order.into_iter().chain(0..all.len()) {
            let Some(entry) = all.get(at) else { continue };
            let before = run.clone();
            match run.apply(entry) {
                Effect::Taken(tokens) => sum.add(&tokens),
                Effect::Repeat | Effect::Misfit(_) => prop_assert_eq!(&run, &before),
            }
        }
        prop_assert_eq!(&run, &undisturbed);
        prop_assert_eq!(sum, undisturbed.tokens);
        prop_assert_eq!(run.next(), Step::Rest);
    }
}

#[test]
fn a_run_that_hands_calls_to_the_client_is_over_and_names_them() {
    let mut run = Run::accepted();
    assert_eq!(run.next(), Step::Generate { items: 0 });
    let end = Some(TurnEnd::HandedOver(vec!["call_1".to_owned()]));
    run.apply(&Entry::ItemComplete { item: 0, tokens: tokens(5), end });
    assert_eq!((run.phase.clone(), run.next()), (Phase::Completed, Step::Rest));
    assert_eq!(run.calls, ["call_1"]);
}

#[test]
fn what_is_over_stays_as_it_is() {
    for last in [Entry::Cancelled, Entry::Failed(RunError { code: "x".into(), message: "y".into() })] {
        let mut run = Run::accepted();
        run.apply(&Entry::ItemComplete { item: 0, tokens: tokens(1), end: None });
        assert_eq!(run.next(), Step::Generate { items: 1 });
        run.apply(&last);
        let over = run.clone();
        assert!(run.is_over());
        let late = Entry::ItemComplete { item: 1, tokens: tokens(9), end: Some(TurnEnd::Answered) };
        assert_eq!(run.apply(&late), Effect::Repeat);
        assert_eq!(run.apply(&Entry::Cancelled), Effect::Repeat);
        assert_eq!(run, over);
    }
}

#[test]
fn an_item_out_of_turn_is_a_misfit() {
    let mut run = Run::accepted();
    let gap = Entry::ItemComplete { item: 1, tokens: tokens(1), end: None };
    assert!(matches!(run.apply(&gap), Effect::Misfit(_)));
    let early = Entry::TurnEnded { items: 2, tokens: tokens(1), end: TurnEnd::Answered };
    assert!(matches!(run.apply(&early), Effect::Misfit(_)));
    assert_eq!(run, Run::accepted());
}

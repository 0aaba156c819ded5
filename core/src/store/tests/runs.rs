//! Any interleaving of crashes, deposed leaders and repeated commands gives the undisturbed objects.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::journal::{Cut, Step};

const RUNS: usize = 4;
const NOW: u64 = 100;

/// What every node computes for a run: a pure function of it.
fn complete(run: usize, number: u32) -> StoreCommand {
    let count = 1 + (run as u32) % 3;
    let end = (number + 1 == count).then(|| match run % 4 {
        0 => TurnEnd::Answered,
        1 => TurnEnd::HandedOver(vec![format!("call_{run}")]),
        2 => TurnEnd::Cut(Cut::Length),
        _ => TurnEnd::Answered,
    });
    let tokens = Tokens { prompt: 7, cached: 0, output: 10 * run as u64 + u64::from(number), reasoning: 1 };
    StoreCommand::Journal {
        target: target("t1", &id(run)),
        entry: Entry::ItemComplete { item: number, tokens, end },
        item: Some(item(&format!("msg_{run}_{number}"), &format!("text {run} {number}"))),
        upload: None,
        now_ms: NOW,
    }
}

fn id(run: usize) -> String {
    format!("resp_{run}")
}

fn accept_run(run: usize) -> StoreCommand {
    let conversation = (run == 2).then(|| "c1".to_owned());
    StoreCommand::AcceptResponse(Box::new(Accept { conversation, ..accept(&id(run), NOW) }))
}

fn begin() -> MemoryRows {
    let mut rows = MemoryRows::default();
    done(&mut rows, conversation("c1", vec![item("m0", "hello")], NOW));
    rows
}

fn undisturbed() -> MemoryRows {
    let mut rows = begin();
    for run in 0..RUNS {
        done(&mut rows, accept_run(run));
        let mut number = 0;
        while !read::response(&rows, &target("t1", &id(run))).unwrap().unwrap().run.is_over() {
            done(&mut rows, complete(run, number));
            number += 1;
        }
    }
    rows
}

/// A node that leads, or believes to.
#[derive(Clone, Default)]
struct Node {
    /// What it will propose next, by run, as far as it has looked.
    next: [Option<u32>; RUNS],
}

#[derive(Clone, Debug)]
enum Event {
    /// A gateway proposes a run (again).
    Accept(usize),
    /// The node looks at a run's state, and remembers.
    Look(usize, usize),
    /// The node proposes the step it remembers. `lost`: it never hears what became of it.
    Propose(usize, usize, bool),
    Crash(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        1 => (0..RUNS).prop_map(Event::Accept),
        3 => (0..3usize, 0..RUNS).prop_map(|(node, run)| Event::Look(node, run)),
        5 => (0..3usize, 0..RUNS, any::<bool>()).prop_map(|(node, run, lost)| Event::Propose(node, run, lost)),
        1 => (0..3usize).prop_map(Event::Crash),
    ];
    prop::collection::vec(event, 0..120)
}

fn look(rows: &MemoryRows, run: usize) -> Option<u32> {
    let response = read::response(rows, &target("t1", &id(run))).unwrap()?;
    match response.run.next() {
        Step::Generate { items } => Some(items),
        Step::Rest => None,
    }
}

fn play(events: &[Event]) -> MemoryRows {
    let mut rows = begin();
    let mut nodes = vec![Node::default(); 3];
    for event in events {
        match *event {
            Event::Accept(run) => {
                apply(&mut rows, &accept_run(run)).unwrap();
            }
            Event::Look(node, run) => nodes[node].next[run] = look(&rows, run),
            Event::Propose(node, run, lost) => {
                let Some(number) = nodes[node].next[run] else { continue };
                let outcome = apply(&mut rows, &complete(run, number)).unwrap();
                assert!(matches!(outcome, StoreOutcome::Done | StoreOutcome::Unchanged), "{outcome:?}");
                let more = number < (run as u32) % 3;
                nodes[node].next[run] = if lost { None } else { more.then_some(number + 1) };
            }
            Event::Crash(node) => nodes[node] = Node::default(),
        }
    }
    // The faults stop: whoever leads then finishes what is there.
    for run in 0..RUNS {
        apply(&mut rows, &accept_run(run)).unwrap();
        while let Some(number) = look(&rows, run) {
            done(&mut rows, complete(run, number));
        }
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn crashes_and_deposed_leaders_change_nothing(events in events()) {
        prop_assert_eq!(play(&events), undisturbed());
    }
}

#[test]
fn the_comparison_can_fail() {
    let mut rows = undisturbed();
    let usage = read::usage(&rows, None, 10).unwrap();
    let expected: u64 = [0, 10 + 11, 20 + 21 + 22, 30].iter().sum();
    assert_eq!(usage[0].1.tokens.output, expected);
    rows.0.pop_last();
    assert_ne!(rows, undisturbed());
}

//! Bar 2: the same bits over workers, coordinators, clients at a time, prefill chunks and threads.
//!
//! Must never compare with a tolerance.

use super::ask::{Answer, Question, ask_all, questions};
use super::harness::{Cluster, Options, full};

#[derive(Clone, Copy, Debug)]
struct Shape {
    workers: usize,
    coordinators: usize,
    chunk: u32,
    threads: usize,
}

/// Every shape, or a set in which every two values of different dimensions meet at least once.
fn shapes() -> Vec<Shape> {
    let shape = |workers, coordinators, chunk, threads| Shape { workers, coordinators, chunk, threads };
    if !full() {
        return vec![
            shape(1, 1, 512, 1),
            shape(1, 3, 16, 2),
            shape(2, 1, 16, 1),
            shape(2, 3, 64, 2),
            shape(3, 1, 64, 1),
            shape(3, 3, 512, 2),
            shape(5, 1, 512, 2),
            shape(5, 3, 16, 1),
        ];
    }
    let mut shapes = Vec::new();
    for workers in [1, 2, 3, 5] {
        for coordinators in [1, 3] {
            for chunk in [16, 64, 512] {
                for threads in [1, 2] {
                    shapes.push(shape(workers, coordinators, chunk, threads));
                }
            }
        }
    }
    shapes
}

fn compare(reference: &[Answer], answers: &[Answer], questions: &[Question], what: &str) {
    for ((expected, answer), question) in reference.iter().zip(answers).zip(questions) {
        assert_eq!(
            expected,
            answer,
            "{what}: prompt of {} tokens, temperature {}",
            question.prompt.len(),
            question.temperature
        );
    }
}

#[test]
fn answers_are_the_same_bits_in_every_shape() {
    let questions = questions(48);
    let mut reference: Option<Vec<Answer>> = None;
    let mut compared = 0;
    for shape in shapes() {
        let options = Options::new(shape.workers, shape.coordinators)
            .threads(shape.threads)
            .flag("--prefill-chunk", &shape.chunk.to_string());
        let cluster = Cluster::start(options);
        let doors = cluster.doors();
        for clients in [1, 8] {
            // One client at a time is slow and proves little more in each further shape.
            if clients == 1 && !full() && reference.is_some() && shape.workers != 3 {
                continue;
            }
            let answers = ask_all(&doors, &questions, clients);
            assert!(answers.iter().all(|answer| answer.tokens.len() == 48), "48 tokens each");
            match &reference {
                None => reference = Some(answers),
                Some(reference) => {
                    compare(reference, &answers, &questions, &format!("{shape:?}, {clients} clients"));
                    compared += answers.len();
                }
            }
            eprintln!("exactness: {shape:?} {clients} clients: same");
        }
    }
    let reference = reference.expect("at least one shape ran");
    let distinct: std::collections::BTreeSet<_> = reference.iter().map(|answer| &answer.tokens).collect();
    assert!(distinct.len() * 10 > reference.len() * 9, "the questions have different answers");
    eprintln!("exactness: {compared} answers compared, 0 differ");
}

//! Many requests: from clients that take turns (closed loop), or arriving at random times (open loop).
//!
//! Must never let a slow server slow the arrivals of an open loop down unseen: times count from the arrival.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use caravan_core::limits;
use serde_json::{Value, json};

use super::ask::{Answer, Failure, Target, counted_by};
use super::prompts;
use super::spread::Spread;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many clients, each with one request at a time.
    Clients(u32),
    /// So many requests a second on average.
    Rate(f64),
}

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub pace: Pace,
    pub requests: u32,
    pub prompt_words: u32,
    pub seed: u64,
}

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    pub wall: Duration,
    pub answers: Vec<Answer>,
    pub failures: Vec<Failure>,
    /// The longest time by which a request was sent after its arrival, because all senders were busy.
    pub late_ms: u64,
}

/// Asks `count` requests one after the other, and throws the answers away. Their prompts are none of the load's.
pub fn warm_up(target: &Target, load: Load, count: u32) -> Result<(), Failure> {
    let agent = target.agent();
    for index in 0..count {
        let prompt = prompts::prompt(load.seed, load.requests + index, load.prompt_words);
        target.ask(&agent, &prompt, Instant::now())?;
    }
    Ok(())
}

/// Runs the load to its end. `progress` hears how many requests are done.
pub fn run(target: &Target, load: Load, progress: &(dyn Fn(u64) + Sync)) -> Outcome {
    let (senders, arrivals) = match load.pace {
        Pace::Clients(clients) => (clients as usize, None),
        Pace::Rate(rate) => {
            let senders = limits::BENCH_CLIENTS.min(load.requests as usize);
            (senders, Some(prompts::arrivals(load.seed, rate, load.requests)))
        }
    };
    let (next, done, late_ms) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let results = Mutex::new(Vec::new());
    let begun = Instant::now();
    let send = || {
        let agent = target.agent();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= load.requests as usize {
                return;
            }
            let prompt = prompts::prompt(load.seed, index as u32, load.prompt_words);
            let due = match arrivals.as_ref().and_then(|times| times.get(index)) {
                Some(seconds) => begun + Duration::from_secs_f64(*seconds),
                None => Instant::now(),
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            late_ms.fetch_max(due.elapsed().as_millis() as u64, Ordering::Relaxed);
            let result = target.ask(&agent, &prompt, due);
            results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| (0..senders).for_each(|_| drop(scope.spawn(send))));
    let wall = begun.elapsed();
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match result {
            Ok(answer) => answers.push(answer),
            Err(failure) => failures.push(failure),
        }
    }
    Outcome { wall, answers, failures, late_ms: late_ms.into_inner() }
}

impl Outcome {
    /// Output tokens of whole answers: as the server counts them, else the parts of text.
    pub fn output_tokens(&self) -> u64 {
        self.answers.iter().map(|answer| answer.output_tokens.unwrap_or(answer.parts)).sum()
    }

    pub fn errors(&self) -> BTreeMap<&str, u64> {
        let mut errors = BTreeMap::new();
        for failure in &self.failures {
            *errors.entry(failure.kind.as_str()).or_default() += 1;
        }
        errors
    }

    fn spread(&self, numbers: impl Fn(&Answer) -> Vec<f64>) -> Spread {
        Spread::of(self.answers.iter().flat_map(numbers).collect())
    }

    /// Milliseconds from arrival to the first part of text.
    pub fn first_ms(&self) -> Spread {
        self.spread(|answer| vec![answer.first_ms])
    }

    /// Milliseconds between parts of text.
    pub fn gaps_ms(&self) -> Spread {
        self.spread(|answer| answer.gaps_ms.clone())
    }

    /// Milliseconds from arrival to the end.
    pub fn total_ms(&self) -> Spread {
        self.spread(|answer| vec![answer.total_ms])
    }

    /// Tokens of prompts, by the server's count.
    pub fn prompt_tokens(&self) -> Spread {
        self.spread(|answer| answer.prompt_tokens.iter().map(|count| *count as f64).collect())
    }

    /// What `--json` prints.
    pub fn report(&self, load: Load) -> Value {
        let seconds = self.wall.as_secs_f64().max(1e-9);
        let tokens = self.output_tokens();
        let (mode, clients, rate) = match load.pace {
            Pace::Clients(clients) => ("closed", Some(clients), None),
            Pace::Rate(rate) => ("open", None, Some(rate)),
        };
        let parts: u64 = self.answers.iter().map(|answer| answer.parts).sum();
        json!({
            "test": "http",
            "mode": mode,
            "clients": clients,
            "rate": rate,
            "requests": load.requests,
            "completed": self.answers.len(),
            "errors": self.errors(),
            "wall_s": seconds,
            "output_tokens": tokens,
            "tokens_counted_by": counted_by(self.answers.iter()),
            "parts": parts,
            "output_tokens_per_s": tokens as f64 / seconds,
            "requests_per_s": self.answers.len() as f64 / seconds,
            "ttft_ms": self.first_ms().percentiles(),
            "gap_ms": self.gaps_ms().percentiles(),
            "latency_ms": self.total_ms().percentiles(),
            "prompt_tokens": self.prompt_tokens().mean(),
            "sent_late_ms": self.late_ms,
        })
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;

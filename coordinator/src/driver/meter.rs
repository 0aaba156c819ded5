//! What a driver measured: counters that outlive epochs, and tokens a second of busy time.
//!
//! Must never read a clock: the driver says when.

use std::collections::VecDeque;
use std::time::Instant;

use caravan_core::batch::BatchStats;
use caravan_core::limits;

use super::PipelineStats;

/// Busy milliseconds that share one entry of the window.
const BUCKET_MS: f64 = 100.0;

#[derive(Default)]
pub(super) struct Meter {
    tokens_total: u64,
    prefill_tokens_total: u64,
    load: BatchStats,
    /// Time with steps in flight since this process drives the pipeline, milliseconds.
    busy_ms: f64,
    last: Option<Instant>,
    /// (busy time, tokens emitted around then), oldest first.
    window: VecDeque<(f64, u64)>,
}

impl Meter {
    /// To be called whenever something happened: counts the time since the last call as busy if
    /// steps were in flight in it.
    pub(super) fn observe(&mut self, now: Instant, load: BatchStats) {
        if let Some(last) = self.last.filter(|_| self.load.steps_in_flight > 0) {
            self.busy_ms += now.saturating_duration_since(last).as_secs_f64() * 1e3;
        }
        self.last = Some(now);
        self.load = load;
        let begin = self.busy_ms - limits::RATE_WINDOW_MS as f64;
        while self.window.front().is_some_and(|(at, _)| *at < begin) {
            self.window.pop_front();
        }
    }

    /// Between epochs nothing runs and nothing waits.
    pub(super) fn rest(&mut self, now: Instant) {
        self.observe(now, BatchStats::default());
    }

    pub(super) fn emitted(&mut self, tokens: u64) {
        self.tokens_total += tokens;
        match self.window.back_mut() {
            Some((at, sum)) if self.busy_ms - *at < BUCKET_MS => *sum += tokens,
            _ => self.window.push_back((self.busy_ms, tokens)),
        }
    }

    pub(super) fn prefilled(&mut self, tokens: u64) {
        self.prefill_tokens_total += tokens;
    }

    pub(super) fn stats(&self) -> PipelineStats {
        let span_ms = self.busy_ms.min(limits::RATE_WINDOW_MS as f64);
        let tokens: u64 = self.window.iter().map(|(_, tokens)| tokens).sum();
        PipelineStats {
            serving: false,
            running: self.load.running,
            waiting: self.load.waiting,
            free_pages: self.load.free_pages,
            pages: self.load.pages,
            steps_in_flight: self.load.steps_in_flight,
            tokens_total: self.tokens_total,
            prefill_tokens_total: self.prefill_tokens_total,
            tokens_per_s: if span_ms > 0.0 { tokens as f64 * 1e3 / span_ms } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_of_busy_time_only() {
        let start = Instant::now();
        let busy = BatchStats { steps_in_flight: 1, ..BatchStats::default() };
        let mut meter = Meter::default();
        meter.observe(start, busy);
        for i in 1..=200u64 {
            meter.observe(start + Duration::from_millis(i * 100), busy);
            meter.emitted(3);
        }
        let rate = meter.stats().tokens_per_s;
        assert!((rate - 30.0).abs() < 0.5, "{rate}");
        meter.rest(start + Duration::from_millis(20_000));
        meter.observe(start + Duration::from_secs(500), busy);
        assert_eq!(meter.stats().tokens_per_s, rate, "rest is no work");
        assert_eq!(meter.stats().tokens_total, 600);
        assert!(meter.window.len() <= 102);
    }
}

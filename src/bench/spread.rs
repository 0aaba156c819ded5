//! Order statistics of a few measured numbers.
//!
//! Must never make up a number: percentiles are measured values (nearest rank), and of nothing there is none.

use serde_json::{Value, json};

/// Measured numbers, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    sorted: Vec<f64>,
}

impl Spread {
    pub fn of(mut numbers: Vec<f64>) -> Spread {
        numbers.sort_by(f64::total_cmp);
        Spread { sorted: numbers }
    }

    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    pub fn min(&self) -> Option<f64> {
        self.sorted.first().copied()
    }

    pub fn max(&self) -> Option<f64> {
        self.sorted.last().copied()
    }

    /// The middle one, or the mean of the middle two.
    pub fn median(&self) -> Option<f64> {
        let upper = *self.sorted.get(self.sorted.len() / 2)?;
        let lower = *self.sorted.get((self.sorted.len() - 1) / 2)?;
        Some(f64::midpoint(lower, upper))
    }

    pub fn mean(&self) -> Option<f64> {
        (!self.sorted.is_empty()).then(|| self.sorted.iter().sum::<f64>() / self.sorted.len() as f64)
    }

    /// The smallest number that `percent` of all are not above.
    pub fn percentile(&self, percent: u32) -> Option<f64> {
        let rank = (self.sorted.len() * percent as usize).div_ceil(100);
        self.sorted.get(rank.max(1) - 1).copied()
    }

    /// `{"p50", "p90", "p99"}`; null where nothing was measured.
    pub fn percentiles(&self) -> Value {
        json!({"p50": self.percentile(50), "p90": self.percentile(90), "p99": self.percentile(99)})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let spread = Spread::of((1..=10).rev().map(f64::from).collect());
        let at = |percent| spread.percentile(percent);
        assert_eq!(
            [at(0), at(50), at(51), at(90), at(99), at(100)],
            [1.0, 5.0, 6.0, 9.0, 10.0, 10.0].map(Some)
        );
        assert_eq!((spread.min(), spread.median(), spread.max()), (Some(1.0), Some(5.5), Some(10.0)));
        assert_eq!(spread.mean(), Some(5.5));
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]).median(), Some(2.0));
    }

    #[test]
    fn of_nothing_there_is_no_number() {
        let none = Spread::default();
        assert_eq!((none.min(), none.median(), none.mean(), none.percentile(50)), (None, None, None, None));
        assert_eq!(none.percentiles()["p50"], Value::Null);
    }
}

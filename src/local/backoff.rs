//! How long to wait before a process that died is started again.
//!
//! Must never read a clock: how long the process lived is an argument.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// A process that lived this long was well; its next death is a first one again.
const WELL: Duration = Duration::from_secs(30);

/// The deaths of one process.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    quick_deaths: u32,
}

impl Backoff {
    /// Takes in a death after `lived` and says how long to wait.
    pub fn died(&mut self, lived: Duration) -> Duration {
        if lived >= WELL {
            self.quick_deaths = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.quick_deaths.min(16)).min(LONGEST);
        self.quick_deaths = self.quick_deaths.saturating_add(1);
        wait
    }

    /// Deaths in a row without a long life between them.
    pub fn quick_deaths(&self) -> u32 {
        self.quick_deaths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_begin_again_after_a_long_life() {
        let mut backoff = Backoff::default();
        let at_once = Duration::from_millis(5);
        let waits: Vec<u128> = (0..8).map(|_| backoff.died(at_once).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.quick_deaths(), 8);
        assert_eq!(backoff.died(Duration::from_secs(31)).as_millis(), 200);
        assert_eq!(backoff.quick_deaths(), 1);
        for _ in 0..100 {
            assert!(backoff.died(at_once) <= LONGEST);
        }
    }
}

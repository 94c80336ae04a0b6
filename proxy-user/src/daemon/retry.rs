//! When to try again.

use std::time::{Duration, Instant};

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from failure to failure.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// Something failed, or nothing did.
    pub(super) fn outcome(&mut self, failed: bool, now: Instant) {
        if failed {
            let wait = FIRST
                .saturating_mul(1 << self.failures.min(16))
                .min(LONGEST);
            self.failures = self.failures.saturating_add(1);
            self.at = Some(now + wait);
        } else {
            *self = Self::default();
        }
    }

    /// When to try again; none: nothing has failed.
    pub(super) const fn at(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_end_with_success() {
        let mut retry = Retry::default();
        let now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            retry.outcome(true, now);
            waits.push(retry.at().unwrap() - now);
        }
        assert_eq!(waits[0], FIRST);
        assert_eq!(waits[3], FIRST * 8);
        assert_eq!(waits[11], LONGEST);
        retry.outcome(false, now);
        assert_eq!(retry.at(), None);
    }
}

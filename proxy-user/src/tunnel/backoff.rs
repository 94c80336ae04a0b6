//! How long to wait before the next attempt.

use std::time::Duration;

/// Limits of the waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

/// Waits that double from failure to failure, each moved by up to a quarter either way, so that
/// many that failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    limits: Limits,
    failures: u32,
    jitter: Jitter,
}

impl Backoff {
    /// Nothing has failed yet. `seed` decides what the jitter is.
    #[must_use]
    pub const fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            failures: 0,
            jitter: Jitter::new(seed),
        }
    }

    /// Counts a failure and returns the wait.
    pub fn fail(&mut self) -> Duration {
        let doubled = self
            .limits
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.limits.longest);
        self.failures = self.failures.saturating_add(1);
        let permille = 750 + self.jitter.below(501);
        (doubled.saturating_mul(permille) / 1_000).clamp(self.limits.first, self.limits.longest)
    }

    /// Something went well.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since something went well.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// Numbers that need not be hard to guess (xorshift64*, Vigna 2016).
#[derive(Clone, Debug)]
struct Jitter(u64);

impl Jitter {
    const fn new(seed: u64) -> Self {
        // Zero is the one state that it never leaves.
        Self(seed | 1)
    }

    /// From 0 to `limit - 1`; `limit` is at least 1.
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        u32::try_from(high).unwrap_or_default() % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(10),
    };

    #[test]
    fn waits_double_within_a_quarter_and_stay_within_limits() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(LIMITS, seed);
            for failure in 0..30 {
                let wait = backoff.fail();
                let middle = LIMITS
                    .first
                    .saturating_mul(1 << failure.min(20))
                    .min(LIMITS.longest);
                let least = (middle * 3 / 4).max(LIMITS.first);
                let most = (middle * 5 / 4).min(LIMITS.longest);
                assert!((least..=most).contains(&wait), "{seed} {failure}: {wait:?}");
            }
            backoff.reset();
            assert!(backoff.fail() <= Duration::from_millis(125));
        }
    }

    #[test]
    fn two_that_fail_together_do_not_come_back_together() {
        let wait = |seed| {
            let mut backoff = Backoff::new(LIMITS, seed);
            (0..8).map(|_| backoff.fail()).collect::<Vec<_>>()
        };
        assert_ne!(wait(11), wait(12_345));
    }
}

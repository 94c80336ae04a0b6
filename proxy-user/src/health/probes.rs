//! How often was answered what.

use std::sync::atomic::{AtomicU64, Ordering};

/// Answers to probes of one page, by status code.
#[derive(Debug, Default)]
pub struct Answers {
    good: AtomicU64,
    bad: AtomicU64,
}

impl Answers {
    /// One more.
    pub(super) fn count(&self, good: bool) {
        let answers = if good { &self.good } else { &self.bad };
        answers.fetch_add(1, Ordering::Relaxed);
    }

    /// The codes and how often each was answered.
    #[must_use]
    pub fn by_code(&self) -> [(&'static str, u64); 2] {
        [
            ("200", self.good.load(Ordering::Relaxed)),
            ("503", self.bad.load(Ordering::Relaxed)),
        ]
    }
}

/// Answers to all probes of the daemon itself.
#[derive(Debug, Default)]
pub struct Probes {
    /// `/healthz`.
    pub healthz: Answers,
    /// `/livez`.
    pub livez: Answers,
}

//! How far behind the kernel's side is, and whether this node is to get new clients.
//!
//! The rules are kube-proxy's (`ProxyHealthServer` in `pkg/proxy/healthcheck/proxy_health.go`).

use std::time::{Duration, Instant, SystemTime};

use crate::model::{State, Unknown};
use crate::source::snapshot::Trigger;
use crate::telemetry::histogram::Histogram;

/// What is queued for so long is late: twice kube-proxy's `syncPeriod`, as there.
const LATE: Duration = Duration::from_mins(1);

/// Seconds of rounds, in kube-proxy's steps.
const ROUND_SECONDS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];

/// Seconds from a trigger to the kernel, in kube-proxy's steps.
const PROGRAMMING_SECONDS: [f64; 80] = [
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0, 29.0, 30.0, 31.0,
    32.0, 33.0, 34.0, 35.0, 36.0, 37.0, 38.0, 39.0, 40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 46.0, 47.0,
    48.0, 49.0, 50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0, 59.0, 60.0, 65.0, 70.0, 75.0,
    80.0, 85.0, 90.0, 95.0, 100.0, 105.0, 110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0,
    300.0,
];

/// Triggers that may wait for their changes.
const TRIGGERS: usize = 16_384;

/// How far the daemon has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since when something is to be done that has not been done as a whole.
    queued: Option<Instant>,
    /// Since when the engine has been at work on what it does now.
    working: Option<Instant>,
    /// When something was to be done last.
    last_queued: Option<SystemTime>,
    /// When all of it was done last.
    last_updated: Option<SystemTime>,
    rounds: Histogram,
    /// What has triggered changes that the kernel does not have yet.
    triggers: Vec<Trigger>,
    /// How long changes took to come into force, IPv4 and IPv6.
    programming: [Histogram; 2],
    node: Eligibility,
}

/// Whether load balancers are to send new clients to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eligibility {
    /// The Node has not been seen yet: nothing speaks against it.
    Unknown,
    /// The Node is there.
    Eligible,
    /// The Node is leaving, or was there and is no more.
    Leaving,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            queued: None,
            working: None,
            last_queued: None,
            last_updated: None,
            rounds: Histogram::new(&ROUND_SECONDS),
            triggers: Vec::new(),
            programming: [const { &PROGRAMMING_SECONDS }; 2].map(|steps| Histogram::new(steps)),
            node: Eligibility::Unknown,
        }
    }
}

impl Progress {
    /// Changes that this has triggered are to be made.
    pub(super) fn triggered(&mut self, triggers: &[Trigger]) {
        let room = TRIGGERS.saturating_sub(self.triggers.len());
        self.triggers.extend(triggers.iter().take(room));
    }

    /// A round begins.
    pub(super) fn begin(&mut self, now: Instant, at: SystemTime) {
        self.queued.get_or_insert(now);
        self.last_queued = Some(at);
    }

    /// It has ended, and took so long; `whole` says whether nothing is left to be done.
    pub(super) fn end(&mut self, took: Duration, whole: bool, at: SystemTime) {
        self.rounds.observe(took.as_secs_f64());
        if whole {
            self.queued = None;
            self.last_updated = Some(at);
            let [v4, v6] = &mut self.programming;
            for trigger in self.triggers.drain(..) {
                // Clocks of two machines: nothing takes less than no time.
                let took = at.duration_since(trigger.at).unwrap_or_default();
                let family = if trigger.v4 { &mut *v4 } else { &mut *v6 };
                family.observe(took.as_secs_f64());
            }
        }
    }

    /// The engine begins with something, or has ended it.
    pub(super) const fn work(&mut self, since: Option<Instant>) {
        self.working = since;
    }

    /// What the source says of this node. What it cannot say changes nothing.
    pub(super) fn look_at_node(&mut self, state: &State, name: &str) {
        self.node = match state.nodes.get(name) {
            Some(node) if node.leaving => Eligibility::Leaving,
            Some(_) => Eligibility::Eligible,
            None if state.unknown.contains(&Unknown::Anything) => self.node,
            None if self.node == Eligibility::Unknown => Eligibility::Unknown,
            None => Eligibility::Leaving,
        };
    }

    /// Whether what is queued is done in time. So it is as long as nothing has been queued.
    #[must_use]
    pub fn is_healthy(&self, now: Instant) -> bool {
        let in_time = |since: Option<Instant>| {
            since.is_none_or(|since| now.saturating_duration_since(since) < LATE)
        };
        in_time(self.queued) && in_time(self.working)
    }

    /// Whether load balancers are to send new clients here.
    #[must_use]
    pub fn is_node_eligible(&self) -> bool {
        self.node != Eligibility::Leaving
    }

    /// When something was to be done last; none: never.
    #[must_use]
    pub const fn last_queued(&self) -> Option<SystemTime> {
        self.last_queued
    }

    /// When all of it was done last; none: never.
    #[must_use]
    pub const fn last_updated(&self) -> Option<SystemTime> {
        self.last_updated
    }

    /// How long changes of endpoints took from what triggered them to the kernel, IPv4 and IPv6.
    #[must_use]
    pub const fn programming(&self) -> &[Histogram; 2] {
        &self.programming
    }

    /// How long rounds took.
    #[must_use]
    pub const fn rounds(&self) -> &Histogram {
        &self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;

    const SECOND: Duration = Duration::from_secs(1);

    /// A second before it is late.
    const ALMOST: Duration = Duration::from_secs(LATE.as_secs() - 1);

    #[test]
    fn what_is_queued_for_too_long_is_late() {
        let (start, at) = (Instant::now(), SystemTime::now());
        let mut progress = Progress::default();
        assert!(progress.is_healthy(start), "nothing is queued");
        progress.begin(start, at);
        assert!(progress.is_healthy(start + ALMOST));
        assert!(!progress.is_healthy(start + LATE));
        // Another round that leaves something does not make it any younger.
        progress.begin(start + 30 * SECOND, at);
        progress.end(SECOND, false, at);
        assert!(!progress.is_healthy(start + LATE));
        assert_eq!(progress.last_updated(), None);
        progress.begin(start + LATE, at);
        progress.end(SECOND, true, at + LATE);
        assert!(progress.is_healthy(start + 10 * LATE));
        assert_eq!(progress.last_updated(), Some(at + LATE));
        assert_eq!(progress.rounds().count(), 2);
    }

    #[test]
    fn a_change_counts_from_its_trigger_to_the_round_that_makes_it() {
        let (start, at) = (Instant::now(), SystemTime::now());
        let mut progress = Progress::default();
        let v4 = Trigger { at, v4: true };
        progress.triggered(&[v4, Trigger { v4: false, ..v4 }, v4]);
        progress.begin(start, at);
        progress.end(SECOND, false, at + SECOND);
        assert_eq!(progress.programming()[0].count(), 0, "it is not made yet");
        progress.begin(start, at);
        progress.end(SECOND, true, at + 3 * SECOND);
        let [v4, v6] = progress.programming();
        assert_eq!((v4.count(), v6.count()), (2, 1));
        assert!((v4.sum() - 6.0).abs() < 1e-6);
        progress.end(SECOND, true, at + 4 * SECOND);
        assert_eq!(progress.programming()[0].count(), 2, "it is counted once");
    }

    #[test]
    fn an_engine_that_hangs_is_late() {
        let start = Instant::now();
        let mut progress = Progress::default();
        progress.work(Some(start));
        assert!(progress.is_healthy(start + ALMOST));
        assert!(!progress.is_healthy(start + LATE));
        progress.work(None);
        assert!(progress.is_healthy(start + LATE));
    }

    #[test]
    fn a_node_gets_clients_until_it_leaves() {
        let state = |node: Option<bool>, unknown: &[Unknown]| State {
            nodes: node
                .map(|leaving| {
                    let node = Node {
                        leaving,
                        ..Node::default()
                    };
                    ("here".to_owned(), node)
                })
                .into_iter()
                .collect(),
            unknown: unknown.to_vec(),
            ..State::default()
        };
        let mut progress = Progress::default();
        let rows = [
            ("no Node, ever", state(None, &[]), true),
            ("a Node", state(Some(false), &[]), true),
            ("nothing is known", state(None, &[Unknown::Anything]), true),
            ("a Node that leaves", state(Some(true), &[]), false),
            ("nothing is known", state(None, &[Unknown::Anything]), false),
            ("it stays", state(Some(false), &[]), true),
            ("it was deleted", state(None, &[]), false),
            ("it is back", state(Some(false), &[]), true),
        ];
        for (what, state, expected) in rows {
            progress.look_at_node(&state, "here");
            assert_eq!(progress.is_node_eligible(), expected, "{what}");
        }
    }
}

//! Numbers that kube-proxy has under the same names (`pkg/proxy/metrics`), for whoever watches both.
//!
//! What one round does for both families together has no label `ip_family` here.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Samples;
use crate::{
    daemon::Progress,
    health::Answers,
    model::{Here, Kind, ZONE_LABEL},
    source::apiserver::KindHealth,
    telemetry::histogram::Histogram,
};

/// In the order of the pairs that families come in.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

impl Samples<'_> {
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let step = |bound: &str| -> Vec<(String, String)> {
            let labels = labels.iter().copied().chain([("le", bound)]);
            labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        let steps = histogram
            .steps()
            .map(|(bound, count)| (bound.to_string(), count));
        let all = [("+Inf".to_owned(), histogram.count())];
        for (bound, count) in steps.chain(all) {
            let labels = step(&bound);
            let labels: Vec<(&str, &str)> = labels
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            self.add_part("_bucket", &labels, count as f64);
        }
        self.add_part("_sum", labels, histogram.sum());
        self.add_part("_count", labels, histogram.count() as f64);
    }

    /// A time that there has been.
    pub(super) fn time(&mut self, time: Option<SystemTime>) {
        if let Some(time) = time {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.add(&[], since.as_secs_f64());
        }
    }

    /// Of one kind of objects, if they come from an API server.
    pub(super) fn changes(&mut self, kind: Kind, number: impl Fn(&KindHealth) -> u64) {
        let health = self.current.snapshot.api.as_ref();
        if let Some(health) = health.and_then(|health| health.kinds().remove(&kind)) {
            self.add(&[], number(&health) as f64);
        }
    }

    pub(super) fn answers(&mut self, answers: &Answers) {
        for (code, count) in answers.by_code() {
            self.add(&[("code", code)], count as f64);
        }
    }
}

pub(super) fn programming(samples: &mut Samples<'_>) {
    // Manifests don't say what has triggered a change.
    if samples.current.snapshot.api.is_none() {
        return;
    }
    let progress: &Progress = samples.progress;
    for (family, histogram) in FAMILIES.into_iter().zip(progress.programming()) {
        samples.histogram(&[("ip_family", family)], histogram);
    }
}

pub(super) fn no_local_endpoints(samples: &mut Samples<'_>) {
    let current = samples.current;
    let (state, node) = (&current.snapshot.state, current.config.node.as_str());
    let zone = state
        .nodes
        .get(node)
        .and_then(|node| node.labels.get(ZONE_LABEL))
        .map(String::as_str);
    let counts = state.without_local_endpoints(Here { node, zone });
    for (policy, families) in ["internal", "external"].into_iter().zip(counts) {
        for (family, count) in FAMILIES.into_iter().zip(families) {
            let labels = [("traffic_policy", policy), ("ip_family", family)];
            samples.add(&labels, count as f64);
        }
    }
}

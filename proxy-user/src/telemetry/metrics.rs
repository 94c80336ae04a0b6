//! Numbers for Prometheus, in its text format (version 0.0.4).
//!
//! [`METRICS`] is the one list of names; what is counted per packet is counted in the maps and read
//! when it is asked for.

mod kubeproxy;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use crate::daemon::{Current, Progress, View};
use crate::dataplane::flows::{Pressure, Usage};
use crate::inspect::{InspectError, drops};
use crate::model::{self, Severity};
use crate::source::apiserver::KindHealth;

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows, and begins anew at zero.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many values were no larger than each of some bounds.
    Histogram,
}

impl Kind {
    /// The word of the text format.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One name.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name, with its unit at the end.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
    samples: fn(&mut Samples<'_>),
}

macro_rules! metrics {
    ($($name:literal, $kind:ident, $help:literal, $samples:expr;)*) => {
        &[$(Metric { name: $name, kind: Kind::$kind, help: $help, samples: $samples },)*]
    };
}

/// All of them.
pub const METRICS: &[Metric] = metrics! {
    "causeway_info", Gauge, "What runs: always 1.", info;
    "causeway_dropped_packets_total", Counter, "Packets that went no further, by reason.",
        |s| s.dropped(true, |packets, _| packets);
    "causeway_dropped_bytes_total", Counter, "Bytes of packets that went no further, by reason.",
        |s| s.dropped(true, |_, bytes| bytes);
    "causeway_events_total", Counter, "Packets of the slow path, by what was done for them.",
        |s| s.dropped(false, |packets, _| packets);
    "causeway_flow_entries", Gauge, "Entries of the flow tables: two per connection.",
        |s| s.flows(false);
    "causeway_flow_entries_limit", Gauge, "Entries that the flow tables can hold.",
        |s| s.flows(true);
    "causeway_flow_pressure", Gauge, "0 normal, 1 high (short time-outs), 2 critical.",
        |s| s.add(&[], match s.current.swept.pressure {
            Pressure::Normal => 0.0,
            Pressure::High => 1.0,
            Pressure::Critical => 2.0,
        });
    "causeway_sweep_seconds", Gauge, "How long the last look through the flow tables took.",
        |s| s.add(&[], s.current.swept.took.as_secs_f64());
    "causeway_service_connections", Gauge, "Connections through a service.",
        |s| s.services(|usage| usage.live);
    "causeway_service_connections_total", Counter,
        "Connections through a service since the daemon began.",
        |s| s.services(|usage| usage.connections);
    "causeway_service_received_packets_total", Counter, "Packets from clients of a service.",
        |s| s.services(|usage| usage.carried.packets_in);
    "causeway_service_received_bytes_total", Counter, "Bytes from clients of a service.",
        |s| s.services(|usage| usage.carried.bytes_in);
    "causeway_service_sent_packets_total", Counter, "Packets to clients of a service.",
        |s| s.services(|usage| usage.carried.packets_out);
    "causeway_service_sent_bytes_total", Counter, "Bytes to clients of a service.",
        |s| s.services(|usage| usage.carried.bytes_out);
    "causeway_services", Gauge, "Service ports in force.",
        |s| s.add(&[], s.current.services as f64);
    "causeway_backends", Gauge, "Backends in force.",
        |s| s.add(&[], s.current.backends as f64);
    "causeway_sync_rounds_total", Counter, "Rounds of making the kernel what is desired.",
        |s| s.sync(|sync| sync.round as f64);
    "causeway_sync_seconds", Gauge, "How long the last round took.",
        |s| s.sync(|sync| sync.took.as_secs_f64());
    "causeway_sync_timestamp_seconds", Gauge, "When the last round ended, Unix time.",
        |s| s.sync(|sync| sync.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    "causeway_sync_pending_operations", Gauge, "Map operations that failed or wait.",
        |s| s.sync(|sync| sync.pending as f64);
    "causeway_notices", Gauge, "Remarks about objects and files, by severity.", notices;
    "causeway_apiserver_up", Gauge,
        "1 if the API server answers as it should, by kind of objects.",
        |s| s.apiserver(|kind| u64::from(kind.error.is_none()));
    "causeway_apiserver_errors_total", Counter,
        "Requests to the API server that failed, and watches that broke off.",
        |s| s.apiserver(|kind| kind.errors);
    "causeway_apiserver_lists_total", Counter, "Lists of objects that were read whole.",
        |s| s.apiserver(|kind| kind.lists);
    "causeway_apiserver_events_total", Counter, "Changes of objects that were watched.",
        |s| s.apiserver(|kind| kind.events);
    "causeway_node_findings", Gauge, "Settings of this node that keep services from working.",
        |s| s.add(&[], s.current.findings.len() as f64);
    "causeway_config_stale", Gauge, "1 if the configuration file was changed and not taken over.",
        |s| s.add(&[], f64::from(u8::from(s.current.config_error.is_some())));
    "causeway_device_problems", Gauge, "Programs that could not be attached to a device.",
        device_problems;
    "causeway_device_attached", Gauge, "How programs are attached to a device: always 1.",
        device_attached;
    "causeway_sockets_attached", Gauge,
        "Programs that lead sockets to backends; 0: sockets are not led.", sockets_attached;
    "causeway_sockets_problems", Gauge, "Programs for sockets that could not be attached.",
        |s| s.add(&[], s.current.sockets.as_ref().map_or(0.0, |sockets| sockets.problems.len() as f64));
    "kubeproxy_sync_proxy_rules_duration_seconds", Histogram,
        "How long rounds of making the kernel what is desired took.",
        |s| s.histogram(&[], s.progress.rounds());
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds", Gauge,
        "When the last round ended that left nothing to be done, Unix time.",
        |s| s.time(s.progress.last_updated());
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", Gauge,
        "When the last round began, Unix time.",
        |s| s.time(s.progress.last_queued());
    "kubeproxy_network_programming_duration_seconds", Histogram,
        "From what triggered a change of endpoints to the round that made it.", kubeproxy::programming;
    "kubeproxy_sync_proxy_rules_endpoint_changes_total", Counter,
        "Slices that the API server told, in lists and as changes.",
        |s| s.changes(model::Kind::EndpointSlice, |kind| kind.told);
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending", Gauge,
        "Those of them that the kernel does not have yet.",
        |s| s.changes(model::Kind::EndpointSlice, |kind| kind.pending);
    "kubeproxy_sync_proxy_rules_service_changes_total", Counter,
        "Services that the API server told, in lists and as changes.",
        |s| s.changes(model::Kind::Service, |kind| kind.told);
    "kubeproxy_sync_proxy_rules_service_changes_pending", Gauge,
        "Those of them that the kernel does not have yet.",
        |s| s.changes(model::Kind::Service, |kind| kind.pending);
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total", Gauge,
        "Service ports with a Local traffic policy whose endpoints are all on other nodes.",
        kubeproxy::no_local_endpoints;
    "kubeproxy_proxy_healthz_total", Counter, "Answers to `/healthz`, by status code.",
        |s| s.answers(&s.view.probes().healthz);
    "kubeproxy_proxy_livez_total", Counter, "Answers to `/livez`, by status code.",
        |s| s.answers(&s.view.probes().livez);
};

/// Writes one metric's samples.
struct Samples<'a> {
    name: &'static str,
    view: &'a View,
    current: &'a Current,
    progress: &'a Progress,
    fates: &'a [crate::inspect::DropRow],
    text: &'a mut String,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        self.add_part("", labels, value);
    }

    /// With `part` behind the name.
    fn add_part(&mut self, part: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        self.text.push_str(part);
        for (index, (name, value)) in labels.iter().enumerate() {
            let escaped = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let open = if index == 0 { '{' } else { ',' };
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{open}{name}=\"{escaped}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    fn dropped(&mut self, drop: bool, number: impl Fn(u64, u64) -> u64) {
        let label = if drop { "reason" } else { "event" };
        for row in self.fates.iter().filter(|row| row.drop == drop) {
            let value = number(row.packets, row.bytes) as f64;
            self.add(&[(label, &row.reason)], value);
        }
    }

    fn flows(&mut self, limit: bool) {
        let (swept, maps) = (&self.current.swept, self.view.maps());
        let families = [
            ("ipv4", swept.entries_v4, maps.flows_v4.capacity()),
            ("ipv6", swept.entries_v6, maps.flows_v6.capacity()),
        ];
        for (family, entries, capacity) in families {
            self.add(
                &[("family", family)],
                if limit { capacity } else { entries } as f64,
            );
        }
    }

    fn services(&mut self, number: impl Fn(&Usage) -> u64) {
        let current = self.current;
        for (id, usage) in &current.totals.services {
            if let Some(name) = current.names.get(id) {
                self.add(&[("service", name)], number(usage) as f64);
            }
        }
    }

    fn apiserver(&mut self, number: impl Fn(&KindHealth) -> u64) {
        let health = self.current.snapshot.api.as_ref();
        for (kind, health) in health.map(|health| health.kinds()).unwrap_or_default() {
            self.add(&[("kind", &kind.to_string())], number(&health) as f64);
        }
    }

    fn sync(&mut self, number: impl Fn(&crate::daemon::Sync) -> f64) {
        if let Some(sync) = &self.current.sync {
            self.add(&[], number(sync));
        }
    }
}

fn info(samples: &mut Samples<'_>) {
    let config = &samples.current.config;
    let labels = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("instance", config.instance.as_str()),
        ("node", config.node.as_str()),
    ];
    samples.add(&labels, 1.0);
}

fn notices(samples: &mut Samples<'_>) {
    let mut counts: BTreeMap<Severity, u32> = BTreeMap::new();
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        counts.insert(severity, 0);
    }
    for notice in samples.current.all_notices() {
        *counts.entry(notice.severity).or_default() += 1;
    }
    for (severity, count) in counts {
        samples.add(&[("severity", &severity.to_string())], count.into());
    }
}

fn device_problems(samples: &mut Samples<'_>) {
    let current = samples.current;
    for device in &current.attached {
        samples.add(&[("device", &device.name)], device.problems.len() as f64);
    }
}

fn device_attached(samples: &mut Samples<'_>) {
    let current = samples.current;
    for device in &current.attached {
        samples.add(
            &[
                ("device", &device.name),
                ("xdp", device.xdp),
                ("tc", device.tc),
            ],
            1.0,
        );
    }
}

fn sockets_attached(samples: &mut Samples<'_>) {
    let current = samples.current;
    match &current.sockets {
        Some(sockets) => {
            let cgroup = sockets.cgroup.display().to_string();
            samples.add(&[("cgroup", &cgroup)], sockets.programs as f64);
        }
        None => samples.add(&[], 0.0),
    }
}

/// All metrics as text. Reads the counters' map.
pub fn render(view: &View) -> Result<String, InspectError> {
    let current = view.current();
    let progress = view.progress();
    let fates = drops(view.maps())?;
    let mut text = String::new();
    for metric in METRICS {
        let kind = metric.kind.word();
        let Metric {
            name,
            help,
            samples,
            ..
        } = *metric;
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        samples(&mut Samples {
            name,
            view,
            current: &current,
            progress: &progress,
            fates: &fates,
            text: &mut text,
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for metric in METRICS {
            let Metric {
                name, kind, help, ..
            } = metric;
            assert!(names.insert(name), "{name} is there twice");
            let ours = name.starts_with("causeway_");
            assert!(ours || name.starts_with("kubeproxy_"), "{name}");
            assert!(name.chars().all(|c| c == '_' || c.is_ascii_lowercase()));
            // kube-proxy calls one total that is none.
            if ours {
                assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            }
            assert!(help.ends_with('.'), "{name}");
        }
    }
}

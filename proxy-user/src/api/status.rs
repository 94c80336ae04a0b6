//! How the daemon is.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    config::Source,
    daemon::View,
    dataplane::attach::AttachedSockets,
    model::{Kind, Notice},
    source::{apiserver::KindHealth, snapshot::Counts},
};

/// How the daemon is. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its instance.
    pub instance: String,
    /// The node's name.
    pub node: String,
    /// When it began.
    pub started: u64,
    /// Whether the maps hold what the source says.
    pub in_sync: bool,
    /// `manifests` or `kubernetes`.
    #[serde(default)]
    pub source: String,
    /// The directory of manifests; empty: the source is another one.
    pub manifests: String,
    /// How it stands with the API server; none: the source is another one.
    #[serde(default)]
    pub apiserver: Option<ApiServerStatus>,
    /// What the source has.
    pub counts: Counts,
    /// What is wrong with the configuration, if it was changed and can't be taken over.
    pub config_error: Option<String>,
    /// The last round; none: there has been none.
    pub sync: Option<SyncStatus>,
    /// Map operations that are still to be done.
    pub pending: Vec<PendingStatus>,
    /// Devices with programs.
    pub devices: Vec<DeviceStatus>,
    /// What is attached to sockets; none: sockets are not led.
    #[serde(default)]
    pub sockets: Option<AttachedSockets>,
    /// The flow tables.
    pub flows: FlowStatus,
    /// Settings of the node that keep services from working.
    pub findings: Vec<FindingStatus>,
    /// Errors, warnings and remarks about objects.
    pub notices: Vec<Notice>,
}

/// How it stands with the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiServerStatus {
    /// What the configuration says of it.
    pub server: String,
    /// How it stands with each kind of objects.
    pub kinds: BTreeMap<Kind, KindHealth>,
}

/// A round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// Counts rounds since the start.
    pub round: u64,
    /// When it ended.
    pub at: u64,
    /// How long it took, microseconds.
    pub took_us: u64,
    /// Map operations that were done.
    pub done: usize,
    /// Map operations that failed or wait.
    pub pending: usize,
}

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingStatus {
    /// What.
    pub operation: String,
    /// Why.
    pub error: String,
}

/// What is attached to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `native`, `generic`, `off`.
    pub xdp: String,
    /// `tcx`, `clsact`, `off`.
    pub tc: String,
    /// What failed.
    pub problems: Vec<String>,
}

/// The flow tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Connections.
    pub connections: usize,
    /// Entries of `FLOWS_V4`.
    pub entries_v4: usize,
    /// Entries of `FLOWS_V6`.
    pub entries_v6: usize,
    /// Room for entries, in each.
    pub capacity: u32,
}

/// A setting that should be another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingStatus {
    /// What is wrong.
    pub problem: String,
    /// A command that sets it right.
    pub remedy: String,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// How a daemon is.
#[must_use]
pub fn status(view: &View) -> Status {
    let current = view.current();
    let sync = current.sync.map(|sync| SyncStatus {
        round: sync.round,
        at: seconds(sync.at),
        took_us: u64::try_from(sync.took.as_micros()).unwrap_or(u64::MAX),
        done: sync.done,
        pending: sync.pending,
    });
    let devices = current.attached.iter().map(|device| DeviceStatus {
        ifindex: device.ifindex,
        name: device.name.clone(),
        xdp: device.xdp.to_owned(),
        tc: device.tc.to_owned(),
        problems: device.problems.clone(),
    });
    let pending = current.pending.iter().map(|pending| PendingStatus {
        operation: pending.operation.clone(),
        error: pending.error.clone(),
    });
    let findings = current.findings.iter().map(|finding| FindingStatus {
        problem: finding.problem.clone(),
        remedy: finding.remedy.clone(),
    });
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: current.config.instance.clone(),
        node: current.config.node.clone(),
        started: seconds(current.started),
        in_sync: sync.is_some_and(|sync| sync.pending == 0),
        source: match &current.config.source {
            Source::Manifests(_) => "manifests",
            Source::Kubernetes(_) => "kubernetes",
        }
        .to_owned(),
        manifests: match &current.config.source {
            Source::Manifests(directory) => directory.display().to_string(),
            Source::Kubernetes(_) => String::new(),
        },
        apiserver: current.snapshot.api.as_ref().map(|health| ApiServerStatus {
            server: health.server().to_owned(),
            kinds: health.kinds(),
        }),
        counts: current.snapshot.counts,
        config_error: current.config_error.clone(),
        sync,
        pending: pending.collect(),
        devices: devices.collect(),
        sockets: current.sockets.clone(),
        flows: FlowStatus {
            connections: current.swept.live,
            entries_v4: current.swept.entries_v4,
            entries_v6: current.swept.entries_v6,
            capacity: current.config.maps.flows,
        },
        findings: findings.collect(),
        notices: current.all_notices().cloned().collect(),
    }
}

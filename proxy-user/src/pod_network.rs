//! What pods' networks need of this node: the file that `causeway-cni` reads, the host ports that it
//! writes, routes to other nodes' pods, and masquerade.
//!
//! The plugin works while the daemon is away, and the other way round: each reads what the other
//! has written, when it is there again.

mod host_ports;
mod masquerade;
mod routes;

pub use masquerade::remove as remove_masquerade;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proxy_cni::node::{Attended, NodeFile, Presence};
use proxy_cni::record::{Attachment, Store, is_pod_device};

use self::masquerade::Masquerade;
use crate::config::Config;
use crate::dataplane::attach::Attached;
use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl::{Finding, Sysctl};
use crate::model::{State, Unknown};
use crate::reconcile::Facts;
use crate::source::snapshot::Snapshot;

/// The directory that the daemon shares with `causeway-cni`.
#[must_use]
pub fn folder(config: &Config) -> PathBuf {
    config.state.join("cni")
}

/// The directory in which `causeway-cni` keeps a record of each pod.
#[must_use]
pub fn records(config: &Config) -> PathBuf {
    folder(config).join("attachments")
}

/// The daemon's side.
#[derive(Debug, Default)]
pub struct PodNetwork {
    store: Option<Store>,
    /// What the records said last; none: they were never read.
    attachments: Option<Vec<Attachment>>,
    written: Option<NodeFile>,
    masquerade: Option<Masquerade>,
    presence: Option<Presence>,
    /// What was logged last, so that it is said once.
    problem: Option<String>,
}

impl PodNetwork {
    /// Goes by a configuration.
    pub fn set_config(&mut self, config: &Config) {
        let root = folder(config);
        if !config.pod_network.enabled {
            *self = Self::default();
        } else if self.store.as_ref().is_none_or(|store| store.root() != root) {
            *self = Self::default();
            match Store::new(&root).and_then(|store| store.create().map(|()| store)) {
                Ok(store) => self.store = Some(store),
                Err(error) => {
                    tracing::error!(%error, folder = %root.display(), "no pods' networks");
                }
            }
        }
    }

    /// Reads the records; says whether there is something new.
    pub fn read(&mut self) -> bool {
        let Some(store) = &self.store else {
            return false;
        };
        let records = match store.list() {
            Ok(records) => records.attachments.into_values().collect::<Vec<_>>(),
            Err(error) => {
                self.tell(format!("cannot read {}: {error}", store.folder().display()));
                return false;
            }
        };
        let new = self.attachments.as_ref() != Some(&records);
        self.attachments = Some(records);
        new
    }

    fn tell(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(problem, "pods' networks");
            self.problem = Some(problem);
        }
    }

    /// What the source gave, with the host ports of this node's pods.
    #[must_use]
    pub fn with_host_ports(&self, snapshot: &Arc<Snapshot>, node: &str) -> Arc<Snapshot> {
        if self.store.is_none() {
            return Arc::clone(snapshot);
        }
        let Some(attachments) = &self.attachments else {
            // Nothing of what the kernel holds may go before they were read.
            let mut unsure = (**snapshot).clone();
            let mut state = (*unsure.state).clone();
            state.unknown.push(Unknown::Anything);
            unsure.state = Arc::new(state);
            return Arc::new(unsure);
        };
        host_ports::add(snapshot, attachments, node)
    }

    /// Settings, routes, and the plugin's file, once programs are attached. What is wrong comes back.
    pub fn attend(
        &mut self,
        config: &Config,
        state: &State,
        facts: &Facts,
        attached: &[Attached],
        (netlink, sysctl): (&mut Netlink, &Sysctl),
    ) -> Vec<Finding> {
        if self.store.is_none() {
            return Vec::new();
        }
        let mut findings = forward(state, facts, config, sysctl);
        if config.pod_network.routes {
            findings.extend(routes::sync(state, &config.node, facts, netlink));
        }
        findings.extend(self.masquerade(config, state, facts));
        if let Err(error) = self.publish(config, state, facts, attached) {
            findings.push(Finding {
                problem: format!("no pod can be added to this node: {error}"),
                remedy: format!("make {} writable", folder(config).display()),
            });
        }
        findings
    }

    fn masquerade(&mut self, config: &Config, state: &State, facts: &Facts) -> Option<Finding> {
        let wanted = if config.pod_network.masquerade {
            Masquerade::desired(config, state, facts)
        } else {
            Masquerade::default()
        };
        match wanted.write(&config.instance, self.masquerade.as_ref()) {
            Ok(changed) => {
                if changed {
                    tracing::info!(?wanted, "masquerade");
                }
                self.masquerade = Some(wanted);
                None
            }
            Err(error) => Some(Finding {
                problem: format!(
                    "what pods send out of the cluster keeps its source, so no answers come: {error}"
                ),
                remedy: "modprobe nft_masq, or set pod_network.masquerade = false".to_owned(),
            }),
        }
    }

    fn publish(
        &mut self,
        config: &Config,
        state: &State,
        facts: &Facts,
        attached: &[Attached],
    ) -> std::io::Result<()> {
        let root = folder(config);
        let file = node_file(config, state, facts, attached);
        if self.written.as_ref() != Some(&file) {
            file.write(&root)?;
            self.written = Some(file);
        }
        if self.presence.is_none() {
            self.presence = Some(announce(&root)?);
        }
        Ok(())
    }
}

fn announce(root: &Path) -> std::io::Result<Presence> {
    let presence = Presence::announce(root)?;
    tracing::info!(folder = %root.display(), "pods can be added");
    Ok(presence)
}

fn node_file(config: &Config, state: &State, facts: &Facts, attached: &[Attached]) -> NodeFile {
    let uplinks = facts
        .devices
        .values()
        .filter(|device| facts.is_uplink(device));
    let whole = |device: &&Attached| is_pod_device(&device.name) && device.problems.is_empty();
    NodeFile {
        node: config.node.clone(),
        pod_ranges: state
            .nodes
            .get(&config.node)
            .map(|node| node.pod_ranges.clone())
            .unwrap_or_default(),
        mtu: uplinks.map(|device| device.mtu).min(),
        devices: attached
            .iter()
            .filter(whole)
            .map(|device| Attended {
                ifindex: device.ifindex,
                name: device.name.clone(),
            })
            .collect(),
    }
}

/// Lets this node forward, as every network of pods must.
fn forward(state: &State, facts: &Facts, config: &Config, sysctl: &Sysctl) -> Vec<Finding> {
    let ranges = state.nodes.get(&config.node).map(|node| &node.pod_ranges);
    let has = |v4: bool| ranges.is_some_and(|all| all.iter().any(|r| r.addr().is_ipv4() == v4));
    let uplinks: Vec<&str> = facts
        .devices
        .values()
        .filter(|device| facts.is_uplink(device))
        .map(|device| device.name.as_str())
        .collect();
    let mut findings = Vec::new();
    let v4 = has(true).then(|| sysctl.forward_v4());
    let v6 = has(false).then(|| sysctl.forward_v6(&uplinks));
    let keys = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    for (key, changed) in keys.into_iter().zip([v4, v6]) {
        match changed {
            Some(Ok(true)) => tracing::info!(setting = format!("{key}=1"), "set"),
            Some(Err(error)) => findings.push(Finding {
                problem: format!("pods' packets are not forwarded: {error}"),
                remedy: format!("sysctl -w {key}=1"),
            }),
            Some(Ok(false)) | None => {}
        }
    }
    findings
}

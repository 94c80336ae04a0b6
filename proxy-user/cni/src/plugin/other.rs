//! DEL, CHECK, GC and STATUS.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Daemon, Progress, add, netlink, store, undo};
use crate::error::{CniError, Code};
use crate::link;
use crate::node::Attended;
use crate::protocol::{AttachmentKey, NetworkConfig, Success, Variable, sandbox};
use crate::record;
use crate::sandbox::Sandbox;

/// Succeeds when things are gone already, also the namespace.
pub(super) fn del(
    variable: &Variable<'_>,
    config: &NetworkConfig,
    progress: &mut dyn Progress,
) -> Result<(), CniError> {
    let key = AttachmentKey::read(variable)?;
    let store = store(config)?;
    let _lock = store.lock()?;
    undo(&store, &key, progress)
}

pub(super) fn check(variable: &Variable<'_>, config: &NetworkConfig) -> Result<(), CniError> {
    let key = AttachmentKey::read(variable)?;
    let failed = |problem: String| {
        let remedy = "remove the pod: its successor gets a network that is whole";
        CniError::new(Code::CheckFailed, problem, remedy)
    };
    let previous = config.previous.clone().ok_or_else(|| {
        let message = "prevResult is missing";
        CniError::new(
            Code::InvalidConfig,
            message,
            "CHECK is given what ADD returned",
        )
    })?;
    let previous: Success = serde_json::from_value(previous).map_err(|error| {
        CniError::new(
            Code::Decoding,
            "prevResult cannot be read",
            error.to_string(),
        )
    })?;
    let path = sandbox(variable)
        .ok_or_else(|| CniError::new(Code::InvalidEnvironment, "CNI_NETNS is not set", ""))?;
    let store = store(config)?;
    let records = store.list().map_err(|error| {
        CniError::io(format!("cannot read {}", store.folder().display()), &error)
    })?;
    let attachment = records
        .attachments
        .get(&key)
        .filter(|attachment| attachment.complete)
        .ok_or_else(|| {
            failed(format!(
                "{} of {} was never added",
                key.interface, key.container
            ))
        })?;
    // Plugins after us may have changed the result, but these addresses must still be there.
    let told: BTreeSet<IpAddr> = previous.ips.iter().map(|ip| ip.address.addr()).collect();
    if let Some(address) = attachment
        .addresses
        .iter()
        .find(|address| !told.contains(address))
    {
        return Err(failed(format!("prevResult has no address {address}")));
    }
    let sandbox =
        Sandbox::open(&path)?.ok_or_else(|| failed(format!("{} is gone", path.display())))?;
    let problems = add::problems(attachment, &sandbox)?;
    if !problems.is_empty() {
        return Err(failed(problems.join("; ")));
    }
    Ok(())
}

/// Removes what no valid attachment of this network owns, and goes on past what cannot be removed.
pub(super) fn gc(config: &NetworkConfig, progress: &mut dyn Progress) -> Result<(), CniError> {
    let Some(valid) = &config.valid else {
        // Nothing valid is said by an empty list; without one, everything would go by mistake.
        return Err(CniError::new(
            Code::InvalidConfig,
            "cni.dev/valid-attachments is missing",
            "GC is given the attachments that are to stay",
        ));
    };
    let valid: BTreeSet<&AttachmentKey> = valid.iter().collect();
    let store = store(config)?;
    let _lock = store.lock()?;
    let records = store.list().map_err(|error| {
        CniError::io(format!("cannot read {}", store.folder().display()), &error)
    })?;
    let mut problems = Vec::new();
    problems.extend(record::sweep(&records).err());
    for (key, attachment) in &records.attachments {
        if attachment.network == config.name && !valid.contains(key) {
            problems.extend(undo(&store, key, progress).err());
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let message = format!("{} attachments could not be removed", problems.len());
    Err(CniError::new(
        Code::Incomplete,
        message,
        problems.join("; "),
    ))
}

/// Says whether an ADD could be served, and otherwise whether pods that are there are served.
pub(super) fn status(config: &NetworkConfig) -> Result<(), CniError> {
    let store = store(config)?;
    let daemon = Daemon::look(store.root())
        .map_err(|error| CniError::io("cannot read what the daemon wrote", &error))?;
    if let Some((message, remedy)) = daemon.problem(store.root()) {
        return Err(CniError::new(Code::NotAvailable, message, remedy));
    }
    let Daemon::Ready(node) = daemon else {
        return Ok(());
    };
    if config.ranges.is_empty() && node.pod_ranges.is_empty() {
        let message = format!(
            "the Node {} has no pod ranges (spec.podCIDRs) yet",
            node.node
        );
        return Err(CniError::new(Code::NotAvailable, message, ""));
    }
    if config.mtu.or(node.mtu).is_none() {
        let message = "this node has no uplink (devices.uplinks of causeway.toml)";
        return Err(CniError::new(Code::NotAvailable, message, ""));
    }
    // Pods that were added have programs at once, so what has none now has lost them.
    let records = store.list().map_err(|error| {
        CniError::io(format!("cannot read {}", store.folder().display()), &error)
    })?;
    let mut netlink = netlink()?;
    let complete = records.attachments.values().filter(|one| one.complete);
    for attachment in complete {
        let device = &attachment.device;
        let link = link::find(&mut netlink, device)
            .map_err(|error| CniError::kernel(format!("cannot look for {device}"), &error))?;
        let lost = link.is_some_and(|link| {
            let attended = Attended {
                ifindex: link.index,
                name: device.clone(),
            };
            // One that is just being added is no loss.
            record::now().saturating_sub(attachment.added) > 30_000 && !node.attends(&attended)
        });
        if lost {
            let message = format!("{device} of {} has no programs", attachment.container);
            let remedy = "see `causeway status`: devices and problems";
            return Err(CniError::new(Code::NotAvailableDegraded, message, remedy));
        }
    }
    Ok(())
}

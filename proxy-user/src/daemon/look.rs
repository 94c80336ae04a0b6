//! What is true of this node, where programs belong, and which devices are not what they should be.

use std::collections::BTreeMap;

use proxy_common::abi::{DeviceRole, LOOPBACK};

use crate::config::{Config, XdpMode};
use crate::dataplane::attach::Target;
use crate::dataplane::flows::Clock;
use crate::kernel::devices::{Device, XdpState};
use crate::kernel::sysctl::Finding;
use crate::reconcile::{DeviceFact, Facts};

/// One look at this node.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) facts: Facts,
    /// The devices that get programs.
    pub(super) targets: Vec<Target>,
    pub(super) findings: Vec<Finding>,
}

impl Look {
    pub(super) fn at(config: &Config, devices: &BTreeMap<u32, Device>, clock: Clock) -> Self {
        let facts = facts(config, devices, clock);
        let targets = targets(config, &facts, devices);
        let findings = findings(config, devices);
        Self {
            facts,
            targets,
            findings,
        }
    }
}

/// Pods' devices that do not see what their pods send.
fn findings(config: &Config, devices: &BTreeMap<u32, Device>) -> Vec<Finding> {
    let pods = devices
        .values()
        .filter(|device| config.role(&device.name) == DeviceRole::Pod)
        .filter(|device| device.ifindex != LOOPBACK && device.kind.as_deref() != Some("veth"));
    let finding = |device: &Device| {
        let name = &device.name;
        let what = device.kind.as_ref().map_or_else(
            || "of a driver of hardware".to_owned(),
            |kind| format!("a {kind}"),
        );
        Finding {
            problem: format!(
                "{name} is named as a pod's device (devices.pods), but is {what}, not a veth: \
                 programs there do not see all that single pods send and receive, so services may \
                 not work from and for pods behind it"
            ),
            remedy: "write the patterns of the pods' own devices into devices.pods, as \"veth*\""
                .to_owned(),
        }
    };
    pods.map(finding).collect()
}

/// What netlink shows, with what the configuration says of each device.
fn facts(config: &Config, devices: &BTreeMap<u32, Device>, clock: Clock) -> Facts {
    let fact = |device: &Device| {
        let role = match config.role(&device.name) {
            _ if device.ifindex == LOOPBACK => DeviceRole::Loopback,
            // Programs read Ethernet headers.
            _ if !device.ethernet => DeviceRole::Unknown,
            role => role,
        };
        let fact = DeviceFact {
            ifindex: device.ifindex,
            name: device.name.clone(),
            mac: device.mac,
            mtu: device.mtu,
            addresses: device.addresses.clone(),
            vlan: device.vlan,
            role,
            // A driver that runs a program in its receive path has the queues to send from one.
            xdp_transmit: role == DeviceRole::Uplink && device.xdp == XdpState::Native,
        };
        (device.ifindex, fact)
    };
    Facts {
        devices: devices.values().map(fact).collect(),
        hz: clock.hz,
    }
}

/// Those with a record of their own.
fn targets(config: &Config, facts: &Facts, devices: &BTreeMap<u32, Device>) -> Vec<Target> {
    let ours = |fact: &&DeviceFact| fact.role != DeviceRole::Unknown || facts.is_uplink(fact);
    facts
        .devices
        .values()
        .filter(ours)
        .filter_map(|fact| {
            let device = devices.get(&fact.ifindex)?;
            // At a VLAN device XDP would be generic and come after TC of the device below.
            let xdp = match fact.role {
                DeviceRole::Uplink if fact.vlan.is_none() => config.xdp_mode(&fact.name),
                _ => XdpMode::Off,
            };
            Some(Target {
                ifindex: fact.ifindex,
                name: fact.name.clone(),
                xdp,
                hardware: device.kind.is_none(),
                xdp_state: device.xdp,
            })
        })
        .collect()
}

//! Records of devices: what each hook needs to know of the device it runs at.

use std::net::IpAddr;

use proxy_common::abi::{Addr4, Addr6, Device, DeviceKey, DeviceRole, device_flag};

use super::facts::DeviceFact;
use super::{Facts, Plan, facts::is_usable};
use crate::model::Node;

/// [`DeviceKey::vlan`] of frames without a tag.
const UNTAGGED: u32 = 0;

/// Bit 31 of [`DeviceKey::vlan`]: there is a tag.
const TAGGED: u32 = 1 << 31;

/// Source addresses for translation, one per family; zero: none.
#[derive(Clone, Copy, Debug, Default)]
struct Sources {
    v4: Addr4,
    v6: Addr6,
}

impl Sources {
    /// The first usable address of each family.
    fn first(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let mut sources = Self::default();
        for address in addresses.filter(|address| is_usable(*address)) {
            match address {
                IpAddr::V4(v4) if sources.v4 == Addr4::default() => sources.v4 = v4.into(),
                IpAddr::V6(v6) if sources.v6 == Addr6::default() => sources.v6 = v6.into(),
                _ => {}
            }
        }
        sources
    }

    fn or(self, other: Self) -> Self {
        Self {
            v4: if self.v4 == Addr4::default() {
                other.v4
            } else {
                self.v4
            },
            v6: if self.v6 == Addr6::default() {
                other.v6
            } else {
                self.v6
            },
        }
    }
}

/// Adds `DEVICES` and `TX_PORTS`.
///
/// A VLAN device on an uplink has two records: frames with tags at the uplink are its own, and its own
/// hook sees them without. A device's source address is its own first address, on uplinks preferably the one by which the
/// cluster knows the node; a device that has none takes the node's. That is what pods' devices do.
pub(super) fn add(plan: &mut Plan, facts: &Facts, node: Option<&Node>) {
    let local = facts.local_addresses();
    let known = node
        .map(|node| node.addresses.as_slice())
        .unwrap_or_default();
    let of_node = Sources::first(known.iter().copied().filter(|known| local.contains(known)))
        .or(Sources::first(facts.uplink_addresses()));
    for device in facts.devices.values() {
        let sources = own_sources(device, known).or(of_node);
        let role = if facts.is_uplink(device) {
            DeviceRole::Uplink
        } else {
            device.role
        };
        if role != DeviceRole::Unknown {
            let key = DeviceKey {
                ifindex: device.ifindex,
                vlan: UNTAGGED,
            };
            plan.devices.insert(key, record(device, role, sources));
        }
        if let Some((base, [outer, inner])) = facts.base(device)
            && base.role == DeviceRole::Uplink
        {
            let vlan = TAGGED | u32::from(outer) << 16 | u32::from(inner);
            let key = DeviceKey {
                ifindex: base.ifindex,
                vlan,
            };
            plan.devices.insert(key, record(device, role, sources));
        }
        if device.role == DeviceRole::Uplink && device.xdp_transmit {
            plan.tx_ports.insert(device.ifindex);
        }
    }
}

fn own_sources(device: &DeviceFact, known: &[IpAddr]) -> Sources {
    let own = || device.addresses.iter().map(ipnet::IpNet::addr);
    Sources::first(own().filter(|address| known.contains(address))).or(Sources::first(own()))
}

fn record(device: &DeviceFact, role: DeviceRole, sources: Sources) -> Device {
    let flags = if device.xdp_transmit {
        device_flag::XDP_TARGET
    } else {
        0
    };
    Device {
        role: role as u32,
        ifindex: device.ifindex,
        source_v4: sources.v4,
        source_v6: sources.v6,
        mac: device.mac,
        flags,
        mtu: device.mtu,
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::wire::MacAddr;

    use super::*;
    use crate::reconcile::VlanFact;

    fn device(
        ifindex: u32,
        role: DeviceRole,
        addresses: &[&str],
        vlan: Option<VlanFact>,
    ) -> (u32, DeviceFact) {
        let addresses = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        let mac = MacAddr::from_bytes([2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()]);
        let name = format!("dev{ifindex}");
        let xdp_transmit = role == DeviceRole::Uplink;
        (
            ifindex,
            DeviceFact {
                ifindex,
                name,
                mac,
                mtu: 1500,
                addresses,
                vlan,
                role,
                xdp_transmit,
            },
        )
    }

    fn v4(text: &str) -> Addr4 {
        text.parse::<std::net::Ipv4Addr>().unwrap().into()
    }

    #[test]
    fn keys_vlans_by_the_base_device_and_prefers_the_nodes_own_address() {
        let facts = Facts {
            hz: 250,
            devices: [
                device(1, DeviceRole::Unknown, &["127.0.0.1/8", "::1/128"], None),
                device(
                    2,
                    DeviceRole::Uplink,
                    &[
                        "169.254.0.9/16",
                        "192.0.2.9/24",
                        "192.0.2.1/24",
                        "fe80::1/64",
                    ],
                    None,
                ),
                device(
                    3,
                    DeviceRole::Unknown,
                    &["198.51.100.1/24"],
                    Some(VlanFact { parent: 2, id: 100 }),
                ),
                device(
                    4,
                    DeviceRole::Unknown,
                    &[],
                    Some(VlanFact { parent: 3, id: 7 }),
                ),
                device(5, DeviceRole::Pod, &[], None),
            ]
            .into(),
        };
        let node = Node {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            pod_ranges: vec![],
            ..Node::default()
        };
        let mut plan = Plan::default();
        add(&mut plan, &facts, Some(&node));
        let rows: Vec<(u32, u32, u32, u32, Addr4)> = plan
            .devices
            .iter()
            .map(|(key, d)| (key.ifindex, key.vlan, d.role, d.ifindex, d.source_v4))
            .collect();
        let tagged = |outer: u32, inner: u32| 1 << 31 | outer << 16 | inner;
        assert_eq!(
            rows,
            [
                (2, 0, 1, 2, v4("192.0.2.1")),
                (2, tagged(100, 0), 1, 3, v4("198.51.100.1")),
                (2, tagged(100, 7), 1, 4, v4("192.0.2.1")),
                (3, 0, 1, 3, v4("198.51.100.1")),
                (4, 0, 1, 4, v4("192.0.2.1")),
                (5, 0, 2, 5, v4("192.0.2.1")),
            ]
        );
        assert_eq!(plan.tx_ports, [2].into());
        let targets = plan
            .devices
            .iter()
            .filter(|(_, d)| d.flags & device_flag::XDP_TARGET != 0);
        let targets: Vec<u32> = targets.map(|(key, _)| key.ifindex).collect();
        assert_eq!(targets, [2]);
    }
}

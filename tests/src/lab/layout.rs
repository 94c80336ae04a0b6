//! The standard world: who is in it, where, and at which addresses.
//!
//! ```text
//!  client --- router --- switch --- node1 --- pod1, pod2
//!                           `------ node2 --- pod3, pod4
//! ```
//! Pods are numbered through. The host's end of pod N's link is called `podN`; the pod's own end is
//! `eth0`. Nodes route each other's pod ranges, and nothing translates an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::topology::{End, Neighbour, Place, Room, Route, Topology};

/// Pods with numbers above this use the network of a node.
pub const ON_HOST: u8 = 100;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `v4` or `v6`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// An address; its last part is `host` in IPv4 and, in digits that look the same, in IPv6.
    fn host(self, [a, b, c]: [u8; 3], [d, e, f]: [u16; 3], host: u8) -> IpAddr {
        let digits = u16::from(host);
        let same = digits / 100 * 0x100 + digits / 10 % 10 * 0x10 + digits % 10;
        self.pick([a, b, c, host], [d, e, f, 0, 0, 0, 0, same])
    }

    fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(v4).into(),
            Self::V6 => Ipv6Addr::from(v6).into(),
        }
    }
}

/// The client's address.
#[must_use]
pub fn client(family: Family) -> IpAddr {
    family.host([198, 51, 100], [0x2001, 0xdb8, 0x51], 10)
}

/// The router's address on the client's link.
#[must_use]
pub fn router_outside(family: Family) -> IpAddr {
    family.host([198, 51, 100], [0x2001, 0xdb8, 0x51], 1)
}

/// The router's address on the nodes' link.
#[must_use]
pub fn router(family: Family) -> IpAddr {
    family.host([192, 0, 2], [0x2001, 0xdb8, 2], 1)
}

/// Node `number`'s address, from 1.
#[must_use]
pub fn node(number: u8, family: Family) -> IpAddr {
    family.host([192, 0, 2], [0x2001, 0xdb8, 2], 10 + number)
}

/// The range of the pods on node `number`.
#[must_use]
pub fn pod_range(number: u8, family: Family) -> IpNet {
    let address = family.pick(
        [10, 244, number, 0],
        [0xfd00, 0x244, number.into(), 0, 0, 0, 0, 0],
    );
    IpNet::new_assert(address, if family == Family::V4 { 24 } else { 64 })
}

/// Service-only address number `host`.
#[must_use]
pub fn cluster_ip(host: u8, family: Family) -> IpAddr {
    family.host([10, 96, 0], [0xfd00, 0x96, 0], host)
}

/// LoadBalancer address number `host`.
#[must_use]
pub fn load_balancer(host: u8, family: Family) -> IpAddr {
    family.host([203, 0, 113], [0x2001, 0xdb8, 0x113], host)
}

/// What the nodes' uplinks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Uplink {
    /// `eth0`.
    #[default]
    Plain,
    /// A VLAN device above `eth0`, with this id.
    Vlan(u16),
}

impl Uplink {
    /// The device that has the addresses.
    #[must_use]
    pub fn device(self, below: &str) -> String {
        match self {
            Self::Plain => below.to_owned(),
            Self::Vlan(id) => format!("{below}.{id}"),
        }
    }
}

/// How large a world is and what its uplinks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Number of nodes, at most 9.
    pub nodes: u8,
    /// Number of pods on each, at most 9.
    pub pods_per_node: u8,
    /// See [`Uplink`].
    pub uplink: Uplink,
}

impl Layout {
    /// Two nodes with two pods each.
    pub const STANDARD: Self = Self {
        nodes: 2,
        pods_per_node: 2,
        uplink: Uplink::Plain,
    };

    /// The node that pod `number` is on, both from 1. Pod 100 + N uses the network of node N itself.
    #[must_use]
    pub const fn node_of(self, pod: u8) -> u8 {
        if pod > ON_HOST {
            return pod - ON_HOST;
        }
        (pod - 1) / self.pods_per_node + 1
    }

    /// Pod `number`'s address.
    #[must_use]
    pub fn pod(self, number: u8, family: Family) -> IpAddr {
        let node = self.node_of(number);
        if number > ON_HOST {
            return self::node(node, family);
        }
        family.host([10, 244, node], [0xfd00, 0x244, node.into()], 10 + number)
    }

    /// The numbers of all pods.
    pub fn pods(self) -> impl Iterator<Item = u8> {
        1..=self.nodes * self.pods_per_node
    }

    /// The numbers of the pods that use their nodes' networks: one a node.
    pub fn pods_on_hosts(self) -> impl Iterator<Item = u8> {
        self.nodes().map(|node| ON_HOST + node)
    }

    /// The numbers of all nodes.
    pub fn nodes(self) -> impl Iterator<Item = u8> {
        1..=self.nodes
    }

    /// The world as data.
    #[must_use]
    pub fn topology(self) -> Topology {
        let mut topology = Topology::default();
        self.add_outside(&mut topology);
        for number in self.nodes() {
            self.add_node(number, &mut topology);
        }
        for number in self.pods() {
            self.add_pod(number, &mut topology);
        }
        topology
    }

    fn add_outside(self, topology: &mut Topology) {
        let room = |name: &str, forwards, bridge| Room {
            name: name.to_owned(),
            forwards,
            bridge,
        };
        topology.rooms.extend([
            room("client", false, None),
            room("router", true, None),
            room("switch", false, Some("br0".to_owned())),
        ]);
        topology
            .links
            .push((End::at("client", "eth0"), End::at("router", "eth0")));
        topology
            .links
            .push((End::at("router", "eth1"), port("router")));
        let inside = self.add_uplink("router", "eth1", topology);
        for family in Family::BOTH {
            let length = subnet(family);
            topology.addresses.extend([
                (
                    Place::new("client", "eth0"),
                    IpNet::new_assert(client(family), length),
                ),
                (
                    Place::new("router", "eth0"),
                    IpNet::new_assert(router_outside(family), length),
                ),
                (
                    Place::new("router", &inside),
                    IpNet::new_assert(router(family), length),
                ),
            ]);
            topology
                .routes
                .push(route("client", None, router_outside(family), "eth0"));
            // The service-only addresses too: that they cannot be reached from outside is for the
            // node to see to, not for a route that happens to be missing.
            for range in [load_balancer(0, family), cluster_ip(0, family)] {
                let to = IpNet::new_assert(range, if family == Family::V4 { 24 } else { 112 });
                topology
                    .routes
                    .push(route("router", Some(to), node(1, family), &inside));
            }
            for number in self.nodes() {
                let to = pod_range(number, family);
                topology
                    .routes
                    .push(route("router", Some(to), node(number, family), &inside));
            }
        }
    }

    fn add_node(self, number: u8, topology: &mut Topology) {
        let name = format!("node{number}");
        topology.rooms.push(Room {
            name: name.clone(),
            forwards: true,
            bridge: None,
        });
        topology.links.push((End::at(&name, "eth0"), port(&name)));
        let uplink = self.add_uplink(&name, "eth0", topology);
        for family in Family::BOTH {
            topology.addresses.push((
                Place::new(&name, &uplink),
                IpNet::new_assert(node(number, family), subnet(family)),
            ));
            topology
                .routes
                .push(route(&name, None, router(family), &uplink));
            for other in self.nodes().filter(|other| *other != number) {
                let to = pod_range(other, family);
                topology
                    .routes
                    .push(route(&name, Some(to), node(other, family), &uplink));
            }
        }
    }

    fn add_pod(self, number: u8, topology: &mut Topology) {
        let (pod, node) = (
            format!("pod{number}"),
            format!("node{}", self.node_of(number)),
        );
        topology.rooms.push(Room {
            name: pod.clone(),
            forwards: false,
            bridge: None,
        });
        let mac = format!("02:00:00:00:01:{number:02x}");
        let host_end = End {
            mac: Some(mac.clone()),
            ..End::at(&node, &pod)
        };
        topology.links.push((End::at(&pod, "eth0"), host_end));
        // The gateway is an address of nobody, as with real pod networks: the IPv4 one is only a
        // neighbour entry, the IPv6 one is the host end's link-local address.
        let inside = Place::new(&pod, "eth0");
        let outside = Place::new(&node, &pod);
        let gateways = [
            Ipv4Addr::new(169, 254, 1, 1).into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
        ];
        for (family, gateway) in Family::BOTH.into_iter().zip(gateways) {
            let address = IpNet::from(self.pod(number, family));
            topology.addresses.push((inside.clone(), address));
            topology.routes.push(route(&pod, None, gateway, "eth0"));
            topology.routes.push(Route {
                namespace: node.clone(),
                to: Some(address),
                via: None,
                device: pod.clone(),
            });
            match family {
                Family::V4 => topology.neighbours.push(Neighbour {
                    place: inside.clone(),
                    address: gateway,
                    mac: mac.clone(),
                }),
                Family::V6 => topology
                    .addresses
                    .push((outside.clone(), IpNet::new_assert(gateway, 64))),
            }
        }
    }

    /// Makes the VLAN device if there is to be one; returns the name of the device for addresses.
    fn add_uplink(self, room: &str, below: &str, topology: &mut Topology) -> String {
        let device = self.uplink.device(below);
        if let Uplink::Vlan(id) = self.uplink {
            topology
                .vlans
                .push((Place::new(room, below), id, device.clone()));
        }
        device
    }
}

/// The switch's port towards `room`.
fn port(room: &str) -> End {
    End {
        bridge: Some("br0".to_owned()),
        ..End::at("switch", room)
    }
}

fn route(namespace: &str, to: Option<IpNet>, via: IpAddr, device: &str) -> Route {
    Route {
        namespace: namespace.to_owned(),
        to,
        via: Some(via),
        device: device.to_owned(),
    }
}

const fn subnet(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_address_is_given_once() {
        let topology = Layout {
            nodes: 3,
            pods_per_node: 4,
            ..Layout::STANDARD
        }
        .topology();
        let gateway: IpAddr = "fe80::1".parse().unwrap();
        let mut seen = BTreeSet::new();
        for (place, prefix) in &topology.addresses {
            let fresh = seen.insert(prefix.addr());
            assert!(
                fresh || prefix.addr() == gateway,
                "{prefix} again at {place:?}"
            );
        }
    }

    #[test]
    fn pods_are_numbered_through() {
        let layout = Layout::STANDARD;
        let nodes: Vec<_> = layout.pods().map(|pod| layout.node_of(pod)).collect();
        assert_eq!(nodes, [1, 1, 2, 2]);
        assert_eq!(layout.pod(3, Family::V4).to_string(), "10.244.2.13");
        assert_eq!(layout.pod(3, Family::V6).to_string(), "fd00:244:2::13");
    }

    #[test]
    fn a_vlan_uplink_has_the_addresses() {
        let topology = Layout {
            uplink: Uplink::Vlan(100),
            ..Layout::STANDARD
        }
        .topology();
        let room = topology.rooms.iter().find(|room| room.name == "node1");
        let batch = topology.inside_batch(room.unwrap());
        let has = |line: &str| batch.iter().any(|one| one == line);
        assert!(has("link add link eth0 name eth0.100 type vlan id 100"));
        assert!(has("address add 192.0.2.11/24 dev eth0.100"));
        assert!(has(
            "route replace ::/0 via 2001:db8:2::1 dev eth0.100 onlink"
        ));
    }
}

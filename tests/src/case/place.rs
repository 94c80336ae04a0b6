//! The one network that all cases play in: addresses, devices, routes.
//!
//! ```text
//!  clients ── router ─┐                        ┌─ pod A
//!  remote pods ─ peer ─┴─ UP0 ─ this node ─┬─ POD_A
//!  VLAN 5 ─────────────── UP0              └─ POD_B ── pod B
//!  side pods ── side router ── UP1
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use proxy_common::abi::FlowStep;

/// The family that a case is played in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Interface indexes. The namespace of the kernel executor has the same.
pub mod device {
    /// The loopback device.
    pub const LO: u32 = proxy_common::abi::LOOPBACK;
    /// Uplink that XDP can send out of.
    pub const UP0: u32 = 10;
    /// Uplink that XDP cannot send out of.
    pub const UP1: u32 = 11;
    /// VLAN 5 of `UP0`.
    pub const VLAN: u32 = 12;
    /// VLAN 7 in VLAN 5 of `UP0`.
    pub const INNER_VLAN: u32 = 13;
    /// A device that the daemon knows nothing of.
    pub const STRANGE: u32 = 14;
    /// Host end of pod A's veth pair.
    pub const POD_A: u32 = 20;
    /// Host end of pod B's veth pair.
    pub const POD_B: u32 = 21;

    /// All of them, but for the loopback device.
    pub const ALL: [u32; 7] = [UP0, UP1, VLAN, INNER_VLAN, STRANGE, POD_A, POD_B];
}

/// An ARP request, as any frame that is not IP.
pub const SENT_ARP: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0xaa, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0xaa,
    0, 0, 0, 2, 192, 0, 2, 254, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1,
];

/// MTU of all devices but the loopback device, bytes.
pub const MTU: u16 = 1_500;

/// The link-layer address of a device. VLAN devices have that of the device that they stand on.
#[must_use]
pub fn mac(ifindex: u32) -> [u8; 6] {
    let number = match ifindex {
        device::LO => return [0; 6],
        device::VLAN | device::INNER_VLAN => device::UP0,
        other => other,
    };
    [0x02, 0, 0, 0, 0, u8::try_from(number).unwrap_or_default()]
}

/// The link-layer address of a neighbour.
const fn neighbour(number: u8) -> [u8; 6] {
    [0x02, 0xbb, 0, 0, 0, number]
}

/// Everything with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Host {
    Client,
    OtherClient,
    Node,
    NodeOnUp1,
    NodeOnVlan,
    NodeOnInnerVlan,
    Router,
    Peer,
    SideRouter,
    VlanRouter,
    InnerVlanRouter,
    PodA,
    PodB,
    RemoteA,
    RemoteB,
    RemoteC,
    SidePod,
    VlanClient,
    VlanPod,
    InnerVlanClient,
    InnerVlanPod,
    /// The next hop's link-layer address is not known.
    Lost,
    /// Its next hop.
    LostRouter,
    /// Behind an unreachable route.
    Refused,
    /// There is no route to it.
    Nowhere,
    /// A cluster address.
    Cluster,
    /// Another one.
    OtherCluster,
    /// A load balancer's address.
    Balancer,
    /// None of ours.
    Foreign,
}

impl Host {
    const fn parts(self) -> ([u8; 4], [u16; 2]) {
        match self {
            Self::Client => ([203, 0, 113, 7], [0xc, 7]),
            Self::OtherClient => ([203, 0, 113, 8], [0xc, 8]),
            Self::Node => ([192, 0, 2, 1], [1, 1]),
            Self::NodeOnUp1 => ([198, 51, 100, 1], [2, 1]),
            Self::NodeOnVlan => ([172, 16, 5, 1], [5, 1]),
            Self::NodeOnInnerVlan => ([172, 16, 7, 1], [7, 1]),
            Self::Router => ([192, 0, 2, 254], [1, 0xfe]),
            Self::Peer => ([192, 0, 2, 2], [1, 2]),
            Self::SideRouter => ([198, 51, 100, 2], [2, 2]),
            Self::VlanRouter => ([172, 16, 5, 2], [5, 2]),
            Self::InnerVlanRouter => ([172, 16, 7, 2], [7, 2]),
            Self::PodA => ([10, 1, 0, 10], [0x101, 10]),
            Self::PodB => ([10, 1, 0, 11], [0x101, 11]),
            Self::RemoteA => ([10, 2, 0, 10], [0x102, 10]),
            Self::RemoteB => ([10, 2, 0, 11], [0x102, 11]),
            Self::RemoteC => ([10, 2, 0, 12], [0x102, 12]),
            Self::SidePod => ([10, 3, 0, 10], [0x103, 10]),
            Self::VlanClient => ([172, 16, 5, 7], [5, 7]),
            Self::VlanPod => ([10, 5, 0, 10], [0x105, 10]),
            Self::InnerVlanClient => ([172, 16, 7, 7], [7, 7]),
            Self::InnerVlanPod => ([10, 6, 0, 10], [0x106, 10]),
            Self::Lost => ([10, 7, 0, 10], [0x107, 10]),
            Self::LostRouter => ([192, 0, 2, 77], [1, 77]),
            Self::Refused => ([10, 8, 0, 10], [0x108, 10]),
            Self::Nowhere => ([10, 9, 0, 10], [0x109, 10]),
            Self::Cluster => ([10, 96, 0, 10], [0x96, 10]),
            Self::OtherCluster => ([10, 96, 0, 11], [0x96, 11]),
            Self::Balancer => ([198, 18, 0, 10], [0x18, 10]),
            Self::Foreign => ([198, 18, 9, 9], [0x18, 9]),
        }
    }

    /// Its address.
    #[must_use]
    pub const fn ip(self, version: Version) -> IpAddr {
        let ([a, b, c, d], [net, host]) = self.parts();
        match version {
            Version::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            Version::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0xca5e, net, 0, 0, 0, 0, host)),
        }
    }

    /// A port of it.
    #[must_use]
    pub const fn port(self, version: Version, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(version), port)
    }
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Through a neighbour at a device.
    Via(IpAddr, u32),
    /// Straight to a device.
    Direct(u32),
    /// An `unreachable` route.
    Refused,
}

/// This node's own addresses: address and device.
#[must_use]
pub fn own_addresses() -> Vec<(IpAddr, u32)> {
    use device::{INNER_VLAN, UP0, UP1, VLAN};
    both(&[
        (Host::Node, UP0),
        (Host::NodeOnUp1, UP1),
        (Host::NodeOnVlan, VLAN),
        (Host::NodeOnInnerVlan, INNER_VLAN),
    ])
}

fn both<T: Copy>(list: &[(Host, T)]) -> Vec<(IpAddr, T)> {
    [Version::V4, Version::V6]
        .into_iter()
        .flat_map(|version| {
            list.iter()
                .map(move |(host, with)| (host.ip(version), *with))
        })
        .collect()
}

/// The routes: to single addresses, but for the clients' default route of each family's own net.
#[must_use]
pub fn routes() -> Vec<(IpNet, RouteKind)> {
    use device::{INNER_VLAN, POD_A, POD_B, UP0, UP1, VLAN};
    let mut routes = Vec::new();
    for version in [Version::V4, Version::V6] {
        let via = |host: Host, ifindex| RouteKind::Via(host.ip(version), ifindex);
        let list = [
            (Host::Client, via(Host::Router, UP0)),
            (Host::OtherClient, via(Host::Router, UP0)),
            (Host::RemoteA, via(Host::Peer, UP0)),
            (Host::RemoteB, via(Host::Peer, UP0)),
            (Host::RemoteC, via(Host::Peer, UP0)),
            (Host::SidePod, via(Host::SideRouter, UP1)),
            (Host::VlanPod, via(Host::VlanRouter, VLAN)),
            (Host::InnerVlanPod, via(Host::InnerVlanRouter, INNER_VLAN)),
            (Host::Lost, via(Host::LostRouter, UP0)),
            (Host::Refused, RouteKind::Refused),
            (Host::PodA, RouteKind::Direct(POD_A)),
            (Host::PodB, RouteKind::Direct(POD_B)),
            (Host::VlanClient, RouteKind::Direct(VLAN)),
            (Host::InnerVlanClient, RouteKind::Direct(INNER_VLAN)),
        ];
        routes.extend(list.map(|(host, kind)| (IpNet::from(host.ip(version)), kind)));
    }
    routes
}

/// Neighbours: device and address, link-layer address.
#[must_use]
pub fn neighbours() -> Vec<((u32, IpAddr), [u8; 6])> {
    use device::{INNER_VLAN, POD_A, POD_B, UP0, UP1, VLAN};
    let list = [
        (Host::Router, (UP0, 1)),
        (Host::Peer, (UP0, 2)),
        (Host::SideRouter, (UP1, 3)),
        (Host::VlanRouter, (VLAN, 4)),
        (Host::InnerVlanRouter, (INNER_VLAN, 5)),
        (Host::PodA, (POD_A, 6)),
        (Host::PodB, (POD_B, 7)),
        (Host::VlanClient, (VLAN, 8)),
        (Host::InnerVlanClient, (INNER_VLAN, 9)),
    ];
    both(&list)
        .into_iter()
        .map(|(ip, (ifindex, number))| ((ifindex, ip), neighbour(number)))
        .collect()
}

/// What a case expects a flow entry to hold of its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// What to do.
    pub step: FlowStep,
    /// The device.
    pub ifindex: u32,
    /// Link-layer destination.
    pub destination: [u8; 6],
    /// Link-layer source.
    pub source: [u8; 6],
    /// The device's MTU.
    pub mtu: u16,
}

impl Next {
    const fn none(step: FlowStep) -> Self {
        Self {
            step,
            ifindex: 0,
            destination: [0; 6],
            source: [0; 6],
            mtu: 0,
        }
    }

    fn to(step: FlowStep, ifindex: u32, number: u8) -> Self {
        Self {
            step,
            ifindex,
            destination: neighbour(number),
            source: mac(ifindex),
            mtu: MTU,
        }
    }

    /// Not asked for yet.
    pub const UNKNOWN: Self = Self::none(FlowStep::Resolve);

    /// This node's own stack.
    pub const LOCAL: Self = Self::none(FlowStep::Local);

    /// The router towards the clients.
    #[must_use]
    pub fn router() -> Self {
        Self::to(FlowStep::Transmit, device::UP0, 1)
    }

    /// The node with the remote pods.
    #[must_use]
    pub fn peer() -> Self {
        Self::to(FlowStep::Transmit, device::UP0, 2)
    }

    /// The router at `UP1`.
    #[must_use]
    pub fn side() -> Self {
        Self::to(FlowStep::Enqueue, device::UP1, 3)
    }

    /// The router in VLAN 5, for packets that came in there. They leave by the uplink, tags kept.
    #[must_use]
    pub fn vlan() -> Self {
        Self {
            source: mac(device::VLAN),
            ..Self::to(FlowStep::Enqueue, device::UP0, 4)
        }
    }

    /// The same for VLAN 7 in VLAN 5.
    #[must_use]
    pub fn inner_vlan() -> Self {
        Self {
            source: mac(device::INNER_VLAN),
            mtu: 0,
            ..Self::to(FlowStep::Enqueue, device::UP0, 5)
        }
    }

    /// A client in VLAN 7 in VLAN 5, for packets that came in there.
    #[must_use]
    pub fn inner_vlan_client() -> Self {
        Self {
            source: mac(device::INNER_VLAN),
            mtu: 0,
            ..Self::to(FlowStep::Enqueue, device::UP0, 9)
        }
    }

    /// A client in VLAN 5, for packets that came in there.
    #[must_use]
    pub fn vlan_client() -> Self {
        Self {
            source: mac(device::VLAN),
            ..Self::to(FlowStep::Enqueue, device::UP0, 8)
        }
    }

    /// Pod A.
    #[must_use]
    pub fn pod_a() -> Self {
        Self::to(FlowStep::Pod, device::POD_A, 6)
    }

    /// Pod B.
    #[must_use]
    pub fn pod_b() -> Self {
        Self::to(FlowStep::Pod, device::POD_B, 7)
    }

    /// A neighbour at `UP0` whose link-layer address is not known.
    pub const LOST: Self = Self {
        ifindex: device::UP0,
        mtu: MTU,
        ..Self::none(FlowStep::Neighbour)
    };
}

//! What there is for one seed: Nodes' zones, Services, and who serves them.

use std::net::IpAddr;

use crate::{
    differential::Random,
    lab::layout::{self, Family, Layout, ON_HOST},
};

mod draw;

/// The world that all of it is for.
pub const LAYOUT: Layout = Layout::STANDARD;

/// Ports of the servers in each pod.
pub const SERVED: [u16; 2] = [7007, 7008];

/// Everything of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Where it came from.
    pub seed: u64,
    /// The zones of the nodes, in order.
    pub zones: [Option<String>; 2],
    /// The services.
    pub services: Vec<Service>,
}

/// Types of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An address inside the cluster.
    ClusterIp,
    /// And a port of every node.
    NodePort,
    /// And addresses outside.
    LoadBalancer,
}

/// Another proxy is to serve it, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Label `service.kubernetes.io/service-proxy-name`.
    ProxyName,
    /// Label `service.kubernetes.io/headless`.
    Headless,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the fields of a Service"
)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its number among those of the seed, from 1: its addresses and node ports follow from it.
    pub number: u8,
    /// Its type.
    pub kind: Kind,
    /// Its families, the first one first.
    pub families: Vec<Family>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Time-out of client affinity.
    pub affinity: Option<u32>,
    /// The service that is the same but for affinity.
    pub twin: Option<String>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `loadBalancerSourceRanges`.
    pub ranges: Vec<String>,
    /// Whether it has an address of `externalIPs` in each family.
    pub external: Option<External>,
    /// `ipMode: Proxy`.
    pub ip_mode_proxy: bool,
    /// Whether node ports are given to a load balancer.
    pub node_ports: bool,
    /// `healthCheckNodePort`: what the API server would hand out might be a node port of another.
    pub health_port: Option<u16>,
    /// Left to others.
    pub foreign: Option<Foreign>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Who serves it.
    pub slices: Vec<Slice>,
}

/// Where external addresses lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum External {
    /// In `services.external_ranges` of Causeway's configuration.
    Allowed,
    /// Elsewhere.
    Elsewhere,
}

/// TCP or UDP.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// Its protocol.
    pub protocol: Protocol,
    /// At the service's own addresses.
    pub number: u16,
    /// At nodes.
    pub node_port: u16,
}

/// An `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its name.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Names and protocols of ports, and where they are in the pods; without that, the port is nobody's.
    pub ports: Vec<(&'static str, Protocol, Option<u16>)>,
    /// Pods.
    pub endpoints: Vec<Endpoint>,
}

/// A pod in a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its number.
    pub pod: u8,
    /// Condition `ready`.
    pub ready: Option<bool>,
    /// Condition `serving`.
    pub serving: Option<bool>,
    /// Condition `terminating`.
    pub terminating: Option<bool>,
    /// Whether it says its node.
    pub has_node: bool,
    /// `hints.forZones`.
    pub zones: Vec<String>,
    /// `hints.forNodes`.
    pub nodes: Vec<String>,
}

impl Scenario {
    /// That of a seed; always the same.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        draw::scenario(seed, &mut Random::new(seed))
    }

    /// A service by its name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The part of addresses that tells seeds which follow each other from one another: connection
    /// tracking remembers UDP for a while.
    #[must_use]
    pub fn round(&self) -> u8 {
        u8::try_from(self.seed % 200).unwrap_or_default() + 1
    }
}

impl Service {
    /// Its cluster address.
    #[must_use]
    pub fn cluster(&self, round: u8, family: Family) -> IpAddr {
        address(family, [10, 96], 0x96, round, self.number)
    }

    /// Its load balancer's address.
    #[must_use]
    pub fn balancer(&self, round: u8, family: Family) -> IpAddr {
        match family {
            Family::V4 => address(family, [198, 19], 0, round, self.number),
            Family::V6 => address(family, [0, 0], 0x19, round, self.number),
        }
    }

    /// Its external address, if it has one.
    #[must_use]
    pub fn external(&self, round: u8, family: Family) -> Option<IpAddr> {
        match self.external? {
            External::Allowed => {
                let host = u16::from(round) * 32 + u16::from(self.number);
                let host = u8::try_from(host % 250).unwrap_or_default() + 1;
                Some(layout::load_balancer(host, family))
            }
            External::Elsewhere => Some(match family {
                Family::V4 => address(family, [100, 65], 0, round, self.number),
                Family::V6 => address(family, [0, 0], 0x114, round, self.number),
            }),
        }
    }

    /// True if nodes have ports for it.
    #[must_use]
    pub const fn has_node_ports(&self) -> bool {
        match self.kind {
            Kind::ClusterIp => false,
            Kind::NodePort => true,
            Kind::LoadBalancer => self.node_ports,
        }
    }
}

/// Last but one comes the round, last the service's number.
fn address(family: Family, v4: [u8; 2], v6: u16, round: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => [v4[0], v4[1], round, number].into(),
        // The API server has IPv6 service addresses in a /112.
        Family::V6 => {
            let last = u16::from(round) << 8 | u16::from(number);
            [0xfd00, v6, 0, 0, 0, 0, 0, last].into()
        }
    }
}

/// Where a pod's server is.
#[must_use]
pub fn pod(number: u8, family: Family) -> IpAddr {
    LAYOUT.pod(number, family)
}

/// Pods with servers; those above [`ON_HOST`] are on the network of their node.
#[must_use]
pub const fn pods() -> [u8; 6] {
    [1, 2, 3, 4, ON_HOST + 1, ON_HOST + 2]
}

#[cfg(test)]
mod tests;

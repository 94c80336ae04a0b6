//! Who asks whom.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::lab::layout::{self, Family};

use super::scenario::{Kind, LAYOUT, Protocol, Scenario, Service, pod};

/// A port that no service has.
const UNKNOWN_PORT: u16 = 9;

/// Where a question comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A client outside; what it sends to service addresses enters the cluster at the node of this number.
    Outside(u8),
    /// A process of a node.
    Node(u8),
    /// A pod.
    Pod(u8),
}

/// Kinds of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// Outside of the cluster.
    Outside,
    /// A process of a node.
    Node,
    /// A pod.
    Pod,
}

impl Place {
    /// All that ask: a client for each node, each node, and a pod on each.
    pub const ALL: [Self; 6] = [
        Self::Outside(1),
        Self::Outside(2),
        Self::Node(1),
        Self::Node(2),
        Self::Pod(1),
        Self::Pod(3),
    ];

    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> From {
        match self {
            Self::Outside(_) => From::Outside,
            Self::Node(_) => From::Node,
            Self::Pod(_) => From::Pod,
        }
    }

    /// Its own address.
    #[must_use]
    pub fn address(self, family: Family) -> IpAddr {
        match (self, layout::client(family)) {
            (Self::Outside(1), client) => client,
            (Self::Outside(_), IpAddr::V4(client)) => next(client.octets()).into(),
            (Self::Outside(_), IpAddr::V6(client)) => next(client.octets()).into(),
            (Self::Node(number), _) => layout::node(number, family),
            (Self::Pod(number), _) => pod(number, family),
        }
    }

    /// The room of the world that it is in.
    #[must_use]
    pub fn room(self) -> String {
        match self {
            Self::Outside(_) => "client".to_owned(),
            Self::Node(number) => format!("node{number}"),
            Self::Pod(number) => format!("pod{number}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(number) => write!(f, "outside{number}"),
            _ => f.write_str(&self.room()),
        }
    }
}

fn next<const N: usize>(mut address: [u8; N]) -> [u8; N] {
    if let Some(last) = address.last_mut() {
        *last += 1;
    }
    address
}

/// Which kind of address and port is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// A cluster address.
    Cluster,
    /// A load balancer's address.
    LoadBalancer,
    /// An external address.
    External,
    /// A node port of a node's address.
    NodePort,
    /// A cluster address, and a port that the service does not have.
    ClusterUnknownPort,
    /// The same at a load balancer's address.
    LoadBalancerUnknownPort,
    /// A load balancer's address, and the service's node port.
    LoadBalancerNodePort,
    /// An address of the range of services that no service has.
    UnknownAddress,
}

/// Someone to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service's name.
    pub service: String,
    /// The port's name.
    pub port: &'static str,
    /// What is asked.
    pub at: At,
    /// Family.
    pub family: Family,
    /// Protocol.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
    /// For a node port, whose address it is.
    pub node: Option<u8>,
}

impl Target {
    /// True if it is the same but for the service.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (self.port, self.at, self.family, self.protocol, self.node)
            == (
                other.port,
                other.at,
                other.family,
                other.protocol,
                other.node,
            )
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}:{} {protocol} {:?}", self.service, self.port, self.at)?;
        match self.node {
            Some(node) => write!(f, " of node{node} {}", self.address),
            None => write!(f, " {}", self.address),
        }
    }
}

/// Everyone who is to be asked about a scenario, the ports of one service one after the other.
#[must_use]
pub fn targets(scenario: &Scenario) -> Vec<Target> {
    let mut found: Vec<Target> = scenario
        .services
        .iter()
        .flat_map(|service| of_service(service, scenario.round()))
        .collect();
    for family in Family::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            found.push(unknown(scenario, family, protocol));
        }
    }
    found
}

fn unknown(scenario: &Scenario, family: Family, protocol: Protocol) -> Target {
    // The address after the last service's.
    let address = scenario.services.last().map(|last| {
        let free = Service {
            number: last.number + 100,
            ..last.clone()
        };
        free.cluster(scenario.round(), family)
    });
    Target {
        service: "nobody".to_owned(),
        port: "",
        at: At::UnknownAddress,
        family,
        protocol,
        address: SocketAddr::new(
            address.unwrap_or_else(|| layout::cluster_ip(99, family)),
            80,
        ),
        node: None,
    }
}

fn of_service(service: &Service, round: u8) -> Vec<Target> {
    let mut found = Vec::new();
    for port in &service.ports {
        for family in service.families.iter().copied() {
            let mut add = |at, address: IpAddr, number, node| {
                found.push(Target {
                    service: service.name.clone(),
                    port: port.name,
                    at,
                    family,
                    protocol: port.protocol,
                    address: SocketAddr::new(address, number),
                    node,
                });
            };
            let cluster = service.cluster(round, family);
            add(At::Cluster, cluster, port.number, None);
            if service.foreign.is_none() {
                add(At::ClusterUnknownPort, cluster, UNKNOWN_PORT, None);
            }
            if let Some(external) = service.external(round, family) {
                add(At::External, external, port.number, None);
            }
            if service.kind == Kind::LoadBalancer {
                let balancer = service.balancer(round, family);
                add(At::LoadBalancer, balancer, port.number, None);
                if service.has_node_ports() {
                    add(At::LoadBalancerNodePort, balancer, port.node_port, None);
                }
                add(At::LoadBalancerUnknownPort, balancer, UNKNOWN_PORT, None);
            }
            if service.has_node_ports() {
                for node in LAYOUT.nodes() {
                    let address = layout::node(node, family);
                    add(At::NodePort, address, port.node_port, Some(node));
                }
            }
        }
    }
    found
}

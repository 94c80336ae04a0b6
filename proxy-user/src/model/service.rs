//! Service ports: where they are reached, and what serves them.

use std::{borrow::Borrow, fmt, net::IpAddr, sync::Arc};

use proxy_common::{abi::OBJECT_NAME_BYTES, wire::protocol};
use serde::{Deserialize, Serialize};

use super::{Endpoint, ObjectRef, Policies};

/// Transport protocols of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, only where no port is translated: its checksum (CRC-32C over the whole packet) can't
    /// be changed incrementally in the datapath.
    Sctp,
}

impl Protocol {
    /// The IANA number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }

    /// From the IANA number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            protocol::TCP => Some(Self::Tcp),
            protocol::UDP => Some(Self::Udp),
            protocol::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }

    /// From the name in Kubernetes objects.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// How a service chooses a backend for a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// At random, by weight.
    #[default]
    Random,
    /// By a table that is the same on every node and changes little when a backend comes or goes.
    Maglev,
}

/// The name of a service port, which identifies it across restarts:
/// `namespace/name:port/PROTOCOL`, or `pod/namespace/name:port/PROTOCOL` for a host port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceName(Arc<str>);

/// A name that doesn't fit the record of `OBJECTS`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {name:?} is longer than the {OBJECT_NAME_BYTES} bytes that can be kept")]
pub struct InvalidName {
    /// The name.
    pub name: String,
}

impl ServiceName {
    /// A name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        if name.is_empty() || name.len() > OBJECT_NAME_BYTES || name.contains('\0') {
            return Err(InvalidName { name });
        }
        Ok(Self(name.into()))
    }

    /// As shared text.
    #[must_use]
    pub const fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who can reach a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Pods and nodes of the cluster.
    Cluster,
    /// Anybody.
    Everywhere,
}

/// Where a service port is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frontend {
    /// An address of the service's own: cluster address, load-balancer address, external address.
    Address {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
        /// Who can reach it.
        reach: Reach,
        /// Only for clients in the service's ranges ([`Terms::ranges`]).
        restricted: bool,
    },
    /// A port of this node's addresses.
    NodePort {
        /// Port.
        port: u16,
        /// On IPv4 addresses.
        v4: bool,
        /// On IPv6 addresses.
        v6: bool,
    },
    /// A port of one of this node's addresses.
    HostPort {
        /// Address; an unspecified one (`0.0.0.0`, `::`) means all of the family.
        address: IpAddr,
        /// Port.
        port: u16,
    },
}

/// On what terms all ports of a service serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Whose endpoints are used.
    pub policies: Policies,
    /// How long a client keeps its endpoint after its last new connection, seconds; zero: not at all.
    pub affinity: u32,
    /// Clients of load-balancer addresses; none: all.
    pub ranges: Arc<[ipnet::IpNet]>,
}

/// One port of a service, or one host port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name.
    pub name: ServiceName,
    /// The Service or the Pod.
    pub object: ObjectRef,
    /// The field of the port in the object, for reports.
    pub field: String,
    /// When the object was made, seconds since 1970; among claims to one frontend the oldest wins.
    pub created: Option<i64>,
    /// Protocol of all frontends and endpoints.
    pub protocol: Protocol,
    /// None: what the configuration says.
    pub algorithm: Option<Algorithm>,
    /// Where it is reached.
    pub frontends: Vec<Frontend>,
    /// On what terms.
    pub terms: Terms,
    /// All endpoints, in order of address and port, without duplicates.
    pub endpoints: Vec<Endpoint>,
}

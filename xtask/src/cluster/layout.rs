//! Where the hosts of the cluster are: names, addresses, folders.
//!
//! Addresses are of the ranges for benchmarks (RFC 2544) and unique local ones (RFC 4193), which no
//! network around this machine should use.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;

use crate::workspace;

/// Begins the names of all network namespaces and control groups of the cluster.
pub(crate) const PREFIX: &str = "causeway-cluster-";

/// Pods' addresses; nodes get parts of these, in the order in which they register.
pub(crate) const PODS: &str = "10.244.0.0/16,fd00:244::/56";
/// Services' addresses.
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";
/// `default/kubernetes`: the first service addresses.
pub(crate) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
/// `kube-system/kube-dns`.
pub(crate) const DNS_SERVICE: &str = "10.96.0.10";
/// Nodes that fit.
pub(crate) const MOST_NODES: u8 = 9;

/// A machine of the cluster, or beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// etcd, API server, controllers, scheduler.
    Control,
    /// A client outside of the cluster, and the nodes' default gateway.
    Outside,
    /// A node, counted from one.
    Node(u8),
}

impl Place {
    /// The place that is called so.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Control, Self::Outside]
            .into_iter()
            .chain((1..=MOST_NODES).map(Self::Node))
            .find(|place| place.to_string() == name)
    }

    fn last_byte(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Node(number) => 10 + number,
            Self::Outside => 100,
        }
    }

    /// On the network that joins all.
    pub(crate) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, self.last_byte())
    }

    /// On the network that joins all.
    pub(crate) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, self.last_byte().into())
    }

    /// The address of the family of `other`.
    pub(crate) fn of_family(self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => self.v4().into(),
            IpAddr::V6(_) => self.v6().into(),
        }
    }

    /// As `ip netns` knows it.
    pub(crate) fn namespace(self) -> String {
        format!("{PREFIX}{self}")
    }

    /// What its processes keep and print.
    pub(crate) fn folder(self) -> Result<PathBuf> {
        Ok(folder()?.join(self.to_string()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Outside => f.write_str("outside"),
            Self::Node(number) => write!(f, "n{number}"),
        }
    }
}

/// What the cluster keeps on disk while it is up; `down` removes it.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("cluster/run"))
}

/// The API server, as everyone in the cluster reaches it.
pub(crate) fn api_server() -> String {
    format!("https://{}:6443", Place::Control.v4())
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn each_place_is_found_by_its_name() {
        for place in [
            Place::Control,
            Place::Outside,
            Place::Node(1),
            Place::Node(9),
        ] {
            assert_eq!(Place::named(&place.to_string()), Some(place));
        }
        assert_eq!(Place::named("n0"), None);
        assert_eq!(Place::Node(2).v4().to_string(), "198.18.0.12");
        assert_eq!(Place::Node(2).v6().to_string(), "fd00:18::c");
    }
}

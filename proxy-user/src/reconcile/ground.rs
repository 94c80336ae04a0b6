//! What the compilation of every service port stands on.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Facts, Options, claims::ServiceAddresses, facts::is_usable};
use crate::model::{Algorithm, Here, State, ZONE_LABEL};

/// Where one of these changes, everything is compiled anew. That is seldom: of devices and their
/// addresses only that counts which decides about frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ground {
    /// This node's name.
    node: String,
    /// This node's zone, if it has one.
    zone: Option<String>,
    /// For services that don't say.
    pub(super) algorithm: Algorithm,
    /// Where node ports are served.
    pub(super) node_ports: Vec<IpAddr>,
    /// Addresses of services that this node's own stack answers for, too.
    pub(super) shared: BTreeSet<IpAddr>,
}

impl Ground {
    pub(super) fn of(
        state: &State,
        facts: &Facts,
        options: &Options,
        services: &ServiceAddresses,
    ) -> Self {
        let node = state.nodes.get(&options.node);
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL));
        let local = facts.local_addresses();
        let shared = local.iter().filter(|address| services.contains(address));
        let shared: BTreeSet<IpAddr> = shared.copied().collect();
        let known = node.map(|node| node.addresses.as_slice());
        let known = known.unwrap_or_default();
        let mut node_ports: Vec<IpAddr> =
            node_port_addresses(facts, &local, &options.node_port_ranges)
                .into_iter()
                // Never at an address that belongs to a service, unless the cluster knows this node by
                // it.
                .filter(|address| !shared.contains(address) || known.contains(address))
                .collect();
        if options.sockets {
            node_ports.extend(loopback_places(&options.node_port_ranges));
        }
        Self {
            node: options.node.clone(),
            zone: zone.filter(|zone| !zone.is_empty()).cloned(),
            algorithm: options.algorithm,
            node_ports,
            shared,
        }
    }

    /// What choosing endpoints needs to know of this node.
    pub(super) fn here(&self) -> Here<'_> {
        Here {
            node: &self.node,
            zone: self.zone.as_deref(),
        }
    }
}

/// What sockets find in place of loopback addresses (`datapath::socket`), if node ports are served
/// there.
fn loopback_places(ranges: &[ipnet::IpNet]) -> impl Iterator<Item = IpAddr> {
    let places: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    ];
    let served = |a: &IpAddr| ranges.is_empty() || ranges.iter().any(|range| range.contains(a));
    let places = places.into_iter().filter(move |(_, own)| served(own));
    places.map(|(place, _)| place)
}

/// Where node ports may be served: in these ranges; none: at all addresses of uplinks.
fn node_port_addresses(
    facts: &Facts,
    local: &BTreeSet<IpAddr>,
    ranges: &[ipnet::IpNet],
) -> BTreeSet<IpAddr> {
    if ranges.is_empty() {
        return facts.uplink_addresses().collect();
    }
    let in_range = |a: &IpAddr| ranges.iter().any(|range| range.contains(a));
    let usable = local.iter().copied();
    usable.filter(|a| is_usable(*a) && in_range(a)).collect()
}

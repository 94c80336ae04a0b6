//! Where is listened, and for what.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    config::Config,
    model::{ObjectRef, State},
    reconcile::Facts,
};

/// What is answered at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/healthz` and `/livez`.
    Health,
    /// `/metrics` and `/proxyMode`.
    Metrics,
    /// Whether a Service has endpoints of a family here.
    Service {
        /// The Service.
        object: ObjectRef,
        /// IPv4, else IPv6.
        v4: bool,
    },
}

/// An address and port to listen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which.
    pub address: SocketAddr,
    /// Whether an unspecified IPv6 address means all of IPv4 as well.
    pub both_families: bool,
}

/// All of them. A Service's health check is where node ports are served if the configuration says so
/// (`node.port_ranges`), else at all addresses of its families.
#[must_use]
pub fn places(config: &Config, facts: &Facts, state: &State) -> BTreeMap<Place, Page> {
    let own = |address: Option<SocketAddr>, page| {
        let address = address?;
        let place = Place {
            address,
            both_families: address.is_ipv6(),
        };
        Some((place, page))
    };
    let addresses = addresses(config, facts);
    let checks = state.health_checks.iter().flat_map(|(port, check)| {
        let [v4, v6] = check.families;
        let of_families = move |address: &&IpAddr| if address.is_ipv4() { v4 } else { v6 };
        addresses.iter().filter(of_families).map(move |address| {
            let place = Place {
                address: SocketAddr::new(*address, *port),
                both_families: false,
            };
            let page = Page::Service {
                object: check.object.clone(),
                v4: address.is_ipv4(),
            };
            (place, page)
        })
    });
    // What is the daemon's own comes last, and stays where both are at one place.
    checks
        .chain(own(config.health, Page::Health))
        .chain(own(config.metrics, Page::Metrics))
        .collect()
}

fn addresses(config: &Config, facts: &Facts) -> Vec<IpAddr> {
    if config.node_port_ranges.is_empty() {
        return vec![
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
    }
    let in_range = |address: &IpAddr| {
        let mut ranges = config.node_port_ranges.iter();
        ranges.any(|range| range.contains(address))
    };
    facts
        .local_addresses()
        .into_iter()
        .filter(in_range)
        .collect()
}

#[cfg(test)]
mod tests;

//! Which service port has which frontend.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
};

use super::{Facts, facts::is_usable};
use crate::model::{Frontend, Notice, Reach, ServicePort, Severity, State};

/// An address, port and IANA protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: u8,
}

/// Who has a frontend. The lower order wins: a host port of one address before one of all, then
/// the older object, then the name.
#[derive(Clone, Copy, Debug)]
struct Holder<'s> {
    port: &'s ServicePort,
    class: u8,
    access: Access,
}

/// Who may use a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) reach: Reach,
    /// Only clients in the service's ranges.
    pub(super) restricted: bool,
}

impl Access {
    const EVERYBODY: Self = Self {
        reach: Reach::Everywhere,
        restricted: false,
    };
}

impl Holder<'_> {
    fn order(&self) -> (u8, i64, &str) {
        (
            self.class,
            self.port.created.unwrap_or(i64::MAX),
            self.port.name.shared(),
        )
    }
}

/// All frontends of a state on this node.
pub(super) struct Claims<'s> {
    holders: HashMap<Claim, Holder<'s>>,
    node_ports: Vec<IpAddr>,
    /// Addresses of services alone, with whether they can be reached from everywhere.
    pub(super) own: HashMap<IpAddr, Reach>,
    pub(super) notices: Vec<Notice>,
}

impl<'s> Claims<'s> {
    /// Settles who has what. `ranges` restrict the addresses that node ports are served on; none:
    /// all addresses of uplinks.
    pub(super) fn settle(
        state: &'s State,
        facts: &Facts,
        node: &str,
        ranges: &[ipnet::IpNet],
    ) -> Self {
        let local = facts.local_addresses();
        let mut own = HashMap::new();
        for port in state.services.values() {
            for frontend in &port.frontends {
                if let Frontend::Address { address, reach, .. } = frontend
                    && !local.contains(address)
                {
                    let known = own.entry(*address).or_insert(*reach);
                    *known = (*known).max(*reach);
                }
            }
        }
        let node_ports = node_port_addresses(state, facts, &local, node, ranges);
        let holders = HashMap::with_capacity(state.services.len());
        let mut claims = Self {
            holders,
            node_ports,
            own,
            notices: Vec::new(),
        };
        for port in state.services.values() {
            claims.add_all(port);
        }
        claims
    }

    fn add_all(&mut self, port: &'s ServicePort) {
        let protocol = port.protocol.number();
        for frontend in &port.frontends {
            match *frontend {
                Frontend::Address {
                    address,
                    port: number,
                    reach,
                    restricted,
                } => {
                    let claim = Claim {
                        address,
                        port: number,
                        protocol,
                    };
                    self.add(
                        claim,
                        Holder {
                            port,
                            class: 0,
                            access: Access { reach, restricted },
                        },
                    );
                }
                Frontend::NodePort {
                    port: number,
                    v4,
                    v6,
                } => {
                    for index in 0..self.node_ports.len() {
                        let Some(&address) = self.node_ports.get(index) else {
                            break;
                        };
                        if if address.is_ipv4() { v4 } else { v6 } {
                            let claim = Claim {
                                address,
                                port: number,
                                protocol,
                            };
                            self.add(
                                claim,
                                Holder {
                                    port,
                                    class: 1,
                                    access: Access::EVERYBODY,
                                },
                            );
                        }
                    }
                }
                Frontend::HostPort {
                    address,
                    port: number,
                } if address.is_unspecified() => {
                    for index in 0..self.node_ports.len() {
                        let Some(&own) = self.node_ports.get(index) else {
                            break;
                        };
                        if own.is_ipv4() == address.is_ipv4() {
                            let claim = Claim {
                                address: own,
                                port: number,
                                protocol,
                            };
                            self.add(
                                claim,
                                Holder {
                                    port,
                                    class: 3,
                                    access: Access::EVERYBODY,
                                },
                            );
                        }
                    }
                }
                Frontend::HostPort {
                    address,
                    port: number,
                } => {
                    let claim = Claim {
                        address,
                        port: number,
                        protocol,
                    };
                    self.add(
                        claim,
                        Holder {
                            port,
                            class: 2,
                            access: Access::EVERYBODY,
                        },
                    );
                }
            }
        }
    }

    fn add(&mut self, claim: Claim, holder: Holder<'s>) {
        let (winner, loser) = match self.holders.entry(claim) {
            Entry::Vacant(entry) => {
                entry.insert(holder);
                return;
            }
            Entry::Occupied(mut entry) if entry.get().port.name == holder.port.name => {
                let held = &mut entry.get_mut().access;
                held.reach = held.reach.max(holder.access.reach);
                held.restricted |= holder.access.restricted;
                return;
            }
            Entry::Occupied(mut entry) => {
                let held = *entry.get();
                if holder.order() < held.order() {
                    entry.insert(holder);
                    (holder, held)
                } else {
                    (held, holder)
                }
            }
        };
        let Claim { address, port, .. } = claim;
        let address = std::net::SocketAddr::new(address, port);
        let message = format!(
            "{address} {} already belongs to {} ({}), which is older or comes first: not served \
             here; give one of the two another address or port",
            loser.port.protocol, winner.port.name, winner.port.object,
        );
        let field = loser.port.field.as_str();
        self.notices.push(Notice::new(
            Severity::Error,
            &loser.port.object,
            field,
            message,
        ));
    }

    /// What each service port has, by the port's place in memory.
    pub(super) fn by_port(&self) -> HashMap<*const ServicePort, Vec<(Claim, Access)>> {
        let mut by_port: HashMap<*const ServicePort, Vec<(Claim, Access)>> =
            HashMap::with_capacity(self.holders.len());
        for (claim, holder) in &self.holders {
            by_port
                .entry(std::ptr::from_ref(holder.port))
                .or_default()
                .push((*claim, holder.access));
        }
        by_port
    }
}

/// Where node ports are served: never at an address that belongs to a service, unless the cluster
/// knows this node by it.
fn node_port_addresses(
    state: &State,
    facts: &Facts,
    local: &BTreeSet<IpAddr>,
    node: &str,
    ranges: &[ipnet::IpNet],
) -> Vec<IpAddr> {
    let known = state
        .nodes
        .get(node)
        .map(|node| node.addresses.as_slice())
        .unwrap_or_default();
    let mut of_services = BTreeSet::new();
    for frontend in state.services.values().flat_map(|port| &port.frontends) {
        if let Frontend::Address { address, .. } = frontend
            && local.contains(address)
            && !known.contains(address)
        {
            of_services.insert(*address);
        }
    }
    let candidates: BTreeSet<IpAddr> = if ranges.is_empty() {
        facts.uplink_addresses().collect()
    } else {
        let in_range = |a: &IpAddr| ranges.iter().any(|range| range.contains(a));
        local
            .iter()
            .copied()
            .filter(|a| is_usable(*a) && in_range(a))
            .collect()
    };
    candidates.difference(&of_services).copied().collect()
}

//! Routes to the pods of other nodes, straight by their addresses on a link that both are on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_cni::route::{self, METRIC, Route};

use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl::Finding;
use crate::model::{Node, State};
use crate::reconcile::Facts;

/// Makes this node's routes what they should be. Only those that carry our protocol number are
/// looked at, changed or removed.
pub(super) fn sync(state: &State, own: &str, facts: &Facts, netlink: &mut Netlink) -> Vec<Finding> {
    let (wanted, mut findings) = desired(state, own, facts);
    let held = match route::list(netlink) {
        Ok(held) => held.into_iter().filter(|route| !is_pods(route)).collect(),
        Err(error) => {
            findings.push(Finding {
                problem: format!("the node's routes cannot be read: {error}"),
                remedy: "give the daemon CAP_NET_ADMIN".to_owned(),
            });
            return findings;
        }
    };
    // A source that has not been read whole may know of more nodes.
    let remove_others = state.unknown.is_empty();
    for step in difference(&held, &wanted, remove_others) {
        let done = match &step {
            Step::Remove(route) => route.remove(netlink),
            Step::Add(route) => route.add(netlink),
            Step::Replace(old, new) => old.remove(netlink).and_then(|()| new.add(netlink)),
        };
        match done {
            Ok(()) => tracing::info!(?step, "routes"),
            Err(error) => findings.push(refused(&step, &error)),
        }
    }
    findings
}

/// Those that `causeway-cni` makes, one to each pod of this node.
const fn is_pods(route: &Route) -> bool {
    route.device.is_some() && route.via.is_none()
}

fn refused(step: &Step, error: &std::io::Error) -> Finding {
    let to = step.route().to;
    if error.raw_os_error() == Some(libc::EEXIST) {
        return Finding {
            problem: format!(
                "there is a route to {to} with metric {METRIC} that is not ours: it stays, and pods \
                 may not be reached"
            ),
            remedy: format!("ip route show {to}; remove it, or set pod_network.routes = false"),
        };
    }
    Finding {
        problem: format!("the route to {to} was refused: {error}"),
        remedy: "look at `ip route` and `ip link`".to_owned(),
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Remove(Route),
    Add(Route),
    Replace(Route, Route),
}

impl Step {
    const fn route(&self) -> &Route {
        match self {
            Self::Remove(route) | Self::Add(route) | Self::Replace(_, route) => route,
        }
    }
}

fn difference(held: &BTreeSet<Route>, wanted: &BTreeSet<Route>, remove_others: bool) -> Vec<Step> {
    let mut old: BTreeMap<IpNet, &Route> = held
        .difference(wanted)
        .map(|route| (route.to, route))
        .collect();
    let mut steps = Vec::new();
    for new in wanted.difference(held) {
        steps.push(match old.remove(&new.to) {
            Some(old) => Step::Replace(old.clone(), new.clone()),
            None => Step::Add(new.clone()),
        });
    }
    if remove_others {
        steps.extend(old.into_values().cloned().map(Step::Remove));
    }
    steps
}

/// To each other node's ranges by its internal address. What no pod of this node has is refused
/// here: it would go to the default gateway, which would send it back.
fn desired(state: &State, own: &str, facts: &Facts) -> (BTreeSet<Route>, Vec<Finding>) {
    let (mut routes, mut findings) = (BTreeSet::new(), Vec::new());
    for (name, node) in &state.nodes {
        for range in &node.pod_ranges {
            if name == own {
                routes.insert(Route {
                    to: *range,
                    via: None,
                    device: None,
                    metric: METRIC,
                });
                continue;
            }
            match next_hop(node, range, facts) {
                Ok((via, device)) => {
                    routes.insert(Route {
                        to: *range,
                        via: Some(via),
                        device: Some(device),
                        metric: METRIC,
                    });
                }
                Err(problem) => findings.push(Finding {
                    problem: format!("pods of Node {name} ({range}) are not reached: {problem}"),
                    remedy:
                        "put the nodes on one link, or route pod ranges by other means and set \
                             pod_network.routes = false"
                            .to_owned(),
                }),
            }
        }
    }
    (routes, findings)
}

/// The node's first internal address of the range's family, and the device on whose link it is.
fn next_hop(node: &Node, range: &IpNet, facts: &Facts) -> Result<(IpAddr, u32), String> {
    let v4 = range.addr().is_ipv4();
    let mut internal = node.addresses.iter().take(node.internal);
    let Some(address) = internal.find(|address| address.is_ipv4() == v4) else {
        let family = if v4 { "IPv4" } else { "IPv6" };
        return Err(format!("it has no InternalIP of {family}"));
    };
    let uplinks = facts
        .devices
        .values()
        .filter(|device| facts.is_uplink(device));
    let nets = uplinks.flat_map(|device| device.addresses.iter().map(move |net| (device, net)));
    nets.filter(|(_, net)| net.contains(address) && net.addr() != *address)
        .max_by_key(|(_, net)| net.prefix_len())
        .map(|(device, _)| (*address, device.ifindex))
        .ok_or_else(|| format!("its InternalIP {address} is on the link of no uplink of this node"))
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::DeviceRole;

    use super::*;
    use crate::reconcile::DeviceFact;

    fn node(addresses: &[&str], internal: usize, ranges: &[&str]) -> Node {
        Node {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            internal,
            pod_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    fn facts() -> Facts {
        let device = |ifindex, addresses: &[&str]| DeviceFact {
            ifindex,
            name: format!("eth{ifindex}"),
            mac: proxy_common::wire::MacAddr::default(),
            mtu: 1500,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            vlan: None,
            role: DeviceRole::Uplink,
            xdp_transmit: false,
        };
        Facts {
            hz: 250,
            devices: [
                (2, device(2, &["192.0.2.1/24", "2001:db8::1/64"])),
                (3, device(3, &["192.0.0.1/16"])),
            ]
            .into(),
        }
    }

    fn shown(routes: &BTreeSet<Route>) -> Vec<String> {
        let line = |route: &Route| {
            let via = route
                .via
                .map(|via| format!(" via {via}"))
                .unwrap_or_default();
            let device = route.device.map(|device| format!(" dev {device}"));
            format!("{}{via}{}", route.to, device.unwrap_or_default())
        };
        routes.iter().map(line).collect()
    }

    #[test]
    fn other_nodes_are_reached_by_their_internal_addresses() {
        let mut state = State::default();
        let nodes = [
            (
                "own",
                node(&["192.0.2.1"], 1, &["10.1.1.0/24", "fd00:1::/64"]),
            ),
            (
                "near",
                node(
                    &["192.0.2.2", "2001:db8::2"],
                    2,
                    &["10.1.2.0/24", "fd00:2::/64"],
                ),
            ),
            (
                "wide",
                node(&["192.0.9.2"], 1, &["10.1.3.0/24", "fd00:3::/64"]),
            ),
            ("far", node(&["198.51.100.2"], 1, &["10.1.4.0/24"])),
            ("outer", node(&["192.0.2.5"], 0, &["10.1.5.0/24"])),
        ];
        state.nodes = nodes.map(|(name, node)| (name.to_owned(), node)).into();
        let (routes, findings) = desired(&state, "own", &facts());
        assert_eq!(
            shown(&routes),
            [
                "10.1.1.0/24",
                "10.1.2.0/24 via 192.0.2.2 dev 2",
                "10.1.3.0/24 via 192.0.9.2 dev 3",
                "fd00:1::/64",
                "fd00:2::/64 via 2001:db8::2 dev 2",
            ]
        );
        let told: Vec<&str> = findings.iter().map(|f| f.problem.as_str()).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("Node far (10.1.4.0/24)") && told[0].contains("198.51.100.2"));
        assert!(told[1].contains("Node outer") && told[1].contains("no InternalIP of IPv4"));
        assert!(told[2].contains("Node wide (fd00:3::/64)"));
    }

    #[test]
    fn one_change_for_each_range_and_nothing_else_is_touched() {
        let route = |to: &str, via: &str| Route {
            to: to.parse().unwrap(),
            via: Some(via.parse().unwrap()),
            device: Some(2),
            metric: METRIC,
        };
        let held = [
            route("10.1.0.0/24", "192.0.2.2"),
            route("10.2.0.0/24", "192.0.2.3"),
        ]
        .into();
        let wanted = [
            route("10.1.0.0/24", "192.0.2.9"),
            route("10.3.0.0/24", "192.0.2.4"),
        ]
        .into();
        let steps = difference(&held, &wanted, true);
        assert_eq!(
            steps,
            [
                Step::Replace(
                    route("10.1.0.0/24", "192.0.2.2"),
                    route("10.1.0.0/24", "192.0.2.9")
                ),
                Step::Add(route("10.3.0.0/24", "192.0.2.4")),
                Step::Remove(route("10.2.0.0/24", "192.0.2.3")),
            ]
        );
        assert_eq!(difference(&held, &wanted, false).len(), 2);
        assert_eq!(difference(&held, &held, true), []);
    }
}

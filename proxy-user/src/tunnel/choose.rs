//! From a return proxy and the cluster's nodes to what is to run: exactly one node, its address, and
//! who may connect. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::client::{Forward, Spec};
use super::object::{Address, ReturnProxy, Selection};
use super::supervise::Policy;
use super::trust::Host;
use crate::model::Terms;
use crate::model::{
    Endpoint, Frontend, Kind, Node, ObjectRef, Protocol, Reach, ServiceName, ServicePort, State,
};

/// Why there is no tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// No node.
    #[error("return proxy {proxy}: no node is {selection}: exactly one has to be")]
    None {
        /// The return proxy.
        proxy: String,
        /// What is looked for.
        selection: String,
    },
    /// More than one node.
    #[error("return proxy {proxy}: nodes {} are {selection}: exactly one may be", nodes.join(", "))]
    Several {
        /// The return proxy.
        proxy: String,
        /// The nodes.
        nodes: Vec<String>,
        /// What is looked for.
        selection: String,
    },
    /// The node has no such address.
    #[error(
        "return proxy {proxy}: node {node} has no {} address (status.addresses, {})",
        match kind { Address::Private => "private", Address::Public => "public" },
        match kind { Address::Private => "InternalIP", Address::Public => "ExternalIP" }
    )]
    NoAddress {
        /// The return proxy.
        proxy: String,
        /// The node.
        node: String,
        /// Which address.
        kind: Address,
    },
    /// Two return proxies want the same port of the same node.
    #[error("return proxies {first} and {second} both want port {port} of node {node}")]
    Port {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// The port.
        port: u16,
        /// The node.
        node: String,
    },
}

fn words(selection: &Selection) -> String {
    match selection {
        Selection::Names(names) => format!("called {}", names.join(" or ")),
        Selection::Labels(labels) => {
            let one = |(key, value): (&String, &String)| format!("{key}={value}");
            let all: Vec<String> = labels.iter().map(one).collect();
            format!("labelled {}", all.join(","))
        }
    }
}

/// The one node of a return proxy.
pub fn node<'s>(proxy: &ReturnProxy, state: &'s State) -> Result<(&'s str, &'s Node), ChooseError> {
    let meant = |(name, node): &(&String, &Node)| match &proxy.selection {
        Selection::Names(names) => names.contains(name),
        Selection::Labels(labels) => labels
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value)),
    };
    let mut nodes = state.nodes.iter().filter(meant);
    let selection = || words(&proxy.selection);
    match (nodes.next(), nodes.next()) {
        (Some((name, node)), None) => Ok((name, node)),
        (None, _) => Err(ChooseError::None {
            proxy: proxy.name.clone(),
            selection: selection(),
        }),
        (Some((first, _)), Some((second, _))) => {
            let more = nodes.map(|(name, _)| name.clone());
            let two = [first.clone(), second.clone()];
            Err(ChooseError::Several {
                proxy: proxy.name.clone(),
                nodes: two.into_iter().chain(more).collect(),
                selection: selection(),
            })
        }
    }
}

/// The address at which the server reaches the node, and the cluster's nodes too.
fn address(proxy: &ReturnProxy, name: &str, node: &Node) -> Result<IpAddr, ChooseError> {
    let (private, public) = node
        .addresses
        .split_at_checked(node.internal)
        .unwrap_or_default();
    let listed = match proxy.address {
        Address::Private => private,
        Address::Public => public,
    };
    listed
        .first()
        .copied()
        .ok_or_else(|| ChooseError::NoAddress {
            proxy: proxy.name.clone(),
            node: name.to_owned(),
            kind: proxy.address,
        })
}

/// Addresses of the cluster's nodes and pods.
#[must_use]
pub fn sources(proxy: &ReturnProxy, state: &State) -> Vec<IpNet> {
    if proxy.any_source {
        return Vec::new();
    }
    let mut sources: Vec<IpNet> = state
        .nodes
        .values()
        .flat_map(|node| {
            let own = node.addresses.iter().map(|address| IpNet::from(*address));
            own.chain(node.pod_ranges.iter().copied())
        })
        .collect();
    // The node's own processes.
    sources.extend(
        ["127.0.0.0/8", "::1/128"]
            .iter()
            .filter_map(|net| net.parse::<IpNet>().ok()),
    );
    sources.sort();
    sources.dedup();
    sources
}

/// What is to run at the server for a return proxy.
pub fn spec(proxy: &ReturnProxy, state: &State) -> Result<Spec, ChooseError> {
    let (name, node) = node(proxy, state)?;
    let address = address(proxy, name, node)?;
    Ok(Spec {
        name: proxy.name.clone(),
        host: Host {
            name: address.to_string(),
            port: proxy.port,
        },
        user: proxy.user.clone(),
        key: proxy.key.clone(),
        trust: proxy.trust.clone(),
        advertised: Some(address),
        bind: String::new(),
        forwards: proxy.forwards.clone(),
        sources: sources(proxy, state),
        sessions: proxy.sessions,
        memory: proxy.memory,
        queue: proxy.queue,
        window: proxy.window,
        rekey: proxy.rekey,
        policy: Policy::default(),
    })
}

/// What the kernel of every node serves: the server's own ports at the service address, by way of the
/// return proxy.
pub fn services(proxy: &ReturnProxy, state: &State) -> Result<Vec<ServicePort>, ChooseError> {
    let (name, node) = node(proxy, state)?;
    let backend = address(proxy, name, node)?;
    let Some(address) = proxy.service_address else {
        return Ok(Vec::new());
    };
    let object = ObjectRef {
        kind: Kind::ReturnProxy,
        namespace: String::new(),
        name: proxy.name.clone(),
    };
    let one = |forward: &Forward| {
        let port = forward.target.rsplit_once(':')?.1.parse().ok()?;
        let full = format!("return-proxy/{}:{}/TCP", proxy.name, forward.name);
        Some(ServicePort {
            // Too long a name is one that no map can hold.
            name: ServiceName::new(full).ok()?,
            object: object.clone(),
            field: "spec.serviceAddress".to_owned(),
            created: None,
            protocol: Protocol::Tcp,
            algorithm: None,
            frontends: vec![Frontend::Address {
                address,
                port,
                reach: Reach::Cluster,
                restricted: false,
            }],
            terms: Terms::default(),
            endpoints: vec![Endpoint {
                address: backend,
                port: forward.listen,
                weight: 1,
                ready: true,
                serving: true,
                terminating: false,
                node: Some(name.into()),
                hints: None,
            }],
        })
    };
    Ok(proxy.forwards.iter().filter_map(one).collect())
}

/// What is to run at the server for all return proxies, and why others cannot.
#[must_use]
pub fn all(state: &State) -> (Vec<Spec>, Vec<ChooseError>) {
    let (mut specs, mut errors): (Vec<Spec>, Vec<ChooseError>) = Default::default();
    for proxy in state.return_proxies.values() {
        let spec = match spec(proxy, state) {
            Ok(spec) => spec,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let clash = specs.iter().find_map(|other| {
            let same = |one: &&Forward| spec.forwards.iter().any(|two| two.listen == one.listen);
            let port = other.forwards.iter().find(same)?.listen;
            (other.advertised == spec.advertised).then(|| ChooseError::Port {
                first: other.name.clone(),
                second: spec.name.clone(),
                port,
                node: spec.host.name.clone(),
            })
        });
        match clash {
            Some(error) => errors.push(error),
            None => specs.push(spec),
        }
    }
    (specs, errors)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::object::LABEL;
    use super::*;

    fn state(proxies: &[&str]) -> State {
        let mut state = State::default();
        for number in 1..=3_u8 {
            let name = format!("node{number}");
            let label = (LABEL.to_owned(), "true".to_owned());
            let labelled = proxies.contains(&name.as_str());
            let node = Node {
                addresses: vec![
                    IpAddr::from([192, 0, 2, 10 + number]),
                    IpAddr::from([203, 0, 113, 10 + number]),
                ],
                internal: 1,
                labels: labelled.then_some(label).into_iter().collect(),
                pod_ranges: vec![format!("10.244.{number}.0/24").parse().unwrap()],
                leaving: false,
            };
            state.nodes.insert(name, node);
        }
        state
    }

    fn proxy(name: &str) -> ReturnProxy {
        let labels = BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]);
        let trust = super::super::trust::Policy::Known("/h".into());
        ReturnProxy::new(name, Selection::Labels(labels), "/k".into(), trust)
    }

    #[test]
    fn exactly_one_node_is_the_return_proxy() {
        let rows: &[(&[&str], Result<&str, &str>)] = &[
            (&["node2"], Ok("192.0.2.12")),
            (
                &[],
                Err(
                    "return proxy p: no node is labelled causeway.dev/return-proxy=true: exactly \
                     one has to be",
                ),
            ),
            (
                &["node1", "node3"],
                Err("return proxy p: nodes node1, node3 are labelled \
                     causeway.dev/return-proxy=true: exactly one may be"),
            ),
        ];
        for (labelled, expected) in rows {
            let found = spec(&proxy("p"), &state(labelled));
            let found = found.map(|spec| spec.host.name).map_err(|e| e.to_string());
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(found, expected, "{labelled:?}");
        }
    }

    #[test]
    fn the_address_is_private_unless_said_otherwise() {
        let mut proxy = proxy("p");
        let mut state = state(&["node2"]);
        proxy.address = Address::Public;
        assert_eq!(spec(&proxy, &state).unwrap().host.name, "203.0.113.12");
        state.nodes.get_mut("node2").unwrap().addresses.truncate(1);
        let error = spec(&proxy, &state).unwrap_err().to_string();
        assert!(error.contains("node2 has no public address"), "{error}");
    }

    #[test]
    fn only_nodes_and_pods_may_connect() {
        let spec = spec(&proxy("p"), &state(&["node1"])).unwrap();
        let may = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            spec.sources.iter().any(|net| net.contains(&address))
        };
        for address in ["192.0.2.13", "203.0.113.11", "10.244.3.77", "127.0.0.1"] {
            assert!(may(address), "{address}");
        }
        for address in ["192.0.2.14", "198.51.100.1", "10.245.0.1", "fd00::1"] {
            assert!(!may(address), "{address}");
        }
    }

    #[test]
    fn the_kernel_serves_the_servers_ports_by_way_of_the_node() {
        let mut proxy = proxy("p");
        let state = state(&["node2"]);
        assert_eq!(services(&proxy, &state), Ok(Vec::new()));
        proxy.service_address = Some(IpAddr::from([10, 96, 0, 99]));
        let services = services(&proxy, &state).unwrap();
        let text: Vec<String> = services
            .iter()
            .map(|one| {
                let backend = &one.endpoints[0];
                format!(
                    "{} {:?} {}:{}",
                    one.name, one.frontends, backend.address, backend.port
                )
            })
            .collect();
        assert!(text[0].starts_with("return-proxy/p:https/TCP"), "{text:?}");
        assert!(text[0].contains("10.96.0.99, port: 9443"), "{text:?}");
        assert!(text[0].ends_with("192.0.2.12:37140"), "{text:?}");
        assert!(text[1].contains("port: 5672") && text[1].ends_with("192.0.2.12:37141"));
    }

    #[test]
    fn two_return_proxies_do_not_share_a_port() {
        let mut state = state(&["node1"]);
        for name in ["a", "b"] {
            state
                .return_proxies
                .insert(name.to_owned(), Arc::new(proxy(name)));
        }
        let (specs, errors) = all(&state);
        assert_eq!(specs.len(), 1);
        assert!(errors[0].to_string().contains("both want port 37140"));
    }
}

//! One [`State`] of all objects together.

mod health;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::kubernetes::{
    HostPort, Object, PodObject, ServiceObject, ServicePortObject, SliceObject,
};
use crate::model::{
    Endpoint, Frontend, Kind, Notice, ObjectRef, Reach, ServiceName, ServicePort, Severity, State,
    Terms,
};
use crate::tunnel::choose;

/// What the configuration says about objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// This node's name: only its pods' host ports are served here.
    pub node: String,
    /// Where external addresses of Services may lie. Anybody who may write a Service could take
    /// any address otherwise (CVE-2020-8554).
    pub external_ranges: Vec<ipnet::IpNet>,
}

/// Slices by the namespace and name of their Service.
type Slices<'o> = HashMap<(&'o str, &'o str), Vec<&'o SliceObject>>;

/// Assembles. The order of `objects` doesn't matter; each must be there once.
#[must_use]
pub fn assemble<'o>(
    objects: impl Iterator<Item = (&'o ObjectRef, &'o Object)>,
    policy: &Policy,
) -> (State, Vec<Notice>) {
    let mut state = State::default();
    let mut notices = Vec::new();
    let mut services = Vec::new();
    let mut slices: Slices<'o> = HashMap::new();
    for (object, content) in objects {
        match content {
            Object::Namespace => {}
            Object::Node(node) => {
                state.nodes.insert(object.name.clone(), node.node.clone());
            }
            Object::Service(service) => services.push(service),
            Object::Slice(slice) => {
                if let Some(service) = &slice.service {
                    slices
                        .entry((&object.namespace, service))
                        .or_default()
                        .push(slice);
                }
            }
            Object::ReturnProxy(proxy) => {
                let proxy = Arc::clone(proxy);
                state.return_proxies.insert(object.name.clone(), proxy);
            }
            Object::Pod(pod) => add_pod(pod, policy, &mut state, &mut notices),
        }
    }
    for service in services
        .iter()
        .filter(|service| service.unproxied.is_none())
    {
        let key = (
            service.object.namespace.as_str(),
            service.object.name.as_str(),
        );
        let own = slices.get(&key).map(Vec::as_slice).unwrap_or_default();
        let external = allowed_external(service, policy, &mut notices);
        for (i, port) in service.ports.iter().enumerate() {
            let frontends = frontends(service, port, &external);
            let endpoints = endpoints(service, port, own);
            add_port(
                service,
                (i, port),
                frontends,
                endpoints,
                &mut state,
                &mut notices,
            );
        }
    }
    health::add_checks(&services, &mut state, &mut notices);
    without_service(&services, &slices, &mut notices);
    return_proxies(&mut state, &mut notices);
    (state, notices)
}

/// The way to the server behind each return proxy, or why there is none.
fn return_proxies(state: &mut State, notices: &mut Vec<Notice>) {
    let mut found = Vec::new();
    for proxy in state.return_proxies.values() {
        match choose::services(proxy, state) {
            Ok(services) => found.extend(services),
            Err(error) => {
                let object = ObjectRef {
                    kind: Kind::ReturnProxy,
                    namespace: String::new(),
                    name: proxy.name.clone(),
                };
                let message = error.to_string();
                notices.push(Notice::new(Severity::Error, &object, "spec.node", message));
            }
        }
    }
    for service in found {
        state
            .services
            .insert(service.name.clone(), Arc::new(service));
    }
}

fn add_port(
    service: &ServiceObject,
    (i, port): (usize, &ServicePortObject),
    frontends: Vec<Frontend>,
    endpoints: Vec<Endpoint>,
    state: &mut State,
    notices: &mut Vec<Notice>,
) {
    let ObjectRef {
        namespace, name, ..
    } = &service.object;
    let own = if port.name.is_empty() {
        port.port.to_string()
    } else {
        port.name.clone()
    };
    let field = format!("spec.ports[{i}]");
    match ServiceName::new(format!("{namespace}/{name}:{own}/{}", port.protocol)) {
        Ok(name) => {
            let port = ServicePort {
                name: name.clone(),
                object: service.object.clone(),
                field,
                created: service.created,
                protocol: port.protocol,
                algorithm: service.algorithm,
                frontends,
                terms: service.terms.clone(),
                endpoints,
            };
            state.services.insert(name, Arc::new(port));
        }
        Err(error) => {
            let message = format!("{error}: use a shorter name");
            notices.push(Notice::new(
                Severity::Error,
                &service.object,
                field,
                message,
            ));
        }
    }
}

fn frontends(
    service: &ServiceObject,
    port: &ServicePortObject,
    external: &[IpAddr],
) -> Vec<Frontend> {
    let address = |reach, restricted| {
        move |address: &IpAddr| Frontend::Address {
            address: *address,
            port: port.port,
            reach,
            restricted,
        }
    };
    let cluster = service.cluster.iter().map(address(Reach::Cluster, false));
    // As for kube-proxy, ranges don't count at node ports, nor at external addresses.
    let restricted = !service.terms.ranges.is_empty();
    let balanced = service.load_balancer.iter();
    let balanced = balanced.map(address(Reach::Everywhere, restricted));
    let outside = balanced.chain(external.iter().map(address(Reach::Everywhere, false)));
    let [v4, v6] = service.node_port_families;
    let node_port = port
        .node_port
        .map(|port| Frontend::NodePort { port, v4, v6 });
    let mut frontends: Vec<Frontend> = cluster.chain(outside).chain(node_port).collect();
    frontends.sort_unstable();
    frontends.dedup();
    frontends
}

/// Endpoints of all slices of the service whose port has the same name and protocol. The same
/// endpoint may be in several slices while it moves between them: one that takes traffic counts.
fn endpoints(
    service: &ServiceObject,
    port: &ServicePortObject,
    slices: &[&SliceObject],
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let same =
            |p: &&super::kubernetes::SlicePort| p.name == port.name && p.protocol == port.protocol;
        for slice_port in slice.ports.iter().filter(same) {
            found.extend(slice.endpoints.iter().map(|endpoint| Endpoint {
                address: endpoint.address,
                port: slice_port.port,
                weight: slice.weight,
                ready: endpoint.ready || service.publish_not_ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                node: endpoint.node.clone(),
                hints: endpoint.hints.clone(),
            }));
        }
    }
    found.sort_unstable_by(|a, b| {
        let best = |e: &Endpoint| (!e.ready, !e.serving, e.terminating);
        (a.address, a.port).cmp(&(b.address, b.port)).then_with(|| {
            best(a)
                .cmp(&best(b))
                .then_with(|| b.weight.cmp(&a.weight))
                .then_with(|| a.cmp(b))
        })
    });
    found.dedup_by(|later, first| (later.address, later.port) == (first.address, first.port));
    found
}

fn allowed_external(
    service: &ServiceObject,
    policy: &Policy,
    notices: &mut Vec<Notice>,
) -> Vec<IpAddr> {
    let allowed = |address: &IpAddr| policy.external_ranges.iter().any(|r| r.contains(address));
    for (field, address) in service
        .external
        .iter()
        .filter(|(_, address)| !allowed(address))
    {
        let message = format!(
            "{address} isn't served: it lies in none of services.external_ranges of the \
             configuration; add a range there, or remove it"
        );
        notices.push(Notice::new(
            Severity::Error,
            &service.object,
            field,
            message,
        ));
    }
    service
        .external
        .iter()
        .map(|(_, address)| *address)
        .filter(allowed)
        .collect()
}

/// Slices that name a Service which isn't there are often a misspelt label.
fn without_service(services: &[&ServiceObject], slices: &Slices<'_>, notices: &mut Vec<Notice>) {
    let known: std::collections::HashSet<(&str, &str)> = services
        .iter()
        .map(|service| {
            (
                service.object.namespace.as_str(),
                service.object.name.as_str(),
            )
        })
        .collect();
    for ((namespace, name), slices) in slices {
        if !known.contains(&(*namespace, *name)) {
            for slice in slices {
                let message = format!("there is no Service {namespace}/{name}: nothing is served");
                let field = "metadata.labels";
                notices.push(Notice::new(Severity::Info, &slice.object, field, message));
            }
        }
    }
}

fn add_pod(pod: &PodObject, policy: &Policy, state: &mut State, notices: &mut Vec<Notice>) {
    if !pod.running || pod.node.as_deref() != Some(&policy.node) {
        return;
    }
    // Of one port with several addresses all entries have one name, and one set of endpoints.
    let mut ports: BTreeMap<String, (Vec<Frontend>, &HostPort)> = BTreeMap::new();
    let ObjectRef {
        namespace, name, ..
    } = &pod.object;
    for port in &pod.host_ports {
        let at = match port.addresses.first() {
            Some(address) if port.one_address => format!("@{address}"),
            _ => String::new(),
        };
        let key = format!(
            "pod/{namespace}/{name}:{}/{}{at}",
            port.host_port, port.protocol
        );
        let frontend = |address: &IpAddr| Frontend::HostPort {
            address: *address,
            port: port.host_port,
        };
        let entry = ports.entry(key).or_insert_with(|| (Vec::new(), port));
        entry.0.extend(port.addresses.iter().map(frontend));
    }
    for (name, (frontends, port)) in ports {
        let name = match ServiceName::new(name) {
            Ok(name) => name,
            Err(error) => {
                let message = format!("{error}: use a shorter name");
                let field = port.field.as_str();
                notices.push(Notice::new(Severity::Error, &pod.object, field, message));
                continue;
            }
        };
        let has = |v4: bool| pod.addresses.iter().any(|address| address.is_ipv4() == v4);
        let service = ServicePort {
            name: name.clone(),
            object: pod.object.clone(),
            field: port.field.clone(),
            created: pod.created,
            protocol: port.protocol,
            algorithm: None,
            frontends: frontends
                .into_iter()
                .filter(
                    |f| !matches!(f, Frontend::HostPort { address, .. } if !has(address.is_ipv4())),
                )
                .collect(),
            terms: Terms::default(),
            endpoints: host_port_endpoints(pod, port),
        };
        state.services.insert(name, Arc::new(service));
    }
}

/// The pod's first address of each family.
fn host_port_endpoints(pod: &PodObject, port: &HostPort) -> Vec<Endpoint> {
    let first = |v4: bool| pod.addresses.iter().find(|address| address.is_ipv4() == v4);
    let endpoint = |address: &IpAddr| Endpoint {
        address: *address,
        port: port.container_port,
        weight: 1,
        ready: true,
        serving: true,
        terminating: false,
        node: pod.node.as_deref().map(Arc::from),
        hints: None,
    };
    [true, false]
        .into_iter()
        .filter_map(first)
        .map(endpoint)
        .collect()
}

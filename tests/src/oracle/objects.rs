//! Scenarios as Kubernetes objects.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::lab::layout::{self, Family};

use super::scenario::{
    Endpoint, Foreign, Kind, LAYOUT, Port, Protocol, Scenario, Service, Slice, pod,
};

/// The label of everything that an oracle has written; its value is the seed.
pub const LABEL: &str = "causeway.dev/oracle";

/// The last service of a seed: who is led to it right has taken everything before it.
pub const MARKER: &str = "marker";

/// Its number; no other service has it.
const MARKER_NUMBER: u8 = 250;

/// Its port.
pub const MARKER_PORT: u16 = 7;

/// A zone where nobody is.
const NOWHERE: &str = "nowhere";

/// The Nodes.
#[must_use]
pub fn nodes(scenario: &Scenario) -> Vec<Value> {
    let node = |number: u8, zone: &Option<String>| {
        let ranges = Family::BOTH.map(|family| layout::pod_range(number, family).to_string());
        let addresses = Family::BOTH
            .map(|family| json!({"type": "InternalIP", "address": layout::node(number, family)}));
        let labels: Map<String, Value> = zone
            .iter()
            .map(|zone| ("topology.kubernetes.io/zone".to_owned(), json!(zone)))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": format!("node{number}"), "labels": labels},
            "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
            "status": {"addresses": addresses},
        })
    };
    LAYOUT
        .nodes()
        .zip(&scenario.zones)
        .map(|(number, zone)| node(number, zone))
        .collect()
}

/// A service and its slices, in the order in which they are to be written.
#[must_use]
pub fn of_service(service: &Service, scenario: &Scenario) -> Vec<Value> {
    let slices = service
        .slices
        .iter()
        .map(|slice| self::slice(slice, service, scenario));
    [self::service(service, scenario)]
        .into_iter()
        .chain(slices)
        .collect()
}

/// The marker of a seed. Of two endpoints for each node only the one whose hint names the node's zone
/// may be used: who uses it knows the zones of this seed too.
#[must_use]
pub fn marker(scenario: &Scenario) -> Vec<Value> {
    let service = marker_service();
    let endpoint = |number: u8, zone: Option<&String>| Endpoint {
        pod: number,
        ready: Some(true),
        serving: None,
        terminating: None,
        has_node: true,
        zones: vec![zone.cloned().unwrap_or_else(|| NOWHERE.to_owned())],
        nodes: Vec::new(),
    };
    let slice = |family: Family| Slice {
        name: format!("{MARKER}-{}", family.word()),
        family,
        ports: vec![("", Protocol::Tcp, Some(super::scenario::SERVED[0]))],
        endpoints: vec![
            endpoint(1, scenario.zones[0].as_ref()),
            endpoint(3, scenario.zones[1].as_ref()),
            endpoint(2, None),
        ],
    };
    let mut made = vec![self::service(&service, scenario)];
    made.extend(Family::BOTH.map(|family| self::slice(&slice(family), &service, scenario)));
    made
}

/// Where the marker of a seed is.
#[must_use]
pub fn marker_address(scenario: &Scenario, family: Family) -> IpAddr {
    marker_service().cluster(scenario.round(), family)
}

/// Pods that may answer at the marker, to a process of this node.
#[must_use]
pub fn marker_pods(scenario: &Scenario, node: usize) -> Vec<u8> {
    let [first, second] = &scenario.zones;
    match (node, first == second, scenario.zones.get(node - 1)) {
        (_, true, _) => vec![1, 3],
        (1, ..) => vec![1],
        (_, _, Some(Some(_))) => vec![3],
        _ => vec![1, 2, 3],
    }
}

fn marker_service() -> Service {
    Service {
        name: MARKER.to_owned(),
        number: MARKER_NUMBER,
        kind: Kind::ClusterIp,
        families: Family::BOTH.to_vec(),
        internal_local: false,
        external_local: false,
        affinity: None,
        twin: None,
        publish_not_ready: false,
        ranges: Vec::new(),
        external: None,
        ip_mode_proxy: false,
        node_ports: false,
        health_port: None,
        foreign: None,
        ports: vec![Port {
            name: "",
            protocol: Protocol::Tcp,
            number: MARKER_PORT,
            node_port: 0,
        }],
        slices: Vec::new(),
    }
}

const fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn service(service: &Service, scenario: &Scenario) -> Value {
    let round = scenario.round();
    let of_each = |address: &dyn Fn(Family) -> Option<IpAddr>| -> Vec<IpAddr> {
        service
            .families
            .iter()
            .copied()
            .filter_map(address)
            .collect()
    };
    let cluster = of_each(&|family| Some(service.cluster(round, family)));
    let external = of_each(&|family| service.external(round, family));
    let mut spec = json!({
        "type": match service.kind {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::LoadBalancer => "LoadBalancer",
        },
        "ipFamilyPolicy": if service.families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
        "ipFamilies": service.families.iter().map(|family| family_name(*family)).collect::<Vec<_>>(),
        "clusterIP": cluster.first(),
        "clusterIPs": cluster,
        "internalTrafficPolicy": policy(service.internal_local),
        "publishNotReadyAddresses": service.publish_not_ready,
        "ports": service.ports.iter().map(|one| port(one, service)).collect::<Vec<_>>(),
    });
    let mut add = |key: &str, value: Value| {
        if let Some(fields) = spec.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
    };
    if !external.is_empty() {
        add("externalIPs", json!(external));
    }
    if service.kind != Kind::ClusterIp || !external.is_empty() {
        add(
            "externalTrafficPolicy",
            json!(policy(service.external_local)),
        );
    }
    if service.kind == Kind::LoadBalancer {
        add("allocateLoadBalancerNodePorts", json!(service.node_ports));
    }
    if let Some(port) = service.health_port {
        add("healthCheckNodePort", json!(port));
    }
    if !service.ranges.is_empty() {
        add("loadBalancerSourceRanges", json!(service.ranges));
    }
    if let Some(seconds) = service.affinity {
        add("sessionAffinity", json!("ClientIP"));
        add(
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": seconds}}),
        );
    }
    let mut labels = Map::from_iter([(LABEL.to_owned(), json!(scenario.seed.to_string()))]);
    add_foreign(&mut labels, service.foreign);
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": "default", "labels": labels},
        "spec": spec,
    });
    if service.kind == Kind::LoadBalancer
        && let Some(fields) = object.as_object_mut()
    {
        let mode = if service.ip_mode_proxy {
            "Proxy"
        } else {
            "VIP"
        };
        let ingress: Vec<Value> = of_each(&|family| Some(service.balancer(round, family)))
            .into_iter()
            .map(|address| json!({"ip": address, "ipMode": mode}))
            .collect();
        fields.insert(
            "status".to_owned(),
            json!({"loadBalancer": {"ingress": ingress}}),
        );
    }
    object
}

fn add_foreign(labels: &mut Map<String, Value>, foreign: Option<Foreign>) {
    let (key, value) = match foreign {
        None => return,
        Some(Foreign::ProxyName) => ("service.kubernetes.io/service-proxy-name", "another"),
        Some(Foreign::Headless) => ("service.kubernetes.io/headless", ""),
    };
    labels.insert(key.to_owned(), json!(value));
}

fn port(port: &Port, service: &Service) -> Value {
    let mut object = json!({
        "name": port.name,
        "protocol": protocol(port.protocol),
        "port": port.number,
    });
    if service.has_node_ports()
        && let Some(fields) = object.as_object_mut()
    {
        fields.insert("nodePort".to_owned(), json!(port.node_port));
    }
    object
}

fn slice(slice: &Slice, service: &Service, scenario: &Scenario) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|(name, of, target)| json!({"name": name, "protocol": protocol(*of), "port": target}))
        .collect();
    let endpoints: Vec<Value> = slice
        .endpoints
        .iter()
        .map(|one| endpoint(one, slice.family))
        .collect();
    let mut labels = Map::from_iter([
        (LABEL.to_owned(), json!(scenario.seed.to_string())),
        ("kubernetes.io/service-name".to_owned(), json!(service.name)),
    ]);
    // Whoever writes slices copies the labels of the Service.
    add_foreign(&mut labels, service.foreign);
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": slice.name, "namespace": "default", "labels": labels},
        "addressType": family_name(slice.family),
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Endpoint, family: Family) -> Value {
    let mut hints = Map::new();
    for (key, names) in [("forZones", &endpoint.zones), ("forNodes", &endpoint.nodes)] {
        if !names.is_empty() {
            let named: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            hints.insert(key.to_owned(), json!(named));
        }
    }
    let node = LAYOUT.node_of(endpoint.pod);
    json!({
        "addresses": [pod(endpoint.pod, family)],
        "nodeName": endpoint.has_node.then(|| format!("node{node}")),
        "hints": (!hints.is_empty()).then_some(hints),
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
    })
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

//! Host ports of pods.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::Policy;
use crate::{
    model::{Endpoint, Frontend, Notice, ObjectRef, ServiceName, ServicePort, Severity, Terms},
    source::kubernetes::{HostPort, PodObject},
};

/// The host ports of a pod, if it is one of this node's.
pub(super) fn ports(
    pod: &PodObject,
    policy: &Policy,
    notices: &mut Vec<Notice>,
) -> Vec<ServicePort> {
    let mut found = Vec::new();
    if !pod.running || pod.node.as_deref() != Some(&policy.node) {
        return found;
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
        found.push(ServicePort {
            name,
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
            endpoints: endpoints(pod, port),
        });
    }
    found
}

/// The pod's first address of each family.
fn endpoints(pod: &PodObject, port: &HostPort) -> Vec<Endpoint> {
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

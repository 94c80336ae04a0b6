//! Host ports of pods, from what `causeway-cni` was told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proxy_cni::record::{self, Attachment, PortMapping};

use crate::model::{
    Endpoint, Frontend, Kind, Notice, ObjectRef, Protocol, ServiceName, ServicePort, Severity,
    Terms,
};
use crate::source::snapshot::Snapshot;

/// Adds them to what the source gave. A port that two pods have is the one's that came last: the
/// other is on its way out, since Kubernetes gives a host port to one pod at a time.
pub(super) fn add(
    snapshot: &Arc<Snapshot>,
    attachments: &[Attachment],
    node: &str,
) -> Arc<Snapshot> {
    if attachments.iter().all(|one| one.port_mappings.is_empty()) {
        return Arc::clone(snapshot);
    }
    let mut latest_first: Vec<&Attachment> = attachments.iter().collect();
    latest_first.sort_by_key(|one| (std::cmp::Reverse(one.added), one.key()));
    let mut merged = (**snapshot).clone();
    let mut state = (*merged.state).clone();
    let mut taken = BTreeSet::new();
    let mut found = BTreeMap::new();
    for attachment in latest_first {
        for (i, mapping) in attachment.port_mappings.iter().enumerate() {
            let mut frontends = frontends(attachment, mapping);
            frontends.retain(|frontend| taken.insert((protocol(mapping), *frontend)));
            if frontends.is_empty() {
                continue;
            }
            let object = object(attachment);
            let field = format!("portMappings[{i}]");
            match ServiceName::new(name(&object, mapping)) {
                Ok(name) => {
                    let port = found
                        .entry(name.clone())
                        .or_insert_with(|| service(attachment, mapping, object, field, name, node));
                    port.frontends.extend(frontends);
                }
                Err(error) => merged.notices.push(Notice::new(
                    Severity::Error,
                    &object,
                    field,
                    format!("{error}: use a shorter name"),
                )),
            }
        }
    }
    // A Pod object says the same later, or says of a pod that has gone what is no more.
    for port in state.services.values_mut() {
        let free = |frontend: &Frontend| !taken.contains(&(port.protocol, *frontend));
        if !port.frontends.iter().all(free) {
            let frontends = port.frontends.iter().copied().filter(free).collect();
            *port = Arc::new(ServicePort {
                frontends,
                ..(**port).clone()
            });
        }
    }
    let found = found.into_iter().map(|(name, port)| (name, Arc::new(port)));
    state.services.extend(found);
    state
        .services
        .retain(|_, port| port.object.kind != Kind::Pod || !port.frontends.is_empty());
    merged.state = Arc::new(state);
    Arc::new(merged)
}

fn object(attachment: &Attachment) -> ObjectRef {
    let (namespace, name) = match &attachment.pod {
        Some(pod) => (pod.namespace.clone(), pod.name.clone()),
        // A container of no Kubernetes.
        None => ("cni".to_owned(), attachment.container.clone()),
    };
    ObjectRef {
        kind: Kind::Pod,
        namespace,
        name,
    }
}

/// As the host ports of Pod objects are called.
fn name(object: &ObjectRef, mapping: &PortMapping) -> String {
    let at = match mapping.host_ip {
        Some(address) if !address.is_unspecified() => format!("@{address}"),
        _ => String::new(),
    };
    format!(
        "pod/{}/{}:{}/{}{at}",
        object.namespace,
        object.name,
        mapping.host_port,
        protocol(mapping)
    )
}

const fn protocol(mapping: &PortMapping) -> Protocol {
    match mapping.protocol {
        record::Protocol::Tcp => Protocol::Tcp,
        record::Protocol::Udp => Protocol::Udp,
        record::Protocol::Sctp => Protocol::Sctp,
    }
}

/// Of the families of which the pod has an address.
fn frontends(attachment: &Attachment, mapping: &PortMapping) -> Vec<Frontend> {
    let everywhere = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let addresses = match mapping.host_ip {
        Some(address) => vec![address],
        None => everywhere.to_vec(),
    };
    let has = |address: &IpAddr| {
        let own = &attachment.addresses;
        own.iter().any(|one| one.is_ipv4() == address.is_ipv4())
    };
    let served = addresses.into_iter().filter(has);
    served
        .map(|address| Frontend::HostPort {
            address,
            port: mapping.host_port,
        })
        .collect()
}

fn service(
    attachment: &Attachment,
    mapping: &PortMapping,
    object: ObjectRef,
    field: String,
    name: ServiceName,
    node: &str,
) -> ServicePort {
    let endpoint = |address: &IpAddr| Endpoint {
        address: *address,
        port: mapping.container_port,
        weight: 1,
        ready: true,
        serving: true,
        terminating: false,
        node: Some(Arc::from(node)),
        hints: None,
    };
    let mut endpoints: Vec<Endpoint> = attachment.addresses.iter().map(endpoint).collect();
    endpoints.sort_unstable();
    ServicePort {
        name,
        object,
        field,
        created: i64::try_from(attachment.added / 1_000).ok(),
        protocol: protocol(mapping),
        algorithm: None,
        frontends: Vec::new(),
        terms: Terms::default(),
        endpoints,
    }
}

#[cfg(test)]
mod tests {
    use proxy_cni::protocol::PodName;

    use super::*;
    use crate::model::State;

    fn pod(name: &str, last: u8, added: u64, ports: &[(Option<&str>, u16, u16)]) -> Attachment {
        Attachment {
            network: "pods".to_owned(),
            container: format!("c-{name}"),
            interface: "eth0".to_owned(),
            sandbox: "/run/netns/x".into(),
            pod: Some(PodName {
                namespace: "demo".to_owned(),
                name: name.to_owned(),
            }),
            device: "cwp0123456789ab".to_owned(),
            mtu: 1500,
            addresses: vec![IpAddr::from([10, 1, 0, last]), "fd00::1".parse().unwrap()],
            port_mappings: ports
                .iter()
                .map(|(host_ip, host_port, container_port)| PortMapping {
                    host_ip: host_ip.map(|text| text.parse().unwrap()),
                    host_port: *host_port,
                    container_port: *container_port,
                    protocol: record::Protocol::Tcp,
                })
                .collect(),
            added,
            boot: String::new(),
            complete: true,
        }
    }

    /// Name, frontends, first endpoint.
    fn rows(snapshot: &Snapshot) -> Vec<(String, Vec<String>, String)> {
        let frontend = |frontend: &Frontend| match frontend {
            Frontend::HostPort { address, port } => format!("{address} {port}"),
            other => format!("{other:?}"),
        };
        let services = snapshot.state.services.values();
        services
            .map(|port| {
                let first = &port.endpoints[0];
                (
                    port.name.to_string(),
                    port.frontends.iter().map(frontend).collect(),
                    format!("{}:{}", first.address, first.port),
                )
            })
            .collect()
    }

    fn row(name: &str, frontends: &[&str], endpoint: &str) -> (String, Vec<String>, String) {
        let frontends = frontends.iter().map(|text| (*text).to_owned()).collect();
        (name.to_owned(), frontends, endpoint.to_owned())
    }

    #[test]
    fn addresses_differ_and_the_latest_pod_wins() {
        let none = Arc::new(Snapshot::default());
        assert!(Arc::ptr_eq(&add(&none, &[pod("a", 1, 1, &[])], "n"), &none));
        let merged = add(
            &none,
            &[
                pod("old", 1, 1_000, &[(None, 80, 8080), (None, 443, 8443)]),
                pod(
                    "new",
                    2,
                    2_000,
                    &[(None, 80, 8081), (Some("192.0.2.1"), 443, 8444)],
                ),
                pod("v4", 3, 3_000, &[(Some("0.0.0.0"), 53, 53)]),
            ],
            "n",
        );
        assert_eq!(
            rows(&merged),
            [
                row(
                    "pod/demo/new:443/TCP@192.0.2.1",
                    &["192.0.2.1 443"],
                    "10.1.0.2:8444"
                ),
                row(
                    "pod/demo/new:80/TCP",
                    &["0.0.0.0 80", ":: 80"],
                    "10.1.0.2:8081"
                ),
                row(
                    "pod/demo/old:443/TCP",
                    &["0.0.0.0 443", ":: 443"],
                    "10.1.0.1:8443"
                ),
                row("pod/demo/v4:53/TCP", &["0.0.0.0 53"], "10.1.0.3:53"),
            ]
        );
    }

    #[test]
    fn what_pod_objects_say_of_the_same_port_is_left_out() {
        let of = |attachment| add(&Arc::default(), &[attachment], "n");
        let objects = of(pod("gone", 9, 1, &[(None, 80, 8080), (None, 81, 8081)]));
        let merged = add(&objects, &[pod("new", 2, 2, &[(None, 80, 8080)])], "n");
        assert_eq!(
            rows(&merged),
            [
                row(
                    "pod/demo/gone:81/TCP",
                    &["0.0.0.0 81", ":: 81"],
                    "10.1.0.9:8081"
                ),
                row(
                    "pod/demo/new:80/TCP",
                    &["0.0.0.0 80", ":: 80"],
                    "10.1.0.2:8080"
                ),
            ]
        );
        // And what the source says besides stays.
        let state: &State = &merged.state;
        assert!(state.unknown.is_empty());
    }
}

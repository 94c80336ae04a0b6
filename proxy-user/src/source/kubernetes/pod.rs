//! Pods: only their host ports matter here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use super::{FieldError, address, object_ref, port, protocol};
use crate::model::{Kind, ObjectRef, Protocol};

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// The field, for reports.
    pub field: String,
    /// Addresses it is served at; an unspecified one means all of its family.
    pub addresses: Vec<IpAddr>,
    /// Whether the object names an address.
    pub one_address: bool,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A checked Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodObject {
    /// Its name.
    pub object: ObjectRef,
    /// When it was made, seconds since 1970.
    pub created: Option<i64>,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Whether its phase is `Running`.
    pub running: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host ports; none for pods of the host's network, which need no forwarding.
    pub host_ports: Vec<HostPort>,
}

impl PodObject {
    /// Checks a Pod.
    pub fn check(pod: &Pod) -> Result<Self, FieldError> {
        let object = object_ref(Kind::Pod, &pod.metadata)?;
        let created = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0.as_second());
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let running = status.and_then(|s| s.phase.as_deref()) == Some("Running");
        let mut addresses = Vec::new();
        let listed = status
            .and_then(|status| status.pod_ips.as_deref())
            .unwrap_or_default();
        for (i, entry) in listed.iter().enumerate() {
            addresses.push(address(&entry.ip, &format!("status.podIPs[{i}].ip"))?);
        }
        if let (true, Some(ip)) = (listed.is_empty(), status.and_then(|s| s.pod_ip.as_ref())) {
            addresses.push(address(ip, "status.podIP")?);
        }
        let mut host_ports = Vec::new();
        let on_host = spec.and_then(|spec| spec.host_network).unwrap_or_default();
        if let (false, Some(spec)) = (on_host, spec) {
            for (i, container) in spec.containers.iter().enumerate() {
                host_ports_of(container, &format!("spec.containers[{i}]"), &mut host_ports)?;
            }
            let init = spec.init_containers.as_deref().unwrap_or_default();
            for (i, container) in init.iter().enumerate() {
                // Sidecars run as long as the pod does.
                if container.restart_policy.as_deref() == Some("Always") {
                    let field = format!("spec.initContainers[{i}]");
                    host_ports_of(container, &field, &mut host_ports)?;
                }
            }
        }
        let node = spec.and_then(|spec| spec.node_name.clone());
        Ok(Self {
            object,
            created,
            node,
            running,
            addresses,
            host_ports,
        })
    }
}

fn host_ports_of(
    container: &Container,
    prefix: &str,
    found: &mut Vec<HostPort>,
) -> Result<(), FieldError> {
    let ports = container.ports.as_deref().unwrap_or_default();
    for (i, entry) in ports.iter().enumerate() {
        let field = format!("{prefix}.ports[{i}]");
        let Some(host_port) = entry.host_port.filter(|port| *port != 0) else {
            continue;
        };
        let host_ip = entry.host_ip.as_deref().filter(|text| !text.is_empty());
        let one = host_ip
            .map(|ip| address(ip, &format!("{field}.hostIP")))
            .transpose()?;
        let one_address = one.is_some_and(|address| !address.is_unspecified());
        let addresses = match one {
            Some(address) => vec![address],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        found.push(HostPort {
            addresses,
            one_address,
            host_port: port(host_port, &format!("{field}.hostPort"))?,
            container_port: port(entry.container_port, &format!("{field}.containerPort"))?,
            protocol: protocol(entry.protocol.as_deref(), &format!("{field}.protocol"))?,
            field,
        });
    }
    Ok(())
}

//! Services.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde::{Deserialize, Serialize};

use super::{
    FieldError, HEADLESS_LABEL, PROXY_NAME_LABEL, Remark, address, annotation, label, object_ref,
    parse_address, port, protocol,
};
use crate::model::{Algorithm, Kind, ObjectRef, Policies, Protocol, Terms, TrafficPolicy};

/// How backends of a Service are chosen.
const ALGORITHM_ANNOTATION: &str = "causeway.dev/algorithm";

/// Types of Services that are proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Cluster addresses only.
    ClusterIp,
    /// And a port of each node.
    NodePort,
    /// And addresses that are reached from outside.
    LoadBalancer,
}

/// Why a Service isn't proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Unproxied {
    /// `clusterIP: None`, or the label.
    #[error("headless: names lead straight to its endpoints")]
    Headless,
    /// `type: ExternalName`.
    #[error("an external name: nothing to proxy")]
    ExternalName,
    /// The label `service.kubernetes.io/service-proxy-name`.
    #[error("another proxy's, by the label service.kubernetes.io/service-proxy-name")]
    OtherProxy,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortObject {
    /// Name; empty for the only port of a Service.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at the nodes' addresses.
    pub node_port: Option<u16>,
}

/// A checked Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceObject {
    /// Its name.
    pub object: ObjectRef,
    /// When it was made, seconds since 1970.
    pub created: Option<i64>,
    /// Set if it isn't proxied; the rest is then empty.
    pub unproxied: Option<Unproxied>,
    /// Cluster addresses.
    pub cluster: Vec<IpAddr>,
    /// Addresses that a load balancer gave it, by place in `status.loadBalancer.ingress`.
    pub load_balancer: Vec<IpAddr>,
    /// `spec.externalIPs`, with each one's field.
    pub external: Vec<(String, IpAddr)>,
    /// Whether its node ports are served at IPv4 and at IPv6 addresses.
    pub node_port_families: [bool; 2],
    /// Its ports.
    pub ports: Vec<ServicePortObject>,
    /// How backends are chosen.
    pub algorithm: Option<Algorithm>,
    /// `spec.publishNotReadyAddresses`: every endpoint counts as ready.
    pub publish_not_ready: bool,
    /// On what terms all ports serve.
    #[serde(default)]
    pub terms: Terms,
    /// `spec.healthCheckNodePort`: where load balancers ask each node whether to send clients there.
    #[serde(default)]
    pub health_check: Option<u16>,
    /// What is to be told.
    #[serde(skip)]
    pub remarks: Vec<Remark>,
}

impl ServiceObject {
    /// Checks a Service.
    pub fn check(service: &Service) -> Result<Self, FieldError> {
        let meta = &service.metadata;
        let object = object_ref(Kind::Service, meta)?;
        let Some(spec) = &service.spec else {
            return Err(FieldError::new(
                "spec",
                "missing: a Service needs at least spec.ports",
            ));
        };
        let mut checked = Self {
            object,
            created: meta
                .creation_timestamp
                .as_ref()
                .map(|time| time.0.as_second()),
            unproxied: None,
            cluster: Vec::new(),
            load_balancer: Vec::new(),
            external: Vec::new(),
            node_port_families: [false; 2],
            ports: Vec::new(),
            algorithm: algorithm(service)?,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            terms: Terms::default(),
            health_check: None,
            remarks: Vec::new(),
        };
        let kind = service_type(spec)?;
        checked.unproxied = match kind {
            None => Some(Unproxied::ExternalName),
            Some(_) if label(meta, PROXY_NAME_LABEL).is_some() => Some(Unproxied::OtherProxy),
            Some(_) if label(meta, HEADLESS_LABEL).is_some() => Some(Unproxied::Headless),
            Some(_) if cluster_ips(spec).any(|ip| ip == "None") => Some(Unproxied::Headless),
            Some(_) => None,
        };
        let (None, Some(kind)) = (checked.unproxied, kind) else {
            return Ok(checked);
        };
        checked.addresses(service, spec, kind)?;
        checked.node_port_families = families(spec, &checked.cluster)?;
        checked.ports = ports(spec, kind, &mut checked.remarks)?;
        checked.terms = Terms {
            policies: policies(spec)?,
            affinity: affinity(spec)?,
            ranges: source_ranges(spec, kind)?,
        };
        let local = checked.terms.policies.external == TrafficPolicy::Local;
        checked.health_check = health_check(
            spec,
            local && kind == ServiceType::LoadBalancer,
            &mut checked.remarks,
        )?;
        known_distribution(spec, &mut checked.remarks);
        Ok(checked)
    }

    fn addresses(
        &mut self,
        service: &Service,
        spec: &ServiceSpec,
        kind: ServiceType,
    ) -> Result<(), FieldError> {
        let listed = spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty());
        for (i, ip) in cluster_ips(spec).enumerate() {
            let field = if listed {
                format!("spec.clusterIPs[{i}]")
            } else {
                "spec.clusterIP".to_owned()
            };
            self.cluster.push(virtual_address(ip, &field)?);
        }
        if self.cluster.is_empty() {
            let message = "no cluster address: with manifests nothing hands them out, so write one \
                           (or None for a headless Service)";
            self.remarks
                .push(Remark::warning("spec.clusterIP", message));
        }
        let external = spec.external_ips.as_deref().unwrap_or_default();
        for (i, ip) in external.iter().enumerate() {
            let field = format!("spec.externalIPs[{i}]");
            let address = virtual_address(ip, &field)?;
            self.external.push((field, address));
        }
        if kind == ServiceType::LoadBalancer {
            self.load_balancer_addresses(service)
        } else {
            Ok(())
        }
    }

    fn load_balancer_addresses(&mut self, service: &Service) -> Result<(), FieldError> {
        let status = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = status
            .and_then(|status| status.ingress.as_deref())
            .unwrap_or_default();
        for (i, entry) in ingress.iter().enumerate() {
            let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else {
                continue;
            };
            // KEP-1860: with `Proxy` the load balancer itself wants to see the packets.
            if entry.ip_mode.as_deref() == Some("Proxy") {
                continue;
            }
            let field = format!("status.loadBalancer.ingress[{i}].ip");
            self.load_balancer.push(virtual_address(ip, &field)?);
        }
        if ingress.is_empty() {
            let message = "no load-balancer address yet: write one to \
                           status.loadBalancer.ingress[0].ip";
            self.remarks
                .push(Remark::warning("status.loadBalancer", message));
        }
        Ok(())
    }
}

fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_ref().filter(|_| listed.is_empty());
    listed
        .iter()
        .chain(single)
        .map(String::as_str)
        .filter(|ip| !ip.is_empty())
}

/// None: `ExternalName`.
fn service_type(spec: &ServiceSpec) -> Result<Option<ServiceType>, FieldError> {
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ClusterIP" => Ok(Some(ServiceType::ClusterIp)),
        "NodePort" => Ok(Some(ServiceType::NodePort)),
        "LoadBalancer" => Ok(Some(ServiceType::LoadBalancer)),
        "ExternalName" => Ok(None),
        other => {
            let message = format!(
                "{other:?} is not a type: write ClusterIP, NodePort, LoadBalancer or ExternalName"
            );
            Err(FieldError::new("spec.type", message))
        }
    }
}

fn algorithm(service: &Service) -> Result<Option<Algorithm>, FieldError> {
    match annotation(&service.metadata, ALGORITHM_ANNOTATION) {
        None => Ok(None),
        Some("random") => Ok(Some(Algorithm::Random)),
        Some("maglev") => Ok(Some(Algorithm::Maglev)),
        Some(other) => {
            let message = format!("{other:?} is not an algorithm: write random or maglev");
            Err(FieldError::new(
                format!("metadata.annotations[{ALGORITHM_ANNOTATION}]"),
                message,
            ))
        }
    }
}

/// An address that a service can have.
fn virtual_address(text: &str, field: &str) -> Result<IpAddr, FieldError> {
    let address = address(text, field)?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local {
        let message = format!("{text:?} cannot be a service's address: it is reserved");
        return Err(FieldError::new(field, message));
    }
    Ok(address)
}

/// `ipFamilies`; if it isn't given, the cluster addresses' families; if there is none, both.
fn families(spec: &ServiceSpec, cluster: &[IpAddr]) -> Result<[bool; 2], FieldError> {
    let mut families = [false; 2];
    let [v4, v6] = &mut families;
    for (i, family) in spec
        .ip_families
        .as_deref()
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        match family.as_str() {
            "IPv4" => *v4 = true,
            "IPv6" => *v6 = true,
            other => {
                let message = format!("{other:?} is not a family: write IPv4 or IPv6");
                return Err(FieldError::new(format!("spec.ipFamilies[{i}]"), message));
            }
        }
    }
    if !(*v4 || *v6) {
        *v4 = cluster.is_empty() || cluster.iter().any(IpAddr::is_ipv4);
        *v6 = cluster.is_empty() || cluster.iter().any(IpAddr::is_ipv6);
    }
    Ok(families)
}

fn ports(
    spec: &ServiceSpec,
    kind: ServiceType,
    remarks: &mut Vec<Remark>,
) -> Result<Vec<ServicePortObject>, FieldError> {
    let entries = spec.ports.as_deref().unwrap_or_default();
    if entries.is_empty() {
        return Err(FieldError::new(
            "spec.ports",
            "missing: write at least one port",
        ));
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let name = entry.name.clone().unwrap_or_default();
        if name.is_empty() && entries.len() > 1 {
            let message = "missing: every port needs a name where there is more than one";
            return Err(FieldError::new(format!("{field}.name"), message));
        }
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.len() > 63 || !name.chars().all(legal) || !names.insert(name.clone()) {
            let message = format!(
                "{name:?} is not a name, or is used twice: use lower-case letters, digits and \
                 dashes, once each"
            );
            return Err(FieldError::new(format!("{field}.name"), message));
        }
        let number = port(entry.port, &format!("{field}.port"))?;
        let protocol = protocol(entry.protocol.as_deref(), &format!("{field}.protocol"))?;
        if !numbers.insert((number, protocol)) {
            let message = format!("{number}/{protocol} is there twice: remove one");
            return Err(FieldError::new(format!("{field}.port"), message));
        }
        let given = entry.node_port.filter(|port| *port != 0);
        let node_field = format!("{field}.nodePort");
        let node_port = given
            .map(|node_port| port(node_port, &node_field))
            .transpose()?;
        match (kind, node_port) {
            (ServiceType::ClusterIp, Some(_)) => {
                let message = "not served: the Service's type is ClusterIP; make it NodePort";
                remarks.push(Remark::warning(node_field, message));
            }
            (ServiceType::NodePort, None) => {
                let message = "no node port: with manifests nothing hands them out, so write one";
                remarks.push(Remark::warning(node_field, message));
            }
            _ => {}
        }
        let node_port = node_port.filter(|_| kind != ServiceType::ClusterIp);
        ports.push(ServicePortObject {
            name,
            protocol,
            port: number,
            node_port,
        });
    }
    Ok(ports)
}

/// `sessionAffinity`, seconds; zero: none. The default and the limit are the API server's.
fn affinity(spec: &ServiceSpec) -> Result<u32, FieldError> {
    const DEFAULT: i32 = 10_800;
    const MOST: i32 = 86_400;
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(0),
        Some("ClientIP") => {}
        Some(other) => {
            let message = format!("{other:?} is not an affinity: write None or ClientIP");
            return Err(FieldError::new("spec.sessionAffinity", message));
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let given = config
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client| client.timeout_seconds);
    match given.unwrap_or(DEFAULT) {
        seconds @ 1..=MOST => Ok(seconds.unsigned_abs()),
        other => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            let message = format!("{other} is not a time-out: write 1 to {MOST} seconds");
            Err(FieldError::new(field, message))
        }
    }
}

/// `loadBalancerSourceRanges`, as the API server lets them stand: with space around them, and with
/// leading zeros in old objects.
fn source_ranges(spec: &ServiceSpec, kind: ServiceType) -> Result<Arc<[IpNet]>, FieldError> {
    let given = spec.load_balancer_source_ranges.as_deref();
    let mut ranges = Vec::new();
    if kind == ServiceType::LoadBalancer {
        for (i, text) in given.unwrap_or_default().iter().enumerate() {
            let range = text.trim().split_once('/').and_then(|(address, length)| {
                let address = parse_address(address).ok()?;
                IpNet::new(address, length.parse().ok()?).ok()
            });
            let Some(range) = range else {
                let field = format!("spec.loadBalancerSourceRanges[{i}]");
                let message = format!("{text:?} is not a range: write one as 192.0.2.0/24");
                return Err(FieldError::new(field, message));
            };
            ranges.push(range.trunc());
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    Ok(ranges.into())
}

fn policies(spec: &ServiceSpec) -> Result<Policies, FieldError> {
    let one = |field: &str, text: &Option<String>| match text.as_deref() {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => {
            let message = format!("{other:?} is not a policy: write Cluster or Local");
            Err(FieldError::new(field, message))
        }
    };
    Ok(Policies {
        internal: one("spec.internalTrafficPolicy", &spec.internal_traffic_policy)?,
        external: one("spec.externalTrafficPolicy", &spec.external_traffic_policy)?,
    })
}

/// What `trafficDistribution` says stands in the slices' hints: whoever writes the slices puts it there.
fn known_distribution(spec: &ServiceSpec, remarks: &mut Vec<Remark>) {
    match spec.traffic_distribution.as_deref() {
        None | Some("" | "PreferClose" | "PreferSameZone" | "PreferSameNode") => {}
        Some(other) => {
            let message = format!(
                "{other:?} is not known here: hints of the slices count; write PreferClose, \
                 PreferSameZone or PreferSameNode"
            );
            remarks.push(Remark::warning("spec.trafficDistribution", message));
        }
    }
}

/// The port where load balancers ask, if the Service is one that they ask about.
fn health_check(
    spec: &ServiceSpec,
    asked: bool,
    remarks: &mut Vec<Remark>,
) -> Result<Option<u16>, FieldError> {
    let field = "spec.healthCheckNodePort";
    let Some(number) = spec.health_check_node_port.filter(|port| *port != 0) else {
        return Ok(None);
    };
    let number = port(number, field)?;
    if !asked {
        let message = "not served: only a Service of type LoadBalancer whose \
                       externalTrafficPolicy is Local has a health check; make it so, or remove it";
        remarks.push(Remark::warning(field, message));
    }
    Ok(Some(number).filter(|_| asked))
}

//! Slices of a Service's endpoints.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde::{Deserialize, Serialize};

use super::{
    FieldError, HEADLESS_LABEL, PROXY_NAME_LABEL, Remark, address, annotation, label, object_ref,
    port, protocol,
};
use crate::model::{Hints, Kind, ObjectRef, Protocol};

/// Names the Service that a slice belongs to.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Share of new connections of each endpoint of the slice.
const WEIGHT_ANNOTATION: &str = "causeway.dev/weight";

/// Largest weight.
const MAX_WEIGHT: u16 = 1_000;

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// Name of the service port it serves; empty for a port without name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The endpoints' port.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// Address.
    pub address: IpAddr,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// For whose clients it is meant.
    #[serde(default)]
    pub hints: Option<Arc<Hints>>,
}

/// A checked EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceObject {
    /// Its name.
    pub object: ObjectRef,
    /// The Service it belongs to; none: it isn't served.
    pub service: Option<String>,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Share of new connections of each endpoint.
    pub weight: u16,
    /// What is to be told.
    #[serde(skip)]
    pub remarks: Vec<Remark>,
}

impl SliceObject {
    /// Checks an EndpointSlice.
    pub fn check(slice: &EndpointSlice) -> Result<Self, FieldError> {
        let meta = &slice.metadata;
        let object = object_ref(Kind::EndpointSlice, meta)?;
        let mut remarks = Vec::new();
        let mut service = label(meta, SERVICE_LABEL).filter(|name| !name.is_empty());
        if service.is_none() {
            let message = format!("no label {SERVICE_LABEL}: the slice belongs to no Service");
            remarks.push(Remark::info("metadata.labels", message));
        }
        for key in [PROXY_NAME_LABEL, HEADLESS_LABEL] {
            if label(meta, key).is_some() {
                service = None;
            }
        }
        let mut checked = Self {
            object,
            service: service.map(str::to_owned),
            ports: ports(slice)?,
            endpoints: Vec::new(),
            weight: weight(slice)?,
            remarks,
        };
        let v4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => {
                let message = "slices of names aren't proxied: nothing is served from this one";
                checked.remarks.push(Remark::info("addressType", message));
                return Ok(checked);
            }
            other => {
                let message = format!("{other:?} is not an address type: write IPv4 or IPv6");
                return Err(FieldError::new("addressType", message));
            }
        };
        let entries = slice.endpoints.as_deref().unwrap_or_default();
        for (i, entry) in entries.iter().enumerate() {
            checked.endpoints.push(endpoint(entry, v4, i)?);
        }
        Ok(checked)
    }
}

fn ports(slice: &EndpointSlice) -> Result<Vec<SlicePort>, FieldError> {
    let mut ports = Vec::new();
    for (i, entry) in slice
        .ports
        .as_deref()
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        let protocol = protocol(entry.protocol.as_deref(), &format!("ports[{i}].protocol"))?;
        // No number means all ports, which no service port leads to.
        let Some(number) = entry.port.filter(|number| *number != 0) else {
            continue;
        };
        let port = port(number, &format!("ports[{i}].port"))?;
        ports.push(SlicePort {
            name: entry.name.clone().unwrap_or_default(),
            protocol,
            port,
        });
    }
    Ok(ports)
}

fn weight(slice: &EndpointSlice) -> Result<u16, FieldError> {
    let Some(text) = annotation(&slice.metadata, WEIGHT_ANNOTATION) else {
        return Ok(1);
    };
    if let Ok(weight @ 0..=MAX_WEIGHT) = text.parse() {
        return Ok(weight);
    }
    let message = format!("{text:?} is not a weight: write 0 to {MAX_WEIGHT}");
    Err(FieldError::new(
        format!("metadata.annotations[{WEIGHT_ANNOTATION}]"),
        message,
    ))
}

/// `hints`; none if they name nobody.
fn hints(entry: &Endpoint) -> Option<Arc<Hints>> {
    let given = entry.hints.as_ref()?;
    let nodes = given.for_nodes.iter().flatten().map(|n| n.name.clone());
    let zones = given.for_zones.iter().flatten().map(|z| z.name.clone());
    let hints = Hints {
        nodes: nodes.collect(),
        zones: zones.collect(),
    };
    (hints != Hints::default()).then(|| hints.into())
}

fn endpoint(entry: &Endpoint, v4: bool, i: usize) -> Result<SliceEndpoint, FieldError> {
    // Only the first address counts, as for kube-proxy.
    let field = format!("endpoints[{i}].addresses[0]");
    let Some(text) = entry.addresses.first() else {
        let message = "missing: write the endpoint's address";
        return Err(FieldError::new(
            format!("endpoints[{i}].addresses"),
            message,
        ));
    };
    let address = address(text, &field)?;
    if address.is_ipv4() != v4 {
        let message = format!("{text:?} is not of the slice's addressType: use a slice per family");
        return Err(FieldError::new(field, message));
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        let message = format!("{text:?} cannot be a pod's address");
        return Err(FieldError::new(field, message));
    }
    // What a condition that isn't given means: discovery/v1 EndpointConditions.
    let conditions = entry.conditions.as_ref();
    Ok(SliceEndpoint {
        address,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: entry.node_name.as_deref().map(Arc::from),
        hints: hints(entry),
    })
}

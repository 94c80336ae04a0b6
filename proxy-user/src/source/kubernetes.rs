//! Kubernetes objects, checked one by one.
//!
//! An object that breaks a rule of the API is refused as a whole, with the field, the value and the
//! remedy; what is legal but not served yet becomes a [`Remark`].

mod address;
mod node;
mod pod;
mod service;
mod slice;

pub use address::{AddressError, parse_address};
pub use node::NodeObject;
pub use pod::{HostPort, PodObject};
pub use service::{ServiceObject, ServicePortObject, ServiceType, Unproxied};
pub(crate) use slice::SERVICE_LABEL;
pub use slice::{SliceEndpoint, SliceObject, SlicePort};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::model::{Kind, ObjectRef, Protocol, Severity};

/// Says that some other program proxies the object.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Says that the object isn't to be proxied.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field, as `spec.ports[0].port`.
    pub field: String,
    /// What was found, what is wrong with it, what to write.
    pub message: String,
}

impl FieldError {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// What is to be told about an object that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// How bad it is.
    pub severity: Severity,
    /// The field.
    pub field: String,
    /// What it means.
    pub message: String,
}

impl Remark {
    fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            field: field.into(),
            message: message.into(),
        }
    }

    fn info(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Info,
            field: field.into(),
            message: message.into(),
        }
    }
}

/// A checked object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// A Namespace: nothing of it is needed.
    Namespace,
    /// A Node.
    Node(NodeObject),
    /// A Service.
    Service(ServiceObject),
    /// An EndpointSlice.
    Slice(SliceObject),
    /// A Pod.
    Pod(PodObject),
    /// A return proxy.
    #[serde(skip)]
    ReturnProxy(std::sync::Arc<crate::tunnel::object::ReturnProxy>),
}

impl Object {
    /// Its name, unless it is of a kind of which only the name matters.
    #[must_use]
    pub const fn reference(&self) -> Option<&ObjectRef> {
        match self {
            Self::Namespace | Self::ReturnProxy(_) => None,
            Self::Node(node) => Some(&node.object),
            Self::Service(service) => Some(&service.object),
            Self::Slice(slice) => Some(&slice.object),
            Self::Pod(pod) => Some(&pod.object),
        }
    }
}

/// Kind, namespace and name of an object; `default` is the namespace of those that don't say.
fn object_ref(kind: Kind, meta: &ObjectMeta) -> Result<ObjectRef, FieldError> {
    let namespace = match kind {
        Kind::Namespace | Kind::Node => String::new(),
        _ => meta
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
    };
    let name = meta.name.clone().unwrap_or_default();
    for (field, text) in [("metadata.name", &name), ("metadata.namespace", &namespace)] {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if text.is_empty() && field == "metadata.name" {
            return Err(FieldError::new(field, "missing: write the object's name"));
        }
        if text.len() > 253 || !text.chars().all(legal) {
            let message = format!(
                "{text:?} is not a name: use at most 253 lower-case letters, digits, dashes and dots"
            );
            return Err(FieldError::new(field, message));
        }
    }
    Ok(ObjectRef {
        kind,
        namespace,
        name,
    })
}

fn label<'m>(meta: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'m>(meta: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A port from 1 to 65,535.
fn port(number: i32, field: &str) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(
            field,
            format!("{number} is not a port: write 1 to 65535"),
        )),
    }
}

/// A protocol; TCP if none is given.
fn protocol(name: Option<&str>, field: &str) -> Result<Protocol, FieldError> {
    let Some(name) = name else {
        return Ok(Protocol::Tcp);
    };
    Protocol::from_name(name).ok_or_else(|| {
        FieldError::new(
            field,
            format!("{name:?} is not a protocol: write TCP, UDP or SCTP"),
        )
    })
}

fn address(text: &str, field: &str) -> Result<std::net::IpAddr, FieldError> {
    parse_address(text).map_err(|error| FieldError::new(field, error.to_string()))
}

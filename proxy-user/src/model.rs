//! What is desired, in Causeway's own terms: validated, whole, and the same for every source.

mod endpoint;
mod health;
mod notice;
mod selection;
mod service;
mod unknown;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

pub use crate::tunnel::object::ReturnProxy;
pub use endpoint::{Endpoint, Hints};
pub use health::HealthCheck;
pub use notice::{Kind, Notice, ObjectRef, Origin, Severity};
pub use selection::{
    Client, Here, Outcome, Policies, Selection, TrafficPolicy, ZONE_LABEL, select,
};
use serde::{Deserialize, Serialize};
pub use service::{
    Algorithm, Frontend, InvalidName, Protocol, Reach, ServiceName, ServicePort, Terms,
};
pub use unknown::Unknown;

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Internal addresses, then external ones, in the object's order.
    pub addresses: Vec<IpAddr>,
    /// How many of them are internal.
    pub internal: usize,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ranges of its pods' addresses.
    pub pod_ranges: Vec<ipnet::IpNet>,
    /// It is being deleted, or will be soon: load balancers are to send nobody there (KEP-3836).
    #[serde(default)]
    pub leaving: bool,
}

/// A whole snapshot of what is desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Service ports and host ports. The map's key is the port's own name.
    pub services: BTreeMap<ServiceName, Arc<ServicePort>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Health checks of Services, by the port of this node where load balancers ask.
    pub health_checks: BTreeMap<u16, HealthCheck>,
    /// What may be desired besides and cannot be told.
    pub unknown: Vec<Unknown>,
    /// Return proxies by name.
    pub return_proxies: BTreeMap<String, Arc<ReturnProxy>>,
}

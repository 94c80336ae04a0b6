//! Endpoints of service ports.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// One address and port that serves a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Share of new connections relative to the other endpoints; zero: none.
    pub weight: u16,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Whose clients it is meant for (`hints` of an `EndpointSlice`); none: everybody's.
    pub hints: Option<Arc<Hints>>,
}

/// For whose clients an endpoint is meant, as the slice's writer sees it: what
/// `spec.trafficDistribution` comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hints {
    /// Those on these nodes (`forNodes`, KEP-3015).
    pub nodes: Vec<String>,
    /// Those in these zones (`forZones`).
    pub zones: Vec<String>,
}

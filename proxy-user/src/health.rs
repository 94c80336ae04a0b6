//! What load balancers, probes and Prometheus ask a node, over HTTP as kube-proxy serves it.
//!
//! Three kinds of pages: `/healthz` and `/livez`, `/proxyMode` and `/metrics`, and one port for each
//! Service whose clients must stay on the node that they come to ([`HealthCheck`]). What is to be listened at
//! follows from the daemon's last picture; a place that cannot be had is told, and is tried again.
//!
//! [`HealthCheck`]: crate::model::HealthCheck

mod answer;
mod listener;
mod pages;
mod places;
mod probes;
mod serve;

pub use places::{Page, Place, places};
pub use probes::{Answers, Probes};
pub use serve::serve;

//! What load balancers ask about a Service, and the answer.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use super::{
    Client, Endpoint, Frontend, Here, ObjectRef, Outcome, Reach, ServicePort, State, TrafficPolicy,
    select,
};

/// The health check of a Service whose clients must stay on the node that they come to
/// (`spec.healthCheckNodePort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub object: ObjectRef,
    /// Whether it is asked at IPv4 and at IPv6 addresses.
    pub families: [bool; 2],
}

impl State {
    /// How many endpoints of one family a Service has on this node for a load balancer that asks.
    ///
    /// As for kube-proxy (`LocalReadyEndpoints`), an endpoint of several ports is one, and those that
    /// terminate don't count: they finish what they have, and nobody new is to come.
    #[must_use]
    pub fn local_endpoints(&self, service: &ObjectRef, node: &str, v4: bool) -> usize {
        let counts = |endpoint: &&Endpoint| {
            endpoint.ready
                && endpoint.weight != 0
                && endpoint.address.is_ipv4() == v4
                && endpoint.node.as_deref() == Some(node)
        };
        let endpoints = self.ports_of(service).flat_map(|port| &port.endpoints);
        let addresses: BTreeSet<_> = endpoints
            .filter(counts)
            .map(|endpoint| endpoint.address)
            .collect();
        addresses.len()
    }

    /// How many service ports drop clients because a policy is Local and all endpoints are elsewhere: at
    /// cluster addresses and at those for the outside, of IPv4 and IPv6 each.
    #[must_use]
    pub fn without_local_endpoints(&self, here: Here<'_>) -> [[usize; 2]; 2] {
        let mut counts = [[0; 2]; 2];
        let local = |port: &&Arc<ServicePort>| {
            let policies = port.terms.policies;
            [policies.internal, policies.external].contains(&TrafficPolicy::Local)
        };
        for port in self.services.values().filter(local) {
            for (at, families) in [Reach::Cluster, Reach::Everywhere]
                .into_iter()
                .zip(&mut counts)
            {
                for (v4, count) in [true, false].into_iter().zip(families) {
                    *count += usize::from(port.drops(at, v4, here));
                }
            }
        }
        counts
    }

    /// The ports of a Service, whose names all begin with its own.
    fn ports_of<'s>(&'s self, service: &ObjectRef) -> impl Iterator<Item = &'s ServicePort> {
        let start = format!("{}/{}:", service.namespace, service.name);
        let from = self
            .services
            .range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
        let own = move |name: &str| name.starts_with(&start);
        from.take_while(move |(name, _)| own(name.shared()))
            .map(|(_, port)| &**port)
    }
}

impl ServicePort {
    /// Whether clients from outside of this node come to an address of this reach and family, and get
    /// nothing.
    fn drops(&self, at: Reach, v4: bool, here: Here<'_>) -> bool {
        let has = |frontend: &Frontend| match *frontend {
            Frontend::Address { address, reach, .. } => reach == at && address.is_ipv4() == v4,
            Frontend::NodePort { v4: has_v4, v6, .. } => {
                at == Reach::Everywhere && if v4 { has_v4 } else { v6 }
            }
            Frontend::HostPort { .. } => false,
        };
        let of_family = |endpoint: &&Endpoint| endpoint.address.is_ipv4() == v4;
        let endpoints: Vec<&Endpoint> = self.endpoints.iter().filter(of_family).collect();
        self.frontends.iter().any(has)
            && select(&endpoints, here).outcome(self.terms.policies, at, Client::Outside)
                == Outcome::Drop
    }
}

#[cfg(test)]
mod tests;

//! Which endpoints serve whom: the rules of Kubernetes' proxies, in one place.
//!
//! What kube-proxy does in `CategorizeEndpoints` (`pkg/proxy/topology.go`), for one family of one
//! service port. Nothing but the port's endpoints and this node's name and zone decides.

use serde::{Deserialize, Serialize};

use super::{Endpoint, Hints, Reach};

/// Label of a Node that names its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Where the choice is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here<'n> {
    /// This node's name.
    pub node: &'n str,
    /// This node's zone, if it has one.
    pub zone: Option<&'n str>,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Endpoints on this node alone.
    Local,
}

/// Both policies of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Policies {
    /// At cluster addresses.
    pub internal: TrafficPolicy,
    /// At node ports, load-balancer addresses and external addresses.
    pub external: TrafficPolicy,
}

/// Who opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// A pod or a process of this node.
    Inside,
    /// Anybody else.
    Outside,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It is led to one of the cluster's endpoints.
    Cluster,
    /// The same, although the policy is Local: who is on this node is led as if it had gone out and come
    /// in where an endpoint is.
    ShortCircuit,
    /// It is led to one of this node's endpoints.
    Local,
    /// The client is told that nobody serves.
    Reject,
    /// Nothing: other nodes have endpoints, and the client is to try there.
    Drop,
}

/// Places in the list of endpoints, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those for who may be led to any node.
    pub cluster: Vec<usize>,
    /// Those for who must stay on this node.
    pub local: Vec<usize>,
    /// Those that take traffic on some node: whoever is led to one may stay there.
    pub serving: Vec<usize>,
}

/// Chooses among the endpoints of one family of a service port.
///
/// Ready ones count; only if there is none, those that still serve while they terminate (KEP-1669),
/// and that for all nodes and for this node independently. Hints narrow down what is ready on all
/// nodes, never what is on this node, nor what terminates. An endpoint without weight is chosen by
/// nobody.
#[must_use]
pub fn select(endpoints: &[&Endpoint], here: Here<'_>) -> Selection {
    let all: Vec<usize> = of(endpoints, |endpoint| endpoint.weight != 0);
    let local = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(here.node);
    let within = |places: &[usize], wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<usize> {
        let wanted = |place: &&usize| endpoints.get(**place).is_some_and(|found| wanted(found));
        places.iter().filter(wanted).copied().collect()
    };
    let ready = |endpoint: &Endpoint| endpoint.ready;
    let ends = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let or_terminating = |places: &[usize]| {
        let found = within(places, &ready);
        if found.is_empty() {
            within(places, &ends)
        } else {
            found
        }
    };
    let of_all = or_terminating(&all);
    let of_this = or_terminating(&within(&all, &local));
    let near = nearness(endpoints, here);
    let cluster = within(&of_all, &|endpoint| {
        !endpoint.ready || near.covers(endpoint, here)
    });
    let mut serving = of_all;
    serving.extend(&of_this);
    serving.sort_unstable();
    serving.dedup();
    Selection {
        cluster,
        local: of_this,
        serving,
    }
}

impl Selection {
    /// What becomes of a connection to an address of this reach.
    #[must_use]
    pub const fn outcome(&self, policies: Policies, at: Reach, from: Client) -> Outcome {
        let policy = match at {
            Reach::Cluster => policies.internal,
            Reach::Everywhere => policies.external,
        };
        let inside_out = matches!((at, from), (Reach::Everywhere, Client::Inside));
        match (policy, inside_out) {
            _ if self.serving.is_empty() => Outcome::Reject,
            (TrafficPolicy::Cluster, _) => Outcome::Cluster,
            (TrafficPolicy::Local, true) => Outcome::ShortCircuit,
            (TrafficPolicy::Local, false) if self.local.is_empty() => Outcome::Drop,
            (TrafficPolicy::Local, false) => Outcome::Local,
        }
    }
}

/// How far hints are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Node,
    Zone,
    Anywhere,
}

impl Nearness {
    fn covers(self, endpoint: &Endpoint, here: Here<'_>) -> bool {
        let Some(hints) = &endpoint.hints else {
            return self == Self::Anywhere;
        };
        match self {
            Self::Node => hints.nodes.iter().any(|node| node == here.node),
            Self::Zone => hints
                .zones
                .iter()
                .any(|zone| Some(zone.as_str()) == here.zone),
            Self::Anywhere => true,
        }
    }
}

/// Hints are followed if every ready endpoint has one of the kind, and one of them names this node
/// or its zone. A single endpoint without a hint means that the writer is at work.
fn nearness(endpoints: &[&Endpoint], here: Here<'_>) -> Nearness {
    let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
    let followed = |near: Nearness, has: fn(&Hints) -> bool| {
        ready().all(|endpoint| endpoint.hints.as_deref().is_some_and(has))
            && ready().any(|endpoint| endpoint.weight != 0 && near.covers(endpoint, here))
    };
    if followed(Nearness::Node, |hints| !hints.nodes.is_empty()) {
        Nearness::Node
    } else if followed(Nearness::Zone, |hints| !hints.zones.is_empty()) {
        Nearness::Zone
    } else {
        Nearness::Anywhere
    }
}

fn of(endpoints: &[&Endpoint], wanted: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
    let places = endpoints.iter().enumerate();
    places
        .filter(|(_, endpoint)| wanted(endpoint))
        .map(|(place, _)| place)
        .collect()
}

#[cfg(test)]
mod tests;

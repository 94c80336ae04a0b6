//! Endpoints, and which of them take new connections.

use std::{net::IpAddr, sync::Arc};

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
}

/// Tells which of `endpoints` take new connections: those that are ready; only if there is none,
/// those that still serve while they terminate (KEP-1669). Families are independent: call it for
/// one.
pub fn usable(endpoints: &[&Endpoint]) -> impl Fn(&Endpoint) -> bool + use<> {
    let any_ready = endpoints.iter().any(|endpoint| endpoint.ready);
    move |endpoint| {
        if any_ready {
            endpoint.ready
        } else {
            endpoint.serving && endpoint.terminating
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8, ready: bool, serving: bool, terminating: bool) -> Endpoint {
        Endpoint {
            address: IpAddr::from([10, 0, 0, last]),
            port: 80,
            weight: 1,
            ready,
            serving,
            terminating,
            node: None,
        }
    }

    /// Conditions as (ready, serving, terminating), and the indices chosen.
    #[test]
    fn ready_first_then_serving_while_terminating() {
        type Row = (&'static str, &'static [(bool, bool, bool)], &'static [u8]);
        let rows: &[Row] = &[
            ("no endpoint", &[], &[]),
            ("ready", &[(true, true, false)], &[0]),
            ("not ready", &[(false, false, false)], &[]),
            (
                "serving, not terminating, not ready",
                &[(false, true, false)],
                &[],
            ),
            (
                "ready wins",
                &[(false, true, true), (true, true, false)],
                &[1],
            ),
            (
                "fall back",
                &[(false, true, true), (false, false, true)],
                &[0],
            ),
            ("terminating, not serving", &[(false, false, true)], &[]),
            (
                "ready while terminating (publishNotReadyAddresses)",
                &[(true, false, true)],
                &[0],
            ),
        ];
        for (name, conditions, expected) in rows {
            let endpoints: Vec<Endpoint> = (0_u8..)
                .zip(*conditions)
                .map(|(i, (ready, serving, terminating))| {
                    endpoint(i, *ready, *serving, *terminating)
                })
                .collect();
            let refs: Vec<&Endpoint> = endpoints.iter().collect();
            let chooses = usable(&refs);
            let chosen = refs.iter().filter(|e| chooses(e)).map(|e| e.address);
            let chosen: Vec<IpAddr> = chosen.collect();
            let expected: Vec<IpAddr> = expected
                .iter()
                .map(|i| IpAddr::from([10, 0, 0, *i]))
                .collect();
            assert_eq!(chosen, expected, "{name}");
        }
    }
}

use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::model::{Kind, Policies, Protocol, ServiceName, Terms};

fn endpoint(address: &str, port: u16, node: &str) -> Endpoint {
    Endpoint {
        address: address.parse::<IpAddr>().unwrap(),
        port,
        weight: 1,
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        hints: None,
    }
}

fn service(name: &str) -> ObjectRef {
    ObjectRef {
        kind: Kind::Service,
        namespace: "demo".to_owned(),
        name: name.to_owned(),
    }
}

fn state(ports: &[(&str, &str, &[Endpoint])]) -> State {
    let services = ports.iter().map(|(of, port, endpoints)| {
        let name = ServiceName::new(format!("demo/{of}:{port}/TCP")).unwrap();
        let port = ServicePort {
            name: name.clone(),
            object: service(of),
            field: String::new(),
            created: None,
            protocol: Protocol::Tcp,
            algorithm: None,
            frontends: Vec::new(),
            terms: Terms::default(),
            endpoints: endpoints.to_vec(),
        };
        (name, Arc::new(port))
    });
    State {
        services: services.collect(),
        ..State::default()
    }
}

#[test]
fn an_endpoint_of_several_ports_is_one() {
    let state = state(&[
        ("web", "http", &[endpoint("10.0.0.1", 80, "here")]),
        (
            "web",
            "https",
            &[
                endpoint("10.0.0.1", 443, "here"),
                endpoint("10.0.0.2", 443, "here"),
                endpoint("2001:db8::1", 443, "here"),
            ],
        ),
    ]);
    assert_eq!(state.local_endpoints(&service("web"), "here", true), 2);
    assert_eq!(state.local_endpoints(&service("web"), "here", false), 1);
    assert_eq!(state.local_endpoints(&service("web"), "there", true), 0);
}

#[test]
fn only_what_is_ready_here_counts() {
    let here = || endpoint("10.0.0.1", 80, "here");
    let rows: [(&str, Endpoint, usize); 5] = [
        ("ready", here(), 1),
        (
            "terminating",
            Endpoint {
                ready: false,
                terminating: true,
                ..here()
            },
            0,
        ),
        (
            "not ready",
            Endpoint {
                ready: false,
                serving: false,
                ..here()
            },
            0,
        ),
        (
            "without weight",
            Endpoint {
                weight: 0,
                ..here()
            },
            0,
        ),
        (
            "nowhere",
            Endpoint {
                node: None,
                ..here()
            },
            0,
        ),
    ];
    for (what, endpoint, expected) in rows {
        let state = state(&[("web", "http", &[endpoint])]);
        let found = state.local_endpoints(&service("web"), "here", true);
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn a_service_whose_name_begins_alike_is_another() {
    let one = [endpoint("10.0.0.1", 80, "here")];
    let state = state(&[
        ("web-2", "http", &one),
        ("web", "http", &[]),
        ("webs", "http", &one),
    ]);
    assert_eq!(state.local_endpoints(&service("web"), "here", true), 0);
    assert_eq!(state.local_endpoints(&service("web-2"), "here", true), 1);
}

#[test]
fn a_service_port_without_an_endpoint_here_drops_who_must_stay_here() {
    let with = |policies, frontends: &[Frontend], nodes: &[&str]| {
        let endpoints: Vec<Endpoint> = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| endpoint(&format!("10.0.0.{place}"), 80, node))
            .collect();
        let mut state = state(&[("web", "http", &endpoints)]);
        for port in state.services.values_mut() {
            let port = Arc::make_mut(port);
            port.terms.policies = policies;
            port.frontends = frontends.to_vec();
        }
        let here = Here {
            node: "here",
            zone: None,
        };
        state.without_local_endpoints(here)
    };
    let cluster = Frontend::Address {
        address: "10.96.0.1".parse().unwrap(),
        port: 80,
        reach: Reach::Cluster,
        restricted: false,
    };
    let node_port = Frontend::NodePort {
        port: 30_000,
        v4: true,
        v6: false,
    };
    let outside = Policies {
        external: TrafficPolicy::Local,
        ..Policies::default()
    };
    let inside = Policies {
        internal: TrafficPolicy::Local,
        ..Policies::default()
    };
    let both = [cluster, node_port];
    let none = [[0, 0], [0, 0]];
    assert_eq!(with(outside, &both, &["there"]), [[0, 0], [1, 0]]);
    assert_eq!(with(inside, &both, &["there"]), [[1, 0], [0, 0]]);
    assert_eq!(with(inside, &[node_port], &["there"]), none);
    assert_eq!(with(outside, &both, &["there", "here"]), none);
    // Nobody serves anywhere: who comes is told so.
    assert_eq!(with(outside, &both, &[]), none);
    assert_eq!(with(Policies::default(), &both, &["there"]), none);
}

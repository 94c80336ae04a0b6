use std::collections::{BTreeMap, BTreeSet};

use proxy_user::source::{assemble::Policy, manifests::Manifests};

use super::*;
use crate::{lab::manifest, oracle::objects};

#[test]
fn a_seed_always_gives_the_same() {
    assert_eq!(Scenario::draw(7), Scenario::draw(7));
    assert_ne!(Scenario::draw(7).services, Scenario::draw(8).services);
}

#[test]
fn no_address_and_port_is_given_twice_nor_to_the_seed_before() {
    for seed in [1, 19, 199, 200, 219] {
        let mut seen = BTreeSet::new();
        for scenario in [Scenario::draw(seed), Scenario::draw(seed + 1)] {
            let round = scenario.round();
            for service in &scenario.services {
                for family in Family::BOTH {
                    let cluster = service.cluster(round, family);
                    let balancer = service.balancer(round, family);
                    assert!(seen.insert((cluster, 0)), "{cluster} again");
                    assert!(seen.insert((balancer, 0)), "{balancer} again");
                    if let Some(external) = service.external(round, family) {
                        assert!(seen.insert((external, 0)), "{external} again");
                    }
                }
                let ports = service.ports.iter().map(|port| port.node_port);
                for port in ports.chain(service.health_port) {
                    let any = layout::node(1, Family::V4);
                    assert!(seen.insert((any, port)), "{port} again");
                    assert!((30_086..32_768).contains(&port), "{port}");
                }
            }
        }
    }
}

#[test]
fn few_endpoints_serve_a_service_so_that_all_are_met() {
    for seed in 0..50 {
        for service in Scenario::draw(seed).services {
            for family in Family::BOTH {
                let slices = service.slices.iter().filter(|slice| slice.family == family);
                let pods: BTreeSet<u8> = slices
                    .flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.pod))
                    .collect();
                assert!(pods.len() <= draw::MOST_ENDPOINTS as usize, "{service:?}");
            }
        }
    }
}

#[test]
fn a_twin_differs_in_affinity_name_and_place_alone() {
    let mut twins = 0;
    for scenario in (0..20).map(Scenario::draw) {
        for service in &scenario.services {
            let Some(name) = &service.twin else {
                assert!(service.affinity.is_none(), "{service:?}");
                continue;
            };
            let twin = scenario.service(name).unwrap();
            assert_eq!(twin.affinity, None);
            let ends = |service: &Service| -> Vec<_> {
                let slices = service.slices.iter();
                slices
                    .map(|slice| (slice.ports.clone(), slice.endpoints.clone()))
                    .collect()
            };
            assert_eq!(ends(service), ends(twin));
            assert_eq!(
                (
                    service.kind,
                    service.internal_local,
                    service.external_local,
                    &service.ranges
                ),
                (
                    twin.kind,
                    twin.internal_local,
                    twin.external_local,
                    &twin.ranges
                )
            );
            twins += 1;
        }
    }
    assert!(twins > 40, "{twins}");
}

#[test]
fn ten_seeds_have_some_of_everything() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for service in (1..=10).flat_map(|seed| Scenario::draw(seed).services) {
        let endpoints = || service.slices.iter().flat_map(|slice| &slice.endpoints);
        let mut count = |what, is: bool| *counts.entry(what).or_default() += usize::from(is);
        count("cluster addresses", service.kind == Kind::ClusterIp);
        count("node ports", service.kind == Kind::NodePort);
        count("load balancers", service.kind == Kind::LoadBalancer);
        count("IPv4 alone", service.families == [Family::V4]);
        count("IPv6 alone", service.families == [Family::V6]);
        count("IPv6 first", service.families == [Family::V6, Family::V4]);
        count("internal Local", service.internal_local);
        count("external Local", service.external_local);
        count("affinity", service.affinity.is_some());
        count("ranges", !service.ranges.is_empty());
        count(
            "external addresses",
            service.external == Some(External::Allowed),
        );
        count(
            "unlisted addresses",
            service.external == Some(External::Elsewhere),
        );
        count("ipMode", service.ip_mode_proxy);
        count("no node ports", !service.node_ports);
        count("others' services", service.foreign.is_some());
        count("published early", service.publish_not_ready);
        count(
            "both protocols",
            service.ports.iter().any(|port| port.number == 53),
        );
        count("no slices", service.slices.is_empty());
        count("two slices", service.slices.len() > service.families.len());
        count(
            "no number",
            service
                .slices
                .iter()
                .any(|one| one.ports.iter().any(|p| p.2.is_none())),
        );
        count(
            "terminating",
            endpoints().any(|e| e.terminating == Some(true)),
        );
        count("nothing said", endpoints().any(|e| e.ready.is_none()));
        count("no node", endpoints().any(|e| !e.has_node));
        count("zones", endpoints().any(|e| !e.zones.is_empty()));
        count("nodes", endpoints().any(|e| !e.nodes.is_empty()));
        count("on hosts", endpoints().any(|e| e.pod > ON_HOST));
    }
    let rare: Vec<_> = counts.iter().filter(|(_, count)| **count < 2).collect();
    assert!(rare.is_empty(), "{rare:?}");
}

#[test]
fn objects_are_what_causeway_reads() {
    for seed in 0..8 {
        let scenario = Scenario::draw(seed);
        let folder = tempfile::tempdir().unwrap();
        let services = scenario.services.iter();
        let all: Vec<_> = objects::nodes(&scenario)
            .into_iter()
            .chain(services.flat_map(|service| objects::of_service(service, &scenario)))
            .chain(objects::marker(&scenario))
            .collect();
        manifest::write(&folder.path().join("all.yaml"), &all).unwrap();
        let policy = Policy {
            node: "node1".to_owned(),
            external_ranges: vec![
                "203.0.113.0/24".parse().unwrap(),
                "2001:db8:113::/112".parse().unwrap(),
            ],
        };
        let snapshot = Manifests::new(folder.path().to_owned(), policy).scan();
        let errors: Vec<String> = snapshot
            .notices
            .iter()
            .map(ToString::to_string)
            .filter(|text| text.starts_with("error") && !text.contains("services.external_ranges"))
            .collect();
        assert!(errors.is_empty(), "seed {seed}: {errors:#?}");
        let served = scenario
            .services
            .iter()
            .filter(|service| service.foreign.is_none());
        let ports: usize = served.map(|service| service.ports.len()).sum();
        assert_eq!(snapshot.state.services.len(), ports + 1, "seed {seed}");
        assert_eq!(snapshot.state.nodes.len(), 2);
    }
}

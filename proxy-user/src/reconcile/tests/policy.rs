//! Policies, hints and zones, up to what the maps hold.

use super::*;
use crate::model::{Hints, TrafficPolicy, ZONE_LABEL};
use proxy_common::abi::SourceKey;

fn on(node: &str, address: &str) -> Endpoint {
    Endpoint {
        node: Some(node.into()),
        ..endpoint(address, 80)
    }
}

fn web(internal: TrafficPolicy, external: TrafficPolicy, endpoints: Vec<Endpoint>) -> ServicePort {
    let frontends = vec![
        at("10.96.0.10", 80, Reach::Cluster),
        at("203.0.113.10", 80, Reach::Everywhere),
    ];
    let mut web = service("web", Protocol::Tcp, frontends, endpoints);
    web.terms.policies = crate::model::Policies { internal, external };
    web
}

/// What the datapath does at an address: for a client inside and outside, the endpoints, or why none.
fn choices(plan: &Plan, observed: &Observed, address: &str) -> [String; 2] {
    let found = plan.services_v4.iter();
    let mut found = found.filter(|(key, _)| key.address.to_ip() == ip(address));
    let (_, service) = found.next().unwrap();
    [false, true].map(|outside| {
        let external = service.flags & service_flag::EXTERNAL != 0;
        let local = service.flags & service_flag::LOCAL != 0 && (outside || !external);
        let [cluster, this] = service.ranges();
        let (first, count) = if local { this } else { cluster };
        if count == 0 && local && service.flags & service_flag::ELSEWHERE != 0 {
            return "drop".to_owned();
        }
        if count == 0 {
            return "refuse".to_owned();
        }
        let slots = observed.slots(first, count).unwrap().iter();
        let bit = if local {
            backend_flag::LOCAL
        } else {
            backend_flag::CLUSTER
        };
        let names = slots.map(|index| {
            let backend = &plan.backends[index];
            assert_eq!(backend.service, service.id);
            assert_eq!(backend.flags & bit, bit, "{backend:?}");
            let address = proxy_common::abi::Addr4::narrow(&backend.address).to_ip();
            address.to_string()
        });
        names.collect::<Vec<_>>().join(" ")
    })
}

#[test]
fn policies_become_slots_and_flags() {
    use TrafficPolicy::{Cluster, Local};
    let here = || on("worker-1", "10.1.0.1");
    let there = || on("worker-2", "10.1.0.2");
    let both = "10.1.0.1 10.1.0.2";
    // Policies, endpoints; at the cluster address; at the external address inside, outside.
    let rows = [
        (Cluster, Cluster, vec![here(), there()], both, [both, both]),
        (
            Local,
            Cluster,
            vec![here(), there()],
            "10.1.0.1",
            [both, both],
        ),
        (
            Cluster,
            Local,
            vec![here(), there()],
            both,
            [both, "10.1.0.1"],
        ),
        (Local, Local, vec![there()], "drop", ["10.1.0.2", "drop"]),
        (Local, Local, vec![], "refuse", ["refuse", "refuse"]),
    ];
    let mut world = World::new();
    for (internal, external, endpoints, cluster, balancer) in rows {
        let state = state([web(internal, external, endpoints)]);
        let (plan, report, _) = world.round(&state);
        assert_eq!(report, Report::default());
        let what = format!("{internal:?} {external:?}");
        let found = choices(&plan, &world.observed, "10.96.0.10");
        assert_eq!(found[0], cluster, "{what}");
        let found = choices(&plan, &world.observed, "203.0.113.10");
        assert_eq!(found, balancer, "{what}");
        world.restart();
        assert_eq!(
            world.round(&state).2,
            [],
            "a restart changes nothing: {what}"
        );
        world.now += QUARANTINE;
    }
}

#[test]
fn hints_follow_the_nodes_zone() {
    let hinted = |zone: &str, address: &str| Endpoint {
        hints: Some(Arc::new(Hints {
            nodes: Vec::new(),
            zones: vec![zone.to_owned()],
        })),
        ..on("worker-2", address)
    };
    let endpoints = vec![hinted("east", "10.1.0.1"), hinted("west", "10.1.0.2")];
    let mut state = state([web(
        TrafficPolicy::Cluster,
        TrafficPolicy::Cluster,
        endpoints,
    )]);
    let mut world = World::new();
    for (zone, expected) in [
        ("east", "10.1.0.1"),
        ("west", "10.1.0.2"),
        ("", "10.1.0.1 10.1.0.2"),
    ] {
        let labels = &mut state.nodes.get_mut("worker-1").unwrap().labels;
        labels.insert(ZONE_LABEL.to_owned(), zone.to_owned());
        let (plan, ..) = world.round(&state);
        let found = choices(&plan, &world.observed, "10.96.0.10");
        assert_eq!(found[0], expected, "{zone}");
        // UDP flows to the others stay where they are.
        let serves = |backend: &Backend| backend.flags & backend_flag::SERVING != 0;
        assert!(plan.backends.values().all(serves), "{zone}");
    }
}

#[test]
fn ranges_and_affinity_reach_the_maps() {
    let mut web = web(
        TrafficPolicy::Cluster,
        TrafficPolicy::Cluster,
        vec![on("worker-2", "10.1.0.1")],
    );
    web.terms.affinity = 60;
    web.terms.ranges = ["203.0.113.0/24", "fd00::/8"]
        .map(|range| range.parse().unwrap())
        .into();
    if let Some(Frontend::Address { restricted, .. }) = web.frontends.get_mut(1) {
        *restricted = true;
    }
    let mut world = World::new();
    let (plan, ..) = world.round(&state([web.clone()]));
    for (key, service) in &plan.services_v4 {
        let external = key.address.to_ip() == ip("203.0.113.10");
        let restricted = service.flags & service_flag::RESTRICTED != 0;
        assert_eq!(restricted, external, "{key:?}");
        assert_eq!(service.affinity, 60);
    }
    let of_v4: Vec<_> = plan.sources_v4.iter().map(SourceKey::range).collect();
    assert_eq!(of_v4, [(ip("203.0.113.0"), 24)]);
    let of_v6: Vec<_> = plan.sources_v6.iter().map(SourceKey::range).collect();
    assert_eq!(of_v6, [(ip("fd00::"), 8)]);
    world.restart();
    assert_eq!(world.round(&state([web.clone()])).2, []);

    // Other ranges: the new ones are let in before the old ones are not any more, and a service is never
    // restricted before its ranges are there, nor open while it is still to be restricted.
    let mut narrower = web.clone();
    narrower.terms.ranges = ["203.0.113.128/25".parse().unwrap()].into();
    let (_, _, ops) = world.round(&state([narrower]));
    assert!(
        matches!(
            ops.as_slice(),
            [
                Op::WriteSourceV4 { .. },
                Op::DeleteSourceV6 { .. },
                Op::DeleteSourceV4 { .. }
            ]
        ),
        "{ops:?}"
    );
    let mut open = web;
    open.terms.ranges = [].into();
    if let Some(Frontend::Address { restricted, .. }) = open.frontends.get_mut(1) {
        *restricted = false;
    }
    let (plan, _, ops) = world.round(&state([open]));
    assert!(plan.sources_v4.is_empty());
    assert!(
        matches!(
            ops.as_slice(),
            [Op::WriteServiceV4 { .. }, Op::DeleteSourceV4 { .. }]
        ),
        "{ops:?}"
    );
}

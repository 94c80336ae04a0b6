//! What holds for any state and any history.

use proptest::prelude::*;

use super::*;
use crate::model::{Policies, TrafficPolicy};

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>(), 1_u8..3);
    (any::<bool>(), 1_u8..8, 80_u16..82, 0_u16..4, conditions).prop_map(
        |(v4, last, port, weight, (ready, serving, terminating, node))| {
            let address = if v4 {
                format!("10.1.0.{last}")
            } else {
                format!("fd00::{last}")
            };
            Endpoint {
                weight,
                ready,
                serving,
                terminating,
                node: Some(format!("worker-{node}").into()),
                ..endpoint(&address, port)
            }
        },
    )
}

pub(super) fn any_service() -> impl Strategy<Value = ServicePort> {
    let frontend = prop_oneof![
        (1_u8..6, 80_u16..82)
            .prop_map(|(last, port)| { at(&format!("10.96.0.{last}"), port, Reach::Cluster) }),
        (1_u8..6, 80_u16..82)
            .prop_map(|(last, port)| { at(&format!("fd00:96::{last}"), port, Reach::Everywhere) }),
        (30_000_u16..30_003).prop_map(|port| Frontend::NodePort {
            port,
            v4: true,
            v6: true
        }),
    ];
    let endpoints = prop::collection::vec(any_endpoint(), 0..6);
    let local = || prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let policies =
        (local(), local()).prop_map(|(internal, external)| Policies { internal, external });
    let parts = (0_u8..8, any::<bool>(), any::<bool>(), policies);
    (parts, prop::collection::vec(frontend, 0..4), endpoints).prop_map(
        |((name, udp, maglev, policies), mut frontends, mut endpoints)| {
            frontends.sort_unstable();
            frontends.dedup();
            endpoints.sort_unstable();
            endpoints.dedup_by_key(|e| (e.address, e.port));
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let mut port = service(&format!("s{name}"), protocol, frontends, endpoints);
            port.algorithm = maglev.then_some(Algorithm::Maglev);
            port.terms.policies = policies;
            port
        },
    )
}

fn any_state() -> impl Strategy<Value = State> {
    prop::collection::vec(any_service(), 0..8).prop_map(state)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any sequence of states, pauses and restarts: the maps hold the plan after every round
    /// (`World::round` checks it), a restart changes nothing, numbers stay, and whoever looks at
    /// the maps between two operations finds no service that leads to another's backend.
    #[test]
    fn rounds_hold_their_promises(
        steps in prop::collection::vec((any_state(), 0_u64..1_500, any::<bool>()), 1..6)
    ) {
        let mut world = World::new();
        for (state, pause, restart) in steps {
            let before = world.observed.clone();
            world.allocation.release(&world.observed, world.now);
            let (plan, _) =
                compile(&state, &facts(), &options(), &mut world.allocation, world.now);
            for op in diff(&world.observed, &plan) {
                world.observed.apply(&op);
                check_no_stray(&world.observed);
            }
            world.observed.check_holds(&plan);
            for (id, name) in &plan.objects {
                let earlier = before.objects.iter().find(|(_, earlier)| *earlier == name);
                prop_assert!(earlier.is_none_or(|(earlier, _)| earlier == id));
            }
            for (index, held) in before.backends {
                let now = &world.observed.backends[&index];
                let same = now.family != 0
                    && Backend { flags: 0, ..*now } == Backend { flags: 0, ..held };
                prop_assert!(same || now.generation > held.generation || *now == held);
            }
            if restart {
                world.restart();
                let (_, _, ops) = world.round(&state);
                prop_assert_eq!(ops, vec![]);
            }
            world.now += Duration::from_millis(pause);
        }
    }

    /// From empty maps, a plan depends on the state alone.
    #[test]
    fn compiling_is_deterministic(state in any_state()) {
        let (a, ..) = World::new().round(&state);
        let (b, ..) = World::new().round(&state);
        prop_assert_eq!(a, b);
    }
}

/// Every slot that a service can choose leads to a backend of its own, or to one given up.
fn check_no_stray(observed: &Observed) {
    let v4 = observed.services_v4.values();
    for service in v4.chain(observed.services_v6.values()) {
        for (first, count) in service.ranges() {
            let slots = observed.slots(first, count).expect("slots were written");
            for index in slots {
                let backend = observed.backends.get(index).expect("backends were written");
                assert!(backend.family == 0 || backend.service == service.id);
            }
        }
    }
}

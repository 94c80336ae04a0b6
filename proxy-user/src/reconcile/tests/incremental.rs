//! What is kept up is what would be made from nothing.

use proptest::{prelude::*, sample::Index};

use super::{properties::any_service, *};
use crate::model::{Hints, ZONE_LABEL};

/// So little that tables are full now and then. A table of Maglev has 251 slots.
const TIGHT: Capacity = Capacity {
    services: 6,
    backends: 18,
    slots: 700,
};

/// One change of what is desired, or of this node.
#[derive(Clone, Debug)]
enum Step {
    Put(Vec<ServicePort>),
    Delete(Index),
    /// The same once more, as an object of its own.
    Renew(Index),
    Zone(Option<&'static str>),
    /// The cluster knows this node also by an address that services may have.
    Known(bool),
    /// So does an uplink.
    Local(bool),
    /// A pod's device comes or goes.
    Pod(bool),
    Algorithm(Algorithm),
    /// The port stays as the maps have it.
    Hold(Vec<Index>),
    /// The planner forgets what it knows.
    Forget,
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let zones = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
    let algorithms = prop_oneof![Just(Algorithm::Random), Just(Algorithm::Maglev)];
    prop_oneof![
        8 => prop::collection::vec(any_port(), 1..4).prop_map(Step::Put),
        4 => any::<Index>().prop_map(Step::Delete),
        1 => any::<Index>().prop_map(Step::Renew),
        1 => zones.prop_map(Step::Zone),
        1 => any::<bool>().prop_map(Step::Known),
        1 => any::<bool>().prop_map(Step::Local),
        1 => any::<bool>().prop_map(Step::Pod),
        1 => algorithms.prop_map(Step::Algorithm),
        1 => prop::collection::vec(any::<Index>(), 0..3).prop_map(Step::Hold),
        1 => Just(Step::Forget),
        1 => Just(Step::Restart),
    ]
}

/// With an age, ranges of clients, and hints.
fn any_port() -> impl Strategy<Value = ServicePort> {
    let hints = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
    let host_port = prop_oneof![
        Just(None),
        Just(Some("0.0.0.0")),
        Just(Some("192.0.2.11")),
        Just(Some("::"))
    ];
    let parts = (any_service(), prop::option::of(0_i64..3), any::<bool>());
    (parts, hints, host_port).prop_map(|((mut port, created, ranges), zone, host_port)| {
        port.created = created;
        if ranges {
            port.terms.ranges = ["198.51.100.0/24", "2001:db8::/32"]
                .map(|range| range.parse().unwrap())
                .into();
            for frontend in &mut port.frontends {
                if let Frontend::Address { restricted, .. } = frontend {
                    *restricted = true;
                }
            }
        }
        if let Some(address) = host_port {
            port.frontends.push(Frontend::HostPort {
                address: ip(address),
                port: 30_001,
            });
        }
        for endpoint in &mut port.endpoints {
            endpoint.hints = zone.map(|zone| {
                Arc::new(Hints {
                    nodes: Vec::new(),
                    zones: vec![zone.to_owned()],
                })
            });
        }
        port
    })
}

/// A node whose plan is kept up beside one that compiles everything in each round.
struct Twins {
    state: State,
    facts: Facts,
    options: Options,
    kept: World,
    planner: Planner,
    /// The kept one's maps hold its plan.
    whole: bool,
    fresh: World,
}

impl Twins {
    fn new() -> Self {
        let world = || {
            let mut world = World::new();
            world.allocation = Allocation::restore(&world.observed, TIGHT, world.now);
            world
        };
        let kept = world();
        let now = kept.now;
        Self {
            state: state([]),
            facts: facts(),
            options: options(),
            kept,
            planner: Planner::default(),
            whole: false,
            fresh: World { now, ..world() },
        }
    }

    fn take(&mut self, step: Step) {
        let services = &mut self.state.services;
        let pick = |all: &BTreeMap<ServiceName, Arc<ServicePort>>, index: &Index| {
            let names: Vec<_> = all.keys().cloned().collect();
            (!names.is_empty()).then(|| index.get(&names).clone())
        };
        self.options.held.clear();
        match step {
            Step::Put(ports) => services.extend(
                ports
                    .into_iter()
                    .map(|port| (port.name.clone(), Arc::new(port))),
            ),
            Step::Delete(index) => {
                if let Some(name) = pick(services, &index) {
                    services.remove(&name);
                }
            }
            Step::Renew(index) => {
                if let Some(name) = pick(services, &index) {
                    let port = (*services[&name]).clone();
                    services.insert(name, Arc::new(port));
                }
            }
            Step::Zone(zone) => {
                let labels = &mut self.state.nodes.get_mut("worker-1").unwrap().labels;
                labels.clear();
                labels.extend(zone.map(|zone| (ZONE_LABEL.to_owned(), zone.to_owned())));
            }
            Step::Known(known) => {
                let node = self.state.nodes.get_mut("worker-1").unwrap();
                node.addresses = vec![ip("192.0.2.11")];
                node.addresses.extend(known.then(|| ip("10.96.0.3")));
            }
            Step::Local(local) => {
                let addresses = &mut self.facts.devices.get_mut(&2).unwrap().addresses;
                addresses.truncate(2);
                addresses.extend(local.then(|| "10.96.0.3/24".parse::<ipnet::IpNet>().unwrap()));
            }
            Step::Pod(there) => {
                self.facts.devices.remove(&9);
                let pod = DeviceFact {
                    ifindex: 9,
                    addresses: Vec::new(),
                    role: DeviceRole::Pod,
                    ..self.facts.devices[&2].clone()
                };
                self.facts.devices.extend(there.then_some((9, pod)));
            }
            Step::Algorithm(algorithm) => self.options.algorithm = algorithm,
            Step::Hold(held) => {
                let names: Vec<_> = self.kept.observed.objects.values().cloned().collect();
                if !names.is_empty() {
                    self.options.held = held.iter().map(|i| Arc::clone(i.get(&names))).collect();
                }
            }
            Step::Forget => self.planner.forget(),
            Step::Restart => {
                self.planner = Planner::default();
                self.whole = false;
                for world in [&mut self.kept, &mut self.fresh] {
                    world.allocation = Allocation::restore(&world.observed, TIGHT, world.now);
                }
            }
        }
    }

    /// One round of each, in which one operation may fail: all is the same.
    fn round(&mut self, failing: Option<&Index>) {
        let Self {
            kept,
            fresh,
            planner,
            facts,
            options,
            ..
        } = self;
        let shared = Arc::new(self.state.clone());
        for world in [&mut *kept, &mut *fresh] {
            world.allocation.release(&world.observed, world.now);
        }
        let update = planner.update(&shared, facts, options, &mut kept.allocation, kept.now);
        planner.carry(&kept.observed, &options.held);
        let (mut plan, report) = compile(&shared, facts, options, &mut fresh.allocation, fresh.now);
        carry(&fresh.observed, &options.held, &mut plan);
        assert_eq!(planner.plan(), &plan);
        assert_eq!(update.report, report);
        let ops = diff(&fresh.observed, &plan);
        let kept_ops = if self.whole {
            diff_part(&kept.observed, planner.plan(), &update.extent)
        } else {
            diff(&kept.observed, planner.plan())
        };
        assert_eq!(kept_ops, ops);
        let failing = failing.filter(|_| !ops.is_empty());
        let failing = failing.map(|index| index.index(ops.len()));
        for world in [&mut *kept, &mut *fresh] {
            let mut round = Round::default();
            for (i, op) in ops.iter().enumerate() {
                if failing == Some(i) {
                    round.fail(op);
                } else if !round.must_wait(op) {
                    world.observed.apply(op);
                }
            }
        }
        assert_eq!(kept.observed, fresh.observed);
        self.whole = failing.is_none();
        if self.whole {
            let mut observed = kept.observed.clone();
            if !options.held.is_empty() {
                // A held port may have numbers of which nothing was written, because that failed: the
                // plan takes over what lives, and what was given up before is still there.
                let backends = &mut observed.backends;
                backends.retain(|index, b| b.family != 0 || plan.backends.contains_key(index));
            }
            observed.check_holds(&plan);
        }
    }

    fn wait(&mut self, milliseconds: u64) {
        for world in [&mut self.kept, &mut self.fresh] {
            world.now += Duration::from_millis(milliseconds);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever happens, in whatever order: the plan, what is told, the operations and the maps are
    /// the same as for one that compiles everything each time.
    #[test]
    fn keeping_up_is_compiling_from_nothing(
        steps in prop::collection::vec(
            (any_step(), 0_u64..700, prop::option::weighted(0.1, any::<Index>())),
            1..24,
        )
    ) {
        let mut twins = Twins::new();
        for (step, pause, failing) in steps {
            twins.take(step);
            twins.round(failing.as_ref());
            twins.wait(pause);
        }
    }
}

/// A change is a part of the plan, and a frontend that is given up goes to who claims it besides.
#[test]
fn one_service_of_many_is_a_small_part() {
    let all = (0..50_u8).map(|i| {
        let frontends = vec![at(&format!("10.96.1.{i}"), 80, Reach::Cluster)];
        let endpoints = vec![endpoint(&format!("10.1.1.{i}"), 80)];
        service(&format!("s{i}"), Protocol::Tcp, frontends, endpoints)
    });
    let mut desired = state(all);
    let mut world = World::new();
    let mut planner = Planner::default();
    let mut update = |state: &State, allocation: &mut Allocation, now| {
        let state = Arc::new(state.clone());
        let update = planner.update(&state, &facts(), &options(), allocation, now);
        (update, planner.plan().clone())
    };
    let (first, plan) = update(&desired, &mut world.allocation, world.now);
    assert_eq!(first.extent, Extent::Whole);
    for op in diff(&world.observed, &plan) {
        world.observed.apply(&op);
    }
    // Two addresses are claimed a second time: who had them keeps them, who comes has its own.
    let frontends = vec![
        at("10.96.1.7", 80, Reach::Cluster),
        at("10.96.1.70", 80, Reach::Cluster),
    ];
    let late = service(
        "t",
        Protocol::Tcp,
        frontends,
        vec![endpoint("10.1.2.1", 80)],
    );
    let name = late.name.clone();
    desired.services.insert(name.clone(), Arc::new(late));
    let (second, plan) = update(&desired, &mut world.allocation, world.now);
    assert_ne!(second.extent, Extent::Whole);
    assert_eq!(second.report.notices.len(), 1);
    let ops = diff_part(&world.observed, &plan, &second.extent);
    assert_eq!(ops, diff(&world.observed, &plan));
    assert!(ops.len() < 8, "{ops:?}");
    for op in &ops {
        world.observed.apply(op);
    }
    // The one that had it goes: the other gets it, though nothing about itself has changed.
    let gone = desired
        .services
        .keys()
        .find(|name| name.to_string() == "default/s7/TCP");
    let gone = gone.cloned().unwrap();
    desired.services.remove(&gone);
    let (third, plan) = update(&desired, &mut world.allocation, world.now);
    assert_eq!(third.report, Report::default());
    for op in diff_part(&world.observed, &plan, &third.extent) {
        world.observed.apply(&op);
    }
    let found = world.observed.resolve_v4("10.96.1.7", 80, Protocol::Tcp);
    assert_eq!(found.unwrap(), ["10.1.2.1:80"]);
}

//! State to plan, plan to operations, and back from the maps.

mod filter;
mod incremental;
mod policy;
mod properties;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::{
        Address, AddressFlags, Backend, DeviceRole, FilterKind, address_flag, backend_flag,
        filter_position, service_flag,
    },
    wire::MacAddr,
};

use super::*;
use crate::model::{
    Algorithm, Endpoint, Frontend, Kind, Node, ObjectRef, Protocol, Reach, ServiceName,
    ServicePort, State, Terms,
};

const CAPACITY: Capacity = Capacity {
    services: 64,
    backends: 129,
    slots: 8_192,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn options() -> Options {
    Options {
        node: "worker-1".to_owned(),
        nat_ports: 61_000..=65_535,
        algorithm: Algorithm::Random,
        node_port_ranges: Vec::new(),
        sockets: false,
        held: Held::new(),
    }
}

pub(super) fn facts() -> Facts {
    let uplink = DeviceFact {
        ifindex: 2,
        name: "eth0".to_owned(),
        mac: MacAddr::from_bytes([2, 0, 0, 0, 0, 2]),
        mtu: 1_500,
        addresses: ["192.0.2.11/24", "2001:db8:2::11/64"]
            .map(|a| a.parse().unwrap())
            .to_vec(),
        vlan: None,
        role: DeviceRole::Uplink,
        xdp_transmit: false,
    };
    Facts {
        devices: [(2, uplink)].into(),
        hz: 250,
    }
}

fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint {
        address: ip(address),
        port,
        weight: 1,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    }
}

pub(super) fn at(address: &str, port: u16, reach: Reach) -> Frontend {
    Frontend::Address {
        address: ip(address),
        port,
        reach,
        restricted: false,
    }
}

pub(super) fn service(
    name: &str,
    protocol: Protocol,
    frontends: Vec<Frontend>,
    endpoints: Vec<Endpoint>,
) -> ServicePort {
    let object = ObjectRef {
        kind: Kind::Service,
        namespace: "default".to_owned(),
        name: name.to_owned(),
    };
    ServicePort {
        name: ServiceName::new(format!("default/{name}/{protocol}")).unwrap(),
        object,
        field: "spec.ports[0]".to_owned(),
        created: None,
        protocol,
        algorithm: None,
        frontends,
        terms: Terms::default(),
        endpoints,
    }
}

fn state(ports: impl IntoIterator<Item = ServicePort>) -> State {
    let services = ports
        .into_iter()
        .map(|port| (port.name.clone(), Arc::new(port)))
        .collect();
    let node = Node {
        addresses: vec![ip("192.0.2.11")],
        pod_ranges: vec![],
        ..Node::default()
    };
    State {
        unknown: Vec::new(),
        services,
        nodes: [("worker-1".to_owned(), node)].into(),
        ..State::default()
    }
}

/// A node's maps and allocation, as a daemon drives them.
struct World {
    observed: Observed,
    allocation: Allocation,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let observed = Observed::default();
        Self {
            allocation: Allocation::restore(&observed, CAPACITY, now),
            observed,
            now,
        }
    }

    /// One round. Checks that what was applied is what was planned.
    fn round(&mut self, state: &State) -> (Plan, Report, Vec<Op>) {
        self.allocation.release(&self.observed, self.now);
        let (plan, report) = compile(state, &facts(), &options(), &mut self.allocation, self.now);
        let ops = diff(&self.observed, &plan);
        for op in &ops {
            self.observed.apply(op);
        }
        assert_eq!(
            diff(&self.observed, &plan),
            [],
            "applying twice does nothing"
        );
        self.observed.check_holds(&plan);
        (plan, report, ops)
    }

    fn restart(&mut self) {
        self.allocation = Allocation::restore(&self.observed, CAPACITY, self.now);
    }
}

impl Observed {
    fn check_holds(&self, plan: &Plan) {
        assert_eq!(self.settings, plan.settings);
        assert_eq!(self.objects, plan.objects);
        assert_eq!(self.backends, plan.backends);
        assert_eq!(self.devices, plan.devices);
        assert_eq!(self.addresses_v4, plan.addresses_v4);
        assert_eq!(self.addresses_v6, plan.addresses_v6);
        assert_eq!(self.sources_v4, plan.sources_v4);
        assert_eq!(self.sources_v6, plan.sources_v6);
        assert_eq!(self.services_v4, plan.services_v4);
        assert_eq!(self.services_v6, plan.services_v6);
        for (word, bits) in plan.filter.iter() {
            assert_eq!(self.filter.word(word) & bits, bits);
        }
        for (first, range) in &plan.slots {
            let count = u32::try_from(range.backends.len()).unwrap();
            assert_eq!(self.slots(*first, count), Some(&*range.backends));
        }
    }

    /// Where the endpoints behind a frontend are, by what the maps say.
    fn resolve_v4(&self, address: &str, port: u16, protocol: Protocol) -> Option<Vec<String>> {
        let IpAddr::V4(v4) = ip(address) else {
            panic!("not IPv4")
        };
        let key = proxy_common::abi::ServiceKey {
            address: v4.into(),
            port: proxy_common::wire::Be16::new(port),
            protocol: protocol.number(),
            pad: 0,
        };
        let service = self.services_v4.get(&key)?;
        let slots = self.slots(service.first_slot, service.slots).unwrap();
        let backends = slots.iter().map(|index| {
            let backend = self.backends[index];
            assert_eq!(backend.service, service.id);
            assert_ne!(backend.flags & backend_flag::SERVING, 0);
            let address = proxy_common::abi::Addr4::narrow(&backend.address).to_ip();
            format!("{address}:{}", backend.port.get())
        });
        Some(backends.collect())
    }
}

#[test]
fn a_whole_plan() {
    let mut web = service(
        "web",
        Protocol::Tcp,
        vec![
            at("10.96.0.10", 80, Reach::Cluster),
            at("203.0.113.10", 80, Reach::Everywhere),
            at("fd00:96::10", 80, Reach::Cluster),
            Frontend::NodePort {
                port: 30_080,
                v4: true,
                v6: true,
            },
        ],
        vec![endpoint("10.244.1.10", 8080), endpoint("10.244.2.10", 8080)],
    );
    web.endpoints[1].weight = 3;
    let mut world = World::new();
    let (plan, report, _) = world.round(&state([web]));
    assert_eq!(report, Report::default());
    let tcp = Protocol::Tcp;
    let expected = [
        "10.244.1.10:8080",
        "10.244.2.10:8080",
        "10.244.2.10:8080",
        "10.244.2.10:8080",
    ];
    for (address, port) in [
        ("10.96.0.10", 80),
        ("203.0.113.10", 80),
        ("192.0.2.11", 30_080),
    ] {
        let found = world.observed.resolve_v4(address, port, tcp);
        assert_eq!(found.unwrap(), expected, "{address}");
    }
    for (key, service) in &plan.services_v4 {
        let external = key.address.to_ip() != ip("10.96.0.10");
        let flags = if external { service_flag::EXTERNAL } else { 0 };
        assert_eq!(service.flags, flags, "{key:?}");
    }
    assert_eq!(plan.services_v4.len(), 3);
    let ports: BTreeSet<u16> = plan.services_v6.keys().map(|key| key.port.get()).collect();
    assert_eq!(ports, [80, 30_080].into());
    assert!(
        plan.services_v6.values().all(|service| service.slots == 0),
        "refused"
    );
    let own: BTreeMap<IpAddr, AddressFlags> = plan
        .addresses_v4
        .iter()
        .map(|(address, flags)| (address.to_ip(), *flags))
        .collect();
    let external = AddressFlags(address_flag::EXTERNAL);
    let expected = [
        (ip("10.96.0.10"), AddressFlags(0)),
        (ip("203.0.113.10"), external),
    ]
    .into();
    assert_eq!(own, expected, "never the node's own address");
    assert_eq!(plan.settings.port_min, 61_000);
    assert_eq!(plan.settings.port_count, 4_536);
    assert_eq!(
        plan.objects
            .values()
            .map(|name| &**name)
            .collect::<Vec<_>>(),
        ["default/web/TCP"]
    );
    let has = |kind, address: &str| {
        let (position, bit) = match ip(address) {
            IpAddr::V4(v4) => filter_position(kind, &proxy_common::abi::Addr4::from(v4)),
            IpAddr::V6(v6) => filter_position(kind, &proxy_common::abi::Addr6::from(v6)),
        };
        plan.filter.word(position) & bit != 0
    };
    for address in [
        "10.96.0.10",
        "203.0.113.10",
        "192.0.2.11",
        "2001:db8:2::11",
        "fd00:96::10",
    ] {
        assert!(has(FilterKind::Destination, address), "{address}");
    }
    for address in ["10.244.1.10", "10.244.2.10"] {
        assert!(has(FilterKind::Source, address), "{address}");
        assert!(!has(FilterKind::Destination, address), "{address}");
    }
    let bits: u32 = plan.filter.iter().map(|(_, bits)| bits.count_ones()).sum();
    assert_eq!(bits, 7);
}

#[test]
fn writes_in_an_order_that_is_safe_after_each_step() {
    let frontends = vec![at("10.96.0.10", 80, Reach::Cluster)];
    let endpoints = vec![endpoint("10.244.1.10", 8080)];
    let before = service("web", Protocol::Tcp, frontends.clone(), endpoints);
    let after = service(
        "web",
        Protocol::Tcp,
        frontends,
        vec![endpoint("10.244.1.11", 8080)],
    );
    let mut world = World::new();
    let names = |ops: &[Op]| -> Vec<String> {
        let name = |op: &Op| format!("{op:?}").split(' ').next().unwrap().to_owned();
        ops.iter()
            .map(name)
            .filter(|name| name != "WriteFilter")
            .collect()
    };
    let first = [
        "WriteBackend",
        "WriteSlots",
        "WriteObject",
        "WriteDevice",
        "WriteAddressV4",
        "WriteServiceV4",
        "WriteSettings",
    ];
    assert_eq!(names(&world.round(&state([before.clone()])).2), first);
    // The new backend and new slots, then the switch, then the old backend is given up.
    let (_, _, ops) = world.round(&state([after]));
    assert_eq!(
        names(&ops),
        [
            "WriteBackend",
            "WriteSlots",
            "WriteServiceV4",
            "WriteBackend"
        ]
    );
    let Some(Op::WriteBackend { backend, .. }) = ops.last() else {
        panic!("{ops:?}")
    };
    assert_eq!((backend.generation, backend.family), (2, 0));
    let (_, _, ops) = world.round(&state([]));
    let last = [
        "DeleteServiceV4",
        "DeleteAddressV4",
        "DeleteObject",
        "WriteBackend",
    ];
    assert_eq!(names(&ops), last);
}

#[test]
fn a_backend_that_stops_serving_keeps_its_generation_and_one_that_goes_does_not() {
    let frontends = || vec![at("10.96.0.10", 80, Reach::Cluster)];
    let web = |endpoints| state([service("web", Protocol::Tcp, frontends(), endpoints)]);
    let (a, b) = (endpoint("10.244.1.10", 8080), endpoint("10.244.1.11", 8080));
    let mut unready = a.clone();
    unready.ready = false;
    let mut world = World::new();
    world.round(&web(vec![a.clone(), b.clone()]));
    let index = 1;
    let record = |world: &World| world.observed.backends[&index];
    assert_eq!(
        (record(&world).generation, record(&world).flags),
        (1, backend_flag::SERVING | backend_flag::CLUSTER)
    );

    world.round(&web(vec![unready, b.clone()]));
    assert_eq!((record(&world).generation, record(&world).flags), (1, 0));
    let found = world.observed.resolve_v4("10.96.0.10", 80, Protocol::Tcp);
    assert_eq!(found.unwrap(), ["10.244.1.11:8080"]);

    world.round(&web(vec![b.clone()]));
    assert_eq!((record(&world).generation, record(&world).family), (2, 0));

    // Not given out again until it has rested, and then with another generation.
    world.round(&web(vec![b.clone(), endpoint("10.244.1.12", 8080)]));
    assert_eq!((record(&world).generation, record(&world).family), (2, 0));
    world.now += QUARANTINE;
    world.round(&web(vec![
        b,
        endpoint("10.244.1.12", 8080),
        endpoint("10.244.1.13", 8080),
    ]));
    assert_eq!((record(&world).generation, record(&world).family), (3, 4));
}

#[test]
fn slots_rest_before_they_are_used_again() {
    let web = |last: &str| {
        let frontends = vec![at("10.96.0.10", 80, Reach::Cluster)];
        let endpoints = vec![endpoint("10.244.1.10", 80), endpoint(last, 80)];
        state([service("web", Protocol::Tcp, frontends, endpoints)])
    };
    let first = |plan: &Plan| plan.services_v4.values().next().unwrap().first_slot;
    let mut world = World::new();
    let a = first(&world.round(&web("10.244.1.11")).0);
    let b = first(&world.round(&web("10.244.1.12")).0);
    assert_ne!(a, b);
    let c = first(&world.round(&web("10.244.1.13")).0);
    assert!(c != a && c != b);
    world.now += QUARANTINE;
    let d = first(&world.round(&web("10.244.1.14")).0);
    assert_eq!(d, a);
}

#[test]
fn slots_that_the_kernel_still_uses_are_not_given_out() {
    let web = |last: &str| {
        let frontends = vec![at("10.96.0.10", 80, Reach::Cluster)];
        state([service(
            "web",
            Protocol::Tcp,
            frontends,
            vec![endpoint(last, 80)],
        )])
    };
    let mut world = World::new();
    world.round(&web("10.244.1.11"));
    // The switch of the service fails: the old range stays in use.
    for _ in 0..3 {
        world.now += QUARANTINE * 2;
        world.allocation.release(&world.observed, world.now);
        let (plan, _) = compile(
            &web("10.244.1.12"),
            &facts(),
            &options(),
            &mut world.allocation,
            world.now,
        );
        for op in diff(&world.observed, &plan) {
            if !matches!(op, Op::WriteServiceV4 { .. }) {
                world.observed.apply(&op);
            }
        }
        let used = world.observed.services_v4.values().next().unwrap();
        let planned = plan.services_v4.values().next().unwrap();
        assert_ne!(used.first_slot, planned.first_slot);
        assert_eq!(world.observed.slots(used.first_slot, 1), Some(&[1][..]));
    }
}

#[test]
fn conflicts_go_to_the_oldest_then_to_the_first_name() {
    let claim = |name: &str, created, last: &str| {
        let frontends = vec![at("10.96.0.10", 80, Reach::Cluster)];
        let mut port = service(name, Protocol::Tcp, frontends, vec![endpoint(last, 80)]);
        port.created = created;
        port
    };
    let mut world = World::new();
    let both = state([claim("a", None, "10.1.0.1"), claim("b", None, "10.1.0.2")]);
    let (_, report, _) = world.round(&both);
    let found = world.observed.resolve_v4("10.96.0.10", 80, Protocol::Tcp);
    assert_eq!(found.unwrap(), ["10.1.0.1:80"]);
    let told: Vec<String> = report.notices.iter().map(ToString::to_string).collect();
    let expected = "error: Service default/b: spec.ports[0]: 10.96.0.10:80 TCP already belongs to \
                    default/a/TCP (Service default/a), which is older or comes first: not served \
                    here; give one of the two another address or port";
    assert_eq!(told, [expected]);
    world.round(&state([
        claim("a", Some(20), "10.1.0.1"),
        claim("b", Some(10), "10.1.0.2"),
    ]));
    let found = world.observed.resolve_v4("10.96.0.10", 80, Protocol::Tcp);
    assert_eq!(found.unwrap(), ["10.1.0.2:80"]);
}

#[test]
fn host_ports_of_one_address_come_before_those_of_all() {
    let host_port = |name: &str, address: &str, last: &str| {
        let frontends = vec![Frontend::HostPort {
            address: ip(address),
            port: 8080,
        }];
        service(name, Protocol::Tcp, frontends, vec![endpoint(last, 80)])
    };
    let mut world = World::new();
    world.round(&state([
        host_port("all", "0.0.0.0", "10.1.0.1"),
        host_port("one", "192.0.2.11", "10.1.0.2"),
    ]));
    let found = world.observed.resolve_v4("192.0.2.11", 8080, Protocol::Tcp);
    assert_eq!(found.unwrap(), ["10.1.0.2:80"]);
    world.round(&state([host_port("all", "0.0.0.0", "10.1.0.1")]));
    let found = world.observed.resolve_v4("192.0.2.11", 8080, Protocol::Tcp);
    assert_eq!(found.unwrap(), ["10.1.0.1:80"]);
}

#[test]
fn sctp_is_served_only_without_port_translation() {
    let frontends = vec![
        at("10.96.0.10", 38_412, Reach::Cluster),
        Frontend::NodePort {
            port: 30_412,
            v4: true,
            v6: false,
        },
    ];
    let amf = service(
        "amf",
        Protocol::Sctp,
        frontends,
        vec![endpoint("10.1.0.1", 38_412)],
    );
    let mut world = World::new();
    let (plan, report, _) = world.round(&state([amf]));
    assert_eq!(plan.services_v4.len(), 1);
    assert_eq!(report.notices.len(), 1);
    assert!(
        report.notices[0]
            .to_string()
            .contains("port 30412 of 192.0.2.11"),
        "{report:?}"
    );
}

#[test]
fn full_tables_are_told_and_leave_the_rest_alone() {
    let endpoints = |n: u8| {
        (0..n)
            .map(|i| endpoint(&format!("10.1.0.{i}"), 80))
            .collect()
    };
    let mut port = service(
        "web",
        Protocol::Tcp,
        vec![at("10.96.0.10", 80, Reach::Cluster)],
        endpoints(200),
    );
    let mut world = World::new();
    let (plan, report, _) = world.round(&state([port.clone()]));
    assert!(report.exhausted);
    assert_eq!(report.notices.len(), 72);
    assert_eq!(plan.services_v4.values().next().unwrap().slots, 128);

    // No room for Maglev's table: at random instead.
    port.algorithm = Some(Algorithm::Maglev);
    let (plan, report, _) = world.round(&state([port]));
    assert!(report.exhausted);
    assert_eq!(plan.services_v4.values().next().unwrap().slots, 128);
}

#[test]
fn what_relies_on_a_failed_operation_waits() {
    let op = |id| Op::WriteSlots {
        service: id,
        first: 0,
        backends: Arc::from([0]),
    };
    let mut round = Round::default();
    round.fail(&op(7));
    assert!(round.must_wait(&Op::DeleteObject { id: 7 }));
    assert!(!round.must_wait(&Op::DeleteObject { id: 8 }));
    assert!(!round.must_wait(&Op::DeleteTxPort { ifindex: 7 }));
}

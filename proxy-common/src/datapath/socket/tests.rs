use core::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::*;
use crate::abi::{
    Addr4, Addr6, AddressFlags, Affinity, Device, DeviceKey, Flow, FlowKey, Settings, SourceKey,
    V4, V6, backend_flag,
};
use crate::datapath::tables::{FamilyTables, Insertion, Tables};
use crate::datapath::{Draft, Hop, RouteQuery};
use crate::wire::Be16;

const NODE: u64 = 7;
const SERVICE: u32 = 3;

/// Records of one service with three backends, the last of which is on this node.
struct Records<F: Family> {
    services: BTreeMap<ServiceKey<F>, Service>,
    backends: Vec<Backend>,
    filtered: bool,
    tick: Cell<u32>,
    peers: RefCell<BTreeMap<PeerKey<F>, Peer<F>>>,
    kept: RefCell<BTreeMap<AffinityKey<F>, Affinity>>,
    counted: RefCell<BTreeMap<u32, u64>>,
    full: bool,
}

fn place<F: Family>(last: u8, port: u16) -> Peer<F> {
    let (v4, v6) = (Addr4::from_bytes([10, 0, 0, last]), {
        let mut bytes = [0; 16];
        (bytes[0], bytes[15]) = (0xfd, last);
        Addr6::from_bytes(bytes)
    });
    let wide = if F::IS_V6 { v6.widen() } else { v4.widen() };
    Peer::new(F::Addr::narrow(&wide), Be16::new(port))
}

fn loopback<F: Family>() -> F::Addr {
    let wide = if F::IS_V6 {
        Addr6::from(core::net::Ipv6Addr::LOCALHOST).widen()
    } else {
        Addr4::from_bytes([127, 1, 2, 3]).widen()
    };
    F::Addr::narrow(&wide)
}

fn key<F: Family>(asked: &Peer<F>, protocol: u8) -> ServiceKey<F> {
    ServiceKey {
        address: asked.address,
        port: asked.port,
        protocol,
        pad: 0,
    }
}

impl<F: Family> Records<F> {
    fn serving(asked: Peer<F>, protocol: u8, change: impl FnOnce(&mut Service)) -> Self {
        let mut service = Service {
            id: SERVICE,
            first_slot: 0,
            slots: 3,
            first_local: 2,
            local_slots: 1,
            ..Service::default()
        };
        change(&mut service);
        let backend = |last: u8| Backend {
            generation: 1,
            service: SERVICE,
            address: place::<F>(100 + last, 8080).address.widen(),
            port: Be16::new(8080),
            flags: backend_flag::SERVING | backend_flag::CLUSTER | backend_flag::LOCAL,
            protocol,
            ..Backend::default()
        };
        Self {
            services: BTreeMap::from([(key(&asked, protocol), service)]),
            backends: (0..3).map(backend).collect(),
            filtered: true,
            tick: Cell::new(1),
            peers: RefCell::default(),
            kept: RefCell::default(),
            counted: RefCell::default(),
            full: false,
        }
    }
}

impl<F: Family> Tables for Records<F> {
    fn tick(&self) -> u32 {
        self.tick.get()
    }

    fn clock(&self) -> u64 {
        u64::from(self.tick.get()) * 1_000_000_000
    }

    fn count(&self, index: u32, _: u64) {
        *self.counted.borrow_mut().entry(index).or_default() += 1;
    }

    fn settings(&self) -> Option<Settings> {
        Some(Settings {
            seed: 11,
            ..Settings::default()
        })
    }

    fn device(&self, _: &DeviceKey) -> Option<Device> {
        None
    }

    fn slot(&self, index: u32) -> Option<u32> {
        (index < 3).then_some(index)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.backends.get(index as usize).copied()
    }
}

impl<F: Family> FamilyTables<F> for Records<F> {
    type FlowRef<'t> = &'t mut Flow<F>;
    type DraftRef<'t> = &'t mut Draft<F>;

    fn may_be_ours(&self, _: FilterKind, _: &F::Addr) -> bool {
        self.filtered
    }

    fn flow(&self, _: &FlowKey<F>) -> Option<&mut Flow<F>> {
        None
    }

    fn insert_flow(&self, _: &FlowKey<F>, _: &Flow<F>) -> Insertion {
        Insertion::Full
    }

    fn remove_flow(&self, _: &FlowKey<F>) {}

    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn admits(&self, _: &SourceKey<F>) -> bool {
        true
    }

    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        self.kept.borrow().get(key).copied()
    }

    fn keep(&self, key: &AffinityKey<F>, affinity: &Affinity) {
        self.kept.borrow_mut().insert(*key, *affinity);
    }

    fn address(&self, _: &F::Addr) -> Option<AddressFlags> {
        None
    }

    fn route(&self, _: &RouteQuery<'_, F>, _: &mut Hop) {}

    fn draft(&self) -> Option<&mut Draft<F>> {
        None
    }
}

impl<F: Family> SocketTables<F> for Records<F> {
    fn peer(&self, key: &PeerKey<F>) -> Option<Peer<F>> {
        self.peers.borrow().get(key).copied()
    }

    fn remember(&self, key: &PeerKey<F>, asked: &Peer<F>) -> bool {
        if !self.full {
            self.peers.borrow_mut().insert(*key, *asked);
        }
        !self.full
    }
}

fn opening<F: Family>(asked: Peer<F>, cookie: u64) -> Opening<F> {
    Opening {
        asked,
        protocol: protocol::TCP,
        cookie,
        network: NODE,
        on_node: true,
        bound: false,
        connects: true,
    }
}

/// The backends that a hundred sockets meet.
fn met<F: Family>(
    records: &Records<F>,
    asked: Peer<F>,
    change: impl Fn(&mut Opening<F>),
) -> BTreeSet<Option<Peer<F>>> {
    let sockets = (1..=100).map(|cookie| {
        let mut socket = opening(asked, cookie);
        change(&mut socket);
        translate(&socket, records)
    });
    sockets.collect()
}

fn backends<F: Family>(which: &[u8]) -> BTreeSet<Option<Peer<F>>> {
    let place = |last: &u8| Some(place(100 + last, 8080));
    which.iter().map(place).collect()
}

fn nowhere<F: Family>() -> BTreeSet<Option<Peer<F>>> {
    BTreeSet::from([None])
}

/// Runs a case for both families.
macro_rules! both {
    ($case:ident) => {{
        $case::<V4>();
        $case::<V6>();
    }};
}

#[test]
fn a_socket_is_led_where_a_packet_would_be() {
    type Change<T> = fn(&mut T);
    fn case<F: Family>() {
        let asked = place::<F>(1, 80);
        // What the service is, what the socket is, and whom a hundred of them meet.
        let rows: [(Change<Service>, &[u8]); 7] = [
            (|_| {}, &[0, 1, 2]),
            (|s| s.flags = service_flag::EXTERNAL, &[0, 1, 2]),
            (|s| s.flags = service_flag::LOCAL, &[2]),
            // This node's own may leave the node, as if they came in at another one.
            (
                |s| s.flags = service_flag::LOCAL | service_flag::EXTERNAL,
                &[0, 1, 2],
            ),
            (|s| s.flags = service_flag::RESTRICTED, &[]),
            (|s| s.slots = 0, &[]),
            (|s| (s.flags, s.local_slots) = (service_flag::LOCAL, 0), &[]),
        ];
        for (row, (change, expected)) in rows.into_iter().enumerate() {
            let records = Records::serving(asked, protocol::TCP, change);
            let expected = if expected.is_empty() {
                nowhere()
            } else {
                backends(expected)
            };
            assert_eq!(met(&records, asked, |_| {}), expected, "row {row}");
        }
    }
    both!(case);
}

#[test]
fn what_is_none_of_ours_is_left_alone() {
    fn case<F: Family>() {
        let asked = place::<F>(1, 80);
        let mut records = Records::serving(asked, protocol::TCP, |_| {});
        assert_eq!(met(&records, place(1, 81), |_| {}), nowhere());
        assert_eq!(met(&records, place(2, 80), |_| {}), nowhere());
        assert_eq!(
            met(&records, asked, |s| s.protocol = protocol::UDP),
            nowhere()
        );
        assert_eq!(met(&records, asked, |s| s.bound = true), nowhere());
        // Pods' sockets come here if they are to be led.
        assert_eq!(met(&records, asked, |s| s.on_node = false).len(), 3);
        records.filtered = false;
        assert_eq!(met(&records, asked, |_| {}), nowhere());
        assert!(records.peers.borrow().len() <= 100 * 3);
        let sctp = Records::serving(asked, protocol::SCTP, |_| {});
        assert_eq!(
            met(&sctp, asked, |s| s.protocol = protocol::SCTP),
            nowhere()
        );
    }
    both!(case);
}

#[test]
fn what_cannot_be_noted_is_left_to_tc() {
    let asked = place::<V4>(1, 80);
    let mut records = Records::serving(asked, protocol::TCP, |_| {});
    records.full = true;
    assert_eq!(met(&records, asked, |_| {}), nowhere());
    assert!(records.counted.borrow().is_empty());
}

#[test]
fn a_backend_of_another_service_is_not_met() {
    let asked = place::<V4>(1, 80);
    let mut records = Records::serving(asked, protocol::TCP, |_| {});
    for backend in &mut records.backends {
        backend.service += 1;
    }
    assert_eq!(met(&records, asked, |_| {}), nowhere());
}

#[test]
fn loopback_addresses_are_the_nodes_alone() {
    fn case<F: Family>() {
        let own = Peer::<F>::new(loopback::<F>(), Be16::new(80));
        let any = Peer::<F>::new(F::Addr::default(), Be16::new(80));
        // Served at that very address, or in its place.
        for served in [own, any] {
            let records = Records::serving(served, protocol::TCP, |_| {});
            assert_eq!(met(&records, own, |_| {}).len(), 3);
            assert_eq!(met(&records, served, |_| {}).len(), 3);
            for asked in [own, any] {
                assert_eq!(met(&records, asked, |s| s.on_node = false), nowhere());
            }
        }
        // What is served at any other address is not served at a loopback address.
        let records = Records::serving(place(1, 80), protocol::TCP, |_| {});
        assert_eq!(met(&records, own, |_| {}), nowhere());
    }
    both!(case);
}

#[test]
fn a_socket_is_told_whom_it_asked_for() {
    fn case<F: Family>() {
        let asked = place::<F>(1, 80);
        let records = Records::serving(asked, protocol::TCP, |_| {});
        let met = translate(&opening(asked, 5), &records).unwrap();
        assert_eq!(restore(5, &met, &records), Some(asked));
        assert_eq!(restore_sender(5, &met, &records), Some(asked));
        assert_eq!(restore(6, &met, &records), None);
        assert_eq!(restore(5, &asked, &records), None);
    }
    both!(case);
}

#[test]
fn datagrams_of_a_socket_stay_together() {
    let asked = place::<V4>(1, 53);
    let records = Records::serving(asked, protocol::UDP, |_| {});
    let mut all = BTreeSet::new();
    for cookie in 1..=50 {
        let mut met = BTreeSet::new();
        for tick in 1..=20 {
            records.tick.set(tick);
            let socket = Opening {
                protocol: protocol::UDP,
                connects: false,
                ..opening(asked, cookie)
            };
            met.insert(translate(&socket, &records).unwrap());
        }
        assert_eq!(met.len(), 1, "socket {cookie}");
        all.extend(met);
    }
    assert_eq!(all.len(), 3);
    let counted = records.counted.borrow();
    assert_eq!(
        *counted,
        BTreeMap::from([(Event::DatagramLed as u32, 1_000)])
    );
}

#[test]
fn random_choices_follow_the_time_and_tables_do_not() {
    let asked = place::<V4>(1, 80);
    for (flags, several) in [(0, true), (service_flag::MAGLEV, false)] {
        let records = Records::serving(asked, protocol::TCP, |s| s.flags = flags);
        let met: BTreeSet<_> = (1..=50)
            .map(|tick| {
                records.tick.set(tick);
                translate(&opening(asked, 9), &records)
            })
            .collect();
        assert_eq!(met.len() > 1, several);
    }
}

#[test]
fn a_network_namespace_is_kept_with_a_backend() {
    fn case<F: Family>() {
        let asked = place::<F>(1, 80);
        let mut records = Records::serving(asked, protocol::TCP, |s| s.affinity = 10);
        assert_eq!(met(&records, asked, |_| {}).len(), 1);
        // Each namespace is a client.
        let all: BTreeSet<_> = (1..=50)
            .map(|network| {
                let socket = Opening {
                    network,
                    ..opening(asked, 1)
                };
                records.tick.set(u32::try_from(network).unwrap());
                translate(&socket, &records)
            })
            .collect();
        assert_eq!(all.len(), 3);
        // What one is kept with is given up with the backend, and after the time.
        for backend in &mut records.backends {
            backend.generation += 1;
        }
        assert_eq!(met(&records, asked, |_| {}).len(), 1);
        let sockets = (0..50_u32).map(|round| {
            records.tick.set(100 + 20 * round);
            translate(&opening(asked, u64::from(round)), &records)
        });
        assert_eq!(sockets.collect::<BTreeSet<_>>().len(), 3);
    }
    both!(case);
}

#[test]
fn ipv4_in_an_ipv6_socket_is_known() {
    let mapped: core::net::Ipv6Addr = "::ffff:10.96.0.1".parse().unwrap();
    let address = Addr4::from_bytes([10, 96, 0, 1]);
    assert_eq!(Addr6::from(mapped).mapped(), Some(address));
    for other in ["::10.96.0.1", "64:ff9b::10.96.0.1", "fd00::1", "::"] {
        let other: core::net::Ipv6Addr = other.parse().unwrap();
        assert_eq!(Addr6::from(other).mapped(), None);
    }
}

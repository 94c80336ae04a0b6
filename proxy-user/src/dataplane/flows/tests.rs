//! What is over and what is not, in every phase and around every time-out.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;
use proxy_common::abi::{Addr4, FilterKind, V4, filter_position};
use proxy_common::wire::Be16;

use super::totals::Sum;
use super::*;

const CLOCK: Clock = Clock { hz: 256 };

type Key = FlowKey<V4>;
type Entry = (Key, Flow<V4>);

fn timeouts() -> FlowTimeouts {
    FlowTimeouts {
        tcp_new: Duration::from_secs(20),
        tcp_established: Duration::from_hours(2),
        tcp_half_closed: Duration::from_secs(30),
        tcp_closed: Duration::from_secs(10),
        udp_new: Duration::from_secs(30),
        udp_established: Duration::from_mins(3),
    }
}

fn rules(now: u32) -> Rules {
    Rules {
        timeouts: timeouts(),
        clock: CLOCK,
        now,
    }
}

/// Both entries of a connection of client `client`, through a service to a pod.
fn pair(client: u16, protocol: u8, states: [u8; 2], seen: [u32; 2]) -> [Entry; 2] {
    let port = Be16::new;
    let source = Addr4::from_bytes([192, 0, 2, 1]);
    let service = Addr4::from_bytes([10, 96, 0, 1]);
    let pod = Addr4::from_bytes([10, 1, 0, 7]);
    let forward = Key {
        source,
        destination: service,
        source_port: port(client),
        destination_port: port(80),
        protocol,
        pad: [0; 3],
    };
    let back = Key {
        source: pod,
        destination: source,
        source_port: port(8_080),
        destination_port: port(client),
        protocol,
        pad: [0; 3],
    };
    let original = Flow {
        packets: 3,
        bytes: 300,
        last_seen: seen[0],
        backend: 5,
        generation: 2,
        service: 9,
        source,
        destination: pod,
        source_port: port(client),
        destination_port: port(8_080),
        state: states[0] | flow_state::ORIGINAL,
        ..Flow::default()
    };
    let answering = Flow {
        packets: 2,
        bytes: 2_000,
        last_seen: seen[1],
        source: service,
        destination: source,
        source_port: port(80),
        destination_port: port(client),
        state: states[1],
        ..original
    };
    [(forward, original), (back, answering)]
}

fn over(entries: &[Entry], rules: &Rules, alive: bool) -> Examined<V4> {
    let table: HashMap<_, _> = entries.iter().copied().collect();
    examine(
        &table,
        rules,
        |_, _| alive,
        &mut FilterWords::default(),
        |_, _| (),
    )
}

/// At which age in seconds (a tick of this clock) a connection is over.
fn lifetime(protocol: u8, states: [u8; 2], alive: bool) -> u32 {
    let entries = pair(1, protocol, states, [1_000, 990]);
    let ends = (1_000..100_000).find(|now| !over(&entries, &rules(*now), alive).over.is_empty());
    ends.unwrap() - 1_000
}

#[test]
fn each_phase_has_its_time_out() {
    use flow_state::{FIN, PEER_FIN, RST, SEEN};
    let tcp = |original, answering| lifetime(protocol::TCP, [original, answering], true);
    assert_eq!(tcp(SEEN, 0), 20);
    assert_eq!(tcp(SEEN, SEEN), 7_200);
    assert_eq!(tcp(SEEN | FIN, SEEN | PEER_FIN), 30);
    assert_eq!(tcp(SEEN | PEER_FIN, SEEN | FIN), 30);
    // The other entry may not have been told.
    assert_eq!(tcp(SEEN | FIN, SEEN | FIN), 10);
    assert_eq!(tcp(SEEN | FIN | PEER_FIN, SEEN), 10);
    assert_eq!(tcp(SEEN | RST, SEEN), 10);
    assert_eq!(tcp(SEEN, SEEN | RST), 10);
    assert_eq!(lifetime(protocol::UDP, [SEEN, 0], true), 30);
    assert_eq!(lifetime(protocol::UDP, [SEEN, SEEN], true), 180);
    assert_eq!(lifetime(protocol::SCTP, [SEEN, 0], true), 30);
    assert_eq!(lifetime(protocol::SCTP, [SEEN, SEEN], true), 180);
    // A backend that is gone ends everything.
    assert_eq!(lifetime(protocol::TCP, [SEEN, SEEN], false), 10);
    assert_eq!(lifetime(protocol::UDP, [SEEN, SEEN], false), 10);
}

#[test]
fn either_direction_keeps_a_connection() {
    use flow_state::SEEN;
    for seen in [[1_000, 1_150], [1_150, 1_000]] {
        let entries = pair(1, protocol::UDP, [SEEN, SEEN], seen);
        assert_eq!(over(&entries, &rules(1_329), true).over.len(), 0);
        assert_eq!(over(&entries, &rules(1_330), true).over.len(), 1);
    }
}

#[test]
fn halves_go_after_a_moment() {
    let [original, answering] = pair(
        1,
        protocol::TCP,
        [flow_state::SEEN, flow_state::SEEN],
        [1_000, 1_000],
    );
    for (entries, orphans) in [([original], 0), ([answering], 1)] {
        let young = over(&entries, &rules(1_004), true);
        assert_eq!((young.over.len(), young.orphans.len()), (0, 0));
        let old = over(&entries, &rules(1_005), true);
        assert_eq!(
            (old.over.len() + old.orphans.len(), old.orphans.len()),
            (1, orphans)
        );
    }
}

#[test]
fn time_wraps_around_and_may_be_read_early() {
    let seen = u32::MAX - 2;
    let entries = pair(1, protocol::UDP, [flow_state::SEEN, 0], [seen, seen]);
    // Thirty ticks later, on the other side of zero.
    assert_eq!(
        over(&entries, &rules(seen.wrapping_add(29)), true)
            .over
            .len(),
        0
    );
    assert_eq!(
        over(&entries, &rules(seen.wrapping_add(30)), true)
            .over
            .len(),
        1
    );
    // A stamp from after the clock was read.
    assert_eq!(
        over(&entries, &rules(seen.wrapping_sub(1)), true)
            .over
            .len(),
        0
    );
}

#[test]
fn a_tick_is_256_jiffies() {
    assert_eq!(Clock { hz: 250 }.duration(1), Duration::from_millis(1_024));
    assert_eq!(
        Clock { hz: 1_000 }.duration(1_000),
        Duration::from_secs(256)
    );
    assert_eq!(Clock { hz: 100 }.age(5, 6), Duration::from_millis(2_560));
}

#[test]
fn pressure_sheds_what_costs_least_first() {
    assert_eq!(Pressure::of(74, 100), Pressure::Normal);
    assert_eq!(Pressure::of(75, 100), Pressure::High);
    assert_eq!(Pressure::of(90, 100), Pressure::Critical);
    let high = under_pressure(timeouts(), Pressure::High);
    assert_eq!(high.tcp_closed, Duration::from_millis(2_500));
    assert_eq!(high.udp_established, timeouts().udp_established);
    let critical = under_pressure(timeouts(), Pressure::Critical);
    assert_eq!(critical.udp_established, Duration::from_secs(45));
    assert_eq!(critical.tcp_established, timeouts().tcp_established);
}

#[test]
fn totals_go_on_when_connections_end() {
    let mut totals = Totals::default();
    let [original, answering] = pair(1, protocol::TCP, [1, 1], [1, 1]);
    let connection = Connection {
        original,
        answering: Some(answering),
    };
    let mut sum = Sum::default();
    sum.add(&connection);
    sum.add(&connection);
    totals.take(sum);
    let usage = totals.services[&9];
    assert_eq!((usage.live, usage.connections), (2, 2));
    let carried = Carried {
        packets_in: 6,
        bytes_in: 600,
        packets_out: 4,
        bytes_out: 4_000,
    };
    assert_eq!(usage.carried, carried);
    assert_eq!(totals.backends[&(5, 2)], usage);
    // One ends with one more packet, the other goes on.
    let mut last = connection;
    last.original.1.packets += 1;
    totals.end(&last);
    let mut sum = Sum::default();
    sum.add(&connection);
    totals.take(sum);
    let usage = totals.services[&9];
    assert_eq!(
        (usage.live, usage.connections, usage.carried.packets_in),
        (1, 2, 7)
    );
    // An entry made anew from zero does not set the totals back.
    totals.take(Sum::default());
    assert_eq!(totals.services[&9].carried.packets_in, 7);
    assert_eq!(totals.services[&9].live, 0);
    totals.retain(|id| id != 9, |_, _| false);
    assert!(totals.services.is_empty() && totals.backends.is_empty());
}

/// Entries of connections in any state; some have lost a half.
fn tables() -> impl Strategy<Value = Vec<Entry>> {
    let protocol = prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::SCTP]);
    let one = (
        any::<u16>(),
        protocol,
        any::<[u8; 2]>(),
        any::<[u16; 2]>(),
        0..8_u8,
    );
    prop::collection::vec(one, 0..60).prop_map(|connections| {
        let mut ports = BTreeSet::new();
        let mut entries = Vec::new();
        for (port, protocol, states, seen, halves) in connections {
            if !ports.insert(port) {
                continue;
            }
            let states = states.map(|state| state & !flow_state::ORIGINAL);
            let [a, b] = pair(port, protocol, states, seen.map(u32::from));
            match halves {
                0 => entries.push(a),
                1 => entries.push(b),
                _ => entries.extend([a, b]),
            }
        }
        entries
    })
}

proptest! {
    /// Nothing is left half, nothing is said twice, and what stays is found by the filter.
    #[test]
    fn connections_go_and_stay_whole(entries in tables(), now in 0_u32..200_000, alive: bool) {
        let table: HashMap<_, _> = entries.iter().copied().collect();
        let mut filter = FilterWords::default();
        let mut told = 0;
        let examined =
            examine(&table, &rules(now), |_, _| alive, &mut filter, |_, _| told += 1);
        prop_assert_eq!(told, examined.live + examined.over.len());
        let mut gone = BTreeSet::new();
        for connection in &examined.over {
            prop_assert!(gone.insert(connection.original.0));
            if let Some((key, _)) = connection.answering {
                prop_assert!(gone.insert(key));
            }
        }
        for (key, _) in &examined.orphans {
            prop_assert!(gone.insert(*key));
        }
        for (key, flow) in &table {
            let peer = flow.peer_key(key.protocol);
            if table.contains_key(&peer) {
                prop_assert_eq!(gone.contains(key), gone.contains(&peer));
            }
            if !gone.contains(key) {
                let (word, bit) = if flow.state & flow_state::ORIGINAL == 0 {
                    filter_position(FilterKind::Source, &key.source)
                } else {
                    filter_position(FilterKind::Destination, &key.destination)
                };
                prop_assert!(filter.word(word) & bit != 0);
            }
        }
    }

    /// What is over stays over as time goes on without packets.
    #[test]
    fn the_end_is_final(entries in tables(), now in 70_000_u32..100_000, later in 0_u32..50_000) {
        let first = over(&entries, &rules(now), true);
        let then = over(&entries, &rules(now + later), true);
        let keys = |examined: &Examined<V4>| -> BTreeSet<Key> {
            examined.over.iter().map(|connection| connection.original.0).collect()
        };
        prop_assert!(keys(&first).is_subset(&keys(&then)));
    }
}

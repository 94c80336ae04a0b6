//! Drawing at random: each rule of Services, and each that meets another, often enough.

use crate::{differential::Random, lab::layout::Family};

use super::{
    Endpoint, External, Foreign, Kind, LAYOUT, Port, Protocol, SERVED, Scenario, Service, Slice,
    pods,
};

/// Services of a seed, without twins.
const SERVICES: u8 = 18;

/// Most endpoints of a service: few, so that a few questions meet all of them.
pub(super) const MOST_ENDPOINTS: u32 = 3;

/// Who may be in a service's ranges: a client, all of them, pods of a node, nodes, and both families.
const RANGES: [&[&str]; 6] = [
    &["198.51.100.10/32"],
    &["198.51.100.0/24", "2001:db8:51::/64"],
    &["10.244.1.0/24", "fd00:244:1::/64"],
    &["192.0.2.0/24", "2001:db8:2::/64"],
    &["2001:db8:51::10/128"],
    &["0.0.0.0/0"],
];

pub(super) fn scenario(seed: u64, random: &mut Random) -> Scenario {
    let zone = |letter: char| Some(format!("z{seed}{letter}"));
    let zones = match random.below(8) {
        0 => [zone('a'), None],
        1 => [zone('a'), zone('a')],
        _ => [zone('a'), zone('b')],
    };
    let mut scenario = Scenario {
        seed,
        zones,
        services: Vec::new(),
    };
    let round = scenario.round();
    let mut number = 0;
    for _ in 0..SERVICES {
        number += 1;
        let mut service = service(number, round, &scenario.zones, random);
        if service.affinity.is_some() {
            number += 1;
            let twin = twin(&service, number, round);
            service.twin = Some(twin.name.clone());
            scenario.services.push(twin);
        }
        scenario.services.push(service);
    }
    scenario
}

fn service(number: u8, round: u8, zones: &[Option<String>; 2], random: &mut Random) -> Service {
    let kind = random.pick([
        Kind::ClusterIp,
        Kind::ClusterIp,
        Kind::NodePort,
        Kind::LoadBalancer,
        Kind::LoadBalancer,
    ]);
    let external = random.chance(1, 4).then(|| {
        if random.chance(1, 6) {
            External::Elsewhere
        } else {
            External::Allowed
        }
    });
    let outside = kind != Kind::ClusterIp || external.is_some();
    let balanced = kind == Kind::LoadBalancer;
    let families = match random.below(4) {
        0 => vec![Family::V4],
        1 => vec![Family::V6],
        2 => vec![Family::V4, Family::V6],
        _ => vec![Family::V6, Family::V4],
    };
    let external_local = outside && random.chance(4, 10);
    let name = format!("s{number}");
    let ports = ports(number, round, random);
    let slices = families
        .iter()
        .flat_map(|family| slices(&name, *family, &ports, zones, random))
        .collect();
    Service {
        name,
        number,
        kind,
        families,
        internal_local: random.chance(3, 10),
        external_local,
        affinity: random.chance(1, 5).then(|| 60 + random.below(10_000)),
        twin: None,
        publish_not_ready: random.chance(1, 10),
        ranges: if balanced && random.chance(1, 3) {
            random
                .pick(RANGES)
                .iter()
                .map(|range| (*range).to_owned())
                .collect()
        } else {
            Vec::new()
        },
        external,
        ip_mode_proxy: balanced && random.chance(1, 8),
        health_port: (balanced && external_local).then(|| node_port(number, round, 1) + 1),
        node_ports: !balanced || !random.chance(1, 6),
        foreign: match random.below(24) {
            0 => Some(Foreign::ProxyName),
            1 => Some(Foreign::Headless),
            _ => None,
        },
        ports,
        slices,
    }
}

/// The same service under another name and at other addresses, without affinity: it shows all that
/// the one with affinity may choose from.
fn twin(service: &Service, number: u8, round: u8) -> Service {
    let mut twin = service.clone();
    twin.name = format!("s{number}");
    twin.number = number;
    twin.affinity = None;
    for (place, port) in twin.ports.iter_mut().enumerate() {
        port.node_port = node_port(number, round, place);
    }
    twin.health_port = service.health_port.map(|_| node_port(number, round, 1) + 1);
    for (place, slice) in twin.slices.iter_mut().enumerate() {
        slice.name = format!("{}-{}-{place}", twin.name, slice.family.word());
    }
    twin
}

/// In the API server's range, above what it hands out last; others than in the 15 rounds before.
fn node_port(number: u8, round: u8, place: usize) -> u16 {
    let base = 30_100 + u16::from(round % 16) * 160;
    base + u16::from(number) * 3 + u16::from(place != 0)
}

fn ports(number: u8, round: u8, random: &mut Random) -> Vec<Port> {
    let port = |place, name, protocol, number_of_port| Port {
        name,
        protocol,
        number: number_of_port,
        node_port: node_port(number, round, place),
    };
    let protocols = [Protocol::Tcp, Protocol::Udp];
    match random.below(4) {
        // One number for both protocols.
        0 => vec![
            port(0, "a", Protocol::Tcp, 53),
            port(1, "b", Protocol::Udp, 53),
        ],
        1 => vec![
            port(0, "a", random.pick(protocols), 80),
            port(1, "b", random.pick(protocols), 81),
        ],
        2 => vec![port(0, "", random.pick(protocols), 443)],
        _ => vec![port(0, "a", random.pick(protocols), 8080)],
    }
}

/// How topology hints are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hinted {
    No,
    Zones,
    Nodes,
    /// Some endpoints have none.
    Partly,
}

fn slices(
    service: &str,
    family: Family,
    ports: &[Port],
    zones: &[Option<String>; 2],
    random: &mut Random,
) -> Vec<Slice> {
    let count = match random.below(10) {
        0 => 0,
        1..=6 => 1,
        _ => 2,
    };
    let hinted = match random.below(10) {
        0..=5 => Hinted::No,
        6 | 7 => Hinted::Zones,
        8 => Hinted::Nodes,
        _ => Hinted::Partly,
    };
    let mut left: Vec<u8> = pods().into();
    let mut room = random.below(MOST_ENDPOINTS + 1);
    let mut made: Vec<Slice> = Vec::new();
    for place in 0..count {
        let here = if place + 1 == count {
            room
        } else {
            random.below(room + 1)
        };
        room -= here;
        let mut endpoints: Vec<Endpoint> = (0..here)
            .filter_map(|_| {
                let chosen = random.below(u32::try_from(left.len()).ok()?) as usize;
                Some(endpoint(left.swap_remove(chosen), hinted, zones, random))
            })
            .collect();
        // While endpoints move between slices, one may be in two.
        if let Some(other) = made.last()
            && random.chance(1, 4)
        {
            endpoints.extend(other.endpoints.first().cloned());
        }
        made.push(Slice {
            name: format!("{service}-{}-{place}", family.word()),
            family,
            ports: slice_ports(ports, random),
            endpoints,
        });
    }
    made
}

fn slice_ports(ports: &[Port], random: &mut Random) -> Vec<(&'static str, Protocol, Option<u16>)> {
    ports
        .iter()
        .filter_map(|port| {
            let target = match random.below(16) {
                // No such port in this slice, or one without a number.
                0 => return None,
                1 => None,
                _ => Some(random.pick(SERVED)),
            };
            Some((port.name, port.protocol, target))
        })
        .collect()
}

fn endpoint(pod: u8, hinted: Hinted, zones: &[Option<String>; 2], random: &mut Random) -> Endpoint {
    let (ready, serving, terminating) = match random.below(20) {
        0..=10 => (Some(true), Some(true), Some(false)),
        11 => (None, None, None),
        12..=14 => (Some(false), Some(true), Some(true)),
        15 | 16 => (Some(false), Some(false), Some(false)),
        17 => (Some(false), Some(false), Some(true)),
        // As `publishNotReadyAddresses` has it.
        18 => (Some(true), Some(true), Some(true)),
        _ => (Some(false), None, None),
    };
    let node = LAYOUT.node_of(pod);
    let with = match hinted {
        Hinted::Partly => random.chance(1, 2),
        Hinted::Zones | Hinted::Nodes => true,
        Hinted::No => false,
    };
    let other = random.chance(1, 5);
    let place = usize::from((node == 1) == other);
    let zone = zones.get(place).cloned().flatten();
    let hint_nodes = hinted == Hinted::Nodes;
    Endpoint {
        pod,
        ready,
        serving,
        terminating,
        has_node: !random.chance(1, 20),
        zones: if with && !hint_nodes {
            vec![zone.unwrap_or_else(|| "elsewhere".to_owned())]
        } else {
            Vec::new()
        },
        nodes: if with && hint_nodes {
            vec![format!("node{}", place + 1)]
        } else {
            Vec::new()
        },
    }
}

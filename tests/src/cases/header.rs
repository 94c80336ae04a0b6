//! Frames of every shape: options, extension headers, tags, checksums, truncation.

use super::{Entry, Net, both, connection, only, tcp_connection};
use crate::case::place::{Host, Next, Version, device};
use crate::case::world::{CLAIMED, Reach, TICK, tags};
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, number};

pub(super) const CASES: &[Entry] = &[
    only(Version::V4, "options_are_kept", options),
    only(Version::V6, "one_extension_header", |net| {
        extensions(net, 1)
    }),
    only(Version::V6, "two_extension_headers", |net| {
        extensions(net, 2)
    }),
    only(Version::V6, "three_extension_headers", |net| {
        extensions(net, 3)
    }),
    only(Version::V6, "four_extension_headers", |net| {
        extensions(net, 4)
    }),
    only(Version::V6, "five_extension_headers_pass", five_extensions),
    only(Version::V6, "long_extension_headers", long_extensions),
    both("one_tag", one_tag),
    both("two_tags", two_tags),
    both("three_tags_pass", three_tags),
    both("unknown_tag_passes", unknown_tag),
    both(
        "tagged_to_elsewhere_is_left_to_the_vlan_device",
        tagged_elsewhere,
    ),
    both("truncated_tcp_passes", |net| truncated(net, Cut::Tcp)),
    both("truncated_udp_passes", |net| truncated(net, Cut::Udp)),
    both("truncated_sctp_passes", |net| truncated(net, Cut::Sctp)),
    both("truncated_tags_pass", |net| truncated(net, Cut::Tagged)),
    only(Version::V4, "truncated_options_pass", |net| {
        truncated(net, Cut::Options)
    }),
    only(Version::V6, "truncated_extensions_pass", |net| {
        truncated(net, Cut::Options)
    }),
    both("wrong_version_passes", wrong_version),
    only(Version::V4, "short_header_length_passes", short_header),
    only(Version::V4, "udp_without_checksum_stays_without", udp_zero),
    both("udp_checksum_that_becomes_zero_is_all_ones", udp_mangled),
    both("other_protocols_pass", other_protocols),
    both("icmp_errors_pass", icmp_error),
];

/// A TCP service of a balancer's address that a client outside uses, at a remote pod.
fn external(net: Net) -> (World, Connection) {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (net.at(Host::RemoteA, 8080), net.at(Host::Node, CLAIMED));
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 8080)],
    );
    let made = tcp_connection(&world, (client, service), (node, pod), Next::peer());
    (world, made)
}

/// Opens and goes on with packets of a certain shape, at XDP and at TC.
fn shaped(net: Net, shape: impl Fn(Packet) -> Packet) -> Case {
    let (world, made) = external(net);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let syn = shape(Packet::syn(client, service));
    case.opens(Hook::Xdp, device::UP0, &syn, &made);
    let data = shape(Packet::tcp(client, service));
    case.carries(Hook::Xdp, device::UP0, &data, &made.forward);
    case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
    let answer = made.answer_by(Next::router());
    let back = Packet::tcp(answer.tuple.source, answer.tuple.destination);
    case.carries_anew(Hook::Xdp, device::UP0, &shape(back), &answer);
    case
}

fn options(net: Net) -> Case {
    // Record route, and the most that fits: 40 bytes.
    let mut record = vec![7, 39, 4];
    record.resize(40, 0);
    shaped(net, move |packet| packet.options(&record))
}

const KINDS: [u8; 4] = [
    number::HOP_BY_HOP,
    number::DESTINATION_OPTIONS,
    number::ROUTING,
    number::DESTINATION_OPTIONS,
];

fn extensions(net: Net, count: usize) -> Case {
    shaped(net, move |packet| {
        let kinds = KINDS.iter().take(count);
        kinds.fold(packet, |packet, kind| packet.padding(*kind, 1))
    })
}

fn long_extensions(net: Net) -> Case {
    shaped(net, |packet| {
        packet
            .padding(number::HOP_BY_HOP, 3)
            .padding(number::DESTINATION_OPTIONS, 9)
    })
}

fn five_extensions(net: Net) -> Case {
    let (world, made) = external(net);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let packet = KINDS
        .iter()
        .fold(Packet::syn(client, service), |packet, kind| {
            packet.padding(*kind, 1)
        });
    let packet = packet.padding(number::DESTINATION_OPTIONS, 1);
    case.send(Hook::Xdp, device::UP0, &packet);
    case.send(Hook::Ingress, device::UP0, &packet);
    case
}

/// A connection of a VLAN's client to a pod behind the same VLAN.
pub(super) fn in_vlan(
    net: Net,
    vlan: u32,
    (client, pod, node): (Host, Host, Host),
    hop: Next,
) -> (World, Connection) {
    let (client, service) = (net.at(client, 40_000), net.at(Host::Balancer, 80));
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &[(pod, 8080)]);
    let seen = (net.at(node, CLAIMED), net.at(pod, 8080));
    let mut made = tcp_connection(&world, (client, service), seen, hop);
    made.forward.vlan = vlan;
    made.answer.vlan = vlan;
    (world, made)
}

fn one_tag(net: Net) -> Case {
    let hosts = (Host::VlanClient, Host::VlanPod, Host::NodeOnVlan);
    let (world, made) = in_vlan(net, tags(5, 0), hosts, Next::vlan());
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    // Priority and drop bits are no part of the id, and stay.
    let tagged = |packet: Packet| packet.vlan(0xb005);
    case.opens(
        Hook::Xdp,
        device::UP0,
        &tagged(Packet::syn(client, service)),
        &made,
    );
    let data = tagged(Packet::tcp(client, service));
    case.carries(Hook::Xdp, device::UP0, &data, &made.forward);
    case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
    let answer = made.answer_by(Next::vlan_client());
    let back = tagged(Packet::tcp(answer.tuple.source, answer.tuple.destination));
    case.carries_anew(Hook::Xdp, device::UP0, &back, &answer);
    // The client has moved out of the VLAN, its connection with it.
    let mut way = made.forward;
    way.vlan = 0;
    way.next.ifindex = device::VLAN;
    let moved = Packet::tcp(client, service);
    case.send(Hook::Xdp, device::UP0, &moved)
        .resolved(&way, TICK);
    case.carries(Hook::Ingress, device::UP0, &moved, &way);
    // With the tag, it is for the VLAN device's hook from now on.
    case.send(Hook::Ingress, device::UP0, &data);
    case
}

fn two_tags(net: Net) -> Case {
    let hosts = (
        Host::InnerVlanClient,
        Host::InnerVlanPod,
        Host::NodeOnInnerVlan,
    );
    let (world, made) = in_vlan(net, tags(5, 7), hosts, Next::inner_vlan());
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let tagged = |packet: Packet| packet.service_vlan(5).vlan(7);
    case.opens(
        Hook::Xdp,
        device::UP0,
        &tagged(Packet::syn(client, service)),
        &made,
    );
    let data = tagged(Packet::tcp(client, service));
    case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
    case
}

fn three_tags(net: Net) -> Case {
    let (world, made) = external(net);
    let mut case = Case::new(world);
    let syn = Packet::syn(made.forward.tuple.source, made.forward.tuple.destination);
    let packet = syn.service_vlan(5).vlan(7).vlan(9);
    case.send(Hook::Xdp, device::UP0, &packet);
    case.send(Hook::Ingress, device::UP0, &packet);
    case
}

fn unknown_tag(net: Net) -> Case {
    let (world, made) = external(net);
    let mut case = Case::new(world);
    let syn = Packet::syn(made.forward.tuple.source, made.forward.tuple.destination);
    for packet in [
        syn.clone().vlan(6),
        syn.clone().vlan(5).vlan(8),
        syn.vlan(0),
    ] {
        case.send(Hook::Xdp, device::UP0, &packet);
        case.send(Hook::Ingress, device::UP0, &packet);
    }
    case
}

fn tagged_elsewhere(net: Net) -> Case {
    // From VLAN 5 to a pod that is not in VLAN 5: only the VLAN device's hook, which sees the frame
    // without its tag, can send it on.
    let (client, service) = (net.at(Host::VlanClient, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (net.at(Host::RemoteA, 8080), net.at(Host::Node, CLAIMED));
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 8080)],
    );
    let made = tcp_connection(&world, (client, service), (node, pod), Next::peer());
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service);
    case.send(Hook::Xdp, device::UP0, &syn.clone().vlan(5));
    case.send(Hook::Ingress, device::UP0, &syn.clone().vlan(5));
    case.opens(Hook::Ingress, device::VLAN, &syn, &made);
    case
}

#[derive(Clone, Copy)]
enum Cut {
    Tcp,
    Udp,
    Sctp,
    Tagged,
    Options,
}

/// Every length from the Ethernet header to the last byte before the transport header's end.
fn truncated(net: Net, cut: Cut) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let tcp = Packet::syn(client, service);
    let (protocol, packet, transport) = match cut {
        Cut::Tcp => (number::TCP, tcp, 20),
        Cut::Udp => (number::UDP, Packet::udp(client, service), 8),
        Cut::Sctp => (number::SCTP, Packet::sctp(client, service), 12),
        Cut::Tagged => (number::TCP, tcp.service_vlan(5).vlan(7), 20),
        Cut::Options if client.is_ipv4() => (number::TCP, tcp.options(&[1; 8]), 20),
        Cut::Options => {
            let packet = tcp.padding(number::HOP_BY_HOP, 1);
            (number::TCP, packet.padding(number::ROUTING, 2), 20)
        }
    };
    let extra = match cut {
        Cut::Options if client.is_ipv4() => 8,
        Cut::Options => 24,
        _ => 0,
    };
    let backends = [(Host::RemoteA, 80)];
    let world = net.offering(protocol, (Host::Balancer, 80), Reach::Balancer, &backends);
    let mut case = Case::new(world);
    let header = if client.is_ipv4() { 20 } else { 40 };
    let whole = packet.link_length() + header + extra + transport;
    let frame = packet.bytes();
    for length in 14..whole {
        let start = frame.iter().take(length).copied().collect();
        case.send_bytes(Hook::Xdp, device::UP0, start);
    }
    case
}

fn wrong_version(net: Net) -> Case {
    let (world, made) = external(net);
    let mut case = Case::new(world);
    let frame = Packet::syn(made.forward.tuple.source, made.forward.tuple.destination).bytes();
    for version in [0, 5, 7, 15] {
        let mut frame = frame.clone();
        if let Some(first) = frame.get_mut(14) {
            *first = version << 4 | *first & 0xf;
        }
        case.send_bytes(Hook::Xdp, device::UP0, frame.clone());
        case.send_bytes(Hook::Ingress, device::UP0, frame);
    }
    case
}

fn short_header(net: Net) -> Case {
    let (world, made) = external(net);
    let mut case = Case::new(world);
    let frame = Packet::syn(made.forward.tuple.source, made.forward.tuple.destination).bytes();
    for words in 0..5 {
        let mut frame = frame.clone();
        if let Some(first) = frame.get_mut(14) {
            *first = 0x40 | words;
        }
        case.send_bytes(Hook::Xdp, device::UP0, frame.clone());
        case.send_bytes(Hook::Ingress, device::UP0, frame);
    }
    case
}

fn udp_service(net: Net) -> (World, Connection) {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 53));
    let pod = net.at(Host::RemoteA, 5353);
    let backends = [(Host::RemoteA, 5353)];
    let world = net.offering(number::UDP, (Host::Cluster, 53), Reach::Cluster, &backends);
    let made = connection(
        &world,
        number::UDP,
        (client, service),
        (client, pod),
        Next::peer(),
    );
    (world, made)
}

fn udp_zero(net: Net) -> Case {
    let (world, made) = udp_service(net);
    let mut case = Case::new(world);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let packet = Packet::udp(client, service).without_checksum();
    case.opens(Hook::Ingress, device::POD_A, &packet, &made);
    case.carries(Hook::Ingress, device::POD_A, &packet, &made.forward);
    case
}

/// A payload with which the rewritten datagram's checksum comes out as zero.
fn udp_mangled(net: Net) -> Case {
    let (world, made) = udp_service(net);
    let mut case = Case::new(world);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let rewritten = made.forward.rewritten;
    let probe = Packet::udp(rewritten.source, rewritten.destination).payload(&[0, 0]);
    let frame = probe.bytes();
    let at = frame.len() - 4;
    // Payload that is the sum's complement makes the sum all ones, and the checksum zero.
    let check: Vec<u8> = frame.iter().skip(at).take(2).copied().collect();
    let packet = Packet::udp(client, service).payload(&check);
    case.opens(Hook::Ingress, device::POD_A, &packet, &made);
    let step = case.carries(Hook::Ingress, device::POD_A, &packet, &made.forward);
    let out: Vec<u8> = step
        .expected
        .frame
        .iter()
        .skip(at)
        .take(2)
        .copied()
        .collect();
    assert_eq!(out, [0xff, 0xff], "the case is not about what it says");
    case
}

fn other_protocols(net: Net) -> Case {
    let (world, _) = external(net);
    let mut case = Case::new(world);
    for protocol in [47, 50, 103, 255] {
        let packet = Packet::other(net.ip(Host::Client), net.ip(Host::Balancer), protocol);
        case.send(Hook::Xdp, device::UP0, &packet);
        case.send(Hook::Ingress, device::UP0, &packet);
    }
    case
}

fn icmp_error(net: Net) -> Case {
    let (world, made) = external(net);
    let mut case = Case::new(world);
    let back = Packet::tcp(made.answer.tuple.source, made.answer.tuple.destination);
    let error = super::unreachable_for(&back);
    case.send(Hook::Xdp, device::UP0, &error);
    case.send(Hook::Ingress, device::UP0, &error);
    case
}

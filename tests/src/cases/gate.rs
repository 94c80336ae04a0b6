//! What is none of ours, what cannot be sent, and what XDP leaves to TC.

use super::{Entry, Net, both, tcp_connection};
use crate::case::place::{Host, Next, SENT_ARP, device};
use crate::case::world::{CLAIMED, Reach};
use crate::case::{Case, Hook, World};
use crate::packet::Packet;
use proxy_common::abi::{Addr4, Addr6, FilterKind};
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("foreign_packets_pass", foreign),
    both("arp_and_unknown_types_pass", arp),
    both("false_positives_of_the_filter_pass", false_positive),
    both("without_the_filters_bit_nothing_is_ours", clear_bit),
    both("unknown_device_passes", unknown_device),
    both("answers_without_a_flow_pass", stray_answer),
    both("route_that_refuses_drops", refused),
    both("no_route_is_left_to_the_stack", nowhere),
    both("unresolved_neighbour_is_left_to_the_stack", lost),
    both("no_source_address_drops", no_source),
    both("device_without_xdp_is_left_to_tc", enqueue),
    both("device_without_xdp_sends_back_what_it_received", bounce),
    both("frames_for_another_host_pass", other_host),
    both("groups_of_hosts_are_not_answered", group),
];

const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::Ingress, Hook::Egress];

fn external(net: Net, backend: Host) -> World {
    net.serving((Host::Balancer, 80), Reach::Balancer, &[(backend, 8080)])
}

fn foreign(net: Net) -> Case {
    let mut case = Case::new(external(net, Host::RemoteA));
    let (client, server) = (net.at(Host::Client, 40_000), net.at(Host::Foreign, 80));
    for hook in HOOKS {
        for packet in [
            Packet::syn(client, server),
            Packet::udp(client, server),
            Packet::sctp(client, server),
            Packet::echo(client.ip(), server.ip()),
        ] {
            case.send(hook, device::UP0, &packet);
        }
    }
    case
}

fn arp(net: Net) -> Case {
    let mut case = Case::new(external(net, Host::RemoteA));
    for kind in [0x0806_u16, 0x88cc, 0x0600, 0x05dc, 0x8847] {
        let mut frame = SENT_ARP.to_vec();
        frame.splice(12..14, kind.to_be_bytes());
        for hook in HOOKS {
            case.send_bytes(hook, device::UP0, frame.clone());
        }
    }
    case
}

fn false_positive(net: Net) -> Case {
    let mut world = external(net, Host::RemoteA);
    world.suspect(FilterKind::Destination, net.ip(Host::Foreign));
    world.suspect(FilterKind::Source, net.ip(Host::Client));
    let mut case = Case::new(world);
    let (client, server) = (net.at(Host::Client, 40_000), net.at(Host::Foreign, 80));
    for hook in HOOKS {
        case.send(hook, device::UP0, &Packet::syn(client, server));
        case.send(hook, device::UP0, &Packet::udp(client, server));
        case.send(hook, device::UP0, &Packet::echo(client.ip(), server.ip()));
    }
    case
}

fn clear_bit(net: Net) -> Case {
    let mut world = external(net, Host::RemoteA);
    world.filter.clear();
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    case.send(Hook::Xdp, device::UP0, &syn);
    case.send(Hook::Ingress, device::UP0, &syn);
    case
}

fn unknown_device(net: Net) -> Case {
    let mut case = Case::new(external(net, Host::RemoteA));
    let syn = Packet::syn(net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    case.send(Hook::Ingress, device::STRANGE, &syn);
    let echo = Packet::echo(net.ip(Host::Client), net.ip(Host::Balancer));
    case.send(Hook::Ingress, device::STRANGE, &echo);
    case
}

fn stray_answer(net: Net) -> Case {
    let mut case = Case::new(external(net, Host::RemoteA));
    let pod = net.at(Host::RemoteA, 8080);
    for to in [net.at(Host::Client, 40_000), net.at(Host::Node, CLAIMED)] {
        case.send(Hook::Xdp, device::UP0, &Packet::tcp(pod, to));
        case.send(Hook::Ingress, device::UP0, &Packet::tcp(pod, to));
    }
    case
}

fn refused(net: Net) -> Case {
    let mut case = Case::new(external(net, Host::Refused));
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Balancer, 80));
    case.send(Hook::Ingress, device::POD_A, &Packet::syn(client, service))
        .drops(Reason::NoRoute);
    // XDP leaves it to TC, which drops.
    let syn = Packet::syn(net.at(Host::Client, 40_000), service);
    case.send(Hook::Xdp, device::UP0, &syn);
    case.send(Hook::Ingress, device::UP0, &syn)
        .drops(Reason::NoRoute);
    case
}

fn nowhere(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Balancer, 80));
    let pod = net.at(Host::Nowhere, 8080);
    let world = external(net, Host::Nowhere);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::LOCAL);
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    case
}

fn lost(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (net.at(Host::Lost, 8080), net.at(Host::Node, CLAIMED));
    let world = external(net, Host::Lost);
    let made = tcp_connection(&world, (client, service), (node, pod), Next::LOST);
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service);
    case.send(Hook::Xdp, device::UP0, &syn);
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    case.send(Hook::Xdp, device::UP0, &syn);
    case
}

fn no_source(net: Net) -> Case {
    let mut world = external(net, Host::RemoteA);
    for device in world.devices.values_mut() {
        device.source_v4 = Addr4::default();
        device.source_v6 = Addr6::default();
    }
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &syn)
            .drops(Reason::NoSourceAddress);
    }
    case
}

fn enqueue(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (
        net.at(Host::SidePod, 8080),
        net.at(Host::NodeOnUp1, CLAIMED),
    );
    let world = external(net, Host::SidePod);
    let made = tcp_connection(&world, (client, service), (node, pod), Next::side());
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service);
    case.send(Hook::Xdp, device::UP0, &syn);
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    case.send(Hook::Xdp, device::UP0, &syn);
    // Back out of UP0, XDP can send.
    let answer = made.answer_by(Next::router());
    case.carries_anew(Hook::Xdp, device::UP1, &Packet::tcp(pod, node), &answer);
    case
}

fn bounce(net: Net) -> Case {
    let (client, service) = (
        net.at(Host::OtherClient, 40_000),
        net.at(Host::Balancer, 80),
    );
    let (pod, node) = (
        net.at(Host::SidePod, 8080),
        net.at(Host::NodeOnUp1, CLAIMED),
    );
    let world = external(net, Host::SidePod);
    let made = tcp_connection(&world, (client, service), (node, pod), Next::side());
    let mut case = Case::new(world);
    case.opens(Hook::Xdp, device::UP1, &Packet::syn(client, service), &made);
    // By the other uplink it is TC's: XDP cannot send from there to here.
    let data = Packet::tcp(client, service);
    case.send(Hook::Xdp, device::UP0, &data);
    case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
    case
}

/// A switch that floods, or a mirror: the frame is another node's.
fn elsewhere(net: Net, destination: [u8; 6]) -> Case {
    let mut world = external(net, Host::RemoteA);
    let empty = net.at(Host::Balancer, 81);
    world.serve(6, empty, Reach::Balancer, &[]);
    let mut case = Case::new(world);
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    for packet in [
        Packet::syn(client, service),
        Packet::syn(client, empty),
        Packet::udp(client, empty),
        Packet::echo(client.ip(), service.ip()),
    ] {
        let (_, source) = packet.link;
        let packet = packet.link(destination, source);
        case.send(Hook::Xdp, device::UP0, &packet);
        case.send(Hook::Ingress, device::UP0, &packet);
    }
    case
}

fn other_host(net: Net) -> Case {
    elsewhere(net, [2, 0xcc, 0, 0, 0, 9])
}

fn group(net: Net) -> Case {
    elsewhere(net, [0xff; 6])
}

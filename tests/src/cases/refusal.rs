//! Answers in a service's name: resets, ICMP errors, echo replies; and what is not answered.

use super::{Entry, Net, both, only, reset_for, unreachable_for};
use crate::case::place::{Host, Version, device};
use crate::case::world::Reach;
use crate::case::{Case, Hook};
use crate::packet::{Packet, Transport, flag, number};
use proxy_common::datapath::verdict::Action;
use proxy_common::datapath::{Event, Reason};

pub(super) const CASES: &[Entry] = &[
    both("no_endpoint_syn_is_reset", |net| empty(net, Probe::Syn)),
    both("no_endpoint_data_is_reset_at_its_acknowledgement", |net| {
        empty(net, Probe::Data)
    }),
    both("no_endpoint_data_without_ack_is_acknowledged", |net| {
        empty(net, Probe::Naked)
    }),
    both("no_endpoint_fin_counts_as_data", |net| {
        empty(net, Probe::Fin)
    }),
    both("no_endpoint_reset_is_not_answered", |net| {
        empty(net, Probe::Reset)
    }),
    both("no_endpoint_udp_is_unreachable", |net| {
        empty(net, Probe::Udp)
    }),
    both("no_endpoint_long_udp_is_quoted_in_part", |net| {
        empty(net, Probe::LongUdp)
    }),
    both("no_endpoint_empty_udp_is_unreachable", |net| {
        empty(net, Probe::EmptyUdp)
    }),
    both("no_endpoint_sctp_is_unreachable", |net| {
        empty(net, Probe::Sctp)
    }),
    both("no_endpoint_from_pod", empty_from_pod),
    both("no_endpoint_from_this_node", empty_from_node),
    both("no_endpoint_node_port", empty_node_port),
    both("no_endpoint_in_vlan", empty_in_vlan),
    only(
        Version::V4,
        "no_endpoint_with_options_is_not_answered",
        empty_with_options,
    ),
    only(
        Version::V6,
        "no_endpoint_with_extensions_is_not_answered",
        empty_with_extensions,
    ),
    both("unknown_port_is_reset", unknown_port),
    both("unknown_udp_port_is_unreachable", unknown_udp_port),
    both(
        "unknown_port_of_cluster_address_from_outside",
        unknown_cluster_port,
    ),
    both("reset_without_connection_is_dropped", lone_reset),
    both("echo_to_balancer_is_answered", echo),
    both("echo_to_cluster_address", echo_to_cluster),
    both("echo_elsewhere_passes", echo_elsewhere),
    both("echo_reply_passes", echo_reply),
    only(Version::V4, "echo_with_options_passes", echo_with_options),
    both("fragments_are_dropped", fragments),
    both("fragments_elsewhere_pass", fragments_elsewhere),
];

#[derive(Clone, Copy)]
enum Probe {
    Syn,
    Data,
    Naked,
    Fin,
    Reset,
    Udp,
    LongUdp,
    EmptyUdp,
    Sctp,
}

/// A balancer's service without backends, probed from outside at XDP and at TC.
fn empty(net: Net, probe: Probe) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let udp = Packet::udp(client, service);
    let (protocol, packet) = match probe {
        Probe::Syn => (number::TCP, Packet::syn(client, service)),
        Probe::Data => (number::TCP, Packet::tcp(client, service)),
        Probe::Naked => (number::TCP, Packet::tcp(client, service).flags(0)),
        Probe::Fin => (number::TCP, Packet::tcp(client, service).flags(flag::FIN)),
        Probe::Reset => (number::TCP, Packet::tcp(client, service).flags(flag::RST)),
        Probe::Udp => (number::UDP, udp),
        Probe::LongUdp => (number::UDP, udp.payload(&[0x5a; 1_401])),
        Probe::EmptyUdp => (number::UDP, udp.payload(b"")),
        Probe::Sctp => (number::SCTP, Packet::sctp(client, service)),
    };
    let world = net.offering(protocol, (Host::Balancer, 80), Reach::Balancer, &[]);
    let mut case = Case::new(world);
    for hook in [Hook::Xdp, Hook::Ingress] {
        let step = case.send(hook, device::UP0, &packet);
        match probe {
            Probe::Reset => step.drops(Reason::NoEndpoint),
            Probe::Syn | Probe::Data | Probe::Naked | Probe::Fin => {
                step.refuses(Reason::NoEndpoint, &reset_for(&packet))
            }
            _ => step.refuses(Reason::NoEndpoint, &unreachable_for(&packet)),
        };
    }
    case
}

fn empty_from_pod(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let mut world = net.serving((Host::Cluster, 80), Reach::Cluster, &[]);
    world.serve(number::UDP, service, Reach::Cluster, &[]);
    let mut case = Case::new(world);
    let (syn, datagram) = (Packet::syn(client, service), Packet::udp(client, service));
    case.send(Hook::Ingress, device::POD_A, &syn)
        .refuses(Reason::NoEndpoint, &reset_for(&syn));
    case.send(Hook::Ingress, device::POD_A, &datagram)
        .refuses(Reason::NoEndpoint, &unreachable_for(&datagram));
    case
}

fn empty_from_node(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Cluster, 80));
    let mut world = net.serving((Host::Cluster, 80), Reach::Cluster, &[]);
    world.serve(number::UDP, service, Reach::Cluster, &[]);
    let mut case = Case::new(world);
    let (syn, datagram) = (Packet::syn(client, service), Packet::udp(client, service));
    case.send(Hook::Egress, device::UP0, &syn)
        .refuses(Reason::NoEndpoint, &reset_for(&syn));
    case.send(Hook::Egress, device::UP0, &datagram)
        .refuses(Reason::NoEndpoint, &unreachable_for(&datagram));
    case
}

fn empty_node_port(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Node, 30_080));
    let world = net.serving((Host::Node, 30_080), Reach::Node, &[]);
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service);
    case.send(Hook::Xdp, device::UP0, &syn)
        .refuses(Reason::NoEndpoint, &reset_for(&syn));
    case
}

fn empty_in_vlan(net: Net) -> Case {
    let (client, service) = (net.at(Host::VlanClient, 40_000), net.at(Host::Balancer, 80));
    let mut world = net.serving((Host::Balancer, 80), Reach::Balancer, &[]);
    world.serve(number::UDP, service, Reach::Balancer, &[]);
    let mut case = Case::new(world);
    for tagged in [
        |packet: Packet| packet.vlan(5),
        |packet: Packet| packet.service_vlan(5).vlan(7),
    ] {
        let syn = tagged(Packet::syn(client, service));
        let datagram = tagged(Packet::udp(client, service));
        case.send(Hook::Xdp, device::UP0, &syn)
            .refuses(Reason::NoEndpoint, &reset_for(&syn));
        case.send(Hook::Xdp, device::UP0, &datagram)
            .refuses(Reason::NoEndpoint, &unreachable_for(&datagram));
        case.send(Hook::Ingress, device::UP0, &syn)
            .refuses(Reason::NoEndpoint, &reset_for(&syn));
        // A socket buffer with its first tag in its bytes can't be given room behind the tag, and is
        // dropped with no more than would have been quoted. Where frames arrive at devices, that tag
        // is beside the frame.
        let quoted = datagram.bytes().len() - b"causeway".len();
        case.send(Hook::Ingress, device::UP0, &datagram)
            .drops(Reason::NoEndpoint)
            .cut_to(quoted)
            .on_devices(|step| {
                step.refuses(Reason::NoEndpoint, &unreachable_for(&datagram));
            });
    }
    case
}

fn empty_with_options(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &[]);
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service).options(&[1, 1, 1, 0]);
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &syn).drops(Reason::NoEndpoint);
    }
    case
}

fn empty_with_extensions(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &[]);
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service).padding(number::DESTINATION_OPTIONS, 1);
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &syn).drops(Reason::NoEndpoint);
    }
    case
}

fn unknown_port(net: Net) -> Case {
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::Client, 40_000), net.at(Host::Balancer, 81));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &syn)
            .refuses(Reason::UnknownPort, &reset_for(&syn));
    }
    let syn = Packet::syn(net.at(Host::PodA, 40_000), net.at(Host::Balancer, 81));
    case.send(Hook::Ingress, device::POD_A, &syn)
        .refuses(Reason::UnknownPort, &reset_for(&syn));
    case
}

fn unknown_udp_port(net: Net) -> Case {
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    let mut case = Case::new(world);
    let datagram = Packet::udp(net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &datagram)
            .refuses(Reason::UnknownPort, &unreachable_for(&datagram));
    }
    case
}

fn unknown_cluster_port(net: Net) -> Case {
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &[(Host::RemoteA, 80)]);
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::Client, 40_000), net.at(Host::Cluster, 81));
    case.send(Hook::Xdp, device::UP0, &syn)
        .drops(Reason::OutsideClusterAddress);
    let syn = Packet::syn(net.at(Host::PodA, 40_000), net.at(Host::Cluster, 81));
    case.send(Hook::Ingress, device::POD_A, &syn)
        .refuses(Reason::UnknownPort, &reset_for(&syn));
    case
}

fn lone_reset(net: Net) -> Case {
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    let mut case = Case::new(world);
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(
            hook,
            device::UP0,
            &Packet::tcp(client, service).flags(flag::RST),
        )
        .drops(Reason::OutOfState);
    }
    case
}

pub(super) fn reply_to(request: &Packet) -> Packet {
    let mut reply = request.clone();
    (reply.source, reply.destination) = (request.destination, request.source);
    reply.link = (request.link.1, request.link.0);
    (reply.identification, reply.label, reply.class, reply.hops) = (0, 0, 0, 64);
    if let Transport::Icmp { kind, .. } = &mut reply.transport {
        *kind = if request.source.is_ipv4() { 0 } else { 129 };
    }
    reply
}

fn echo(net: Net) -> Case {
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    let mut case = Case::new(world);
    let mut request = Packet::echo(net.ip(Host::Client), net.ip(Host::Balancer)).hops(3);
    request.class = 0x20;
    for payload in [&b"ping"[..], b"odd", b""] {
        let request = request.clone().payload(payload);
        let bytes = request.bytes().len();
        for (hook, ifindex) in [(Hook::Xdp, device::UP0), (Hook::Ingress, device::UP0)] {
            case.send(hook, ifindex, &request)
                .verdict(Action::Reply)
                .event(Event::EchoAnswered, bytes)
                .out(&reply_to(&request));
        }
    }
    case
}

fn echo_to_cluster(net: Net) -> Case {
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &[(Host::RemoteA, 80)]);
    let mut case = Case::new(world);
    let request = Packet::echo(net.ip(Host::PodA), net.ip(Host::Cluster));
    let bytes = request.bytes().len();
    case.send(Hook::Ingress, device::POD_A, &request)
        .verdict(Action::Reply)
        .event(Event::EchoAnswered, bytes)
        .out(&reply_to(&request));
    let request = Packet::echo(net.ip(Host::Node), net.ip(Host::Cluster));
    case.send(Hook::Egress, device::UP0, &request)
        .verdict(Action::Reply)
        .event(Event::EchoAnswered, bytes)
        .out(&reply_to(&request));
    let request = Packet::echo(net.ip(Host::Client), net.ip(Host::Cluster));
    case.send(Hook::Xdp, device::UP0, &request)
        .drops(Reason::OutsideClusterAddress);
    case
}

fn echo_elsewhere(net: Net) -> Case {
    let world = net.serving((Host::Node, 30_080), Reach::Node, &[(Host::RemoteA, 80)]);
    let mut case = Case::new(world);
    for host in [Host::Node, Host::Foreign, Host::PodA] {
        for hook in [Hook::Xdp, Hook::Ingress] {
            let request = Packet::echo(net.ip(Host::Client), net.ip(host));
            case.send(hook, device::UP0, &request);
        }
    }
    case
}

fn echo_reply(net: Net) -> Case {
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    let mut case = Case::new(world);
    let reply = reply_to(&Packet::echo(net.ip(Host::Balancer), net.ip(Host::Client)));
    case.send(Hook::Xdp, device::UP0, &reply);
    case.send(Hook::Ingress, device::UP0, &reply);
    case
}

fn echo_with_options(net: Net) -> Case {
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    let mut case = Case::new(world);
    let request = Packet::echo(net.ip(Host::Client), net.ip(Host::Balancer)).options(&[1, 1, 1, 0]);
    case.send(Hook::Xdp, device::UP0, &request);
    case.send(Hook::Ingress, device::UP0, &request);
    case
}

fn fragments(net: Net) -> Case {
    let mut world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 80)],
    );
    world.serve(number::TCP, net.at(Host::Cluster, 80), Reach::Cluster, &[]);
    let mut case = Case::new(world);
    let datagram = Packet::udp(net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    for hook in [Hook::Xdp, Hook::Ingress] {
        for (offset, more) in [(0, true), (185, true), (370, false)] {
            case.send(hook, device::UP0, &datagram.clone().fragment(offset, more))
                .drops(Reason::Fragment);
        }
    }
    let cluster = Packet::udp(net.at(Host::Client, 40_000), net.at(Host::Cluster, 80));
    case.send(Hook::Ingress, device::UP0, &cluster.fragment(0, true))
        .drops(Reason::OutsideClusterAddress);
    case
}

fn fragments_elsewhere(net: Net) -> Case {
    let world = net.serving((Host::Node, 30_080), Reach::Node, &[(Host::RemoteA, 80)]);
    let mut case = Case::new(world);
    // The node's own address belongs to others too: the stack puts fragments together.
    for host in [Host::Node, Host::Foreign] {
        let datagram = Packet::udp(net.at(Host::Client, 40_000), net.at(host, 30_080));
        for hook in [Hook::Xdp, Hook::Ingress] {
            case.send(hook, device::UP0, &datagram.clone().fragment(0, true));
            case.send(hook, device::UP0, &datagram.clone().fragment(9, false));
        }
    }
    let answer = Packet::udp(net.at(Host::RemoteA, 80), net.at(Host::Client, 40_000));
    case.send(Hook::Ingress, device::UP0, &answer.fragment(0, true));
    case
}

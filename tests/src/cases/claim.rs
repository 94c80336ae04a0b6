//! Tuples that are taken, ports that run out, tables that are full.

use super::{Entry, Net, both, connection, tcp_connection, tuple};
use crate::case::place::{Host, Next, device};
use crate::case::world::{CLAIMED, Reach, TICK, size};
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, number};
use proxy_common::abi::{V4, V6};
use proxy_common::datapath::{Reason, choice};
use proxy_user::simulation::Tuple;
use std::net::SocketAddr;

pub(super) const CASES: &[Entry] = &[
    both("same_tuple_by_two_services_claims_a_port", same_tuple),
    both("same_tuple_thrice_exhausts", exhausted),
    both("translated_source_never_keeps_the_clients_port", own_port),
    both("second_port_is_tried_when_the_first_is_taken", second_port),
    both("exhausted_ports_of_a_translated_source", exhausted_outside),
    both("no_ports_configured", no_ports),
    both("one_port_serves_many_backends", reuse_per_backend),
    both("sctp_keeps_its_port_when_translated", sctp_translated),
    both("sctp_port_collision_is_dropped", sctp_collision),
    both("table_full_at_the_answering_entry", |net| full(net, 0)),
    both("table_full_at_the_original_entry", |net| full(net, 1)),
    both("table_with_room_for_one_connection", |net| full(net, 2)),
    both("missing_settings", missing_settings),
];

/// A pod's client and two cluster addresses of one backend.
fn two_services(net: Net) -> (World, Connection) {
    let (client, pod) = (net.at(Host::PodA, 40_000), net.at(Host::RemoteA, 8080));
    let (one, two) = (net.at(Host::Cluster, 80), net.at(Host::OtherCluster, 80));
    let mut world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    world.alias(number::TCP, two, Reach::Cluster, one);
    let made = tcp_connection(&world, (client, one), (client, pod), Next::peer());
    (world, made)
}

fn same_tuple(net: Net) -> Case {
    let (world, one) = two_services(net);
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::OtherCluster, 80));
    let (claimed, pod) = (net.at(Host::PodA, CLAIMED), net.at(Host::RemoteA, 8080));
    let two = tcp_connection(&world, (client, service), (claimed, pod), Next::peer());
    let mut case = Case::new(world);
    let first = Packet::syn(client, net.at(Host::Cluster, 80));
    case.opens(Hook::Ingress, device::POD_A, &first, &one);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &two,
    );
    // The answers are told apart by the port.
    let (a, b) = (one.answer_by(Next::pod_a()), two.answer_by(Next::pod_a()));
    case.carries_anew(Hook::Ingress, device::UP0, &Packet::tcp(pod, client), &a);
    case.carries_anew(Hook::Ingress, device::UP0, &Packet::tcp(pod, claimed), &b);
    case
}

fn exhausted(net: Net) -> Case {
    let mut case = same_tuple(net);
    let client = net.at(Host::PodA, 40_000);
    let (third, first) = (net.at(Host::Balancer, 80), net.at(Host::Cluster, 80));
    case.world.alias(number::TCP, third, Reach::Balancer, first);
    case.send(Hook::Ingress, device::POD_A, &Packet::syn(client, third))
        .drops(Reason::PortsExhausted);
    case
}

fn outside(net: Net, client: SocketAddr, port: u16) -> (World, Connection) {
    let (service, pod) = (net.at(Host::Balancer, 80), net.at(Host::RemoteA, 8080));
    let world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 8080)],
    );
    let seen = (net.at(Host::Node, port), pod);
    let made = tcp_connection(&world, (client, service), seen, Next::peer());
    (world, made)
}

fn own_port(net: Net) -> Case {
    // The client's own port would be free, but the node's own sockets may have it.
    let client = net.at(Host::Client, 40_000);
    let (world, made) = outside(net, client, CLAIMED);
    let mut case = Case::new(world);
    let syn = Packet::syn(client, net.at(Host::Balancer, 80));
    case.opens(Hook::Xdp, device::UP0, &syn, &made);
    case
}

/// The port that the given attempt claims for a tuple.
fn attempt(world: &World, tuple: &Tuple, attempt: u32) -> u16 {
    let seed = world.settings.seed;
    let hash = if tuple.source.is_ipv4() {
        choice::tuple_hash::<V4>(&tuple.key(), seed)
    } else {
        choice::tuple_hash::<V6>(&tuple.key(), seed)
    };
    choice::port(
        hash,
        attempt,
        world.settings.port_min,
        world.settings.port_count,
    )
}

fn second_port(net: Net) -> Case {
    let service = net.at(Host::Balancer, 80);
    let (mut world, _) = outside(net, net.at(Host::Client, 1), CLAIMED);
    world.settings.port_count = 1_000;
    // Two clients whose first attempt is the same port, and whose second ones are not.
    let key = |port| tuple(number::TCP, net.at(Host::Client, port), service);
    let first = attempt(&world, &key(1), 1);
    let twin = (2..u16::MAX)
        .find(|port| attempt(&world, &key(*port), 1) == first)
        .unwrap_or_default();
    let second = attempt(&world, &key(twin), 2);
    assert_ne!(first, second, "the case is not about what it says");
    let mut case = Case::new(world);
    for (port, claimed) in [(1, first), (twin, second)] {
        let client = net.at(Host::Client, port);
        let (_, made) = outside(net, client, claimed);
        case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &made);
    }
    case
}

fn exhausted_outside(net: Net) -> Case {
    let client = net.at(Host::Client, 40_000);
    let (world, made) = outside(net, client, CLAIMED);
    let mut case = Case::new(world);
    let service = net.at(Host::Balancer, 80);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &made);
    let other = Packet::syn(net.at(Host::OtherClient, 40_000), service);
    case.send(Hook::Xdp, device::UP0, &other)
        .drops(Reason::PortsExhausted);
    case.send(Hook::Ingress, device::UP0, &other)
        .drops(Reason::PortsExhausted);
    case
}

fn no_ports(net: Net) -> Case {
    let (mut world, made) = two_services(net);
    world.settings.port_count = 0;
    let mut case = Case::new(world);
    let client = net.at(Host::PodA, 40_000);
    let first = Packet::syn(client, net.at(Host::Cluster, 80));
    case.opens(Hook::Ingress, device::POD_A, &first, &made);
    case.send(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, net.at(Host::OtherCluster, 80)),
    )
    .drops(Reason::PortsExhausted);
    case
}

fn reuse_per_backend(net: Net) -> Case {
    // The claim is of the whole tuple: the same port serves each backend once.
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let other = net.at(Host::Balancer, 81);
    let (mut world, one) = outside(net, client, CLAIMED);
    let pod = net.at(Host::RemoteB, 8080);
    let second = world.serve(number::TCP, other, Reach::Balancer, &[pod]);
    let two = Connection::new(
        &world,
        tuple(number::TCP, client, other),
        tuple(number::TCP, net.at(Host::Node, CLAIMED), pod),
        second,
        Next::peer(),
    );
    let mut case = Case::new(world);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &one);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, other), &two);
    case
}

fn sctp(net: Net, client: SocketAddr) -> (World, Connection) {
    let (service, pod) = (net.at(Host::Balancer, 3868), net.at(Host::RemoteA, 3868));
    let backends = [(Host::RemoteA, 3868)];
    let world = net.offering(
        number::SCTP,
        (Host::Balancer, 3868),
        Reach::Balancer,
        &backends,
    );
    let seen = (net.at(Host::Node, client.port()), pod);
    let made = connection(&world, number::SCTP, (client, service), seen, Next::peer());
    (world, made)
}

fn sctp_translated(net: Net) -> Case {
    let client = net.at(Host::Client, 40_000);
    let (world, made) = sctp(net, client);
    let mut case = Case::new(world);
    let packet = Packet::sctp(client, net.at(Host::Balancer, 3868));
    case.opens(Hook::Xdp, device::UP0, &packet, &made);
    case.carries(Hook::Ingress, device::UP0, &packet, &made.forward);
    let answer = made.answer_by(Next::router());
    let back = Packet::sctp(answer.tuple.source, answer.tuple.destination);
    case.carries_anew(Hook::Xdp, device::UP0, &back, &answer);
    case
}

fn sctp_collision(net: Net) -> Case {
    let mut case = sctp_translated(net);
    let other = net.at(Host::OtherClient, 40_000);
    let packet = Packet::sctp(other, net.at(Host::Balancer, 3868));
    case.send(Hook::Xdp, device::UP0, &packet)
        .drops(Reason::SctpPort);
    case
}

/// With room for `room` more entries.
fn full(net: Net, room: u32) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let (mut world, made) = two_services(net);
    for port in 0..size::FLOWS - room {
        let port = u16::try_from(port).unwrap_or_default();
        let other = tuple(number::TCP, net.at(Host::PodB, port), service);
        let filler = Connection::new(&world, other, other, 1, Next::peer());
        let [(key, entry), _] = filler.entries(TICK);
        world.flows.insert(key, entry);
    }
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service);
    if room < 2 {
        case.send(Hook::Ingress, device::POD_A, &syn)
            .drops(Reason::FlowTableFull);
        case.send(Hook::Ingress, device::POD_A, &syn)
            .drops(Reason::FlowTableFull);
    } else {
        case.opens(Hook::Ingress, device::POD_A, &syn, &made);
    }
    case
}

fn missing_settings(net: Net) -> Case {
    // Before the daemon has written them all numbers are zero: no port can be claimed.
    let (mut world, made) = two_services(net);
    world.settings = proxy_common::abi::Settings::default();
    let mut case = Case::new(world);
    let client = net.at(Host::PodA, 40_000);
    let syn = Packet::syn(client, net.at(Host::Cluster, 80));
    case.opens(Hook::Ingress, device::POD_A, &syn, &made);
    let service = net.at(Host::Balancer, 80);
    let first = net.at(Host::Cluster, 80);
    case.world
        .alias(number::TCP, service, Reach::Balancer, first);
    case.send(
        Hook::Xdp,
        device::UP0,
        &Packet::syn(net.at(Host::Client, 40_000), service),
    )
    .drops(Reason::PortsExhausted);
    case
}

//! Traffic policies: who is led to endpoints on this node alone.

use super::{Entry, Net, both, reset_for, tuple, unreachable_for};
use crate::case::place::{Host, Next, device};
use crate::case::world::Reach;
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, number};
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("external_local_keeps_the_clients_address", kept),
    both(
        "external_local_keeps_it_where_no_pods_device_leads",
        kept_at_uplink,
    ),
    both("external_local_node_port", kept_at_node_port),
    both("external_local_without_endpoint_here", none_here),
    both("external_local_without_any_endpoint", none_anywhere),
    both("external_local_from_pod_is_short_circuited", circuit_pod),
    both(
        "external_local_from_this_node_is_short_circuited",
        circuit_node,
    ),
    both("internal_local_to_this_nodes_pod", internal),
    both("internal_local_without_endpoint_here", internal_none_here),
    both(
        "internal_local_without_any_endpoint",
        internal_none_anywhere,
    ),
    both("internal_local_from_outside", internal_outside),
];

/// A service of an endpoint elsewhere, and some here, to which clients are kept.
fn world(net: Net, protocol: u8, at: Host, reach: Reach, here: &[Host]) -> World {
    let mut backends = vec![(Host::RemoteA, 8080)];
    backends.extend(here.iter().map(|host| (*host, 8080)));
    let mut world = net.offering(protocol, (at, 80), reach, &backends);
    let local: Vec<u32> = (2..).take(here.len()).collect();
    world.keep_local(protocol, net.at(at, 80), &local);
    world
}

/// A connection to a backend, which sees the client's own address.
fn direct(
    net: Net,
    world: &World,
    protocol: u8,
    ends: (Host, Host),
    (backend, host): (u32, Host),
    hop: Next,
) -> Connection {
    let client = net.at(ends.0, 40_000);
    let sent = tuple(protocol, client, net.at(ends.1, 80));
    let seen = tuple(protocol, client, net.at(host, 8080));
    Connection::new(world, sent, seen, backend, hop)
}

fn kept(net: Net) -> Case {
    let ends = (Host::Client, Host::Balancer);
    let (client, service) = (net.at(ends.0, 40_000), net.at(ends.1, 80));
    let world = world(net, number::TCP, ends.1, Reach::Balancer, &[Host::PodA]);
    let made = direct(
        net,
        &world,
        number::TCP,
        ends,
        (2, Host::PodA),
        Next::pod_a(),
    );
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service);
    // XDP leaves what ends here to TC.
    case.send(Hook::Xdp, device::UP0, &syn);
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    let back = Packet::tcp(net.at(Host::PodA, 8080), client);
    case.carries_anew(
        Hook::Ingress,
        device::POD_A,
        &back,
        &made.answer_by(Next::router()),
    );
    case.carries(
        Hook::Ingress,
        device::UP0,
        &Packet::tcp(client, service),
        &made.forward,
    );
    case
}

fn kept_at_uplink(net: Net) -> Case {
    // Behind a device that isn't known as a pod's, an endpoint of this node is one all the same.
    let ends = (Host::Client, Host::Balancer);
    let (client, service) = (net.at(ends.0, 40_000), net.at(ends.1, 80));
    let world = world(net, number::TCP, ends.1, Reach::Balancer, &[Host::SidePod]);
    let made = direct(
        net,
        &world,
        number::TCP,
        ends,
        (2, Host::SidePod),
        Next::side(),
    );
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let back = Packet::tcp(net.at(Host::SidePod, 8080), client);
    case.carries_anew(
        Hook::Ingress,
        device::UP1,
        &back,
        &made.answer_by(Next::router()),
    );
    case
}

fn kept_at_node_port(net: Net) -> Case {
    let ends = (Host::Client, Host::Node);
    let (client, service) = (net.at(ends.0, 40_000), net.at(ends.1, 80));
    let world = world(net, number::UDP, ends.1, Reach::Node, &[Host::PodB]);
    let made = direct(
        net,
        &world,
        number::UDP,
        ends,
        (2, Host::PodB),
        Next::pod_b(),
    );
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::udp(client, service),
        &made,
    );
    let back = Packet::udp(net.at(Host::PodB, 8080), client);
    case.carries_anew(
        Hook::Ingress,
        device::POD_B,
        &back,
        &made.answer_by(Next::router()),
    );
    case
}

fn none_here(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let mut case = Case::new(world(
        net,
        number::TCP,
        Host::Balancer,
        Reach::Balancer,
        &[],
    ));
    // Nothing is said: another node answers at the same address.
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &Packet::syn(client, service))
            .drops(Reason::NoLocalEndpoint);
        case.send(hook, device::UP0, &Packet::tcp(client, service))
            .drops(Reason::NoLocalEndpoint);
    }
    case
}

fn none_anywhere(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let mut world = net.serving((Host::Balancer, 80), Reach::Balancer, &[]);
    world.keep_local(number::TCP, service, &[]);
    world.serve(number::UDP, service, Reach::Balancer, &[]);
    world.keep_local(number::UDP, service, &[]);
    let mut case = Case::new(world);
    let (syn, datagram) = (Packet::syn(client, service), Packet::udp(client, service));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &syn)
            .refuses(Reason::NoEndpoint, &reset_for(&syn));
        case.send(hook, device::UP0, &datagram)
            .refuses(Reason::NoEndpoint, &unreachable_for(&datagram));
    }
    case
}

fn circuit_pod(net: Net) -> Case {
    let ends = (Host::PodA, Host::Balancer);
    let world = world(net, number::TCP, ends.1, Reach::Balancer, &[]);
    let made = direct(
        net,
        &world,
        number::TCP,
        ends,
        (1, Host::RemoteA),
        Next::peer(),
    );
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(ends.0, 40_000), net.at(ends.1, 80));
    case.opens(Hook::Ingress, device::POD_A, &syn, &made);
    let back = Packet::tcp(net.at(Host::RemoteA, 8080), net.at(ends.0, 40_000));
    case.carries_anew(
        Hook::Ingress,
        device::UP0,
        &back,
        &made.answer_by(Next::pod_a()),
    );
    case
}

fn circuit_node(net: Net) -> Case {
    let ends = (Host::Node, Host::Balancer);
    let world = world(net, number::TCP, ends.1, Reach::Balancer, &[]);
    let made = direct(
        net,
        &world,
        number::TCP,
        ends,
        (1, Host::RemoteA),
        Next::peer(),
    );
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(ends.0, 40_000), net.at(ends.1, 80));
    case.opens(Hook::Egress, device::UP0, &syn, &made);
    let back = Packet::tcp(net.at(Host::RemoteA, 8080), net.at(ends.0, 40_000));
    case.carries_anew(
        Hook::Ingress,
        device::UP0,
        &back,
        &made.answer_by(Next::LOCAL),
    );
    case
}

fn internal(net: Net) -> Case {
    let world = world(
        net,
        number::TCP,
        Host::Cluster,
        Reach::Cluster,
        &[Host::PodB],
    );
    let made = |client| {
        let ends = (client, Host::Cluster);
        direct(
            net,
            &world,
            number::TCP,
            ends,
            (2, Host::PodB),
            Next::pod_b(),
        )
    };
    let (pod, node) = (made(Host::PodA), made(Host::Node));
    let service = net.at(Host::Cluster, 80);
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::PodA, 40_000), service);
    case.opens(Hook::Ingress, device::POD_A, &syn, &pod);
    let syn = Packet::syn(net.at(Host::Node, 40_000), service);
    case.opens(Hook::Egress, device::UP0, &syn, &node);
    let back = Packet::tcp(net.at(Host::PodB, 8080), net.at(Host::PodA, 40_000));
    case.carries_anew(
        Hook::Ingress,
        device::POD_B,
        &back,
        &pod.answer_by(Next::pod_a()),
    );
    case
}

fn internal_none_here(net: Net) -> Case {
    let service = net.at(Host::Cluster, 80);
    let mut case = Case::new(world(net, number::TCP, Host::Cluster, Reach::Cluster, &[]));
    for (hook, device, client) in [
        (Hook::Ingress, device::POD_A, Host::PodA),
        (Hook::Egress, device::UP0, Host::Node),
    ] {
        case.send(hook, device, &Packet::syn(net.at(client, 40_000), service))
            .drops(Reason::NoLocalEndpoint);
    }
    case
}

fn internal_none_anywhere(net: Net) -> Case {
    let service = net.at(Host::Cluster, 80);
    let mut world = net.serving((Host::Cluster, 80), Reach::Cluster, &[]);
    world.keep_local(number::TCP, service, &[]);
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::PodA, 40_000), service);
    case.send(Hook::Ingress, device::POD_A, &syn)
        .refuses(Reason::NoEndpoint, &reset_for(&syn));
    case
}

fn internal_outside(net: Net) -> Case {
    let syn = Packet::syn(net.at(Host::Client, 40_000), net.at(Host::Cluster, 80));
    let mut case = Case::new(world(
        net,
        number::TCP,
        Host::Cluster,
        Reach::Cluster,
        &[Host::PodA],
    ));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &syn)
            .drops(Reason::OutsideClusterAddress);
    }
    case
}

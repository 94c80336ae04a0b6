//! Ports of the node itself: node ports of services, and host ports of pods.

use super::{Entry, Net, both, connection, tcp_connection};
use crate::case::place::{Host, Next, device};
use crate::case::world::{CLAIMED, Reach, TICK};
use crate::case::{Case, Hook};
use crate::packet::{Packet, number};
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("node_port_from_outside_to_remote_pod", node_port_remote),
    both("node_port_from_outside_to_local_pod", node_port_local),
    both("node_port_from_pod_to_remote_pod", node_port_from_pod),
    both(
        "node_port_from_this_node_to_remote_pod",
        node_port_from_node,
    ),
    both(
        "node_port_from_this_node_to_itself",
        node_port_from_node_to_itself,
    ),
    both(
        "node_port_from_this_node_without_endpoint",
        node_port_from_node_without_endpoint,
    ),
    both("host_port_from_outside", host_port),
    both("host_port_from_its_own_pod", host_port_from_itself),
    both("udp_host_port_from_this_node", udp_host_port_from_node),
];

const NODE_PORT: (Host, u16) = (Host::Node, 30_080);

fn node_port_remote(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Node, 30_080));
    let (pod, node) = (net.at(Host::RemoteA, 80), net.at(Host::Node, CLAIMED));
    let world = net.serving(NODE_PORT, Reach::Node, &[(Host::RemoteA, 80)]);
    let made = tcp_connection(&world, (client, service), (node, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &made);
    let answer = made.answer_by(Next::router());
    case.carries_anew(Hook::Xdp, device::UP0, &Packet::tcp(pod, node), &answer);
    // Other ports of the node are none of ours.
    let ssh = Packet::syn(client, net.at(Host::Node, 22));
    case.send(Hook::Xdp, device::UP0, &ssh);
    case.send(Hook::Ingress, device::UP0, &ssh);
    case
}

fn node_port_local(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Node, 30_080));
    let pod = net.at(Host::PodB, 80);
    let world = net.serving(NODE_PORT, Reach::Node, &[(Host::PodB, 80)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::pod_b());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::router());
    case.carries_anew(
        Hook::Ingress,
        device::POD_B,
        &Packet::tcp(pod, client),
        &answer,
    );
    case
}

fn node_port_from_pod(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Node, 30_080));
    let pod = net.at(Host::RemoteA, 80);
    let world = net.serving(NODE_PORT, Reach::Node, &[(Host::RemoteA, 80)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    case
}

fn node_port_from_node(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Node, 30_080));
    let pod = net.at(Host::RemoteA, 80);
    let world = net.serving(NODE_PORT, Reach::Node, &[(Host::RemoteA, 80)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let made = made.through_loopback();
    let mut case = Case::new(world);
    case.opens(
        Hook::Egress,
        device::LO,
        &Packet::syn(client, service),
        &made,
    );
    // XDP leaves to TC what ends on this node.
    let back = Packet::tcp(pod, client);
    let answer = made.answer_by(Next::LOCAL);
    case.send(Hook::Xdp, device::UP0, &back)
        .resolved(&answer, TICK);
    case.carries(Hook::Ingress, device::UP0, &back, &answer);
    case
}

fn node_port_from_node_to_itself(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Node, 30_080));
    let server = net.at(Host::Node, 8080);
    let world = net.serving(NODE_PORT, Reach::Node, &[(Host::Node, 8080)]);
    let made = tcp_connection(&world, (client, service), (client, server), Next::LOCAL);
    let made = made.through_loopback();
    let mut case = Case::new(world);
    case.opens(
        Hook::Egress,
        device::LO,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::LOCAL);
    case.carries_anew(
        Hook::Egress,
        device::LO,
        &Packet::tcp(server, client),
        &answer,
    );
    case
}

fn node_port_from_node_without_endpoint(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Node, 30_080));
    let mut case = Case::new(net.serving(NODE_PORT, Reach::Node, &[]));
    let syn = Packet::syn(client, service);
    case.send(Hook::Egress, device::LO, &syn)
        .refuses(Reason::NoEndpoint, &super::reset_for(&syn));
    case
}

fn host_port(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Node, 8080));
    let pod = net.at(Host::PodA, 80);
    let world = net.serving((Host::Node, 8080), Reach::Node, &[(Host::PodA, 80)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::pod_a());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::router());
    case.carries_anew(
        Hook::Ingress,
        device::POD_A,
        &Packet::tcp(pod, client),
        &answer,
    );
    case
}

fn host_port_from_itself(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Node, 8080));
    let (pod, node) = (net.at(Host::PodA, 80), net.at(Host::Node, CLAIMED));
    let world = net.serving((Host::Node, 8080), Reach::Node, &[(Host::PodA, 80)]);
    let made = tcp_connection(&world, (client, service), (node, pod), Next::pod_a());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::pod_a());
    case.carries_anew(
        Hook::Ingress,
        device::POD_A,
        &Packet::tcp(pod, node),
        &answer,
    );
    case
}
fn udp_host_port_from_node(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Node, 5000));
    let pod = net.at(Host::PodA, 5000);
    let world = net.offering(
        number::UDP,
        (Host::Node, 5000),
        Reach::Node,
        &[(Host::PodA, 5000)],
    );
    let made = connection(
        &world,
        number::UDP,
        (client, service),
        (client, pod),
        Next::pod_a(),
    )
    .through_loopback();
    let mut case = Case::new(world);
    case.opens(
        Hook::Egress,
        device::LO,
        &Packet::udp(client, service),
        &made,
    );
    let answer = made.answer_by(Next::LOCAL);
    case.carries_anew(
        Hook::Ingress,
        device::POD_A,
        &Packet::udp(pod, client),
        &answer,
    );
    case
}

//! Packets that are larger than the next hop takes.

use super::{Entry, Net, both, connection, only, tcp_connection, too_large_for};
use crate::case::place::{Host, Next, Version, device};
use crate::case::world::{CLAIMED, Reach};
use crate::case::{Case, Connection, Hook};
use crate::packet::{Packet, number};
use proxy_common::abi::FlowStep;
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("sender_is_told", told),
    both("sender_is_told_by_xdp", told_by_xdp),
    both("backend_is_told", backend_told),
    both("udp_sender_is_told", udp_told),
    both("first_packet_is_told_and_makes_its_flow", first),
    both("as_large_as_the_mtu_is_carried", exact),
    both("tags_do_not_count", tagged),
    only(Version::V4, "may_be_cut_by_the_stack", cut),
    only(Version::V4, "options_are_not_answered", options),
];

/// A pod's connection to a remote pod.
fn opened(net: Net) -> (Case, Connection) {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let backends = [(Host::RemoteA, 8080)];
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &backends);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    (case, made)
}

/// A segment that makes a packet of `length` bytes from the IP header on.
fn sized(net: Net, (from, to): (Host, u16), (at, port): (Host, u16), length: usize) -> Packet {
    let mut packet = Packet::tcp(net.at(from, to), net.at(at, port)).payload(&[]);
    let now = packet.bytes().len() - packet.link_length();
    packet.payload = vec![7; length - now];
    packet
}

fn told(net: Net) -> Case {
    let (mut case, _) = opened(net);
    let large = sized(net, (Host::PodA, 40_000), (Host::Cluster, 80), 1_502);
    case.send(Hook::Ingress, device::POD_A, &large)
        .refuses(Reason::TooLarge, &too_large_for(&large));
    case
}

fn backend_told(net: Net) -> Case {
    // The answers go to a client outside by the uplink; the backend hears it from the client's address.
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let pod = net.at(Host::PodA, 8080);
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &[(Host::PodA, 8080)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::pod_a());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::router());
    let small = Packet::tcp(pod, client);
    case.carries_anew(Hook::Ingress, device::POD_A, &small, &answer);
    let large = sized(net, (Host::PodA, 8080), (Host::Client, 40_000), 2_000);
    case.send(Hook::Ingress, device::POD_A, &large)
        .refuses(Reason::TooLarge, &too_large_for(&large));
    case
}

fn told_by_xdp(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (net.at(Host::RemoteA, 80), net.at(Host::Node, CLAIMED));
    let backends = [(Host::RemoteA, 80)];
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &backends);
    let made = tcp_connection(&world, (client, service), (node, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &made);
    let large = sized(net, (Host::Client, 40_000), (Host::Balancer, 80), 1_600);
    case.send(Hook::Xdp, device::UP0, &large)
        .refuses(Reason::TooLarge, &too_large_for(&large));
    case
}

fn udp_told(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 53));
    let pod = net.at(Host::RemoteA, 53);
    let backends = [(Host::RemoteA, 53)];
    let world = net.offering(number::UDP, (Host::Cluster, 53), Reach::Cluster, &backends);
    let ways = ((client, service), (client, pod));
    let made = connection(&world, number::UDP, ways.0, ways.1, Next::peer());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::udp(client, service),
        &made,
    );
    let large = Packet::udp(client, service).payload(&[7; 1_600]);
    case.send(Hook::Ingress, device::POD_A, &large)
        .refuses(Reason::TooLarge, &too_large_for(&large));
    case
}

fn first(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let backends = [(Host::RemoteA, 8080)];
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &backends);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    let large = sized(net, (Host::PodA, 40_000), (Host::Cluster, 80), 1_600);
    case.send(Hook::Ingress, device::POD_A, &large)
        .makes(&made, crate::case::world::TICK)
        .refuses(Reason::TooLarge, &too_large_for(&large));
    let small = Packet::tcp(client, service);
    case.carries(Hook::Ingress, device::POD_A, &small, &made.forward);
    case
}

fn exact(net: Net) -> Case {
    let (mut case, made) = opened(net);
    let exact = sized(net, (Host::PodA, 40_000), (Host::Cluster, 80), 1_500);
    case.carries(Hook::Ingress, device::POD_A, &exact, &made.forward);
    case
}

fn tagged(net: Net) -> Case {
    let (client, service) = (net.at(Host::VlanClient, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (net.at(Host::VlanPod, 80), net.at(Host::NodeOnVlan, CLAIMED));
    let backends = [(Host::VlanPod, 80)];
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &backends);
    let mut made = tcp_connection(&world, (client, service), (node, pod), Next::vlan());
    made.forward.vlan = crate::case::world::tags(5, 0);
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service).vlan(5);
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    let exact = sized(net, (Host::VlanClient, 40_000), (Host::Balancer, 80), 1_500).vlan(5);
    case.carries(Hook::Ingress, device::UP0, &exact, &made.forward);
    let large = sized(net, (Host::VlanClient, 40_000), (Host::Balancer, 80), 1_501).vlan(5);
    case.send(Hook::Xdp, device::UP0, &large)
        .refuses(Reason::TooLarge, &too_large_for(&large));
    case
}

fn cut(net: Net) -> Case {
    let (mut case, made) = opened(net);
    let mut large = sized(net, (Host::PodA, 40_000), (Host::Cluster, 80), 1_600);
    large.flags_offset = 0;
    let mut way = made.forward;
    way.next.step = FlowStep::Stack;
    case.carries(Hook::Ingress, device::POD_A, &large, &way);
    // The flow itself goes on as before.
    let small = Packet::tcp(made.forward.tuple.source, made.forward.tuple.destination);
    case.carries(Hook::Ingress, device::POD_A, &small, &made.forward);
    case
}

fn options(net: Net) -> Case {
    let (mut case, _) = opened(net);
    let large = sized(net, (Host::PodA, 40_000), (Host::Cluster, 80), 1_600);
    let large = large.options(&[1, 1, 1, 0]);
    case.send(Hook::Ingress, device::POD_A, &large)
        .drops(Reason::TooLarge);
    case
}

//! Each kind of service, from each kind of client, to each kind of backend.

use super::{Entry, Net, both, connection, tcp_connection, tuple};
use crate::case::place::{Host, Next, device};
use crate::case::world::{CLAIMED, Reach};
use crate::case::{Case, Connection, Hook};
use crate::packet::{Packet, flag, number};
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("cluster_address_from_pod_to_remote_pod", pod_to_remote),
    both(
        "cluster_address_from_pod_to_neighbour_pod",
        pod_to_neighbour,
    ),
    both("cluster_address_from_pod_to_this_node", pod_to_node),
    both("cluster_address_from_pod_to_itself", pod_to_itself),
    both(
        "cluster_address_from_this_node_to_remote_pod",
        node_to_remote,
    ),
    both("cluster_address_from_this_node_to_local_pod", node_to_local),
    both("cluster_address_from_this_node_to_itself", node_to_itself),
    both(
        "cluster_address_from_outside_is_dropped",
        outside_to_cluster,
    ),
    both("balancer_from_outside_to_remote_pod", outside_to_remote),
    both(
        "balancer_from_outside_to_remote_pod_at_tc",
        outside_to_remote_at_tc,
    ),
    both("balancer_from_outside_to_local_pod", outside_to_local),
    both("balancer_from_outside_to_this_node", outside_to_node),
    both("balancer_from_pod_to_remote_pod", pod_to_balancer),
    both("udp_from_pod_and_back", udp_from_pod),
    both("udp_from_outside_and_back", udp_from_outside),
    both("sctp_from_pod_keeps_its_checksum", sctp_from_pod),
    both("two_ways_to_one_service", two_ways),
];

fn pod_to_remote(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::pod_a());
    let accepted = Packet::syn(pod, client).flags(flag::SYN | flag::ACK);
    case.carries_anew(Hook::Ingress, device::UP0, &accepted, &answer);
    let data = Packet::tcp(client, service);
    case.carries(Hook::Ingress, device::POD_A, &data, &made.forward);
    case.carries(Hook::Ingress, device::POD_A, &data, &made.forward);
    case.carries(
        Hook::Ingress,
        device::UP0,
        &Packet::tcp(pod, client),
        &answer,
    );
    case
}

fn pod_to_neighbour(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::PodB, 8080);
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &[(Host::PodB, 8080)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::pod_b());
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
        device::POD_B,
        &Packet::tcp(pod, client),
        &answer,
    );
    case
}

fn pod_to_node(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 443));
    let node = net.at(Host::Node, 6443);
    let world = net.serving((Host::Cluster, 443), Reach::Cluster, &[(Host::Node, 6443)]);
    let made = tcp_connection(&world, (client, service), (client, node), Next::LOCAL);
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    // The node's answer leaves by the pod's device, where the egress hook meets it.
    let answer = made.answer_by(Next::pod_a());
    case.carries_anew(
        Hook::Egress,
        device::POD_A,
        &Packet::tcp(node, client),
        &answer,
    );
    case
}

fn pod_to_itself(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let (pod, node) = (net.at(Host::PodA, 8080), net.at(Host::Node, CLAIMED));
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &[(Host::PodA, 8080)]);
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

fn node_to_remote(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(
        Hook::Egress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::LOCAL);
    let back = Packet::tcp(pod, client);
    // XDP leaves what ends here to TC. It has asked for the hop by then.
    case.send(Hook::Xdp, device::UP0, &back)
        .resolved(&answer, crate::case::world::TICK);
    case.carries(Hook::Ingress, device::UP0, &back, &answer);
    case
}

fn node_to_local(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::PodA, 8080);
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &[(Host::PodA, 8080)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::pod_a());
    let mut case = Case::new(world);
    case.opens(
        Hook::Egress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::LOCAL);
    case.carries_anew(
        Hook::Ingress,
        device::POD_A,
        &Packet::tcp(pod, client),
        &answer,
    );
    case
}

fn node_to_itself(net: Net) -> Case {
    // To the cluster address it leaves by the uplink; the server's answer to an own address does not.
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Cluster, 443));
    let node = net.at(Host::Node, 6443);
    let world = net.serving((Host::Cluster, 443), Reach::Cluster, &[(Host::Node, 6443)]);
    let made = tcp_connection(&world, (client, service), (client, node), Next::LOCAL);
    let mut case = Case::new(world);
    case.opens(
        Hook::Egress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    let answer = made.answer_by(Next::LOCAL);
    case.carries_anew(
        Hook::Egress,
        device::LO,
        &Packet::tcp(node, client),
        &answer,
    );
    case
}

fn outside_to_cluster(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Cluster, 80));
    let world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    let mut case = Case::new(world);
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &Packet::syn(client, service))
            .drops(Reason::OutsideClusterAddress);
        case.send(hook, device::UP0, &Packet::udp(client, service))
            .drops(Reason::OutsideClusterAddress);
    }
    case
}

fn balanced(net: Net, backend: Host) -> (Case, Connection, Packet) {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 443));
    let at = net.at(backend, 8443);
    let world = net.serving((Host::Balancer, 443), Reach::Balancer, &[(backend, 8443)]);
    let (seen, hop) = match backend {
        Host::PodA => (client, Next::pod_a()),
        Host::Node => (client, Next::LOCAL),
        _ => (net.at(Host::Node, CLAIMED), Next::peer()),
    };
    let made = tcp_connection(&world, (client, service), (seen, at), hop);
    (Case::new(world), made, Packet::tcp(at, seen))
}

fn outside_to_remote(net: Net) -> Case {
    let (mut case, made, back) = balanced(net, Host::RemoteA);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &made);
    let answer = made.answer_by(Next::router());
    case.carries_anew(Hook::Xdp, device::UP0, &back, &answer);
    case.carries(
        Hook::Xdp,
        device::UP0,
        &Packet::tcp(client, service),
        &made.forward,
    );
    case.carries(Hook::Ingress, device::UP0, &back, &answer);
    case
}

fn outside_to_remote_at_tc(net: Net) -> Case {
    let (mut case, made, back) = balanced(net, Host::RemoteA);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    case.carries_anew(
        Hook::Ingress,
        device::UP0,
        &back,
        &made.answer_by(Next::router()),
    );
    case
}

fn outside_to_local(net: Net) -> Case {
    let (mut case, made, back) = balanced(net, Host::PodA);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let syn = Packet::syn(client, service);
    case.send(Hook::Xdp, device::UP0, &syn);
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    case.send(Hook::Xdp, device::UP0, &Packet::tcp(client, service));
    case.carries_anew(
        Hook::Ingress,
        device::POD_A,
        &back,
        &made.answer_by(Next::router()),
    );
    case
}

fn outside_to_node(net: Net) -> Case {
    let (mut case, made, back) = balanced(net, Host::Node);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    case.send(Hook::Xdp, device::UP0, &Packet::syn(client, service));
    case.opens(
        Hook::Ingress,
        device::UP0,
        &Packet::syn(client, service),
        &made,
    );
    case.carries_anew(
        Hook::Egress,
        device::UP0,
        &back,
        &made.answer_by(Next::router()),
    );
    case
}

fn pod_to_balancer(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Balancer, 443));
    let pod = net.at(Host::RemoteA, 8443);
    let world = net.serving(
        (Host::Balancer, 443),
        Reach::Balancer,
        &[(Host::RemoteA, 8443)],
    );
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

fn udp_from_pod(net: Net) -> Case {
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
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::udp(client, service),
        &made,
    );
    let answer = made.answer_by(Next::pod_a());
    case.carries_anew(
        Hook::Ingress,
        device::UP0,
        &Packet::udp(pod, client),
        &answer,
    );
    case.carries(
        Hook::Ingress,
        device::POD_A,
        &Packet::udp(client, service),
        &made.forward,
    );
    // TCP at the same address and port is another service, and there is none.
    let syn = Packet::syn(client, service);
    case.send(Hook::Ingress, device::POD_A, &syn)
        .refuses(Reason::UnknownPort, &super::reset_for(&syn));
    case
}

fn udp_from_outside(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 53));
    let (pod, node) = (net.at(Host::RemoteA, 5353), net.at(Host::Node, CLAIMED));
    let backends = [(Host::RemoteA, 5353)];
    let world = net.offering(
        number::UDP,
        (Host::Balancer, 53),
        Reach::Balancer,
        &backends,
    );
    let made = connection(
        &world,
        number::UDP,
        (client, service),
        (node, pod),
        Next::peer(),
    );
    let mut case = Case::new(world);
    case.opens(Hook::Xdp, device::UP0, &Packet::udp(client, service), &made);
    let answer = made.answer_by(Next::router());
    case.carries_anew(Hook::Xdp, device::UP0, &Packet::udp(pod, node), &answer);
    let odd = Packet::udp(client, service).payload(b"odd");
    case.carries(Hook::Xdp, device::UP0, &odd, &made.forward);
    case.carries(Hook::Ingress, device::UP0, &odd, &made.forward);
    case
}

fn sctp_from_pod(net: Net) -> Case {
    // The port stays, as SCTP's CRC covers it; addresses are not covered.
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 3868));
    let pod = net.at(Host::RemoteA, 3868);
    let backends = [(Host::RemoteA, 3868)];
    let world = net.offering(
        number::SCTP,
        (Host::Cluster, 3868),
        Reach::Cluster,
        &backends,
    );
    let made = connection(
        &world,
        number::SCTP,
        (client, service),
        (client, pod),
        Next::peer(),
    );
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::sctp(client, service),
        &made,
    );
    let answer = made.answer_by(Next::pod_a());
    case.carries_anew(
        Hook::Ingress,
        device::UP0,
        &Packet::sctp(pod, client),
        &answer,
    );
    case
}

fn two_ways(net: Net) -> Case {
    // A cluster address and a balancer's lead to the same backends: two connections, told apart.
    let client = net.at(Host::PodA, 40_000);
    let (cluster, balancer) = (net.at(Host::Cluster, 80), net.at(Host::Balancer, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let mut world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    world.alias(number::TCP, balancer, Reach::Balancer, cluster);
    let one = tcp_connection(&world, (client, cluster), (client, pod), Next::peer());
    let other = net.at(Host::PodA, 40_001);
    let two = Connection::new(
        &world,
        tuple(number::TCP, other, balancer),
        tuple(number::TCP, other, pod),
        1,
        Next::peer(),
    );
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, cluster),
        &one,
    );
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(other, balancer),
        &two,
    );
    let back = Packet::tcp(pod, other);
    case.carries_anew(
        Hook::Ingress,
        device::UP0,
        &back,
        &two.answer_by(Next::pod_a()),
    );
    case
}

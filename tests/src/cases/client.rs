//! Which clients a service lets in, and whom it keeps them with.

use super::{Entry, Net, both, tuple};
use crate::case::place::{Host, Next, device};
use crate::case::world::{CLAIMED, Reach, TICK};
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, number};
use ipnet::IpNet;
use proxy_common::abi::{Backend, backend_flag};
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("source_in_a_range_is_let_in", admitted),
    both("source_in_no_range_is_dropped", not_admitted),
    both("sources_of_another_service_do_not_count", other_service),
    both("sources_count_for_pods_and_this_node", inside),
    both("client_stays_with_its_backend", stays),
    both("client_stays_whatever_the_address", stays_at_any_address),
    both("client_is_let_go_at_its_time", let_go),
    both("each_connection_keeps_the_client_longer", renewed),
    both("backend_that_is_gone_is_not_kept", gone),
    both("backend_that_stops_is_not_kept", stopped),
    both(
        "backend_elsewhere_is_not_kept_where_policy_is_local",
        elsewhere,
    ),
    both("clients_are_kept_apart", apart),
    both("client_over_udp_is_kept", udp),
];

const PODS: [Host; 3] = [Host::RemoteA, Host::RemoteB, Host::RemoteC];

/// A service at the cluster's address and a balancer's, that keeps clients for ten seconds.
fn keeping(net: Net, protocol: u8) -> World {
    let backends = PODS.map(|pod| (pod, 8080));
    let mut world = net.offering(protocol, (Host::Cluster, 80), Reach::Cluster, &backends);
    let cluster = net.at(Host::Cluster, 80);
    world.keep_clients(protocol, cluster, 10);
    let id = world
        .services
        .values()
        .next()
        .map_or(0, |service| service.id);
    let (balancer, key) = (net.at(Host::Balancer, 80), (cluster, protocol));
    world.alias(protocol, balancer, Reach::Balancer, cluster);
    debug_assert_eq!(world.services.get(&key).map(|s| s.id), Some(id));
    world
}

/// Keeps a client of the only service with a backend, as of a tick.
fn with(net: Net, world: &mut World, client: Host, backend: u32, tick: u32) {
    let id = world
        .services
        .values()
        .next()
        .map_or(0, |service| service.id);
    world
        .affinities
        .insert((net.ip(client), id), (backend, 1, tick));
}

/// A connection of a pod to a backend by its number.
fn to(net: Net, world: &World, at: Host, port: u16, backend: u32) -> Connection {
    let client = net.at(Host::PodA, port);
    let pod = PODS.get(backend as usize - 1).copied();
    let pod = net.at(pod.unwrap_or(Host::Nowhere), 8080);
    Connection::new(
        world,
        tuple(number::TCP, client, net.at(at, 80)),
        tuple(number::TCP, client, pod),
        backend,
        Next::peer(),
    )
}

fn opens(net: Net, case: &mut Case, made: &Connection, now: u32) {
    let sent = made.forward.tuple;
    let syn = Packet::syn(sent.source, sent.destination);
    debug_assert_eq!(sent.source.ip(), net.ip(Host::PodA));
    case.send(Hook::Ingress, device::POD_A, &syn)
        .after(move |world| world.tick = now)
        .opens(&syn, made, now)
        .keeps(made, now);
}

fn restricted(net: Net, ranges: &[IpNet]) -> World {
    let service = net.at(Host::Balancer, 80);
    let mut world = net.serving(
        (Host::Balancer, 80),
        Reach::Balancer,
        &[(Host::RemoteA, 8080)],
    );
    world.restrict(number::TCP, service, ranges);
    world
}

/// The range around an address that is so many bits shorter than the whole.
fn around(net: Net, host: Host, bits: u8) -> IpNet {
    let whole = IpNet::from(net.ip(host));
    IpNet::new(whole.addr(), whole.prefix_len() - bits).map_or(whole, |range| range.trunc())
}

fn admitted(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let (pod, node) = (net.at(Host::RemoteA, 8080), net.at(Host::Node, CLAIMED));
    let world = restricted(
        net,
        &[around(net, Host::Foreign, 2), around(net, Host::Client, 4)],
    );
    let sent = (client, service);
    let made = super::tcp_connection(&world, sent, (node, pod), Next::peer());
    let mut case = Case::new(world);
    case.opens(Hook::Xdp, device::UP0, &Packet::syn(client, service), &made);
    // What is made stays, whatever becomes of the ranges.
    let data = Packet::tcp(client, service);
    case.send(Hook::Xdp, device::UP0, &data)
        .after(|world| world.sources.clear())
        .carries(&data, &made.forward);
    case
}

fn not_admitted(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let other = around(net, Host::OtherClient, 0);
    let mut case = Case::new(restricted(net, &[other]));
    for hook in [Hook::Xdp, Hook::Ingress] {
        case.send(hook, device::UP0, &Packet::syn(client, service))
            .drops(Reason::SourceNotAllowed);
    }
    // Not one range of this family: nobody.
    case.send(Hook::Xdp, device::UP0, &Packet::syn(client, service))
        .after(|world| world.sources.clear())
        .drops(Reason::SourceNotAllowed);
    case
}

fn other_service(net: Net) -> Case {
    let (client, service) = (net.at(Host::Client, 40_000), net.at(Host::Balancer, 80));
    let mut world = restricted(net, &[]);
    world.sources.insert((1, around(net, Host::Client, 0)));
    let mut case = Case::new(world);
    case.send(Hook::Xdp, device::UP0, &Packet::syn(client, service))
        .drops(Reason::SourceNotAllowed);
    case
}

fn inside(net: Net) -> Case {
    let service = net.at(Host::Balancer, 80);
    let mut case = Case::new(restricted(net, &[around(net, Host::Client, 0)]));
    for (hook, device, client) in [
        (Hook::Ingress, device::POD_A, Host::PodA),
        (Hook::Egress, device::UP0, Host::Node),
    ] {
        case.send(hook, device, &Packet::syn(net.at(client, 40_000), service))
            .drops(Reason::SourceNotAllowed);
    }
    case
}

fn stays(net: Net) -> Case {
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 2, TICK);
    for port in 40_000..40_012 {
        let made = to(net, &case.world, Host::Cluster, port, 2);
        opens(net, &mut case, &made, TICK);
    }
    case
}

fn stays_at_any_address(net: Net) -> Case {
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 3, TICK);
    for (at, port) in [
        (Host::Cluster, 40_000),
        (Host::Balancer, 40_001),
        (Host::Balancer, 40_002),
    ] {
        let made = to(net, &case.world, at, port, 3);
        opens(net, &mut case, &made, TICK);
    }
    case
}

/// Where nobody is kept there is one backend left to choose.
fn alone(net: Net, backend: u32, case: &mut Case) {
    for service in case.world.services.values_mut() {
        service.first_slot = backend;
        service.slots = 1;
    }
    let made = to(net, &case.world, Host::Cluster, 40_000, backend);
    opens(net, case, &made, TICK);
}

fn let_go(net: Net) -> Case {
    // In the tenth second of silence it is kept; after ten whole ones it isn't.
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 2, TICK - 9);
    let made = to(net, &case.world, Host::Cluster, 40_001, 2);
    for service in case.world.services.values_mut() {
        service.first_slot = 1;
        service.slots = 1;
    }
    opens(net, &mut case, &made, TICK);
    let fresh = to(net, &case.world, Host::Cluster, 40_002, 1);
    opens(net, &mut case, &fresh, TICK + 10);
    case
}

fn renewed(net: Net) -> Case {
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 2, TICK);
    for (port, now) in [(40_001, TICK + 9), (40_002, TICK + 18), (40_003, TICK + 27)] {
        let made = to(net, &case.world, Host::Cluster, port, 2);
        opens(net, &mut case, &made, now);
    }
    case
}

fn gone(net: Net) -> Case {
    // Its index may be another endpoint's by now, even of the same service.
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 2, TICK);
    if let Some(backend) = case.world.backends.get_mut(&2) {
        backend.generation += 1;
    }
    alone(net, 3, &mut case);
    case
}

fn stopped(net: Net) -> Case {
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 2, TICK);
    if let Some(backend) = case.world.backends.get_mut(&2) {
        backend.flags = 0;
    }
    alone(net, 1, &mut case);
    case
}

fn elsewhere(net: Net) -> Case {
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodA, 2, TICK);
    case.world
        .keep_local(number::TCP, net.at(Host::Cluster, 80), &[3]);
    let made = to(net, &case.world, Host::Cluster, 40_000, 3);
    opens(net, &mut case, &made, TICK);
    // And there it stays.
    let made = to(net, &case.world, Host::Cluster, 40_001, 3);
    opens(net, &mut case, &made, TICK);
    case
}

fn apart(net: Net) -> Case {
    // Another client's backend, and this client's at another service, don't count.
    let mut case = Case::new(keeping(net, number::TCP));
    with(net, &mut case.world, Host::PodB, 2, TICK);
    case.world
        .affinities
        .insert((net.ip(Host::PodA), 1), (2, 1, TICK));
    let stray = Backend {
        service: 1,
        generation: 1,
        flags: backend_flag::SERVING | backend_flag::CLUSTER,
        ..case.world.backends.get(&2).copied().unwrap_or_default()
    };
    case.world.backends.insert(9, stray);
    alone(net, 1, &mut case);
    case
}

fn udp(net: Net) -> Case {
    let mut case = Case::new(keeping(net, number::UDP));
    with(net, &mut case.world, Host::PodA, 3, TICK);
    for port in [40_000, 40_001, 40_002] {
        let client = net.at(Host::PodA, port);
        let service = net.at(Host::Cluster, 80);
        let pod = net.at(Host::RemoteC, 8080);
        let made = Connection::new(
            &case.world,
            tuple(number::UDP, client, service),
            tuple(number::UDP, client, pod),
            3,
            Next::peer(),
        );
        let datagram = Packet::udp(client, service);
        case.opens(Hook::Ingress, device::POD_A, &datagram, &made)
            .keeps(&made, TICK);
        // Of an open flow nothing is noted.
        case.carries(Hook::Ingress, device::POD_A, &datagram, &made.forward);
    }
    case
}

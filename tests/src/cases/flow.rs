//! Established connections: counters, states, time, and backends that come and go.

use super::{Entry, Net, both, connection, reset_for, tcp_connection, tuple};
use crate::case::place::{Host, Next, RouteKind, device};
use crate::case::world::{Reach, TICK};
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, flag, number};
use ipnet::IpNet;
use proxy_common::abi::{backend_flag, flow_state};
use proxy_common::datapath::Reason;

pub(super) const CASES: &[Entry] = &[
    both("counts_both_directions", counts),
    both("fin_is_noted_in_both_entries", fin),
    both("reset_is_noted_in_both_entries", reset),
    both("syn_again_while_established_is_carried", syn_again),
    both("syn_after_fin_makes_a_new_connection", |net| {
        reused(net, flag::FIN | flag::ACK)
    }),
    both("syn_after_reset_makes_a_new_connection", |net| {
        reused(net, flag::RST)
    }),
    both("syn_ack_after_fin_is_carried", syn_ack_after_fin),
    both("backend_gone_resets_the_client", |net| gone(net, true)),
    both("backend_gone_resets_the_backend", |net| gone(net, false)),
    both("backend_gone_and_syn_chooses_anew", gone_syn),
    both("backend_gone_and_udp_chooses_anew", gone_udp),
    both("draining_backend_keeps_tcp", draining_tcp),
    both("draining_backend_loses_udp", draining_udp),
    both("draining_backend_may_still_answer", draining_answer),
    both("next_hop_is_asked_for_once_a_tick", refresh),
    both("unresolved_neighbour_is_found_at_the_next_tick", learned),
    both("vanished_route_drops", vanished),
    both("last_hop_is_left_to_the_stack", last_hop),
    both("last_hop_opens_without_carrying", last_hop_opens),
    both("last_hop_does_not_matter_on_the_way_out", last_hop_egress),
    both("unknown_record_is_left_to_xdps_successor", xdp_passes_pods),
];

struct Opened {
    case: Case,
    made: Connection,
    data: Packet,
    back: Packet,
}

/// A pod's TCP connection to a remote pod, opened and answered.
fn opened(net: Net) -> Opened {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let mut world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    world.tick = TICK;
    let mut made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    made.answer = made.answer_by(Next::pod_a());
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    let accepted = Packet::syn(pod, client).flags(flag::SYN | flag::ACK);
    let answer = made.answer;
    case.carries_anew(Hook::Ingress, device::UP0, &accepted, &answer);
    Opened {
        case,
        made,
        data: Packet::tcp(client, service),
        back: Packet::tcp(pod, client),
    }
}

fn counts(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        back,
    } = opened(net);
    for length in [0, 1, 2, 100, 1_400] {
        let payload = vec![b'x'; length];
        let (data, back) = (
            data.clone().payload(&payload),
            back.clone().payload(&payload),
        );
        case.carries(Hook::Ingress, device::POD_A, &data, &made.forward);
        case.carries(Hook::Ingress, device::UP0, &back, &made.answer);
    }
    case
}

fn fin(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        back,
    } = opened(net);
    let (ours, theirs) = (made.forward, made.answer);
    let last = data.clone().flags(flag::FIN | flag::ACK);
    case.carries(Hook::Ingress, device::POD_A, &last, &ours)
        .entry(ours.tuple, |entry| entry.state |= flow_state::FIN)
        .entry(theirs.tuple, |entry| entry.state |= flow_state::PEER_FIN);
    // Half closed: the other direction goes on.
    case.carries(Hook::Ingress, device::UP0, &back, &theirs);
    let last = back.flags(flag::FIN | flag::ACK);
    case.carries(Hook::Ingress, device::UP0, &last, &theirs)
        .entry(theirs.tuple, |entry| entry.state |= flow_state::FIN)
        .entry(ours.tuple, |entry| entry.state |= flow_state::PEER_FIN);
    case.carries(Hook::Ingress, device::POD_A, &data, &ours);
    case
}

fn reset(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        back,
        ..
    } = opened(net);
    let last = back.flags(flag::RST).payload(b"");
    case.carries(Hook::Ingress, device::UP0, &last, &made.answer)
        .entry(made.answer.tuple, |entry| entry.state |= flow_state::RST)
        .entry(made.forward.tuple, |entry| entry.state |= flow_state::RST);
    case
}

fn syn_again(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        ..
    } = opened(net);
    let (client, service) = data.ends();
    case.carries(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made.forward,
    );
    case
}

fn reused(net: Net, ending: u8) -> Case {
    let Opened {
        mut case,
        made,
        data,
        ..
    } = opened(net);
    let noted = if ending & flag::RST != 0 {
        (flow_state::RST, flow_state::RST)
    } else {
        (flow_state::FIN, flow_state::PEER_FIN)
    };
    let last = data.clone().flags(ending);
    case.carries(Hook::Ingress, device::POD_A, &last, &made.forward)
        .entry(made.forward.tuple, move |entry| entry.state |= noted.0)
        .entry(made.answer.tuple, move |entry| entry.state |= noted.1);
    let (client, service) = data.ends();
    // Both entries go and come again, with fresh counters.
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    case
}

fn syn_ack_after_fin(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        ..
    } = opened(net);
    let last = data.clone().flags(flag::FIN | flag::ACK);
    case.carries(Hook::Ingress, device::POD_A, &last, &made.forward)
        .entry(made.forward.tuple, |entry| entry.state |= flow_state::FIN)
        .entry(made.answer.tuple, |entry| {
            entry.state |= flow_state::PEER_FIN;
        });
    let odd = data.flags(flag::SYN | flag::ACK);
    case.carries(Hook::Ingress, device::POD_A, &odd, &made.forward);
    case
}

/// The backend's index has been given up.
fn give_up(world: &mut World) {
    if let Some(backend) = world.backends.get_mut(&1) {
        backend.generation += 1;
        backend.flags = 0;
    }
}

fn gone(net: Net, from_client: bool) -> Case {
    let Opened {
        mut case,
        made,
        data,
        back,
    } = opened(net);
    let (ifindex, packet) = if from_client {
        (device::POD_A, data)
    } else {
        (device::UP0, back)
    };
    case.send(Hook::Ingress, ifindex, &packet)
        .after(give_up)
        .refuses(Reason::BackendGone, &reset_for(&packet))
        .forgets(&made);
    case
}

/// A service with two backends, where the first is about to go: the connection before, and after.
fn moving(net: Net, protocol: u8) -> (Case, Connection, Connection) {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let (old, new) = (net.at(Host::RemoteA, 8080), net.at(Host::PodB, 8080));
    let mut world = net.offering(
        protocol,
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080), (Host::PodB, 8080)],
    );
    only_slot(&mut world, 1);
    let before = connection(
        &world,
        protocol,
        (client, service),
        (client, old),
        Next::peer(),
    );
    let after = Connection::new(
        &world,
        tuple(protocol, client, service),
        tuple(protocol, client, new),
        2,
        Next::pod_b(),
    );
    (Case::new(world), before, after)
}

/// Leaves one backend in the first service's slots.
fn only_slot(world: &mut World, backend: u32) {
    for service in world.services.values_mut() {
        service.slots = 1;
    }
    world.slots.insert(1, backend);
}

fn gone_syn(net: Net) -> Case {
    let (mut case, before, after) = moving(net, number::TCP);
    let (client, service) = (
        before.forward.tuple.source,
        before.forward.tuple.destination,
    );
    let syn = Packet::syn(client, service);
    case.opens(Hook::Ingress, device::POD_A, &syn, &before);
    case.send(Hook::Ingress, device::POD_A, &syn)
        .after(|world| {
            give_up(world);
            only_slot(world, 2);
        })
        .forgets(&before)
        .opens(&syn, &after, TICK);
    case
}

fn gone_udp(net: Net) -> Case {
    let (mut case, before, after) = moving(net, number::UDP);
    let (client, service) = (
        before.forward.tuple.source,
        before.forward.tuple.destination,
    );
    let datagram = Packet::udp(client, service);
    case.opens(Hook::Ingress, device::POD_A, &datagram, &before);
    case.send(Hook::Ingress, device::POD_A, &datagram)
        .after(|world| {
            give_up(world);
            only_slot(world, 2);
        })
        .forgets(&before)
        .opens(&datagram, &after, TICK);
    case
}

fn drain(world: &mut World) {
    if let Some(backend) = world.backends.get_mut(&1) {
        backend.flags &= !backend_flag::SERVING;
    }
    only_slot(world, 2);
}

fn draining_tcp(net: Net) -> Case {
    let (mut case, before, after) = moving(net, number::TCP);
    let (client, service) = (
        before.forward.tuple.source,
        before.forward.tuple.destination,
    );
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &before,
    );
    case.carries(
        Hook::Ingress,
        device::POD_A,
        &Packet::tcp(client, service),
        &before.forward,
    )
    .after(drain);
    // A new connection goes elsewhere.
    let (client, pod) = (
        net.at(Host::PodA, 40_001),
        after.forward.rewritten.destination,
    );
    let new = Connection::new(
        &case.world,
        tuple(number::TCP, client, service),
        tuple(number::TCP, client, pod),
        2,
        Next::pod_b(),
    );
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &new,
    );
    case
}

fn draining_udp(net: Net) -> Case {
    let (mut case, before, after) = moving(net, number::UDP);
    let (client, service) = (
        before.forward.tuple.source,
        before.forward.tuple.destination,
    );
    let datagram = Packet::udp(client, service);
    case.opens(Hook::Ingress, device::POD_A, &datagram, &before);
    case.send(Hook::Ingress, device::POD_A, &datagram)
        .after(drain)
        .forgets(&before)
        .opens(&datagram, &after, TICK);
    case
}

fn draining_answer(net: Net) -> Case {
    let (mut case, before, _) = moving(net, number::UDP);
    let (client, service) = (
        before.forward.tuple.source,
        before.forward.tuple.destination,
    );
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::udp(client, service),
        &before,
    );
    let answer = before.answer_by(Next::pod_a());
    let back = Packet::udp(answer.tuple.source, answer.tuple.destination);
    case.carries_anew(Hook::Ingress, device::UP0, &back, &answer)
        .after(drain);
    case
}

fn refresh(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        ..
    } = opened(net);
    let pod = IpNet::from(net.ip(Host::RemoteA));
    let side = RouteKind::Via(net.ip(Host::SideRouter), device::UP1);
    // The route has changed, but this tick has asked already.
    case.carries(Hook::Ingress, device::POD_A, &data, &made.forward)
        .after(move |world| {
            world.routes.insert(pod, side);
        });
    let mut moved = made.forward;
    moved.next = Next::side();
    case.send(Hook::Ingress, device::POD_A, &data)
        .after(|world| world.tick += 1)
        .carries(&data, &moved)
        .resolved(&moved, TICK + 1);
    case.carries(Hook::Ingress, device::POD_A, &data, &moved);
    case
}

fn learned(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::Lost, 8080);
    let world = net.serving((Host::Cluster, 80), Reach::Cluster, &[(Host::Lost, 8080)]);
    let made = tcp_connection(&world, (client, service), (client, pod), Next::LOST);
    let mut case = Case::new(world);
    case.opens(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service),
        &made,
    );
    let data = Packet::tcp(client, service);
    case.carries(Hook::Ingress, device::POD_A, &data, &made.forward);
    let mut found = made.forward;
    found.next = Next::peer();
    let router = net.ip(Host::LostRouter);
    case.send(Hook::Ingress, device::POD_A, &data)
        .after(move |world| {
            world.tick += 1;
            world
                .neighbours
                .insert((device::UP0, router), found.next.destination);
        })
        .carries(&data, &found)
        .resolved(&found, TICK + 1);
    case
}

fn vanished(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        ..
    } = opened(net);
    let pod = IpNet::from(net.ip(Host::RemoteA));
    let mut lost = made.forward;
    lost.next = Next::UNKNOWN;
    case.send(Hook::Ingress, device::POD_A, &data)
        .after(move |world| {
            world.tick += 1;
            world.routes.insert(pod, RouteKind::Refused);
        })
        .drops(Reason::NoRoute)
        .resolved(&lost, TICK + 1);
    // It is asked for with each packet until it is there again.
    let tuple = made.forward.tuple;
    case.send(Hook::Ingress, device::POD_A, &data)
        .drops(Reason::NoRoute);
    case.carries(Hook::Ingress, device::POD_A, &data, &made.forward)
        .after(move |world| {
            let via = RouteKind::Via(net.ip(Host::Peer), device::UP0);
            world.routes.insert(pod, via);
        })
        .resolved(&made.forward, TICK + 1)
        .entry(tuple, |entry| entry.last_seen = TICK + 1);
    case
}

fn last_hop(net: Net) -> Case {
    let Opened {
        mut case,
        made,
        data,
        ..
    } = opened(net);
    for hops in [1, 0] {
        case.send(Hook::Ingress, device::POD_A, &data.clone().hops(hops));
    }
    case.carries(Hook::Ingress, device::POD_A, &data.hops(2), &made.forward);
    case
}

fn last_hop_opens(net: Net) -> Case {
    let (client, service) = (net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    let entries = made.entries(TICK);
    case.send(
        Hook::Ingress,
        device::POD_A,
        &Packet::syn(client, service).hops(1),
    )
    .flows(move |flows| flows.extend(entries))
    .event(proxy_common::datapath::Event::FlowMade, 0);
    case
}

fn last_hop_egress(net: Net) -> Case {
    let (client, service) = (net.at(Host::Node, 40_000), net.at(Host::Cluster, 80));
    let pod = net.at(Host::RemoteA, 8080);
    let world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    let made = tcp_connection(&world, (client, service), (client, pod), Next::peer());
    let mut case = Case::new(world);
    let syn = Packet::syn(client, service).hops(1);
    case.opens(Hook::Egress, device::UP0, &syn, &made);
    case
}

fn xdp_passes_pods(net: Net) -> Case {
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
    let data = Packet::tcp(client, service);
    // XDP meets the flow in a new tick first: it asks for the hop, and leaves the rest to TC.
    case.send(Hook::Xdp, device::UP0, &data)
        .after(|world| world.tick += 1)
        .resolved(&made.forward, TICK + 1);
    case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
    case
}

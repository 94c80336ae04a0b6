//! Tagged frames at TC: a flow in each kind of tags, and each answer in a service's name.
//!
//! Where frames arrive at devices, the kernel keeps the first tag beside the frame.

use super::header::in_vlan;
use super::{Entry, Net, both, reset_for, too_large_for, unreachable_for};
use crate::case::place::{Host, Next, device};
use crate::case::world::{Reach, tags};
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, flag, number};
use proxy_common::datapath::verdict::Action;
use proxy_common::datapath::{Event, Reason};

pub(super) const CASES: &[Entry] = &[
    both("flow_in_a_customer_tag", |net| flow(net, CUSTOMER)),
    both("flow_in_a_service_tag", |net| flow(net, SERVICE)),
    both("flow_in_a_tag_with_priority", |net| flow(net, PRIORITY)),
    both("flow_in_a_service_and_a_customer_tag", |net| {
        flow(net, BOTH)
    }),
    both("flow_in_two_customer_tags", |net| flow(net, CUSTOMERS)),
    both("flow_moves_between_kinds_of_tags", kinds),
    both("segment_is_reset_in_a_customer_tag", |net| {
        reset(net, CUSTOMER)
    }),
    both("segment_is_reset_in_a_service_tag", |net| {
        reset(net, SERVICE)
    }),
    both("segment_is_reset_in_two_tags", |net| reset(net, BOTH)),
    both("segment_is_reset_in_two_customer_tags", |net| {
        reset(net, CUSTOMERS)
    }),
    both("datagram_is_unreachable_in_a_customer_tag", |net| {
        unreachable(net, CUSTOMER)
    }),
    both("datagram_is_unreachable_in_a_service_tag", |net| {
        unreachable(net, SERVICE)
    }),
    both("datagram_is_unreachable_in_a_tag_with_priority", |net| {
        unreachable(net, PRIORITY)
    }),
    both("datagram_is_unreachable_in_two_tags", |net| {
        unreachable(net, BOTH)
    }),
    both("datagram_is_unreachable_in_two_customer_tags", |net| {
        unreachable(net, CUSTOMERS)
    }),
    both("echo_is_answered_in_a_customer_tag", |net| {
        echo(net, CUSTOMER)
    }),
    both("echo_is_answered_in_two_tags", |net| echo(net, BOTH)),
    both("backend_that_is_gone_resets_in_a_tag", |net| {
        gone(net, CUSTOMER)
    }),
    both("backend_that_is_gone_resets_in_two_tags", |net| {
        gone(net, BOTH)
    }),
    both("sender_is_told_the_mtu_in_a_tag", told),
    both("fragment_is_dropped_in_a_tag", fragment),
];

/// How frames are tagged, and where VLANs lead.
#[derive(Clone, Copy)]
struct Tags {
    dress: fn(Packet) -> Packet,
    vlan: u32,
}

const CUSTOMER: Tags = Tags {
    dress: |packet| packet.vlan(5),
    vlan: tags(5, 0),
};

const SERVICE: Tags = Tags {
    dress: |packet| packet.service_vlan(5),
    vlan: tags(5, 0),
};

const PRIORITY: Tags = Tags {
    dress: |packet| packet.vlan(0xf005),
    vlan: tags(5, 0),
};

const BOTH: Tags = Tags {
    dress: |packet| packet.service_vlan(0x6005).vlan(0xb007),
    vlan: tags(5, 7),
};

const CUSTOMERS: Tags = Tags {
    dress: |packet| packet.vlan(5).vlan(7),
    vlan: tags(5, 7),
};

impl Tags {
    fn is_single(self) -> bool {
        self.vlan == tags(5, 0)
    }

    fn client(self) -> Host {
        if self.is_single() {
            Host::VlanClient
        } else {
            Host::InnerVlanClient
        }
    }

    /// A client's connection to a pod behind the same VLAN, and how its answers leave.
    fn connection(self, net: Net) -> (World, Connection, Next) {
        let (hosts, hop, back) = if self.is_single() {
            let hosts = (Host::VlanClient, Host::VlanPod, Host::NodeOnVlan);
            (hosts, Next::vlan(), Next::vlan_client())
        } else {
            let hosts = (
                Host::InnerVlanClient,
                Host::InnerVlanPod,
                Host::NodeOnInnerVlan,
            );
            (hosts, Next::inner_vlan(), Next::inner_vlan_client())
        };
        let (world, made) = in_vlan(net, self.vlan, hosts, hop);
        (world, made, back)
    }
}

/// A service of the balancer's address that has no backends.
fn empty(net: Net, protocol: u8) -> Case {
    Case::new(net.offering(protocol, (Host::Balancer, 80), Reach::Balancer, &[]))
}

fn flow(net: Net, tags: Tags) -> Case {
    let (world, made, back) = tags.connection(net);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let syn = (tags.dress)(Packet::syn(client, service));
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    let answer = made.answer_by(back);
    let (pod, node) = (answer.tuple.source, answer.tuple.destination);
    let first = (tags.dress)(Packet::tcp(pod, node));
    case.carries_anew(Hook::Ingress, device::UP0, &first, &answer);
    for payload in [&b"even"[..], b"odd"] {
        let data = (tags.dress)(Packet::tcp(client, service).payload(payload));
        case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
        let data = (tags.dress)(Packet::tcp(pod, node).payload(payload));
        case.carries(Hook::Ingress, device::UP0, &data, &answer);
    }
    case
}

fn kinds(net: Net) -> Case {
    // What counts is the VLAN, not how it is written.
    let (world, made, _) = CUSTOMER.connection(net);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let syn = (CUSTOMER.dress)(Packet::syn(client, service));
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    for tags in [SERVICE, PRIORITY, CUSTOMER] {
        let data = (tags.dress)(Packet::tcp(client, service));
        case.carries(Hook::Ingress, device::UP0, &data, &made.forward);
    }
    case
}

fn reset(net: Net, tags: Tags) -> Case {
    let mut case = empty(net, number::TCP);
    let (client, service) = (net.at(tags.client(), 40_000), net.at(Host::Balancer, 80));
    for packet in [
        Packet::syn(client, service),
        Packet::tcp(client, service),
        Packet::tcp(client, service).flags(flag::FIN),
    ] {
        let packet = (tags.dress)(packet);
        case.send(Hook::Ingress, device::UP0, &packet)
            .refuses(Reason::NoEndpoint, &reset_for(&packet));
    }
    case
}

/// A test run has the tag in the frame, where no room can be made behind it: the packet is dropped with no
/// more than would have been quoted.
fn reports(case: &mut Case, reason: Reason, packet: &Packet, error: &Packet, quoted: usize) {
    let quoted = packet.link_length() + if packet.source.is_ipv4() { 20 } else { 40 } + quoted;
    case.send(Hook::Ingress, device::UP0, packet)
        .drops(reason)
        .cut_to(quoted)
        .on_devices(|step| {
            step.refuses(reason, error);
        });
}

fn unreachable(net: Net, tags: Tags) -> Case {
    let mut case = empty(net, number::UDP);
    let (client, service) = (net.at(tags.client(), 40_000), net.at(Host::Balancer, 80));
    for payload in [&b"causeway"[..], b"odd", b"", &[0x5a; 1_401]] {
        let datagram = (tags.dress)(Packet::udp(client, service).payload(payload));
        let error = unreachable_for(&datagram);
        reports(&mut case, Reason::NoEndpoint, &datagram, &error, 8);
    }
    case
}

fn echo(net: Net, tags: Tags) -> Case {
    let backends = [(Host::VlanPod, 80)];
    let world = net.serving((Host::Balancer, 80), Reach::Balancer, &backends);
    let mut case = Case::new(world);
    let request = Packet::echo(net.ip(tags.client()), net.ip(Host::Balancer));
    let request = (tags.dress)(request.payload(b"ping"));
    let bytes = request.bytes().len();
    case.send(Hook::Ingress, device::UP0, &request)
        .verdict(Action::Reply)
        .event(Event::EchoAnswered, bytes)
        .out(&super::refusal::reply_to(&request));
    case
}

fn gone(net: Net, tags: Tags) -> Case {
    let (world, made, _) = tags.connection(net);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let syn = (tags.dress)(Packet::syn(client, service));
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    let data = (tags.dress)(Packet::tcp(client, service));
    case.send(Hook::Ingress, device::UP0, &data)
        .after(|world| {
            for backend in world.backends.values_mut() {
                backend.generation += 1;
            }
        })
        .forgets(&made)
        .refuses(Reason::BackendGone, &reset_for(&data));
    case
}

fn told(net: Net) -> Case {
    let (world, made, _) = CUSTOMER.connection(net);
    let (client, service) = (made.forward.tuple.source, made.forward.tuple.destination);
    let mut case = Case::new(world);
    let syn = (CUSTOMER.dress)(Packet::syn(client, service));
    case.opens(Hook::Ingress, device::UP0, &syn, &made);
    let headers = Packet::tcp(client, service).payload(b"").bytes().len() - 14;
    let sized = |length: usize| {
        let packet = Packet::tcp(client, service).payload(&vec![7; length - headers]);
        (CUSTOMER.dress)(packet)
    };
    case.carries(Hook::Ingress, device::UP0, &sized(1_500), &made.forward);
    let large = sized(1_501);
    reports(
        &mut case,
        Reason::TooLarge,
        &large,
        &too_large_for(&large),
        20,
    );
    case
}

fn fragment(net: Net) -> Case {
    let (world, ..) = CUSTOMER.connection(net);
    let mut case = Case::new(world);
    let datagram = Packet::udp(net.at(Host::VlanClient, 40_000), net.at(Host::Balancer, 80));
    for (offset, more) in [(0, true), (185, false)] {
        let fragment = datagram.clone().fragment(offset, more).vlan(5);
        case.send(Hook::Ingress, device::UP0, &fragment)
            .drops(Reason::Fragment);
    }
    case
}

//! Which frame comes next.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proxy_user::simulation::{FlowRecord, Tuple};

use super::random::Random;
use crate::case::Hook;
use crate::case::place::{Host, Version, device, mac};
use crate::packet::{Packet, Transport, flag, number};

/// A frame and where it enters.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) hook: Hook,
    pub(super) ifindex: u32,
    pub(super) frame: Vec<u8>,
}

/// Frames that a history has seen.
#[derive(Default)]
pub(super) struct Frames {
    sent: Vec<Input>,
    received: Vec<Vec<u8>>,
}

impl Frames {
    /// Makes the next frame, of what the flow tables hold or of nothing.
    pub(super) fn next(&self, random: &mut Random, flows: &BTreeMap<Tuple, FlowRecord>) -> Input {
        let mut input = match random.below(10) {
            0..4 => fresh(random),
            4..8 => known(random, flows).unwrap_or_else(|| fresh(random)),
            8 => self.again(random).unwrap_or_else(|| fresh(random)),
            _ => self.reflected(random).unwrap_or_else(|| fresh(random)),
        };
        match random.below(10) {
            0 => mutate(random, &mut input.frame),
            1 => {
                let length = input.frame.len().saturating_sub(14);
                let keep = 14 + random.below(u32::try_from(length).unwrap_or(1) + 1) as usize;
                input.frame.truncate(keep);
            }
            _ => {}
        }
        // Nearly always for this host.
        if random.chance(19, 20)
            && let Some(destination) = input.frame.first_chunk_mut()
        {
            *destination = mac(input.ifindex);
        }
        input
    }

    /// Keeps a frame and what came of it.
    pub(super) fn remember(&mut self, input: Input, received: Vec<u8>) {
        self.sent.push(input);
        self.received.push(received);
    }

    fn again(&self, random: &mut Random) -> Option<Input> {
        let index = random.below(u32::try_from(self.sent.len()).ok()?) as usize;
        self.sent.get(index).cloned()
    }

    /// What came out of one hook enters by another.
    fn reflected(&self, random: &mut Random) -> Option<Input> {
        let index = random.below(u32::try_from(self.received.len()).ok()?) as usize;
        let frame = self.received.get(index)?.clone();
        let (hook, ifindex) = place(random);
        Some(Input {
            hook,
            ifindex,
            frame,
        })
    }
}

fn place(random: &mut Random) -> (Hook, u32) {
    random.pick([
        (Hook::Xdp, device::UP0),
        (Hook::Xdp, device::UP0),
        (Hook::Xdp, device::UP1),
        (Hook::Ingress, device::UP0),
        (Hook::Ingress, device::UP0),
        (Hook::Ingress, device::UP1),
        (Hook::Ingress, device::VLAN),
        (Hook::Ingress, device::POD_A),
        (Hook::Ingress, device::POD_A),
        (Hook::Ingress, device::POD_B),
        (Hook::Ingress, device::STRANGE),
        (Hook::Egress, device::UP0),
        (Hook::Egress, device::POD_A),
        (Hook::Egress, device::LO),
    ])
}

/// Some client to some service, or to none.
fn fresh(random: &mut Random) -> Input {
    let version = random.pick([Version::V4, Version::V6]);
    let client = random.pick([
        Host::Client,
        Host::Client,
        Host::OtherClient,
        Host::PodA,
        Host::PodA,
        Host::PodB,
        Host::Node,
        Host::VlanClient,
        Host::InnerVlanClient,
    ]);
    let (hook, ifindex) = if random.chance(1, 5) {
        place(random)
    } else {
        home(random, client)
    };
    let service = random.pick([
        (Host::Cluster, 80),
        (Host::Balancer, 80),
        (Host::Balancer, 80),
        (Host::OtherCluster, 80),
        (Host::Node, 30_080),
        (Host::Balancer, 81),
        (Host::Balancer, 82),
        (Host::Foreign, 80),
    ]);
    let from = client.port(version, 40_000 + u16::from(random.byte() & 7));
    let to = service.0.port(version, service.1);
    let packet = match random.below(12) {
        0 => Packet::echo(from.ip(), to.ip()),
        1 => Packet::other(from.ip(), to.ip(), random.byte()),
        2 => Packet::sctp(from, to),
        3..6 => Packet::udp(from, to),
        6..9 => Packet::syn(from, to),
        _ => Packet::tcp(from, to),
    };
    let packet = vary(random, packet);
    let tagged = match client {
        Host::VlanClient if ifindex == device::UP0 => packet.vlan(5),
        Host::InnerVlanClient if ifindex == device::UP0 => packet.vlan(5).vlan(7),
        _ => packet,
    };
    Input {
        hook,
        ifindex,
        frame: tagged.bytes(),
    }
}

/// Where a client's packets enter.
fn home(random: &mut Random, client: Host) -> (Hook, u32) {
    match client {
        Host::PodA => (Hook::Ingress, device::POD_A),
        Host::PodB => (Hook::Ingress, device::POD_B),
        Host::Node => (Hook::Egress, random.pick([device::UP0, device::LO])),
        _ => (random.pick([Hook::Xdp, Hook::Ingress]), device::UP0),
    }
}

/// A packet of a connection that there is.
fn known(random: &mut Random, flows: &BTreeMap<Tuple, FlowRecord>) -> Option<Input> {
    let index = random.below(u32::try_from(flows.len()).ok()?) as usize;
    let (tuple, entry) = flows.iter().nth(index)?;
    let (from, to): (SocketAddr, SocketAddr) = (tuple.source, tuple.destination);
    let mut packet = match tuple.protocol {
        number::TCP => Packet::tcp(from, to),
        number::UDP => Packet::udp(from, to),
        _ => Packet::sctp(from, to),
    };
    packet = vary(random, packet);
    if entry.vlan != 0 && random.chance(3, 4) {
        packet = packet.vlan(5);
        if entry.vlan & 0xfff != 0 {
            packet = packet.vlan(7);
        }
    }
    let (hook, ifindex) = place(random);
    Some(Input {
        hook,
        ifindex,
        frame: packet.bytes(),
    })
}

/// Makes a packet less ordinary, now and then.
fn vary(random: &mut Random, mut packet: Packet) -> Packet {
    if let Transport::Tcp { flags, .. } = &mut packet.transport
        && random.chance(1, 3)
    {
        *flags = random.pick([
            flag::SYN,
            flag::SYN | flag::ACK,
            flag::FIN | flag::ACK,
            flag::RST,
            flag::RST | flag::ACK,
            flag::FIN,
            0,
            0xff,
        ]);
    }
    if random.chance(1, 4) {
        let length = random.pick([0, 1, 3, 64, 500, 1_400, 1_600]);
        packet.payload = (0..length).map(|_| random.byte()).collect();
    }
    match random.below(24) {
        0 => packet = packet.hops(1),
        1 => packet = packet.hops(2),
        2 => packet = packet.vlan(5),
        3 => packet = packet.vlan(5).vlan(7),
        4 => packet = packet.fragment(0, true),
        5 => packet = packet.fragment(3, false),
        6 | 7 if packet.source.is_ipv4() => packet = packet.options(&[1, 1, 1, 0]),
        6 => packet = packet.padding(number::HOP_BY_HOP, 1),
        7 => {
            packet = packet
                .padding(number::DESTINATION_OPTIONS, 2)
                .padding(number::ROUTING, 1);
        }
        8 => packet = packet.without_checksum(),
        9 => packet.class = random.byte(),
        _ => {}
    }
    packet
}

fn mutate(random: &mut Random, frame: &mut [u8]) {
    let length = u32::try_from(frame.len()).unwrap_or(1);
    for _ in 0..=random.below(3) {
        // Headers more often than payload.
        let at = if random.chance(3, 4) {
            random.below(length.min(80))
        } else {
            random.below(length)
        };
        if let Some(byte) = frame.get_mut(at as usize) {
            *byte = if random.chance(1, 2) {
                random.byte()
            } else {
                *byte ^ 1 << random.below(8)
            };
        }
    }
}

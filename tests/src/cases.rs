//! All cases of the datapath, by theme.

mod choice;
mod claim;
mod client;
mod flow;
mod gate;
mod header;
mod node_port;
mod policy;
mod refusal;
mod service;
mod size;
mod vlan;

use std::net::{IpAddr, SocketAddr};

use proxy_user::simulation::Tuple;

use crate::case::place::{Host, MTU, Next, Version};
use crate::case::world::Reach;
use crate::case::{Case, Connection, World};
use crate::packet::{Packet, Transport, flag, number};

/// A case that can be played in one family or in both.
struct Entry {
    name: &'static str,
    versions: &'static [Version],
    build: fn(Net) -> Case,
}

const fn both(name: &'static str, build: fn(Net) -> Case) -> Entry {
    Entry {
        name,
        versions: &[Version::V4, Version::V6],
        build,
    }
}

const fn only(version: Version, name: &'static str, build: fn(Net) -> Case) -> Entry {
    let versions: &[Version] = match version {
        Version::V4 => &[Version::V4],
        Version::V6 => &[Version::V6],
    };
    Entry {
        name,
        versions,
        build,
    }
}

const THEMES: &[(&str, &[Entry])] = &[
    ("service", service::CASES),
    ("node_port", node_port::CASES),
    ("client", client::CASES),
    ("policy", policy::CASES),
    ("refusal", refusal::CASES),
    ("header", header::CASES),
    ("flow", flow::CASES),
    ("claim", claim::CASES),
    ("choice", choice::CASES),
    ("gate", gate::CASES),
    ("size", size::CASES),
    ("vlan", vlan::CASES),
];

/// All cases, named `theme::case::family`.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (theme, entries) in THEMES {
        for entry in *entries {
            for version in entry.versions {
                let mut case = (entry.build)(Net(*version));
                let family = if *version == Version::V4 { "v4" } else { "v6" };
                case.name = format!("{theme}::{}::{family}", entry.name);
                cases.push(case);
            }
        }
    }
    cases
}

/// The places of one family, and packets between them.
#[derive(Clone, Copy)]
struct Net(Version);

impl Net {
    fn at(self, host: Host, port: u16) -> SocketAddr {
        host.port(self.0, port)
    }

    fn ip(self, host: Host) -> IpAddr {
        host.ip(self.0)
    }

    /// A world with one TCP service.
    fn serving(self, at: (Host, u16), reach: Reach, backends: &[(Host, u16)]) -> World {
        self.offering(number::TCP, at, reach, backends)
    }

    /// A world with one service.
    fn offering(
        self,
        protocol: u8,
        (host, port): (Host, u16),
        reach: Reach,
        backends: &[(Host, u16)],
    ) -> World {
        let mut world = World::default();
        let backends: Vec<SocketAddr> = backends.iter().map(|(h, p)| self.at(*h, *p)).collect();
        world.serve(protocol, self.at(host, port), reach, &backends);
        world
    }
}

const fn tuple(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple {
        protocol,
        source,
        destination,
    }
}

/// A TCP connection to backend 1, by its four ends: as the client sends, as the backend sees it.
fn tcp_connection(
    world: &World,
    sent: (SocketAddr, SocketAddr),
    seen: (SocketAddr, SocketAddr),
    next: Next,
) -> Connection {
    connection(world, number::TCP, sent, seen, next)
}

fn connection(
    world: &World,
    protocol: u8,
    sent: (SocketAddr, SocketAddr),
    seen: (SocketAddr, SocketAddr),
    next: Next,
) -> Connection {
    let sent = tuple(protocol, sent.0, sent.1);
    let seen = tuple(protocol, seen.0, seen.1);
    Connection::new(world, sent, seen, 1, next)
}

/// The answer to a refused segment (RFC 9293 section 3.10.7.1): frame ends swapped, no options.
fn reset_for(packet: &Packet) -> Packet {
    let (source, destination) = packet.ends();
    let mut reset = Packet::tcp(destination, source).payload(b"");
    reset.link = (packet.link.1, packet.link.0);
    reset.tags.clone_from(&packet.tags);
    reset.identification = 0;
    reset.label = 0;
    let Transport::Tcp {
        sequence: theirs,
        acknowledgement: acknowledged,
        flags: asked,
        ..
    } = packet.transport
    else {
        return reset;
    };
    let consumed = u32::try_from(packet.payload.len()).unwrap_or_default()
        + u32::from(asked & flag::SYN != 0)
        + u32::from(asked & flag::FIN != 0);
    if let Transport::Tcp {
        sequence,
        acknowledgement,
        flags,
        window,
        ..
    } = &mut reset.transport
    {
        *window = 0;
        if asked & flag::ACK != 0 {
            (*sequence, *acknowledgement, *flags) = (acknowledged, 0, flag::RST);
        } else {
            *sequence = 0;
            *acknowledgement = theirs.wrapping_add(consumed);
            *flags = flag::RST | flag::ACK;
        }
    }
    reset
}

/// The ICMP port unreachable that answers a packet: RFC 792, RFC 4443 section 3.1.
fn unreachable_for(packet: &Packet) -> Packet {
    let (kind, code) = if packet.source.is_ipv4() {
        (3, 3)
    } else {
        (1, 4)
    };
    error_for(packet, 8, (kind, code, [0; 4]))
}

/// The ICMP error that answers a packet larger than the MTU: RFC 1191 section 4, RFC 4443 section 3.2.
fn too_large_for(packet: &Packet) -> Packet {
    let (kind, code) = if packet.source.is_ipv4() {
        (3, 4)
    } else {
        (2, 0)
    };
    let [high, low] = MTU.to_be_bytes();
    let transport = match packet.transport {
        Transport::Tcp { .. } => 20,
        _ => 8,
    };
    error_for(packet, transport, (kind, code, [0, 0, high, low]))
}

/// An ICMP error that quotes `transport` bytes of what follows the IP header.
fn error_for(packet: &Packet, transport: usize, (kind, code, rest): (u8, u8, [u8; 4])) -> Packet {
    let whole = packet.bytes();
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    let start = packet.link_length();
    let quoted = whole
        .get(start..start + header + transport)
        .unwrap_or_default();
    let mut error = Packet::echo(packet.destination, packet.source).payload(quoted);
    error.link = (packet.link.1, packet.link.0);
    error.tags.clone_from(&packet.tags);
    error.identification = 0;
    error.label = 0;
    error.transport = Transport::Icmp { kind, code, rest };
    error
}

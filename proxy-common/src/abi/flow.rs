//! Flows: one entry per direction of a connection, each holding the whole rewrite.

use super::Family;
use crate::wire::{Be16, MacAddr};

/// A packet's addresses and ports as it arrives.
///
/// For ICMP echo no flow is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey<F: Family> {
    /// From whom.
    pub source: F::Addr,
    /// To whom.
    pub destination: F::Addr,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl<F: Family> FlowKey<F> {
    /// The key of the answering direction.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

/// Bits of [`Flow::state`].
pub mod flow_state {
    /// This direction has carried a packet.
    pub const SEEN: u8 = 1 << 0;
    /// TCP: this direction has sent FIN.
    pub const FIN: u8 = 1 << 1;
    /// TCP: the other direction has sent FIN.
    pub const PEER_FIN: u8 = 1 << 2;
    /// TCP: either direction has sent RST.
    pub const RST: u8 = 1 << 3;
    /// This is the direction of the connection's first packet.
    pub const ORIGINAL: u8 = 1 << 4;
    /// What ends on this node ends at a process that met an address of its own node: the stack
    /// takes a packet from an own address through the loopback device only.
    pub const LOOPBACK: u8 = 1 << 5;
}

/// What to do with a packet of a flow once it is rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowStep {
    /// Not known yet, or no longer: ask the routing table.
    #[default]
    Resolve = 0,
    /// Send out of `ifindex` with the stored link-layer addresses.
    Transmit = 1,
    /// Hand to the pod behind `ifindex`.
    Pod = 2,
    /// Hand to this node's own stack.
    Local = 3,
    /// The route is known but the neighbour's link-layer address is not: the kernel finds it.
    Neighbour = 4,
    /// As [`FlowStep::Transmit`], but XDP can send to that device only what came in by it: TC does
    /// the rest.
    Enqueue = 5,
    /// Leave it to this node's stack to send on: a route that encapsulates, say.
    Stack = 6,
}

impl FlowStep {
    /// From the number in a record; any unknown one means [`FlowStep::Resolve`].
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Transmit,
            2 => Self::Pod,
            3 => Self::Local,
            4 => Self::Neighbour,
            5 => Self::Enqueue,
            6 => Self::Stack,
            _ => Self::Resolve,
        }
    }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<F: Family> {
    /// Packets carried in this direction. Written by the datapath.
    pub packets: u64,
    /// Bytes carried in this direction, from the Ethernet header on. Written by the datapath.
    pub bytes: u64,
    /// When the last packet was seen, in ticks ([`Settings`](super::Settings) says how long one is).
    pub last_seen: u32,
    /// Which backend, an index into `BACKENDS`.
    pub backend: u32,
    /// The backend's generation when the flow was made: another one now means it is gone.
    pub generation: u32,
    /// Which service, a key of `OBJECTS`.
    pub service: u32,
    /// Where to send a rewritten packet.
    pub ifindex: u32,
    /// VLAN tags of the packets of this direction (outer in the high half), as they arrive.
    pub vlan: u32,
    /// Link-layer destination of a rewritten packet.
    pub link_destination: MacAddr,
    /// Link-layer source of a rewritten packet.
    pub link_source: MacAddr,
    /// Source of a rewritten packet.
    pub source: F::Addr,
    /// Destination of a rewritten packet.
    pub destination: F::Addr,
    /// Source port of a rewritten packet.
    pub source_port: Be16,
    /// Destination port of a rewritten packet.
    pub destination_port: Be16,
    /// Checksum delta of both addresses ([`Delta`](crate::wire::Delta)).
    pub address_delta: u16,
    /// Checksum delta of both ports.
    pub port_delta: u16,
    /// See [`flow_state`].
    pub state: u8,
    /// See [`FlowStep`].
    pub step: u8,
    /// Largest packet that the next hop takes, bytes from the IP header on; zero: not known.
    pub mtu: u16,
}

impl<F: Family> Flow<F> {
    /// The key of the packets that this entry's rewritten packets are answered by.
    #[inline(always)]
    #[must_use]
    pub fn peer_key(&self, protocol: u8) -> FlowKey<F> {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            pad: [0; 3],
        }
    }
}

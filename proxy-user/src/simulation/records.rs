//! What a simulation reads, in forms that are the same for both families.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::{
    Addr4, Addr6, Address, AddressFlags, Affinity, AffinityKey, Backend, Device, DeviceKey, Family,
    FilterKind, Flow, FlowKey, FlowStep, Service, ServiceKey, Settings, SourceKey,
};
use proxy_common::datapath::RouteQuery;
use proxy_common::wire::{Be16, MacAddr, protocol};

use super::Fib;

/// Where a simulation's records come from: the tables that both families share.
pub trait SharedRecords {
    /// The time, in ticks.
    fn tick(&self) -> u32;

    /// The time in nanoseconds of `CLOCK_MONOTONIC`.
    fn clock(&self) -> u64;

    /// The record of `SETTINGS`.
    fn settings(&self) -> Option<Settings>;

    /// A record of `DEVICES`.
    fn device(&self, key: &DeviceKey) -> Option<Device>;

    /// A record of `SLOTS`; none past its end.
    fn slot(&self, index: u32) -> Option<u32>;

    /// A record of `BACKENDS`; none past its end.
    fn backend(&self, index: u32) -> Option<Backend>;

    /// A word of `FILTER`.
    fn filter_word(&self, index: u32) -> u64;
}

/// Where a simulation's records come from: the tables of one family.
pub trait Records<F: Family>: SharedRecords {
    /// A record of `FLOWS_*`.
    fn flow(&self, key: &FlowKey<F>) -> Option<Flow<F>>;

    /// A record of `SERVICES_*`.
    fn service(&self, key: &ServiceKey<F>) -> Option<Service>;

    /// Whether `SOURCES_*` has a range that a client is in.
    fn admits(&self, question: &SourceKey<F>) -> bool;

    /// A record of `AFFINITY_*`.
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity>;

    /// A record of `ADDRESSES_*`.
    fn address(&self, address: &F::Addr) -> Option<AddressFlags>;

    /// The answer of the routing and neighbour tables.
    fn route(&self, query: &RouteQuery<'_, F>) -> Fib;

    /// For how many entries there is room in `FLOWS_*`.
    fn free_flows(&self) -> usize {
        usize::MAX
    }
}

/// Is told each lookup.
pub trait Observer {
    /// The datapath has looked something up.
    fn observe(&self, lookup: Lookup);
}

impl<O: Fn(Lookup)> Observer for O {
    fn observe(&self, lookup: Lookup) {
        self(lookup);
    }
}

/// A lookup and what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The address filter.
    Filter {
        /// The question.
        kind: FilterKind,
        /// The address in question.
        address: IpAddr,
        /// The answer: false is certain.
        set: bool,
    },
    /// `FLOWS_*`.
    Flow(Tuple, Option<FlowRecord>),
    /// `SERVICES_*`: address, port and protocol.
    Service(SocketAddr, u8, Option<Service>),
    /// `SOURCES_*`: a service, a client, and whether it is let in.
    Source(u32, IpAddr, bool),
    /// `AFFINITY_*`: a service, a client, and whom it is kept with.
    Affinity(u32, IpAddr, Option<Affinity>),
    /// `ADDRESSES_*`.
    Address(IpAddr, Option<AddressFlags>),
    /// `DEVICES`.
    Device(DeviceKey, Option<Device>),
    /// `SLOTS`.
    Slot(u32, Option<u32>),
    /// `BACKENDS`.
    Backend(u32, Option<Backend>),
    /// The routing table: source, destination, incoming device.
    Route(IpAddr, IpAddr, u32, Fib),
    /// A flow would be inserted; whether it could be.
    Insert(Tuple, FlowRecord, bool),
    /// A flow would be removed.
    Remove(Tuple),
    /// A counter would be raised: the number of a `Reason` or an `Event`, and bytes.
    Count(u32, u64),
}

/// A packet's protocol, addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// From whom.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

impl Tuple {
    /// The tuple of the answering direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
        }
    }

    /// As a key of a flow table. The addresses' family is the caller's care.
    #[must_use]
    pub fn key<F: Family>(&self) -> FlowKey<F> {
        FlowKey {
            source: narrow(self.source.ip()),
            destination: narrow(self.destination.ip()),
            source_port: Be16::new(self.source.port()),
            destination_port: Be16::new(self.destination.port()),
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

impl<F: Family> From<&FlowKey<F>> for Tuple {
    fn from(key: &FlowKey<F>) -> Self {
        Self {
            protocol: key.protocol,
            source: SocketAddr::new(key.source.to_ip(), key.source_port.get()),
            destination: SocketAddr::new(key.destination.to_ip(), key.destination_port.get()),
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            protocol::TCP => "tcp",
            protocol::UDP => "udp",
            protocol::SCTP => "sctp",
            _ => "protocol?",
        };
        write!(f, "{name} {} -> {}", self.source, self.destination)
    }
}

/// A record of a flow table, for either family; see [`Flow`] for the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of `Flow`")]
pub struct FlowRecord {
    pub packets: u64,
    pub bytes: u64,
    pub last_seen: u32,
    pub backend: u32,
    pub generation: u32,
    pub service: u32,
    pub step: FlowStep,
    pub ifindex: u32,
    pub vlan: u32,
    pub link_destination: [u8; 6],
    pub link_source: [u8; 6],
    /// Addresses and ports of a rewritten packet.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub address_delta: u16,
    pub port_delta: u16,
    pub state: u8,
    pub mtu: u16,
}

impl FlowRecord {
    /// As a record of the table. The addresses' family is the caller's care.
    #[must_use]
    pub fn flow<F: Family>(&self) -> Flow<F> {
        Flow {
            packets: self.packets,
            bytes: self.bytes,
            last_seen: self.last_seen,
            backend: self.backend,
            generation: self.generation,
            service: self.service,
            ifindex: self.ifindex,
            vlan: self.vlan,
            link_destination: MacAddr::from_bytes(self.link_destination),
            link_source: MacAddr::from_bytes(self.link_source),
            source: narrow(self.source.ip()),
            destination: narrow(self.destination.ip()),
            source_port: Be16::new(self.source.port()),
            destination_port: Be16::new(self.destination.port()),
            address_delta: self.address_delta,
            port_delta: self.port_delta,
            state: self.state,
            step: self.step as u8,
            mtu: self.mtu,
        }
    }
}

impl<F: Family> From<&Flow<F>> for FlowRecord {
    fn from(flow: &Flow<F>) -> Self {
        Self {
            packets: flow.packets,
            bytes: flow.bytes,
            last_seen: flow.last_seen,
            backend: flow.backend,
            generation: flow.generation,
            service: flow.service,
            step: FlowStep::from_raw(flow.step),
            ifindex: flow.ifindex,
            vlan: flow.vlan,
            link_destination: flow.link_destination.bytes(),
            link_source: flow.link_source.bytes(),
            source: SocketAddr::new(flow.source.to_ip(), flow.source_port.get()),
            destination: SocketAddr::new(flow.destination.to_ip(), flow.destination_port.get()),
            address_delta: flow.address_delta,
            port_delta: flow.port_delta,
            state: flow.state,
            mtu: flow.mtu,
        }
    }
}

/// The 16-byte form of an address that the tables of both families use.
#[must_use]
pub fn wide(address: IpAddr) -> [u16; 8] {
    match address {
        IpAddr::V4(address) => Addr4::from(address).widen(),
        IpAddr::V6(address) => Addr6::from(address).widen(),
    }
}

/// An address of a family that the caller knows it to be of.
#[must_use]
pub fn narrow<A: Address>(address: IpAddr) -> A {
    A::narrow(&wide(address))
}

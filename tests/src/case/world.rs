//! What a node holds before a step: the maps' records, and the routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_common::abi::{
    Addr4, Addr6, Backend, Device, DeviceKey, DeviceRole, FilterKind, Service, Settings,
    address_flag, backend_flag, device_flag, filter_position, service_flag,
};
use proxy_common::wire::{Be16, MacAddr};
use proxy_user::simulation::{FlowRecord, Tuple, wide};

use super::place::{self, Host, RouteKind, Version, device};

/// Sizes of maps in every executor: small, so that all of them can be compared after each step.
pub mod size {
    /// `BACKENDS`.
    pub const BACKENDS: u32 = 64;
    /// `SLOTS`.
    pub const SLOTS: u32 = 256;
    /// `FLOWS_V4` and `FLOWS_V6`, each.
    pub const FLOWS: u32 = 128;
}

/// The tick that the first step of a case runs in.
pub const TICK: u32 = 1_000;

/// The only source port that translation claims, unless a case says otherwise.
pub const CLAIMED: u16 = 61_000;

/// Reach of a service, and how it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From inside the cluster only; the address is the service's alone.
    Cluster,
    /// From everywhere; the address is the service's alone.
    Balancer,
    /// From everywhere, at an address of the node (node port, host port).
    Node,
}

/// The backend that a client is kept with: index, generation, and the tick of its last new connection.
pub type Kept = (u32, u32, u32);

/// All that decides about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// The time.
    pub tick: u32,
    /// The record of `SETTINGS`.
    pub settings: Settings,
    /// `SERVICES_*`, by address, port and protocol.
    pub services: BTreeMap<(SocketAddr, u8), Service>,
    /// `ADDRESSES_*`.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// `BACKENDS`; the others are zeros.
    pub backends: BTreeMap<u32, Backend>,
    /// `SLOTS`; the others are zeros.
    pub slots: BTreeMap<u32, u32>,
    /// `FILTER`, the words that are not zero.
    pub filter: BTreeMap<u32, u64>,
    /// `DEVICES`.
    pub devices: BTreeMap<DeviceKey, Device>,
    /// `SOURCES_*`: service and range.
    pub sources: BTreeSet<(u32, IpNet)>,
    /// `AFFINITY_*`: client and service, and whom it is kept with.
    pub affinities: BTreeMap<(IpAddr, u32), Kept>,
    /// `FLOWS_*`.
    pub flows: BTreeMap<Tuple, FlowRecord>,
    /// Routes by destination.
    pub routes: BTreeMap<IpNet, RouteKind>,
    /// Link-layer addresses by device and address.
    pub neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
}

/// The VLAN tags of a device key: one tag, or two.
#[must_use]
pub const fn tags(outer: u32, inner: u32) -> u32 {
    1 << 31 | outer << 16 | inner
}

impl Default for World {
    fn default() -> Self {
        let mut world = Self {
            tick: TICK,
            settings: Settings {
                port_min: u32::from(CLAIMED),
                port_count: 1,
                seed: 7,
                hz: 250,
            },
            services: BTreeMap::new(),
            addresses: BTreeMap::new(),
            backends: BTreeMap::new(),
            slots: BTreeMap::new(),
            filter: BTreeMap::new(),
            devices: BTreeMap::new(),
            sources: BTreeSet::new(),
            affinities: BTreeMap::new(),
            flows: BTreeMap::new(),
            routes: place::routes().into_iter().collect(),
            neighbours: place::neighbours().into_iter().collect(),
        };
        let uplink = DeviceRole::Uplink;
        let xdp = device_flag::XDP_TARGET;
        for (key, vlan, ifindex, role, source, flags) in [
            (device::UP0, 0, device::UP0, uplink, Host::Node, xdp),
            (device::UP1, 0, device::UP1, uplink, Host::NodeOnUp1, 0),
            (device::VLAN, 0, device::VLAN, uplink, Host::NodeOnVlan, 0),
            (
                device::UP0,
                tags(5, 0),
                device::VLAN,
                uplink,
                Host::NodeOnVlan,
                0,
            ),
            (
                device::UP0,
                tags(5, 7),
                device::INNER_VLAN,
                uplink,
                Host::NodeOnInnerVlan,
                0,
            ),
            (
                device::POD_A,
                0,
                device::POD_A,
                DeviceRole::Pod,
                Host::Node,
                0,
            ),
            (
                device::POD_B,
                0,
                device::POD_B,
                DeviceRole::Pod,
                Host::Node,
                0,
            ),
        ] {
            let key = DeviceKey { ifindex: key, vlan };
            world
                .devices
                .insert(key, record(ifindex, role, source, flags));
        }
        let loopback = Device {
            role: DeviceRole::Loopback as u32,
            ifindex: device::LO,
            mtu: 65_536,
            ..Device::default()
        };
        let key = DeviceKey {
            ifindex: device::LO,
            vlan: 0,
        };
        world.devices.insert(key, loopback);
        for host in [
            Host::Node,
            Host::NodeOnUp1,
            Host::NodeOnVlan,
            Host::NodeOnInnerVlan,
        ] {
            for version in [Version::V4, Version::V6] {
                world.suspect(FilterKind::Destination, host.ip(version));
            }
        }
        world
    }
}

fn record(ifindex: u32, role: DeviceRole, source: Host, flags: u16) -> Device {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (source.ip(Version::V4), source.ip(Version::V6)) else {
        return Device::default();
    };
    Device {
        role: role as u32,
        ifindex,
        source_v4: Addr4::from(v4),
        source_v6: Addr6::from(v6),
        mac: MacAddr::from_bytes(place::mac(ifindex)),
        flags,
        mtu: u32::from(place::MTU),
    }
}

impl World {
    /// Sets the filter's bit for an address.
    pub fn suspect(&mut self, kind: FilterKind, address: IpAddr) {
        let (word, bit) = match address {
            IpAddr::V4(address) => filter_position(kind, &Addr4::from(address)),
            IpAddr::V6(address) => filter_position(kind, &Addr6::from(address)),
        };
        *self.filter.entry(word).or_default() |= bit;
    }

    /// Adds a service with its backends, one slot each. Says the first backend's index.
    pub fn serve(
        &mut self,
        protocol: u8,
        at: SocketAddr,
        reach: Reach,
        backends: &[SocketAddr],
    ) -> u32 {
        let id = 100 + u32::try_from(self.services.len()).unwrap_or_default();
        // Index 0 is taken by nobody, so that a record of zeros never looks right.
        let first = 1 + u32::try_from(self.backends.len()).unwrap_or_default();
        let first_slot = 1 + u32::try_from(self.slots.len()).unwrap_or_default();
        for (index, address) in (first..).zip(backends) {
            self.backends.insert(index, backend(id, protocol, *address));
            self.suspect(FilterKind::Source, address.ip());
        }
        let slots: Vec<u32> = (first..).take(backends.len()).collect();
        self.slots.extend((first_slot..).zip(slots));
        let service = Service {
            id,
            first_slot,
            slots: u32::try_from(backends.len()).unwrap_or_default(),
            flags: if reach == Reach::Cluster {
                0
            } else {
                service_flag::EXTERNAL
            },
            ..Service::default()
        };
        self.services.insert((at, protocol), service);
        self.suspect(FilterKind::Destination, at.ip());
        match reach {
            Reach::Cluster => self.addresses.insert(at.ip(), 0),
            Reach::Balancer => self.addresses.insert(at.ip(), address_flag::EXTERNAL),
            Reach::Node => None,
        };
        first
    }

    /// Keeps clients of a service to these of its backends, which are on this node: one slot each. The
    /// others are elsewhere.
    pub fn keep_local(&mut self, protocol: u8, at: SocketAddr, backends: &[u32]) {
        let first_local = 1 + u32::try_from(self.slots.len()).unwrap_or_default();
        self.slots
            .extend((first_local..).zip(backends.iter().copied()));
        let Some(service) = self.services.get_mut(&(at, protocol)) else {
            return;
        };
        service.flags |= service_flag::LOCAL;
        if service.slots != 0 {
            service.flags |= service_flag::ELSEWHERE;
        }
        let of_this_node = backends.iter();
        for index in of_this_node {
            if let Some(backend) = self.backends.get_mut(index) {
                backend.flags |= backend_flag::LOCAL;
            }
        }
        service.first_local = first_local;
        service.local_slots = u32::try_from(backends.len()).unwrap_or_default();
    }

    /// Lets only these clients use a service.
    pub fn restrict(&mut self, protocol: u8, at: SocketAddr, ranges: &[IpNet]) {
        if let Some(service) = self.services.get_mut(&(at, protocol)) {
            service.flags |= service_flag::RESTRICTED;
            let id = service.id;
            self.sources.extend(ranges.iter().map(|range| (id, *range)));
        }
    }

    /// Keeps clients of a service with their backend for so many seconds.
    pub fn keep_clients(&mut self, protocol: u8, at: SocketAddr, seconds: u32) {
        if let Some(service) = self.services.get_mut(&(at, protocol)) {
            service.affinity = seconds;
        }
    }

    /// A second way to the same backends.
    pub fn alias(&mut self, protocol: u8, at: SocketAddr, reach: Reach, of: SocketAddr) {
        let Some(service) = self.services.get(&(of, protocol)).copied() else {
            return;
        };
        self.serve(protocol, at, reach, &[]);
        let flags = self.services.get(&(at, protocol)).map_or(0, |s| s.flags);
        self.services
            .insert((at, protocol), Service { flags, ..service });
    }

    /// The indexes that `XDP` may send to: `TX_PORTS`.
    #[must_use]
    pub fn transmit_ports(&self) -> BTreeSet<u32> {
        let targets = self
            .devices
            .iter()
            .filter(|(key, device)| key.vlan == 0 && device.flags & device_flag::XDP_TARGET != 0);
        targets.map(|(key, _)| key.ifindex).collect()
    }
}

/// A backend in service, first of its index.
fn backend(service: u32, protocol: u8, address: SocketAddr) -> Backend {
    Backend {
        generation: 1,
        service,
        address: wide(address.ip()),
        port: Be16::new(address.port()),
        flags: backend_flag::SERVING | backend_flag::CLUSTER,
        protocol,
        family: if address.is_ipv4() { 4 } else { 6 },
        pad: [0; 3],
    }
}

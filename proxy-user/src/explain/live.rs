//! The live maps and the kernel's routing table, as the records of a simulation.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
};

use proxy_common::{
    abi::{
        Addr4, Addr6, Address, AddressFlags, Affinity, AffinityKey, Backend,
        Device as DeviceRecord, DeviceKey, Family, Flow, FlowKey, Service, ServiceKey, Settings,
        SourceKey, V4, V6,
    },
    datapath::RouteQuery,
};

use super::ExplainError;
use crate::{
    dataplane::Maps,
    inspect::Look,
    kernel::{
        devices::Device,
        netlink::Netlink,
        route::{self, Route},
    },
    simulation::{Fib, Records, SharedRecords},
};

/// What the datapath reads. A read that fails counts as nothing found, and is told in the end.
pub(super) struct Live<'m> {
    maps: &'m Maps,
    look: &'m Look<'m>,
    devices: &'m BTreeMap<u32, Device>,
    netlink: RefCell<Netlink>,
    failure: Cell<Option<(&'static str, io::Error)>>,
}

impl<'m> Live<'m> {
    pub(super) const fn new(
        maps: &'m Maps,
        look: &'m Look<'m>,
        devices: &'m BTreeMap<u32, Device>,
        netlink: Netlink,
    ) -> Self {
        Self {
            maps,
            look,
            devices,
            netlink: RefCell::new(netlink),
            failure: Cell::new(None),
        }
    }

    /// The first read that failed.
    pub(super) fn failure(&self) -> Result<(), ExplainError> {
        match self.failure.take() {
            None => Ok(()),
            Some((what, source)) => Err(ExplainError::Kernel { what, source }),
        }
    }

    fn read<T>(&self, what: &'static str, read: io::Result<Option<T>>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.failure.set(Some((what, error)));
            None
        })
    }

    fn fib<F: Family>(&self, query: &RouteQuery<'_, F>) -> io::Result<Fib> {
        let netlink = &mut *self.netlink.borrow_mut();
        let (source, destination) = (query.source.to_ip(), query.destination.to_ip());
        let own = self.devices.values().flat_map(|device| &device.addresses);
        // The kernel refuses to look up a way for what claims to come from itself.
        let ours = own.map(ipnet::IpNet::addr).any(|address| address == source);
        let from = (!ours).then_some((source, query.ifindex));
        let (ifindex, gateway) = match route::find(netlink, destination, from)? {
            Route::Local => return Ok(Fib::Local),
            Route::Refused => return Ok(Fib::Refused),
            Route::Forward { ifindex, gateway } => (ifindex, gateway),
        };
        let next = gateway.unwrap_or(destination);
        let Some(destination) = route::neighbour(netlink, ifindex, next)? else {
            return Ok(Fib::NoNeighbour { ifindex });
        };
        let device = self.devices.get(&ifindex);
        let source = device.map(|device| device.mac).unwrap_or_default().bytes();
        Ok(Fib::Forward {
            ifindex,
            destination,
            source,
        })
    }

    fn route<F: Family>(&self, query: &RouteQuery<'_, F>) -> Fib {
        self.fib(query).unwrap_or_else(|error| {
            self.failure.set(Some(("a route", error)));
            Fib::Refused
        })
    }
}

/// Whether one of the service's ranges has the client.
fn admits<F: Family>(keys: &BTreeSet<SourceKey<F>>, question: &SourceKey<F>) -> bool {
    let client = question.address.to_ip();
    keys.iter()
        .filter(|key| key.service == question.service)
        .any(|key| {
            let (first, length) = key.range();
            u8::try_from(length)
                .ok()
                .and_then(|length| ipnet::IpNet::new(first, length).ok())
                .is_some_and(|range| range.contains(&client))
        })
}

/// `CLOCK_MONOTONIC`, nanoseconds.
fn clock() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let now = std::time::Duration::from(now).as_nanos();
        u64::try_from(now).unwrap_or(u64::MAX)
    })
}

impl SharedRecords for Live<'_> {
    fn tick(&self) -> u32 {
        self.look.now()
    }

    fn clock(&self) -> u64 {
        clock()
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.look.observed().settings)
    }

    fn device(&self, key: &DeviceKey) -> Option<DeviceRecord> {
        self.look.observed().devices.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.look
            .observed()
            .slots(index, 1)
            .and_then(|slots| slots.first().copied())
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.look.observed().backends.get(&index).copied()
    }

    fn filter_word(&self, index: u32) -> u64 {
        self.look.observed().filter.word(index)
    }
}

impl Records<V4> for Live<'_> {
    fn flow(&self, key: &FlowKey<V4>) -> Option<Flow<V4>> {
        self.read("FLOWS_V4", self.maps.flows_v4.get(key))
    }

    fn service(&self, key: &ServiceKey<V4>) -> Option<Service> {
        self.look.observed().services_v4.get(key).copied()
    }

    fn admits(&self, question: &SourceKey<V4>) -> bool {
        let keys = &self.look.observed().sources_v4;
        admits(keys, question)
    }

    fn affinity(&self, key: &AffinityKey<V4>) -> Option<Affinity> {
        self.read("AFFINITY_V4", self.maps.affinity_v4.get(key))
    }

    fn address(&self, address: &Addr4) -> Option<AddressFlags> {
        self.look.observed().addresses_v4.get(address).copied()
    }

    fn route(&self, query: &RouteQuery<'_, V4>) -> Fib {
        self.route(query)
    }
}

impl Records<V6> for Live<'_> {
    fn flow(&self, key: &FlowKey<V6>) -> Option<Flow<V6>> {
        self.read("FLOWS_V6", self.maps.flows_v6.get(key))
    }

    fn service(&self, key: &ServiceKey<V6>) -> Option<Service> {
        self.look.observed().services_v6.get(key).copied()
    }

    fn admits(&self, question: &SourceKey<V6>) -> bool {
        let keys = &self.look.observed().sources_v6;
        admits(keys, question)
    }

    fn affinity(&self, key: &AffinityKey<V6>) -> Option<Affinity> {
        self.read("AFFINITY_V6", self.maps.affinity_v6.get(key))
    }

    fn address(&self, address: &Addr6) -> Option<AddressFlags> {
        self.look.observed().addresses_v6.get(address).copied()
    }

    fn route(&self, query: &RouteQuery<'_, V6>) -> Fib {
        self.route(query)
    }
}

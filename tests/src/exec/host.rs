//! Plays cases in the functions themselves.

use proxy_common::abi::{
    Address, AddressFlags, Affinity, AffinityKey, Backend, Device, DeviceKey, Family, Flow,
    FlowKey, Service, ServiceKey, Settings, SourceKey, V4, V6,
};
use proxy_common::datapath::{RouteQuery, TcEgress, TcIngress, XdpUplink, run};
use proxy_user::simulation::{
    Changes, Fib, FlowRecord, Frame, Layer, Lookup, Records, SharedRecords, Simulation, Tuple,
};

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Executor, Outcome, Seen};
use crate::case::place::{self, RouteKind};
use crate::case::world::{Kept, size};
use crate::case::{Hook, World};

/// The host executor.
#[derive(Default)]
pub struct Host {
    world: World,
}

/// A world as records, for one frame.
struct Sources<'w> {
    world: &'w World,
}

impl SharedRecords for Sources<'_> {
    fn tick(&self) -> u32 {
        self.world.tick
    }

    fn clock(&self) -> u64 {
        u64::from(self.world.tick) * SECOND
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.world.settings)
    }

    fn device(&self, key: &DeviceKey) -> Option<Device> {
        self.world.devices.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        let slot = self.world.slots.get(&index).copied();
        (index < size::SLOTS).then(|| slot.unwrap_or_default())
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        let backend = self.world.backends.get(&index).copied();
        (index < size::BACKENDS).then(|| backend.unwrap_or_default())
    }

    fn filter_word(&self, index: u32) -> u64 {
        self.world.filter.get(&index).copied().unwrap_or_default()
    }
}

impl<F: Family> Records<F> for Sources<'_> {
    fn flow(&self, key: &FlowKey<F>) -> Option<Flow<F>> {
        let flow = self.world.flows.get(&Tuple::from(key))?;
        Some(flow.flow())
    }

    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        let at = SocketAddr::new(key.address.to_ip(), key.port.get());
        self.world.services.get(&(at, key.protocol)).copied()
    }

    fn admits(&self, question: &SourceKey<F>) -> bool {
        let client = question.address.to_ip();
        let mut ranges = self.world.sources.iter();
        ranges.any(|(service, range)| *service == question.service && range.contains(&client))
    }

    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        let key = (key.client.to_ip(), key.service);
        self.world.affinities.get(&key).map(affinity)
    }

    fn address(&self, address: &F::Addr) -> Option<AddressFlags> {
        let flags = self.world.addresses.get(&address.to_ip())?;
        Some(AddressFlags(*flags))
    }

    fn route(&self, query: &RouteQuery<'_, F>) -> Fib {
        let (from, to) = (query.source.to_ip(), query.destination.to_ip());
        if needs_strict(from) || needs_strict(to) {
            return Fib::Local;
        }
        self.resolve(to)
    }

    fn free_flows(&self) -> usize {
        let family = |tuple: &&Tuple| tuple.source.is_ipv6() == F::IS_V6;
        let used = self.world.flows.keys().filter(family).count();
        (size::FLOWS as usize).saturating_sub(used)
    }
}

/// Whether IPv6 never forwards for this address (`rt6_need_strict`, asked by
/// `bpf_ipv6_fib_lookup` of both addresses).
fn needs_strict(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local() || v6.is_loopback(),
    }
}

impl Sources<'_> {
    /// What `bpf_fib_lookup` says: longest prefix, then the neighbour.
    fn resolve(&self, to: IpAddr) -> Fib {
        if place::own_addresses().iter().any(|(own, _)| *own == to) {
            return Fib::Local;
        }
        let table = self.world.routes.iter();
        let matching = table.filter(|(net, _)| net.contains(&to));
        let Some((_, kind)) = matching.max_by_key(|(net, _)| net.prefix_len()) else {
            return Fib::Local;
        };
        let (next, ifindex) = match *kind {
            RouteKind::Refused => return Fib::Refused,
            RouteKind::Via(router, ifindex) => (router, ifindex),
            RouteKind::Direct(ifindex) => (to, ifindex),
        };
        let Some(destination) = self.world.neighbours.get(&(ifindex, next)) else {
            return Fib::NoNeighbour { ifindex };
        };
        Fib::Forward {
            ifindex,
            destination: *destination,
            source: place::mac(ifindex),
        }
    }
}

impl Host {
    /// The flow tables as they are now.
    #[must_use]
    pub const fn flows(&self) -> &BTreeMap<Tuple, FlowRecord> {
        &self.world.flows
    }

    /// Whom clients are kept with now.
    #[must_use]
    pub const fn affinities(&self) -> &BTreeMap<(IpAddr, u32), Kept> {
        &self.world.affinities
    }
}

impl Executor for Host {
    fn load(&mut self, world: &World) -> Result<()> {
        self.world = world.clone();
        Ok(())
    }

    fn run(&mut self, hook: Hook, ifindex: u32, bytes: &[u8]) -> Result<Outcome> {
        let sources = Sources { world: &self.world };
        let simulation = Simulation::new(&sources, |_: Lookup| {});
        let layer = if hook == Hook::Xdp {
            Layer::Driver
        } else {
            Layer::SocketBuffer
        };
        let mut frame = Frame::new(bytes, layer).received_by(place::mac(ifindex));
        let verdict = match hook {
            Hook::Xdp => run::<XdpUplink, _, _>(&mut frame, &simulation, ifindex),
            Hook::Ingress => run::<TcIngress, _, _>(&mut frame, &simulation, ifindex),
            Hook::Egress => run::<TcEgress, _, _>(&mut frame, &simulation, ifindex),
        };
        let Changes {
            flows_v4,
            flows_v6,
            affinity_v4,
            affinity_v6,
            counters,
        } = simulation.into_changes();
        merge::<V4>(&mut self.world.flows, flows_v4);
        merge::<V6>(&mut self.world.flows, flows_v6);
        note::<V4>(&mut self.world.affinities, affinity_v4);
        note::<V6>(&mut self.world.affinities, affinity_v6);
        Ok(Outcome {
            verdict: Seen::Action(verdict.action()),
            frame: frame.bytes(),
            flows: self.world.flows.clone(),
            affinities: self.world.affinities.clone(),
            counters,
        })
    }

    /// The datapath cannot write to what it is given as `&World`.
    fn verify(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Where the clock stands still, a tick stands for a second.
const SECOND: u64 = 1_000_000_000;

/// The record that says whom a client is kept with.
pub(super) fn affinity((backend, generation, tick): &Kept) -> Affinity {
    Affinity {
        last_opened: u64::from(*tick) * SECOND,
        backend: *backend,
        generation: *generation,
    }
}

/// What a record says.
pub(super) fn kept(affinity: &Affinity) -> Kept {
    let seconds = affinity.last_opened / SECOND;
    let tick = u32::try_from(seconds).unwrap_or(u32::MAX);
    (affinity.backend, affinity.generation, tick)
}

fn note<F: Family>(
    affinities: &mut BTreeMap<(IpAddr, u32), Kept>,
    written: BTreeMap<AffinityKey<F>, Affinity>,
) {
    for (key, affinity) in written {
        affinities.insert((key.client.to_ip(), key.service), kept(&affinity));
    }
}

fn merge<F: Family>(
    flows: &mut BTreeMap<Tuple, FlowRecord>,
    changes: BTreeMap<FlowKey<F>, Option<Flow<F>>>,
) {
    for (key, change) in changes {
        match change {
            Some(flow) => flows.insert(Tuple::from(&key), FlowRecord::from(&flow)),
            None => flows.remove(&Tuple::from(&key)),
        };
    }
}

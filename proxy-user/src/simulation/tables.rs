//! [`Tables`] over [`Records`]: reads go through, writes stay here.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use proxy_common::abi::{
    Address, AddressFlags, Affinity, AffinityKey, Backend, Counter, Device, DeviceKey, Family,
    FilterKind, Flow, FlowKey, Peer, PeerKey, Service, ServiceKey, Settings, SourceKey, V4, V6,
    filter_position,
};
use proxy_common::datapath::{
    Draft, FamilyTables, Hop, Insertion, RouteQuery, SocketTables, Tables,
};

use super::{Lookup, Observer, Records, SharedRecords};

/// What the datapath has written, and the maps do not show: flows by key (none: removed) and
/// counters by index.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Of `FLOWS_V4`.
    pub flows_v4: BTreeMap<FlowKey<V4>, Option<Flow<V4>>>,
    /// Of `FLOWS_V6`.
    pub flows_v6: BTreeMap<FlowKey<V6>, Option<Flow<V6>>>,
    /// Of `AFFINITY_V4`.
    pub affinity_v4: BTreeMap<AffinityKey<V4>, Affinity>,
    /// Of `AFFINITY_V6`.
    pub affinity_v6: BTreeMap<AffinityKey<V6>, Affinity>,
    /// Raised by so much.
    pub counters: BTreeMap<u32, Counter>,
}

/// The tables of one run of the datapath, or of a few in a row.
pub struct Simulation<'r, R, O> {
    records: &'r R,
    observer: O,
    counters: RefCell<BTreeMap<u32, Counter>>,
    families: Families,
}

#[derive(Default)]
struct Families {
    v4: Written<V4>,
    v6: Written<V6>,
}

/// What was written of one family.
struct Written<F: Family> {
    flows: RefCell<BTreeMap<FlowKey<F>, Option<Flow<F>>>>,
    affinity: RefCell<BTreeMap<AffinityKey<F>, Affinity>>,
    peers: RefCell<BTreeMap<PeerKey<F>, Peer<F>>>,
    draft: RefCell<Draft<F>>,
}

impl<F: Family> Default for Written<F> {
    fn default() -> Self {
        Self {
            flows: RefCell::default(),
            affinity: RefCell::default(),
            peers: RefCell::default(),
            draft: RefCell::default(),
        }
    }
}

impl<'r, R, O> Simulation<'r, R, O> {
    /// Reads `records`, and tells `observer` each lookup.
    pub fn new(records: &'r R, observer: O) -> Self {
        Self {
            records,
            observer,
            counters: RefCell::default(),
            families: Families::default(),
        }
    }

    /// What was written.
    pub fn into_changes(self) -> Changes {
        Changes {
            flows_v4: self.families.v4.flows.into_inner(),
            flows_v6: self.families.v6.flows.into_inner(),
            affinity_v4: self.families.v4.affinity.into_inner(),
            affinity_v6: self.families.v6.affinity.into_inner(),
            counters: self.counters.into_inner(),
        }
    }
}

impl<R: SharedRecords, O: Observer> Tables for Simulation<'_, R, O> {
    fn tick(&self) -> u32 {
        self.records.tick()
    }

    fn clock(&self) -> u64 {
        self.records.clock()
    }

    fn count(&self, index: u32, bytes: u64) {
        self.observer.observe(Lookup::Count(index, bytes));
        let mut counters = self.counters.borrow_mut();
        let counter = counters.entry(index).or_default();
        counter.packets += 1;
        counter.bytes += bytes;
    }

    fn settings(&self) -> Option<Settings> {
        self.records.settings()
    }

    fn device(&self, key: &DeviceKey) -> Option<Device> {
        let device = self.records.device(key);
        self.observer.observe(Lookup::Device(*key, device));
        device
    }

    fn slot(&self, index: u32) -> Option<u32> {
        let slot = self.records.slot(index);
        self.observer.observe(Lookup::Slot(index, slot));
        slot
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        let backend = self.records.backend(index);
        self.observer.observe(Lookup::Backend(index, backend));
        backend
    }
}

/// A copy of a flow, written back when it is let go.
pub struct FlowRef<'t, F: Family> {
    key: FlowKey<F>,
    flow: Flow<F>,
    flows: &'t RefCell<BTreeMap<FlowKey<F>, Option<Flow<F>>>>,
}

impl<F: Family> Deref for FlowRef<'_, F> {
    type Target = Flow<F>;

    fn deref(&self) -> &Flow<F> {
        &self.flow
    }
}

impl<F: Family> DerefMut for FlowRef<'_, F> {
    fn deref_mut(&mut self) -> &mut Flow<F> {
        &mut self.flow
    }
}

impl<F: Family> Drop for FlowRef<'_, F> {
    fn drop(&mut self) {
        let mut flows = self.flows.borrow_mut();
        // Writes to a record that was removed meanwhile are lost, as in the kernel.
        if flows.get(&self.key).is_none_or(Option::is_some) {
            flows.insert(self.key, Some(self.flow));
        }
    }
}

/// Which of the two sets of written flows is the family's.
trait WrittenFamily: Family {
    fn of(families: &Families) -> &Written<Self>;
}

impl WrittenFamily for V4 {
    fn of(families: &Families) -> &Written<Self> {
        &families.v4
    }
}

impl WrittenFamily for V6 {
    fn of(families: &Families) -> &Written<Self> {
        &families.v6
    }
}

impl<R, O> Simulation<'_, R, O> {
    fn current<F: WrittenFamily>(&self, key: &FlowKey<F>) -> Option<Flow<F>>
    where
        R: Records<F>,
    {
        match F::of(&self.families).flows.borrow().get(key) {
            Some(written) => *written,
            None => self.records.flow(key),
        }
    }

    /// Whether one more flow finds room.
    fn has_room<F: WrittenFamily>(&self) -> bool
    where
        R: Records<F>,
    {
        let mut free = self.records.free_flows();
        let (mut added, mut removed) = (0_usize, 0_usize);
        for (key, written) in F::of(&self.families).flows.borrow().iter() {
            match (self.records.flow(key), written) {
                (None, Some(_)) => added += 1,
                (Some(_), None) => removed += 1,
                _ => {}
            }
        }
        free = free.saturating_add(removed);
        free > added
    }
}

impl<F: WrittenFamily, R: Records<F>, O: Observer> FamilyTables<F> for Simulation<'_, R, O> {
    type FlowRef<'t>
        = FlowRef<'t, F>
    where
        Self: 't;
    type DraftRef<'t>
        = RefMut<'t, Draft<F>>
    where
        Self: 't;

    fn may_be_ours(&self, kind: FilterKind, address: &F::Addr) -> bool {
        let (word, bit) = filter_position(kind, address);
        let set = self.records.filter_word(word) & bit != 0;
        self.observer.observe(Lookup::Filter {
            kind,
            address: address.to_ip(),
            set,
        });
        set
    }

    fn flow(&self, key: &FlowKey<F>) -> Option<FlowRef<'_, F>> {
        let flow = self.current(key);
        self.observer
            .observe(Lookup::Flow(key.into(), flow.as_ref().map(Into::into)));
        Some(FlowRef {
            key: *key,
            flow: flow?,
            flows: &F::of(&self.families).flows,
        })
    }

    fn insert_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insertion {
        let outcome = if self.current(key).is_some() {
            Insertion::Exists
        } else if self.has_room::<F>() {
            F::of(&self.families)
                .flows
                .borrow_mut()
                .insert(*key, Some(*flow));
            Insertion::Done
        } else {
            Insertion::Full
        };
        self.observer.observe(Lookup::Insert(
            key.into(),
            flow.into(),
            outcome == Insertion::Done,
        ));
        outcome
    }

    fn remove_flow(&self, key: &FlowKey<F>) {
        self.observer.observe(Lookup::Remove(key.into()));
        F::of(&self.families).flows.borrow_mut().insert(*key, None);
    }

    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        let service = self.records.service(key);
        let address = SocketAddr::new(key.address.to_ip(), key.port.get());
        self.observer
            .observe(Lookup::Service(address, key.protocol, service));
        service
    }

    fn admits(&self, question: &SourceKey<F>) -> bool {
        let admitted = self.records.admits(question);
        let client = question.address.to_ip();
        self.observer
            .observe(Lookup::Source(question.service, client, admitted));
        admitted
    }

    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        let written = F::of(&self.families).affinity.borrow().get(key).copied();
        let affinity = written.or_else(|| self.records.affinity(key));
        self.observer
            .observe(Lookup::Affinity(key.service, key.client.to_ip(), affinity));
        affinity
    }

    fn keep(&self, key: &AffinityKey<F>, affinity: &Affinity) {
        let mut written = F::of(&self.families).affinity.borrow_mut();
        written.insert(*key, *affinity);
    }

    fn address(&self, address: &F::Addr) -> Option<AddressFlags> {
        let flags = self.records.address(address);
        self.observer
            .observe(Lookup::Address(address.to_ip(), flags));
        flags
    }

    fn route(&self, query: &RouteQuery<'_, F>, hop: &mut Hop) {
        let fib = self.records.route(query);
        self.observer.observe(Lookup::Route(
            query.source.to_ip(),
            query.destination.to_ip(),
            query.ifindex,
            fib,
        ));
        let device = fib
            .ifindex()
            .and_then(|ifindex| self.device(&DeviceKey { ifindex, vlan: 0 }));
        *hop = fib.hop(device);
    }

    fn draft(&self) -> Option<RefMut<'_, Draft<F>>> {
        F::of(&self.families).draft.try_borrow_mut().ok()
    }
}

/// Sockets of a simulation are its own: it knows of no others.
impl<F: WrittenFamily, R: Records<F>, O: Observer> SocketTables<F> for Simulation<'_, R, O> {
    fn peer(&self, key: &PeerKey<F>) -> Option<Peer<F>> {
        F::of(&self.families).peers.borrow().get(key).copied()
    }

    fn remember(&self, key: &PeerKey<F>, asked: &Peer<F>) -> bool {
        let mut peers = F::of(&self.families).peers.borrow_mut();
        peers.insert(*key, *asked);
        true
    }
}

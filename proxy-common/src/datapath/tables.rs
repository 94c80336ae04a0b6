//! What decisions are made from: the maps in the kernel, ordinary collections on the host.

use core::ops::DerefMut;

use crate::abi::{
    AddressFlags, Affinity, AffinityKey, Backend, Device, DeviceKey, Family, FilterKind, Flow,
    FlowKey, Peer, PeerKey, Service, ServiceKey, Settings, SourceKey,
};

use super::connect::Draft;
use super::forward::{Hop, RouteQuery};

/// Outcome of a no-exist insert into a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// Inserted.
    Done,
    /// There is an entry of that key already.
    Exists,
    /// There is no room.
    Full,
    /// The kernel could not do it just now.
    Busy,
}

/// The tables that are the same for both families.
pub trait Tables {
    /// The time, in ticks.
    fn tick(&self) -> u32;

    /// The time in nanoseconds, of a clock that only grows.
    fn clock(&self) -> u64;

    /// Adds a packet of `bytes` bytes to counter `index` (the number of a `Reason` or an `Event`).
    fn count(&self, index: u32, bytes: u64);

    /// The record of `SETTINGS`.
    fn settings(&self) -> Option<Settings>;

    /// A record of `DEVICES`.
    fn device(&self, key: &DeviceKey) -> Option<Device>;

    /// The backend that slot `index` chooses.
    fn slot(&self, index: u32) -> Option<u32>;

    /// A record of `BACKENDS`.
    fn backend(&self, index: u32) -> Option<Backend>;
}

/// The tables of one family.
pub trait FamilyTables<F: Family>: Tables {
    /// A flow entry that may be written to.
    type FlowRef<'t>: DerefMut<Target = Flow<F>>
    where
        Self: 't;

    /// A connection in the making.
    type DraftRef<'t>: DerefMut<Target = Draft<F>>
    where
        Self: 't;

    /// What the address filter says: false is certain.
    fn may_be_ours(&self, kind: FilterKind, address: &F::Addr) -> bool;

    /// Looks a flow up.
    fn flow(&self, key: &FlowKey<F>) -> Option<Self::FlowRef<'_>>;

    /// Inserts a flow unless there is one of that key.
    fn insert_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insertion;

    /// Removes a flow, if there is one of that key.
    fn remove_flow(&self, key: &FlowKey<F>);

    /// Looks a service up.
    fn service(&self, key: &ServiceKey<F>) -> Option<Service>;

    /// Whether `SOURCES_*` has a range that a client is in.
    fn admits(&self, question: &SourceKey<F>) -> bool;

    /// Looks up whom a client is kept with.
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity>;

    /// Notes whom a client is kept with. That it cannot be noted is no failure.
    fn keep(&self, key: &AffinityKey<F>, affinity: &Affinity);

    /// Looks up whether an address belongs to services alone.
    fn address(&self, address: &F::Addr) -> Option<AddressFlags>;

    /// Asks the routing and neighbour tables.
    fn route(&self, query: &RouteQuery<'_, F>, hop: &mut Hop);

    /// The record in which a connection is made: one per CPU, in any state.
    fn draft(&self) -> Option<Self::DraftRef<'_>>;
}

/// The tables of sockets.
pub trait SocketTables<F: Family>: FamilyTables<F> {
    /// Looks up what a socket's peer stands for.
    fn peer(&self, key: &PeerKey<F>) -> Option<Peer<F>>;

    /// Notes what a socket's peer stands for. False: it cannot be noted.
    fn remember(&self, key: &PeerKey<F>, asked: &Peer<F>) -> bool;
}

//! Numbers for services, backends and slots, which stay the same as long as they are right.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::{Backend, Service},
    wire::Be16,
};

use super::{
    Held, Observed, SlotRange,
    piece::Piece,
    ranges::{FreeRanges, Range},
};

/// How long a number that was given up isn't given out: far longer than any packet is under way in
/// a program that read the old record.
pub const QUARANTINE: Duration = Duration::from_secs(1);

/// The first backend index that is given out: a slot of zero means that nothing was written there.
const FIRST_BACKEND: u32 = 1;

/// How many entries the maps have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `OBJECTS`.
    pub services: u32,
    /// `BACKENDS`.
    pub backends: u32,
    /// `SLOTS`.
    pub slots: u32,
}

/// A table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// `OBJECTS`.
    #[error("all {0} service ports of the map OBJECTS are in use")]
    Services(u32),
    /// `BACKENDS`.
    #[error("all {0} entries of the map BACKENDS are in use")]
    Backends(u32),
    /// `SLOTS`.
    #[error("no {wanted} slots in a row are free among the {capacity} of the map SLOTS")]
    Slots {
        /// How many were asked for.
        wanted: u32,
        /// How many there are in all.
        capacity: u32,
    },
}

/// What makes a backend the same backend: one endpoint of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The service, a key of `OBJECTS`.
    pub service: u32,
    /// 4 or 6.
    pub family: u8,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// The endpoint's port.
    pub port: Be16,
    /// The endpoint's address, as in [`Backend::address`].
    pub address: [u16; 8],
}

impl BackendKey {
    const fn of(backend: &Backend) -> Self {
        Self {
            service: backend.service,
            family: backend.family,
            protocol: backend.protocol,
            port: backend.port,
            address: backend.address,
        }
    }
}

/// For which clients slots choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SlotSet {
    /// Those who may be led to any node.
    Cluster,
    /// Those who must stay on this node.
    Local,
}

/// Whose slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// The service, a key of `OBJECTS`.
    pub service: u32,
    /// 4 or 6.
    pub family: u8,
    /// For whom.
    pub set: SlotSet,
}

/// First slot and what the slots choose.
type Slots = (u32, Arc<[u32]>);

/// A number in use, and the round in which it was last asked for.
#[derive(Clone, Debug)]
struct Owned<T> {
    value: T,
    round: u64,
}

/// The record of a backend index: what was last said of it.
#[derive(Clone, Copy, Debug)]
struct Record {
    generation: u32,
    service: u32,
    live: bool,
}

impl Record {
    fn give_up(&mut self) {
        self.live = false;
        self.generation = self.generation.wrapping_add(1).max(1);
    }

    /// As it must stand in the map once it was given up.
    fn as_backend(self) -> Backend {
        Backend {
            generation: self.generation,
            service: self.service,
            ..Backend::default()
        }
    }
}

/// Which numbers are in use for what.
///
/// A round of use is [`begin`](Self::begin), then asking for everything that is desired, then
/// [`finish`](Self::finish), which gives up what wasn't asked for.
#[derive(Clone, Debug)]
pub struct Allocation {
    capacity: Capacity,
    round: u64,
    ids: HashMap<Arc<str>, Owned<u32>>,
    ids_used: BTreeSet<u32>,
    next_id: u32,
    backends: HashMap<BackendKey, Owned<u32>>,
    records: BTreeMap<u32, Record>,
    next_backend: u32,
    free_backends: BTreeSet<u32>,
    resting_backends: VecDeque<(Instant, u32)>,
    slots: HashMap<SlotKey, Owned<Slots>>,
    free_slots: FreeRanges,
    resting_slots: VecDeque<(Instant, Range)>,
}

impl Allocation {
    /// What the maps say is in use.
    #[must_use]
    pub fn restore(observed: &Observed, capacity: Capacity, now: Instant) -> Self {
        let mut allocation = Self {
            capacity,
            round: 0,
            ids: HashMap::with_capacity(observed.objects.len()),
            ids_used: BTreeSet::new(),
            next_id: 1,
            backends: HashMap::with_capacity(observed.backends.len()),
            records: BTreeMap::new(),
            next_backend: FIRST_BACKEND,
            free_backends: BTreeSet::new(),
            resting_backends: VecDeque::new(),
            slots: HashMap::new(),
            free_slots: FreeRanges::default(),
            resting_slots: VecDeque::new(),
        };
        allocation.restore_ids(observed);
        allocation.restore_backends(observed);
        allocation.restore_slots(observed, now);
        allocation
    }

    fn restore_ids(&mut self, observed: &Observed) {
        for (id, name) in &observed.objects {
            // Of two entries with one name the lower stays: the plan won't have the other.
            self.ids.entry(Arc::clone(name)).or_insert(Owned {
                value: *id,
                round: 0,
            });
            self.ids_used.insert(*id);
        }
        let seen = observed
            .objects
            .keys()
            .copied()
            .chain(observed.backends.values().map(|backend| backend.service))
            .chain(observed.services_v4.values().map(|service| service.id))
            .chain(observed.services_v6.values().map(|service| service.id))
            .max();
        self.next_id = seen.unwrap_or_default().wrapping_add(1).max(1);
    }

    fn restore_backends(&mut self, observed: &Observed) {
        for (&index, backend) in &observed.backends {
            let live = backend.family != 0;
            let Backend {
                generation,
                service,
                ..
            } = *backend;
            self.records.insert(
                index,
                Record {
                    generation,
                    service,
                    live,
                },
            );
            self.next_backend = self.next_backend.max(index.saturating_add(1));
            if live {
                self.backends
                    .entry(BackendKey::of(backend))
                    .or_insert(Owned {
                        value: index,
                        round: 0,
                    });
            } else if index < self.capacity.backends {
                self.free_backends.insert(index);
            }
        }
    }

    fn restore_slots(&mut self, observed: &Observed, now: Instant) {
        let mut claims: BTreeMap<Range, SlotKey> = BTreeMap::new();
        for (range, owner) in ranges_of(observed) {
            claims.entry(range).or_insert(owner);
        }
        self.free_slots = FreeRanges::without(self.capacity.slots, claims.keys().copied());
        let mut end = 0;
        for (range, owner) in claims {
            let contents = observed.slots(range.first, range.count);
            let fresh = range.first >= end && !self.slots.contains_key(&owner);
            if let (true, Some(contents)) = (fresh, contents) {
                let value = (range.first, Arc::from(contents));
                self.slots.insert(owner, Owned { value, round: 0 });
                end = range.first.saturating_add(range.count);
            } else if range.first >= end {
                self.resting_slots.push_back((now, range));
                end = range.first.saturating_add(range.count);
            }
            // A range that overlaps one before it is left out until the next start: it is damage
            // that an orderly writer cannot have done.
        }
    }

    /// Lets numbers that were given up [`QUARANTINE`] ago be given out again, unless an entry that
    /// could not be changed yet still names them.
    pub fn release(&mut self, observed: &Observed, now: Instant) {
        let rested = |since: Instant| now.saturating_duration_since(since) >= QUARANTINE;
        for (since, index) in std::mem::take(&mut self.resting_backends) {
            let held = observed
                .backends
                .get(&index)
                .is_some_and(|backend| backend.family != 0);
            if rested(since) && !held {
                self.free_backends.insert(index);
            } else {
                self.resting_backends.push_back((since, index));
            }
        }
        if !self.resting_slots.iter().any(|(since, _)| rested(*since)) {
            return;
        }
        let named: BTreeSet<u32> = ranges_of(observed).map(|(range, _)| range.first).collect();
        for (since, range) in std::mem::take(&mut self.resting_slots) {
            if rested(since) && !named.contains(&range.first) {
                self.free_slots.give(range);
            } else {
                self.resting_slots.push_back((since, range));
            }
        }
    }

    /// How many backends are in use.
    #[must_use]
    pub fn live_backends(&self) -> usize {
        self.backends.len()
    }

    /// When [`release`](Self::release) may find something to do; none: nothing is resting.
    #[must_use]
    pub fn next_release(&self) -> Option<Instant> {
        let backends = self.resting_backends.front().map(|(since, _)| *since);
        let slots = self.resting_slots.front().map(|(since, _)| *since);
        backends
            .into_iter()
            .chain(slots)
            .min()
            .map(|since| since + QUARANTINE)
    }

    /// Begins a round of asking.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// The id of the service port of this name.
    pub fn service(&mut self, name: &Arc<str>) -> Result<u32, Exhausted> {
        if let Some(owned) = self.ids.get_mut(name) {
            owned.round = self.round;
            return Ok(owned.value);
        }
        let limit = usize::try_from(self.capacity.services).unwrap_or(usize::MAX);
        if self.ids_used.len() >= limit {
            return Err(Exhausted::Services(self.capacity.services));
        }
        while self.next_id == 0 || self.ids_used.contains(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.ids_used.insert(id);
        self.ids.insert(
            Arc::clone(name),
            Owned {
                value: id,
                round: self.round,
            },
        );
        Ok(id)
    }

    /// The index and generation of a backend.
    pub fn backend(&mut self, key: BackendKey) -> Result<(u32, u32), Exhausted> {
        if let Some(owned) = self.backends.get_mut(&key) {
            owned.round = self.round;
            let generation = self
                .records
                .get(&owned.value)
                .map_or(1, |record| record.generation);
            return Ok((owned.value, generation));
        }
        let index = match self.free_backends.pop_first() {
            Some(index) => index,
            None if self.next_backend < self.capacity.backends => {
                self.next_backend += 1;
                self.next_backend - 1
            }
            None => return Err(Exhausted::Backends(self.capacity.backends)),
        };
        let last = self
            .records
            .get(&index)
            .map_or(0, |record| record.generation);
        let generation = last.wrapping_add(1).max(1);
        self.records.insert(
            index,
            Record {
                generation,
                service: key.service,
                live: true,
            },
        );
        self.backends.insert(
            key,
            Owned {
                value: index,
                round: self.round,
            },
        );
        Ok((index, generation))
    }

    /// First slot of the range that holds these choices of a service: the range it has if that holds
    /// the same, else a new one. `backends` must not be empty.
    pub fn slots(
        &mut self,
        key: SlotKey,
        backends: Vec<u32>,
        now: Instant,
    ) -> Result<(u32, SlotRange), Exhausted> {
        let (round, service) = (self.round, key.service);
        if let Some(owned) = self.slots.get_mut(&key)
            && *owned.value.1 == *backends
        {
            owned.round = round;
            let (first, backends) = owned.value.clone();
            return Ok((first, SlotRange { service, backends }));
        }
        let capacity = self.capacity.slots;
        let wanted = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let Some(range) = self.free_slots.take(wanted) else {
            return Err(Exhausted::Slots { wanted, capacity });
        };
        let backends: Arc<[u32]> = backends.into();
        let value = (range.first, Arc::clone(&backends));
        if let Some(old) = self.slots.insert(key, Owned { value, round }) {
            self.rest_slots(&old.value, now);
        }
        Ok((range.first, SlotRange { service, backends }))
    }

    /// The range that a service has, whatever it holds; it stays in use.
    pub fn held(&mut self, key: SlotKey) -> Option<(u32, SlotRange)> {
        let service = key.service;
        let owned = self.slots.get_mut(&key)?;
        owned.round = self.round;
        let (first, backends) = owned.value.clone();
        Some((first, SlotRange { service, backends }))
    }

    /// Keeps all numbers of these service ports in use, although nobody asks for them.
    pub fn hold(&mut self, held: &Held) {
        let round = self.round;
        let mut ids = BTreeSet::new();
        for name in held {
            if let Some(owned) = self.ids.get_mut(name) {
                owned.round = round;
                ids.insert(owned.value);
            }
        }
        if ids.is_empty() {
            return;
        }
        let backends = self.backends.iter_mut();
        for (_, owned) in backends.filter(|(key, _)| ids.contains(&key.service)) {
            owned.round = round;
        }
        let slots = self.slots.iter_mut();
        for (_, owned) in slots.filter(|(key, _)| ids.contains(&key.service)) {
            owned.round = round;
        }
    }

    /// Ends a round: what wasn't asked for since [`begin`](Self::begin) is given up, and rests.
    pub fn finish(&mut self, now: Instant) {
        let round = self.round;
        self.ids.retain(|_, owned| owned.round == round);
        if self.ids_used.len() != self.ids.len() {
            self.ids_used = self.ids.values().map(|owned| owned.value).collect();
        }
        self.give_up_backends(now);
        let stale: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, owned)| owned.round != round)
            .map(|(key, _)| *key)
            .collect();
        for key in stale {
            if let Some(owned) = self.slots.remove(&key) {
                self.rest_slots(&owned.value, now);
            }
        }
    }

    /// The same for one service port, which had all this: gives up what of it wasn't asked for.
    /// Returns the records of backends that were given up.
    pub(super) fn finish_port(
        &mut self,
        name: &Arc<str>,
        had: &Piece,
        now: Instant,
    ) -> Vec<(u32, Backend)> {
        let round = self.round;
        let Some(service) = had.id else {
            return Vec::new();
        };
        let stale = |entry: &Owned<u32>| entry.round != round;
        if self.ids.get(name).is_some_and(stale) {
            self.ids.remove(name);
            self.ids_used.remove(&service);
        }
        let mut given_up = Vec::new();
        for (index, backend) in &had.backends {
            let key = BackendKey::of(backend);
            if self.backends.get(&key).is_some_and(stale) {
                self.backends.remove(&key);
                if let Some(record) = self.records.get_mut(index) {
                    record.give_up();
                    given_up.push((*index, record.as_backend()));
                }
                self.resting_backends.push_back((now, *index));
            }
        }
        for family in [4, 6] {
            for set in [SlotSet::Cluster, SlotSet::Local] {
                let key = SlotKey {
                    service,
                    family,
                    set,
                };
                if let Entry::Occupied(entry) = self.slots.entry(key)
                    && entry.get().round != round
                {
                    let owned = entry.remove();
                    self.rest_slots(&owned.value, now);
                }
            }
        }
        given_up
    }

    fn give_up_backends(&mut self, now: Instant) {
        let round = self.round;
        self.backends.retain(|_, owned| owned.round == round);
        let live = self.records.values().filter(|record| record.live).count();
        if live == self.backends.len() {
            return;
        }
        let kept: BTreeSet<u32> = self.backends.values().map(|owned| owned.value).collect();
        for (&index, record) in &mut self.records {
            if record.live && !kept.contains(&index) {
                record.give_up();
                self.resting_backends.push_back((now, index));
            }
        }
    }

    fn rest_slots(&mut self, (first, backends): &Slots, now: Instant) {
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        self.resting_slots.push_back((
            now,
            Range {
                first: *first,
                count,
            },
        ));
    }

    /// The records of backends that were given up, as they must stand in the map.
    pub fn given_up(&self) -> impl Iterator<Item = (u32, Backend)> + '_ {
        self.records
            .iter()
            .filter(|(_, record)| !record.live)
            .map(|(index, record)| (*index, record.as_backend()))
    }
}

/// The slots that entries of both service tables name, and whose they are.
fn ranges_of(observed: &Observed) -> impl Iterator<Item = (Range, SlotKey)> + '_ {
    let v4 = observed.services_v4.values().map(|service| (*service, 4));
    let v6 = observed.services_v6.values().map(|service| (*service, 6));
    let both = |(service, family): (Service, u8)| {
        let one = |(first, count), set| {
            let service = service.id;
            let key = SlotKey {
                service,
                family,
                set,
            };
            (Range { first, count }, key)
        };
        let [cluster, local] = service.ranges();
        [one(cluster, SlotSet::Cluster), one(local, SlotSet::Local)]
    };
    v4.chain(v6)
        .flat_map(both)
        .filter(|(range, _)| range.count != 0)
}

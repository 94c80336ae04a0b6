//! A plan that is kept up: what has not changed is not compiled again.
//!
//! What a service port puts into the maps depends on the port, on which of its frontends it has
//! ([`Claims`]), on numbers ([`Allocation`]) and on the [`Ground`]. So an update compiles the ports
//! that differ from last time, those that got or lost a frontend by that, and those for which a
//! table was full. Where the ground changes, everything is compiled anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use proxy_common::abi::{Addr4, Addr6, AddressFlags, FilterKind, Settings, address_flag};

use super::{
    Allocation, Extent, Facts, Held, Observed, Options, Plan, Report, carry,
    claims::{Claims, ServiceAddresses, addresses},
    devices,
    filter::FilterNeeds,
    ground::Ground,
    maglev,
    piece::{self, Piece},
};
use crate::model::{Reach, ServiceName, ServicePort, State};

/// What an update has come to.
#[derive(Debug)]
pub struct Update {
    /// What is to be told.
    pub report: Report,
    /// Which entries of the plan may differ from what they were.
    pub extent: Extent,
}

/// A service port as it was compiled last.
#[derive(Debug)]
struct Compiled {
    port: Arc<ServicePort>,
    piece: Piece,
}

/// A plan, and what it was made of.
#[derive(Debug, Default)]
pub struct Planner {
    /// None: everything must be compiled.
    ground: Option<Ground>,
    ports: BTreeMap<ServiceName, Compiled>,
    addresses: ServiceAddresses,
    claims: Claims,
    /// Ports for which a table was full.
    wanting: BTreeSet<ServiceName>,
    /// Ports of which there is something to be told.
    told: BTreeSet<ServiceName>,
    needs: FilterNeeds,
    plan: Plan,
}

/// A service port that differs from what was compiled: what it is now, if it is still there.
type Change = (ServiceName, Option<Arc<ServicePort>>);

impl Planner {
    /// What the maps shall hold, by the last update.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The same, where it isn't kept up any longer.
    #[must_use]
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// The next update compiles everything.
    pub fn forget(&mut self) {
        self.ground = None;
    }

    /// Adds what the maps hold of service ports that are held. The next update begins anew, so
    /// that it stays in the plan no longer than it must.
    pub fn carry(&mut self, observed: &Observed, held: &Held) {
        if !held.is_empty() {
            carry(observed, held, &mut self.plan);
            self.forget();
        }
    }

    /// Makes the plan what [`compile`](super::compile) would make of the same.
    pub fn update(
        &mut self,
        state: &Arc<State>,
        facts: &Facts,
        options: &Options,
        allocation: &mut Allocation,
        now: Instant,
    ) -> Update {
        let part = self.update_part(state, facts, options, (&mut *allocation, now));
        let extent = match part {
            Some(extent) => extent,
            None => self.compile_all(state, facts, options, (allocation, now)),
        };
        self.finish(state, facts, options, extent)
    }

    /// Compiles what has changed; none: that is not enough.
    fn update_part(
        &mut self,
        state: &State,
        facts: &Facts,
        options: &Options,
        numbers: (&mut Allocation, Instant),
    ) -> Option<Extent> {
        if self.ground.is_none() || !options.held.is_empty() {
            return None;
        }
        let changes = self.changes(state);
        let mut moved: BTreeSet<IpAddr> = BTreeSet::new();
        for (name, port) in &changes {
            if let Some(old) = self.ports.get(name) {
                self.addresses.remove(&old.port);
                moved.extend(addresses(&old.port).map(|(address, _)| address));
            }
            if let Some(port) = port {
                self.addresses.add(port);
                moved.extend(addresses(port).map(|(address, _)| address));
            }
        }
        let ground = Ground::of(state, facts, options, &self.addresses);
        if self.ground.as_ref() != Some(&ground) {
            return None;
        }
        let mut extent = Extent::part();
        for address in moved {
            self.set_address(address, &ground, &mut extent);
        }
        self.compile_changed(state, changes, &ground, numbers, &mut extent);
        Some(extent)
    }

    /// What differs from what was compiled. The state's map goes by the ports' own names.
    fn changes(&mut self, state: &State) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut compiled = self.ports.iter_mut().peekable();
        for (name, port) in &state.services {
            // Most are the very same object, and then names need not be compared.
            while let Some((gone, _)) =
                compiled.next_if(|(old, entry)| !Arc::ptr_eq(&entry.port, port) && *old < name)
            {
                changes.push((gone.clone(), None));
            }
            match compiled.next_if(|(old, entry)| Arc::ptr_eq(&entry.port, port) || *old == name) {
                Some((_, entry)) if Arc::ptr_eq(&entry.port, port) => {}
                Some((_, entry)) if entry.port == *port => entry.port = Arc::clone(port),
                _ => changes.push((name.clone(), Some(Arc::clone(port)))),
            }
        }
        changes.extend(compiled.map(|(gone, _)| (gone.clone(), None)));
        changes
    }

    /// Compiles what differs, and whoever got or lost a frontend by that.
    fn compile_changed(
        &mut self,
        state: &State,
        changes: Vec<Change>,
        ground: &Ground,
        (allocation, now): (&mut Allocation, Instant),
        extent: &mut Extent,
    ) {
        let mut names = self.wanting.clone();
        for (name, _) in &changes {
            if let Some(old) = self.ports.get(name) {
                self.claims.remove(&old.port, &mut names);
            }
        }
        for (name, port) in changes {
            if let Some(port) = port {
                self.claims.add(&port, &mut names);
            }
            names.insert(name);
        }
        let mut before = Vec::with_capacity(names.len());
        for name in &names {
            if let Some(old) = self.ports.remove(name) {
                self.retract(&old.piece, extent);
                before.push(old);
            }
            self.wanting.remove(name);
            self.told.remove(name);
        }
        allocation.begin();
        // In order of names, as when everything is compiled: it decides about numbers.
        for port in names.iter().filter_map(|name| state.services.get(name)) {
            self.compile_port(port, ground, (allocation, now), extent);
        }
        for old in before {
            for (index, backend) in allocation.finish_port(old.port.name.shared(), &old.piece, now)
            {
                self.plan.backends.insert(index, backend);
                extent.backend(index);
            }
        }
    }

    fn compile_all(
        &mut self,
        state: &State,
        facts: &Facts,
        options: &Options,
        (allocation, now): (&mut Allocation, Instant),
    ) -> Extent {
        *self = Self::default();
        for port in state.services.values() {
            self.addresses.add(port);
        }
        let ground = Ground::of(state, facts, options, &self.addresses);
        self.claims = Claims::new(ground.node_ports.clone());
        let mut extent = Extent::Whole;
        for port in state.services.values() {
            self.claims.add(port, &mut BTreeSet::new());
            for (address, _) in addresses(port) {
                self.set_address(address, &ground, &mut extent);
            }
        }
        allocation.begin();
        allocation.hold(&options.held);
        let all = state.services.values();
        for port in all.filter(|port| !options.held.contains(port.name.shared())) {
            self.compile_port(port, &ground, (allocation, now), &mut extent);
        }
        allocation.finish(now);
        self.plan.backends.extend(allocation.given_up());
        self.ground = options.held.is_empty().then_some(ground);
        extent
    }

    fn compile_port(
        &mut self,
        port: &Arc<ServicePort>,
        ground: &Ground,
        (allocation, now): (&mut Allocation, Instant),
        extent: &mut Extent,
    ) {
        let held = self.claims.held(port);
        let piece = piece::compile(port, &held, ground, allocation, now);
        self.insert(port, &piece, extent);
        if piece.exhausted {
            self.wanting.insert(port.name.clone());
        }
        if !piece.notices.is_empty() {
            self.told.insert(port.name.clone());
        }
        let port = Arc::clone(port);
        self.ports
            .insert(port.name.clone(), Compiled { port, piece });
    }

    fn insert(&mut self, port: &ServicePort, piece: &Piece, extent: &mut Extent) {
        let Self { plan, needs, .. } = self;
        if let Some(id) = piece.id {
            plan.objects.insert(id, Arc::clone(port.name.shared()));
            extent.object(id);
        }
        for (index, backend) in &piece.backends {
            plan.backends.insert(*index, *backend);
            extent.backend(*index);
            extent.words(needs.add_backend(backend, &mut plan.filter));
        }
        for (first, range) in &piece.slots {
            plan.slots.insert(*first, range.clone());
            extent.slots(*first);
        }
        for key in &piece.sources_v4 {
            plan.sources_v4.insert(*key);
            extent.source_v4(*key);
        }
        for key in &piece.sources_v6 {
            plan.sources_v6.insert(*key);
            extent.source_v6(*key);
        }
        let destination = FilterKind::Destination;
        for (key, service) in &piece.services_v4 {
            plan.services_v4.insert(*key, *service);
            extent.service_v4(*key);
            extent.words([needs.add(destination, &key.address, &mut plan.filter)]);
        }
        for (key, service) in &piece.services_v6 {
            plan.services_v6.insert(*key, *service);
            extent.service_v6(*key);
            extent.words([needs.add(destination, &key.address, &mut plan.filter)]);
        }
    }

    /// The opposite of [`insert`](Self::insert).
    fn retract(&mut self, piece: &Piece, extent: &mut Extent) {
        let Self { plan, needs, .. } = self;
        if let Some(id) = piece.id {
            plan.objects.remove(&id);
            extent.object(id);
        }
        for (index, backend) in &piece.backends {
            plan.backends.remove(index);
            extent.backend(*index);
            needs.remove_backend(backend, &mut plan.filter);
        }
        for (first, _) in &piece.slots {
            plan.slots.remove(first);
            extent.slots(*first);
        }
        for key in &piece.sources_v4 {
            plan.sources_v4.remove(key);
            extent.source_v4(*key);
        }
        for key in &piece.sources_v6 {
            plan.sources_v6.remove(key);
            extent.source_v6(*key);
        }
        let destination = FilterKind::Destination;
        for (key, _) in &piece.services_v4 {
            plan.services_v4.remove(key);
            extent.service_v4(*key);
            needs.remove(destination, &key.address, &mut plan.filter);
        }
        for (key, _) in &piece.services_v6 {
            plan.services_v6.remove(key);
            extent.service_v6(*key);
            needs.remove(destination, &key.address, &mut plan.filter);
        }
    }

    /// An address of a service belongs to services alone, unless this node answers for it, too.
    fn set_address(&mut self, address: IpAddr, ground: &Ground, extent: &mut Extent) {
        let reach = self.addresses.reach(&address);
        let flags = reach
            .filter(|_| !ground.shared.contains(&address))
            .map(|reach| {
                AddressFlags(match reach {
                    Reach::Cluster => 0,
                    Reach::Everywhere => address_flag::EXTERNAL,
                })
            });
        extent.address(address);
        let Self { plan, needs, .. } = self;
        let filter = &mut plan.filter;
        let destination = FilterKind::Destination;
        match address {
            IpAddr::V4(v4) => {
                let key = Addr4::from(v4);
                if plan.addresses_v4.remove(&key).is_some() {
                    needs.remove(destination, &key, filter);
                }
                if let Some(flags) = flags {
                    plan.addresses_v4.insert(key, flags);
                    extent.words([needs.add(destination, &key, filter)]);
                }
            }
            IpAddr::V6(v6) => {
                let key = Addr6::from(v6);
                if plan.addresses_v6.remove(&key).is_some() {
                    needs.remove(destination, &key, filter);
                }
                if let Some(flags) = flags {
                    plan.addresses_v6.insert(key, flags);
                    extent.words([needs.add(destination, &key, filter)]);
                }
            }
        }
    }

    /// What is cheap enough to be made anew each time: settings, devices, and what is told.
    fn finish(
        &mut self,
        state: &State,
        facts: &Facts,
        options: &Options,
        mut extent: Extent,
    ) -> Update {
        let Self { plan, needs, .. } = self;
        plan.settings = settings(facts, options);
        let before = std::mem::take(&mut plan.devices);
        plan.tx_ports.clear();
        devices::add(plan, facts, state.nodes.get(&options.node));
        for device in plan.devices.values() {
            extent.words(needs.add_device(device, &mut plan.filter));
        }
        for device in before.values() {
            needs.remove_device(device, &mut plan.filter);
        }
        let pieces = self.told.iter().filter_map(|name| self.ports.get(name));
        let mut notices: Vec<_> = pieces
            .flat_map(|compiled| compiled.piece.notices.iter().cloned())
            .collect();
        notices.extend(self.claims.notices());
        notices.sort();
        let report = Report {
            notices,
            exhausted: !self.wanting.is_empty(),
        };
        Update { report, extent }
    }
}

fn settings(facts: &Facts, options: &Options) -> Settings {
    let (first, last) = (*options.nat_ports.start(), *options.nat_ports.end());
    let seed = maglev::key(options.node.as_bytes());
    Settings {
        port_min: first.into(),
        port_count: (u32::from(last) + 1).saturating_sub(first.into()),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "any bits of the hash will do"
        )]
        seed: seed as u32,
        hz: facts.hz,
    }
}

//! How much of a plan an update may have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proxy_common::abi::{Addr4, Addr6, ServiceKey, SourceKey, V4, V6};

use super::{Observed, Plan};

/// Which entries of a plan may differ from what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Any.
    Whole,
    /// These, and those that are few: settings and devices.
    Part(Box<Keys>),
}

/// Keys of entries, by map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    objects: BTreeSet<u32>,
    backends: BTreeSet<u32>,
    slots: BTreeSet<u32>,
    words: BTreeSet<u32>,
    addresses_v4: BTreeSet<Addr4>,
    addresses_v6: BTreeSet<Addr6>,
    sources_v4: BTreeSet<SourceKey<V4>>,
    sources_v6: BTreeSet<SourceKey<V6>>,
    services_v4: BTreeSet<ServiceKey<V4>>,
    services_v6: BTreeSet<ServiceKey<V6>>,
}

impl Extent {
    /// Nothing yet.
    pub(super) fn part() -> Self {
        Self::Part(Box::default())
    }

    fn add(&mut self, add: impl FnOnce(&mut Keys)) {
        if let Self::Part(keys) = self {
            add(keys);
        }
    }

    pub(super) fn object(&mut self, id: u32) {
        self.add(|keys| keys.objects.extend([id]));
    }

    pub(super) fn backend(&mut self, index: u32) {
        self.add(|keys| keys.backends.extend([index]));
    }

    pub(super) fn slots(&mut self, first: u32) {
        self.add(|keys| keys.slots.extend([first]));
    }

    /// Words of the filter that have got a bit.
    pub(super) fn words(&mut self, words: impl IntoIterator<Item = u32>) {
        self.add(|keys| keys.words.extend(words));
    }

    pub(super) fn address(&mut self, address: IpAddr) {
        self.add(|keys| match address {
            IpAddr::V4(v4) => keys.addresses_v4.extend([Addr4::from(v4)]),
            IpAddr::V6(v6) => keys.addresses_v6.extend([Addr6::from(v6)]),
        });
    }

    pub(super) fn source_v4(&mut self, key: SourceKey<V4>) {
        self.add(|keys| keys.sources_v4.extend([key]));
    }

    pub(super) fn source_v6(&mut self, key: SourceKey<V6>) {
        self.add(|keys| keys.sources_v6.extend([key]));
    }

    pub(super) fn service_v4(&mut self, key: ServiceKey<V4>) {
        self.add(|keys| keys.services_v4.extend([key]));
    }

    pub(super) fn service_v6(&mut self, key: ServiceKey<V6>) {
        self.add(|keys| keys.services_v6.extend([key]));
    }
}

impl Keys {
    /// The plan as far as these keys go.
    pub(super) fn of_plan(&self, plan: &Plan) -> Plan {
        Plan {
            settings: plan.settings,
            objects: pick(&plan.objects, &self.objects),
            backends: pick(&plan.backends, &self.backends),
            slots: pick(&plan.slots, &self.slots),
            filter: plan.filter.pick(&self.words),
            tx_ports: plan.tx_ports.clone(),
            devices: plan.devices.clone(),
            addresses_v4: pick(&plan.addresses_v4, &self.addresses_v4),
            addresses_v6: pick(&plan.addresses_v6, &self.addresses_v6),
            sources_v4: common(&plan.sources_v4, &self.sources_v4),
            sources_v6: common(&plan.sources_v6, &self.sources_v6),
            services_v4: pick(&plan.services_v4, &self.services_v4),
            services_v6: pick(&plan.services_v6, &self.services_v6),
        }
    }

    /// What the maps hold as far as these keys go, but for slots: these are an array.
    pub(super) fn of_observed(&self, observed: &Observed) -> Observed {
        Observed {
            settings: observed.settings,
            objects: pick(&observed.objects, &self.objects),
            backends: pick(&observed.backends, &self.backends),
            slots: Vec::new(),
            filter: observed.filter.pick(&self.words),
            tx_ports: observed.tx_ports.clone(),
            devices: observed.devices.clone(),
            addresses_v4: pick(&observed.addresses_v4, &self.addresses_v4),
            addresses_v6: pick(&observed.addresses_v6, &self.addresses_v6),
            sources_v4: common(&observed.sources_v4, &self.sources_v4),
            sources_v6: common(&observed.sources_v6, &self.sources_v6),
            services_v4: pick(&observed.services_v4, &self.services_v4),
            services_v6: pick(&observed.services_v6, &self.services_v6),
        }
    }
}

fn pick<K: Ord + Clone, V: Clone>(map: &BTreeMap<K, V>, keys: &BTreeSet<K>) -> BTreeMap<K, V> {
    let entry = |key: &K| Some((key.clone(), map.get(key)?.clone()));
    keys.iter().filter_map(entry).collect()
}

fn common<K: Ord + Copy>(set: &BTreeSet<K>, keys: &BTreeSet<K>) -> BTreeSet<K> {
    keys.iter()
        .filter(|key| set.contains(key))
        .copied()
        .collect()
}

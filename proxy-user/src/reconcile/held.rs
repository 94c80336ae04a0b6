//! Service ports that stay as the maps hold them, since nobody can tell what is desired of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::abi::{FilterKind, Service};

use super::{Observed, Plan, SlotRange};

/// Names of service ports that are held.
pub type Held = BTreeSet<Arc<str>>;

/// Adds to the plan what the maps hold of these service ports. Compiling has left them out, and
/// their numbers in use.
pub fn carry(observed: &Observed, held: &Held, plan: &mut Plan) {
    if held.is_empty() {
        return;
    }
    let objects = observed.objects.iter();
    let ids: BTreeMap<u32, Arc<str>> = objects
        .filter(|(_, name)| held.contains(*name))
        .map(|(id, name)| (*id, Arc::clone(name)))
        .collect();
    let of = |id: u32| ids.contains_key(&id);
    for (index, backend) in &observed.backends {
        if of(backend.service) && backend.family != 0 {
            plan.backends.insert(*index, *backend);
            plan.filter.add_backend(backend);
        }
    }
    let sources = observed.sources_v4.iter().filter(|key| of(key.service));
    plan.sources_v4.extend(sources);
    let sources = observed.sources_v6.iter().filter(|key| of(key.service));
    plan.sources_v6.extend(sources);
    let mut slots = |service: &Service| {
        for (first, count) in service.ranges() {
            if let Some(backends) = observed.slots(first, count)
                && !backends.is_empty()
            {
                plan.slots.entry(first).or_insert(SlotRange {
                    service: service.id,
                    backends: backends.into(),
                });
            }
        }
    };
    let services = observed.services_v4.values();
    let services = services.chain(observed.services_v6.values());
    services
        .filter(|service| of(service.id))
        .for_each(&mut slots);
    let Plan {
        services_v4,
        services_v6,
        addresses_v4,
        addresses_v6,
        filter,
        ..
    } = plan;
    for (key, service) in &observed.services_v4 {
        if of(service.id) {
            services_v4.entry(*key).or_insert(*service);
            filter.add(FilterKind::Destination, &key.address);
            if let Some(flags) = observed.addresses_v4.get(&key.address) {
                addresses_v4.entry(key.address).or_insert(*flags);
            }
        }
    }
    for (key, service) in &observed.services_v6 {
        if of(service.id) {
            services_v6.entry(*key).or_insert(*service);
            filter.add(FilterKind::Destination, &key.address);
            if let Some(flags) = observed.addresses_v6.get(&key.address) {
                addresses_v6.entry(key.address).or_insert(*flags);
            }
        }
    }
    plan.objects.extend(ids);
}

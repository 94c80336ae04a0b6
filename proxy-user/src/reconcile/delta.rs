//! What must change, in an order that is safe after every single step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proxy_common::abi::{
    Addr4, Addr6, AddressFlags, Backend, Device, DeviceKey, Service, ServiceKey, Settings,
    SourceKey, V4, V6, backend_flag,
};

use super::{Extent, Observed, Plan};

/// One change of one map entry (of one range, for slots).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "fields are the entry's key and value, named as in the abi"
)]
pub enum Op {
    /// `BACKENDS`.
    WriteBackend { index: u32, backend: Backend },
    /// `SLOTS`, a range that no service uses yet.
    WriteSlots {
        service: u32,
        first: u32,
        backends: Arc<[u32]>,
    },
    /// `OBJECTS`.
    WriteObject { id: u32, name: Arc<str> },
    /// `FILTER`, the whole word.
    WriteFilter { word: u32, bits: u64 },
    /// `TX_PORTS`, the index as key and as value.
    WriteTxPort { ifindex: u32 },
    /// `DEVICES`.
    WriteDevice { key: DeviceKey, device: Device },
    /// `ADDRESSES_V4`.
    WriteAddressV4 { address: Addr4, flags: AddressFlags },
    /// `ADDRESSES_V6`.
    WriteAddressV6 { address: Addr6, flags: AddressFlags },
    /// `SOURCES_V4`.
    WriteSourceV4 { key: SourceKey<V4> },
    /// `SOURCES_V6`.
    WriteSourceV6 { key: SourceKey<V6> },
    /// `SERVICES_V4`.
    WriteServiceV4 {
        key: ServiceKey<V4>,
        service: Service,
    },
    /// `SERVICES_V6`.
    WriteServiceV6 {
        key: ServiceKey<V6>,
        service: Service,
    },
    /// `SETTINGS`.
    WriteSettings { settings: Settings },
    /// `SERVICES_V4`; `service` is what the entry held.
    DeleteServiceV4 {
        key: ServiceKey<V4>,
        service: Service,
    },
    /// `SERVICES_V6`; `service` is what the entry held.
    DeleteServiceV6 {
        key: ServiceKey<V6>,
        service: Service,
    },
    /// `SOURCES_V4`.
    DeleteSourceV4 { key: SourceKey<V4> },
    /// `SOURCES_V6`.
    DeleteSourceV6 { key: SourceKey<V6> },
    /// `ADDRESSES_V4`.
    DeleteAddressV4 { address: Addr4 },
    /// `ADDRESSES_V6`.
    DeleteAddressV6 { address: Addr6 },
    /// `DEVICES`.
    DeleteDevice { key: DeviceKey },
    /// `TX_PORTS`.
    DeleteTxPort { ifindex: u32 },
    /// `OBJECTS`.
    DeleteObject { id: u32 },
}

impl Op {
    /// The service that the operation is a part of, if it is a part of one.
    #[must_use]
    pub const fn service(&self) -> Option<u32> {
        match self {
            Self::WriteBackend { backend, .. } => Some(backend.service),
            Self::WriteSlots { service, .. } => Some(*service),
            Self::WriteObject { id, .. } | Self::DeleteObject { id } => Some(*id),
            Self::WriteSourceV4 { key } | Self::DeleteSourceV4 { key } => Some(key.service),
            Self::WriteSourceV6 { key } | Self::DeleteSourceV6 { key } => Some(key.service),
            Self::WriteServiceV4 { service, .. }
            | Self::WriteServiceV6 { service, .. }
            | Self::DeleteServiceV4 { service, .. }
            | Self::DeleteServiceV6 { service, .. } => Some(service.id),
            _ => None,
        }
    }
}

/// Which operations must wait in one round of applying.
///
/// Later operations of a service rely on its earlier ones, so after one that failed the rest of
/// this service waits for the next round. Others go on.
#[derive(Clone, Debug, Default)]
pub struct Round {
    failed: BTreeSet<u32>,
}

impl Round {
    /// Whether `op` must wait.
    #[must_use]
    pub fn must_wait(&self, op: &Op) -> bool {
        op.service()
            .is_some_and(|service| self.failed.contains(&service))
    }

    /// Takes note of an operation that failed.
    pub fn fail(&mut self, op: &Op) {
        self.failed.extend(op.service());
    }
}

/// The operations that make the maps hold what the plan says.
///
/// What is relied upon is written before what relies on it; what takes traffic away, and
/// deletions, come last and in the opposite order. Filter bits are only set:
/// [`clear_filter`](super::clear_filter) clears them.
#[must_use]
pub fn diff(observed: &Observed, plan: &Plan) -> Vec<Op> {
    operations(observed, observed, plan)
}

/// The same for maps that held what the plan said before an update of this extent: the difference
/// of a part is that part of the difference.
#[must_use]
pub fn diff_part(observed: &Observed, plan: &Plan, extent: &Extent) -> Vec<Op> {
    match extent {
        Extent::Whole => diff(observed, plan),
        Extent::Part(keys) => {
            operations(observed, &keys.of_observed(observed), &keys.of_plan(plan))
        }
    }
}

/// `all` is where slots are looked up: a part has none.
fn operations(all: &Observed, observed: &Observed, plan: &Plan) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut late = Vec::new();
    backends(observed, plan, &mut ops, &mut late);
    slots(all, plan, &mut ops);
    objects(observed, plan, &mut ops);
    filter(observed, plan, &mut ops);
    for ifindex in plan.tx_ports.difference(&observed.tx_ports) {
        ops.push(Op::WriteTxPort { ifindex: *ifindex });
    }
    let write = |(key, device)| Op::WriteDevice { key, device };
    ops.extend(changed(&observed.devices, &plan.devices).map(write));
    let write = |(address, flags)| Op::WriteAddressV4 { address, flags };
    ops.extend(changed(&observed.addresses_v4, &plan.addresses_v4).map(write));
    let write = |(address, flags)| Op::WriteAddressV6 { address, flags };
    ops.extend(changed(&observed.addresses_v6, &plan.addresses_v6).map(write));
    let missing = plan.sources_v4.difference(&observed.sources_v4);
    ops.extend(missing.map(|key| Op::WriteSourceV4 { key: *key }));
    let missing = plan.sources_v6.difference(&observed.sources_v6);
    ops.extend(missing.map(|key| Op::WriteSourceV6 { key: *key }));
    let write = |(key, service)| Op::WriteServiceV4 { key, service };
    ops.extend(changed(&observed.services_v4, &plan.services_v4).map(write));
    let write = |(key, service)| Op::WriteServiceV6 { key, service };
    ops.extend(changed(&observed.services_v6, &plan.services_v6).map(write));
    if observed.settings != plan.settings {
        ops.push(Op::WriteSettings {
            settings: plan.settings,
        });
    }
    deletions(observed, plan, &mut ops);
    ops.extend(late);
    ops
}

/// Backends that gain go first; those that lose traffic go last, when no service chooses them.
fn backends(observed: &Observed, plan: &Plan, first: &mut Vec<Op>, last: &mut Vec<Op>) {
    for (index, backend) in &plan.backends {
        let held = observed.backends.get(index);
        if held == Some(backend) {
            continue;
        }
        let op = Op::WriteBackend {
            index: *index,
            backend: *backend,
        };
        let serving = backend.family != 0 && backend.flags & backend_flag::SERVING != 0;
        if serving || held.is_none() {
            first.push(op);
        } else {
            last.push(op);
        }
    }
    for (index, held) in &observed.backends {
        if held.family != 0 && !plan.backends.contains_key(index) {
            let generation = held.generation.wrapping_add(1).max(1);
            let backend = Backend {
                generation,
                service: held.service,
                ..Backend::default()
            };
            last.push(Op::WriteBackend {
                index: *index,
                backend,
            });
        }
    }
}

fn slots(observed: &Observed, plan: &Plan, ops: &mut Vec<Op>) {
    for (first, range) in &plan.slots {
        let count = u32::try_from(range.backends.len()).unwrap_or(u32::MAX);
        if observed.slots(*first, count) != Some(&*range.backends) {
            ops.push(Op::WriteSlots {
                service: range.service,
                first: *first,
                backends: Arc::clone(&range.backends),
            });
        }
    }
}

fn objects(observed: &Observed, plan: &Plan, ops: &mut Vec<Op>) {
    for (id, name) in &plan.objects {
        if observed.objects.get(id) != Some(name) {
            ops.push(Op::WriteObject {
                id: *id,
                name: Arc::clone(name),
            });
        }
    }
}

fn filter(observed: &Observed, plan: &Plan, ops: &mut Vec<Op>) {
    for (word, bits) in plan.filter.iter() {
        let held = observed.filter.word(word);
        if bits & !held != 0 {
            ops.push(Op::WriteFilter {
                word,
                bits: held | bits,
            });
        }
    }
}

fn deletions(observed: &Observed, plan: &Plan, ops: &mut Vec<Op>) {
    let delete = |(key, service)| Op::DeleteServiceV6 { key, service };
    ops.extend(gone(&observed.services_v6, &plan.services_v6).map(delete));
    let delete = |(key, service)| Op::DeleteServiceV4 { key, service };
    ops.extend(gone(&observed.services_v4, &plan.services_v4).map(delete));
    let extra = observed.sources_v6.difference(&plan.sources_v6);
    ops.extend(extra.map(|key| Op::DeleteSourceV6 { key: *key }));
    let extra = observed.sources_v4.difference(&plan.sources_v4);
    ops.extend(extra.map(|key| Op::DeleteSourceV4 { key: *key }));
    let delete = |(address, _)| Op::DeleteAddressV6 { address };
    ops.extend(gone(&observed.addresses_v6, &plan.addresses_v6).map(delete));
    let delete = |(address, _)| Op::DeleteAddressV4 { address };
    ops.extend(gone(&observed.addresses_v4, &plan.addresses_v4).map(delete));
    let delete = |(key, _)| Op::DeleteDevice { key };
    ops.extend(gone(&observed.devices, &plan.devices).map(delete));
    for ifindex in observed.tx_ports.difference(&plan.tx_ports) {
        ops.push(Op::DeleteTxPort { ifindex: *ifindex });
    }
    for id in observed
        .objects
        .keys()
        .filter(|id| !plan.objects.contains_key(id))
    {
        ops.push(Op::DeleteObject { id: *id });
    }
}

/// Entries of `plan` that `observed` lacks or holds otherwise.
fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    observed: &BTreeMap<K, V>,
    plan: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    plan.iter()
        .filter(|(key, value)| observed.get(key) != Some(value))
        .map(|(key, value)| (*key, *value))
}

/// Entries of `observed` that `plan` lacks.
fn gone<K: Ord + Copy, V: Copy>(
    observed: &BTreeMap<K, V>,
    plan: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    observed
        .iter()
        .filter(|(key, _)| !plan.contains_key(key))
        .map(|(key, value)| (*key, *value))
}

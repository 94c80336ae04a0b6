//! Which of a service's backends a client is led to: the same for a packet and for a socket.

use crate::abi::{Affinity, AffinityKey, Backend, Family, Service, backend_flag, service_flag};

use super::tables::FamilyTables;

const SECOND: u64 = 1_000_000_000;

/// Leaves of the service what the client may choose from: the endpoints on this node alone, or all.
/// Says which.
///
/// Pods and processes of this node that ask for an external address are led to any endpoint, as if
/// they had gone out and come in at another node.
#[inline(always)]
pub(super) const fn narrow(service: &mut Service, outside: bool) -> bool {
    let local = service.flags & service_flag::LOCAL != 0
        && (outside || service.flags & service_flag::EXTERNAL == 0);
    if local {
        service.first_slot = service.first_local;
        service.slots = service.local_slots;
    }
    local
}

/// Takes the backend of a slot, counted from the service's first one. False: not to be had just now.
///
/// A record of `SERVICES_*` may be replaced while it is read; that the backend names the service again
/// shows that what was read belongs together.
#[inline(always)]
pub(super) fn take<F: Family, T: FamilyTables<F>>(
    service: &Service,
    slot: u32,
    tables: &T,
    index: &mut u32,
    backend: &mut Backend,
) -> bool {
    let Some(found) = tables.slot(service.first_slot.wrapping_add(slot)) else {
        return false;
    };
    let Some(record) = tables.backend(found) else {
        return false;
    };
    *index = found;
    *backend = record;
    backend.service == service.id
}

/// Takes the backend that the client is kept with. False: with none.
///
/// One whose generation is another now is gone, or is another endpoint's place. One that new
/// connections of this client are not led to any more is given up as well.
#[inline(always)]
pub(super) fn take_kept<F: Family, T: FamilyTables<F>>(
    service: &Service,
    client: &AffinityKey<F>,
    local: bool,
    tables: &T,
    index: &mut u32,
    backend: &mut Backend,
) -> bool {
    let Some(affinity) = tables.affinity(client) else {
        return false;
    };
    let silence = tables.clock().wrapping_sub(affinity.last_opened);
    if silence >= u64::from(service.affinity) * SECOND {
        return false;
    }
    let Some(kept) = tables.backend(affinity.backend) else {
        return false;
    };
    let among = if local {
        backend_flag::LOCAL
    } else {
        backend_flag::CLUSTER
    };
    if kept.generation != affinity.generation
        || kept.service != service.id
        || kept.flags & among == 0
    {
        return false;
    }
    *index = affinity.backend;
    *backend = kept;
    true
}

/// What is noted of a client that was led to a backend just now.
#[inline(always)]
pub(super) fn note<F: Family, T: FamilyTables<F>>(
    index: u32,
    backend: &Backend,
    tables: &T,
) -> Affinity {
    Affinity {
        last_opened: tables.clock(),
        backend: index,
        generation: backend.generation,
    }
}

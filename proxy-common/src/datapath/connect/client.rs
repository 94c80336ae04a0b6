//! Which clients a service lets in, and whom it keeps them with.

use crate::abi::{Affinity, AffinityKey, Family, SourceKey, backend_flag};
use crate::datapath::tables::FamilyTables;

use super::Draft;

const SECOND: u64 = 1_000_000_000;

/// Whether the service's ranges have the client.
#[inline(always)]
pub(super) fn is_admitted<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> bool {
    draft.question = SourceKey::question(draft.service.id, draft.key.source);
    tables.admits(&draft.question)
}

/// Whether the client is kept with a backend: that one is chosen then.
///
/// One whose generation is another now is gone, or is another endpoint's place. One that new
/// connections of this client are not led to any more is given up as well.
#[inline(always)]
pub(super) fn is_kept<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> bool {
    draft.client = AffinityKey {
        service: draft.service.id,
        client: draft.key.source,
    };
    let Some(affinity) = tables.affinity(&draft.client) else {
        return false;
    };
    let silence = tables.clock().wrapping_sub(affinity.last_opened);
    if silence >= u64::from(draft.service.affinity) * SECOND {
        return false;
    }
    let Some(backend) = tables.backend(affinity.backend) else {
        return false;
    };
    let among = if draft.local {
        backend_flag::LOCAL
    } else {
        backend_flag::CLUSTER
    };
    if backend.generation != affinity.generation
        || backend.service != draft.service.id
        || backend.flags & among == 0
    {
        return false;
    }
    draft.index = affinity.backend;
    draft.backend = backend;
    true
}

/// Keeps the client with the backend of the connection that was made just now.
#[inline(always)]
pub(super) fn keep<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) {
    draft.affinity = Affinity {
        last_opened: tables.clock(),
        backend: draft.index,
        generation: draft.backend.generation,
    };
    tables.keep(&draft.client, &draft.affinity);
}

//! Which clients a service lets in, and whom it keeps them with.

use crate::abi::{AffinityKey, Family, SourceKey};
use crate::datapath::selection;
use crate::datapath::tables::FamilyTables;

use super::Draft;

/// Whether the service's ranges have the client.
#[inline(always)]
pub(super) fn is_admitted<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> bool {
    draft.question = SourceKey::question(draft.service.id, draft.key.source);
    tables.admits(&draft.question)
}

/// Whether the client is kept with a backend: that one is chosen then.
#[inline(always)]
pub(super) fn is_kept<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> bool {
    draft.client = AffinityKey {
        service: draft.service.id,
        client: draft.key.source,
    };
    selection::take_kept(
        &draft.service,
        &draft.client,
        draft.local,
        tables,
        &mut draft.index,
        &mut draft.backend,
    )
}

/// Keeps the client with the backend of the connection that was made just now.
#[inline(always)]
pub(super) fn keep<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) {
    draft.affinity = selection::note::<F, T>(draft.index, &draft.backend, tables);
    tables.keep(&draft.client, &draft.affinity);
}

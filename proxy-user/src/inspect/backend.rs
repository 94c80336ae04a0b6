//! Backends.

use std::net::SocketAddr;

use proxy_common::abi::backend_flag;
use serde::{Deserialize, Serialize};

use super::{Look, backend_socket, service::is_named, shares};
use crate::{dataplane::flows::Totals, model::Protocol, reconcile::Observed};

/// One endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRow {
    /// Its index in `BACKENDS`.
    pub index: u32,
    /// How often the index has been given to another.
    pub generation: u32,
    /// The service port.
    pub service: String,
    /// Where it is.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Option<Protocol>,
    /// Takes new connections; otherwise it only keeps those it has.
    pub serving: bool,
    /// Share of new connections, in thousandths.
    pub share: u32,
    /// Connections there are; none if no daemon says.
    pub live: Option<u64>,
    /// Connections since the daemon began.
    pub connections: Option<u64>,
    /// Bytes both ways since then.
    pub bytes: Option<u64>,
}

pub(super) fn backends(observed: &Observed, totals: Option<&Totals>) -> Vec<BackendRow> {
    let shares = shares(observed);
    let mut rows: Vec<BackendRow> = observed
        .backends
        .iter()
        .filter_map(|(index, backend)| {
            let address = backend_socket(backend)?;
            let key = (*index, backend.generation);
            let usage = totals.map(|totals| totals.backends.get(&key).copied().unwrap_or_default());
            let (own, all) = shares.get(index).copied().unwrap_or((0, 1));
            Some(BackendRow {
                index: *index,
                generation: backend.generation,
                service: Look::service_name(observed, backend.service),
                address,
                protocol: Protocol::from_number(backend.protocol),
                serving: backend.flags & backend_flag::SERVING != 0,
                share: own.saturating_mul(1_000) / all.max(1),
                live: usage.map(|usage| usage.live),
                connections: usage.map(|usage| usage.connections),
                bytes: usage.map(|usage| usage.carried.bytes_in + usage.carried.bytes_out),
            })
        })
        .collect();
    rows.sort_by(|a, b| (&a.service, a.address).cmp(&(&b.service, b.address)));
    rows
}

impl Look<'_> {
    /// The backends of a service, or at an address (with or without port).
    #[must_use]
    pub fn backends_of(&self, wanted: &str) -> Vec<BackendRow> {
        let mut rows = self.backends();
        rows.retain(|row| {
            is_named(&row.service, wanted)
                || row.address.to_string() == wanted
                || row.address.ip().to_string() == wanted
        });
        rows
    }
}

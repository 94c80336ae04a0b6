//! What the maps hold, in words: rows for the API and the command line.
//!
//! Everything is read from the maps themselves, so it is true whether or not a daemon runs; what
//! only a daemon knows (totals over connections that have ended) is added where there is one.

mod backend;
mod drops;
mod flow;
mod record;
mod service;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    abi::{Addr4, Addr6, Address, Backend},
    wire::Be16,
};

pub use backend::BackendRow;
pub use drops::{DropRow, drops};
pub use flow::FlowRow;
#[cfg(test)]
pub(crate) use record::kind_word;
pub use record::{MapRow, RecordError, RecordRow, find_record, maps, records};
pub use service::ServiceRow;

use crate::{
    dataplane::{
        Maps,
        flows::{Clock, Totals},
        observe::{ObserveError, observe},
    },
    reconcile::Observed,
};

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A map that the daemon writes.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// A map that the datapath writes.
    #[error("cannot read the map {map}: {source}")]
    Read {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One look at all maps.
#[derive(Debug)]
pub struct Look<'m> {
    maps: &'m Maps,
    observed: Observed,
    totals: Option<&'m Totals>,
    clock: Clock,
    now: u32,
}

impl<'m> Look<'m> {
    /// Reads what the daemon writes. `now` is the datapath's clock, in ticks.
    pub fn new(maps: &'m Maps, totals: Option<&'m Totals>, now: u32) -> Result<Self, InspectError> {
        let observed = observe(maps)?;
        let clock = Clock {
            hz: observed.settings.hz.max(1),
        };
        Ok(Self {
            maps,
            observed,
            totals,
            clock,
            now,
        })
    }

    /// What the daemon has written.
    #[must_use]
    pub const fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The datapath's clock, in ticks.
    #[must_use]
    pub const fn now(&self) -> u32 {
        self.now
    }

    /// All service ports, by name.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceRow> {
        service::services(&self.observed, self.totals)
    }

    /// All backends in use, by service and address.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendRow> {
        backend::backends(&self.observed, self.totals)
    }

    /// All connections, the busiest first.
    pub fn flows(&self) -> Result<Vec<FlowRow>, InspectError> {
        flow::flows(self.maps, &self.observed, self.clock, self.now)
    }

    /// The name of a service.
    fn service_name(observed: &Observed, id: u32) -> String {
        observed
            .objects
            .get(&id)
            .map_or_else(|| format!("#{id}"), ToString::to_string)
    }
}

/// An address and port as people write them.
fn socket<A: Address>(address: A, port: Be16) -> SocketAddr {
    SocketAddr::new(address.to_ip(), port.get())
}

/// A backend's address and port; none if the record is free.
fn backend_socket(backend: &Backend) -> Option<SocketAddr> {
    let address: IpAddr = match backend.family {
        4 => Addr4::narrow(&backend.address).to_ip(),
        6 => Addr6::narrow(&backend.address).to_ip(),
        _ => return None,
    };
    Some(SocketAddr::new(address, backend.port.get()))
}

/// A backend's address and port as people write them; none if the record is free.
#[must_use]
pub fn backend_text(backend: &Backend) -> Option<String> {
    backend_socket(backend).map(|at| at.to_string())
}

/// How often each backend stands in the slots of services.
fn shares(observed: &Observed) -> BTreeMap<u32, (u32, u32)> {
    let mut ranges = BTreeMap::new();
    let v4 = observed.services_v4.values();
    for service in v4.chain(observed.services_v6.values()) {
        // Of those who may be led to any node, if there are any.
        let mut given = service.ranges().into_iter();
        ranges.extend(given.find(|(_, count)| *count != 0));
    }
    let mut shares: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for (first, count) in ranges {
        for index in observed.slots(first, count).unwrap_or_default() {
            let share = shares.entry(*index).or_default();
            *share = (share.0 + 1, count);
        }
    }
    shares
}

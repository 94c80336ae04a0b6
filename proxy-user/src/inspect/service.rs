//! Service ports.

use std::{collections::BTreeMap, net::SocketAddr};

use proxy_common::abi::{Service, backend_flag, service_flag};
use serde::{Deserialize, Serialize};

use super::{Look, socket};
use crate::{
    dataplane::flows::Totals,
    model::{Algorithm, Protocol},
    reconcile::Observed,
};

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Its number in the maps.
    pub id: u32,
    /// `namespace/name:port/PROTOCOL`.
    pub name: String,
    /// Protocol; none if it has no frontend.
    pub protocol: Option<Protocol>,
    /// Where it is reached from the cluster alone.
    pub cluster: Vec<SocketAddr>,
    /// Where it is reached from everywhere.
    pub external: Vec<SocketAddr>,
    /// How backends are chosen.
    pub algorithm: Algorithm,
    /// Slots to choose from, IPv4 and IPv6 together.
    pub slots: u32,
    /// Backends that take new connections.
    pub serving: u32,
    /// Backends that only keep the connections they have.
    pub draining: u32,
    /// Connections since the daemon began; none if no daemon says.
    pub connections: Option<u64>,
    /// Bytes both ways since then.
    pub bytes: Option<u64>,
}

pub(super) fn services(observed: &Observed, totals: Option<&Totals>) -> Vec<ServiceRow> {
    let mut rows: BTreeMap<u32, ServiceRow> = observed
        .objects
        .iter()
        .map(|(id, name)| {
            let usage = totals.map(|totals| totals.services.get(id).copied().unwrap_or_default());
            let row = ServiceRow {
                id: *id,
                name: name.to_string(),
                protocol: None,
                cluster: Vec::new(),
                external: Vec::new(),
                algorithm: Algorithm::Random,
                slots: 0,
                serving: 0,
                draining: 0,
                connections: usage.map(|usage| usage.connections),
                bytes: usage.map(|usage| usage.carried.bytes_in + usage.carried.bytes_out),
            };
            (*id, row)
        })
        .collect();
    let mut ranges = BTreeMap::new();
    let mut add = |service: &Service, at: SocketAddr, protocol: u8| {
        for (first, count) in service.ranges() {
            if count != 0 {
                ranges.insert(first, (service.id, count));
            }
        }
        let Some(row) = rows.get_mut(&service.id) else {
            return;
        };
        row.protocol = Protocol::from_number(protocol);
        if service.flags & service_flag::MAGLEV != 0 {
            row.algorithm = Algorithm::Maglev;
        }
        let list = if service.flags & service_flag::EXTERNAL == 0 {
            &mut row.cluster
        } else {
            &mut row.external
        };
        list.push(at);
    };
    for (key, service) in &observed.services_v4 {
        add(service, socket(key.address, key.port), key.protocol);
    }
    for (key, service) in &observed.services_v6 {
        add(service, socket(key.address, key.port), key.protocol);
    }
    for (id, slots) in ranges.into_values() {
        if let Some(row) = rows.get_mut(&id) {
            row.slots += slots;
        }
    }
    for backend in observed
        .backends
        .values()
        .filter(|backend| backend.family != 0)
    {
        if let Some(row) = rows.get_mut(&backend.service) {
            let serving = backend.flags & backend_flag::SERVING != 0;
            *(if serving {
                &mut row.serving
            } else {
                &mut row.draining
            }) += 1;
        }
    }
    let mut rows: Vec<ServiceRow> = rows.into_values().collect();
    for row in &mut rows {
        row.cluster.sort_unstable();
        row.external.sort_unstable();
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

impl Look<'_> {
    /// The service ports of this name: the whole name, or `namespace/name`, or `name`.
    #[must_use]
    pub fn services_named(&self, name: &str) -> Vec<ServiceRow> {
        let mut rows = self.services();
        rows.retain(|row| is_named(&row.name, name));
        rows
    }
}

/// Whether a service port's name is meant by what a user wrote.
pub(super) fn is_named(name: &str, wanted: &str) -> bool {
    let object = name.split_once(':').map_or(name, |(object, _)| object);
    let short = object.rsplit_once('/').map_or(object, |(_, short)| short);
    [name, object, short].contains(&wanted)
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn names_may_be_short() {
        let name = "demo/web:http/TCP";
        for wanted in [name, "demo/web", "web"] {
            assert!(is_named(name, wanted), "{wanted}");
        }
        for wanted in ["demo", "we", "web:http", ""] {
            assert!(!is_named(name, wanted), "{wanted}");
        }
        assert!(is_named("pod/demo/web-1:8081/TCP", "web-1"));
    }
}

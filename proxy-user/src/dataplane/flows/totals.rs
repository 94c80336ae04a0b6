//! What services and backends have carried, as sums over flows.

use std::collections::BTreeMap;

use proxy_common::abi::Family;

use super::Connection;

/// Packets and bytes of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Carried {
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients, from the Ethernet header on.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients, from the Ethernet header on.
    pub bytes_out: u64,
}

impl Carried {
    /// By one connection.
    #[must_use]
    pub fn by<F: Family>(connection: &Connection<F>) -> Self {
        let (_, original) = &connection.original;
        let answering = connection
            .answering
            .map(|(_, flow)| flow)
            .unwrap_or_default();
        Self {
            packets_in: original.packets,
            bytes_in: original.bytes,
            packets_out: answering.packets,
            bytes_out: answering.bytes,
        }
    }

    fn add(&mut self, other: &Self) {
        self.packets_in = self.packets_in.saturating_add(other.packets_in);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.packets_out = self.packets_out.saturating_add(other.packets_out);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    fn at_least(&mut self, other: &Self) {
        self.packets_in = self.packets_in.max(other.packets_in);
        self.bytes_in = self.bytes_in.max(other.bytes_in);
        self.packets_out = self.packets_out.max(other.packets_out);
        self.bytes_out = self.bytes_out.max(other.bytes_out);
    }
}

/// The use of one service, or of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Connections there are.
    pub live: u64,
    /// Connections there have been since the daemon began, those that live included.
    pub connections: u64,
    /// What they have carried.
    #[serde(flatten)]
    pub carried: Carried,
}

/// The use of everything, kept from sweep to sweep.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By service, a key of `OBJECTS`.
    pub services: BTreeMap<u32, Usage>,
    /// By backend index and generation: an index that is given to another begins at zero.
    pub backends: BTreeMap<(u32, u32), Usage>,
    ended: Ended,
}

/// What connections that are removed have carried: no table knows it any more.
#[derive(Clone, Debug, Default)]
struct Ended {
    services: BTreeMap<u32, Usage>,
    backends: BTreeMap<(u32, u32), Usage>,
}

/// Adds up one sweep.
#[derive(Debug, Default)]
pub(super) struct Sum {
    services: BTreeMap<u32, Usage>,
    backends: BTreeMap<(u32, u32), Usage>,
}

fn count<K: Ord>(usages: &mut BTreeMap<K, Usage>, key: K, carried: &Carried) {
    let usage = usages.entry(key).or_default();
    usage.live += 1;
    usage.connections += 1;
    usage.carried.add(carried);
}

impl Sum {
    /// Takes note of a connection that is in the tables.
    pub(super) fn add<F: Family>(&mut self, connection: &Connection<F>) {
        let (_, flow) = &connection.original;
        let carried = Carried::by(connection);
        count(&mut self.services, flow.service, &carried);
        count(
            &mut self.backends,
            (flow.backend, flow.generation),
            &carried,
        );
    }
}

impl Totals {
    /// Takes over what a sweep has counted.
    ///
    /// Totals never go back, though a sum over entries that change meanwhile may: the datapath
    /// makes some entries anew, from zero.
    pub(super) fn take(&mut self, sum: Sum) {
        merge(&mut self.services, sum.services, &self.ended.services);
        merge(&mut self.backends, sum.backends, &self.ended.backends);
    }

    /// Takes note of a connection that was removed.
    pub(super) fn end<F: Family>(&mut self, connection: &Connection<F>) {
        let (_, flow) = &connection.original;
        let carried = Carried::by(connection);
        count(&mut self.ended.services, flow.service, &carried);
        count(
            &mut self.ended.backends,
            (flow.backend, flow.generation),
            &carried,
        );
    }

    /// Forgets services and backends that are no more and have no connection left.
    pub fn retain(&mut self, service: impl Fn(u32) -> bool, backend: impl Fn(u32, u32) -> bool) {
        self.services
            .retain(|id, usage| usage.live > 0 || service(*id));
        self.backends
            .retain(|(index, generation), usage| usage.live > 0 || backend(*index, *generation));
        let (services, backends) = (&self.services, &self.backends);
        self.ended
            .services
            .retain(|id, _| services.contains_key(id));
        self.ended
            .backends
            .retain(|key, _| backends.contains_key(key));
    }
}

fn merge<K: Ord + Copy>(
    totals: &mut BTreeMap<K, Usage>,
    live: BTreeMap<K, Usage>,
    ended: &BTreeMap<K, Usage>,
) {
    for usage in totals.values_mut() {
        usage.live = 0;
    }
    for (key, now) in live {
        let total = totals.entry(key).or_default();
        let mut sum = now;
        if let Some(ended) = ended.get(&key) {
            sum.connections += ended.connections;
            sum.carried.add(&ended.carried);
        }
        total.live = now.live;
        total.connections = total.connections.max(sum.connections);
        total.carried.at_least(&sum.carried);
    }
}

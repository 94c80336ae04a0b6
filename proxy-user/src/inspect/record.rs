//! Maps record by record, typed and raw.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    abi::{
        Addr4, Addr6, Address, AddressFlags, Affinity, AffinityKey, Backend, Counter, Device,
        DeviceKey, DeviceRole, Family, Flow, FlowKey, FlowStep, MAPS, MapKind, Peer, PeerKey,
        Service, ServiceKey, Settings, SourceKey, address_flag, backend_flag, device_flag,
        flow_state, service_flag,
    },
    datapath::{Event, Reason},
    wire::{MacAddr, Plain},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{backend_socket, flow::step_word, socket};
use crate::dataplane::{
    Maps,
    observe::decode_name,
    table::{Table, bytes_of},
};

/// Why records can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is no such map.
    #[error("there is no map {name:?}; `causeway map list` names all")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The kernel refused.
    #[error("cannot read the map {map}: {source}")]
    Read {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRow {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Size of a key, bytes.
    pub key_bytes: usize,
    /// Size of a value, bytes.
    pub value_bytes: usize,
    /// Entries in use; for arrays those that aren't zero.
    pub used: usize,
    /// Entries there are room for.
    pub capacity: usize,
    /// What it holds and who writes it.
    pub purpose: String,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRow {
    /// The key in words; what `map get` finds it by.
    pub key: String,
    /// The value, field by field.
    pub value: Value,
    /// The key's bytes, in hexadecimal.
    pub raw_key: String,
    /// The value's bytes, in hexadecimal; one string per CPU for per-CPU maps.
    pub raw_value: Vec<String>,
}

/// All maps with how full they are.
pub fn maps(maps: &Maps) -> Result<Vec<MapRow>, RecordError> {
    MAPS.iter()
        .map(|spec| {
            let (used, capacity) = usage(maps, spec.name)?;
            Ok(MapRow {
                name: spec.name.to_owned(),
                kind: kind_word(spec.kind).to_owned(),
                key_bytes: spec.key_bytes,
                value_bytes: spec.value_bytes,
                used,
                capacity,
                purpose: spec.purpose.to_owned(),
            })
        })
        .collect()
}

pub(crate) const fn kind_word(kind: MapKind) -> &'static str {
    match kind {
        MapKind::Hash => "hash",
        MapKind::SparseHash => "hash, sparse",
        MapKind::LruHash => "hash, least recently used goes",
        MapKind::PrefixTrie => "longest prefix",
        MapKind::Array => "array",
        MapKind::PerCpuArray => "array, per CPU",
        MapKind::DeviceMap => "devices",
    }
}

/// Calls `visit` with the table of this name.
macro_rules! with_table {
    ($maps:expr, $name:expr, $visit:ident, $($extra:expr),*) => {
        match $name {
            "SETTINGS" => $visit("SETTINGS", &$maps.settings, $($extra),*),
            "OBJECTS" => $visit("OBJECTS", &$maps.objects, $($extra),*),
            "BACKENDS" => $visit("BACKENDS", &$maps.backends, $($extra),*),
            "SLOTS" => $visit("SLOTS", &$maps.slots, $($extra),*),
            "FILTER" => $visit("FILTER", &$maps.filter, $($extra),*),
            "SOURCES_V4" => $visit("SOURCES_V4", &$maps.sources_v4, $($extra),*),
            "SOURCES_V6" => $visit("SOURCES_V6", &$maps.sources_v6, $($extra),*),
            "SERVICES_V4" => $visit("SERVICES_V4", &$maps.services_v4, $($extra),*),
            "SERVICES_V6" => $visit("SERVICES_V6", &$maps.services_v6, $($extra),*),
            "ADDRESSES_V4" => $visit("ADDRESSES_V4", &$maps.addresses_v4, $($extra),*),
            "ADDRESSES_V6" => $visit("ADDRESSES_V6", &$maps.addresses_v6, $($extra),*),
            "DEVICES" => $visit("DEVICES", &$maps.devices, $($extra),*),
            "TX_PORTS" => $visit("TX_PORTS", &$maps.tx_ports, $($extra),*),
            "FLOWS_V4" => $visit("FLOWS_V4", &$maps.flows_v4, $($extra),*),
            "FLOWS_V6" => $visit("FLOWS_V6", &$maps.flows_v6, $($extra),*),
            "AFFINITY_V4" => $visit("AFFINITY_V4", &$maps.affinity_v4, $($extra),*),
            "AFFINITY_V6" => $visit("AFFINITY_V6", &$maps.affinity_v6, $($extra),*),
            "PEERS_V4" => $visit("PEERS_V4", &$maps.peers_v4, $($extra),*),
            "PEERS_V6" => $visit("PEERS_V6", &$maps.peers_v6, $($extra),*),
            other => Err(RecordError::Unknown { name: other.to_owned() }),
        }
    };
}

fn usage(maps: &Maps, name: &str) -> Result<(usize, usize), RecordError> {
    if name == "COUNTERS" {
        let used = counters(maps)?.len();
        return Ok((used, maps.counters.map().info.entries as usize));
    }
    with_table!(maps, name, count,)
}

fn count<K: Plain, V: Plain>(
    map: &'static str,
    table: &Table<K, V>,
) -> Result<(usize, usize), RecordError> {
    let mut used = 0;
    table
        .for_each(|_, value| {
            used += usize::from(in_use(map, bytes_of(std::slice::from_ref(value))));
        })
        .map_err(|source| RecordError::Read { map, source })?;
    Ok((used, table.capacity()))
}

/// All records of a map; of arrays those that aren't zero.
pub fn records(maps: &Maps, name: &str) -> Result<Vec<RecordRow>, RecordError> {
    if name == "COUNTERS" {
        return counters(maps);
    }
    with_table!(maps, name, dump,)
}

/// The record whose key is `key`, in words or in hexadecimal.
pub fn find_record(maps: &Maps, name: &str, key: &str) -> Result<Option<RecordRow>, RecordError> {
    let raw = key.trim_start_matches("0x").to_ascii_lowercase();
    let rows = records(maps, name)?;
    Ok(rows
        .into_iter()
        .find(|row| row.key == key || row.raw_key == raw))
}

/// Whether an entry is in use: every one of a hash, those of an array that aren't zero.
fn in_use(map: &str, value: &[u8]) -> bool {
    let array = MAPS
        .iter()
        .any(|spec| spec.name == map && spec.kind == MapKind::Array);
    !array || value.iter().any(|byte| *byte != 0)
}

fn dump<K: Plain + Words, V: Plain + Words>(
    map: &'static str,
    table: &Table<K, V>,
) -> Result<Vec<RecordRow>, RecordError> {
    let mut rows = Vec::new();
    table
        .for_each(|key, value| {
            let raw = bytes_of(std::slice::from_ref(value));
            if in_use(map, raw) {
                rows.push(RecordRow {
                    key: key.text(),
                    value: value.words(),
                    raw_key: hex(bytes_of(std::slice::from_ref(key))),
                    raw_value: vec![hex(raw)],
                });
            }
        })
        .map_err(|source| RecordError::Read { map, source })?;
    Ok(rows)
}

fn counters(maps: &Maps) -> Result<Vec<RecordRow>, RecordError> {
    let reasons = Reason::ALL
        .iter()
        .map(|reason| (*reason as u32, reason.word()));
    let events = Event::ALL.iter().map(|event| (*event as u32, event.word()));
    let mut rows = Vec::new();
    for (index, word) in reasons.chain(events) {
        let read = |source| RecordError::Read {
            map: "COUNTERS",
            source,
        };
        let values: Vec<Counter> = maps.counters.get(index).map_err(read)?;
        rows.push(RecordRow {
            key: word.to_owned(),
            value: json!({
                "packets": values.iter().map(|counter| counter.packets).sum::<u64>(),
                "bytes": values.iter().map(|counter| counter.bytes).sum::<u64>(),
            }),
            raw_key: hex(&index.to_ne_bytes()),
            raw_value: values
                .iter()
                .map(|value| hex(bytes_of(std::slice::from_ref(value))))
                .collect(),
        });
    }
    Ok(rows)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A record in words.
trait Words {
    fn words(&self) -> Value;

    /// On one line.
    fn text(&self) -> String {
        match self.words() {
            Value::String(text) => text,
            other => other.to_string(),
        }
    }
}

/// The names of the bits that are set.
fn flags(bits: u32, names: &[(u32, &str)]) -> Value {
    names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect()
}

fn mac(address: MacAddr) -> String {
    let [a, b, c, d, e, f] = address.bytes();
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// An address; none if it is zero.
fn given<A: Address>(address: A) -> Option<IpAddr> {
    (address != A::default()).then(|| address.to_ip())
}

/// VLAN ids as in [`DeviceKey::vlan`].
fn vlans(vlan: u32) -> Value {
    let (outer, inner) = (vlan >> 16 & 0xfff, vlan & 0xfff);
    match (vlan, inner) {
        (0, _) => Value::Null,
        (_, 0) => json!([outer]),
        _ => json!([outer, inner]),
    }
}

impl Words for u32 {
    fn words(&self) -> Value {
        json!(self)
    }
}

impl Words for u64 {
    fn words(&self) -> Value {
        json!(format!("{self:#018x}"))
    }
}

impl Words for [u32; 2] {
    fn words(&self) -> Value {
        let [ifindex, program] = self;
        json!({"ifindex": ifindex, "program": program})
    }
}

impl<const N: usize> Words for [u8; N] {
    fn words(&self) -> Value {
        let mut name = [0; proxy_common::abi::OBJECT_NAME_BYTES];
        for (to, from) in name.iter_mut().zip(self) {
            *to = *from;
        }
        json!(decode_name(&name).to_string())
    }
}

impl Words for Addr4 {
    fn words(&self) -> Value {
        json!(self.to_ip())
    }
}

impl Words for Addr6 {
    fn words(&self) -> Value {
        json!(self.to_ip())
    }
}

impl Words for AddressFlags {
    fn words(&self) -> Value {
        flags(self.0, &[(address_flag::EXTERNAL, "external")])
    }
}

impl Words for Settings {
    fn words(&self) -> Value {
        json!({
            "port_min": self.port_min,
            "port_count": self.port_count,
            "seed": self.seed,
            "hz": self.hz,
        })
    }
}

impl Words for Backend {
    fn words(&self) -> Value {
        json!({
            "generation": self.generation,
            "service": self.service,
            "address": backend_socket(self),
            "protocol": self.protocol,
            "flags": flags(
                self.flags.into(),
                &[
                    (backend_flag::SERVING.into(), "serving"),
                    (backend_flag::CLUSTER.into(), "cluster"),
                    (backend_flag::LOCAL.into(), "local"),
                ],
            ),
        })
    }
}

impl<F: Family> Words for ServiceKey<F> {
    fn words(&self) -> Value {
        json!(format!(
            "{}/{}",
            socket(self.address, self.port),
            protocol(self.protocol)
        ))
    }
}

impl<F: Family> Words for SourceKey<F> {
    fn words(&self) -> Value {
        let (address, length) = self.range();
        json!(format!("{} {address}/{length}", self.service))
    }
}

impl<F: Family> Words for AffinityKey<F> {
    fn words(&self) -> Value {
        json!(format!("{} {}", self.service, self.client.to_ip()))
    }
}

impl<F: Family> Words for PeerKey<F> {
    fn words(&self) -> Value {
        let [low, high] = self.socket.map(u64::from);
        let peer = SocketAddr::new(self.address.to_ip(), self.port.get());
        json!({"socket": high << 32 | low, "backend": peer})
    }
}

impl<F: Family> Words for Peer<F> {
    fn words(&self) -> Value {
        json!(SocketAddr::new(self.address.to_ip(), self.port.get()))
    }
}

impl Words for Affinity {
    fn words(&self) -> Value {
        json!({
            "backend": self.backend,
            "generation": self.generation,
            "last_opened": self.last_opened,
        })
    }
}

impl Words for Service {
    fn words(&self) -> Value {
        let names = [
            (service_flag::EXTERNAL, "external"),
            (service_flag::MAGLEV, "maglev"),
            (service_flag::LOCAL, "local"),
            (service_flag::ELSEWHERE, "elsewhere"),
            (service_flag::RESTRICTED, "restricted"),
        ];
        json!({
            "id": self.id,
            "first_slot": self.first_slot,
            "slots": self.slots,
            "flags": flags(self.flags, &names),
            "first_local": self.first_local,
            "local_slots": self.local_slots,
            "affinity": self.affinity,
        })
    }
}

impl Words for DeviceKey {
    fn words(&self) -> Value {
        match vlans(self.vlan) {
            Value::Null => json!(self.ifindex.to_string()),
            tags => json!(format!("{} vlan {tags}", self.ifindex)),
        }
    }
}

impl Words for Device {
    fn words(&self) -> Value {
        json!({
            "role": match DeviceRole::from_raw(self.role) {
                DeviceRole::Unknown => "unknown",
                DeviceRole::Uplink => "uplink",
                DeviceRole::Pod => "pod",
                DeviceRole::Loopback => "loopback",
            },
            "ifindex": self.ifindex,
            "source_v4": given(self.source_v4),
            "source_v6": given(self.source_v6),
            "mac": mac(self.mac),
            "mtu": self.mtu,
            "flags": flags(self.flags.into(), &[(device_flag::XDP_TARGET.into(), "xdp-target")]),
        })
    }
}

impl<F: Family> Words for FlowKey<F> {
    fn words(&self) -> Value {
        let source = socket(self.source, self.source_port);
        let destination = socket(self.destination, self.destination_port);
        json!(format!(
            "{} {source} > {destination}",
            protocol(self.protocol)
        ))
    }
}

impl<F: Family> Words for Flow<F> {
    fn words(&self) -> Value {
        let names = [
            (flow_state::SEEN, "seen"),
            (flow_state::FIN, "fin"),
            (flow_state::PEER_FIN, "peer-fin"),
            (flow_state::RST, "rst"),
            (flow_state::ORIGINAL, "original"),
            (flow_state::LOOPBACK, "loopback"),
        ];
        let names = names.map(|(bit, name)| (u32::from(bit), name));
        json!({
            "service": self.service,
            "backend": self.backend,
            "generation": self.generation,
            "source": socket(self.source, self.source_port),
            "destination": socket(self.destination, self.destination_port),
            "step": step_word(FlowStep::from_raw(self.step)),
            "ifindex": self.ifindex,
            "vlan": vlans(self.vlan),
            "link_source": mac(self.link_source),
            "link_destination": mac(self.link_destination),
            "state": flags(self.state.into(), &names),
            "mtu": self.mtu,
            "last_seen": self.last_seen,
            "packets": self.packets,
            "bytes": self.bytes,
        })
    }
}

fn protocol(number: u8) -> String {
    crate::model::Protocol::from_number(number)
        .map_or_else(|| number.to_string(), |protocol| protocol.to_string())
}

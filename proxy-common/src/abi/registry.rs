//! All maps: name, kind, records, what for. `causeway map` reads this table.

use super::{
    Addr4, Addr6, AddressFlags, Affinity, AffinityKey, Backend, Counter, Device, DeviceKey, Flow,
    FlowKey, Peer, PeerKey, Service, ServiceKey, Settings, SourceKey, V4, V6,
};

pub(super) const FILTER_BITS_LOG2: u32 = 20;

/// Bits of the address filter.
pub const FILTER_BITS: u32 = 1 << FILTER_BITS_LOG2;

/// 64-bit words of the address filter: entries of `FILTER`.
pub const FILTER_WORDS: u32 = FILTER_BITS / 64;

/// Length of a record of `OBJECTS`: UTF-8, filled up with zeros.
pub const OBJECT_NAME_BYTES: usize = 200;

/// Map types that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`, preallocated.
    Hash,
    /// `BPF_MAP_TYPE_HASH` with `BPF_F_NO_PREALLOC`: for tables that are mostly far from full.
    SparseHash,
    /// `BPF_MAP_TYPE_LRU_HASH`: what was not used for long makes room.
    LruHash,
    /// `BPF_MAP_TYPE_LPM_TRIE`: the longest prefix that fits.
    PrefixTrie,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_DEVMAP_HASH`.
    DeviceMap,
}

/// One map.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Name in the object and of the pin; at most 15 bytes.
    pub name: &'static str,
    /// Type.
    pub kind: MapKind,
    /// Size of a key, bytes.
    pub key_bytes: usize,
    /// Size of a value, bytes (of one CPU).
    pub value_bytes: usize,
    /// Number of entries unless configured otherwise.
    pub entries: u32,
    /// What it holds and who writes it.
    pub purpose: &'static str,
}

const fn spec<K, V>(
    name: &'static str,
    kind: MapKind,
    entries: u32,
    purpose: &'static str,
) -> MapSpec {
    MapSpec {
        name,
        kind,
        key_bytes: size_of::<K>(),
        value_bytes: size_of::<V>(),
        entries,
        purpose,
    }
}

/// Every map that is pinned, in the order in which they are created.
pub const MAPS: &[MapSpec] = &[
    spec::<u32, Settings>(
        "SETTINGS",
        MapKind::Array,
        1,
        "numbers for the slow path; daemon",
    ),
    spec::<u32, [u8; OBJECT_NAME_BYTES]>(
        "OBJECTS",
        MapKind::SparseHash,
        131_072,
        "name of each service port by id; daemon, read by tools only",
    ),
    spec::<u32, Backend>(
        "BACKENDS",
        MapKind::Array,
        131_072,
        "endpoints of services; daemon",
    ),
    spec::<u32, u32>(
        "SLOTS",
        MapKind::Array,
        1_048_576,
        "backend chosen by each slot; daemon",
    ),
    spec::<u32, u64>(
        "FILTER",
        MapKind::Array,
        FILTER_WORDS,
        "addresses that may be ours; daemon",
    ),
    spec::<SourceKey<V4>, u32>(
        "SOURCES_V4",
        MapKind::PrefixTrie,
        65_536,
        "clients that services let in; daemon",
    ),
    spec::<SourceKey<V6>, u32>(
        "SOURCES_V6",
        MapKind::PrefixTrie,
        65_536,
        "clients that services let in; daemon",
    ),
    spec::<ServiceKey<V4>, Service>(
        "SERVICES_V4",
        MapKind::SparseHash,
        131_072,
        "services; daemon",
    ),
    spec::<ServiceKey<V6>, Service>(
        "SERVICES_V6",
        MapKind::SparseHash,
        131_072,
        "services; daemon",
    ),
    spec::<Addr4, AddressFlags>(
        "ADDRESSES_V4",
        MapKind::SparseHash,
        65_536,
        "addresses that belong to services alone; daemon",
    ),
    spec::<Addr6, AddressFlags>(
        "ADDRESSES_V6",
        MapKind::SparseHash,
        65_536,
        "addresses that belong to services alone; daemon",
    ),
    spec::<DeviceKey, Device>(
        "DEVICES",
        MapKind::SparseHash,
        4_096,
        "attached devices; daemon",
    ),
    spec::<u32, [u32; 2]>(
        "TX_PORTS",
        MapKind::DeviceMap,
        64,
        "devices that XDP may send to; daemon",
    ),
    spec::<FlowKey<V4>, Flow<V4>>(
        "FLOWS_V4",
        MapKind::Hash,
        262_144,
        "directions of connections; datapath, swept by the daemon",
    ),
    spec::<FlowKey<V6>, Flow<V6>>(
        "FLOWS_V6",
        MapKind::Hash,
        262_144,
        "directions of connections; datapath, swept by the daemon",
    ),
    spec::<AffinityKey<V4>, Affinity>(
        "AFFINITY_V4",
        MapKind::LruHash,
        65_536,
        "backends that clients are kept with; datapath",
    ),
    spec::<AffinityKey<V6>, Affinity>(
        "AFFINITY_V6",
        MapKind::LruHash,
        65_536,
        "backends that clients are kept with; datapath",
    ),
    spec::<PeerKey<V4>, Peer<V4>>(
        "PEERS_V4",
        MapKind::LruHash,
        65_536,
        "services that sockets believe to talk to; datapath",
    ),
    spec::<PeerKey<V6>, Peer<V6>>(
        "PEERS_V6",
        MapKind::LruHash,
        65_536,
        "services that sockets believe to talk to; datapath",
    ),
    spec::<u32, Counter>(
        "COUNTERS",
        MapKind::PerCpuArray,
        64,
        "packets and bytes per reason; datapath",
    ),
];

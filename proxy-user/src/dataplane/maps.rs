//! All maps of the registry, typed: made or adopted by the daemon, opened by tools.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use proxy_common::abi::{
    Addr4, Addr6, AddressFlags, Affinity, AffinityKey, Backend, Counter, Device, DeviceKey, Flow,
    FlowKey, MAPS, MapKind, MapSpec, OBJECT_NAME_BYTES, Peer, PeerKey, Service, ServiceKey,
    Settings, SourceKey, V4, V6,
};

use super::pins::{PinError, PinFolder};
use super::syscall::{self, MapFd, NewMap};
use super::table::{PerCpuTable, Table};
use super::upgrade;

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

/// What may go wrong with maps.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The registry has no such map.
    #[error("there is no map {name}; `causeway map list` shows all")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The map could not be made.
    #[error("cannot create the map {name} of {entries} entries: {source}{}", memory_hint(.source))]
    Create {
        /// Which.
        name: &'static str,
        /// How many entries it was to have.
        entries: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pinned map could not be opened.
    #[error("cannot open the pinned map {path}: {source}")]
    Open {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The new map could not be pinned.
    #[error("cannot pin the map {name} at {path}: {source}")]
    Pin {
        /// Which.
        name: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pinned map is not what it must be.
    #[error(
        "the pinned map {name} has {held} for {what} where {wanted} is wanted; set the value back, \
         or run `causeway detach` to give up all maps (connections through services end) and start \
         again"
    )]
    Mismatch {
        /// Which.
        name: &'static str,
        /// Which of its properties.
        what: &'static str,
        /// Its value.
        held: u32,
        /// The value that it must have.
        wanted: u32,
    },
    /// Around the pins' folder.
    #[error(transparent)]
    Folder(#[from] PinError),
}

fn memory_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => {
            " (CAP_BPF and CAP_NET_ADMIN are needed, and before Linux 5.11 a larger memlock limit)"
        }
        Some(libc::ENOMEM) => " (a smaller size in the configuration's [maps] helps)",
        _ => "",
    }
}

/// Entries of maps where they differ from the registry's.
pub type MapSizes = BTreeMap<String, u32>;

/// Every map that is pinned.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "named as in the registry, which describes each"
)]
pub struct Maps {
    pub settings: Table<u32, Settings>,
    pub objects: Table<u32, [u8; OBJECT_NAME_BYTES]>,
    pub backends: Table<u32, Backend>,
    pub slots: Table<u32, u32>,
    pub filter: Table<u32, u64>,
    pub sources_v4: Table<SourceKey<V4>, u32>,
    pub sources_v6: Table<SourceKey<V6>, u32>,
    pub services_v4: Table<ServiceKey<V4>, Service>,
    pub services_v6: Table<ServiceKey<V6>, Service>,
    pub addresses_v4: Table<Addr4, AddressFlags>,
    pub addresses_v6: Table<Addr6, AddressFlags>,
    pub devices: Table<DeviceKey, Device>,
    pub tx_ports: Table<u32, [u32; 2]>,
    pub flows_v4: Table<FlowKey<V4>, Flow<V4>>,
    pub flows_v6: Table<FlowKey<V6>, Flow<V6>>,
    pub affinity_v4: Table<AffinityKey<V4>, Affinity>,
    pub affinity_v6: Table<AffinityKey<V6>, Affinity>,
    pub peers_v4: Table<PeerKey<V4>, Peer<V4>>,
    pub peers_v6: Table<PeerKey<V6>, Peer<V6>>,
    pub counters: PerCpuTable<Counter>,
}

impl Maps {
    /// Adopts what is pinned in `folder` and makes the rest.
    ///
    /// `sizes` says how many entries a map has where that is not what the registry says. A pinned
    /// map of another size or shape is an error: giving it up would end connections.
    pub fn open_or_create(folder: &PinFolder, sizes: &MapSizes) -> Result<Self, MapError> {
        if let Some(name) = sizes.keys().find(|name| spec(name).is_none()) {
            return Err(MapError::Unknown { name: name.clone() });
        }
        folder.create()?;
        upgrade::mark(folder)?;
        Self::each(|spec| {
            let entries = sizes.get(spec.name).copied().unwrap_or(spec.entries);
            adopt_or_create(folder, spec, entries)
        })
    }

    /// Opens what the daemon has pinned in `folder`: works whether or not it runs.
    pub fn open(folder: &PinFolder) -> Result<Self, MapError> {
        Self::each(|spec| {
            let map = open_pinned(&folder.map(spec.name))?;
            check(spec, &map, map.info.entries)?;
            Ok(map)
        })
    }

    fn each(
        mut map: impl FnMut(&'static MapSpec) -> Result<MapFd, MapError>,
    ) -> Result<Self, MapError> {
        let mut named = |name: &'static str| {
            let spec = spec(name).ok_or_else(|| MapError::Unknown {
                name: name.to_owned(),
            })?;
            map(spec)
        };
        Ok(Self {
            settings: table(named("SETTINGS")?)?,
            objects: table(named("OBJECTS")?)?,
            backends: table(named("BACKENDS")?)?,
            slots: table(named("SLOTS")?)?,
            filter: table(named("FILTER")?)?,
            sources_v4: trie(named("SOURCES_V4")?)?,
            sources_v6: trie(named("SOURCES_V6")?)?,
            services_v4: table(named("SERVICES_V4")?)?,
            services_v6: table(named("SERVICES_V6")?)?,
            addresses_v4: table(named("ADDRESSES_V4")?)?,
            addresses_v6: table(named("ADDRESSES_V6")?)?,
            devices: table(named("DEVICES")?)?,
            tx_ports: table(named("TX_PORTS")?)?,
            flows_v4: table(named("FLOWS_V4")?)?,
            flows_v6: table(named("FLOWS_V6")?)?,
            affinity_v4: table(named("AFFINITY_V4")?)?,
            affinity_v6: table(named("AFFINITY_V6")?)?,
            peers_v4: table(named("PEERS_V4")?)?,
            peers_v6: table(named("PEERS_V6")?)?,
            counters: PerCpuTable::new(named("COUNTERS")?).map_err(shape)?,
        })
    }
}

/// The registry's entry of this name.
#[must_use]
pub fn spec(name: &str) -> Option<&'static MapSpec> {
    MAPS.iter().find(|spec| spec.name == name)
}

fn table<K: proxy_common::wire::Plain, V: proxy_common::wire::Plain>(
    map: MapFd,
) -> Result<Table<K, V>, MapError> {
    Table::new(map).map_err(shape)
}

/// Kernels differ in what batch calls do with a trie; there is little in it.
fn trie<K: proxy_common::wire::Plain, V: proxy_common::wire::Plain>(
    map: MapFd,
) -> Result<Table<K, V>, MapError> {
    let table = table(map)?;
    table.without_batches();
    Ok(table)
}

/// The registry's sizes and the table's types disagree: a defect, which a test looks for.
fn shape(source: io::Error) -> MapError {
    MapError::Open {
        path: PathBuf::from("a map of the registry"),
        source,
    }
}

/// `enum bpf_map_type` and `map_flags` of a kind.
const fn kernel_kind(kind: MapKind) -> (u32, u32) {
    match kind {
        MapKind::Hash => (1, 0),
        MapKind::SparseHash => (1, NO_PREALLOC),
        MapKind::LruHash => (9, 0),
        MapKind::PrefixTrie => (11, NO_PREALLOC),
        MapKind::Array => (2, 0),
        MapKind::PerCpuArray => (syscall::PER_CPU_ARRAY, 0),
        MapKind::DeviceMap => (25, 0),
    }
}

/// Opens the map pinned at `path`.
pub(super) fn open_pinned(path: &Path) -> Result<MapFd, MapError> {
    let error = |source| MapError::Open {
        path: path.to_owned(),
        source,
    };
    MapFd::new(syscall::get(path).map_err(error)?).map_err(error)
}

fn adopt_or_create(
    folder: &PinFolder,
    spec: &'static MapSpec,
    entries: u32,
) -> Result<MapFd, MapError> {
    let path = folder.map(spec.name);
    match open_pinned(&path) {
        Ok(map) => {
            check(spec, &map, entries)?;
            Ok(map)
        }
        Err(MapError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let map = create(spec, entries)?;
            syscall::pin(map.fd(), &path).map_err(|source| MapError::Pin {
                name: spec.name,
                path,
                source,
            })?;
            Ok(map)
        }
        Err(error) => Err(error),
    }
}

fn number(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn create(spec: &'static MapSpec, entries: u32) -> Result<MapFd, MapError> {
    let (kind, flags) = kernel_kind(spec.kind);
    let error = |source| MapError::Create {
        name: spec.name,
        entries,
        source,
    };
    let fd = syscall::map_create(&NewMap {
        name: spec.name,
        kind,
        key_bytes: number(spec.key_bytes),
        value_bytes: number(spec.value_bytes),
        entries,
        flags,
    })
    .map_err(error)?;
    MapFd::new(fd).map_err(error)
}

pub(super) fn check(spec: &'static MapSpec, map: &MapFd, entries: u32) -> Result<(), MapError> {
    let (kind, flags) = kernel_kind(spec.kind);
    let info = &map.info;
    // The kernel adds flags of its own to some kinds; this one alone is ours to choose.
    let properties = [
        ("the map type", info.kind, kind),
        ("the key size", info.key_bytes, number(spec.key_bytes)),
        ("the value size", info.value_bytes, number(spec.value_bytes)),
        ("preallocation", info.flags & NO_PREALLOC, flags),
        ("the number of entries", info.entries, entries),
    ];
    for (what, held, wanted) in properties {
        if held != wanted {
            return Err(MapError::Mismatch {
                name: spec.name,
                what,
                held,
                wanted,
            });
        }
    }
    Ok(())
}

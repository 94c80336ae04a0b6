//! The maps, as `proxy_common::abi::MAPS` lists them, and load-time globals.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use proxy_common::abi::{
    Addr4, Addr6, AddressFlags, Affinity, AffinityKey, Backend, Counter, Device, DeviceKey,
    FILTER_WORDS, Flow, FlowKey, OBJECT_NAME_BYTES, Peer, PeerKey, Service, ServiceKey, Settings,
    V4, V6,
};
use proxy_common::datapath::Draft;

#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Read by tools only; named here so that the loader makes it.
#[map]
pub(crate) static OBJECTS: HashMap<u32, [u8; OBJECT_NAME_BYTES]> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static BACKENDS: Array<Backend> = Array::with_max_entries(131_072, 0);

#[map]
pub(crate) static SLOTS: Array<u32> = Array::with_max_entries(1_048_576, 0);

#[map]
pub(crate) static FILTER: Array<u64> = Array::with_max_entries(FILTER_WORDS, 0);

/// What follows the prefix in a key: service and address (`proxy_common::abi::SourceKey`).
#[map]
pub(crate) static SOURCES_V4: LpmTrie<[u32; 2], u32> =
    LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// As `SOURCES_V4`.
#[map]
pub(crate) static SOURCES_V6: LpmTrie<[u32; 5], u32> =
    LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SERVICES_V4: HashMap<ServiceKey<V4>, Service> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SERVICES_V6: HashMap<ServiceKey<V6>, Service> =
    HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static ADDRESSES_V4: HashMap<Addr4, AddressFlags> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static ADDRESSES_V6: HashMap<Addr6, AddressFlags> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static DEVICES: HashMap<DeviceKey, Device> =
    HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static TX_PORTS: DevMapHash = DevMapHash::with_max_entries(64, 0);

#[map]
pub(crate) static FLOWS_V4: HashMap<FlowKey<V4>, Flow<V4>> = HashMap::with_max_entries(262_144, 0);

#[map]
pub(crate) static FLOWS_V6: HashMap<FlowKey<V6>, Flow<V6>> = HashMap::with_max_entries(262_144, 0);

#[map]
pub(crate) static AFFINITY_V4: LruHashMap<AffinityKey<V4>, Affinity> =
    LruHashMap::with_max_entries(65_536, 0);

#[map]
pub(crate) static AFFINITY_V6: LruHashMap<AffinityKey<V6>, Affinity> =
    LruHashMap::with_max_entries(65_536, 0);

#[map]
pub(crate) static PEERS_V4: LruHashMap<PeerKey<V4>, Peer<V4>> =
    LruHashMap::with_max_entries(65_536, 0);

#[map]
pub(crate) static PEERS_V6: LruHashMap<PeerKey<V6>, Peer<V6>> =
    LruHashMap::with_max_entries(65_536, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(64, 0);

/// Where a connection is made; not pinned.
#[map]
pub(crate) static DRAFTS_V4: PerCpuArray<Draft<V4>> = PerCpuArray::with_max_entries(1, 0);

/// Where a connection is made; not pinned.
#[map]
pub(crate) static DRAFTS_V6: PerCpuArray<Draft<V6>> = PerCpuArray::with_max_entries(1, 0);

/// Where the kernel is asked for a route; not pinned.
#[map]
pub(crate) static ROUTE_QUERIES: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);

/// The time in ticks, for tests that stop the clock; 0: jiffies.
#[unsafe(no_mangle)]
static FIXED_TICK: Global<u32> = Global::new(0);

/// `BPF_F_IPV6` where `bpf_l4_csum_replace` knows it (kernel commit ead7f9b8de65), else 0.
#[unsafe(no_mangle)]
static L4_CSUM_IPV6: Global<u64> = Global::new(0);

/// The node's network namespace (`SO_NETNS_COOKIE`); 0: the initial one.
#[unsafe(no_mangle)]
static NODE_NETWORK: Global<u64> = Global::new(0);

/// Other than zero: sockets of other network namespaces are led, too.
#[unsafe(no_mangle)]
static SOCKETS_OF_PODS: Global<u32> = Global::new(0);

/// Other than zero: sockets of UDP are led, too.
#[unsafe(no_mangle)]
static SOCKETS_OF_UDP: Global<u32> = Global::new(0);

#[inline(always)]
pub(crate) fn node_network() -> u64 {
    NODE_NETWORK.load()
}

#[inline(always)]
pub(crate) fn leads_pods() -> bool {
    SOCKETS_OF_PODS.load() != 0
}

#[inline(always)]
pub(crate) fn leads_udp() -> bool {
    SOCKETS_OF_UDP.load() != 0
}

#[inline(always)]
pub(crate) fn fixed_tick() -> u32 {
    FIXED_TICK.load()
}

#[inline(always)]
pub(crate) fn l4_csum_ipv6() -> u64 {
    L4_CSUM_IPV6.load()
}

//! The maps and the kernel's routing table as the tables that decisions are made from.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LKUP_RET_UNREACHABLE, BPF_NOEXIST, bpf_fib_lookup, bpf_sock_addr, xdp_md,
};
use aya_ebpf::helpers::{bpf_fib_lookup as fib_lookup, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use core::ffi::c_void;
use proxy_common::abi::{
    Addr4, Addr6, AddressFlags, Affinity, AffinityKey, Backend, Device, DeviceKey, DeviceRole,
    Family, FilterKind, Flow, FlowKey, FlowStep, Peer, PeerKey, Service, ServiceKey, Settings,
    SourceKey, V4, V6, device_flag, filter_position,
};
use proxy_common::datapath::{
    Draft, FamilyTables, Hop, Insertion, RouteQuery, SocketTables, Tables,
};
use proxy_common::wire::MacAddr;

use crate::maps;

/// The maps of one hook's run. `PREEMPTIBLE`: other tasks may run the hook on this CPU meanwhile.
pub(crate) struct Maps<const PREEMPTIBLE: bool = false> {
    context: *mut c_void,
}

impl Maps<true> {
    #[inline(always)]
    pub(crate) const fn socket(context: *mut bpf_sock_addr) -> Self {
        Self {
            context: context.cast(),
        }
    }
}

impl Maps {
    #[inline(always)]
    pub(crate) const fn xdp(context: *mut xdp_md) -> Self {
        Self {
            context: context.cast(),
        }
    }

    #[inline(always)]
    pub(crate) const fn skb(context: *mut __sk_buff) -> Self {
        Self {
            context: context.cast(),
        }
    }
}

/// Adds one in a single instruction. BPF has no atomic type that can do so.
///
/// # Safety
/// `number` points to memory of a map.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn raise(number: *mut u64) {
    // SAFETY: as the caller says; nothing else is touched.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) 1_u64) };
}

/// As above, where this is only looked at.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "bpf"))]
unsafe fn raise(number: *mut u64) {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: as the caller says.
    unsafe { AtomicU64::from_ptr(number) }.fetch_add(1, Ordering::Relaxed);
}

#[inline(always)]
fn array<T: Copy>(map: &Array<T>, index: u32) -> Option<T> {
    let record = map.get_ptr(index)?;
    // SAFETY: a record of an array lives as long as the map; the daemon may write to it meanwhile,
    // and any bits make a record.
    Some(unsafe { *record })
}

#[inline(always)]
fn hash<K, V: Copy>(map: &HashMap<K, V>, key: &K) -> Option<V> {
    let record = map.get_ptr(key)?;
    // SAFETY: the kernel keeps the record's memory until the program ends; any bits make a record.
    Some(unsafe { *record })
}

impl<const PREEMPTIBLE: bool> Tables for Maps<PREEMPTIBLE> {
    #[inline(always)]
    fn tick(&self) -> u32 {
        match maps::fixed_tick() {
            // SAFETY: the helper takes nothing. The JIT puts a load in its place.
            0 => (unsafe { bpf_jiffies64() } >> 8) as u32,
            fixed => fixed,
        }
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        match maps::fixed_tick() {
            // SAFETY: the helper takes nothing.
            0 => unsafe { bpf_ktime_get_ns() },
            // Where the clock stands still, a tick stands for a second.
            fixed => u64::from(fixed) * 1_000_000_000,
        }
    }

    #[inline(always)]
    fn count(&self, index: u32, bytes: u64) {
        if let Some(counter) = maps::COUNTERS.get_ptr_mut(index) {
            if PREEMPTIBLE {
                // SAFETY: the record's memory is aligned and lives as long as the map.
                unsafe { raise(&raw mut (*counter).packets) };
                return;
            }
            // SAFETY: this CPU's own record, which no other program writes to meanwhile.
            let counter = unsafe { &mut *counter };
            counter.packets += 1;
            counter.bytes += bytes;
        }
    }

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        array(&maps::SETTINGS, 0)
    }

    #[inline(always)]
    fn device(&self, key: &DeviceKey) -> Option<Device> {
        hash(&maps::DEVICES, key)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        array(&maps::SLOTS, index)
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend> {
        array(&maps::BACKENDS, index)
    }
}

/// Where each family's records are.
trait FamilyMaps: Family {
    fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>>;
    fn services() -> &'static HashMap<ServiceKey<Self>, Service>;
    fn addresses() -> &'static HashMap<Self::Addr, AddressFlags>;
    fn has_source(question: &SourceKey<Self>) -> bool;
    fn affinities() -> &'static LruHashMap<AffinityKey<Self>, Affinity>;
    fn peers() -> &'static LruHashMap<PeerKey<Self>, Peer<Self>>;
    fn drafts() -> &'static PerCpuArray<Draft<Self>>;
    fn ask(query: &RouteQuery<'_, Self>, lookup: &mut bpf_fib_lookup);
}

impl FamilyMaps for V4 {
    #[inline(always)]
    fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>> {
        &maps::FLOWS_V4
    }

    #[inline(always)]
    fn services() -> &'static HashMap<ServiceKey<Self>, Service> {
        &maps::SERVICES_V4
    }

    #[inline(always)]
    fn addresses() -> &'static HashMap<Addr4, AddressFlags> {
        &maps::ADDRESSES_V4
    }

    #[inline(always)]
    fn has_source(question: &SourceKey<Self>) -> bool {
        let key = core::ptr::from_ref(question).cast::<Key<[u32; 2]>>();
        // SAFETY: the same fields in the same places, at any alignment.
        maps::SOURCES_V4.get(unsafe { &*key }).is_some()
    }

    #[inline(always)]
    fn affinities() -> &'static LruHashMap<AffinityKey<Self>, Affinity> {
        &maps::AFFINITY_V4
    }

    #[inline(always)]
    fn peers() -> &'static LruHashMap<PeerKey<Self>, Peer<Self>> {
        &maps::PEERS_V4
    }

    #[inline(always)]
    fn drafts() -> &'static PerCpuArray<Draft<Self>> {
        &maps::DRAFTS_V4
    }

    #[inline(always)]
    fn ask(query: &RouteQuery<'_, Self>, lookup: &mut bpf_fib_lookup) {
        const AF_INET: u8 = 2;
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(query.source.bytes());
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(query.destination.bytes());
    }
}

impl FamilyMaps for V6 {
    #[inline(always)]
    fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>> {
        &maps::FLOWS_V6
    }

    #[inline(always)]
    fn services() -> &'static HashMap<ServiceKey<Self>, Service> {
        &maps::SERVICES_V6
    }

    #[inline(always)]
    fn addresses() -> &'static HashMap<Addr6, AddressFlags> {
        &maps::ADDRESSES_V6
    }

    #[inline(always)]
    fn has_source(question: &SourceKey<Self>) -> bool {
        let key = core::ptr::from_ref(question).cast::<Key<[u32; 5]>>();
        // SAFETY: the same fields in the same places, at any alignment.
        maps::SOURCES_V6.get(unsafe { &*key }).is_some()
    }

    #[inline(always)]
    fn affinities() -> &'static LruHashMap<AffinityKey<Self>, Affinity> {
        &maps::AFFINITY_V6
    }

    #[inline(always)]
    fn peers() -> &'static LruHashMap<PeerKey<Self>, Peer<Self>> {
        &maps::PEERS_V6
    }

    #[inline(always)]
    fn drafts() -> &'static PerCpuArray<Draft<Self>> {
        &maps::DRAFTS_V6
    }

    #[inline(always)]
    fn ask(query: &RouteQuery<'_, Self>, lookup: &mut bpf_fib_lookup) {
        const AF_INET6: u8 = 10;
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = words(*query.source);
        lookup.__bindgen_anon_4.ipv6_dst = words(*query.destination);
    }
}

#[inline(always)]
fn words(Addr6([a, b, c, d, e, f, g, h]): Addr6) -> [u32; 4] {
    let join = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    [join(a, b), join(c, d), join(e, f), join(g, h)]
}

impl<F: FamilyMaps, const PREEMPTIBLE: bool> FamilyTables<F> for Maps<PREEMPTIBLE> {
    type FlowRef<'t> = &'t mut Flow<F>;
    type DraftRef<'t> = &'t mut Draft<F>;

    #[inline(always)]
    fn may_be_ours(&self, kind: FilterKind, address: &F::Addr) -> bool {
        let (word, bit) = filter_position(kind, address);
        array(&maps::FILTER, word).is_some_and(|bits| bits & bit != 0)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<F>) -> Option<&mut Flow<F>> {
        let flow = F::flows().get_ptr_mut(key)?;
        // SAFETY: the kernel keeps the record's memory until the program ends. Other CPUs may write
        // to it meanwhile: of what they write, each field is valid by itself.
        Some(unsafe { &mut *flow })
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Insertion {
        const E2BIG: i32 = -7;
        const EEXIST: i32 = -17;
        match F::flows().insert(key, flow, u64::from(BPF_NOEXIST)) {
            Ok(()) => Insertion::Done,
            Err(EEXIST) => Insertion::Exists,
            Err(E2BIG) => Insertion::Full,
            Err(_) => Insertion::Busy,
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<F>) {
        // That there is none is as good.
        let _ = F::flows().remove(key);
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey<F>) -> Option<Service> {
        hash(F::services(), key)
    }

    #[inline(always)]
    fn admits(&self, question: &SourceKey<F>) -> bool {
        F::has_source(question)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity> {
        let record = F::affinities().get_ptr(key)?;
        // SAFETY: the kernel keeps the record's memory until the program ends; any bits make a record.
        Some(unsafe { *record })
    }

    #[inline(always)]
    fn keep(&self, key: &AffinityKey<F>, affinity: &Affinity) {
        // Without it the client's next connection chooses anew.
        let _ = F::affinities().insert(key, affinity, 0);
    }

    #[inline(always)]
    fn address(&self, address: &F::Addr) -> Option<AddressFlags> {
        hash(F::addresses(), address)
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery<'_, F>, hop: &mut Hop) {
        hop.step = FlowStep::Resolve;
        let Some(lookup) = maps::ROUTE_QUERIES.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: this CPU's own record, and any bits make one.
        let lookup = unsafe { &mut *lookup };
        // SAFETY: all zeros is a valid value.
        *lookup = unsafe { core::mem::zeroed() };
        lookup.l4_protocol = query.protocol;
        lookup.ifindex = query.ifindex;
        F::ask(query, lookup);
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context is the hook's, and the structure is of the size given.
        let code = unsafe { fib_lookup(self.context, &raw mut *lookup, size, 0) };
        let code = code as u32;
        if matches!(
            code,
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT
        ) {
            return;
        }
        if code == BPF_FIB_LKUP_RET_NOT_FWDED {
            // This node's own address, or one to which there is no route: the stack says so.
            hop.step = FlowStep::Local;
            return;
        }
        // That the packet at hand is larger than the MTU is no matter of the next hop's: the flow
        // keeps the MTU, and each packet is held against it.
        if !matches!(
            code,
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_NO_NEIGH
        ) {
            // A route that encapsulates, or a device that forwards nothing: not by us. The device is
            // not told; the one that the packet came in by has an address of this node too.
            hop.step = FlowStep::Stack;
            hop.ifindex = query.ifindex;
            return;
        }
        hop.ifindex = lookup.ifindex;
        let device = self.device(&DeviceKey {
            ifindex: lookup.ifindex,
            vlan: 0,
        });
        let device = device.unwrap_or_default();
        hop.role = DeviceRole::from_raw(device.role);
        hop.mtu = device.mtu;
        if code == BPF_FIB_LKUP_RET_NO_NEIGH {
            hop.step = FlowStep::Neighbour;
            return;
        }
        hop.link_destination = MacAddr::from_bytes(lookup.dmac);
        hop.link_source = MacAddr::from_bytes(lookup.smac);
        hop.step = if hop.role == DeviceRole::Pod {
            FlowStep::Pod
        } else if device.flags & device_flag::XDP_TARGET != 0 {
            FlowStep::Transmit
        } else {
            FlowStep::Enqueue
        };
    }

    #[inline(always)]
    fn draft(&self) -> Option<&mut Draft<F>> {
        let draft = F::drafts().get_ptr_mut(0)?;
        // SAFETY: this CPU's own record; no other program of ours runs on this CPU meanwhile (hooks
        // run with bottom halves disabled), and any bits make a valid `Draft` but for its flags,
        // which only this code writes.
        Some(unsafe { &mut *draft })
    }
}

impl<F: FamilyMaps> SocketTables<F> for Maps<true> {
    #[inline(always)]
    fn peer(&self, key: &PeerKey<F>) -> Option<Peer<F>> {
        let record = F::peers().get_ptr(key)?;
        // SAFETY: the kernel keeps the record's memory until the program ends; any bits make a record.
        Some(unsafe { *record })
    }

    #[inline(always)]
    fn remember(&self, key: &PeerKey<F>, asked: &Peer<F>) -> bool {
        F::peers().insert(key, asked, 0).is_ok()
    }
}

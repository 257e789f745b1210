//! The maps, and the datapath's view of them.
//!
//! Capacities that depend on the machine or the configuration are set by the agent when it creates the maps.

use core::marker::PhantomData;
use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::{self, LpmTrie};
use aya_ebpf::btf_maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use lb_common::tables::{
    Backend, HALF_OPEN_ENTRIES, Live, MAX_BACKENDS, MAX_CLUSTERS, MAX_NEXT_HOPS, MAX_ROUTES, MAX_SERVICES,
    MAX_SLOTS, MAX_SNAT_ADDRESSES, MAX_SNAT_PORTS, NextHop, Opened, REASON_SLOTS, Service, ServiceKey,
    Settings, Window, flow_entries, reason_index,
};
use lb_common::work::{RouteKey, Work};
use lb_common::{Address, Flow, FlowRef, Key, Reason, Rung, Tables, V4, V6, off_path, open};

/// Flows that the maps hold unless the agent says otherwise.
const FLOWS: usize = flow_entries(1 << 16) as usize;
const HALF_OPEN: usize = HALF_OPEN_ENTRIES as usize;
/// Arrays that the agent writes through a mapping, so that a store is one store.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

type Flows<A> = HashMap<Key<A>, Flow<A>, FLOWS>;
type HalfOpen<A> = LruHashMap<Key<A>, Flow<A>, HALF_OPEN>;
type Services<A> = HashMap<ServiceKey<A>, Service, { MAX_SERVICES as usize }>;
type Routes<A> = LpmTrie<A, u32, { MAX_ROUTES as usize }>;

#[btf_map]
static FLOWS4: Flows<V4> = HashMap::new();
#[btf_map]
static FLOWS6: Flows<V6> = HashMap::new();
#[btf_map]
static HALF4: HalfOpen<V4> = LruHashMap::new();
#[btf_map]
static HALF6: HalfOpen<V6> = LruHashMap::new();
#[btf_map]
static SERVICES4: Services<V4> = HashMap::new();
#[btf_map]
static SERVICES6: Services<V6> = HashMap::new();
#[btf_map]
static ROUTES4: Routes<V4> = LpmTrie::new();
#[btf_map]
static ROUTES6: Routes<V6> = LpmTrie::new();
#[btf_map]
static CLUSTERS: Array<Window, { MAX_CLUSTERS as usize }, MAPPED> = Array::new();
#[btf_map]
static CURSORS: PerCpuArray<u32, { MAX_CLUSTERS as usize }> = PerCpuArray::new();
#[btf_map]
static SLOTS: Array<u32, { MAX_SLOTS as usize }, MAPPED> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }, MAPPED> = Array::new();
#[btf_map]
static OPENED: PerCpuArray<Opened, { MAX_BACKENDS as usize }> = PerCpuArray::new();
#[btf_map]
static NEXT_HOPS: Array<NextHop, { MAX_NEXT_HOPS as usize }, MAPPED> = Array::new();
#[btf_map]
static SNAT_ADDRESSES: Array<[u32; 4], { MAX_SNAT_ADDRESSES as usize }> = Array::new();
#[btf_map]
static SNAT_PORTS: Array<u16, { MAX_SNAT_PORTS as usize }> = Array::new();
#[btf_map]
static SETTINGS: Array<Settings, 1, MAPPED> = Array::new();
#[btf_map]
static LIVE: Array<Live, 2, MAPPED> = Array::new();
#[btf_map]
static REASONS: PerCpuArray<u64, { REASON_SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
static WORK4: PerCpuArray<Work<V4>, 1> = PerCpuArray::new();
#[btf_map]
static WORK6: PerCpuArray<Work<V6>, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static DEVICES: DevMapHash<256> = DevMapHash::new();

/// Counts an outcome.
#[inline(always)]
pub(crate) fn count(rung: Rung, reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason_index(rung, reason)) {
        // SAFETY: a counter of this CPU alone; programs of one CPU do not interrupt each other.
        unsafe { *counter += 1 };
    }
}

/// The maps of an address family.
pub(crate) trait Family: Address {
    /// Index into `LIVE`.
    const INDEX: u32;
    fn flows() -> &'static Flows<Self>;
    fn half_open() -> &'static HalfOpen<Self>;
    fn services() -> &'static Services<Self>;
    fn routes() -> &'static Routes<Self>;
    fn work() -> &'static PerCpuArray<Work<Self>, 1>;
    fn handle_off_path() -> off_path::Code;
    fn open() -> off_path::Code;
    fn choose() -> u32;
    fn reserve_port() -> u32;
}

macro_rules! family {
    ($address:ty, $index:literal, $flows:ident, $half:ident, $services:ident, $routes:ident, $work:ident, $off_path:ident, $open:ident, $choose:ident, $port:ident) => {
        /// Exported, hence global: verified once, whatever leads to it.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $off_path() -> off_path::Code {
            off_path::handle::<$address, _>(&KernelTables::new())
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $open() -> off_path::Code {
            off_path::open::<$address, _>(&KernelTables::new())
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose() -> u32 {
            open::choose::<$address, _>(&KernelTables::new())
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $port() -> u32 {
            open::reserve_port::<$address, _>(&KernelTables::new())
        }

        impl Family for $address {
            const INDEX: u32 = $index;
            #[inline(always)]
            fn flows() -> &'static Flows<Self> {
                &$flows
            }
            #[inline(always)]
            fn half_open() -> &'static HalfOpen<Self> {
                &$half
            }
            #[inline(always)]
            fn services() -> &'static Services<Self> {
                &$services
            }
            #[inline(always)]
            fn routes() -> &'static Routes<Self> {
                &$routes
            }
            #[inline(always)]
            fn work() -> &'static PerCpuArray<Work<Self>, 1> {
                &$work
            }
            #[inline(always)]
            fn handle_off_path() -> off_path::Code {
                $off_path()
            }
            #[inline(always)]
            fn open() -> off_path::Code {
                $open()
            }
            #[inline(always)]
            fn choose() -> u32 {
                $choose()
            }
            #[inline(always)]
            fn reserve_port() -> u32 {
                $port()
            }
        }
    };
}
family!(V4, 0, FLOWS4, HALF4, SERVICES4, ROUTES4, WORK4, off_path4, open4, choose4, reserve_port4);
family!(V6, 1, FLOWS6, HALF6, SERVICES6, ROUTES6, WORK6, off_path6, open6, choose6, reserve_port6);

/// The kernel's tables of one family.
pub(crate) struct KernelTables<A>(PhantomData<A>);

impl<A> KernelTables<A> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

#[inline(always)]
fn entry<'t, A: Address>(found: Option<*mut Flow<A>>) -> Option<FlowRef<'t, A>> {
    // SAFETY: a map value stays allocated while a program runs (pre-allocated maps never free). An entry that is
    // deleted meanwhile may be reused for another flow: that takes the end of a flow and a packet of it at the
    // same instant, and then one packet goes astray, as it does when it arrives a moment later.
    found.and_then(NonNull::new).map(|at| unsafe { FlowRef::new(at) })
}

impl<A: Family> Tables<A> for KernelTables<A> {
    #[inline(always)]
    fn established(&self, key: &Key<A>) -> Option<FlowRef<'_, A>> {
        entry(A::flows().get_ptr_mut(key))
    }

    #[inline(always)]
    fn half_open(&self, key: &Key<A>) -> Option<FlowRef<'_, A>> {
        entry(A::half_open().get_ptr_mut(key))
    }

    #[inline(always)]
    fn insert_established(&self, key: &Key<A>, flow: FlowRef<'_, A>) -> bool {
        A::flows().insert(key, flow.get(), BPF_NOEXIST as u64).is_ok()
    }

    #[inline(always)]
    fn insert_half_open(&self, key: &Key<A>, flow: FlowRef<'_, A>) -> bool {
        A::half_open().insert(key, flow.get(), BPF_NOEXIST as u64).is_ok()
    }

    #[inline(always)]
    fn replace_half_open(&self, key: &Key<A>, flow: FlowRef<'_, A>) -> bool {
        A::half_open().insert(key, flow.get(), BPF_ANY as u64).is_ok()
    }

    #[inline(always)]
    fn remove_established(&self, key: &Key<A>) {
        let _ = A::flows().remove(key);
    }

    #[inline(always)]
    fn remove_half_open(&self, key: &Key<A>) {
        let _ = A::half_open().remove(key);
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        // SAFETY: copied at once; the agent replaces entries, it does not write into them.
        unsafe { A::services().get(key) }.copied()
    }

    #[inline(always)]
    fn window(&self, cluster: u32) -> Option<Window> {
        let window = CLUSTERS.get_ptr(cluster)?.cast::<u64>();
        // SAFETY: a `Window` is 8 bytes, aligned to 8, and written by one store: it is read by one load.
        let bits = unsafe { window.read_volatile() };
        Some(Window { first: bits as u32, count: (bits >> 32) as u32 })
    }

    #[inline(always)]
    fn cursor(&self, cluster: u32) -> u32 {
        CURSORS.get(cluster).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn set_cursor(&self, cluster: u32, position: u32) {
        if let Some(cursor) = CURSORS.get_ptr_mut(cluster) {
            // SAFETY: a value of this CPU alone.
            unsafe { *cursor = position };
        }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        NEXT_HOPS.get(index)
    }

    #[inline(always)]
    fn route(&self, address: A) -> Option<u32> {
        let key: *const RouteKey<A> = self.work()?.route_key(address);
        // SAFETY: the same layout, 32 bits and an address, and the key is nobody else's.
        let key = unsafe { &*key.cast::<lpm_trie::Key<A>>() };
        A::routes().get(key).copied()
    }

    #[inline(always)]
    fn snat_address(&self, index: u32) -> Option<A> {
        SNAT_ADDRESSES.get(index).map(A::load)
    }

    #[inline(always)]
    fn snat_port(&self, index: u32) -> Option<u16> {
        SNAT_PORTS.get(index).copied()
    }

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        SETTINGS.get(0).copied()
    }

    #[inline(always)]
    fn live(&self) -> u64 {
        match LIVE.get(A::INDEX) {
            Some(live) => live.opened.wrapping_sub(live.closed),
            None => u64::MAX,
        }
    }

    #[inline(always)]
    fn count_opened(&self, backend: u32, rung: Rung) {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        if let Some(live) = LIVE.get_ptr_mut(A::INDEX) {
            // SAFETY: an aligned u64 that all CPUs add to; the agent writes the other counter alone.
            unsafe {
                atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*live).opened, 1);
            }
        }
        if let Some(opened) = OPENED.get_ptr_mut(backend) {
            // SAFETY: counters of this CPU alone.
            unsafe {
                match rung {
                    Rung::Xdp => (*opened).xdp += 1,
                    Rung::Tc => (*opened).tc += 1,
                }
            }
        }
    }

    #[inline(always)]
    fn work(&self) -> Option<&Work<A>> {
        // A value of this CPU alone, and the programs of a CPU do not interrupt each other.
        A::work().get(0)
    }

    #[inline(always)]
    fn handle_off_path(&self) -> off_path::Code {
        A::handle_off_path()
    }

    #[inline(always)]
    fn open(&self) -> off_path::Code {
        A::open()
    }

    #[inline(always)]
    fn choose(&self) -> u32 {
        A::choose()
    }

    #[inline(always)]
    fn reserve_port(&self) -> u32 {
        A::reserve_port()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn precise_now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}

//! The maps, and the datapath's view of them.
//!
//! Capacities that depend on the machine or the configuration are set by the agent when it creates the maps.

use core::marker::PhantomData;
use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::lpm_trie::{self, LpmTrie};
use aya_ebpf::btf_maps::{Array, DevMapHash, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use lb_common::event::{self, Event};
use lb_common::table::{self, FlowSet, GROUP_WORDS, SetRef, sets};
use lb_common::tables::{
    Active, Backend, EVENT_BYTES, Failed, Live, MAX_BACKENDS, MAX_CLUSTERS, MAX_NEXT_HOPS, MAX_ROUTES,
    MAX_SERVICE_IDS, MAX_SERVICES, MAX_SLOTS, MAX_SNAT_ADDRESSES, MAX_SNAT_PORTS, NextHop, Opened,
    PORTS_A_VALUE, REASON_SLOTS, Service, ServiceKey, Settings, Window, active_of_cluster, reason_index,
};
use lb_common::work::{RouteKey, Work};
use lb_common::{Address, Env, Reason, Rung, Segment, Tables, V4, V6, off_path, open};

/// Sets of a flow table unless the agent says otherwise.
const SETS: u32 = sets(1 << 16);
/// Sets of each flow table: a constant that the agent sets, so that it costs nothing.
#[unsafe(no_mangle)]
static FLOW_SETS: u32 = SETS;
/// Whether this machine lets no store be seen before an earlier one. As above.
#[unsafe(no_mangle)]
static ORDERED_STORES: u32 = 0;
/// What the hashes of the flow tables begin with. As above.
#[unsafe(no_mangle)]
static FLOW_SEED: u64 = 0;
/// Arrays that the agent writes through a mapping, so that a store is one store.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

type Flows<A> = Array<FlowSet<A>, { SETS as usize }, MAPPED>;
type Services<A> = HashMap<ServiceKey<A>, Service, { MAX_SERVICES as usize }>;
type Routes<A> = LpmTrie<A, u32, { MAX_ROUTES as usize }>;

#[btf_map]
static FLOWS4: Flows<V4> = Array::new();
#[btf_map]
static FLOWS6: Flows<V6> = Array::new();
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
static SERVED: PerCpuArray<Opened, { MAX_SERVICE_IDS as usize }> = PerCpuArray::new();
#[btf_map]
static FAILED: PerCpuArray<Failed, { MAX_BACKENDS as usize }> = PerCpuArray::new();
#[btf_map]
static ACTIVE: Array<Active, { (MAX_BACKENDS + MAX_CLUSTERS) as usize }, MAPPED> = Array::new();
#[btf_map]
static EVENTS: RingBuf<Event<V4>, { EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map]
static NEXT_HOPS: Array<NextHop, { MAX_NEXT_HOPS as usize }, MAPPED> = Array::new();
#[btf_map]
static SNAT_ADDRESSES: Array<[u32; 4], { MAX_SNAT_ADDRESSES as usize }> = Array::new();
#[btf_map]
static SNAT_PORTS: Array<[u16; PORTS_A_VALUE as usize], { (MAX_SNAT_PORTS / PORTS_A_VALUE) as usize }> =
    Array::new();
#[btf_map]
static OCCUPIED: Array<u64, { 2 * GROUP_WORDS as usize }, MAPPED> = Array::new();
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

/// Adds to a counter that CPUs share.
///
/// # Safety
/// `at` is valid for reads and writes, aligned to 8, and only accessed atomically meanwhile.
#[inline(always)]
unsafe fn add(at: *mut u64, value: u64) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller's.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(at, value);
    }
}

/// What is open to a backend or a cluster.
#[inline(always)]
fn active_at(index: u32) -> Option<Active> {
    ACTIVE.get(index).copied()
}

/// Adds flows, wrapping, to what is open to a backend and its cluster.
#[inline(always)]
fn add_active(backend: u32, flows: u64) {
    if let Some(active) = ACTIVE.get_ptr_mut(backend) {
        // SAFETY: an aligned u64 that programs and agent add to.
        unsafe { add(&raw mut (*active).both, flows) };
    }
    let Some(backend) = BACKENDS.get(backend) else { return };
    if let Some(active) = ACTIVE.get_ptr_mut(active_of_cluster(backend.cluster)) {
        // SAFETY: as above.
        unsafe { add(&raw mut (*active).both, flows) };
    }
}

/// The maps of an address family.
pub(crate) trait Family: Address {
    /// Index into `LIVE`.
    const INDEX: u32;
    fn flows() -> &'static Flows<Self>;
    fn services() -> &'static Services<Self>;
    fn routes() -> &'static Routes<Self>;
    fn work() -> &'static PerCpuArray<Work<Self>, 1>;
    fn handle_off_path() -> off_path::Code;
    fn open(fresh: u32) -> off_path::Code;
    fn choose() -> u32;
    fn reserve_port() -> u32;
    fn finish(how: u32) -> off_path::Code;
    fn seek() -> u32;
    fn insert(which: u32) -> u32;
    fn settle(set: u32, tag: u32, how: u32) -> u32;
    fn record(kind: u32) -> u32;
}

macro_rules! family {
    ($address:ty, $index:literal, $flows:ident, $services:ident, $routes:ident, $work:ident, $off_path:ident, $open:ident, $choose:ident, $port:ident, $finish:ident, $seek:ident, $insert:ident, $settle:ident, $record:ident) => {
        /// Exported, hence global: verified once, whatever leads to it.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $off_path() -> off_path::Code {
            off_path::handle::<$address, _>(&KernelTables::new())
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $open(fresh: u32) -> off_path::Code {
            off_path::open::<$address, _>(&KernelTables::new(), fresh)
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

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $finish(how: u32) -> off_path::Code {
            off_path::finish::<$address, _>(&KernelTables::new(), how)
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $seek() -> u32 {
            table::seek::<$address, _>(&KernelTables::new())
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $insert(which: u32) -> u32 {
            table::insert::<$address, _>(&KernelTables::new(), which)
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $settle(set: u32, tag: u32, how: u32) -> u32 {
            table::settle::<$address, _>(&KernelTables::new(), set, tag, how)
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $record(kind: u32) -> u32 {
            event::record::<$address, _>(&KernelTables::new(), kind)
        }

        impl Family for $address {
            const INDEX: u32 = $index;
            #[inline(always)]
            fn flows() -> &'static Flows<Self> {
                &$flows
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
            fn open(fresh: u32) -> off_path::Code {
                $open(fresh)
            }
            #[inline(always)]
            fn choose() -> u32 {
                $choose()
            }
            #[inline(always)]
            fn reserve_port() -> u32 {
                $port()
            }
            #[inline(always)]
            fn finish(how: u32) -> off_path::Code {
                $finish(how)
            }
            #[inline(always)]
            fn seek() -> u32 {
                $seek()
            }
            #[inline(always)]
            fn insert(which: u32) -> u32 {
                $insert(which)
            }
            #[inline(always)]
            fn settle(set: u32, tag: u32, how: u32) -> u32 {
                $settle(set, tag, how)
            }
            #[inline(always)]
            fn record(kind: u32) -> u32 {
                $record(kind)
            }
        }
    };
}
family!(
    V4,
    0,
    FLOWS4,
    SERVICES4,
    ROUTES4,
    WORK4,
    off_path4,
    open4,
    choose4,
    reserve_port4,
    finish4,
    seek4,
    insert4,
    settle4,
    record4
);
family!(
    V6,
    1,
    FLOWS6,
    SERVICES6,
    ROUTES6,
    WORK6,
    off_path6,
    open6,
    choose6,
    reserve_port6,
    finish6,
    seek6,
    insert6,
    settle6,
    record6
);

/// The kernel's tables of one family.
pub(crate) struct KernelTables<A>(PhantomData<A>);

impl<A> KernelTables<A> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<A: Family> KernelTables<A> {
    /// Puts a packet into the work room; whether there is one.
    #[inline(always)]
    pub(crate) fn put(&self, env: &Env, segment: &Segment<A>) -> bool {
        match self.work() {
            Some(work) => {
                work.put(env, segment);
                true
            }
            None => false,
        }
    }

    /// The packet in the work room.
    #[inline(always)]
    pub(crate) fn segment(&self) -> Option<&Segment<A>> {
        self.work().map(Work::packet)
    }
}

impl<A: Family> Tables<A> for KernelTables<A> {
    #[inline(always)]
    fn flow_sets(&self) -> u32 {
        // SAFETY: a constant; volatile, since the compiler must not take the value that it sees for the one it has.
        unsafe { (&raw const FLOW_SETS).read_volatile() }
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const FLOW_SEED).read_volatile() }
    }

    #[inline(always)]
    fn has_ordered_stores(&self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const ORDERED_STORES).read_volatile() != 0 }
    }

    #[inline(always)]
    fn occupy(&self, set: u32) {
        use core::intrinsics::{AtomicOrdering, atomic_or};
        let group = set / table::group_sets::<A>();
        let Some(word) = OCCUPIED.get_ptr_mut(A::INDEX * GROUP_WORDS + group / 64) else { return };
        let bit = 1u64 << (group % 64);
        // SAFETY: an aligned u64 that programs and agent change atomically. Mostly the bit is set, and nothing to be done.
        unsafe {
            if word.read_volatile() & bit == 0 {
                atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bit);
            }
        }
    }

    #[inline(always)]
    fn flow_set(&self, index: u32) -> Option<SetRef<'_, A>> {
        // SAFETY: an array's values stay where they are; programs and agent reach these by `SetRef`s.
        A::flows().get_ptr_mut(index).and_then(NonNull::new).map(|at| unsafe { SetRef::new(at) })
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
        let ports = SNAT_PORTS.get(index / PORTS_A_VALUE)?;
        Some(ports[(index % PORTS_A_VALUE) as usize])
    }

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        SETTINGS.get(0).copied()
    }

    #[inline(always)]
    fn live(&self) -> u64 {
        match LIVE.get(A::INDEX) {
            Some(live) => live.opened.saturating_sub(live.closed),
            None => u64::MAX,
        }
    }

    #[inline(always)]
    fn count_opened(&self, backend: u32, service: u32, rung: Rung) {
        if let Some(live) = LIVE.get_ptr_mut(A::INDEX) {
            // SAFETY: an aligned u64 that all CPUs add to; the agent writes the other counter alone.
            unsafe { add(&raw mut (*live).opened, 1) };
        }
        for opened in [OPENED.get_ptr_mut(backend), SERVED.get_ptr_mut(service)].into_iter().flatten() {
            // SAFETY: counters of this CPU alone.
            unsafe {
                match rung {
                    Rung::Xdp => (*opened).xdp += 1,
                    Rung::Tc => (*opened).tc += 1,
                }
            }
        }
        add_active(backend, 1);
        if let Some(active) = ACTIVE.get_ptr_mut(backend) {
            // Written only where it changes, since CPUs share it.
            // SAFETY: an aligned u64 that programs and agent add to or set to 0.
            unsafe {
                if (*active).failing != 0 {
                    (*active).failing = 0;
                }
            }
        }
    }

    #[inline(always)]
    fn leave(&self, backend: u32) {
        add_active(backend, u64::MAX);
    }

    #[inline(always)]
    fn active(&self, backend: u32) -> u64 {
        active_at(backend).map_or(0, |active| Active::sum(active.both))
    }

    #[inline(always)]
    fn is_full(&self, backend: &Backend) -> bool {
        match active_at(active_of_cluster(backend.cluster)) {
            Some(active) => active.limit != 0 && Active::sum(active.both) >= active.limit,
            None => false,
        }
    }

    #[inline(always)]
    fn count_failed(&self, backend: u32, unanswered: bool) {
        if let Some(failed) = FAILED.get_ptr_mut(backend) {
            // SAFETY: counters of this CPU alone.
            unsafe {
                if unanswered {
                    (*failed).unanswered += 1;
                } else {
                    (*failed).refused += 1;
                }
            }
        }
        if let Some(active) = ACTIVE.get_ptr_mut(backend) {
            // SAFETY: as in `count_opened`.
            unsafe { add(&raw mut (*active).failing, 1) };
        }
    }

    #[inline(always)]
    fn emit(&self, event: &Event<A>) {
        // The agent looks by itself: to wake it costs more than all else here.
        if EVENTS.output_untyped::<Event<A>>(event, BPF_RB_NO_WAKEUP as u64).is_err()
            && let Some(live) = LIVE.get_ptr_mut(A::INDEX)
        {
            // SAFETY: an aligned u64 that all CPUs add to.
            unsafe { add(&raw mut (*live).lost, 1) };
        }
    }

    #[inline(always)]
    fn record(&self, kind: u32) -> u32 {
        A::record(kind)
    }

    #[inline(always)]
    fn count_closed(&self) {
        if let Some(live) = LIVE.get_ptr_mut(A::INDEX) {
            // SAFETY: an aligned u64 that all add to.
            unsafe { add(&raw mut (*live).closed, 1) };
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
    fn open(&self, fresh: u32) -> off_path::Code {
        A::open(fresh)
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
    fn finish(&self, how: u32) -> off_path::Code {
        A::finish(how)
    }

    #[inline(always)]
    fn seek(&self) -> u32 {
        A::seek()
    }

    #[inline(always)]
    fn insert(&self, which: u32) -> u32 {
        A::insert(which)
    }

    #[inline(always)]
    fn settle(&self, set: u32, tag: u32, how: u32) -> u32 {
        A::settle(set, tag, how)
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

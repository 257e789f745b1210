//! The maps as they are, for a packet that is only imagined: reads come from a [`Source`], writes stay in memory.

use std::cell::{OnceCell, RefCell, UnsafeCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::ptr::NonNull;

use lb_common::event::{self, Event};
use lb_common::host::HostTables;
use lb_common::table::{self, FlowSet, SetRef};
use lb_common::tables::{
    Active, Backend, MAX_BACKENDS, MAX_NEXT_HOPS, NextHop, Service, ServiceKey, Settings, Step, Window,
    active_of_cluster,
};
use lb_common::work::Work;
use lb_common::{Address, Flow, Key, Rung, Tables, balance, off_path, open};

/// The contents of the maps of one address family, as copies.
pub(super) trait Source<A: Address> {
    fn flow_sets(&self) -> u32;
    fn flow_set(&self, index: u32) -> Option<FlowSet<A>>;
    /// An entry of any kind.
    fn flow(&self, key: &Key<A>) -> Option<Flow<A>>;
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;
    fn window(&self, cluster: u32) -> Option<Window>;
    /// Position of round_robin on CPU 0.
    fn cursor(&self, cluster: u32) -> u32;
    fn slot(&self, index: u32) -> Option<u32>;
    fn backend(&self, index: u32) -> Option<Backend>;
    fn next_hop(&self, index: u32) -> Option<NextHop>;
    fn route(&self, address: A) -> Option<u32>;
    fn snat_address(&self, index: u32) -> Option<A>;
    fn snat_port(&self, index: u32) -> Option<u16>;
    fn settings(&self) -> Option<Settings>;
    fn live(&self) -> u64;
    /// What is open to a backend or, by [`active_of_cluster`], a cluster.
    fn active(&self, index: u32) -> Active;

    /// An entry of an established flow.
    fn established(&self, key: &Key<A>) -> Option<Flow<A>> {
        self.flow(key).filter(Flow::is_established)
    }

    /// An entry of a half-open flow, or a tombstone.
    fn half_open(&self, key: &Key<A>) -> Option<Flow<A>> {
        self.flow(key).filter(|flow| !flow.is_established())
    }
}

/// The datapath's view of a [`Source`].
pub(super) struct Overlay<'s, A, S> {
    source: &'s S,
    /// The work room, and the clock.
    host: HostTables,
    /// Sets of the flow table, once they were asked for, and what became of them.
    sets: RefCell<HashMap<u32, Box<UnsafeCell<FlowSet<A>>>>>,
    backends: Vec<OnceCell<Option<Backend>>>,
    next_hops: Vec<OnceCell<Option<NextHop>>>,
    cursors: RefCell<HashMap<u32, u32>>,
    now: u64,
    steps: RefCell<Vec<Step>>,
}

impl<'s, A: Address + Hash, S: Source<A>> Overlay<'s, A, S>
where
    HostTables: Tables<A>,
{
    /// `now`: nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn new(source: &'s S, now: u64) -> Self {
        let host = HostTables::default();
        host.set_clock(now);
        Self {
            source,
            host,
            sets: RefCell::default(),
            backends: vec![OnceCell::new(); MAX_BACKENDS as usize],
            next_hops: vec![OnceCell::new(); MAX_NEXT_HOPS as usize],
            cursors: RefCell::default(),
            now,
            steps: RefCell::default(),
        }
    }

    /// What the datapath has told since the last call.
    pub(super) fn take_steps(&self) -> Vec<Step> {
        self.steps.take()
    }
}

impl<A: Address + Hash, S: Source<A>> Tables<A> for Overlay<'_, A, S>
where
    HostTables: Tables<A>,
{
    fn flow_sets(&self) -> u32 {
        self.source.flow_sets()
    }

    fn seed(&self) -> u64 {
        self.source.settings().map_or(0, |settings| settings.seed)
    }

    fn has_ordered_stores(&self) -> bool {
        false
    }

    fn occupy(&self, _set: u32) {}

    fn flow_set(&self, index: u32) -> Option<SetRef<'_, A>> {
        let mut sets = self.sets.borrow_mut();
        let set = match sets.entry(index) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Box::new(UnsafeCell::new(self.source.flow_set(index)?))),
        };
        let set = NonNull::new(set.get())?;
        // SAFETY: sets are boxed and never taken out as long as `self` lives, and only reached by `SetRef`s.
        Some(unsafe { SetRef::new(set) })
    }

    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        self.source.service(key)
    }

    fn window(&self, cluster: u32) -> Option<Window> {
        self.source.window(cluster)
    }

    fn cursor(&self, cluster: u32) -> u32 {
        self.cursors.borrow().get(&cluster).copied().unwrap_or_else(|| self.source.cursor(cluster))
    }

    fn set_cursor(&self, cluster: u32, position: u32) {
        self.cursors.borrow_mut().insert(cluster, position);
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.source.slot(index)
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.get(index as usize)?.get_or_init(|| self.source.backend(index)).as_ref()
    }

    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        self.next_hops.get(index as usize)?.get_or_init(|| self.source.next_hop(index)).as_ref()
    }

    fn route(&self, address: A) -> Option<u32> {
        self.source.route(address)
    }

    fn snat_address(&self, index: u32) -> Option<A> {
        self.source.snat_address(index)
    }

    fn snat_port(&self, index: u32) -> Option<u16> {
        self.source.snat_port(index)
    }

    fn settings(&self) -> Option<Settings> {
        self.source.settings()
    }

    fn live(&self) -> u64 {
        self.source.live()
    }

    fn count_opened(&self, _backend: u32, _service: u32, _rung: Rung) {}

    fn leave(&self, _backend: u32) {}

    fn active(&self, backend: u32) -> u64 {
        Active::sum(self.source.active(backend).both)
    }

    fn is_full(&self, backend: &Backend) -> bool {
        let Active { both, limit, .. } = self.source.active(active_of_cluster(backend.cluster));
        limit != 0 && Active::sum(both) >= limit
    }

    fn count_failed(&self, _backend: u32, _unanswered: bool) {}

    fn emit(&self, _event: &Event<A>) {}

    fn record(&self, kind: u32) -> u32 {
        event::record(self, kind)
    }

    fn count_closed(&self) {}

    fn work(&self) -> Option<&Work<A>> {
        self.host.work()
    }

    fn handle_off_path(&self) -> off_path::Code {
        off_path::handle(self)
    }

    fn open(&self, fresh: u32) -> off_path::Code {
        off_path::open(self, fresh)
    }

    fn choose(&self) -> u32 {
        open::choose(self)
    }

    fn reserve_port(&self) -> u32 {
        open::reserve_port(self)
    }

    fn finish(&self, how: u32) -> off_path::Code {
        off_path::finish(self, how)
    }

    fn seek(&self) -> u32 {
        table::seek(self)
    }

    fn insert(&self, which: u32) -> u32 {
        table::insert(self, which)
    }

    fn settle(&self, set: u32, tag: u32, how: u32) -> u32 {
        table::settle(self, set, tag, how)
    }

    fn random(&self) -> u32 {
        balance::mix(self.now) as u32
    }

    fn precise_now(&self) -> u64 {
        Tables::<A>::precise_now(&self.host)
    }

    fn note(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}

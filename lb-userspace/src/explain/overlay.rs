//! The maps as they are, for a packet that is only imagined: reads come from a [`Source`], writes stay in memory.

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use lb_common::host::HostTables;
use lb_common::tables::{
    Backend, MAX_BACKENDS, MAX_NEXT_HOPS, NextHop, Service, ServiceKey, Settings, Step, Window,
};
use lb_common::work::Work;
use lb_common::{Address, Flow, FlowRef, Key, Rung, Tables, balance, off_path, open};

/// The contents of the maps of one address family, as copies.
pub(super) trait Source<A: Address> {
    fn established(&self, key: &Key<A>) -> Option<Flow<A>>;
    fn half_open(&self, key: &Key<A>) -> Option<Flow<A>>;
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
}

/// The datapath's view of a [`Source`].
pub(super) struct Overlay<'s, A, S> {
    source: &'s S,
    /// Entries of flows, once they were asked for, and what became of them; the work room.
    flows: HostTables,
    /// Keys that were asked for among the established flows and the half-open ones: `flows` knows better.
    copied: RefCell<[HashSet<Key<A>>; 2]>,
    backends: Vec<OnceCell<Option<Backend>>>,
    next_hops: Vec<OnceCell<Option<NextHop>>>,
    cursors: RefCell<HashMap<u32, u32>>,
    now: u64,
    steps: RefCell<Vec<Step>>,
}

const ESTABLISHED: usize = 0;
const HALF_OPEN: usize = 1;

impl<'s, A: Address + Hash, S: Source<A>> Overlay<'s, A, S>
where
    HostTables: Tables<A>,
{
    /// `now`: nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn new(source: &'s S, now: u64) -> Self {
        let flows = HostTables::default();
        flows.set_clock(now);
        Self {
            source,
            flows,
            copied: RefCell::default(),
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

    /// Makes sure that `flows` holds what the source does under this key, or what was made of it since.
    fn copy(&self, table: usize, key: &Key<A>) {
        if !self.copied.borrow_mut()[table].insert(*key) {
            return;
        }
        let found =
            if table == ESTABLISHED { self.source.established(key) } else { self.source.half_open(key) };
        if let Some(mut flow) = found {
            let flow = FlowRef::from_mut(&mut flow);
            let inserted = if table == ESTABLISHED {
                self.flows.insert_established(key, flow)
            } else {
                self.flows.insert_half_open(key, flow)
            };
            assert!(inserted, "room for the few entries that one packet touches");
        }
    }
}

impl<A: Address + Hash, S: Source<A>> Tables<A> for Overlay<'_, A, S>
where
    HostTables: Tables<A>,
{
    fn established(&self, key: &Key<A>) -> Option<FlowRef<'_, A>> {
        self.copy(ESTABLISHED, key);
        self.flows.established(key)
    }

    fn half_open(&self, key: &Key<A>) -> Option<FlowRef<'_, A>> {
        self.copy(HALF_OPEN, key);
        self.flows.half_open(key)
    }

    fn insert_established(&self, key: &Key<A>, flow: FlowRef<'_, A>) -> bool {
        self.copy(ESTABLISHED, key);
        self.flows.insert_established(key, flow)
    }

    fn insert_half_open(&self, key: &Key<A>, flow: FlowRef<'_, A>) -> bool {
        self.copy(HALF_OPEN, key);
        self.flows.insert_half_open(key, flow)
    }

    fn replace_half_open(&self, key: &Key<A>, flow: FlowRef<'_, A>) -> bool {
        self.copy(HALF_OPEN, key);
        self.flows.replace_half_open(key, flow)
    }

    fn remove_established(&self, key: &Key<A>) {
        self.copy(ESTABLISHED, key);
        self.flows.remove_established(key);
    }

    fn remove_half_open(&self, key: &Key<A>) {
        self.copy(HALF_OPEN, key);
        self.flows.remove_half_open(key);
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

    fn count_opened(&self, _backend: u32, _rung: Rung) {}

    fn work(&self) -> Option<&Work<A>> {
        self.flows.work()
    }

    fn handle_off_path(&self) -> off_path::Code {
        off_path::handle(self)
    }

    fn open(&self) -> off_path::Code {
        off_path::open(self)
    }

    fn choose(&self) -> u32 {
        open::choose(self)
    }

    fn reserve_port(&self) -> u32 {
        open::reserve_port(self)
    }

    fn random(&self) -> u32 {
        balance::mix(self.now) as u32
    }

    fn precise_now(&self) -> u64 {
        Tables::<A>::precise_now(&self.flows)
    }

    fn note(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}

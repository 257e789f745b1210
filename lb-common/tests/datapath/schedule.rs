//! Schedules: threads of which one at a time may go on, from one operation on the tables to the next.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard};

use lb_common::host::HostTables;
use lb_common::table::{self, SetRef};
use lb_common::tables::{Backend, NextHop, Service, ServiceKey, Settings, Window};
use lb_common::work::Work;
use lb_common::{Rung, Tables, V4, V6, event, off_path, open};

/// More operations than any packet needs, for all threads together.
const MAX_STEPS: usize = 2_000;

/// Who may go on, and for how long.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// This thread begins, and at these operations (counted over all threads) the next one takes over.
    Switches { first: usize, at: Vec<usize> },
    /// Before each operation the next of these is taken, modulo the number of threads that have not finished.
    Draws(Vec<usize>),
}

struct State {
    turn: usize,
    unfinished: Vec<usize>,
    steps: usize,
}

struct Scheduler {
    plan: Plan,
    state: Mutex<State>,
    moved: Condvar,
}

impl Scheduler {
    fn new(threads: usize, plan: Plan) -> Self {
        let turn = match &plan {
            Plan::Switches { first, .. } => first % threads,
            Plan::Draws(draws) => draws.first().unwrap_or(&0) % threads,
        };
        let state = State { turn, unfinished: (0..threads).collect(), steps: 0 };
        Self { plan, state: Mutex::new(state), moved: Condvar::new() }
    }

    fn wait_for_turn(&self, thread: usize) -> MutexGuard<'_, State> {
        let state = self.state.lock().expect("no panic while locked");
        self.moved.wait_while(state, |state| state.turn != thread).expect("no panic while locked")
    }

    /// An operation of `thread` is to come.
    fn step(&self, thread: usize) {
        let mut state = self.wait_for_turn(thread);
        let step = state.steps;
        state.steps += 1;
        let at = state.unfinished.iter().position(|other| *other == thread).expect("unfinished");
        let next = match &self.plan {
            Plan::Switches { at: switches, .. } => at + switches.contains(&step) as usize,
            Plan::Draws(draws) => draws.get(step).copied().unwrap_or(at),
        };
        state.turn = state.unfinished[next % state.unfinished.len()];
        self.moved.notify_all();
        drop(state);
        assert!(step < MAX_STEPS, "no end in sight");
        drop(self.wait_for_turn(thread));
    }
}

/// Hands on the turn when a thread ends, even by a panic.
struct Finish<'s>(&'s Scheduler, usize);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().expect("no panic while locked");
        state.unfinished.retain(|thread| *thread != self.1);
        if state.turn == self.1
            && let Some(next) = state.unfinished.first()
        {
            state.turn = *next;
        }
        self.0.moved.notify_all();
    }
}

/// The tables as one packet sees them: something may happen before each operation on what others change.
pub(crate) struct Interleaved<'s> {
    pub(crate) tables: &'s HostTables,
    pub(crate) before: &'s dyn Fn(),
}

impl Interleaved<'_> {
    fn inner<A: lb_common::Address>(&self) -> &HostTables
    where
        HostTables: Tables<A>,
    {
        (self.before)();
        self.tables
    }
}

macro_rules! interleaved {
    ($address:ty) => {
        impl Tables<$address> for Interleaved<'_> {
            fn flow_sets(&self) -> u32 {
                Tables::<$address>::flow_sets(self.tables)
            }
            fn seed(&self) -> u64 {
                Tables::<$address>::seed(self.tables)
            }
            fn occupy(&self, set: u32) {
                Tables::<$address>::occupy(self.tables, set)
            }
            fn flow_set(&self, index: u32) -> Option<SetRef<'_, $address>> {
                self.inner::<$address>().flow_set(index)
            }
            fn has_ordered_stores(&self) -> bool {
                Tables::<$address>::has_ordered_stores(self.tables)
            }
            fn between(&self) {
                (self.before)();
            }
            fn count_closed(&self) {
                Tables::<$address>::count_closed(self.inner::<$address>());
            }
            fn finish(&self, how: u32) -> off_path::Code {
                off_path::finish::<$address, _>(self, how)
            }
            fn seek(&self) -> u32 {
                table::seek::<$address, _>(self)
            }
            fn insert(&self, which: u32) -> u32 {
                table::insert::<$address, _>(self, which)
            }
            fn settle(&self, set: u32, tag: u32, how: u32) -> u32 {
                table::settle::<$address, _>(self, set, tag, how)
            }
            fn live(&self) -> u64 {
                Tables::<$address>::live(self.inner::<$address>())
            }
            fn count_opened(&self, backend: u32, service: u32, rung: Rung) {
                Tables::<$address>::count_opened(self.inner::<$address>(), backend, service, rung)
            }
            fn leave(&self, backend: u32) {
                Tables::<$address>::leave(self.inner::<$address>(), backend)
            }
            fn active(&self, backend: u32) -> u64 {
                Tables::<$address>::active(self.inner::<$address>(), backend)
            }
            fn is_full(&self, backend: &Backend) -> bool {
                Tables::<$address>::is_full(self.inner::<$address>(), backend)
            }
            fn count_failed(&self, backend: u32, unanswered: bool) {
                Tables::<$address>::count_failed(self.inner::<$address>(), backend, unanswered)
            }
            fn record(&self, kind: u32) -> u32 {
                event::record::<$address, _>(self, kind)
            }

            // What follows belongs to the thread, or is the agent's, who is not here.
            fn service(&self, key: &ServiceKey<$address>) -> Option<Service> {
                self.tables.service(key)
            }
            fn window(&self, cluster: u32) -> Option<Window> {
                Tables::<$address>::window(self.tables, cluster)
            }
            fn cursor(&self, cluster: u32) -> u32 {
                Tables::<$address>::cursor(self.tables, cluster)
            }
            fn set_cursor(&self, cluster: u32, position: u32) {
                Tables::<$address>::set_cursor(self.tables, cluster, position)
            }
            fn slot(&self, index: u32) -> Option<u32> {
                Tables::<$address>::slot(self.tables, index)
            }
            fn backend(&self, index: u32) -> Option<&Backend> {
                Tables::<$address>::backend(self.tables, index)
            }
            fn next_hop(&self, index: u32) -> Option<&NextHop> {
                Tables::<$address>::next_hop(self.tables, index)
            }
            fn route(&self, address: $address) -> Option<u32> {
                self.tables.route(address)
            }
            fn snat_address(&self, index: u32) -> Option<$address> {
                self.tables.snat_address(index)
            }
            fn snat_port(&self, index: u32) -> Option<u16> {
                Tables::<$address>::snat_port(self.tables, index)
            }
            fn settings(&self) -> Option<Settings> {
                Tables::<$address>::settings(self.tables)
            }
            fn work(&self) -> Option<&Work<$address>> {
                self.tables.work()
            }
            fn handle_off_path(&self) -> off_path::Code {
                off_path::handle::<$address, _>(self)
            }
            fn open(&self, fresh: u32) -> off_path::Code {
                off_path::open::<$address, _>(self, fresh)
            }
            fn choose(&self) -> u32 {
                open::choose::<$address, _>(self)
            }
            fn reserve_port(&self) -> u32 {
                open::reserve_port::<$address, _>(self)
            }
            fn emit(&self, event: &event::Event<$address>) {
                self.tables.emit(event);
            }
            fn random(&self) -> u32 {
                Tables::<$address>::random(self.tables)
            }
            fn precise_now(&self) -> u64 {
                Tables::<$address>::precise_now(self.tables)
            }
        }
    };
}
interleaved!(V4);
interleaved!(V6);
/// Says this if a check fails: to be forgotten if none does.
pub(crate) struct Told(pub(crate) String);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("{}", self.0);
    }
}

/// Runs `work` in as many threads, each with its number and what it has to call before each operation; also says how
/// many operations there were.
pub(crate) fn at_once<R: Send>(
    threads: usize,
    plan: Plan,
    work: &(dyn Fn(usize, &dyn Fn()) -> R + Sync),
) -> (Vec<R>, usize) {
    let scheduler = Scheduler::new(threads, plan);
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let scheduler = &scheduler;
                scope.spawn(move || {
                    let _finish = Finish(scheduler, thread);
                    work(thread, &|| scheduler.step(thread))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let steps = scheduler.state.lock().expect("no panic while locked").steps;
    (results, steps)
}

/// Calls `run`, which says how many operations it took, for every schedule with up to two switches between the threads,
/// besides those at their ends.
pub(crate) fn each_plan(threads: usize, run: impl Fn(Plan) -> usize) {
    for first in 0..threads {
        let steps = run(Plan::Switches { first, at: vec![] });
        for one in 0..steps {
            for two in one..steps {
                let at = if one == two { vec![one] } else { vec![one, two] };
                run(Plan::Switches { first, at });
            }
        }
    }
}

/// Runs `work` once for each of its operations, before which the whole `story` takes place in another thread, and then
/// `check`.
pub(crate) fn interrupted<S: Sync, R>(
    start: &dyn Fn() -> S,
    work: &dyn Fn(&S, &dyn Fn()) -> R,
    story: &(dyn Fn(&S) + Sync),
    check: &dyn Fn(&S, R),
) {
    let mut at = 0;
    loop {
        let (start, step) = (start(), Cell::new(0));
        let result = work(&start, &|| {
            let now = step.replace(step.get() + 1);
            if now == at {
                // The room to work in is the thread's, hence another one.
                std::thread::scope(|scope| {
                    let start = &start;
                    scope.spawn(move || story(start));
                });
            }
        });
        if step.get() <= at {
            break;
        }
        check(&start, result);
        at += 1;
    }
    assert!(at > 3, "no more than {at} operations");
}

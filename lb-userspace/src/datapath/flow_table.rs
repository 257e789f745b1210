//! The flow tables as the agent sees them: mapped, so that a listing or a sweep costs no system call for each entry.
//!
//! Pages of a mapping count as memory of the process, so not all of a table is mapped at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use lb_common::table::{self, FlowSet, Place, SetRef, WAYS};
use lb_common::{Address, Flow, FlowRef, Key};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::datapath::mapped::Mapped;

/// Bytes of a window are a multiple of this: whole pages, and whole sets of either family.
const UNIT: usize = 3 << 12;
/// Windows for a pass over the whole table: 12 MiB.
const PASS: usize = UNIT << 10;
/// Windows for a look at one set: 48 KiB.
const LOOK: usize = UNIT << 2;

/// Flows whose other direction is looked for together.
const BATCH: usize = 64;

/// A flow table.
pub struct FlowTable<A> {
    map: MapData,
    sets: u32,
    seed: u64,
    /// `None`: any may be.
    occupied: Option<Occupied>,
    family: PhantomData<A>,
}

/// Which groups of sets may have entries, as the programs note it.
#[derive(Clone)]
pub struct Occupied {
    words: Arc<Mapped<u64>>,
    /// The family's first word.
    first: u32,
}

impl Occupied {
    /// Those of the family with that index in [`lb_common::tables::names::LIVE`].
    pub fn new(words: Arc<Mapped<u64>>, family: u32) -> Self {
        Self { words, first: family * table::GROUP_WORDS }
    }

    fn word(&self, group: u32) -> &AtomicU64 {
        self.words.word(self.first + group / 64, 0)
    }

    fn has(&self, group: u32) -> bool {
        self.word(group).load(Ordering::Relaxed) & 1 << (group % 64) != 0
    }

    fn set(&self, group: u32, occupied: bool) {
        let bit = 1 << (group % 64);
        if occupied {
            self.word(group).fetch_or(bit, Ordering::SeqCst);
        } else {
            self.word(group).fetch_and(!bit, Ordering::SeqCst);
        }
    }
}

impl<A: Address> FlowTable<A> {
    /// The table of a map, which hashes with `seed`. With `occupied`, empty parts of it cost nothing.
    pub fn new(map: MapData, seed: u64, occupied: Option<Occupied>) -> Result<Self> {
        const { assert!(UNIT.is_multiple_of(size_of::<FlowSet<A>>())) };
        const { assert!(table::group_sets::<A>() as usize * size_of::<FlowSet<A>>() == LOOK) };
        let info = map.info()?;
        ensure!(
            info.value_size() as usize == size_of::<FlowSet<A>>(),
            "map {} holds values of {} bytes, not sets of flows",
            info.name_as_str().unwrap_or_default(),
            info.value_size()
        );
        Ok(Self { sets: info.max_entries(), map, seed, occupied, family: PhantomData })
    }

    /// Number of sets.
    pub fn sets(&self) -> u32 {
        self.sets
    }

    /// A copy of a set.
    pub fn set(&self, index: u32) -> Result<FlowSet<A>> {
        ensure!(index < self.sets, "set {index} of {}", self.sets);
        let sets = (UNIT / size_of::<FlowSet<A>>()) as u32;
        let window = Window::<A>::new(self, index / sets * sets, sets)?;
        // SAFETY: inside the mapping; any bits are a set.
        Ok(unsafe { window.at(index).as_ptr().read_volatile() })
    }

    /// Flows that it is for.
    pub fn max_flows(&self) -> u32 {
        table::max_flows(self.sets)
    }

    /// Kernel memory, bytes.
    pub fn bytes(&self) -> u64 {
        self.sets as u64 * size_of::<FlowSet<A>>() as u64
    }

    /// Calls `visit` with a copy of each entry. Those that come or go meanwhile may be seen or not.
    pub fn for_each(&self, mut visit: impl FnMut(&Flow<A>)) -> Result<()> {
        self.try_for_each(|flow| {
            visit(flow);
            Ok(())
        })
    }

    /// The same up to the first error.
    pub fn try_for_each(&self, visit: impl FnMut(&Flow<A>) -> Result<()>) -> Result<()> {
        self.visit(visit, false)
    }

    /// The same, and notes which parts of the table are empty. Not while another table is taking its place: the notes are
    /// of both.
    pub fn for_each_tidying(&self, mut visit: impl FnMut(&Flow<A>)) -> Result<()> {
        let visit = |flow: &Flow<A>| {
            visit(flow);
            Ok(())
        };
        self.visit(visit, true)
    }

    fn visit(&self, mut visit: impl FnMut(&Flow<A>) -> Result<()>, tidy: bool) -> Result<()> {
        let group_sets = table::group_sets::<A>();
        for groups in self.occupied_groups() {
            let (first, end) = (groups.start * group_sets, (groups.end * group_sets).min(self.sets));
            let window = Window::<A>::new(self, first, end - first)?;
            for group in groups {
                let sets = group * group_sets..((group + 1) * group_sets).min(self.sets);
                let mut used = false;
                for set in sets.clone().map(|index| window.set(index)).filter(|set| !set.is_empty()) {
                    used = true;
                    for way in 0..WAYS {
                        if let Some(flow) = set.flow(way).and_then(copy) {
                            visit(&flow)?;
                        }
                    }
                }
                if tidy && !used {
                    self.vacate(group, sets.map(|index| window.set(index)));
                }
            }
        }
        Ok(())
    }

    /// Groups of sets that may have entries, in runs that are to be mapped together.
    fn occupied_groups(&self) -> Vec<Range<u32>> {
        const RUN: u32 = (PASS / LOOK) as u32;
        let groups = self.sets.div_ceil(table::group_sets::<A>());
        let mut runs: Vec<Range<u32>> = Vec::new();
        for group in (0..groups).filter(|group| self.occupied.as_ref().is_none_or(|of| of.has(*group))) {
            match runs.last_mut() {
                Some(run) if run.end == group && run.len() < RUN as usize => run.end += 1,
                _ => runs.push(group..group + 1),
            }
        }
        runs
    }

    /// Notes that there are no entries in a group; a program may put one in meanwhile.
    fn vacate<'t>(&self, group: u32, mut sets: impl Iterator<Item = SetRef<'t, A>>)
    where
        A: 't,
    {
        let Some(occupied) = &self.occupied else { return };
        occupied.set(group, false);
        // Who puts an entry in looks at the bit after that.
        fence(Ordering::SeqCst);
        if sets.any(|set| !set.is_empty()) {
            occupied.set(group, true);
        }
    }

    /// Calls `visit` with copies of the entry of each flow's direction from the client and, unless it has just come or gone,
    /// of the other direction's. Maps all of the table for as long as that takes.
    pub fn for_each_flow(&self, mut visit: impl FnMut(&Flow<A>, Option<&Flow<A>>)) -> Result<()> {
        let whole = Window::<A>::new(self, 0, self.sets)?;
        let mut batch = Vec::with_capacity(BATCH + WAYS);
        for index in 0..self.sets {
            let set = whole.set(index);
            if !set.is_empty() {
                let flows = (0..WAYS).filter_map(|way| set.flow(way).and_then(copy));
                batch.extend(flows.filter(|flow| flow.is_forward() && !flow.is_tombstone()));
            }
            if batch.len() < BATCH && index + 1 < self.sets {
                continue;
            }
            // The processor waits for the sets of all of these at once, and not for one after the other.
            let places = batch.iter().map(|flow| Place::of(&flow.out.reversed(), self.seed, self.sets));
            black_box(places.filter(|place| whole.set(place.first).is_empty()).count());
            for flow in batch.drain(..) {
                let back =
                    table::find_in(&flow.out.reversed(), self.seed, self.sets, |set| Some(whole.set(set)));
                let back = back.and_then(copy).filter(|back| back.generation() == flow.generation());
                visit(&flow, back.as_ref());
            }
        }
        Ok(())
    }

    /// A copy of each entry.
    pub fn entries(&self) -> Result<Vec<Flow<A>>> {
        let mut entries = Vec::new();
        self.for_each(|flow| entries.push(*flow))?;
        Ok(entries)
    }

    /// For looking at single entries.
    pub fn look(&self) -> Look<'_, A> {
        self.look_by(LOOK)
    }

    /// For looking at many entries: in the end all of the table is mapped.
    pub fn look_everywhere(&self) -> Look<'_, A> {
        self.look_by(PASS)
    }

    /// By windows of so many bytes.
    fn look_by(&self, bytes: usize) -> Look<'_, A> {
        let sets = (bytes / size_of::<FlowSet<A>>()) as u32;
        Look { table: self, sets, windows: RefCell::default() }
    }
}

/// Access to single entries of a table. Keeps mapped what was looked at.
pub struct Look<'t, A> {
    table: &'t FlowTable<A>,
    /// Of a window.
    sets: u32,
    windows: RefCell<BTreeMap<u32, Box<Window<A>>>>,
}

impl<'t, A: Address> Look<'t, A> {
    /// The table.
    pub fn table(&self) -> &'t FlowTable<A> {
        self.table
    }

    /// The entry of a key, as it is now.
    pub fn find(&self, key: &Key<A>) -> Result<Option<Flow<A>>> {
        self.reach(key)?;
        let FlowTable { sets, seed, .. } = *self.table;
        Ok(table::find_in(key, seed, sets, |index| self.mapped(index)).and_then(copy))
    }

    /// Takes an entry out, if its state is still that of `flow`; whether it was.
    pub fn remove(&self, flow: &Flow<A>) -> Result<bool> {
        self.reach(&flow.key)?;
        let FlowTable { sets, seed, .. } = *self.table;
        Ok(table::remove_in(&flow.key, flow.word, u64::MAX, seed, sets, |index| self.mapped(index)))
    }

    /// Puts an entry in whose key is not there; whether it is now: there may be no room, or somebody else was faster.
    pub fn insert(&self, flow: &Flow<A>) -> Result<bool> {
        self.reach(&flow.key)?;
        let FlowTable { sets, seed, .. } = *self.table;
        if let Some(occupied) = &self.table.occupied {
            let place = Place::of(&flow.key, seed, sets);
            for set in [place.first, place.second(sets)] {
                occupied.set(set / table::group_sets::<A>(), true);
            }
        }
        let mut flow = *flow;
        Ok(table::insert_in(FlowRef::from_mut(&mut flow), seed, sets, |index| self.mapped(index)))
    }

    /// Brings the entry of a key up to `old`, see [`FlowRef::follow`]; whether there is one.
    pub fn follow(&self, old: &Flow<A>, revived: bool) -> Result<bool> {
        self.reach(&old.key)?;
        let FlowTable { sets, seed, .. } = *self.table;
        let found = table::find_in(&old.key, seed, sets, |index| self.mapped(index));
        Ok(found.map(|flow| flow.follow(old, revived)).is_some())
    }

    /// Maps both sets of a key.
    fn reach(&self, key: &Key<A>) -> Result<()> {
        let place = Place::of(key, self.table.seed, self.table.sets);
        self.map(place.first)?;
        self.map(place.second(self.table.sets))
    }

    fn map(&self, set: u32) -> Result<()> {
        let sets = self.sets;
        let mut windows = self.windows.borrow_mut();
        if let std::collections::btree_map::Entry::Vacant(vacant) = windows.entry(set / sets) {
            vacant.insert(Box::new(Window::new(self.table, set / sets * sets, sets)?));
        }
        Ok(())
    }

    fn mapped(&self, set: u32) -> Option<SetRef<'_, A>> {
        let windows = self.windows.borrow();
        let window: *const Window<A> = &raw const **windows.get(&(set / self.sets))?;
        // SAFETY: windows are boxed and never taken out as long as `self` lives.
        Some(unsafe { &*window }.set(set))
    }
}

/// A consistent copy of an entry; `None`: there is none.
fn copy<A: Address>(flow: FlowRef<'_, A>) -> Option<Flow<A>> {
    if flow.seen() == 0 {
        return None;
    }
    let copy = *flow.get();
    // Its state may have moved on, but it must be the same entry.
    (flow.is_current() && copy.generation() == flow.generation()).then_some(copy)
}

/// Some sets of a table, mapped.
struct Window<A> {
    base: NonNull<u8>,
    bytes: usize,
    first: u32,
    family: PhantomData<A>,
}

// SAFETY: memory shared with the kernel, which belongs to no thread; all access is volatile or atomic.
unsafe impl<A> Send for Window<A> {}

impl<A: Address> Window<A> {
    /// At most `sets` sets from `first`, which begins a unit.
    fn new(table: &FlowTable<A>, first: u32, sets: u32) -> Result<Self> {
        let sets = sets.min(table.sets - first);
        let page = rustix::param::page_size();
        let bytes = (sets as usize * size_of::<FlowSet<A>>()).next_multiple_of(page);
        let offset = first as u64 * size_of::<FlowSet<A>>() as u64;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                table.map.fd().as_fd(),
                offset,
            )
        }
        .context("mapping a flow table")?;
        let base = NonNull::new(base.cast()).context("mapping a flow table")?;
        Ok(Self { base, bytes, first, family: PhantomData })
    }

    fn at(&self, index: u32) -> NonNull<FlowSet<A>> {
        let offset = (index - self.first) as usize * size_of::<FlowSet<A>>();
        assert!(offset + size_of::<FlowSet<A>>() <= self.bytes, "set {index} outside of its window");
        // SAFETY: inside the mapping.
        unsafe { self.base.add(offset).cast() }
    }

    fn set(&self, index: u32) -> SetRef<'_, A> {
        // SAFETY: inside the mapping, which lives as long as `self`; everybody reaches sets by `SetRef`s.
        unsafe { SetRef::new(self.at(index)) }
    }
}

impl<A> Drop for Window<A> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which no reference outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

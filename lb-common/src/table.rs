//! The flow table: one array of sets, each with room for [`WAYS`] entries, and two sets in which an entry may lie.
//!
//! A look-up reads the tags of the first set, one cache line, and then the entry, all in one page; only where entries of
//! that set had to go to their second choice does it read those tags too. Measured beside BPF's own hash maps, which
//! touch bucket, element and value in different pages, that is what a packet of a large table costs.
//!
//! Who may change what, on several CPUs and from the agent at once:
//!
//! - [`Flow::word`] of an entry says whose it is. 0: nobody's, or somebody is writing it. Whoever swaps it from a value to
//!   0 owns the entry, writes the rest, and swaps the new word in last. So readers take the word first, and look at it
//!   again before they act on what they read ([`FlowRef::is_current`]).
//! - A way is taken by setting its tag from 0, and freed by clearing it, by whoever owns the entry.
//! - In a set no two entries have the same tag, so a look-up has one candidate. A second choice is the first one plus
//!   what the tag says, so that entries with the same tag in a set have the same two sets.
//! - Two inserts of one key must not both succeed: each takes a way first and then looks for the tag in another way of
//!   either set. If one is there that is the same key's, or nobody's yet, it gives its way back. Of two at once one may
//!   succeed or none, and nobody waits for anybody.

use core::marker::PhantomData;
use core::ptr::{NonNull, addr_of_mut};

use crate::address::{Address, stir_by};
use crate::atomic;
use crate::balance::scale;
use crate::flow::{Flow, FlowRef, Key, mark};
use crate::tables::Tables;
use crate::tcp;
use crate::work::Work;

/// Entries of a set.
pub const WAYS: usize = 10;
/// Entries of a set in a table that holds as many flows as it is made for. With two choices some 0.02 % of random flows
/// then find no room.
const LOAD: u32 = 8;
/// Up to here the first choice is taken whatever the second one looks like: most look-ups end in the first set.
const PREFERRED: u64 = 7;
/// How often a change of the tags is tried, when others change them too.
const TAG_TRIES: u32 = 4;
/// A flow without a packet for longer gives way to a new one where there is no room, nanoseconds. By default it would
/// have been ended before.
pub const IDLE_LIMIT: u64 = 3_600_000_000_000;
/// A half-open entry or a tombstone without a SYN for longer does not count any more, nanoseconds: Linux repeats a SYN
/// after 1, 2, 4, 8, 16 s, and a SYN-ACK alike.
pub const HALF_OPEN_LIMIT: u64 = 40_000_000_000;

/// The bit that every tag has.
const TAKEN: u64 = 0x8000;
/// A 1 in each of four 16-bit lanes.
const ONES: u64 = 0x0001_0001_0001_0001;
/// The highest bit of each lane.
const HIGH: u64 = 0x8000_8000_8000_8000;

/// Sets that a table for `max_flows` flows has, of two entries each. 256 bytes a flow for IPv4, 384 for IPv6.
pub const fn sets(max_flows: u32) -> u32 {
    let sets = max_flows.div_ceil(LOAD / 2);
    if sets < 2 { 2 } else { sets }
}

/// Flows that a table of so many sets is for.
pub const fn max_flows(sets: u32) -> u32 {
    sets * (LOAD / 2)
}

/// A set: the tags in the first 64 bytes, then the entries. 1,024 bytes for IPv4, 1,536 for IPv6.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct FlowSet<A> {
    /// A lane of 16 bits for each way, the rest 0. A tag's highest bit is 1; the lowest: this is the entry's second choice.
    pub tags: [u64; 3],
    /// Entries whose first choice this is but which lie in their second.
    pub strays: u64,
    /// Always 0, see `SetRef::zero`; fills the cache line.
    pub zero: [u64; 4],
    /// The entries.
    pub flows: [Flow<A>; WAYS],
}

/// Where an entry may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the first set.
    pub first: u32,
    /// Tag there; even. In the second set it is one more.
    pub tag: u64,
}

impl Place {
    /// Of a key, in a table of `sets` sets.
    #[inline(always)]
    pub fn of<A: Address>(key: &Key<A>, seed: u64, sets: u32) -> Self {
        let ports = key.source_port as u64 | (key.destination_port as u64) << 16;
        // With one factor for all, ports that follow each other would crowd: ten times as many flows found no room.
        let ports = ports.wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = stir_by(key.source.pair(key.destination, seed) ^ ports, 0xd6e8_feb8_6659_fd93);
        Self { first: scale((hash >> 32) as u32, sets), tag: hash & 0x7ffe | TAKEN }
    }

    /// Index of the second set.
    #[inline(always)]
    pub fn second(self, sets: u32) -> u32 {
        let distance = 1 + scale((self.tag as u32).wrapping_mul(0x9e37_79b1), sets - 1);
        let second = self.first as u64 + distance as u64;
        (if second >= sets as u64 { second - sets as u64 } else { second }) as u32
    }
}

/// A set in place, shared with other CPUs and with the agent.
pub struct SetRef<'t, A> {
    at: NonNull<FlowSet<A>>,
    table: PhantomData<&'t FlowSet<A>>,
}

impl<A> Clone for SetRef<'_, A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for SetRef<'_, A> {}

impl<'t, A: Address> SetRef<'t, A> {
    /// # Safety
    /// `at` is valid for reads and writes of a set for `'t`, and all accesses to it meanwhile go through `SetRef`s and
    /// `FlowRef`s.
    #[inline(always)]
    pub unsafe fn new(at: NonNull<FlowSet<A>>) -> Self {
        Self { at, table: PhantomData }
    }

    #[inline(always)]
    fn tags_at(self, word: usize) -> *mut u64 {
        // SAFETY: valid by the contract of `new`; `word` is below 3.
        unsafe { addr_of_mut!((*self.at.as_ptr()).tags).cast::<u64>().add(word) }
    }

    #[inline(always)]
    fn tags(self, word: usize) -> u64 {
        // SAFETY: as `tags_at`.
        unsafe { self.tags_at(word).read_volatile() }
    }

    /// Entries whose first choice this is but which lie in their second.
    #[inline(always)]
    fn strays(self) -> u64 {
        // SAFETY: valid by the contract of `new`.
        unsafe { addr_of_mut!((*self.at.as_ptr()).strays).read_volatile() }
    }

    /// One stray more, or fewer.
    #[inline(always)]
    pub fn add_strays(self, more: bool) {
        // SAFETY: valid by the contract of `new`; changed atomically alone.
        unsafe { atomic::add(addr_of_mut!((*self.at.as_ptr()).strays), if more { 1 } else { u64::MAX }) }
    }

    /// The way with this tag; [`WAYS`] or more: there is none.
    #[inline(always)]
    fn way(self, tag: u64) -> usize {
        let pattern = tag.wrapping_mul(ONES);
        let mut word = 0;
        while word < 3 {
            // Lanes that are equal become 0, and the lowest such lane is found by a borrow into its highest bit. Four
            // lanes in six instructions, and one path for the verifier whatever the way.
            let difference = self.tags(word) ^ pattern;
            let equal = difference.wrapping_sub(ONES) & !difference & HIGH;
            if equal != 0 {
                return (word * 4 + lowest_lane(equal)).wrapping_add(self.zero() as usize);
            }
            word += 1;
        }
        WAYS
    }

    /// The entry of a way, whatever is in it.
    #[inline(always)]
    pub fn flow(self, way: usize) -> Option<FlowRef<'t, A>> {
        // SAFETY: the contract of `new` is that of `FlowRef::new`.
        Some(unsafe { FlowRef::new(self.flow_at(way)?) })
    }

    /// The entry of a way that is the caller's to write over.
    #[inline(always)]
    fn room(self, way: usize) -> Option<FlowRef<'t, A>> {
        // SAFETY: as above.
        Some(unsafe { FlowRef::blank(self.flow_at(way)?) })
    }

    #[inline(always)]
    fn flow_at(self, way: usize) -> Option<NonNull<Flow<A>>> {
        if way >= WAYS {
            return None;
        }
        // SAFETY: inside the set.
        unsafe {
            let flow = addr_of_mut!((*self.at.as_ptr()).flows).cast::<Flow<A>>().add(way);
            Some(NonNull::new_unchecked(flow))
        }
    }

    /// Has the processor fetch the entry that most likely has this tag, or will have it, while it waits for the tags: one after
    /// the other, the two are most of what a look-up in a large table costs, and this saves a fifth of it.
    #[inline(always)]
    fn expect(self, tag: u64) {
        if let Some(at) = self.flow_at(preferred(tag)) {
            // SAFETY: inside the set; only for the access.
            unsafe { addr_of_mut!((*at.as_ptr()).word).read_volatile() };
        }
    }

    /// The entry with this tag and key.
    #[inline(always)]
    fn find(self, tag: u64, key: &Key<A>) -> Option<FlowRef<'t, A>> {
        self.expect(tag);
        let flow = self.flow(self.way(tag))?;
        (flow.seen() != 0 && flow.get().key.is(key)).then_some(flow)
    }

    /// Whether the entry of this way has that key.
    #[inline(always)]
    fn has(self, way: usize, key: &Key<A>) -> bool {
        match self.flow(way) {
            Some(flow) => flow.seen() != 0 && flow.get().key.is(key),
            None => false,
        }
    }

    /// Ways that are taken.
    #[inline(always)]
    fn used(self) -> u64 {
        let mut used = 0;
        let mut word = 0;
        while word < 3 {
            used += ((self.tags(word) & HIGH) >> 15).wrapping_mul(ONES) >> 48;
            word += 1;
        }
        used
    }

    /// Ways with this tag.
    #[inline(always)]
    fn count(self, tag: u64) -> u64 {
        let pattern = tag.wrapping_mul(ONES);
        let mut count = 0;
        let mut word = 0;
        while word < 3 {
            let difference = self.tags(word) ^ pattern;
            // Exact in each lane, unlike in `way`.
            let different = ((difference & !HIGH) + !HIGH) | difference;
            count += ((!different & HIGH) >> 15).wrapping_mul(ONES) >> 48;
            word += 1;
        }
        count
    }

    /// Takes a free way; [`WAYS`]: there is none.
    #[inline(always)]
    fn take_way(self, tag: u64) -> usize {
        let mut tries = 0;
        while tries < TAG_TRIES {
            let way = self.free_way_at(tag);
            if way >= WAYS || self.swap_tag(way, 0, tag) {
                return way;
            }
            tries += 1;
        }
        WAYS
    }

    /// The way that a tag is to be in if it is free, or the first free one; [`WAYS`] or more: there is none.
    #[inline(always)]
    fn free_way_at(self, tag: u64) -> usize {
        let preferred = preferred(tag);
        if self.tag(preferred) == 0 {
            return preferred.wrapping_add(self.zero() as usize);
        }
        let mut word = 0;
        while word < 3 {
            let free = !self.tags(word) & HIGH;
            if free != 0 {
                return (word * 4 + lowest_lane(free)).wrapping_add(self.zero() as usize);
            }
            word += 1;
        }
        WAYS
    }

    /// 0, which the verifier does not know: what it is added to is a number that it does not follow up.
    #[inline(always)]
    fn zero(self) -> u64 {
        // SAFETY: valid by the contract of `new`.
        unsafe { addr_of_mut!((*self.at.as_ptr()).zero).cast::<u64>().read_volatile() }
    }

    /// Changes the tag of a way, if it is `old`; whether it was.
    #[inline(always)]
    fn swap_tag(self, way: usize, old: u64, new: u64) -> bool {
        let (word, shift) = (way >> 2 & 3, (way & 3) as u32 * 16);
        if word > 2 {
            return false;
        }
        let mut tries = 0;
        while tries < TAG_TRIES {
            let tags = self.tags(word);
            if tags >> shift & 0xffff != old {
                return false;
            }
            let changed = tags & !(0xffff << shift) | new << shift;
            // SAFETY: as `tags_at`; changed atomically alone.
            if unsafe { atomic::compare_exchange(self.tags_at(word), tags, changed) } {
                return true;
            }
            tries += 1;
        }
        false
    }

    /// Frees a way. For who owns its entry.
    #[inline(always)]
    fn free_way(self, way: usize) {
        let (word, shift) = (way >> 2 & 3, (way & 3) as u32 * 16);
        if word < 3 {
            // SAFETY: as `tags_at`; changed atomically alone.
            unsafe { atomic::and(self.tags_at(word), !(0xffff << shift)) };
        }
    }

    /// Takes an entry, as it was seen, out of its way; whether it still was.
    #[inline(always)]
    fn free(self, way: usize, flow: FlowRef<'_, A>) -> bool {
        let owned = flow.claim();
        if owned {
            self.free_way(way);
        }
        owned
    }

    /// Whether no way is taken.
    #[cfg(feature = "user")]
    pub fn is_empty(self) -> bool {
        self.tags(0) | self.tags(1) | self.tags(2) == 0
    }

    /// The tag of a way; 0: it is free.
    #[inline(always)]
    fn tag(self, way: usize) -> u64 {
        self.tags(way >> 2 & 3) >> ((way & 3) * 16) & 0xffff
    }
}

/// The way where an entry with this tag lies if it was free: what is fetched before the tags are known.
#[inline(always)]
fn preferred(tag: u64) -> usize {
    (((tag >> 1 & 0x3fff) * WAYS as u64) >> 14) as usize
}

/// The number of the lowest lane whose highest bit is set in `mask`, which has others of those at the most.
#[inline(always)]
fn lowest_lane(mask: u64) -> usize {
    // All bits below the lowest one; the lanes that begin there are counted by the multiplication.
    let below = (mask & mask.wrapping_neg()).wrapping_sub(1) & ONES;
    (below.wrapping_mul(ONES) >> 48) as usize - 1
}

/// The entry of a key; where every nanosecond counts.
#[inline(always)]
pub fn find<'t, A: Address, T: Tables<A>>(tables: &'t T, key: &Key<A>) -> Option<FlowRef<'t, A>> {
    tables.between();
    find_in(key, tables.seed(), tables.flow_sets(), |index| tables.flow_set(index))
}

/// The entry of a key, by a function: with [`find`] at each place, the programs would be too much for the verifier.
#[inline(always)]
pub fn look_up<'t, A: Address, T: Tables<A>>(tables: &'t T, key: &Key<A>) -> Option<FlowRef<'t, A>> {
    *tables.work()?.sought.get_mut() = *key;
    let spot = tables.seek();
    if spot == NOWHERE {
        return None;
    }
    tables
        .flow_set(spot >> 4)?
        .flow((spot & 0xf) as usize)
        .filter(|flow| flow.seen() != 0 && flow.get().key.is(key))
}

/// What [`Tables::seek`] returns where there is no such entry.
const NOWHERE: u32 = u32::MAX;

/// What [`Tables::seek`] does: where the entry of the key in the work room lies, its set times 16 and its way.
#[inline(always)]
pub fn seek<A: Address, T: Tables<A>>(tables: &T) -> u32 {
    let Some(work) = tables.work() else { return NOWHERE };
    let (key, sets) = (work.sought.get(), tables.flow_sets());
    let place = Place::of(key, tables.seed(), sets);
    tables.between();
    let Some(first) = tables.flow_set(place.first) else { return NOWHERE };
    let way = first.way(place.tag);
    if first.has(way, key) {
        return place.first << 4 | way as u32 & 0xf;
    }
    if first.strays() == 0 {
        return NOWHERE;
    }
    let second = place.second(sets);
    let Some(set) = tables.flow_set(second) else { return NOWHERE };
    let way = set.way(place.tag | 1);
    if set.has(way, key) { second << 4 | way as u32 & 0xf } else { NOWHERE }
}

/// [`find`] in the sets that `set` gives.
#[inline(always)]
pub fn find_in<'t, A: Address>(
    key: &Key<A>,
    seed: u64,
    sets: u32,
    set: impl Fn(u32) -> Option<SetRef<'t, A>>,
) -> Option<FlowRef<'t, A>> {
    let place = Place::of(key, seed, sets);
    let first = set(place.first)?;
    if let Some(flow) = first.find(place.tag, key) {
        return Some(flow);
    }
    if first.strays() == 0 {
        return None;
    }
    set(place.second(sets))?.find(place.tag | 1, key)
}

/// Puts a copy of `flow`, whose key is not in the table, into the sets that `set` gives; whether it is there: not if there
/// is no room without another giving way, or if somebody else puts the same key there.
#[cfg(feature = "user")]
pub fn insert_in<'t, A: Address>(
    flow: FlowRef<'_, A>,
    seed: u64,
    sets: u32,
    set: impl Fn(u32) -> Option<SetRef<'t, A>>,
) -> bool {
    let place = Place::of(&flow.get().key, seed, sets);
    let (Some(first), Some(second)) = (set(place.first), set(place.second(sets))) else { return false };
    let first_usable = first.way(place.tag) >= WAYS;
    let second_usable = second.way(place.tag | 1) >= WAYS;
    let second_is_better = first.used() >= PREFERRED && first.used() > second.used();
    for use_second in [second_is_better, !second_is_better] {
        let (set, other, usable) =
            if use_second { (second, first, second_usable) } else { (first, second, first_usable) };
        let tag = place.tag | use_second as u64;
        let way = if usable { set.take_way(tag) } else { WAYS };
        let Some(room) = set.room(way) else { continue };
        if use_second {
            first.add_strays(true);
        }
        let rival = other.flow(other.way(tag ^ 1));
        if set.count(tag) == 1 && !rival.is_some_and(|rival| rival.may_have(&flow.get().key)) {
            room.publish(flow, false);
            return true;
        }
        if use_second {
            first.add_strays(false);
        }
        set.free_way(way);
        return false;
    }
    false
}

/// Sets of a group, of which one bit says whether there may be entries in it: 48 KiB, so that the agent can map each by
/// itself.
pub const fn group_sets<A: Address>() -> u32 {
    const GROUP: usize = 48 << 10;
    (GROUP / size_of::<FlowSet<A>>()) as u32
}

/// Flows that a table may be for, at the most.
pub const MAX_FLOWS: u32 = 4 << 20;

/// Words of a family that hold the bits of the groups of the largest table.
pub const GROUP_WORDS: u32 = 512;

const _: () = {
    assert!(sets(MAX_FLOWS).div_ceil(group_sets::<crate::V4>()) <= GROUP_WORDS * 64);
    assert!(sets(MAX_FLOWS).div_ceil(group_sets::<crate::V6>()) <= GROUP_WORDS * 64);
};

/// Which entry of the work room [`Tables::insert`] puts into the table, and [`Tables::settle`].
pub mod which {
    /// [`crate::work::Work::forward`].
    pub const FORWARD: u32 = 0;
    /// [`crate::work::Work::reverse`].
    pub const REVERSE: u32 = 1;
    /// For `settle`: by taking the place of another one.
    pub const EVICT: u32 = 2;
}

/// What [`Tables::insert`] came to, and [`Tables::settle`].
pub mod inserted {
    /// Not: the key is there, or somebody is about to put it there.
    pub const TAKEN: u32 = 0;
    /// It is in the table.
    pub const DONE: u32 = 1;
    /// Not: there is no room.
    pub const FULL: u32 = 2;
}

#[inline(always)]
fn chosen<A: Address>(work: &Work<A>, which: u32) -> FlowRef<'_, A> {
    let part = if which & which::REVERSE == 0 { &work.forward } else { &work.reverse };
    FlowRef::from_mut(part.get_mut())
}

/// What [`Tables::insert`] does: puts a copy of an entry of the work room into the table unless its key is there; see
/// [`inserted`]. Where there is no room the entry that is missed least gives way, see [`rank`].
#[inline(always)]
pub fn insert<A: Address, T: Tables<A>>(tables: &T, which: u32) -> u32 {
    use inserted::{FULL, TAKEN};
    let Some(work) = tables.work() else { return FULL };
    let sets = tables.flow_sets();
    let flow = chosen(work, which).get();
    let place = Place::of(&flow.key, tables.seed(), sets);
    tables.between();
    let Some(first) = tables.flow_set(place.first) else { return FULL };
    first.expect(place.tag);
    let in_first = first.flow(first.way(place.tag));
    if let Some(other) = in_first
        && other.may_have(&flow.key)
    {
        return TAKEN;
    }
    let (strays, used) = (first.strays(), first.used());
    // The common case: one set is all there is to look at.
    if in_first.is_none() && strays == 0 && used < PREFERRED {
        return tables.settle(place.first, place.tag as u32, which);
    }
    let second_index = place.second(sets);
    let Some(second) = tables.flow_set(second_index) else { return FULL };
    let in_second = second.flow(second.way(place.tag | 1));
    if let Some(other) = in_second
        && other.may_have(&flow.key)
    {
        return TAKEN;
    }
    let second_is_better = used >= PREFERRED && used > second.used();
    // First a free way in either set, then one in either that is made free.
    let mut turn = 0u32;
    while turn < 4 {
        let use_second = (turn & 1 == 1) != second_is_better;
        let usable = if use_second { in_second.is_none() } else { in_first.is_none() };
        if usable {
            let index = if use_second { second_index } else { place.first };
            let how = which | if turn < 2 { 0 } else { which::EVICT };
            let settled = tables.settle(index, place.tag as u32 | use_second as u32, how);
            if settled != FULL {
                return settled;
            }
        }
        turn += 1;
    }
    FULL
}

/// What [`Tables::settle`] does: writes a copy of an entry of the work room into a way of this set, a free one or that of
/// another entry, unless there is none, or somebody else puts the same key into the table; see [`inserted`].
#[inline(always)]
pub fn settle<A: Address, T: Tables<A>>(tables: &T, index: u32, tag: u32, how: u32) -> u32 {
    let (Some(set), Some(work)) = (tables.flow_set(index), tables.work()) else { return inserted::FULL };
    let flow = chosen(work, how);
    let tag = tag as u64;
    let way =
        if how & which::EVICT == 0 { set.take_way(tag) } else { evict(tables, set, tag, work.env.get().now) };
    let Some(room) = set.room(way) else { return inserted::FULL };
    tables.occupy(index);
    let is_stray = tag & 1 != 0;
    if is_stray {
        add_stray(tables, &flow.get().key, true);
    }
    tables.between();
    if set.count(tag) != 1 || is_contested(tables, Place { first: index, tag }, set, flow) {
        if is_stray {
            add_stray(tables, &flow.get().key, false);
        }
        set.free_way(way);
        return inserted::TAKEN;
    }
    tables.between();
    room.publish(flow, tables.has_ordered_stores());
    inserted::DONE
}

/// Whether the other set than `set`, in which a way was just taken, has the key by now, or somebody is putting an entry of
/// the same tag there.
#[inline(always)]
fn is_contested<A: Address, T: Tables<A>>(
    tables: &T,
    here: Place,
    set: SetRef<'_, A>,
    flow: FlowRef<'_, A>,
) -> bool {
    let sets = tables.flow_sets();
    let other = if here.tag & 1 != 0 {
        Place::of(&flow.get().key, tables.seed(), sets).first
    } else if set.strays() == 0 {
        return false;
    } else {
        here.second(sets)
    };
    match tables.flow_set(other) {
        Some(other) => {
            other.flow(other.way(here.tag ^ 1)).is_some_and(|other| other.may_have(&flow.get().key))
        }
        None => true,
    }
}

/// The first set of `key` has a stray more, or fewer.
#[inline(always)]
fn add_stray<A: Address, T: Tables<A>>(tables: &T, key: &Key<A>, more: bool) {
    let place = Place::of(key, tables.seed(), tables.flow_sets());
    if let Some(first) = tables.flow_set(place.first) {
        first.add_strays(more);
    }
}

/// Makes a way of a full set free for `tag` and owns its entry; [`WAYS`]: there is nothing that may go.
#[inline(always)]
fn evict<A: Address, T: Tables<A>>(tables: &T, set: SetRef<'_, A>, tag: u64, now: u64) -> usize {
    let mut best = NEVER << 4;
    let mut way = 0;
    while way < WAYS {
        if let Some(flow) = set.flow(way) {
            // The way goes along in the lowest bits, and what the verifier knows of the numbers is taken from it: it would
            // follow every order that the ways may have.
            let candidate = (rank(flow, now) << 4 | way as u64).wrapping_add(set.zero());
            best = (if candidate < best { candidate } else { best }).wrapping_add(set.zero());
        }
        way += 1;
    }
    if best >= NEVER << 4 {
        return WAYS;
    }
    let victim = (best & 0xf) as usize;
    tables.between();
    let Some(flow) = set.flow(victim) else { return WAYS };
    let old_tag = set.tag(victim);
    // As it was when it was chosen: by now the handshake may be complete, or another entry here.
    if rank(flow, now) << 4 | victim as u64 != best || !flow.claim() {
        return WAYS;
    }
    tables.between();
    if old_tag & 1 != 0 {
        add_stray(tables, &flow.get().key, false);
    }
    if flow.seen() & (mark::ESTABLISHED | mark::REVERSE) == mark::ESTABLISHED | mark::REVERSE {
        tables.count_closed();
    }
    if flow.seen() & (mark::ESTABLISHED | mark::REVERSE | mark::ENDED) == mark::ESTABLISHED {
        tables.leave(flow.get().backend as u32);
    }
    if !set.swap_tag(victim, old_tag, tag) {
        set.free_way(victim);
        return WAYS;
    }
    victim
}

/// Above all ranks.
const NEVER: u64 = 1 << 59;

/// What gives way first, where something has to: an ended flow, the oldest first; then a half-open one or a tombstone;
/// then the reverse entry of an ended flow that keeps its port at rest; then a flow idle beyond [`IDLE_LIMIT`].
/// [`NEVER`]: it stays.
#[inline(always)]
fn rank<A: Address>(flow: FlowRef<'_, A>, now: u64) -> u64 {
    let word = flow.seen();
    // Nobody's yet, or not any more.
    if word == 0 {
        return NEVER;
    }
    let class = if tcp::is_closing(word) {
        if tcp::must_rest(word) && word & mark::REVERSE != 0 { 2 } else { 0 }
    } else if word & mark::ESTABLISHED == 0 {
        1
    } else if now.wrapping_sub(flow.get().last_seen) as i64 > IDLE_LIMIT as i64 {
        3
    } else {
        return NEVER;
    };
    class << 52 | word >> mark::GENERATION_SHIFT
}

/// Writes `flow` over the entry `old` of the same key, as that was seen; whether it was still so.
#[inline(always)]
#[must_use]
pub fn replace<A: Address, T: Tables<A>>(tables: &T, old: FlowRef<'_, A>, flow: FlowRef<'_, A>) -> bool {
    if !old.claim() {
        return false;
    }
    tables.between();
    old.publish(flow, tables.has_ordered_stores());
    true
}

/// Takes the entry of a key out, if its word is `word` in the bits of `mask`; whether it was.
#[inline(always)]
pub fn remove<A: Address, T: Tables<A>>(tables: &T, key: &Key<A>, word: u64, mask: u64) -> bool {
    let Some(work) = tables.work() else { return false };
    *work.sought.get_mut() = *key;
    let spot = tables.seek();
    if spot == NOWHERE {
        return false;
    }
    let (Some(set), way) = (tables.flow_set(spot >> 4), (spot & 0xf) as usize) else { return false };
    let is_stray = set.tag(way) & 1 != 0;
    let Some(flow) = set.flow(way) else { return false };
    if (flow.seen() ^ word) & mask != 0 || !set.free(way, flow) {
        return false;
    }
    tables.between();
    if is_stray {
        add_stray(tables, work.sought.get(), false);
    }
    true
}

/// [`remove`] in the sets that `set` gives.
#[cfg(feature = "user")]
pub fn remove_in<'t, A: Address>(
    key: &Key<A>,
    word: u64,
    mask: u64,
    seed: u64,
    sets: u32,
    set: impl Fn(u32) -> Option<SetRef<'t, A>>,
) -> bool {
    let place = Place::of(key, seed, sets);
    let Some(first) = set(place.first) else { return false };
    let is_it = |flow: FlowRef<'_, A>| (flow.seen() ^ word) & mask == 0 && flow.get().key.is(key);
    let way = first.way(place.tag);
    if let Some(flow) = first.flow(way)
        && is_it(flow)
    {
        return first.free(way, flow);
    }
    let Some(second) = set(place.second(sets)) else { return false };
    let way = second.way(place.tag | 1);
    if let Some(flow) = second.flow(way)
        && is_it(flow)
        && second.free(way, flow)
    {
        first.add_strays(false);
        return true;
    }
    false
}

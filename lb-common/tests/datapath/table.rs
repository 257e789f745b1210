//! The flow table against a map that cannot be full, and by itself.

use std::collections::HashMap;
use std::ptr::NonNull;

use lb_common::flow::{generation_at, mark};
use lb_common::host::{HostTables, empty_flow};
use lb_common::table::{self, FlowSet, IDLE_LIMIT, Place, WAYS, inserted, which};
use lb_common::tcp::state;
use lb_common::{Env, Flow, FlowRef, Key, Rung, Tables, V4};
use proptest::prelude::*;

fn flow(number: u64, now: u64, marks: u64) -> Flow<V4> {
    let mut flow = empty_flow::<V4>();
    let hash = lb_common::balance::mix(number);
    flow.key = Key::new(V4(hash as u32), V4(7), (hash >> 32) as u16, 80);
    flow.word = generation_at(now + (number << 6)) | marks;
    flow.last_seen = now;
    flow.packets = number;
    flow
}

/// Through the work room, as the programs do.
fn insert(tables: &HostTables, flow: &Flow<V4>, now: u64) -> u32 {
    let work = Tables::<V4>::work(tables).expect("the host has one");
    work.set(&Env::new(Rung::Tc, 1, now), flow);
    Tables::<V4>::insert(tables, which::FORWARD)
}

fn tables(max_flows: u32) -> HostTables {
    let mut tables = HostTables::default();
    tables.v4.resize(max_flows);
    tables
}

fn entries(tables: &HostTables) -> Vec<Flow<V4>> {
    tables.v4.established_entries().into_iter().chain(tables.v4.half_open_entries()).collect()
}

fn sets(tables: &HostTables) -> Vec<FlowSet<V4>> {
    tables.v4.sets()
}

/// What holds after any history.
fn check(tables: &HostTables) {
    let sets = sets(tables);
    let count = sets.len() as u32;
    let mut strays = vec![0u64; sets.len()];
    for (index, set) in sets.iter().enumerate() {
        let lanes: Vec<u64> =
            (0..12).map(|way| set.tags[way / 4] >> (way % 4 * 16) & 0xffff).collect();
        assert_eq!(&lanes[WAYS..], [0, 0], "lanes without a way");
        for (way, &tag) in lanes.iter().enumerate().take(WAYS).filter(|(_, tag)| **tag != 0) {
            assert_eq!(lanes.iter().filter(|other| **other == tag).count(), 1, "a tag twice");
            let flow = &set.flows[way];
            let place = Place::of(&flow.key, tables.settings.seed, count);
            assert_eq!(tag & !1, place.tag);
            if tag & 1 == 0 {
                assert_eq!(index as u32, place.first);
            } else {
                assert_eq!(index as u32, place.second(count));
                strays[place.first as usize] += 1;
            }
        }
    }
    for (set, strays) in sets.iter().zip(strays) {
        assert_eq!(set.strays, strays);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Few sets and many keys, so that both choices and the end of room are common.
    #[test]
    fn it_is_a_map(
        steps in proptest::collection::vec((0u64..70, 0u8..4), 1..300),
        max_flows in prop::sample::select(vec![8u32, 12, 24]),
    ) {
        let tables = tables(max_flows);
        let mut model: HashMap<u64, u64> = HashMap::new();
        for (number, kind) in steps {
            let now = 1_000_000;
            let key = flow(number, now, mark::ESTABLISHED).key;
            match kind {
                0 | 1 => {
                    let entry = flow(number, now, mark::ESTABLISHED);
                    match insert(&tables, &entry, now) {
                        inserted::DONE => prop_assert!(model.insert(number, entry.word).is_none()),
                        inserted::TAKEN => prop_assert!(model.contains_key(&number)),
                        // Nothing established gives way.
                        _ => prop_assert!(!model.contains_key(&number) && model.len() >= WAYS),
                    }
                }
                2 => {
                    let removed = table::remove(&tables, &key, model.get(&number).copied().unwrap_or(1), u64::MAX);
                    prop_assert_eq!(removed, model.remove(&number).is_some());
                }
                _ => {
                    if let Some(old) = table::find(&tables, &key) {
                        let mut new = flow(number, now + (1 << 20), mark::ESTABLISHED);
                        new.packets = 99;
                        prop_assert!(table::replace(&tables, old, FlowRef::from_mut(&mut new)));
                        model.insert(number, new.word);
                    } else {
                        prop_assert!(!model.contains_key(&number));
                    }
                }
            }
            let found = table::find(&tables, &key).map(|flow| flow.seen());
            prop_assert_eq!(found, model.get(&number).copied());
        }
        check(&tables);
        prop_assert_eq!(entries(&tables).len(), model.len());
    }
}

#[test]
fn it_holds_as_many_random_flows_as_it_is_made_for() {
    const FLOWS: u32 = 1 << 14;
    let tables = tables(FLOWS);
    let mut lost = 0;
    // Two entries each.
    for number in 0..u64::from(2 * FLOWS) {
        lost += u32::from(insert(&tables, &flow(number, 1, mark::ESTABLISHED), 1) != inserted::DONE);
    }
    check(&tables);
    assert!(lost * 1000 < FLOWS, "{lost} of {} entries found no room", 2 * FLOWS);
    assert_eq!(entries(&tables).len() as u32, 2 * FLOWS - lost);
}

#[test]
fn the_least_missed_gives_way() {
    const NOW: u64 = 2 * IDLE_LIMIT;
    let both = state::CLIENT_FIN | state::BACKEND_FIN;
    // In the order in which they go.
    let kinds = [
        (mark::ESTABLISHED | both, NOW),
        (mark::ESTABLISHED | state::RESET, NOW),
        (0, NOW),
        (mark::TOMBSTONE, NOW),
        (mark::ESTABLISHED | mark::REVERSE | both | state::BACKEND_FIN_FIRST, NOW),
        (mark::ESTABLISHED, NOW - IDLE_LIMIT - 1),
    ];
    // Two sets, which are each other's second choice.
    let tables = tables(8);
    let mut number = 0;
    let mut fill = |tables: &HostTables, marks: u64, last_seen: u64| {
        loop {
            number += 1;
            let mut entry = flow(number, NOW, marks);
            entry.last_seen = last_seen;
            if insert(tables, &entry, NOW) == inserted::DONE {
                return entry;
            }
        }
    };
    let gone: Vec<_> = kinds.iter().map(|(marks, last_seen)| fill(&tables, *marks, *last_seen)).collect();
    while entries(&tables).len() < 2 * WAYS {
        fill(&tables, mark::ESTABLISHED, NOW);
    }
    let is_there = |entry: &Flow<V4>| table::find(&tables, &entry.key).is_some();
    // Newcomers look at the fuller set first, then at the other: of each set the first in order goes.
    let mut order = Vec::new();
    for _ in 0..gone.len() {
        let before: Vec<bool> = gone.iter().map(is_there).collect();
        fill(&tables, mark::ESTABLISHED, NOW);
        order.extend(gone.iter().enumerate().filter(|(n, entry)| before[*n] && !is_there(entry)).map(|(n, _)| n));
        check(&tables);
    }
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    // Only active ones are left: a newcomer finds no room.
    assert_eq!(entries(&tables).len(), 2 * WAYS);
    let full = (0..200).filter(|n| insert(&tables, &flow(10_000 + n, NOW, 0), NOW) == inserted::FULL).count();
    assert_eq!(full, 200);
}

#[test]
fn an_ended_flow_goes_before_a_half_open_one_and_the_older_first() {
    const NOW: u64 = 1 << 40;
    let tables = tables(8);
    let mut marks = [mark::ESTABLISHED | state::RESET, 0, 0].into_iter();
    let mut first = Vec::new();
    let mut number = 0;
    while entries(&tables).len() < 2 * WAYS {
        number += 1;
        let entry = flow(number, NOW, marks.next().unwrap_or(0));
        if insert(&tables, &entry, NOW) == inserted::DONE {
            first.push(entry);
        }
    }
    assert!(insert(&tables, &flow(1 << 20, NOW, 0), NOW) == inserted::DONE);
    let missing: Vec<_> =
        first.iter().filter(|entry| table::find(&tables, &entry.key).is_none()).map(|entry| entry.word).collect();
    assert_eq!(missing.len(), 1);
    // That of its set: the ended one if it was there, else the oldest.
    let set_of = |entry: &Flow<V4>| {
        sets(&tables).iter().position(|set| set.flows.iter().any(|other| other.key == entry.key && other.word != 0))
    };
    let newcomer = set_of(&flow(1 << 20, NOW, 0));
    let rest = first.iter().filter(|entry| set_of(entry) == newcomer);
    assert!(rest.clone().all(|entry| missing[0] < entry.word || entry.word & state::RESET == 0));
}

/// Threads that insert, find, update and remove the same few keys: never two entries of one key, never a torn one.
#[test]
fn many_at_once() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 20_000;
    let tables = tables(8);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let tables = &tables;
            scope.spawn(move || {
                let mut random = thread + 1;
                for round in 0..ROUNDS {
                    random = lb_common::balance::mix(random);
                    let number = random % 40;
                    let now = 1 + (round * THREADS + thread) * (1 << 20);
                    let mut entry = flow(number, now, mark::ESTABLISHED);
                    // The whole entry tells whose it is.
                    entry.packets = entry.word;
                    entry.end = entry.word;
                    match random >> 32 & 3 {
                        0 | 1 => _ = insert(tables, &entry, now),
                        2 => {
                            if let Some(found) = table::find(tables, &entry.key) {
                                let copy = *found.get();
                                if found.is_current() {
                                    assert_eq!((copy.packets, copy.end), (found.seen(), found.seen()));
                                }
                            }
                        }
                        _ => {
                            if let Some(found) = table::find(tables, &entry.key) {
                                let _ = table::remove(tables, &entry.key, found.seen(), u64::MAX);
                            }
                        }
                    }
                }
            });
        }
    });
    check(&tables);
    let keys: Vec<_> = entries(&tables).iter().map(|flow| flow.key).collect();
    let different: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(keys.len(), different.len());
}

#[test]
fn a_set_is_where_the_kernel_has_it() {
    // The programs compute with these.
    assert_eq!(size_of::<FlowSet<V4>>(), 1024);
    let set = lb_common::host::empty_set::<V4>();
    let base = NonNull::from(&set).addr().get();
    assert_eq!(NonNull::from(&set.flows).addr().get() - base, 64);
    assert_eq!(base % 64, 0);
}

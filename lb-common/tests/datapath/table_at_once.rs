//! The flow table under several CPUs at once: under schedules, and with threads that run freely.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_common::balance::mix;
use lb_common::flow::mark;
use lb_common::host::HostTables;
use lb_common::table::{self, Place, WAYS, inserted};
use lb_common::tcp::state;
use lb_common::{FlowRef, Tables, V4, V6};
use proptest::prelude::*;

use crate::schedule::{self, Interleaved, Plan};
use crate::table::{Family, NOW, check, entries, flow, insert, is_whole, key, tables};

/// A change of the table.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// A flow that is established.
    Insert(u64),
    /// A half-open entry.
    Open(u64),
    Remove(u64),
    /// What is there becomes established.
    Establish(u64),
}

/// A table and what has been done to it.
struct Scene {
    tables: HostTables,
    /// Of established entries: how many more were put in than taken out, by number.
    balance: Mutex<HashMap<u64, i32>>,
}

impl Scene {
    fn new(sets: u32) -> Self {
        Self { tables: tables::<V4>(sets), balance: Mutex::default() }
    }

    fn do_it<T: Tables<V4>>(&self, tables: &T, change: Change) {
        let add = |number: u64, count: i32| {
            *self.balance.lock().expect("no panic while locked").entry(number).or_default() += count;
        };
        match change {
            Change::Insert(number) => {
                let done = insert(tables, &flow::<V4>(number, NOW, mark::ESTABLISHED), NOW) == inserted::DONE;
                add(number, done as i32);
            }
            Change::Open(number) => _ = insert(tables, &flow::<V4>(number, NOW, 0), NOW),
            Change::Remove(number) => {
                if let Some(found) = table::look_up(tables, &key::<V4>(number))
                    && table::remove(tables, &key::<V4>(number), found.seen(), u64::MAX)
                    && found.seen() & mark::ESTABLISHED != 0
                {
                    add(number, -1);
                }
            }
            Change::Establish(number) => {
                if let Some(old) = table::look_up(tables, &key::<V4>(number))
                    && old.seen() & mark::ESTABLISHED == 0
                {
                    let mut entry = flow::<V4>(number, NOW, mark::ESTABLISHED);
                    if table::replace(tables, old, FlowRef::from_mut(&mut entry)) {
                        add(number, 1);
                    }
                }
            }
        }
    }

    /// Nothing is lost or there twice.
    fn check(&self) {
        check::<V4>(&self.tables);
        let there = entries::<V4>(&self.tables);
        for (number, count) in self.balance.lock().expect("no panic while locked").iter() {
            let key = key::<V4>(*number);
            let found = there.iter().filter(|flow| flow.key == key && flow.is_established()).count();
            assert_eq!(found as i32, *count, "entries of {number}");
        }
        assert!(there.iter().all(is_whole));
    }
}

/// Numbers of keys whose first choice of two sets is this one.
fn of_set(set: u32) -> impl Iterator<Item = u64> {
    (100..).filter(move |number| Place::of(&key::<V4>(*number), 0, 2).first == set)
}

/// Two sets with so many entries, the first one's oldest half-open.
fn filled(first: usize, second: usize) -> Scene {
    let scene = Scene::new(2);
    // In such an order that none is a stray.
    for (set, count) in [(0, first.min(7)), (1, second), (0, first.saturating_sub(7))] {
        let there = entries::<V4>(&scene.tables);
        let is_new = |number: &u64| there.iter().all(|flow| flow.key != key::<V4>(*number));
        for number in of_set(set).filter(is_new).take(count) {
            let change =
                if number == of_set(0).next().expect("no end") { Change::Open } else { Change::Insert };
            scene.do_it(&scene.tables, change(number));
        }
    }
    scene
}

/// Every change at each of its operations interrupted by every short story.
#[test]
fn a_slow_change() {
    let numbers: Vec<u64> =
        (0..100).filter(|number| Place::of(&key::<V4>(*number), 0, 2).first == 0).collect();
    let half_open = of_set(0).next().expect("no end");
    let (subject, other) = (numbers[0], numbers[1]);
    let single = [
        Change::Insert(subject),
        Change::Open(subject),
        Change::Remove(subject),
        Change::Insert(other),
        Change::Remove(other),
        Change::Remove(half_open),
        Change::Establish(half_open),
    ];
    let pairs = single.iter().flat_map(|one| single.map(|two| vec![*one, two]));
    let stories: Vec<Vec<Change>> = single.iter().map(|one| vec![*one]).chain(pairs).collect();
    let slow: [&[Change]; 4] = [
        &[Change::Insert(subject)],
        &[Change::Insert(subject), Change::Remove(subject)],
        &[Change::Open(subject), Change::Establish(subject)],
        &[Change::Remove(half_open), Change::Insert(subject)],
    ];
    for (first, second) in [(6, 0), (7, 0), (9, 10), (10, 0), (10, 10)] {
        for slow in slow {
            for story in &stories {
                schedule::interrupted(
                    &|| filled(first, second),
                    &|scene, before| {
                        let tables = Interleaved { tables: &scene.tables, before };
                        slow.iter().for_each(|change| scene.do_it(&tables, *change));
                    },
                    &|scene| story.iter().for_each(|change| scene.do_it(&scene.tables, *change)),
                    &|scene, ()| {
                        let told = schedule::Told(format!("{slow:?} during {story:?}, {first} and {second}"));
                        scene.check();
                        std::mem::forget(told);
                    },
                );
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    (0u64..24, 0u8..8).prop_map(|(number, kind)| match kind {
        0..3 => Change::Insert(number),
        3 | 4 => Change::Open(number),
        5 => Change::Establish(number),
        _ => Change::Remove(number),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any changes of four CPUs in any order of their operations.
    #[test]
    fn any_changes(
        before in proptest::collection::vec(change(), 0..60),
        changes in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 4),
        draws in proptest::collection::vec(0usize..4, 0..150),
        sets in 2u32..4,
    ) {
        let scene = Scene::new(sets);
        for change in before {
            scene.do_it(&scene.tables, change);
        }
        schedule::at_once(changes.len(), Plan::Draws(draws), &|thread, before| {
            let tables = Interleaved { tables: &scene.tables, before };
            changes[thread].iter().for_each(|change| scene.do_it(&tables, *change));
        });
        scene.check();
    }
}

/// Threads that insert, find, replace and remove the same few keys: never two entries of one key, never a torn one, no
/// way that nobody has.
fn run_freely<A: Family>(sets: u32, numbers: u64)
where
    HostTables: Tables<A>,
{
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 15_000;
    // In turn: active, ended, half-open and the reverse entry of an active one.
    const KINDS: [u64; 4] =
        [mark::ESTABLISHED, mark::ESTABLISHED | state::RESET, 0, mark::ESTABLISHED | mark::REVERSE];
    let tables = tables::<A>(sets);
    let (balance, looks) = (AtomicU64::new(0), AtomicU64::new(0));
    // What counts as live is what was put in, less what is taken out here or gives way in the table.
    let count = |word: u64, more: u64| {
        if word & (mark::ESTABLISHED | mark::REVERSE) == mark::ESTABLISHED | mark::REVERSE {
            balance.fetch_add(more, Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (tables, looks, count) = (&tables, &looks, &count);
            scope.spawn(move || {
                let mut random = thread + 1;
                for round in 0..ROUNDS {
                    random = mix(random);
                    let number = random % numbers;
                    let now = NOW + (round * THREADS + thread) * (1 << 20);
                    let mut entry = flow::<A>(number, now, KINDS[(random >> 16 & 3) as usize]);
                    let found = table::find(tables, &entry.key);
                    match (random >> 32 & 7, found) {
                        (0..3, _) => {
                            let done = insert(tables, &entry, now) == inserted::DONE;
                            count(entry.word, done as u64);
                        }
                        (3, Some(old)) => {
                            let done = table::replace(tables, old, FlowRef::from_mut(&mut entry)) as u64;
                            count(old.seen(), 0u64.wrapping_sub(done));
                            count(entry.word, done);
                        }
                        (4, Some(old)) => {
                            let done = table::remove(tables, &entry.key, old.seen(), u64::MAX) as u64;
                            count(old.seen(), 0u64.wrapping_sub(done));
                        }
                        (_, Some(found)) => {
                            let copy = *found.get();
                            if found.is_current() {
                                assert!(is_whole(&copy), "torn: {copy:?}");
                                assert!(copy.key == entry.key && copy.word == found.seen());
                                looks.fetch_add(1, Relaxed);
                            }
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    check::<A>(&tables);
    let there = entries::<A>(&tables);
    assert!(there.iter().all(is_whole));
    // `live` began at 0, so that it says what gave way.
    let live = balance.load(Relaxed).wrapping_add(Tables::<A>::live(&tables));
    let counted = there.iter().filter(|flow| flow.is_established() && !flow.is_forward()).count();
    assert_eq!(live, counted as u64);
    assert!(looks.load(Relaxed) > 100);
    assert!(there.len() <= WAYS * sets as usize);
}

/// Keys that always meet.
#[test]
fn threads_with_few_keys() {
    run_freely::<V4>(2, 3);
    run_freely::<V6>(2, 3);
}

/// More keys than there is room for.
#[test]
fn threads_without_room() {
    run_freely::<V4>(2, 40);
    run_freely::<V6>(3, 60);
}

//! The flow table against a map that cannot be full, and by itself.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::ptr::NonNull;

use lb_common::balance::mix;
use lb_common::flow::{generation_at, mark};
use lb_common::host::{FamilyTables, HostTables, empty_flow, empty_set};
use lb_common::table::{self, FlowSet, IDLE_LIMIT, Place, WAYS, inserted, sets, which};
use lb_common::tcp::state;
use lb_common::{Address, Env, Flow, FlowRef, Key, Rung, Tables, V4, V6};
use proptest::prelude::*;

/// The time of whatever happens, unless a test says otherwise.
pub(crate) const NOW: u64 = 4 * IDLE_LIMIT;
const BOTH_FINS: u64 = state::CLIENT_FIN | state::BACKEND_FIN;

/// A family with its tables on the host.
pub(crate) trait Family: Address + Hash + Debug + Send + Sync {
    fn of(tables: &HostTables) -> &FamilyTables<Self>;
    fn of_mut(tables: &mut HostTables) -> &mut FamilyTables<Self>;
}

impl Family for V4 {
    fn of(tables: &HostTables) -> &FamilyTables<Self> {
        &tables.v4
    }
    fn of_mut(tables: &mut HostTables) -> &mut FamilyTables<Self> {
        &mut tables.v4
    }
}

impl Family for V6 {
    fn of(tables: &HostTables) -> &FamilyTables<Self> {
        &tables.v6
    }
    fn of_mut(tables: &mut HostTables) -> &mut FamilyTables<Self> {
        &mut tables.v6
    }
}

/// A key like no other number's.
pub(crate) fn key<A: Family>(number: u64) -> Key<A> {
    let hash = mix(number);
    let address = |n: u64| {
        let (high, low) = (mix(hash ^ n), mix(hash ^ n ^ 1 << 32));
        A::from_words([high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32])
    };
    Key::new(address(1), address(2), (hash >> 32) as u16, (hash >> 48) as u16)
}

/// An entry of which every field tells whose it is and since when.
pub(crate) fn flow<A: Family>(number: u64, now: u64, marks: u64) -> Flow<A> {
    let mut flow = empty_flow::<A>();
    flow.key = key(number);
    flow.word = generation_at(now + (number << 6)) | marks;
    sign(&mut flow);
    flow.last_seen = now;
    flow
}

/// Fills the fields that do not matter to the table with what its word says.
fn sign<A: Family>(flow: &mut Flow<A>) {
    let [a, b, c, d, e, f, g, h] = mix(flow.word).to_le_bytes();
    flow.out = key(flow.word);
    flow.delta_l3 = u16::from_le_bytes([a, b]);
    flow.hop = u16::from_le_bytes([c, d]);
    flow.attempts = u16::from_le_bytes([e, f]);
    flow.mac = [c, d, e, f, g, h];
    flow.end = flow.word;
    flow.packets = mix(flow.word);
    flow.peer_isn = flow.word as u32;
}

/// Whether all of it was written at once.
pub(crate) fn is_whole<A: Family>(flow: &Flow<A>) -> bool {
    let mut whole = *flow;
    sign(&mut whole);
    let fields = |flow: &Flow<A>| {
        let small = (flow.delta_l3, flow.hop, flow.attempts, flow.mac, flow.peer_isn);
        (flow.out, small, flow.end, flow.packets)
    };
    fields(&whole) == fields(flow)
}

/// Through the work room, as the programs do.
pub(crate) fn insert<A: Address, T: Tables<A>>(tables: &T, flow: &Flow<A>, now: u64) -> u32 {
    tables.work().expect("the host has one").set(&Env::new(Rung::Tc, 1, now), flow);
    tables.insert(which::FORWARD)
}

/// A table of so many sets, nothing else.
pub(crate) fn tables<A: Family>(sets: u32) -> HostTables {
    let mut tables = HostTables::default();
    A::of_mut(&mut tables).resize(table::max_flows(sets));
    tables
}

pub(crate) fn entries<A: Family>(tables: &HostTables) -> Vec<Flow<A>> {
    let family = A::of(tables);
    family.established_entries().into_iter().chain(family.half_open_entries()).collect()
}

/// The tag of each way; 0: it is free.
fn lanes<A>(set: &FlowSet<A>) -> Vec<u64> {
    (0..12).map(|way| set.tags[way / 4] >> (way % 4 * 16) & 0xffff).collect()
}

/// What holds after any history, when all is quiet.
pub(crate) fn check<A: Family>(tables: &HostTables) {
    let sets = A::of(tables).sets();
    let count = sets.len() as u32;
    let mut strays = vec![0u64; sets.len()];
    for (index, set) in sets.iter().enumerate() {
        let lanes = lanes(set);
        assert_eq!(&lanes[WAYS..], [0, 0], "lanes without a way");
        assert_eq!(set.zero, [0; 4]);
        for (way, (&tag, flow)) in lanes.iter().zip(&set.flows).enumerate() {
            assert_eq!(tag != 0, flow.word != 0, "way {way} of set {index} is neither free nor taken");
            if tag == 0 {
                continue;
            }
            assert_eq!(lanes.iter().filter(|other| **other == tag).count(), 1, "a tag twice");
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
    let mut keys: HashMap<Key<A>, u64> = HashMap::new();
    for flow in entries::<A>(tables) {
        assert_eq!(keys.insert(flow.key, flow.word), None, "two entries with one key");
    }
}

/// What an insert may find of a key's two sets.
struct Sight {
    /// Of the first set and the second one.
    indices: [usize; 2],
    /// Whether no other entry there has the tag.
    usable: [bool; 2],
    used: [usize; 2],
}

impl Sight {
    fn of<A: Family>(key: &Key<A>, sets: &[FlowSet<A>]) -> Self {
        let count = sets.len() as u32;
        let place = Place::of(key, 0, count);
        assert_ne!(place.first, place.second(count));
        let indices = [place.first as usize, place.second(count) as usize];
        let lanes = indices.map(|index| lanes(&sets[index]));
        let usable = [0, 1].map(|n| !lanes[n].contains(&(place.tag | n as u64)));
        Self { indices, usable, used: lanes.map(|lanes| lanes.iter().filter(|tag| **tag != 0).count()) }
    }

    fn has_room(&self, n: usize) -> bool {
        self.usable[n] && self.used[n] < WAYS
    }
}

/// When an entry goes; the smallest first, `None` never.
fn turn<A: Family>(flow: &Flow<A>, now: u64) -> Option<(u32, u64)> {
    let has = |bits| flow.word & bits == bits;
    let is_ended = has(BOTH_FINS) || has(state::RESET);
    let keeps_its_port = has(state::BACKEND_FIN_FIRST | mark::REVERSE) && !has(state::RESET);
    let class = match (is_ended, has(mark::ESTABLISHED)) {
        (true, _) if keeps_its_port => 2,
        (true, _) => 0,
        (false, false) => 1,
        (false, true) if now.saturating_sub(flow.last_seen) > IDLE_LIMIT => 3,
        (false, true) => return None,
    };
    Some((class, flow.generation()))
}

/// Puts an entry in whose key is not there, and looks whether it came where it should and who went.
fn insert_and_check<A: Family>(tables: &HostTables, flow: &Flow<A>, now: u64) -> u32
where
    HostTables: Tables<A>,
{
    let (before, live) = (A::of(tables).sets(), Tables::<A>::live(tables));
    let sight = Sight::of(&flow.key, &before);
    let result = insert(tables, flow, now);
    let after = A::of(tables).sets();
    let gone: Vec<_> = before
        .iter()
        .zip(&after)
        .enumerate()
        .flat_map(|(index, (before, after))| {
            before.flows.iter().zip(&after.flows).map(move |(old, new)| (index, old, new))
        })
        .filter(|(_, old, new)| old.word != 0 && old.word != new.word)
        .map(|(index, old, _)| (index, *old))
        .collect();
    let last = |index: usize| before[index].flows.iter().filter_map(|flow| turn(flow, now)).min();
    match result {
        inserted::DONE => {
            let has_it = |n: &usize| {
                after[sight.indices[*n]]
                    .flows
                    .iter()
                    .any(|other| other.word == flow.word && other.key == flow.key)
            };
            let landed = [0, 1].into_iter().find(has_it).expect("in one of its sets");
            assert!(sight.usable[landed]);
            if let [(index, gone)] = gone[..] {
                assert!(!sight.has_room(0) && !sight.has_room(1), "there was room");
                assert_eq!(index, sight.indices[landed]);
                assert_eq!(turn(&gone, now), last(index));
                assert!(turn(&gone, now).is_some(), "{gone:?}");
                let was_counted = gone.word & mark::ESTABLISHED != 0 && gone.word & mark::REVERSE != 0;
                assert_eq!(live.wrapping_sub(Tables::<A>::live(tables)), was_counted as u64);
            } else {
                assert!(gone.is_empty());
                assert!(sight.has_room(landed));
                let is_free_to_choose = sight.has_room(0) && sight.has_room(1);
                assert!(!is_free_to_choose || landed == 0 || sight.used[0] > sight.used[1]);
                assert_eq!(live, Tables::<A>::live(tables));
            }
        }
        inserted::FULL => {
            assert!(gone.is_empty());
            for n in [0, 1].into_iter().filter(|n| sight.usable[*n]) {
                assert_eq!(sight.used[n], WAYS);
                assert_eq!(last(sight.indices[n]), None);
            }
        }
        _ => panic!("{:?} was not there", flow.key),
    }
    result
}

/// Numbers whose keys have the same place in a table of so many sets, so that one at the most fits into each set.
fn alike<A: Family>(sets: u32, count: usize) -> Vec<u64> {
    let place = |number| Place::of(&key::<A>(number), 0, sets);
    (0..).filter(|number| place(*number) == place(0)).take(count).collect()
}

/// Random steps beside a map.
fn is_a_map<A: Family>(steps: &[(u64, u8)], sets: u32, numbers: &[u64])
where
    HostTables: Tables<A>,
{
    let tables = tables::<A>(sets);
    let mut model: HashMap<u64, u64> = HashMap::new();
    for (step, (number, kind)) in steps.iter().enumerate() {
        let number = numbers[*number as usize % numbers.len()];
        let mut entry = flow::<A>(number, NOW + ((step as u64) << 24), mark::ESTABLISHED);
        match kind {
            0 | 1 if model.contains_key(&number) => {
                assert_eq!(insert(&tables, &entry, NOW), inserted::TAKEN);
            }
            0 | 1 => {
                if insert_and_check(&tables, &entry, NOW) == inserted::DONE {
                    model.insert(number, entry.word);
                }
            }
            2 => {
                let word = model.get(&number).copied().unwrap_or(1);
                assert!(!table::remove(&tables, &entry.key, word ^ mark::GENERATION, mark::GENERATION));
                let removed = table::remove(&tables, &entry.key, word, u64::MAX);
                assert_eq!(removed, model.remove(&number).is_some());
            }
            _ => match table::find(&tables, &entry.key) {
                Some(old) => {
                    assert!(table::replace(&tables, old, FlowRef::from_mut(&mut entry)));
                    assert!(!old.is_current());
                    assert!(
                        !table::replace(&tables, old, FlowRef::from_mut(&mut entry)),
                        "it is another one"
                    );
                    model.insert(number, entry.word);
                }
                None => assert!(!model.contains_key(&number)),
            },
        }
        for number in numbers {
            let key = key::<A>(*number);
            let found = table::find(&tables, &key);
            assert_eq!(found.map(FlowRef::seen), model.get(number).copied());
            assert_eq!(table::look_up(&tables, &key).map(FlowRef::seen), model.get(number).copied());
            assert!(found.is_none_or(|flow| flow.is_current() && is_whole(flow.get())));
        }
    }
    check::<A>(&tables);
    assert_eq!(entries::<A>(&tables).len(), model.len());
}

/// Marks and the time of the last packet of an entry of any kind.
fn kind() -> impl Strategy<Value = (u64, u64)> {
    let reverse = prop::sample::select(vec![0, mark::REVERSE]);
    let marks = prop_oneof![
        3 => Just(0),
        2 => Just(mark::ANSWERED | state::CHALLENGED),
        1 => Just(mark::TOMBSTONE),
        8 => Just(mark::ESTABLISHED),
        3 => (0u64..16).prop_map(|state| mark::ESTABLISHED | state),
    ];
    let idle = prop::sample::select(vec![0, IDLE_LIMIT, IDLE_LIMIT + 1, 2 * IDLE_LIMIT]);
    (marks, reverse, idle).prop_map(|(marks, reverse, idle)| (marks | reverse, NOW - idle))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Few sets and many keys, so that both choices and the end of room are common.
    #[test]
    fn it_is_a_map(
        steps in proptest::collection::vec((0u64..70, 0u8..4), 1..200),
        sets in 2u32..6,
        v6 in any::<bool>(),
    ) {
        let numbers: Vec<u64> = (0..70).collect();
        if v6 { is_a_map::<V6>(&steps, sets, &numbers) } else { is_a_map::<V4>(&steps, sets, &numbers) }
    }

    /// The oldest of what is missed least goes, and only where there is no room.
    #[test]
    fn who_gives_way(
        kinds in proptest::collection::vec((kind(), 0u64..1 << 20), 1..70),
        sets in 2u32..4,
        v6 in any::<bool>(),
    ) {
        fn run<A: Family>(kinds: &[((u64, u64), u64)], sets: u32)
        where
            HostTables: Tables<A>,
        {
            let tables = tables::<A>(sets);
            for (number, ((marks, last_seen), age)) in kinds.iter().enumerate() {
                let mut entry = flow::<A>(number as u64, NOW - (age << 20), *marks);
                entry.last_seen = *last_seen;
                insert_and_check(&tables, &entry, NOW);
            }
            check::<A>(&tables);
        }
        if v6 { run::<V6>(&kinds, sets) } else { run::<V4>(&kinds, sets) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// Keys that only the entries tell apart: two of them find room, and others between them.
    #[test]
    fn keys_with_one_tag(steps in proptest::collection::vec((0u64..12, 0u8..4), 1..200)) {
        static ALIKE: std::sync::OnceLock<Vec<u64>> = std::sync::OnceLock::new();
        let mut numbers = ALIKE.get_or_init(|| alike::<V4>(2, 4)).clone();
        numbers.extend(1..9);
        is_a_map::<V4>(&steps, 2, &numbers);
    }
}

/// How many entries of these keys find no room in a table that is made for half as many flows.
fn lost<A: Family>(keys: &[Key<A>]) -> usize
where
    HostTables: Tables<A>,
{
    let tables = tables::<A>(sets(keys.len() as u32 / 2));
    let mut lost = 0;
    for (number, key) in keys.iter().enumerate() {
        let mut entry = flow::<A>(number as u64, NOW, mark::ESTABLISHED);
        entry.key = *key;
        lost += (insert(&tables, &entry, NOW) != inserted::DONE) as usize;
    }
    check::<A>(&tables);
    assert_eq!(entries::<A>(&tables).len(), keys.len() - lost, "nothing established gave way");
    lost
}

/// Both entries of 99.9 % of the flows, be they random or as like each other as clients' and SNAT ports are.
#[test]
fn it_holds_as_many_flows_as_it_is_made_for() {
    fn address<A: Family>(low: u32) -> A {
        A::from_words(if A::V6 { [0x20, 0, 0, low.to_be()] } else { [low.to_be(), 0, 0, 0] })
    }
    fn run<A: Family>()
    where
        HostTables: Tables<A>,
    {
        const FLOWS: u32 = 1 << 15;
        let random: Vec<_> = (0..2 * u64::from(FLOWS)).map(key::<A>).collect();
        // Few clients with ports one after the other, to one VIP; and the way back, from few backends.
        let (vip, snat) = (address::<A>(0x0a00_0001), address::<A>(0x0a00_ff01));
        let alike: Vec<_> = (0..FLOWS)
            .flat_map(|n| {
                let (client, port) = (address(0xc000_0200 + (n & 7)), (1024 + (n >> 3)) as u16);
                let (backend, snat_port) = (address(0x0a01_0001 + n % 3), (20_000 + n / 3) as u16);
                [
                    Key::new(client, vip, port.to_be(), 80u16.to_be()),
                    Key::new(backend, snat, 8080u16.to_be(), snat_port.to_be()),
                ]
            })
            .collect();
        for keys in [random, alike] {
            let lost = lost(&keys);
            assert!(lost * 1000 < FLOWS as usize, "{lost} of {} entries found no room", keys.len());
        }
    }
    run::<V4>();
    run::<V6>();
}

/// One kind after the other, as newcomers come.
#[test]
fn the_least_missed_gives_way() {
    // In the order in which they go.
    let kinds = [
        (mark::ESTABLISHED | BOTH_FINS, NOW),
        (mark::ESTABLISHED | state::RESET, NOW),
        (0, NOW),
        (mark::TOMBSTONE, NOW),
        (mark::ESTABLISHED | mark::REVERSE | BOTH_FINS | state::BACKEND_FIN_FIRST, NOW),
        (mark::ESTABLISHED, NOW - IDLE_LIMIT - 1),
    ];
    // Two sets, which are each other's second choice. One of them has only active flows.
    let tables = tables::<V4>(2);
    let in_set = |set: u32| (0..).filter(move |number| Place::of(&key::<V4>(*number), 0, 2).first == set);
    let (mut of_first, mut of_second) = (in_set(0), in_set(1));
    let put = |number: Option<u64>, marks: u64, last_seen: u64| {
        let mut entry = flow::<V4>(number.expect("no end"), NOW, marks);
        entry.last_seen = last_seen;
        assert_eq!(insert_and_check(&tables, &entry, NOW), inserted::DONE);
        entry.key
    };
    let kinds = kinds.map(|(marks, last_seen)| put(of_first.next(), marks, last_seen));
    for _ in kinds.len()..7 {
        put(of_first.next(), mark::ESTABLISHED, NOW);
    }
    for _ in 0..WAYS {
        put(of_second.next(), mark::ESTABLISHED, NOW);
    }
    while entries::<V4>(&tables).len() < 2 * WAYS {
        put(of_first.next(), mark::ESTABLISHED, NOW);
    }
    for gone in 0..kinds.len() {
        put(of_second.next(), mark::ESTABLISHED, NOW);
        let there: Vec<_> = kinds.iter().map(|key| table::find(&tables, key).is_some()).collect();
        assert_eq!(there, (0..kinds.len()).map(|n| n > gone).collect::<Vec<_>>());
    }
    // Only active ones are left: a newcomer finds no room.
    for number in of_first.take(100).chain(of_second.take(100)) {
        assert_eq!(insert_and_check(&tables, &flow::<V4>(number, NOW, 0), NOW), inserted::FULL);
    }
    check::<V4>(&tables);
}

/// A long life in a table that is too small: whatever comes and goes, an active flow is found, and as it was.
#[test]
fn active_flows_stay() {
    const STEPS: u64 = 200_000;
    let tables = tables::<V4>(64);
    let mut active: HashMap<u64, u64> = HashMap::new();
    for step in 0..STEPS {
        let random = mix(step);
        let (number, now) = (random % 2_000, NOW + (step << 24));
        let key = key::<V4>(number);
        let is_active = random >> 32 & 3 == 0 && active.len() < 400;
        let marks = if is_active {
            mark::ESTABLISHED
        } else {
            (mark::ESTABLISHED * (random >> 34 & 1)) | state::RESET
        };
        match random >> 40 & 7 {
            0..4 => {
                let mut entry = flow::<V4>(number, now, marks);
                // Never idle.
                entry.last_seen = NOW + (STEPS << 24);
                let result = insert(&tables, &entry, now);
                assert!(result != inserted::DONE || !active.contains_key(&number));
                if is_active && result == inserted::DONE {
                    active.insert(number, entry.word);
                }
            }
            4 => {
                if let Some(old) = table::find(&tables, &key) {
                    assert!(table::remove(&tables, &key, old.seen(), mark::GENERATION));
                    assert!(active.remove(&number).is_none_or(|word| word == old.seen()));
                }
            }
            _ => {
                let found = table::find(&tables, &key).map(FlowRef::seen);
                assert!(active.get(&number).is_none_or(|word| found == Some(*word)));
            }
        }
        if step % 10_000 == 0 {
            check::<V4>(&tables);
        }
    }
    check::<V4>(&tables);
    assert!(active.len() > 200, "{}", active.len());
    for (number, word) in active {
        let found = table::find(&tables, &key::<V4>(number)).expect("it stays");
        assert_eq!(found.seen(), word);
        assert!(is_whole(found.get()));
    }
}

#[test]
fn a_set_is_where_the_kernel_has_it() {
    // The programs compute with these.
    assert_eq!((size_of::<FlowSet<V4>>(), size_of::<FlowSet<V6>>()), (1024, 1536));
    let set = empty_set::<V4>();
    let base = NonNull::from(&set).addr().get();
    assert_eq!(NonNull::from(&set.flows).addr().get() - base, 64);
    assert_eq!(base % 64, 0);
}

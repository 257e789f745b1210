use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const RULES: Rules<'_> =
    Rules { panic_threshold: 50, overprovisioning_percent: 140, slow_start: None, prefer_local: false };

const SLOW_START: SlowStart =
    SlowStart { window: Duration::from_secs(100), aggression: 1_000, min_weight_percent: 10 };

fn candidate(key: u32, healthy: bool) -> Candidate<u32> {
    Candidate { key, weight: 1, priority: 0, healthy, local: false, fresh: None }
}

fn candidates(of: impl IntoIterator<Item = bool>) -> Vec<Candidate<u32>> {
    of.into_iter().zip(0..).map(|(healthy, key)| candidate(key, healthy)).collect()
}

fn even(keys: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    keys.into_iter().map(|key| (key, 1)).collect()
}

#[test]
fn healthy_ones_with_their_weights() {
    let mut all = candidates([true, false, true]);
    all[2].weight = 256;
    let selection = select(&all, &RULES);
    assert_eq!(selection.shares, [(100, vec![(0, 1), (2, 256)])]);
    assert_eq!((selection.panic, selection.spilling, selection.again), (vec![], false, None));
}

#[test]
fn nobody() {
    assert_eq!(select::<u32>(&[], &RULES).shares, []);
    let refused = select(&candidates([false, false]), &Rules { panic_threshold: 0, ..RULES });
    assert_eq!((refused.shares, refused.panic), (vec![], vec![]));
}

#[test]
fn panic_uses_all() {
    let all = candidates([true, false, false]);
    let selection = select(&all, &RULES);
    assert_eq!((selection.shares, selection.panic), (vec![(100, even(0..3))], vec![0]));
    let selection = select(&all, &Rules { panic_threshold: 33, ..RULES });
    assert_eq!((selection.shares, selection.panic), (vec![(100, even([0]))], vec![]));
    assert_eq!(select(&candidates([false]), &Rules { panic_threshold: 1, ..RULES }).panic, [0]);
}

/// Priorities need not begin at 0, nor be without gaps.
#[test]
fn next_priority_gets_what_the_first_cannot() {
    let mut all = candidates([true, false, true, true]);
    all.iter_mut().for_each(|candidate| candidate.priority = if candidate.key < 2 { 3 } else { 7 });
    let selection = select(&all, &RULES);
    assert_eq!(selection.shares, [(70, even([0])), (30, even([2, 3]))]);
    assert!(selection.spilling && selection.panic.is_empty());
    all[1].healthy = true;
    let selection = select(&all, &RULES);
    assert_eq!((selection.shares, selection.spilling), (vec![(100, even([0, 1]))], false));
}

/// A level in panic that gets no connections is none that the operator need know of.
#[test]
fn failed_first_level_does_not_panic() {
    let mut all = candidates([false, true, false]);
    all[1].priority = 1;
    all[2].priority = 1;
    let selection = select(&all, &RULES);
    assert_eq!((selection.shares, selection.panic), (vec![(100, even([1]))], vec![]));
    assert!(selection.spilling);
}

#[test]
fn one_level_in_panic_beside_another() {
    let mut all = candidates((0..20).map(|key| key == 0 || key > 13));
    all.iter_mut().for_each(|candidate| candidate.priority = u32::from(candidate.key > 9));
    let selection = select(&all, &RULES);
    assert_eq!(selection.shares, [(15, even(0..10)), (85, even(14..20))]);
    assert_eq!(selection.panic, [0]);
}

#[test]
fn local_ones_first() {
    let rules = Rules { prefer_local: true, ..RULES };
    let mut all = candidates([true; 6]);
    let selection = select(&all, &rules);
    assert_eq!((selection.shares, selection.spilling), (vec![(100, even(0..6))], false));

    all[..2].iter_mut().for_each(|candidate| candidate.local = true);
    let selection = select(&all, &rules);
    assert_eq!((selection.shares, selection.spilling), (vec![(100, even(0..2))], false));

    all[0].healthy = false;
    let selection = select(&all, &rules);
    assert_eq!((selection.shares, selection.spilling), (vec![(70, even([1])), (30, even(2..6))], true));

    all[1].healthy = false;
    let selection = select(&all, &rules);
    assert_eq!((selection.shares, selection.spilling), (vec![(100, even(2..6))], true));
    assert_eq!(select(&all, &RULES).shares, [(100, even(2..6))]);
}

#[test]
fn local_ones_of_each_priority() {
    let mut all = candidates([true, false, true, false, true, true]);
    for (key, priority, local) in [(0, 0, true), (1, 0, true), (2, 0, false), (3, 0, false), (4, 1, true)] {
        (all[key].priority, all[key].local) = (priority, local);
    }
    all[5].priority = 1;
    let selection = select(&all, &Rules { prefer_local: true, ..RULES });
    assert_eq!(selection.shares, [(49, even([0])), (21, even([2])), (30, even([4]))]);
}

/// 35 percent of 56.
#[test]
fn local_share_is_rounded() {
    let mut all = candidates((0..11).map(|key| key > 5 || key == 0));
    all[..4].iter_mut().for_each(|candidate| candidate.local = true);
    all[9].healthy = false;
    all[10].priority = 1;
    let selection = select(&all, &Rules { prefer_local: true, ..RULES });
    let percentages: Vec<_> = selection.shares.iter().map(|share| share.0).collect();
    assert_eq!(percentages, [20, 36, 44]);
}

/// In panic all are used, be they local or not.
#[test]
fn panic_knows_no_local_ones() {
    let mut all = candidates([true, false, false, false]);
    all[0].local = true;
    let selection = select(&all, &Rules { prefer_local: true, ..RULES });
    assert_eq!((selection.shares, selection.panic), (vec![(100, even(0..4))], vec![0]));
}

#[test]
fn new_ones_start_slowly() {
    let rules = Rules { slow_start: Some(&SLOW_START), ..RULES };
    let mut all = candidates([true; 3]);
    all[1].weight = 4;
    all[1].fresh = Some(30 * SECOND);
    all[2].fresh = Some(Duration::ZERO);
    let selection = select(&all, &rules);
    assert_eq!(selection.shares, [(100, vec![(0, 10), (1, 12), (2, 1)])]);
    assert_eq!(selection.again, Some(5 * SECOND));

    all[1].fresh = Some(100 * SECOND);
    all[2].fresh = Some(95 * SECOND);
    let selection = select(&all, &rules);
    assert_eq!((selection.shares, selection.again), (vec![(100, vec![(0, 1), (1, 4), (2, 1)])], None));
    all[2].fresh = Some(Duration::ZERO);
    assert_eq!(select(&all, &RULES).shares, [(100, vec![(0, 1), (1, 4), (2, 1)])]);
}

#[test]
fn unhealthy_ones_do_not_warm_up() {
    let mut all = candidates([true, false, false]);
    all.iter_mut().for_each(|candidate| candidate.fresh = Some(Duration::ZERO));
    let selection = select(&all, &Rules { slow_start: Some(&SLOW_START), ..RULES });
    assert_eq!((selection.shares, selection.panic), (vec![(100, vec![(0, 1), (1, 10), (2, 10)])], vec![0]));
}

prop_compose! {
    fn any_candidate()(
        weight in 1u32..=256,
        priority in 0u32..4,
        healthy: bool,
        local: bool,
        fresh in proptest::option::of(0u64..150_000),
    ) -> Candidate<u32> {
        Candidate { key: 0, weight, priority, healthy, local, fresh: fresh.map(Duration::from_millis) }
    }
}

proptest! {
    #[test]
    fn shares_are_whole_and_healthy(
        mut all in proptest::collection::vec(any_candidate(), 0..40),
        panic_threshold in 0u32..=100,
        overprovisioning_percent in 100u32..300,
        prefer_local: bool,
        slow: bool,
    ) {
        (0..).zip(&mut all).for_each(|(key, candidate)| candidate.key = key);
        let slow_start = slow.then_some(&SLOW_START);
        let rules = Rules { panic_threshold, overprovisioning_percent, slow_start, prefer_local };
        let Selection { shares, panic, spilling, again } = select(&all, &rules);

        let usable = all.iter().any(|one| one.healthy) || panic_threshold > 0 && !all.is_empty();
        prop_assert_eq!(shares.iter().map(|share| share.0).sum::<u32>(), if usable { 100 } else { 0 });
        prop_assert!(shares.iter().all(|(percent, members)| *percent > 0 && !members.is_empty()));
        prop_assert!(again.is_none_or(|again| slow && again >= Duration::from_millis(100)));

        let mut seen = std::collections::BTreeSet::new();
        for (key, weight) in shares.iter().flat_map(|share| &share.1) {
            let candidate = &all[*key as usize];
            prop_assert!(seen.insert(*key));
            prop_assert!(candidate.healthy || panic.contains(&candidate.priority));
            prop_assert!((1..=candidate.weight * 10).contains(weight));
        }
        for one in &all {
            let first = all.iter().map(|other| other.priority).min();
            prop_assert!(spilling || !seen.contains(&one.key) || Some(one.priority) == first);
            prop_assert!(!panic.contains(&one.priority) || seen.contains(&one.key));
        }
    }

    /// Nothing is spilled while the first level's healthy share suffices.
    #[test]
    fn healthy_first_level_takes_all(mut all in proptest::collection::vec(any_candidate(), 1..40)) {
        all.iter_mut().filter(|one| one.priority == 0).for_each(|one| one.healthy = true);
        all[0].priority = 0;
        all[0].healthy = true;
        let selection = select(&all, &RULES);
        prop_assert!(!selection.spilling && selection.panic.is_empty());
        prop_assert_eq!(selection.shares.len(), 1);
        prop_assert_eq!(selection.shares[0].1.len(), all.iter().filter(|one| one.priority == 0).count());
    }
}

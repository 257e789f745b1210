use fastrand::Rng;
use proptest::prelude::*;

use super::*;
use crate::model::{Jitter, Pace, Probe, TcpProbe};

const SECOND: Duration = Duration::from_secs(1);

fn check(unhealthy: u32, healthy: u32) -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp(TcpProbe::default()),
        port: None,
        interval: 10 * SECOND,
        timeout: SECOND,
        unhealthy,
        healthy,
        jitter: Jitter::default(),
        pace: Pace::default(),
    }
}

fn paced() -> HealthCheck {
    let pace = Pace {
        no_traffic: Some(60 * SECOND),
        no_traffic_healthy: Some(70 * SECOND),
        unhealthy: Some(3 * SECOND),
        unhealthy_edge: Some(2 * SECOND),
        healthy_edge: Some(SECOND),
    };
    HealthCheck { pace, ..check(3, 3) }
}

/// `+` succeeds, `-` fails, `!` fails at once; gives the verdicts.
fn verdicts(machine: &mut Machine, check: &HealthCheck, results: &str) -> String {
    results.chars().map(|result| letter(step(machine, check, true, result).0)).collect()
}

/// Seconds to the next probe after each.
fn waits(machine: &mut Machine, check: &HealthCheck, traffic: bool, results: &str) -> Vec<u64> {
    results.chars().map(|result| step(machine, check, traffic, result).1.as_secs()).collect()
}

fn step(machine: &mut Machine, check: &HealthCheck, traffic: bool, result: char) -> (Verdict, Duration) {
    let mut random = Rng::with_seed(1);
    let before = machine.verdict();
    let outcome = match result {
        '+' => machine.success(check, traffic, &mut random),
        immediate => machine.failure(immediate == '!', check, traffic, &mut random),
    };
    let after = machine.verdict();
    assert_eq!(outcome.changed, (before != after).then_some((before, after)));
    (after, outcome.next)
}

fn letter(verdict: Verdict) -> char {
    match verdict {
        Verdict::Unknown => '?',
        Verdict::Healthy => 'h',
        Verdict::Unhealthy => 'u',
    }
}

#[test]
fn first_probe_decides_alone() {
    assert_eq!(verdicts(&mut Machine::new(), &check(3, 3), "+"), "h");
    assert_eq!(verdicts(&mut Machine::new(), &check(3, 3), "-"), "u");
    assert_eq!(Machine::new().verdict(), Verdict::Unknown);
    for healthy in [true, false] {
        let known = if healthy { Verdict::Healthy } else { Verdict::Unhealthy };
        assert_eq!(Machine::adopted(healthy).verdict(), known);
        assert_eq!(verdicts(&mut Machine::adopted(healthy), &check(3, 3), "+--"), "hhh");
        let failing = if healthy { "hhuuuh" } else { "uuuuuh" };
        assert_eq!(verdicts(&mut Machine::adopted(healthy), &check(3, 3), "---+++"), failing);
        assert_eq!(verdicts(&mut Machine::adopted(healthy), &check(3, 3), "!"), "u");
    }
}

#[test]
fn thresholds_are_in_a_row() {
    assert_eq!(verdicts(&mut Machine::new(), &check(3, 2), "+--+---+-++--"), "hhhhhhuuuuhhh");
    assert_eq!(verdicts(&mut Machine::new(), &check(1, 1), "+-+-"), "huhu");
}

#[test]
fn immediate_failure_ignores_the_threshold() {
    assert_eq!(verdicts(&mut Machine::new(), &check(3, 2), "+!+!++-!"), "huuuuhhu");
    assert_eq!(verdicts(&mut Machine::new(), &check(3, 2), "!++"), "uuh");
}

/// Envoy's own example: a host that comes back with a threshold of 3.
#[test]
fn intervals_by_state() {
    let mut machine = Machine::new();
    assert_eq!(waits(&mut machine, &paced(), true, "-+++++"), [3, 1, 1, 10, 10, 10]);
    assert_eq!(waits(&mut machine, &paced(), true, "----+-"), [2, 2, 3, 3, 1, 3]);
    assert_eq!(waits(&mut Machine::new(), &paced(), true, "+-+!"), [10, 2, 10, 3]);
}

#[test]
fn intervals_without_traffic() {
    assert_eq!(waits(&mut Machine::new(), &paced(), false, "-++++---"), [60, 60, 60, 70, 70, 60, 60, 60]);
}

#[test]
fn intervals_that_are_not_set() {
    let mut plain = check(2, 2);
    assert_eq!(waits(&mut Machine::new(), &plain, true, "+--+"), [10; 4]);
    assert_eq!(waits(&mut Machine::new(), &plain, false, "+--+"), [10; 4]);
    plain.pace.unhealthy = Some(SECOND);
    plain.pace.no_traffic = Some(9 * SECOND);
    assert_eq!(waits(&mut Machine::new(), &plain, true, "+--+"), [10, 1, 1, 10]);
    assert_eq!(waits(&mut Machine::new(), &plain, false, "+--+"), [9; 4]);
}

#[test]
fn first_wait_is_jittered() {
    let mut random = Rng::with_seed(1);
    let mut check = check(1, 1);
    assert_eq!(Machine::new().first_wait(&check, &mut random), Duration::ZERO);
    check.jitter.initial = 4 * SECOND;
    let waits: Vec<_> = (0..1_000).map(|_| Machine::new().first_wait(&check, &mut random)).collect();
    assert!(waits.iter().all(|wait| *wait <= 4 * SECOND));
    let mean = waits.iter().sum::<Duration>() / 1_000;
    assert!(mean.abs_diff(2 * SECOND) < SECOND / 5, "{mean:?}");
}

/// Both jitters add up.
#[test]
fn intervals_are_jittered() {
    let mut random = Rng::with_seed(1);
    let mut check = check(1, 1);
    check.jitter = Jitter { initial: Duration::ZERO, interval: 5 * SECOND, percent: 50 };
    let mut machine = Machine::new();
    let waits: Vec<_> = (0..1_000).map(|_| machine.success(&check, true, &mut random).next).collect();
    assert!(waits.iter().all(|wait| (10 * SECOND..=20 * SECOND).contains(wait)));
    let mean = waits.iter().sum::<Duration>() / 1_000;
    assert!(mean.abs_diff(15 * SECOND) < SECOND / 2, "{mean:?}");
}

#[test]
fn no_wait_is_zero() {
    let check = HealthCheck { interval: Duration::ZERO, ..check(1, 1) };
    assert_eq!(Machine::new().success(&check, true, &mut Rng::with_seed(1)).next, MIN_WAIT);
}

#[test]
fn small() {
    assert!(size_of::<Machine>() <= 8);
}

proptest! {
    /// After the first result it takes as many in a row as the threshold says to change a verdict, no fewer and no more.
    #[test]
    fn flips_at_the_threshold(
        unhealthy in 1u32..6,
        healthy in 1u32..6,
        results in proptest::collection::vec(any::<bool>(), 1..80),
    ) {
        let check = check(unhealthy, healthy);
        let mut machine = Machine::new();
        for (index, passed) in results.iter().enumerate() {
            let agrees = |verdict| verdict == if *passed { Verdict::Healthy } else { Verdict::Unhealthy };
            let agreed = agrees(machine.verdict());
            let (verdict, _) = step(&mut machine, &check, true, if *passed { '+' } else { '-' });
            let in_a_row = results[..=index].iter().rev().take_while(|it| *it == passed).count();
            let threshold = if *passed { healthy } else { unhealthy } as usize;
            prop_assert_eq!(agrees(verdict), index == 0 || agreed || in_a_row >= threshold);
        }
    }
}

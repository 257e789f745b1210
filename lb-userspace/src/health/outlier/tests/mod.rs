mod properties;
mod rates;
mod returns;

use std::time::Duration;

use fastrand::Rng;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const OUTLIER: Outlier = Outlier {
    consecutive_failures: Some(5),
    enforcing_consecutive: 100,
    interval: Duration::from_secs(10),
    base_ejection: Duration::from_secs(30),
    max_ejection: Duration::from_secs(300),
    ejection_jitter: Duration::ZERO,
    max_ejection_percent: 10,
    always_eject_one: false,
    success_rate: None,
    failure_percentage: None,
    uneject_by_probe: true,
};

/// A cluster of endpoints 0, 1, ….
struct Cluster {
    detector: Detector<usize>,
    outlier: Outlier,
    seen: Vec<Seen>,
    now: Instant,
    random: Rng,
}

impl Cluster {
    fn new(endpoints: usize, outlier: Outlier) -> Self {
        let now = Instant::now();
        let mut detector = Detector::new();
        detector.set(0..endpoints);
        let seen = vec![Seen::default(); endpoints];
        let mut cluster = Self { detector, outlier, seen, now, random: Rng::with_seed(1) };
        assert_eq!(cluster.look(), []);
        cluster
    }

    fn fail(&mut self, key: usize, attempts: u32) {
        self.seen[key].consecutive += attempts;
        self.seen[key].failed += u64::from(attempts);
    }

    fn succeed(&mut self, key: usize, attempts: u64) {
        self.seen[key].consecutive = 0;
        self.seen[key].succeeded += attempts;
    }

    fn look(&mut self) -> Vec<Change<usize>> {
        let well = self.seen.iter().all(|seen| seen.consecutive == 0);
        let at_rest = well && self.detector.is_at_rest(self.now, &self.outlier);
        let changes = self.detector.look(self.now, &self.outlier, |key| self.seen[*key], &mut self.random);
        assert!(!at_rest || changes.is_empty(), "{changes:?}");
        changes
    }

    /// Looks all the time, ten times a second.
    fn wait(&mut self, time: Duration) -> Vec<Change<usize>> {
        let until = self.now + time;
        let mut changes = Vec::new();
        while self.now < until {
            self.now += SECOND / 10;
            changes.extend(self.look());
        }
        changes
    }

    /// Ejects by failures in a row and waits for the return; gives the time that it took.
    fn ejection(&mut self, key: usize) -> Duration {
        self.fail(key, 5);
        let [Change::Ejected { until, .. }] = self.look()[..] else { panic!("no ejection") };
        let took = until - self.now;
        self.now = until - Duration::from_millis(1);
        assert_eq!(self.look(), []);
        self.now = until;
        assert_eq!(self.look(), [returned(key)]);
        took
    }
}

fn returned(key: usize) -> Change<usize> {
    Change::Returned { key, why: ReturnedBy::Time }
}

fn ejected(changes: &[Change<usize>]) -> Vec<usize> {
    let key = |change: &Change<usize>| match change {
        Change::Ejected { key, .. } => Some(*key),
        _ => None,
    };
    changes.iter().filter_map(key).collect()
}

fn overflown(changes: &[Change<usize>]) -> Vec<usize> {
    let key = |change: &Change<usize>| match change {
        Change::Overflow { key, .. } => Some(*key),
        _ => None,
    };
    changes.iter().filter_map(key).collect()
}

#[test]
fn failures_in_a_row_eject_at_once() {
    let mut cluster = Cluster::new(10, OUTLIER);
    cluster.fail(3, 4);
    assert_eq!(cluster.look(), []);
    cluster.succeed(3, 1);
    cluster.fail(3, 4);
    assert_eq!(cluster.look(), []);
    cluster.fail(3, 1);
    let until = cluster.now + 30 * SECOND;
    let cause = Cause::ConsecutiveFailures(5);
    assert_eq!(cluster.look(), [Change::Ejected { key: 3, cause, until, times: 1 }]);
    assert!(cluster.detector.is_ejected(&3) && !cluster.detector.is_ejected(&2));
    assert_eq!(cluster.detector.ejected().collect::<Vec<_>>(), [(&3, until)]);
    let tally = Tally { detected: 1, enforced: 1 };
    let counts = Counts {
        ejections_active: 1,
        ejections_enforced_total: 1,
        consecutive_local_origin_failure: tally,
        ..Counts::default()
    };
    assert_eq!(cluster.detector.counts(), counts);
    assert_eq!(cluster.wait(29 * SECOND + SECOND / 2), []);
    assert_eq!(cluster.wait(SECOND / 2), [returned(3)]);
    assert_eq!(cluster.detector.counts(), Counts { ejections_active: 0, ..counts });
}

#[test]
fn a_run_of_failures_ejects_once() {
    let mut cluster = Cluster::new(10, OUTLIER);
    cluster.fail(0, 7);
    assert_eq!(ejected(&cluster.look()), [0]);
    cluster.fail(0, 100);
    assert_eq!(cluster.wait(40 * SECOND), [returned(0)]);
    cluster.fail(0, 4);
    assert_eq!(cluster.look(), []);
    cluster.fail(0, 1);
    assert_eq!(ejected(&cluster.look()), [0]);
}

#[test]
fn success_after_a_return_begins_a_new_run() {
    let mut cluster = Cluster::new(10, OUTLIER);
    cluster.fail(0, 20);
    assert_eq!(ejected(&cluster.look()), [0]);
    assert_eq!(cluster.wait(30 * SECOND), [returned(0)]);
    cluster.succeed(0, 1);
    cluster.fail(0, 5);
    assert_eq!(ejected(&cluster.look()), [0]);
}

/// Counters of an agent that was restarted, or from before outlier detection was on.
#[test]
fn what_was_before_does_not_count() {
    let mut cluster = Cluster::new(10, Outlier { success_rate: Some(rates::SUCCESS_RATE), ..OUTLIER });
    let detector = Detector::new();
    cluster.detector = detector;
    cluster.detector.set(0..10);
    (0..10).for_each(|key| cluster.succeed(key, 1_000));
    cluster.fail(0, 1_000);
    assert_eq!(cluster.wait(30 * SECOND), []);
    cluster.fail(0, 5);
    assert_eq!(ejected(&cluster.look()), [0]);
}

#[test]
fn never_without_a_threshold() {
    let mut cluster = Cluster::new(10, Outlier { consecutive_failures: None, ..OUTLIER });
    cluster.fail(0, 1_000);
    assert_eq!(cluster.wait(30 * SECOND), []);
}

#[test]
fn ejections_grow_longer_up_to_the_maximum() {
    let mut cluster = Cluster::new(10, OUTLIER);
    let times = [(); 13].map(|()| cluster.ejection(0).as_secs());
    assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]);
    cluster.fail(0, 5);
    assert!(matches!(cluster.look()[..], [Change::Ejected { times: 11, .. }]));
}

/// By one for each interval, which here begins with the return.
#[test]
fn ejections_grow_shorter_again() {
    let mut cluster = Cluster::new(10, OUTLIER);
    assert_eq!([(); 3].map(|()| cluster.ejection(0).as_secs()), [30, 60, 90]);
    assert_eq!(cluster.wait(9 * SECOND), []);
    assert_eq!(cluster.ejection(0), 120 * SECOND);
    assert_eq!(cluster.wait(25 * SECOND), []);
    assert_eq!(cluster.ejection(0), 90 * SECOND);
    assert_eq!(cluster.wait(200 * SECOND), []);
    assert_eq!(cluster.ejection(0), 30 * SECOND);
}

#[test]
fn jitter_is_on_top() {
    let jittered = Outlier { ejection_jitter: 20 * SECOND, max_ejection: 30 * SECOND, ..OUTLIER };
    let mut cluster = Cluster::new(10, jittered);
    let times = [(); 50].map(|()| cluster.ejection(0));
    assert!(times.iter().all(|time| (30 * SECOND..=50 * SECOND).contains(time)));
    assert!(times.iter().any(|time| *time < 35 * SECOND) && times.iter().any(|time| *time > 45 * SECOND));
}

#[test]
fn no_more_than_the_percentage() {
    let mut cluster = Cluster::new(20, OUTLIER);
    (0..20).for_each(|key| cluster.fail(key, 5));
    let changes = cluster.look();
    assert_eq!(ejected(&changes), [0, 1]);
    assert_eq!(overflown(&changes), (2..20).collect::<Vec<_>>());
    assert_eq!(cluster.detector.counts().ejections_overflow, 18);
    assert_eq!(
        cluster.detector.counts().consecutive_local_origin_failure,
        Tally { detected: 20, enforced: 2 }
    );
    // The run is spent, whatever came of it.
    assert_eq!(cluster.look(), []);
    cluster.fail(7, 5);
    assert_eq!(overflown(&cluster.look()), [7]);
}

#[test]
fn one_may_always_be_ejected() {
    let mut cluster = Cluster::new(2, OUTLIER);
    cluster.fail(0, 5);
    assert_eq!(overflown(&cluster.look()), [0]);
    cluster.outlier.always_eject_one = true;
    cluster.fail(0, 5);
    cluster.fail(1, 5);
    let changes = cluster.look();
    assert_eq!((ejected(&changes), overflown(&changes)), (vec![0], vec![1]));
}

#[test]
fn chance_decides() {
    let cause = Cause::ConsecutiveFailures(5);
    let mut cluster = Cluster::new(10, Outlier { enforcing_consecutive: 0, ..OUTLIER });
    cluster.fail(0, 5);
    assert_eq!(cluster.look(), [Change::NotEnforced { key: 0, cause }]);
    assert_eq!(
        cluster.detector.counts().consecutive_local_origin_failure,
        Tally { detected: 1, enforced: 0 }
    );

    let half = Outlier { enforcing_consecutive: 50, max_ejection_percent: 100, ..OUTLIER };
    let mut cluster = Cluster::new(1_000, half);
    (0..1_000).for_each(|key| cluster.fail(key, 5));
    let ejected = ejected(&cluster.look()).len();
    assert!((400..600).contains(&ejected), "{ejected}");
}

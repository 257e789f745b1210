use super::*;
use crate::model::{FailurePercentage, SuccessRate};

pub(super) const SUCCESS_RATE: SuccessRate =
    SuccessRate { minimum_hosts: 5, request_volume: 100, stdev_factor: 1_900, enforcing: 100 };

pub(super) const FAILURE_PERCENTAGE: FailurePercentage =
    FailurePercentage { threshold: 85, minimum_hosts: 5, request_volume: 50, enforcing: 100 };

#[test]
fn low_success_rate() {
    let mut cluster = Cluster::new(10, Outlier { success_rate: Some(SUCCESS_RATE), ..OUTLIER });
    // Envoy's own example: {50, 100, 100, 100, 100}, whose threshold is 52.
    (0..5).for_each(|key| cluster.succeed(key, 100));
    cluster.seen[0] = Seen { consecutive: 0, failed: 50, succeeded: 50 };
    // Too few attempts for a judgement.
    cluster.seen[5] = Seen { consecutive: 0, failed: 99, succeeded: 0 };
    assert_eq!(cluster.wait(9 * SECOND), []);
    let changes = cluster.wait(SECOND);
    let [Change::Ejected { key: 0, cause: Cause::SuccessRate { percent, threshold }, .. }] = changes[..]
    else {
        panic!("{changes:?}");
    };
    assert_eq!((percent, threshold), (50.0, 52.0));
    assert_eq!(cluster.detector.counts().local_origin_success_rate, Tally { detected: 1, enforced: 1 });
    assert_eq!(cluster.wait(35 * SECOND), [returned(0)]);
}

#[test]
fn success_rate_needs_hosts() {
    let mut cluster = Cluster::new(10, Outlier { success_rate: Some(SUCCESS_RATE), ..OUTLIER });
    (1..4).for_each(|key| cluster.succeed(key, 100));
    cluster.seen[0].failed = 100;
    assert_eq!(cluster.wait(20 * SECOND), []);
}

#[test]
fn high_failure_percentage() {
    let rule = Outlier { failure_percentage: Some(FAILURE_PERCENTAGE), ..OUTLIER };
    let mut cluster = Cluster::new(30, Outlier { max_ejection_percent: 5, ..rule });
    (0..5).for_each(|key| cluster.succeed(key, 50));
    cluster.seen[0] = Seen { consecutive: 0, failed: 85, succeeded: 15 };
    cluster.seen[1] = Seen { consecutive: 0, failed: 90, succeeded: 10 };
    cluster.seen[2] = Seen { consecutive: 0, failed: 84, succeeded: 16 };
    let changes = cluster.wait(10 * SECOND);
    // The worst one first.
    assert_eq!((ejected(&changes), overflown(&changes)), (vec![1], vec![0]));
    assert!(matches!(changes[0], Change::Ejected { cause: Cause::FailurePercentage { percent: 90.0 }, .. }));
    assert_eq!(cluster.wait(10 * SECOND), []);
}

#[test]
fn failure_percentage_needs_hosts() {
    let rule = Outlier { failure_percentage: Some(FAILURE_PERCENTAGE), ..OUTLIER };
    let mut cluster = Cluster::new(30, rule);
    (0..4).for_each(|key| cluster.seen[key].failed = 50);
    cluster.seen[4].failed = 49;
    assert_eq!(cluster.wait(10 * SECOND), []);
    (0..5).for_each(|key| cluster.seen[key].failed += 50);
    assert_eq!(ejected(&cluster.wait(10 * SECOND)), [0, 1, 2]);
}

#[test]
fn both_rates_eject_once() {
    let both = Outlier {
        success_rate: Some(SUCCESS_RATE),
        failure_percentage: Some(FAILURE_PERCENTAGE),
        max_ejection_percent: 50,
        ..OUTLIER
    };
    let mut cluster = Cluster::new(10, both);
    (1..10).for_each(|key| cluster.succeed(key, 100));
    cluster.seen[0].failed = 100;
    assert_eq!(ejected(&cluster.wait(10 * SECOND)), [0]);
    assert_eq!(cluster.detector.counts().ejections_active, 1);
}

/// Nor does the interval that an endpoint returns in.
#[test]
fn attempts_of_ejected_ones_do_not_count() {
    let rule = Outlier { failure_percentage: Some(FAILURE_PERCENTAGE), ..OUTLIER };
    let mut cluster = Cluster::new(10, Outlier { base_ejection: 15 * SECOND, ..rule });
    cluster.fail(0, 5);
    assert_eq!(ejected(&cluster.look()), [0]);
    for _ in 0..15 {
        (0..10).for_each(|key| cluster.succeed(key, 100));
        cluster.seen[0].failed += 10_000;
        let changes = cluster.wait(SECOND);
        assert!(changes.is_empty() || changes == [returned(0)]);
    }
    assert!(!cluster.detector.is_ejected(&0));
    assert_eq!(cluster.wait(5 * SECOND), []);
}

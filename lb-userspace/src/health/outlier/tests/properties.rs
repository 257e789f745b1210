use proptest::prelude::*;

use super::rates::{FAILURE_PERCENTAGE, SUCCESS_RATE};
use super::*;
use crate::model::{FailurePercentage, SuccessRate};

#[derive(Clone, Debug)]
enum Step {
    Fail(usize, u32),
    Succeed(usize, u64),
    Wait(u64),
    Probe(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..12, 1u32..8).prop_map(|(key, attempts)| Step::Fail(key, attempts)),
        2 => (0usize..12, 1u64..60).prop_map(|(key, attempts)| Step::Succeed(key, attempts)),
        3 => (1u64..40_000).prop_map(Step::Wait),
        1 => (0usize..12).prop_map(Step::Probe),
    ]
}

proptest! {
    #[test]
    fn ejections_keep_their_bounds(
        steps in proptest::collection::vec(any_step(), 1..120),
        max_ejection_percent in 0u32..=100,
        always_eject_one: bool,
        jitter in 0u64..5,
    ) {
        let outlier = Outlier {
            max_ejection_percent,
            always_eject_one,
            ejection_jitter: Duration::from_secs(jitter),
            max_ejection: 100 * SECOND,
            success_rate: Some(SuccessRate { request_volume: 20, ..SUCCESS_RATE }),
            failure_percentage: Some(FailurePercentage { request_volume: 20, ..FAILURE_PERCENTAGE }),
            ..OUTLIER
        };
        let most = (12 * max_ejection_percent as usize / 100).max(usize::from(always_eject_one));
        let mut cluster = Cluster::new(12, outlier.clone());
        for step in steps {
            let mut changes = Vec::new();
            match step {
                Step::Fail(key, attempts) => cluster.fail(key, attempts),
                Step::Succeed(key, attempts) => cluster.succeed(key, attempts),
                Step::Wait(millis) => cluster.now += Duration::from_millis(millis),
                Step::Probe(key) => {
                    changes.extend(cluster.detector.probe_succeeded(&key, cluster.now, &outlier));
                }
            }
            let before: Vec<_> = (0..12).map(|key| cluster.detector.is_ejected(&key)).collect();
            for change in cluster.look() {
                match change {
                    Change::Ejected { key, until, times, .. } => {
                        let least = (30 * SECOND * times).min(100 * SECOND);
                        prop_assert!(times >= 1 && until >= cluster.now + least);
                        prop_assert!(until <= cluster.now + least + outlier.ejection_jitter);
                        prop_assert!(!before[key] && cluster.detector.is_ejected(&key));
                    }
                    Change::Returned { key, .. } => {
                        prop_assert!(before[key] && !cluster.detector.is_ejected(&key));
                    }
                    Change::Overflow { .. } => prop_assert!(cluster.detector.ejected().count() >= most.min(1)),
                    Change::NotEnforced { .. } => prop_assert!(false),
                }
            }
            let ejected = cluster.detector.ejected().count();
            prop_assert!(ejected <= most);
            prop_assert_eq!(cluster.detector.counts().ejections_active, ejected);
            prop_assert!(cluster.detector.ejected().all(|(_, until)| until > cluster.now));
        }
    }

    /// Ejections in a row never become shorter, and never longer than the maximum.
    #[test]
    fn ejections_in_a_row_are_monotone(base in 1u64..60, more in 0u64..300) {
        let outlier = Outlier {
            base_ejection: Duration::from_secs(base),
            max_ejection: Duration::from_secs(base + more),
            ..OUTLIER
        };
        let mut cluster = Cluster::new(10, outlier);
        let times = [(); 15].map(|()| cluster.ejection(0).as_secs());
        prop_assert!(times.is_sorted() && times[0] == base && times[14] <= base + more);
    }
}

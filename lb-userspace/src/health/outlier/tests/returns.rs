use super::*;

#[test]
fn probe_ends_an_ejection() {
    let mut cluster = Cluster::new(10, OUTLIER);
    assert_eq!(cluster.detector.probe_succeeded(&0, cluster.now, &OUTLIER), None);
    cluster.fail(0, 5);
    assert_eq!(ejected(&cluster.look()), [0]);
    let refused = Outlier { uneject_by_probe: false, ..OUTLIER };
    assert_eq!(cluster.detector.probe_succeeded(&0, cluster.now, &refused), None);
    let change = cluster.detector.probe_succeeded(&0, cluster.now, &OUTLIER);
    assert_eq!(change, Some(Change::Returned { key: 0, why: ReturnedBy::Probe }));
    assert_eq!(cluster.detector.counts().ejections_active, 0);
    assert_eq!(cluster.wait(SECOND), []);
    cluster.fail(0, 5);
    assert!(matches!(cluster.look()[..], [Change::Ejected { key: 0, times: 2, .. }]));
    cluster.fail(0, 3);
    assert!(cluster.detector.probe_succeeded(&0, cluster.now, &OUTLIER).is_some());
    assert_eq!(cluster.look(), []);
    cluster.fail(0, 4);
    assert_eq!(cluster.look(), []);
}

#[test]
fn those_that_leave_are_forgotten() {
    let mut cluster = Cluster::new(20, OUTLIER);
    (0..2).for_each(|key| cluster.fail(key, 5));
    assert_eq!(ejected(&cluster.look()), [0, 1]);
    cluster.detector.set((1..20).chain([5, 1]));
    assert_eq!(cluster.detector.counts().ejections_active, 1);
    assert!(cluster.detector.is_ejected(&1) && !cluster.detector.is_ejected(&0));
    cluster.detector.set(0..20);
    assert!(!cluster.detector.is_ejected(&0));
    assert_eq!(cluster.look(), []);
    cluster.fail(0, 5);
    assert!(matches!(cluster.look()[..], [Change::Ejected { key: 0, times: 1, .. }]));
}

#[test]
fn all_return_when_it_is_turned_off() {
    let mut cluster = Cluster::new(20, OUTLIER);
    (0..2).for_each(|key| cluster.fail(key, 5));
    assert_eq!(ejected(&cluster.look()), [0, 1]);
    let back = |key| Change::Returned { key, why: ReturnedBy::TurnedOff };
    assert_eq!(cluster.detector.clear(), [back(0), back(1)]);
    let counts = cluster.detector.counts();
    assert_eq!((counts.ejections_active, counts.ejections_enforced_total), (0, 2));
    assert_eq!(cluster.detector.clear(), []);
    assert_eq!(cluster.wait(SECOND), []);
    cluster.fail(0, 5);
    assert!(matches!(cluster.look()[..], [Change::Ejected { key: 0, times: 1, .. }]));
}

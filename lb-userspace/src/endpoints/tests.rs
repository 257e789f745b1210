use std::time::{Duration, Instant};

use super::*;
use crate::model::{Discovery, HealthCheck, Jitter, OnLeaving, Pace, Probe, SlowStart, TcpProbe};

fn endpoint(host: u8) -> Endpoint {
    Endpoint::new(SocketAddr::from(([10, 0, 0, host], 80)), 1)
}

fn address(host: u8) -> SocketAddr {
    endpoint(host).address
}

fn cluster(name: &str) -> Cluster {
    Cluster::sample(name, Discovery::Static(Vec::new()))
}

fn checked(name: &str) -> Cluster {
    let check = HealthCheck {
        probe: Probe::Tcp(TcpProbe::default()),
        port: None,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        unhealthy: 2,
        healthy: 2,
        jitter: Jitter::default(),
        pace: Pace::default(),
    };
    Cluster { health_check: Some(check), ..cluster(name) }
}

fn hosts(range: std::ops::RangeInclusive<u8>) -> Vec<Endpoint> {
    range.map(endpoint).collect()
}

/// Those that take new connections.
fn chosen(endpoints: &mut Endpoints, cluster: &Cluster, now: Instant) -> Vec<(SocketAddr, u32)> {
    endpoints.choose(cluster, &Locality::default(), now);
    endpoints.active(&cluster.name).collect()
}

fn pass(endpoints: &mut Endpoints, cluster: &Cluster, host: u8, now: Instant) {
    let member = endpoints.get_mut(&cluster.name, address(host)).unwrap();
    member.set_health(Health::Passing, "it passes", cluster, now);
}

fn fail(endpoints: &mut Endpoints, cluster: &Cluster, host: u8, now: Instant) {
    let member = endpoints.get_mut(&cluster.name, address(host)).unwrap();
    member.set_health(Health::Failing { timeout: false }, "it fails", cluster, now);
}

#[test]
fn one_that_leaves_drains_until_its_connections_have_ended() {
    let (start, a, b) = (Instant::now(), cluster("a"), cluster("b"));
    let mut endpoints = Endpoints::default();
    assert_eq!(endpoints.set(&a, &hosts(1..=2), start), [(address(1), true), (address(2), true)]);
    endpoints.set(&b, &hosts(1..=1), start);
    assert_eq!(endpoints.set(&a, &[endpoint(2), endpoint(1)], start), [], "the order is no change");
    assert_eq!(endpoints.set(&a, &hosts(2..=2), start), [(address(1), false)]);
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(2), 1)]);
    assert_eq!(endpoints.of("a").count(), 2);
    let counts = endpoints.counts("a");
    assert_eq!((counts.members, counts.healthy, counts.draining), (1, 1, 1));

    let name = ("a".to_owned(), address(1));
    assert_eq!(endpoints.take_drained(start, |_, _| false), [], "a SYN may still be on its way");
    let has_flows = |of: &str, at| of == "a" && at == address(1);
    assert_eq!(endpoints.take_drained(start + GRACE, has_flows), [], "it has a connection");
    assert_eq!(endpoints.take_drained(start + GRACE, |_, _| false), [name]);
    assert_eq!(endpoints.of("a").count(), 1);
    assert_eq!(chosen(&mut endpoints, &b, start).len(), 1, "the other cluster has it still");
}

#[test]
fn one_that_comes_back_drains_no_more() {
    let (start, a) = (Instant::now(), cluster("a"));
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=1), start);
    endpoints.set(&a, &[], start);
    assert_eq!(endpoints.get("a", address(1)).unwrap().cut(), Some(start + a.drain_timeout));
    assert_eq!(endpoints.set(&a, &hosts(1..=1), start), [(address(1), true)]);
    assert_eq!(endpoints.get("a", address(1)).unwrap().cut(), None);
    assert_eq!(endpoints.take_drained(start + GRACE, |_, _| false), []);
    assert_eq!(chosen(&mut endpoints, &a, start).len(), 1);
}

#[test]
fn a_removed_cluster_drains_wholly() {
    let (start, a, b) = (Instant::now(), cluster("a"), cluster("b"));
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=1), start);
    endpoints.set(&b, &hosts(2..=2), start);
    let both = Config { clusters: vec![a.clone(), b.clone()], ..Config::default() };
    let one = Config { clusters: vec![b.clone()], ..Config::default() };
    let left = endpoints.keep_clusters(&both, &one, start);
    assert_eq!(left, [(("a".to_owned(), address(1)), State::Healthy)]);
    assert_eq!(endpoints.active("a").count(), 0);
    assert_eq!(chosen(&mut endpoints, &b, start).len(), 1);
    assert_eq!(endpoints.keep_clusters(&one, &one, start), []);
}

#[test]
fn what_is_not_probed_yet_takes_nothing() {
    let (start, a) = (Instant::now(), checked("a"));
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=3), start);
    assert_eq!(endpoints.get("a", address(1)).unwrap().state(), State::Unhealthy);
    assert_eq!(endpoints.choose(&a, &Locality::default(), start).panic, [0], "nobody knows of a healthy one");
    for host in 1..=3 {
        pass(&mut endpoints, &a, host, start);
    }
    assert_eq!(endpoints.choose(&a, &Locality::default(), start).panic, [] as [u32; 0]);
    endpoints.set(&a, &hosts(1..=9), start);
    assert_eq!(
        endpoints.choose(&a, &Locality::default(), start).panic,
        [] as [u32; 0],
        "new ones are no reason for it"
    );
    assert_eq!(chosen(&mut endpoints, &a, start).len(), 3, "the new ones wait for their first probes");
    endpoints.set(&a, &hosts(1..=3), start);
    fail(&mut endpoints, &a, 2, start);
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(1), 1), (address(3), 1)]);
    let choice = endpoints.choose(&a, &Locality::default(), start);
    assert!(!choice.changed, "nothing new");
}

#[test]
fn a_skipped_probe_counts_as_passed() {
    let (start, a) = (Instant::now(), checked("a"));
    let mut unasked = endpoint(1);
    unasked.probe.skip = true;
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &[unasked], start);
    assert_eq!(endpoints.get("a", address(1)).unwrap().state(), State::Healthy);
}

#[test]
fn one_that_left_discovery_stays_while_its_check_passes_if_it_is_to() {
    let start = Instant::now();
    let a = Cluster { keep_while_healthy: true, ..checked("a") };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=2), start);
    pass(&mut endpoints, &a, 1, start);
    pass(&mut endpoints, &a, 2, start);
    assert_eq!(endpoints.set(&a, &hosts(1..=1), start), []);
    assert!(endpoints.get("a", address(2)).unwrap().leaving);
    assert_eq!(chosen(&mut endpoints, &a, start).len(), 2);
    assert!(!endpoints.let_go(&a, address(2), start), "it passes");
    fail(&mut endpoints, &a, 2, start);
    assert!(endpoints.let_go(&a, address(2), start));
    assert_eq!(endpoints.get("a", address(2)).unwrap().state(), State::Draining);
    fail(&mut endpoints, &a, 1, start);
    assert_eq!(endpoints.set(&a, &[], start), [(address(1), false)], "it did not pass");
}

#[test]
fn connections_end_by_the_rule_of_the_cluster() {
    let start = Instant::now();
    let timeout = Duration::from_secs(60);
    let rules =
        [(OnLeaving::Keep, None), (OnLeaving::Drain, Some(start + timeout)), (OnLeaving::Reset, Some(start))];
    for (rule, cut) in rules {
        let a = Cluster { on_removed: rule, on_unhealthy: rule, ..checked("a") };
        let mut endpoints = Endpoints::default();
        endpoints.set(&a, &hosts(1..=1), start);
        pass(&mut endpoints, &a, 1, start);
        let cut_of = |endpoints: &Endpoints| endpoints.get("a", address(1)).unwrap().cut();
        assert_eq!(cut_of(&endpoints), None);
        fail(&mut endpoints, &a, 1, start);
        assert_eq!(cut_of(&endpoints), cut, "unhealthy, {rule:?}");
        fail(&mut endpoints, &a, 1, start + timeout / 2);
        assert_eq!(cut_of(&endpoints), cut, "it goes on to be");
        pass(&mut endpoints, &a, 1, start);
        assert_eq!(cut_of(&endpoints), None, "healthy again in time");
        endpoints.set(&a, &[], start);
        assert_eq!(cut_of(&endpoints), cut, "removed, {rule:?}");
    }
}

#[test]
fn the_first_of_several_reasons_to_end_counts() {
    let (start, a) = (Instant::now(), cluster("a"));
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=2), start);
    let member = endpoints.get_mut("a", address(1)).unwrap();
    member.drain(Duration::from_secs(5), start);
    assert_eq!(member.state(), State::Draining);
    endpoints.set(&a, &hosts(2..=2), start);
    assert_eq!(endpoints.get("a", address(1)).unwrap().cut(), Some(start + Duration::from_secs(5)));
    endpoints.set(&a, &hosts(1..=2), start);
    let member = endpoints.get_mut("a", address(1)).unwrap();
    assert_eq!(member.state(), State::Draining, "the operator's word holds");
    member.undrain(start);
    assert_eq!((member.state(), member.cut()), (State::Healthy, None));
}

#[test]
fn one_that_was_ejected_starts_slowly() {
    let start = Instant::now();
    let slow_start =
        Some(SlowStart { window: Duration::from_secs(10), aggression: 1000, min_weight_percent: 10 });
    let a = Cluster { slow_start, ..cluster("a") };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=2), start);
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(1), 1), (address(2), 1)], "all came together");
    let member = endpoints.get_mut("a", address(1)).unwrap();
    assert!(member.set_ejected(true, "refused", &a, start));
    assert_eq!(member.state(), State::Ejected);
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(2), 1)]);
    let member = endpoints.get_mut("a", address(1)).unwrap();
    assert!(member.set_ejected(false, "its time is over", &a, start));
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(1), 1), (address(2), 10)]);
    let half = start + Duration::from_secs(5);
    assert_eq!(chosen(&mut endpoints, &a, half), [(address(1), 5), (address(2), 10)]);
    let end = start + Duration::from_secs(10);
    assert_eq!(chosen(&mut endpoints, &a, end), [(address(1), 1), (address(2), 1)]);
}

#[test]
fn those_on_the_node_come_first_if_they_are_to() {
    let start = Instant::now();
    let a = Cluster { prefer_local: PreferLocal::Node, ..cluster("a") };
    let on = |host, node: &str| Endpoint { node: Some(node.into()), ..endpoint(host) };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &[on(1, "here"), on(2, "there"), endpoint(3)], start);
    let here = Locality { node: Some("here".to_owned()), zone: Some("east".to_owned()) };
    endpoints.choose(&a, &here, start);
    assert_eq!(endpoints.active("a").collect::<Vec<_>>(), [(address(1), 1)]);
    endpoints.get_mut("a", address(1)).unwrap().set_ejected(true, "refused", &a, start);
    endpoints.choose(&a, &here, start);
    assert_eq!(endpoints.active("a").map(|(of, _)| of).collect::<Vec<_>>(), [address(2), address(3)]);
    endpoints.choose(&a, &Locality::default(), start);
    assert_eq!(endpoints.active("a").count(), 2, "nobody knows where this is");
}

#[test]
fn those_in_the_zone_come_first_if_they_are_to() {
    let start = Instant::now();
    let a = Cluster { prefer_local: PreferLocal::Zone, ..cluster("a") };
    let of = |host, zone: &str| Endpoint { zone: Some(zone.into()), ..endpoint(host) };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &[of(1, "east"), of(2, "west"), endpoint(3)], start);
    let here = Locality { node: Some("here".to_owned()), zone: Some("east".to_owned()) };
    endpoints.choose(&a, &here, start);
    assert_eq!(endpoints.active("a").collect::<Vec<_>>(), [(address(1), 1)]);
    endpoints.choose(&a, &Locality { zone: None, ..here }, start);
    assert_eq!(endpoints.active("a").count(), 3, "nobody knows where this is");
}

/// As its source says it: of a pod the kubelet's probe.
#[test]
fn one_that_is_not_ready_takes_no_connections() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let a = Cluster { on_unhealthy: OnLeaving::Drain, panic_threshold: 0, ..cluster("a") };
    let unready = |host| Endpoint { ready: false, ..endpoint(host) };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &[endpoint(1), endpoint(2), unready(3)], start);
    assert_eq!(chosen(&mut endpoints, &a, start).len(), 2);
    let member = |endpoints: &Endpoints, host| endpoints.get("a", address(host)).unwrap().clone();
    assert_eq!((member(&endpoints, 3).state(), member(&endpoints, 3).cut()), (State::Unhealthy, None));

    let later = start + second;
    endpoints.set(&a, &[unready(1), endpoint(2), endpoint(3)], later);
    assert_eq!(chosen(&mut endpoints, &a, later), [(address(2), 1), (address(3), 1)]);
    let lost = member(&endpoints, 1);
    assert_eq!((lost.state(), &*lost.why), (State::Unhealthy, "not ready any more"));
    assert_eq!(lost.cut(), Some(later + a.drain_timeout), "as on_unhealthy says");
    assert_eq!(&*member(&endpoints, 3).why, "ready");

    endpoints.set(&a, &[endpoint(1), endpoint(2), endpoint(3)], later + second);
    assert_eq!(chosen(&mut endpoints, &a, later + second).len(), 3);
    assert_eq!(member(&endpoints, 1).cut(), None);
}

/// Pods that have only just been made do not listen yet: panic is no reason to try them.
#[test]
fn one_that_was_never_ready_is_no_part_of_a_panic() {
    let start = Instant::now();
    let a = cluster("a");
    let unready = |host| Endpoint { ready: false, ..endpoint(host) };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &[endpoint(1), unready(2), unready(3), unready(4)], start);
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(1), 1)]);
    endpoints.set(&a, &[unready(1), unready(2), unready(3), unready(4)], start);
    assert_eq!(chosen(&mut endpoints, &a, start).len(), 4, "nothing better is known");
}

#[test]
fn ready_and_healthy_are_two_things() {
    let start = Instant::now();
    let a = checked("a");
    let unready = Endpoint { ready: false, ..endpoint(1) };
    let mut endpoints = Endpoints::default();
    let state = |endpoints: &Endpoints| {
        let member = endpoints.get("a", address(1)).unwrap();
        (member.state(), member.why.to_string())
    };
    endpoints.set(&a, std::slice::from_ref(&unready), start);
    pass(&mut endpoints, &a, 1, start);
    assert_eq!(state(&endpoints).0, State::Unhealthy);
    endpoints.set(&a, &hosts(1..=1), start);
    assert_eq!(state(&endpoints), (State::Healthy, "ready".to_owned()));
    endpoints.set(&a, &[unready], start);
    fail(&mut endpoints, &a, 1, start);
    endpoints.set(&a, &hosts(1..=1), start);
    assert_eq!(state(&endpoints), (State::Unhealthy, "ready, but its health check does not pass".to_owned()));
}

/// Connections that come in panic are not those that are meant.
#[test]
fn what_is_reset_is_older_than_the_reason() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let a = Cluster { on_unhealthy: OnLeaving::Drain, ..checked("a") };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=1), start);
    pass(&mut endpoints, &a, 1, start);
    fail(&mut endpoints, &a, 1, start + second);
    let due = |endpoints: &Endpoints, at| endpoints.get("a", address(1)).unwrap().cut_due(at);
    assert_eq!(due(&endpoints, start + a.drain_timeout), None);
    let end = start + second + a.drain_timeout;
    assert_eq!(due(&endpoints, end), Some(start + second));
    // One that has left has no newer ones, but for those that were on their way.
    endpoints.set(&a, &[], end);
    assert!(due(&endpoints, end + a.drain_timeout).is_some_and(|older_than| older_than > end));
}

#[test]
fn the_reason_of_a_first_failure_is_told() {
    let (start, a) = (Instant::now(), checked("a"));
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=1), start);
    let member = endpoints.get_mut("a", address(1)).unwrap();
    let failing = Health::Failing { timeout: false };
    assert!(member.set_health(failing, "status 404", &a, start), "it was unhealthy before, but for nothing");
    assert_eq!(&*member.why, "status 404");
    assert!(!member.set_health(failing, "status 500", &a, start));
    assert!(!member.set_ejected(true, "refused", &a, start), "it stays unhealthy");
    assert!(member.set_health(Health::Passing, "it passes", &a, start));
    assert_eq!((member.state(), &*member.why), (State::Ejected, "refused"));
}

/// A configuration that is not taken leaves nothing behind.
#[test]
fn a_cluster_of_no_configuration_goes() {
    let (start, a, b) = (Instant::now(), cluster("a"), cluster("b"));
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=1), start);
    endpoints.set(&b, &hosts(2..=2), start);
    let old = Config { clusters: vec![a], ..Config::default() };
    let left = endpoints.keep_clusters(&old, &old, start);
    assert_eq!(left, [(("b".to_owned(), address(2)), State::Healthy)]);
    assert_eq!(endpoints.take_drained(start + GRACE, |_, _| false).len(), 1);
}

/// An EDS file's DRAINING, a pod that terminates: no health check keeps it.
#[test]
fn one_that_is_told_to_leave_leaves_though_its_health_check_passes() {
    let start = Instant::now();
    let a = Cluster { keep_while_healthy: true, ..checked("a") };
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &hosts(1..=2), start);
    pass(&mut endpoints, &a, 1, start);
    pass(&mut endpoints, &a, 2, start);
    assert_eq!(endpoints.set(&a, &[], start), [], "both pass");
    assert_eq!(endpoints.dismiss(&a, [address(1), address(3)].into_iter(), start), [address(1)]);
    assert_eq!(chosen(&mut endpoints, &a, start), [(address(2), 1)]);
    assert_eq!(endpoints.get("a", address(1)).unwrap().state(), State::Draining);
    assert_eq!(endpoints.dismiss(&a, [address(1)].into_iter(), start), [], "once");
}

#[test]
fn what_an_earlier_agent_left_goes_on_where_its_endpoint_comes_late() {
    let start = Instant::now();
    let a = cluster("a");
    let mut endpoints = Endpoints::default();
    for host in [1, 2] {
        endpoints.adopt_draining(address(host), Some(Duration::from_secs(60)), start);
    }
    endpoints.set(&a, &hosts(1..=1), start);
    let cut = |host| endpoints.get("", address(host)).unwrap().cut();
    assert_eq!((cut(1), cut(2)), (None, Some(start + Duration::from_secs(60))));
}

/// The kubelet's probe may fail where our own passes.
#[test]
fn a_good_probe_is_no_reason_to_be_unhealthy() {
    let start = Instant::now();
    let a = checked("a");
    let mut endpoints = Endpoints::default();
    endpoints.set(&a, &[Endpoint { ready: false, ..endpoint(1) }], start);
    pass(&mut endpoints, &a, 1, start);
    assert_eq!(&*endpoints.get("a", address(1)).unwrap().why, "not ready yet");
}

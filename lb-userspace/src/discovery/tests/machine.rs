//! The state machine.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::discovery::MAX_ENDPOINTS;
use crate::discovery::answer::{Answer, Failure, FailureKind, Family, HostAnswer};
use crate::discovery::phase::Phase;
use crate::discovery::saved::SavedCluster;
use crate::discovery::schedule::{MAX_TTL, MIN_WAIT};
use crate::discovery::state::{State, Step};
use crate::model::{Backoff, DnsFamily, DnsHost, StrictDns};

const S: Duration = Duration::from_secs(1);

fn settings(hosts: &[&str]) -> StrictDns {
    let host = |name: &&str| DnsHost::new(name, 80, 1);
    StrictDns {
        hosts: hosts.iter().map(host).collect(),
        refresh_rate: S * 5,
        respect_ttl: false,
        jitter: Duration::ZERO,
        failure_backoff: Backoff { base: S * 5, max: S * 5 },
        hold_nx: Duration::ZERO,
        family: DnsFamily::V4,
        logical: false,
    }
}

fn found_for(addresses: &[&str], ttl: u64) -> Answer {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Answer::Records { addresses, ttl: Duration::from_secs(ttl), refused: Vec::new() }
}

fn found(addresses: &[&str]) -> Answer {
    found_for(addresses, 60)
}

fn failure(kind: FailureKind) -> Answer {
    Answer::Failure(Failure { kind, why: format!("{kind:?}") })
}

fn v4(answer: Answer) -> HostAnswer {
    HostAnswer { v4: Some(answer), v6: None, name: Some("gw.test.".to_owned()) }
}

fn both(v4: Answer, v6: Answer) -> HostAnswer {
    HostAnswer { v4: Some(v4), v6: Some(v6), name: Some("gw.test.".to_owned()) }
}

/// A machine and its clock.
struct Machine {
    state: State,
    now: Duration,
}

impl Machine {
    fn new(settings: &StrictDns) -> Self {
        let mut state = State::new(settings);
        state.start(Duration::ZERO, None);
        Self { state, now: Duration::ZERO }
    }

    /// Answers for the hosts in order, a second after the last.
    fn answer(&mut self, answers: impl IntoIterator<Item = HostAnswer>) -> Step {
        self.now += S;
        let answers: Vec<(usize, HostAnswer)> = answers.into_iter().enumerate().collect();
        self.state.absorb(self.now, &answers, 0.0)
    }

    fn set(&self) -> Vec<String> {
        self.state.endpoints().iter().map(|endpoint| endpoint.address.ip().to_string()).collect()
    }
}

/// `endpoint from>to` for each transition, `-` for the cluster.
fn shown(step: &Step) -> Vec<String> {
    let show =
        |endpoint: Option<SocketAddr>| endpoint.map_or_else(|| "-".to_owned(), |address| address.to_string());
    let transitions = step.transitions.iter();
    transitions.map(|one| format!("{} {}>{}", show(one.endpoint), one.from, one.to)).collect()
}

#[test]
fn endpoints_come_and_go() {
    let mut machine = Machine::new(&settings(&["gw"]));
    assert!(!machine.state.is_known());
    let step = machine.answer([v4(found(&["192.0.2.1", "192.0.2.2"]))]);
    assert!(step.endpoints_changed);
    assert_eq!(
        shown(&step),
        ["192.0.2.1:80 absent>healthy", "192.0.2.2:80 absent>healthy", "- unresolved>resolved"]
    );
    let step = machine.answer([v4(found(&["192.0.2.2", "192.0.2.3"]))]);
    assert_eq!(shown(&step), ["192.0.2.3:80 absent>healthy", "192.0.2.1:80 healthy>draining"]);
    assert_eq!(step.transitions[1].why, "not in the answer for gw any more");
    let step = machine.answer([v4(found(&["192.0.2.2", "192.0.2.3"]))]);
    assert!(!step.endpoints_changed && step.transitions.is_empty());
}

#[test]
fn failures_keep_the_last_good_set_and_are_told_once() {
    let mut machine = Machine::new(&settings(&["gw"]));
    machine.answer([v4(found(&["192.0.2.1"]))]);
    let step = machine.answer([v4(failure(FailureKind::Timeout))]);
    assert_eq!(shown(&step), ["- resolved>stale"]);
    assert_eq!(step.transitions[0].why, "the last good answer is kept: gw: Timeout");
    for _ in 0..1000 {
        assert!(machine.answer([v4(failure(FailureKind::Timeout))]).transitions.is_empty());
    }
    assert_eq!(shown(&machine.answer([v4(failure(FailureKind::ServFail))])), ["- stale>stale"]);
    assert_eq!(machine.set(), ["192.0.2.1"]);
    assert_eq!(shown(&machine.answer([v4(found(&["192.0.2.1"]))])), ["- stale>resolved"]);
}

#[test]
fn nxdomain_and_no_data_empty_at_once_without_a_hold() {
    for nothing in [Answer::NxDomain, Answer::NoData] {
        let mut machine = Machine::new(&settings(&["gw"]));
        machine.answer([v4(found(&["192.0.2.1"]))]);
        let step = machine.answer([v4(nothing)]);
        assert_eq!(shown(&step), ["192.0.2.1:80 healthy>draining", "- resolved>empty"]);
        assert!(step.transitions[1].why.contains(" for gw"), "{step:?}");
        // A failure after that does not make it unknown.
        machine.answer([v4(failure(FailureKind::Timeout))]);
        assert!(machine.state.is_known() && machine.set().is_empty());
    }
}

#[test]
fn the_hold_needs_negative_answers_without_interruption() {
    let mut machine = Machine::new(&StrictDns { hold_nx: S * 3, ..settings(&["gw"]) });
    machine.answer([v4(found(&["192.0.2.1"]))]);
    let step = machine.answer([v4(Answer::NxDomain)]);
    assert_eq!(shown(&step), ["- resolved>stale"]);
    assert_eq!(step.transitions[0].why, "kept for hold_nx, 3s: NXDOMAIN for gw");
    assert_eq!(step.wait, S * 3, "asked again when the hold ends");
    machine.answer([v4(Answer::NoData)]);
    machine.answer([v4(failure(FailureKind::Timeout))]);
    for _ in 0..3 {
        machine.answer([v4(Answer::NxDomain)]);
        assert_eq!(machine.set(), ["192.0.2.1"]);
    }
    let step = machine.answer([v4(Answer::NxDomain)]);
    assert_eq!(shown(&step), ["192.0.2.1:80 healthy>draining", "- stale>empty"]);
    assert_eq!(step.transitions[0].why, "NXDOMAIN for gw for more than hold_nx, 3s");
}

#[test]
fn a_hold_lasts_from_the_answers_of_the_family_that_is_held() {
    let hold = S * 300;
    let settings = StrictDns { family: DnsFamily::Auto, hold_nx: hold, ..settings(&["gw"]) };
    // Only one family was ever there; the other had nothing all along.
    for (first, held) in [("2001:db8::1", Family::V6), ("192.0.2.1", Family::V4)] {
        let answers = |of_held: Answer| match held {
            Family::V4 => both(of_held, Answer::NoData),
            Family::V6 => both(Answer::NoData, of_held),
        };
        let mut machine = Machine::new(&settings);
        machine.answer([answers(found(&[first]))]);
        for _ in 0..400 {
            machine.answer([answers(failure(FailureKind::ServFail))]);
        }
        let mut refreshes = 0;
        let began = machine.now + S;
        while !machine.set().is_empty() {
            let step = machine.answer([answers(Answer::NoData)]);
            refreshes += 1;
            let left = hold.saturating_sub(machine.now - began);
            assert!(left.is_zero() || step.wait == left.min(S * 5), "{:?} with {left:?} left", step.wait);
            if refreshes == 1 {
                let why = &step.transitions.last().unwrap().why;
                assert_eq!(why, "kept for hold_nx, 5m: no records for gw");
            }
            // The next answer comes a second after the wait began, so this is all of the wait.
            machine.now += step.wait - S;
        }
        assert_eq!((machine.now + S - S * 5 - began, refreshes), (hold, 61), "{held:?}");
    }
}

#[test]
fn a_family_that_fails_keeps_its_own() {
    let mut machine = Machine::new(&StrictDns { family: DnsFamily::Auto, ..settings(&["gw"]) });
    machine.answer([both(found(&["192.0.2.1"]), found(&["2001:db8::1"]))]);
    let step = machine.answer([both(found(&["192.0.2.2"]), failure(FailureKind::Timeout))]);
    assert_eq!(machine.set(), ["192.0.2.2", "2001:db8::1"]);
    assert_eq!(machine.state.phase().0, Phase::Stale);
    assert_eq!(step.wait, S * 5);
    // The name is there, only not for this family: at once, hold or not.
    machine.answer([both(found(&["192.0.2.2"]), Answer::NoData)]);
    assert_eq!(machine.set(), ["192.0.2.2"]);
    assert_eq!(machine.state.phase().0, Phase::Resolved);
}

#[test]
fn a_host_of_one_family_is_no_event() {
    let mut machine = Machine::new(&StrictDns { family: DnsFamily::All, ..settings(&["gw"]) });
    let step = machine.answer([both(found(&["192.0.2.1"]), Answer::NoData)]);
    assert_eq!(shown(&step), ["192.0.2.1:80 absent>healthy", "- unresolved>resolved"]);
    // Nothing of the family is kept, so its failures change nothing.
    assert!(
        machine.answer([both(found(&["192.0.2.1"]), failure(FailureKind::ServFail))]).transitions.is_empty()
    );
}

#[test]
fn hosts_are_merged_with_the_greatest_weight() {
    let mut settings = settings(&["one", "two", "192.0.2.9"]);
    settings.hosts[1].weight = 5;
    let mut machine = Machine::new(&settings);
    assert_eq!(machine.set(), ["192.0.2.9"]);
    machine.answer([v4(found(&["192.0.2.1"])), v4(found(&["192.0.2.1", "192.0.2.2"]))]);
    let weights: Vec<u32> = machine.state.endpoints().iter().map(|endpoint| endpoint.weight).collect();
    assert_eq!(
        (machine.set(), weights),
        (["192.0.2.1", "192.0.2.2", "192.0.2.9"].map(str::to_owned).into(), vec![5, 5, 1])
    );
    // One host fails: its own are kept, the other's follow.
    machine.answer([v4(failure(FailureKind::Timeout)), v4(found(&["192.0.2.3"]))]);
    assert_eq!(machine.set(), ["192.0.2.1", "192.0.2.3", "192.0.2.9"]);
}

#[test]
fn more_than_the_bound_is_cut_in_order_with_one_warning() {
    let mut machine = Machine::new(&settings(&["gw"]));
    let addresses = (0..5000_u32).map(|n| IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 | n))).collect();
    let many = v4(Answer::Records { addresses, ttl: S, refused: Vec::new() });
    let step = machine.answer([many.clone()]);
    assert_eq!(machine.state.endpoints().len(), MAX_ENDPOINTS);
    let warnings = step.transitions.iter().filter(|one| one.why.contains("5000 endpoints"));
    assert_eq!(warnings.count(), 1);
    assert!(machine.answer([many]).transitions.is_empty());
}

#[test]
fn an_endpoint_that_comes_and_goes_is_held() {
    let mut machine = Machine::new(&settings(&["gw"]));
    let mut changes = 0;
    let mut told = 0;
    for round in 0..60 {
        let rotating = ["192.0.2.1", "192.0.2.2"][round % 2];
        let step = machine.answer([v4(found(&[rotating, "192.0.2.9"]))]);
        changes += usize::from(step.endpoints_changed);
        told += step.transitions.iter().filter(|one| one.why.starts_with("held: came and went")).count();
    }
    assert_eq!(machine.set(), ["192.0.2.1", "192.0.2.2", "192.0.2.9"]);
    assert!(changes <= 9, "{changes}");
    assert_eq!(told, 2);
    // Gone for good: half a minute after the last answer with it.
    for _ in 0..31 {
        machine.answer([v4(found(&["192.0.2.9"]))]);
    }
    assert_eq!(machine.set(), ["192.0.2.9"]);
}

#[test]
fn refused_addresses_are_told_once() {
    let mut machine = Machine::new(&settings(&["gw"]));
    let answer = Answer::Records {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ttl: S,
        refused: vec!["0.0.0.0".parse().unwrap()],
    };
    let step = machine.answer([v4(answer.clone())]);
    let last = step.transitions.last().unwrap();
    assert_eq!(
        (last.from, last.to, last.why.as_str()),
        ("absent", "absent", "left out of the answer: the unspecified address")
    );
    assert!(machine.answer([v4(answer)]).transitions.is_empty());
}

fn saved() -> SavedCluster {
    let addresses =
        vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap(), "0.0.0.0".parse().unwrap()];
    SavedCluster { origin: "from FILE, saved at TIME".into(), hosts: [("gw".to_owned(), addresses)].into() }
}

#[test]
fn a_cold_start_uses_what_was_saved_until_the_first_answer() {
    let mut state = State::new(&settings(&["gw", "other"]));
    let step = state.start(Duration::ZERO, Some(&saved()));
    let mut machine = Machine { state, now: Duration::ZERO };
    // Not those of a family that is not asked for.
    assert_eq!(shown(&step), ["192.0.2.1:80 absent>healthy", "- unresolved>saved"]);
    assert_eq!(step.transitions[1].why, "from FILE, saved at TIME, until DNS answers");
    let fail = || [v4(failure(FailureKind::Timeout)), v4(failure(FailureKind::Timeout))];
    let step = machine.answer(fail());
    assert_eq!(shown(&step), ["- saved>saved"]);
    assert_eq!(step.transitions[0].why, "from FILE, saved at TIME, DNS does not answer: gw: Timeout");
    assert!(machine.answer(fail()).transitions.is_empty());
    machine.answer([v4(found(&["192.0.2.7"])), v4(Answer::NxDomain)]);
    assert_eq!((machine.set(), machine.state.phase().0), (vec!["192.0.2.7".to_owned()], Phase::Resolved));
}

#[test]
fn a_cold_start_without_anything_says_why_once() {
    let mut machine = Machine::new(&settings(&["gw"]));
    let step = machine.answer([v4(failure(FailureKind::Timeout))]);
    assert_eq!(shown(&step), ["- unresolved>unresolved"]);
    assert_eq!(step.transitions[0].why, "gw: Timeout");
    assert!(machine.answer([v4(failure(FailureKind::Timeout))]).transitions.is_empty());
    assert!(!machine.state.is_known());
}

#[test]
fn a_reload_loses_nothing_before_the_new_hosts_answered() {
    let mut machine = Machine::new(&settings(&["old", "both"]));
    machine.answer([v4(found(&["192.0.2.1"])), v4(found(&["192.0.2.2"]))]);
    let step = machine.state.reconfigure(machine.now, &settings(&["both", "new"]));
    assert!(!step.endpoints_changed);
    machine.answer([v4(found(&["192.0.2.2"])), v4(failure(FailureKind::Timeout))]);
    assert_eq!(machine.set(), ["192.0.2.1", "192.0.2.2"]);
    machine.answer([v4(found(&["192.0.2.2"])), v4(found(&["192.0.2.3"]))]);
    assert_eq!(machine.set(), ["192.0.2.2", "192.0.2.3"]);
    // Another port is another endpoint, of the same known address.
    let mut moved = settings(&["both", "new"]);
    moved.hosts[0].port = 81;
    let step = machine.state.reconfigure(machine.now, &moved);
    assert_eq!(shown(&step), ["192.0.2.2:81 absent>healthy", "192.0.2.2:80 healthy>draining"]);
    // The other family: the old one goes when that has answered.
    let other = StrictDns { family: DnsFamily::V6, ..moved };
    assert!(!machine.state.reconfigure(machine.now, &other).endpoints_changed);
    let v6 = |address: &str| HostAnswer { v4: None, v6: Some(found(&[address])), name: None };
    machine.answer([v6("2001:db8::1"), v6("2001:db8::2")]);
    assert_eq!(machine.set(), ["2001:db8::1", "2001:db8::2"]);
}

#[test]
fn the_waits() {
    let ttl = StrictDns {
        respect_ttl: true,
        failure_backoff: Backoff { base: S, max: S * 6 },
        jitter: S * 2,
        ..settings(&["gw"])
    };
    let mut state = State::new(&ttl);
    state.start(Duration::ZERO, None);
    let mut wait = |answer: Answer, random: f64| state.absorb(S, &[(0, v4(answer))], random).wait;
    assert_eq!(wait(found_for(&["192.0.2.1"], 7), 0.0), S * 7);
    assert_eq!(wait(found_for(&["192.0.2.1"], 7), 0.5), S * 8);
    // No busy loop on a TTL of 0, no year either.
    assert_eq!(wait(found_for(&["192.0.2.1"], 0), 0.0), S * 5);
    assert_eq!(wait(found_for(&["192.0.2.1"], u32::MAX.into()), 0.0), MAX_TTL);
    let backoff = [1, 2, 4, 6, 6].map(|seconds| S * seconds);
    assert_eq!(backoff.map(|_| wait(failure(FailureKind::Timeout), 0.0)), backoff);
    assert_eq!(wait(Answer::NxDomain, 0.0), S * 5);
    assert_eq!(wait(failure(FailureKind::Timeout), 0.0), S);
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let addresses = proptest::collection::btree_set(1..20_u8, 1..6);
    prop_oneof![
        4 => (addresses, 0..100_u64).prop_map(|(set, ttl)| {
            let addresses = set.into_iter().map(|n| IpAddr::from([192, 0, 2, n])).collect();
            Answer::Records { addresses, ttl: Duration::from_secs(ttl), refused: Vec::new() }
        }),
        1 => Just(Answer::NoData),
        1 => Just(Answer::NxDomain),
        3 => prop_oneof![
            Just(FailureKind::Timeout), Just(FailureKind::ServFail), Just(FailureKind::Malformed)
        ].prop_map(failure),
    ]
}

proptest! {
    #[test]
    fn invariants(
        steps in proptest::collection::vec((any_answer(), any_answer(), 1..40_000_u64, 0.0..1.0_f64), 1..60),
        hold in 0..60_u64,
        respect_ttl: bool,
        jitter in 0..10_u64,
    ) {
        let settings = StrictDns {
            hold_nx: S * hold as u32,
            respect_ttl,
            jitter: S * jitter as u32,
            failure_backoff: Backoff { base: S, max: S * 30 },
            ..settings(&["one", "two"])
        };
        let longest = (if respect_ttl { S * 100 } else { S * 30 }) + settings.jitter;
        let mut state = State::new(&settings);
        state.start(Duration::ZERO, None);
        let mut now = Duration::ZERO;
        let mut negative_since = [None, None];
        for (one, two, pass, random) in steps {
            now += Duration::from_millis(pass);
            let before = state.endpoints().to_vec();
            let answers = [one, two];
            for (since, answer) in negative_since.iter_mut().zip(&answers) {
                let negative = matches!(answer, Answer::NoData | Answer::NxDomain);
                *since = negative.then(|| since.unwrap_or(now));
            }
            let last_good: Vec<Vec<IpAddr>> = state.to_save().into_values().collect();
            let hosts: Vec<_> = answers.iter().cloned().map(v4).enumerate().collect();
            let step = state.absorb(now, &hosts, random);
            prop_assert!(step.wait >= MIN_WAIT && step.wait <= longest, "{:?}", step.wait);
            prop_assert_eq!(step.endpoints_changed, before != state.endpoints());

            let after: Vec<Vec<IpAddr>> = state.to_save().into_values().collect();
            for host in 0..2 {
                match &answers[host] {
                    // Never empty, nor any other, because of a failure.
                    Answer::Failure(_) => prop_assert_eq!(&after[host], &last_good[host]),
                    Answer::Records { addresses, .. } => prop_assert_eq!(&after[host], addresses),
                    // Never empty before the hold is over, always after it.
                    Answer::NoData | Answer::NxDomain => {
                        let held = now - negative_since[host].unwrap() < settings.hold_nx;
                        let expected = if held { last_good[host].clone() } else { Vec::new() };
                        prop_assert_eq!(&after[host], &expected);
                    }
                }
            }
            // What DNS says is served; the set is sorted and holds each endpoint once.
            let set: Vec<SocketAddr> = state.endpoints().iter().map(|endpoint| endpoint.address).collect();
            for address in after.iter().flatten() {
                prop_assert!(set.contains(&SocketAddr::new(*address, 80)));
            }
            prop_assert!(set.is_sorted_by(|a, b| a < b));
            // The transitions are the difference.
            let had = |address: SocketAddr| before.iter().any(|endpoint| endpoint.address == address);
            for transition in &step.transitions {
                match (transition.endpoint, transition.to) {
                    (Some(address), "healthy") if transition.from == "absent" => {
                        prop_assert!(!had(address) && set.contains(&address));
                    }
                    (Some(address), "draining") => prop_assert!(had(address) && !set.contains(&address)),
                    _ => {}
                }
            }
            // No empty cluster without a reason.
            prop_assert!(!set.is_empty() || !state.phase().1.is_empty());
        }
    }
}

#[test]
fn a_logical_cluster_has_one_endpoint_that_stays_as_long_as_it_is_in_the_answers() {
    let mut machine = Machine::new(&StrictDns { logical: true, ..settings(&["gw.test"]) });
    machine.answer([v4(found(&["10.0.0.3", "10.0.0.2"]))]);
    let first = machine.set();
    assert_eq!(first.len(), 1);
    let other = if first == ["10.0.0.2"] { "10.0.0.3" } else { "10.0.0.2" };
    let step = machine.answer([v4(found(&[other, &first[0], "10.0.0.1"]))]);
    assert!(!step.endpoints_changed);
    assert_eq!(machine.set(), first);
    let step = machine.answer([v4(found(&[other]))]);
    assert!(step.endpoints_changed);
    assert_eq!(machine.set(), [other]);
}

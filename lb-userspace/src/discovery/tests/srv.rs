//! Discovery by SRV: the machine on a virtual clock, and the source against a DNS server of this process.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_resolver::proto::rr::rdata::SRV;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::discovery::answer::{Answer, Failure, FailureKind, HostAnswer, Service, Services, SrvAnswer};
use crate::discovery::feed::{Feed, Report};
use crate::discovery::resolv_conf::ResolvConfFile;
use crate::discovery::resolver::Resolver;
use crate::discovery::schedule::MIN_WAIT;
use crate::discovery::srv::run;
use crate::discovery::srv::state::{Answers, State, Step};
use crate::model::{Backoff, DnsFamily, DnsRefresh, Endpoint, Srv};

const S: Duration = Duration::from_secs(1);

fn settings() -> Srv {
    let refresh = DnsRefresh {
        rate: S * 5,
        respect_ttl: false,
        jitter: Duration::ZERO,
        failure_backoff: Backoff { base: S * 5, max: S * 5 },
        hold_nx: Duration::ZERO,
        family: DnsFamily::V4,
    };
    Srv { name: "_http._tcp.gw".to_owned(), refresh }
}

fn holding(hold_nx: Duration) -> Srv {
    Srv { refresh: DnsRefresh { hold_nx, ..settings().refresh }, ..settings() }
}

/// Priority, weight, port and target of each record.
fn services(records: &[(u16, u16, u16, &str)]) -> SrvAnswer {
    let record = |&(priority, weight, port, target): &(u16, u16, u16, &str)| Service {
        priority,
        weight,
        port,
        target: target.to_owned(),
    };
    let mut records: Vec<Service> = records.iter().map(record).collect();
    records.sort();
    let services = Services { records, ttl: S * 60, along: BTreeMap::new() };
    SrvAnswer::Records { services, name: "_http._tcp.gw.test.".to_owned() }
}

fn found(addresses: &[&str]) -> Answer {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Answer::Records { addresses, ttl: S * 30, refused: Vec::new() }
}

fn failure() -> Answer {
    Answer::Failure(Failure { kind: FailureKind::Timeout, why: "silence".to_owned() })
}

struct Machine {
    state: State,
    now: Duration,
}

impl Machine {
    fn new(settings: Srv) -> Self {
        Self { state: State::new(settings), now: Duration::ZERO }
    }

    /// Answers for the name and the targets, a second after the last.
    fn answer(&mut self, service: SrvAnswer, hosts: &[(&str, Answer)]) -> Step {
        self.now += S;
        let v4 = |answer: &Answer| HostAnswer { v4: Some(answer.clone()), v6: None, name: None };
        let hosts = hosts.iter().map(|(target, answer)| ((*target).to_owned(), v4(answer))).collect();
        self.state.absorb(self.now, Answers { service, hosts }, 0.0)
    }

    fn none(&mut self, answer: Answer) -> Step {
        self.answer(SrvAnswer::None(answer), &[])
    }
}

/// `address*weight@level` of each endpoint, and what left.
fn shown(report: &Report) -> (Vec<String>, Vec<String>) {
    let Report::Endpoints { endpoints, left, .. } = report else { panic!("{report:?}") };
    let show =
        |endpoint: &Endpoint| format!("{}*{}@{}", endpoint.address, endpoint.weight, endpoint.priority);
    let left = left.iter().map(|(address, why)| format!("{address}: {why}"));
    (endpoints.iter().map(show).collect(), left.collect())
}

#[track_caller]
fn is_set(step: &Step, endpoints: &[&str], left: &[&str]) {
    let (is, gone) = shown(&step.report);
    assert_eq!(
        (is, gone),
        (endpoints.iter().map(ToString::to_string).collect(), left.iter().map(ToString::to_string).collect())
    );
}

#[track_caller]
fn has_failed(step: &Step, why: &str) {
    assert_eq!(step.report, Report::Failed(why.to_owned()));
}

#[test]
fn ports_weights_and_priorities_are_those_of_the_records() {
    let mut machine = Machine::new(settings());
    let records =
        services(&[(10, 2000, 8080, "a."), (10, 1000, 8081, "b."), (20, 7, 80, "c."), (30, 0, 80, "c.")]);
    let hosts = [
        ("a.", found(&["192.0.2.1", "192.0.2.2"])),
        ("b.", found(&["192.0.2.1"])),
        ("c.", found(&["192.0.2.3"])),
    ];
    let step = machine.answer(records, &hosts);
    // c. is there twice: what counts is its first level, so that there is no third.
    is_set(
        &step,
        &["192.0.2.1:8080*2@0", "192.0.2.1:8081*1@0", "192.0.2.2:8080*2@0", "192.0.2.3:80*7@1"],
        &[],
    );
    let Report::Endpoints { why, .. } = &step.report else { unreachable!() };
    assert_eq!(why, "in the SRV answer for _http._tcp.gw");
    assert_eq!((step.note, step.wait), (None, S * 5));
    assert_eq!(machine.state.known(), Some("_http._tcp.gw.test."));
}

#[test]
fn weights_keep_their_proportions_and_0_is_least() {
    let weights = |weights: &[u16]| {
        let names: Vec<String> = (0..weights.len()).map(|n| format!("h{n}.")).collect();
        let addresses: Vec<String> = (1..=weights.len()).map(|n| format!("192.0.2.{n}")).collect();
        let records: Vec<_> = names.iter().zip(weights).map(|(name, w)| (1, *w, 80, name.as_str())).collect();
        let hosts: Vec<_> =
            names.iter().zip(&addresses).map(|(name, address)| (name.as_str(), found(&[address]))).collect();
        let step = Machine::new(settings()).answer(services(&records), &hosts);
        let Report::Endpoints { endpoints, .. } = step.report else { panic!("{step:?}") };
        endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights(&[0, 0]), [1, 1]);
    assert_eq!(weights(&[1, 2, 100]), [1, 2, 100]);
    assert_eq!(weights(&[65535, 65535]), [1, 1]);
    assert_eq!(weights(&[50000, 25000, 1]), [256, 128, 1]);
    assert_eq!(weights(&[0, 10, 20]), [1, 128, 256]);
    assert_eq!(weights(&[0, 1]), [1, 256]);
}

#[test]
fn records_of_one_address_and_port_are_one_endpoint() {
    let mut machine = Machine::new(settings());
    let records = services(&[(1, 10, 80, "a."), (1, 20, 80, "b."), (1, 30, 80, "c."), (2, 99, 80, "a.")]);
    let hosts = [("a.", found(&["192.0.2.1"])), ("b.", found(&["192.0.2.1"])), ("c.", found(&["192.0.2.2"]))];
    is_set(&machine.answer(records, &hosts), &["192.0.2.1:80*30@0", "192.0.2.2:80*30@0"], &[]);
}

#[test]
fn what_left_says_why() {
    let mut machine = Machine::new(settings());
    let two = || services(&[(1, 1, 80, "a."), (1, 1, 80, "b.")]);
    machine.answer(two(), &[("a.", found(&["192.0.2.1", "192.0.2.2"])), ("b.", found(&["192.0.2.3"]))]);
    let step = machine.answer(two(), &[("a.", found(&["192.0.2.2"])), ("b.", Answer::NxDomain)]);
    is_set(
        &step,
        &["192.0.2.2:80*1@0"],
        &["192.0.2.1:80: not in the answer for a. any more", "192.0.2.3:80: NXDOMAIN for b."],
    );
    assert_eq!(step.note.as_deref(), Some("NXDOMAIN for b."));
    let step = machine.answer(services(&[(1, 1, 81, "a.")]), &[("a.", found(&["192.0.2.2"]))]);
    let why = "192.0.2.2:80: a.:80 is not in the SRV answer for _http._tcp.gw any more";
    is_set(&step, &["192.0.2.2:81*1@0"], &[why]);
}

#[test]
fn a_target_that_fails_keeps_its_last_addresses() {
    let mut machine = Machine::new(settings());
    let two = || services(&[(1, 1, 80, "a."), (1, 1, 80, "b.")]);
    machine.answer(two(), &[("a.", found(&["192.0.2.1"])), ("b.", found(&["192.0.2.2"]))]);
    for _ in 0..100 {
        let step = machine.answer(two(), &[("a.", failure()), ("b.", found(&["192.0.2.3"]))]);
        assert_eq!(shown(&step.report).0, ["192.0.2.1:80*1@0", "192.0.2.3:80*1@0"]);
        assert_eq!(step.note.as_deref(), Some("its last addresses are kept: a.: silence"));
    }
    // Of a target that never answered there is nothing to keep, and the others serve.
    let three = services(&[(1, 1, 80, "b."), (1, 1, 80, "new.")]);
    let step = machine.answer(three, &[("b.", found(&["192.0.2.3"])), ("new.", failure())]);
    assert_eq!(shown(&step.report).0, ["192.0.2.3:80*1@0"]);
    // But if there is no other, what was there before it is better than nothing.
    let step = machine.answer(services(&[(1, 1, 80, "newer.")]), &[("newer.", failure())]);
    has_failed(&step, "no target of _http._tcp.gw has an address: newer.: silence");
    assert_eq!(step.wait, S * 5);
}

#[test]
fn failures_of_the_name_keep_everything() {
    let backoff = Backoff { base: S, max: S * 6 };
    let mut machine = Machine::new(Srv {
        refresh: DnsRefresh { failure_backoff: backoff, ..settings().refresh },
        ..settings()
    });
    let one = || services(&[(1, 1, 80, "a.")]);
    machine.answer(one(), &[("a.", found(&["192.0.2.1"]))]);
    for wait in [1, 2, 4, 6, 6] {
        let step = machine.none(failure());
        has_failed(&step, "_http._tcp.gw: silence");
        assert_eq!(step.wait, S * wait);
    }
    // Also the addresses of the target.
    let step = machine.answer(one(), &[("a.", failure())]);
    is_set(&step, &["192.0.2.1:80*1@0"], &[]);
    assert_eq!(step.wait, S);
}

#[test]
fn nothing_empties_at_once_without_a_hold() {
    for (nothing, text) in [(Answer::NxDomain, "NXDOMAIN"), (Answer::NoData, "no SRV records")] {
        let mut machine = Machine::new(settings());
        machine.answer(services(&[(1, 1, 80, "a.")]), &[("a.", found(&["192.0.2.1"]))]);
        let step = machine.none(nothing.clone());
        is_set(&step, &[], &[&format!("192.0.2.1:80: {text} for _http._tcp.gw")]);
        // It left once.
        is_set(&machine.none(nothing), &[], &[]);
    }
    let mut machine = Machine::new(settings());
    let one = || services(&[(1, 1, 80, "a.")]);
    machine.answer(one(), &[("a.", found(&["192.0.2.1"]))]);
    let step = machine.answer(one(), &[("a.", Answer::NxDomain)]);
    is_set(&step, &[], &["192.0.2.1:80: no target of _http._tcp.gw has an address: NXDOMAIN for a."]);
}

#[test]
fn the_hold_needs_negative_answers_without_interruption() {
    let mut machine = Machine::new(holding(S * 3));
    machine.answer(services(&[(1, 1, 80, "a.")]), &[("a.", found(&["192.0.2.1"]))]);
    let step = machine.none(Answer::NxDomain);
    has_failed(&step, "kept for hold_nx, 3s: NXDOMAIN for _http._tcp.gw");
    assert_eq!(step.wait, S * 3, "asked again when the hold ends");
    machine.none(Answer::NoData);
    machine.none(failure());
    for left in [3, 2, 1] {
        let step = machine.none(Answer::NxDomain);
        assert!(matches!(step.report, Report::Failed(_)));
        assert_eq!(step.wait, S * left);
    }
    let step = machine.none(Answer::NxDomain);
    is_set(&step, &[], &["192.0.2.1:80: NXDOMAIN for _http._tcp.gw for more than hold_nx, 3s"]);
    assert_eq!(step.wait, S * 5);
}

#[test]
fn each_target_is_held_too() {
    let mut machine = Machine::new(holding(S * 3));
    let two = || services(&[(1, 1, 80, "a."), (1, 1, 80, "b.")]);
    machine.answer(two(), &[("a.", found(&["192.0.2.1"])), ("b.", found(&["192.0.2.2"]))]);
    let lost = |machine: &mut Machine| {
        machine.answer(two(), &[("a.", Answer::NxDomain), ("b.", found(&["192.0.2.2"]))])
    };
    for left in [3, 2, 1] {
        let step = lost(&mut machine);
        is_set(&step, &["192.0.2.1:80*1@0", "192.0.2.2:80*1@0"], &[]);
        assert_eq!(step.wait, S * left);
    }
    is_set(
        &lost(&mut machine),
        &["192.0.2.2:80*1@0"],
        &["192.0.2.1:80: NXDOMAIN for a. for more than hold_nx, 3s"],
    );
}

#[test]
fn a_service_that_says_it_is_not_there_is_believed_at_once() {
    let mut machine = Machine::new(holding(S * 60));
    machine.answer(services(&[(1, 1, 80, "a.")]), &[("a.", found(&["192.0.2.1"]))]);
    let why = "_http._tcp.gw has the target `.`: the service is not available";
    is_set(&machine.answer(services(&[(0, 0, 0, ".")]), &[]), &[], &[&format!("192.0.2.1:80: {why}")]);
    // Beside others it is passed over, as is a port that is none.
    let mixed = services(&[(0, 0, 80, "."), (1, 1, 80, "a."), (1, 1, 0, "a.")]);
    is_set(&machine.answer(mixed, &[("a.", found(&["192.0.2.1"]))]), &["192.0.2.1:80*1@0"], &[]);
}

#[test]
fn ttls_and_jitter_make_the_waits() {
    let refresh = DnsRefresh { respect_ttl: true, jitter: S * 2, ..settings().refresh };
    let mut state = State::new(Srv { refresh, ..settings() });
    let v4 = HostAnswer { v4: Some(found(&["192.0.2.1"])), v6: None, name: None };
    let answers =
        |hosts: BTreeMap<String, HostAnswer>| Answers { service: services(&[(1, 1, 80, "a.")]), hosts };
    assert_eq!(state.absorb(S, answers([("a.".to_owned(), v4)].into()), 0.5).wait, S * 31);
    let none = HostAnswer { v4: Some(Answer::NoData), v6: None, name: None };
    assert_eq!(state.absorb(S, answers([("a.".to_owned(), none)].into()), 0.0).wait, S * 60);
}

#[test]
fn many_records_and_addresses_are_cut_and_told() {
    let names: Vec<String> = (0..1500).map(|n| format!("h{n:04}.")).collect();
    let records: Vec<_> = names.iter().map(|name| (1, 1, 80, name.as_str())).collect();
    let many: Vec<String> = (0..=255).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let hosts: Vec<_> = names.iter().map(|name| (name.as_str(), found(&many))).collect();
    let step = Machine::new(settings()).answer(services(&records), &hosts);
    assert_eq!(shown(&step.report).0.len(), 256);
    assert_eq!(step.note.as_deref(), Some("1500 records: only the first 1024 are used"));
    let ports: Vec<_> = (1..=32).map(|port| (1, 1, port, "a.")).collect();
    let step = Machine::new(settings()).answer(services(&ports), &[("a.", found(&many))]);
    assert_eq!(shown(&step.report).0.len(), 4096);
    assert_eq!(step.note.as_deref(), Some("8192 endpoints: only the first 4096 are used"));
}

fn any_service() -> impl Strategy<Value = SrvAnswer> {
    let target = prop_oneof![Just("a."), Just("b."), Just("c."), Just(".")];
    let record = (0..4_u16, any::<u16>(), 79..83_u16, target);
    prop_oneof![
        6 => proptest::collection::vec(record, 1..6).prop_map(|records| services(&records)),
        1 => Just(SrvAnswer::None(Answer::NxDomain)),
        1 => Just(SrvAnswer::None(Answer::NoData)),
        2 => Just(SrvAnswer::None(failure())),
    ]
}

fn any_host() -> impl Strategy<Value = Answer> {
    let addresses = proptest::collection::btree_set(1..6_u8, 1..4);
    prop_oneof![
        4 => addresses.prop_map(|set| {
            let addresses = set.into_iter().map(|n| IpAddr::from([192, 0, 2, n])).collect();
            Answer::Records { addresses, ttl: S, refused: Vec::new() }
        }),
        1 => Just(Answer::NxDomain),
        2 => Just(failure()),
    ]
}

proptest! {
    #[test]
    fn what_is_reported_is_whole(
        steps in proptest::collection::vec(
            (any_service(), any_host(), any_host(), any_host(), 1..20_000_u64, 0.0..1.0_f64), 1..40),
        hold in 0..30_u32,
    ) {
        let mut state = State::new(holding(S * hold));
        let mut now = Duration::ZERO;
        let mut before: Vec<SocketAddr> = Vec::new();
        for (service, a, b, c, pass, random) in steps {
            now += Duration::from_millis(pass);
            let is_failure = matches!(service, SrvAnswer::None(Answer::Failure(_)));
            let v4 = |answer| HostAnswer { v4: Some(answer), v6: None, name: None };
            let hosts = [("a.", a), ("b.", b), ("c.", c)].map(|(name, answer)| (name.to_owned(), v4(answer)));
            let step = state.absorb(now, Answers { service, hosts: hosts.into() }, random);
            prop_assert!(step.wait >= MIN_WAIT && step.wait <= S * 5, "{:?}", step.wait);
            let Report::Endpoints { endpoints, left, .. } = step.report else { continue };
            prop_assert!(!is_failure);
            // Each once, in the ranges, levels without gaps, and every one that left says why.
            let addresses: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
            let mut each_once = addresses.clone();
            each_once.sort();
            each_once.dedup();
            prop_assert_eq!(each_once.len(), addresses.len());
            prop_assert!(endpoints.iter().all(|endpoint| (1..=256).contains(&endpoint.weight)));
            let levels: std::collections::BTreeSet<u32> =
                endpoints.iter().map(|endpoint| endpoint.priority).collect();
            prop_assert!(levels.iter().copied().eq(0..levels.len() as u32), "{:?}", levels);
            let gone: Vec<SocketAddr> =
                before.iter().filter(|address| !addresses.contains(address)).copied().collect();
            let told: Vec<SocketAddr> = left.into_keys().collect();
            prop_assert_eq!(told, gone);
            before = each_once;
        }
    }
}

fn srv(owner: &str, priority: u16, weight: u16, port: u16, target: &str) -> Record {
    record(owner, 60, RData::SRV(SRV::new(priority, weight, port, name(target))))
}

/// What DNS knows: SRV records of the service, addresses, and those that come along with the records.
#[derive(Clone, Default)]
struct Zone {
    services: Vec<Record>,
    addresses: Vec<Record>,
    along: Vec<Record>,
    /// Names that are SERVFAIL.
    fails: Vec<&'static str>,
}

fn answer(zone: &Zone, query: &Message, over: Over) -> Reaction {
    let question = &query.queries[0];
    if zone.fails.iter().any(|fails| name(fails) == *question.name()) {
        return code(query, over, ResponseCode::ServFail);
    }
    let all = zone.services.iter().chain(&zone.addresses);
    let of_name: Vec<Record> = all.filter(|record| record.name == *question.name()).cloned().collect();
    if of_name.is_empty() {
        return code(query, over, ResponseCode::NXDomain);
    }
    let mut message = Message::response(query.id, query.op_code);
    message.metadata.recursion_available = true;
    message.add_query(question.clone());
    message.add_answers(of_name.into_iter().filter(|record| record.record_type() == question.query_type()));
    if question.query_type() == RecordType::SRV {
        message.add_additionals(zone.along.iter().cloned());
    }
    reply(&message, over)
}

/// A source that asks a server of this zone, and what it reports.
struct Served {
    zone: Arc<Mutex<Zone>>,
    server: FakeDns,
    reports: mpsc::Receiver<(u64, Arc<str>, Report)>,
    tasks: JoinSet<()>,
    _scratch: Scratch,
}

impl Served {
    async fn start(zone: Zone, settings: Srv, resolv_conf: &str) -> Self {
        let zone = Arc::new(Mutex::new(zone));
        let told = Arc::clone(&zone);
        let server = FakeDns::start(move |query, over| answer(&told.lock().unwrap(), query, over)).await;
        let scratch = Scratch::new();
        let conf = ResolvConfFile::new(scratch.resolv_conf(resolv_conf));
        let resolver = Arc::new(Resolver::new(conf, server.address.port()));
        let (feed, reports) = Feed::alone();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(settings, resolver, feed));
        Self { zone, server, reports, tasks, _scratch: scratch }
    }

    /// Goes on until what is reported is wanted.
    async fn until(&mut self, wanted: impl Fn(&Report) -> bool) {
        let reached = async {
            loop {
                let (_, _, report) = self.reports.recv().await.expect("a source that goes on");
                if wanted(&report) {
                    return;
                }
            }
        };
        timeout(S * 20, reached).await.expect("the report");
    }

    async fn until_set(&mut self, endpoints: &[&str]) {
        self.until(|report| matches!(report, Report::Endpoints { .. }) && shown(report).0 == endpoints).await;
    }
}

fn quick(family: DnsFamily) -> Srv {
    let rate = Duration::from_millis(100);
    let failure_backoff = Backoff { base: rate, max: rate };
    Srv { refresh: DnsRefresh { rate, failure_backoff, family, ..settings().refresh }, ..settings() }
}

const CONF: &str = "nameserver 127.0.0.1\nsearch test.\noptions timeout:1 attempts:1\n";

#[tokio::test]
async fn the_source_follows_the_zone() {
    let service = "_http._tcp.gw.test.";
    let zone = Zone {
        services: vec![srv(service, 1, 1, 8080, "A.test."), srv(service, 2, 1, 8081, "b.test.")],
        addresses: vec![
            address_record("a.test.", 60, "192.0.2.1"),
            address_record("a.test.", 60, "2001:db8::1"),
            address_record("b.test.", 60, "192.0.2.2"),
        ],
        ..Zone::default()
    };
    let mut served = Served::start(zone.clone(), quick(DnsFamily::Auto), CONF).await;
    served.until_set(&["192.0.2.1:8080*1@0", "192.0.2.2:8081*1@1", "[2001:db8::1]:8080*1@0"]).await;
    assert!(served.server.asked().contains(&(service.to_owned(), RecordType::SRV, Over::Udp)));

    // A name of the search list that fails after it answered is not replaced by another.
    served.zone.lock().unwrap().fails = vec![service];
    served.until(|report| matches!(report, Report::Failed(why) if why.contains("answered SERVFAIL"))).await;
    *served.zone.lock().unwrap() = Zone { fails: vec!["a.test."], ..zone.clone() };
    served.until_set(&["192.0.2.1:8080*1@0", "192.0.2.2:8081*1@1", "[2001:db8::1]:8080*1@0"]).await;
    *served.zone.lock().unwrap() = Zone { services: vec![zone.services[1].clone()], ..zone };
    served.until_set(&["192.0.2.2:8081*1@0"]).await;
    *served.zone.lock().unwrap() = Zone::default();
    served.until_set(&[]).await;
    served.tasks.abort_all();
}

#[tokio::test]
async fn addresses_that_come_along_are_not_asked_for() {
    let service = "_http._tcp.gw.";
    let zone = Zone {
        services: vec![srv(service, 1, 1, 80, "a."), srv(service, 1, 1, 80, "b.")],
        along: vec![address_record("a.", 60, "192.0.2.1"), address_record("other.", 60, "192.0.2.9")],
        addresses: vec![address_record("b.", 60, "192.0.2.2"), address_record("a.", 60, "2001:db8::1")],
        ..Zone::default()
    };
    let mut served = Served::start(zone, quick(DnsFamily::All), "nameserver 127.0.0.1\n").await;
    served.until_set(&["192.0.2.1:80*1@0", "192.0.2.2:80*1@0", "[2001:db8::1]:80*1@0"]).await;
    served.tasks.abort_all();
    let asked: Vec<(String, RecordType)> =
        served.server.asked().into_iter().map(|(name, kind, _)| (name, kind)).collect();
    let was_asked = |name: &str, kind| asked.contains(&(name.to_owned(), kind));
    assert!(!was_asked("a.", RecordType::A), "{asked:?}");
    assert!(was_asked("a.", RecordType::AAAA) && was_asked("b.", RecordType::A), "{asked:?}");
}

#[tokio::test]
async fn a_long_answer_comes_by_tcp_and_an_alias_is_followed() {
    let service = "_http._tcp.gw.";
    let services = (0..100).map(|n| srv("real.", 1, 1, 1000 + n, "a.")).chain([alias(service, 60, "real.")]);
    let zone = Zone {
        services: services.collect(),
        addresses: vec![address_record("a.", 60, "192.0.2.1")],
        ..Zone::default()
    };
    let server = FakeDns::start(move |query, over| {
        let question = &query.queries[0];
        if question.query_type() != RecordType::SRV {
            return answer(&zone, query, over);
        }
        let mut message = response(query, ResponseCode::NoError, &zone.services);
        if over == Over::Udp {
            message.answers.clear();
            message.metadata.truncation = true;
        }
        reply(&message, over)
    })
    .await;
    let scratch = Scratch::new();
    let conf = ResolvConfFile::new(scratch.resolv_conf("nameserver 127.0.0.1\n"));
    let resolver = Resolver::new(conf, server.address.port());
    let answer = timeout(S * 20, resolver.lookup_srv("_http._tcp.gw.", None)).await.expect("an answer");
    let SrvAnswer::Records { services, name } = answer else { panic!("{answer:?}") };
    assert_eq!((services.records.len(), name.as_str()), (100, service));
    assert_eq!(server.asked().iter().filter(|(_, _, over)| *over == Over::Tcp).count(), 1);
}

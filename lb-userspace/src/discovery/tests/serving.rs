//! The service: updates, reloads, the saved file, a swapped `resolv.conf`.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::*;
use crate::discovery::{Discovery, Update};
use crate::model::{self, Backoff, Cluster, DnsFamily, DnsHost, StrictDns};

const MS: Duration = Duration::from_millis(1);

/// Longer than anything here takes; what is waited for comes or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

const CONF: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";

fn cluster(name: &str, hosts: &[&str]) -> Cluster {
    let host = |name: &&str| DnsHost::new(name, 80, 1);
    let discovery = model::Discovery::StrictDns(StrictDns {
        hosts: hosts.iter().map(host).collect(),
        refresh_rate: MS * 100,
        respect_ttl: false,
        jitter: Duration::ZERO,
        failure_backoff: Backoff { base: MS * 100, max: MS * 100 },
        hold_nx: Duration::ZERO,
        family: DnsFamily::V4,
        logical: false,
    });
    Cluster::sample(name, discovery)
}

async fn update(discovery: &mut Discovery) -> Update {
    timeout(PATIENCE, discovery.changed()).await.expect("an update")
}

/// Goes on until the cluster has these addresses.
async fn until(discovery: &mut Discovery, cluster: &str, addresses: &[&str]) {
    let reached = async {
        while set(discovery, cluster) != addresses {
            discovery.changed().await;
        }
    };
    timeout(PATIENCE, reached).await.expect("the endpoints");
}

fn set(discovery: &Discovery, cluster: &str) -> Vec<String> {
    let endpoints = discovery.endpoints(cluster).unwrap_or_default();
    endpoints.iter().map(|endpoint| endpoint.address.ip().to_string()).collect()
}

/// Always this answer; `None`: SERVFAIL.
async fn server(answer: Option<&'static str>) -> FakeDns {
    FakeDns::start(move |query, over| match answer {
        None => code(query, over, ResponseCode::ServFail),
        Some(address) => {
            let owner = query.queries[0].name().to_ascii();
            records(query, over, &[address_record(&owner, 60, address)])
        }
    })
    .await
}

#[tokio::test]
async fn a_cluster_follows_its_answers() {
    let current = Arc::new(Mutex::new(Some("192.0.2.1")));
    let told = Arc::clone(&current);
    let server = FakeDns::start(move |query, over| match *told.lock().unwrap() {
        None => code(query, over, ResponseCode::NXDomain),
        Some(address) => records(query, over, &[address_record("gw.", 60, address)]),
    })
    .await;
    let scratch = Scratch::new();
    let mut discovery = Discovery::with_port(scratch.resolv_conf(CONF), None, server.address.port());
    discovery.apply(&[cluster("c", &["gw."])]);
    assert!(!discovery.settled());
    assert_eq!(discovery.endpoints("c"), None);
    let first = update(&mut discovery).await;
    assert!(discovery.settled() && first.endpoints_changed && first.cluster == "c");
    assert_eq!(set(&discovery, "c"), ["192.0.2.1"]);
    assert_eq!(discovery.status("c").unwrap().state, "resolved");

    *current.lock().unwrap() = None;
    let second = update(&mut discovery).await;
    let event = serde_json::to_value(&second.events[0]).unwrap();
    assert_eq!(event["endpoint"], "192.0.2.1:80");
    assert_eq!((event["from"].as_str(), event["to"].as_str()), (Some("healthy"), Some("draining")));
    assert_eq!(event["why"], "NXDOMAIN for gw.");
    let at = event["at"].as_str().unwrap();
    assert!(at.len() == "2026-01-01T00:00:00.000Z".len() && at.ends_with('Z'), "{at}");
    assert_eq!(discovery.endpoints("c"), Some(&[][..]));

    // A cluster that is taken out is asked for no more.
    discovery.apply(&[]);
    assert!(discovery.settled() && discovery.endpoints("c").is_none() && discovery.status("c").is_none());
    assert_eq!(discovery.dns.tasks.len(), 0);
}

#[tokio::test]
async fn a_reload_keeps_what_stays() {
    let server = server(Some("192.0.2.1")).await;
    let scratch = Scratch::new();
    let mut discovery = Discovery::with_port(scratch.resolv_conf(CONF), None, server.address.port());
    let clusters = [cluster("a", &["gw."]), cluster("literal", &["192.0.2.8"])];
    discovery.apply(&clusters);
    until(&mut discovery, "literal", &["192.0.2.8"]).await;
    until(&mut discovery, "a", &["192.0.2.1"]).await;
    let task = discovery.dns.clusters["a"].refresh.as_ref().unwrap().0.id();
    discovery.apply(&clusters);
    assert_eq!(discovery.dns.clusters["a"].refresh.as_ref().unwrap().0.id(), task);
    discovery.apply(&[cluster("a", &["gw.", "192.0.2.2"])]);
    assert_eq!(set(&discovery, "a"), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(discovery.dns.tasks.len(), 1);
    assert!(discovery.endpoints("literal").is_none());
}

/// A server that answers with an address until it is told to fail.
async fn failing_later(address: &'static str) -> (FakeDns, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&fails);
    let server = FakeDns::start(move |query, over| {
        if told.load(Ordering::Relaxed) {
            return code(query, over, ResponseCode::ServFail);
        }
        let owner = query.queries[0].name().to_ascii();
        records(query, over, &[address_record(&owner, 60, address)])
    })
    .await;
    (server, fails)
}

#[tokio::test]
async fn a_cluster_that_comes_back_begins_with_what_was_last_known() {
    let (server, fails) = failing_later("192.0.2.1").await;
    let scratch = Scratch::new();
    let mut discovery = Discovery::with_port(scratch.resolv_conf(CONF), None, server.address.port());
    let old = [cluster("c", &["gw."])];
    discovery.apply(&old);
    until(&mut discovery, "c", &["192.0.2.1"]).await;

    // Two reloads that are taken back, to no cluster and to another one.
    fails.store(true, Ordering::Relaxed);
    for between in [&[][..], &[cluster("d", &["other."])]] {
        discovery.apply(between);
        assert!(discovery.endpoints("c").is_none());
        discovery.apply(&old);
        assert_eq!(set(&discovery, "c"), ["192.0.2.1"]);
        let status = discovery.status("c").unwrap();
        assert_eq!(status.state, "saved");
        assert!(status.why.starts_with("the last known of cluster c, taken out at 2"), "{status:?}");
    }
    // Failures do not take it away, and an answer makes it as good as any.
    let stands = async |discovery: &mut Discovery, wanted: fn(&Discovery) -> bool| {
        let reached = async {
            while !wanted(discovery) {
                discovery.changed().await;
            }
        };
        timeout(PATIENCE, reached).await.expect("the state");
    };
    stands(&mut discovery, |it| it.status("c").unwrap().why.contains("SERVFAIL")).await;
    assert_eq!(set(&discovery, "c"), ["192.0.2.1"]);
    fails.store(false, Ordering::Relaxed);
    stands(&mut discovery, |it| it.status("c").unwrap().state == "resolved").await;
    assert_eq!(set(&discovery, "c"), ["192.0.2.1"]);
}

#[tokio::test]
async fn another_cluster_begins_with_the_answers_for_its_names() {
    let (server, fails) = failing_later("192.0.2.1").await;
    let scratch = Scratch::new();
    let mut discovery = Discovery::with_port(scratch.resolv_conf(CONF), None, server.address.port());
    discovery.apply(&[cluster("c", &["gw."])]);
    until(&mut discovery, "c", &["192.0.2.1"]).await;
    fails.store(true, Ordering::Relaxed);

    // Beside the one that has the answers; one of its names was never asked for.
    discovery.apply(&[cluster("c", &["gw."]), cluster("beside", &["gw.", "other."])]);
    assert_eq!(set(&discovery, "beside"), ["192.0.2.1"]);
    let why = discovery.status("beside").unwrap().why;
    assert_eq!(why, "the last known of gw. in cluster c, until DNS answers");
    // In place of them.
    discovery.apply(&[cluster("a", &["gw."]), cluster("new", &["other."])]);
    assert_eq!(set(&discovery, "a"), ["192.0.2.1"]);
    assert_eq!(discovery.endpoints("new"), None);
    // With none of them left.
    discovery.apply(&[]);
    discovery.apply(&[cluster("z", &["gw."])]);
    assert_eq!(set(&discovery, "z"), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_cluster_that_came_back_is_in_the_saved_file_again() {
    let (server, fails) = failing_later("192.0.2.1").await;
    let scratch = Scratch::new();
    let (conf, state) = (scratch.resolv_conf(CONF), scratch.0.join("state"));
    let mut discovery = Discovery::with_port(conf, Some(state.clone()), server.address.port());
    let old = [cluster("c", &["gw."])];
    discovery.apply(&old);
    until(&mut discovery, "c", &["192.0.2.1"]).await;
    discovery.apply(&[cluster("d", &["other."])]);
    until(&mut discovery, "d", &["192.0.2.1"]).await;
    let path = state.join("discovery.json");
    let has = async |host: &str| {
        let there = async {
            while !std::fs::read_to_string(&path).is_ok_and(|text| text.contains(host)) {
                tokio::time::sleep(MS * 10).await;
            }
        };
        timeout(PATIENCE, there).await.expect("the host in the saved file");
    };
    has("other.").await;
    fails.store(true, Ordering::Relaxed);
    discovery.apply(&old);
    has("gw.").await;
}

#[tokio::test]
async fn failing_dns_is_told_once_and_asked_again_without_haste() {
    let server = server(None).await;
    let scratch = Scratch::new();
    let mut discovery = Discovery::with_port(scratch.resolv_conf(CONF), None, server.address.port());
    discovery.apply(&[cluster("c", &["gw."])]);
    let first = update(&mut discovery).await;
    assert!(discovery.settled() && !first.endpoints_changed);
    assert_eq!(discovery.endpoints("c"), None);
    assert!(first.events[0].why.contains("answered SERVFAIL"), "{first:?}");
    // Nothing more to tell, however often it fails; and the waits are kept.
    let (before, started) = (server.asked().len(), Instant::now());
    let asked = async {
        while server.asked().len() < before + 5 {
            tokio::time::sleep(MS * 10).await;
        }
    };
    tokio::select! {
        update = discovery.changed() => panic!("{update:?}"),
        asked = timeout(PATIENCE, asked) => asked.expect("five more queries"),
    }
    assert!(started.elapsed() >= MS * 400, "{:?}", started.elapsed());
}

async fn saved_file(dir: &Path) -> String {
    let path = dir.join("discovery.json");
    let there = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&path) {
                return text;
            }
            tokio::time::sleep(MS * 10).await;
        }
    };
    timeout(PATIENCE, there).await.expect("a saved file")
}

#[tokio::test]
async fn the_last_good_answer_outlives_the_agent() {
    let scratch = Scratch::new();
    let conf = scratch.resolv_conf(CONF);
    let state = scratch.0.join("state");
    let hosts = cluster("c", &["gw."]);
    let works = server(Some("192.0.2.1")).await;
    let mut discovery = Discovery::with_port(conf.clone(), Some(state.clone()), works.address.port());
    discovery.apply(std::slice::from_ref(&hosts));
    until(&mut discovery, "c", &["192.0.2.1"]).await;
    let text = saved_file(&state).await;
    assert!(text.contains("\"gw.\"") && text.contains("192.0.2.1"), "{text}");
    drop(discovery);

    let fails = server(None).await;
    let mut discovery = Discovery::with_port(conf.clone(), Some(state.clone()), fails.address.port());
    // Another host's answers are none of ours.
    discovery.apply(&[hosts.clone(), cluster("d", &["gw."]), cluster("e", &["other."])]);
    assert_eq!(set(&discovery, "c"), ["192.0.2.1"]);
    assert_eq!((discovery.endpoints("d"), discovery.endpoints("e")), (None, None));
    let why = async {
        loop {
            let update = discovery.changed().await;
            if let Some(event) = update.events.iter().find(|event| event.why.contains("DNS does not answer"))
            {
                return event.why.clone();
            }
        }
    };
    let why = timeout(PATIENCE, why).await.unwrap();
    assert!(why.starts_with("from ") && why.contains(", saved at 2") && why.contains("SERVFAIL"), "{why}");
    assert_eq!(set(&discovery, "c"), ["192.0.2.1"]);

    let mut discovery = Discovery::with_port(conf, Some(state), works.address.port());
    discovery.apply(&[hosts]);
    assert_eq!(discovery.status("c").unwrap().state, "saved");
    let resolved = async {
        while discovery.status("c").unwrap().state != "resolved" {
            discovery.changed().await;
        }
    };
    timeout(PATIENCE, resolved).await.unwrap();
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_costs_nothing() {
    let scratch = Scratch::new();
    let blocked = scratch.0.join("a-file");
    std::fs::write(&blocked, "").unwrap();
    let server = server(Some("192.0.2.1")).await;
    let conf = scratch.resolv_conf(CONF);
    let mut discovery = Discovery::with_port(conf, Some(blocked.join("state")), server.address.port());
    discovery.apply(&[cluster("c", &["gw."])]);
    until(&mut discovery, "c", &["192.0.2.1"]).await;
}

#[tokio::test]
async fn a_changed_resolv_conf_is_followed() {
    let one = FakeDns::start_at("127.0.0.2:0".parse().unwrap(), |query, over| {
        records(query, over, &[address_record("gw.", 60, "192.0.2.1")])
    })
    .await;
    let port = one.address.port();
    let _two = FakeDns::start_at(SocketAddr::new("127.0.0.3".parse().unwrap(), port), |query, over| {
        records(query, over, &[address_record("gw.", 60, "192.0.2.2")])
    })
    .await;
    let scratch = Scratch::new();
    let conf = scratch.resolv_conf("nameserver 127.0.0.2\n");
    let mut discovery = Discovery::with_port(conf.clone(), None, port);
    discovery.apply(&[cluster("c", &["gw."])]);
    until(&mut discovery, "c", &["192.0.2.1"]).await;
    let next = scratch.0.join("next");
    std::fs::write(&next, "nameserver 127.0.0.3\n").unwrap();
    std::fs::rename(&next, &conf).unwrap();
    until(&mut discovery, "c", &["192.0.2.2"]).await;
}

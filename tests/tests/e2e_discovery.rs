//! Endpoints from a real DNS server: they come and go, and the server fails in every way a server can.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_tests::agent::Agent;
use lb_tests::cmd::wait_for;
use lb_tests::discovery::{
    Cluster, NAME, SILENCE, SOON, backend, endpoints, events, require_endpoints, wait_becomes,
    wait_carried_by, wait_endpoints, wait_why,
};
use lb_tests::dnsmasq::{Dnsmasq, Unknown};
use lb_tests::http::{Connection, sequential};
use lb_tests::rung::Rung;
use lb_tests::scenario::Setup;
use lb_tests::topology::{Family, HTTP, Topology};

/// An ended flow keeps its entry, and so its backend, for its TIME_WAIT of a minute.
const CLOSED: Duration = Duration::from_secs(90);
/// Long enough for a few refreshes to end as they will.
const A_WHILE: Duration = Duration::from_secs(2);

#[test]
fn endpoints_come_and_go_on_xdp() {
    endpoints_come_and_go(Setup::Xdp);
}

#[test]
fn endpoints_come_and_go_on_tc() {
    endpoints_come_and_go(Setup::Tc);
}

#[test]
fn endpoints_come_and_go_on_proxy() {
    endpoints_come_and_go(Setup::Proxy);
}

/// A new endpoint gets new connections; one that is gone gets none, while the one it has goes on, and it disappears
/// with that.
fn endpoints_come_and_go(setup: Setup) {
    let cluster = Cluster::start(setup).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, setup, "hosts: [\"web.test:8080\"]");
    wait_endpoints(&agent, &[1, 2]).unwrap();
    require_served(&cluster, &agent, setup.rung(), &[1, 2]);

    cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[1, 2, 3]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
    require_served(&cluster, &agent, setup.rung(), &[1, 2, 3]);

    let mut kept = connections_to_each(&cluster);
    cluster.publish(&[2, 3], Unknown::Absent).unwrap();
    wait_becomes(&agent, 1, "draining").unwrap();
    require_served(&cluster, &agent, setup.rung(), &[2, 3]);
    kept.iter_mut().for_each(|(name, connection)| assert_eq!(connection.get().unwrap(), *name));
    let row = backend(&agent, 1).unwrap().expect("it has a connection");
    assert_eq!((&row["state"], &row["active"]), (&"draining".into(), &1.into()), "{row}");
    require_served(&cluster, &agent, setup.rung(), &[2, 3]);

    drop(kept);
    wait_for("the removed endpoint has no connection", SOON, || {
        let row = backend(&agent, 1)?;
        ensure!(row.as_ref().is_none_or(|row| row["active"] == 0), "{row:?}");
        Ok(())
    })
    .unwrap();
    if setup != Setup::Xdp {
        // On xdp it is as on tc, and one such wait is enough.
        wait_for("the removed endpoint is gone", CLOSED, || {
            let row = backend(&agent, 1)?;
            ensure!(row.is_none(), "{row:?}");
            Ok(())
        })
        .unwrap();
    }

    // And back again.
    cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[1, 2, 3]).unwrap();
    wait_carried_by(&cluster, &agent, setup.rung()).unwrap();
    require_served(&cluster, &agent, setup.rung(), &[1, 2, 3]);
}

/// Silence, SERVFAIL and REFUSED take nothing away, however long they last, and the events say what is wrong.
#[test]
fn a_failing_server_takes_nothing_away() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_endpoints(&agent, &[1, 2]).unwrap();

    let stays = |break_it: &dyn Fn(), words: &[&str]| {
        let known = events(&agent).unwrap().len();
        break_it();
        wait_why(&agent, known, words).unwrap();
        std::thread::sleep(A_WHILE);
        require_endpoints(&agent, &[1, 2]).unwrap();
        require_served(&cluster, &agent, Rung::Tc, &[1, 2]);
    };
    let recovers = |numbers: &[usize]| {
        cluster.publish(numbers, Unknown::Absent).unwrap();
        wait_endpoints(&agent, numbers).unwrap();
    };
    stays(&|| cluster.dns.freeze().unwrap(), &SILENCE);
    cluster.dns.wake().unwrap();
    recovers(&[1, 2, 3]);
    recovers(&[1, 2]);

    stays(&|| cluster.publish(&[], Unknown::ServFail).unwrap(), &["servfail", "server failure"]);
    recovers(&[1, 2, 3]);
    recovers(&[1, 2]);

    stays(&|| cluster.publish(&[], Unknown::Refused).unwrap(), &["refused"]);
    recovers(&[1, 2, 3]);
}

/// Without a hold NXDOMAIN empties the cluster at once; open connections go on, and it fills again.
#[test]
fn nxdomain_empties_the_cluster() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_endpoints(&agent, &[1, 2]).unwrap();
    let mut kept = connections_to_each(&cluster);

    cluster.publish(&[], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[]).unwrap();
    wait_why(&agent, 0, &["nxdomain"]).unwrap();
    kept.iter_mut().for_each(|(name, connection)| assert_eq!(connection.get().unwrap(), *name));
    let refused =
        Connection::open_in(&cluster.topology.client, Family::V4.vip()).and_then(Connection::get_last);
    assert!(refused.is_err(), "nobody is there to answer");

    cluster.publish(&[2], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[2]).unwrap();
    require_served(&cluster, &agent, Rung::Tc, &[2]);
}

/// With a hold it takes that long, and an answer in between makes it as if nothing had been.
#[test]
fn nxdomain_is_held() {
    const HOLD: Duration = Duration::from_secs(4);
    let cluster = Cluster::start(Setup::Tc).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"], hold_nx: 4s");
    wait_endpoints(&agent, &[1, 2]).unwrap();

    cluster.publish(&[], Unknown::Absent).unwrap();
    std::thread::sleep(HOLD / 2);
    require_endpoints(&agent, &[1, 2]).unwrap();
    require_served(&cluster, &agent, Rung::Tc, &[1, 2]);
    cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[1, 2, 3]).unwrap();

    let began = Instant::now();
    cluster.publish(&[], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[]).unwrap();
    assert!(began.elapsed() >= HOLD, "after {:?}", began.elapsed());
    wait_why(&agent, 0, &["nxdomain"]).unwrap();
}

/// A and AAAA of one name: each listener serves its own family.
#[test]
fn both_families_of_one_name() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    let records: Vec<_> =
        Family::ALL.iter().flat_map(|family| [1, 2].map(|n| (NAME, family.backend(n).ip()))).collect();
    cluster.dns.set(&records, Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_for("four endpoints", SOON, || {
        let endpoints = endpoints(&agent)?;
        ensure!(endpoints.len() == 4, "{endpoints:?}");
        Ok(())
    })
    .unwrap();
    for family in Family::ALL {
        let before = agent.totals().unwrap();
        let outcome = sequential(&cluster.topology.client, family.vip(), 20).unwrap();
        outcome.require(20).unwrap();
        assert_eq!(outcome.served.len(), 2, "{family}: {:?}", outcome.served);
        let after = agent.require_carried(&before, Rung::Tc, 20).unwrap();
        for number in 1..=2 {
            let carried = after.of_since(family.backend(number), &before).sum();
            assert_eq!(carried, outcome.served[&format!("b{number}")], "{family}: backend {number}");
        }
    }
}

/// More records than a UDP answer holds: the rest comes by TCP.
#[test]
fn a_truncated_answer_is_asked_for_again() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    let addresses: Vec<IpAddr> = (0..250).map(|n| Ipv4Addr::new(10, 200, 1, n + 2).into()).collect();
    let records: Vec<_> = addresses.iter().map(|address| (NAME, *address)).collect();
    cluster.dns.set(&records, Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_for("250 endpoints", SOON, || {
        let count = endpoints(&agent)?.len();
        ensure!(count == addresses.len(), "{count}");
        Ok(())
    })
    .unwrap();
}

/// With DNS down at the start the endpoints of the last run serve, and the event says where they are from.
#[test]
fn a_cold_start_without_dns() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let mut agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_endpoints(&agent, &[1, 2]).unwrap();
    agent.terminate().unwrap();
    agent.require_exit(SOON).unwrap();

    cluster.dns.freeze().unwrap();
    let states = std::thread::scope(|scope| {
        let asking = scope.spawn(|| states_until_live(&cluster.topology));
        agent.restart(&["--resolv-conf", cluster.resolv_conf().to_str().unwrap()]).unwrap();
        asking.join().unwrap()
    });
    assert_eq!(states, ["INITIALIZING 503", "LIVE 200"], "a probe sees the start");
    wait_endpoints(&agent, &[1, 2]).unwrap();
    require_served(&cluster, &agent, Rung::Tc, &[1, 2]);
    wait_why(&agent, 0, &["saved"]).unwrap();

    cluster.dns.wake().unwrap();
    cluster.publish(&[2, 3], Unknown::Absent).unwrap();
    wait_endpoints(&agent, &[2, 3]).unwrap();
    require_served(&cluster, &agent, Rung::Tc, &[2, 3]);
}

/// Another server in resolv.conf, by a file moved over it and by a symbolic link that is turned, as Kubernetes does.
#[test]
fn resolv_conf_is_followed() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    cluster.publish(&[1], Unknown::Absent).unwrap();
    let other = Dnsmasq::start(&cluster.topology.lb, Ipv4Addr::new(127, 0, 0, 2).into()).unwrap();
    other.set(&[(NAME, Family::V4.backend(2).ip())], Unknown::Absent).unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_endpoints(&agent, &[1]).unwrap();

    cluster.write_resolv_conf(&format!("nameserver {}\n", other.address)).unwrap();
    wait_endpoints(&agent, &[2]).unwrap();

    let target = cluster.directory.join("..data");
    fs::write(&target, format!("nameserver {}\n", cluster.dns.address)).unwrap();
    let link = cluster.directory.join("link");
    symlink(&target, &link).unwrap();
    fs::rename(&link, cluster.resolv_conf()).unwrap();
    wait_endpoints(&agent, &[1]).unwrap();

    // What is no resolv.conf changes nothing and is named.
    cluster.write_resolv_conf("nameserver nonsense\n\u{0}garbage\n").unwrap();
    std::thread::sleep(A_WHILE);
    require_endpoints(&agent, &[1]).unwrap();
    assert!(agent.log().contains("resolv.conf"), "{}", agent.log());
    fs::remove_file(cluster.resolv_conf()).unwrap();
    std::thread::sleep(A_WHILE);
    require_endpoints(&agent, &[1]).unwrap();

    cluster.write_resolv_conf(&format!("nameserver {}\n", other.address)).unwrap();
    wait_endpoints(&agent, &[2]).unwrap();
}

/// Names are completed by the search list: before they are tried as they are, or after, as `ndots` has it.
#[test]
fn search_domains_and_ndots() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    let address = |number: usize| Family::V4.backend(number).ip();
    cluster
        .dns
        .set(
            &[
                ("web.prod.cluster.test", address(1)),
                ("web.prod.test", address(2)),
                ("api.cluster.test", address(3)),
            ],
            Unknown::Absent,
        )
        .unwrap();
    let nameserver = cluster.dns.address;
    cluster
        .write_resolv_conf(&format!(
            "nameserver {nameserver}\nsearch nowhere.test cluster.test\noptions ndots:5\n"
        ))
        .unwrap();
    // Of one label: the search list alone helps.
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"api:8080\"]");
    wait_endpoints(&agent, &[3]).unwrap();
    drop(agent);
    // Fewer dots than ndots: the list first.
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.prod:8080\"]");
    wait_endpoints(&agent, &[1]).unwrap();
    drop(agent);
    // Enough dots: as it is first.
    cluster
        .write_resolv_conf(&format!("nameserver {nameserver}\nsearch cluster.test\noptions ndots:2\n"))
        .unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.prod.test:8080\"]");
    wait_endpoints(&agent, &[2]).unwrap();
}

/// The first server is dead, the second answers.
#[test]
fn a_second_server_answers() {
    let cluster = Cluster::start(Setup::Tc).unwrap();
    cluster.publish(&[1, 2], Unknown::Absent).unwrap();
    let nameserver = cluster.dns.address;
    cluster
        .write_resolv_conf(&format!("nameserver 127.0.0.9\nnameserver {nameserver}\noptions timeout:1\n"))
        .unwrap();
    let agent = start_agent(&cluster, Setup::Tc, "hosts: [\"web.test:8080\"]");
    wait_endpoints(&agent, &[1, 2]).unwrap();
}

/// What `/ready` answers one after the other, without repetitions.
fn states_until_live(topology: &Topology) -> Vec<String> {
    let mut states: Vec<String> = Vec::new();
    for _ in 0..400 {
        let url = "http://127.0.0.1:8001/ready";
        let answer =
            topology.lb.run("curl", &["-s", "-m", "1", "-w", " %{http_code}", url]).unwrap_or_default();
        let state = answer.split_whitespace().collect::<Vec<_>>().join(" ");
        if !answer.is_empty() && states.last() != Some(&state) {
            states.push(state);
        }
        if answer.starts_with("LIVE") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    states
}

fn start_agent(cluster: &Cluster, setup: Setup, discovery: &str) -> Agent {
    let text = format!(
        r#"datapath: {{ mode: {}, interfaces: auto, max_flows: 65536 }}
admin: {{}}
listeners:
  - {{ name: http4, address: "0.0.0.0:{HTTP}", cluster: web }}
  - {{ name: http6, address: "[::]:{HTTP}", cluster: web }}
clusters:
  - name: web
    discovery: {{ type: strict_dns, refresh_rate: 200ms, {discovery} }}
    lb_policy: round_robin
"#,
        setup.rung().name(),
    );
    cluster.start_agent(&text).unwrap()
}

/// Thirty connections are spread over exactly these backends, by their own names and the agent's counters.
fn require_served(cluster: &Cluster, agent: &Agent, rung: Rung, numbers: &[usize]) {
    let before = agent.totals().unwrap();
    let outcome = sequential(&cluster.topology.client, Family::V4.vip(), 30).unwrap();
    outcome.require(30).unwrap();
    let names: Vec<_> = outcome.served.keys().cloned().collect();
    let wanted: Vec<_> = numbers.iter().map(|number| format!("b{number}")).collect();
    assert_eq!(names, wanted);
    agent.require_carried(&before, rung, 30).unwrap();
}

/// An open connection to each backend that serves.
fn connections_to_each(cluster: &Cluster) -> Vec<(String, Connection)> {
    let mut connections: Vec<(String, Connection)> = Vec::new();
    for _ in 0..30 {
        let mut connection = Connection::open_in(&cluster.topology.client, Family::V4.vip()).unwrap();
        let name = connection.get().unwrap();
        if connections.iter().all(|(other, _)| *other != name) {
            connections.push((name, connection));
        }
    }
    connections
}

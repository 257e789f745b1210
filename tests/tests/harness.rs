//! The harness itself, over plain routing with no agent: what the end-to-end tests rest on.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use lb_tests::cmd::{run, wait_for};
use lb_tests::faults::{Faults, casualties, install};
use lb_tests::http::{Connection, Kept, Outcome, Unanswered, concurrent, parallel, sequential};
use lb_tests::load::{Clients, Ended, Load};
use lb_tests::netns;
use lb_tests::netns::Namespace;
use lb_tests::payload::{Payload, sha256_of_file};
use lb_tests::pod::{Fault, Pod, READINESS};
use lb_tests::scenario::start_nginx;
use lb_tests::topology::{Family, Options, Topology, xdp_modes};
use lb_tests::{curl, nginx::Nginx};

fn routed() -> Options {
    Options { backends: 2, routed: true, ..Options::default() }
}

#[test]
fn clients_servers_and_transfers_work() {
    let topology = Topology::new(&routed()).unwrap();
    let payload = Payload::random(64).unwrap();
    let nginx = start_nginx(&topology, Some(&payload)).unwrap();
    for family in Family::ALL {
        let backend = family.backend(2);
        assert_eq!(curl::get(&topology.client, backend).unwrap(), "b2", "{family}");
        let (bodies, connections) = curl::get_kept_alive(&topology.client, backend, 5).unwrap();
        assert_eq!((bodies, connections), (vec!["b2".to_owned(); 5], 1), "{family}");
        curl::download(&topology.client, backend, &payload).unwrap();
        curl::upload(&topology.client, backend, &payload, "copy").unwrap();
        let copy = sha256_of_file(&nginx[1].upload("copy")).unwrap();
        assert_eq!(copy, (payload.bytes, payload.sha256.clone()), "{family}");
        fs::remove_file(nginx[1].upload("copy")).unwrap();

        let all_b2 = |outcome: Outcome, count: u64| {
            outcome.require(count).unwrap();
            assert_eq!(outcome.served, BTreeMap::from([("b2".to_owned(), count)]), "{family}");
        };
        all_b2(sequential(&topology.client, backend, 200).unwrap(), 200);
        all_b2(parallel(&topology.client, backend, 80, 8).unwrap(), 80);
        all_b2(concurrent(&topology.client, backend, 400, 3).unwrap(), 400);
    }
}

#[test]
fn failures_are_counted() {
    let topology = Topology::new(&routed()).unwrap();
    // Nobody listens: every connection is refused, and none is called served.
    let outcome = sequential(&topology.client, Family::V4.backend(1), 7).unwrap();
    assert_eq!((outcome.failed, outcome.total()), (7, 7));
    outcome.require(7).unwrap_err();
    curl::get(&topology.client, Family::V6.backend(1)).unwrap_err();
}

#[test]
fn isolated_hosts_cannot_pass_the_balancer_by() {
    let topology = Topology::new(&Options { backends: 1, ..Options::default() }).unwrap();
    let _nginx = Nginx::start(&topology.backends[0], "b1", None).unwrap();
    for family in Family::ALL {
        Connection::open_in(&topology.lb, family.backend(1)).unwrap().get_last().unwrap();
        Connection::open_in(&topology.client, family.backend(1)).unwrap_err();
        let client = family.peer(0).to_string();
        topology.backends[0].ip(&["route", "get", &client]).unwrap_err();
    }
}

#[test]
fn xdp_peers_have_native_xdp_and_still_talk() {
    let topology = Topology::new(&Options { xdp_peers: true, ..routed() }).unwrap();
    for (host, device) in topology.far_ends() {
        assert_eq!(xdp_modes(host).unwrap(), BTreeMap::from([(device.to_owned(), 1)]));
    }
    assert_eq!(topology.lb_xdp_modes().unwrap(), BTreeMap::new());
    let _nginx = start_nginx(&topology, None).unwrap();
    for family in Family::ALL {
        assert_eq!(curl::get(&topology.client, family.backend(1)).unwrap(), "b1", "{family}");
    }
}

#[test]
fn faults_drop_and_reorder() {
    let topology = Topology::new(&routed()).unwrap();
    let payload = Payload::random(64).unwrap();
    let nginx = start_nginx(&topology, Some(&payload)).unwrap();
    install(&topology, Faults { dropped_per_mille: 0, late_per_mille: 10 }).unwrap();
    let backend = Family::V4.backend(1);
    curl::download(&topology.client, backend, &payload).unwrap();
    curl::upload(&topology.client, backend, &payload, "copy").unwrap();
    // Nothing was lost, so what came out of order was overtaken.
    let seen = casualties(&topology).unwrap();
    println!("late packets alone: {seen:?}");
    assert_eq!(seen.dropped, 0);
    assert!(seen.late > 0 && seen.out_of_order > 0 && seen.reordered > 0, "{seen:?}");
    let copy = sha256_of_file(&nginx[0].upload("copy")).unwrap();
    assert_eq!(copy, (payload.bytes, payload.sha256.clone()));
}

#[test]
fn faults_drop() {
    let topology = Topology::new(&routed()).unwrap();
    let payload = Payload::random(16).unwrap();
    let _nginx = start_nginx(&topology, Some(&payload)).unwrap();
    // Of some hundred super-packets: with 5 of 1,000, one run in ten lost none.
    install(&topology, Faults { dropped_per_mille: 40, late_per_mille: 0 }).unwrap();
    curl::download(&topology.client, Family::V6.backend(1), &payload).unwrap();
    let seen = casualties(&topology).unwrap();
    println!("losses alone: {seen:?}");
    assert!(seen.dropped > 0 && seen.late == 0, "{seen:?}");
}

#[test]
fn nothing_stays_behind() {
    let topology = Topology::new(&Options { backends: 1, xdp_peers: true, ..Options::default() }).unwrap();
    let name = topology.name.clone();
    let nginx = Nginx::start(&topology.backends[0], "b1", None).unwrap();
    let directory = nginx.upload("").parent().unwrap().to_owned();
    let mut sleeper = topology.client.command("sleep").arg("600").spawn().unwrap();
    let panicked = std::thread::spawn(move || {
        let _owned = (nginx, topology);
        std::panic::panic_any("a test fails");
    });
    panicked.join().unwrap_err();
    assert!(!sleeper.wait().unwrap().success(), "killed with its namespace");
    assert_eq!(netns::list(&name).unwrap(), Vec::<String>::new());
    assert!(!directory.exists());
    let pins = run("ls", &["/sys/fs/bpf"]).unwrap();
    assert!(!pins.contains(&name), "{pins}");
}

/// What the client hears from a pod's readiness, if anything.
fn readiness(client: &Namespace) -> Option<String> {
    let url = format!("http://{}/healthz/ready", SocketAddr::new(Family::V4.backend(1).ip(), READINESS));
    client.run("curl", &["-s", "-m", "1", "-o", "/dev/null", "-w", "%{http_code}", &url]).ok()
}

/// How a new connection to a pod's web server fails, if it does.
fn connecting(client: &Namespace) -> Option<ErrorKind> {
    let connect = || TcpStream::connect_timeout(&Family::V4.backend(1), Duration::from_millis(500));
    client.within(connect).unwrap().err().map(|error| error.kind())
}

/// Until a pod has so many connections.
fn wait_open(pod: &Pod<'_>, count: usize) {
    wait_for(&format!("{count} connections"), Duration::from_secs(10), || {
        let open = pod.open_connections()?;
        ensure!(open == count, "{open} are open");
        Ok(())
    })
    .unwrap();
}

#[test]
fn pods_live_and_fail() {
    let topology = Topology::new(&routed()).unwrap();
    let client = &topology.client;
    let mut pod = Pod::start(&topology.backends[0], "b1").unwrap();
    let mut kept = Kept::open_in(client, Family::V4.backend(1)).unwrap();
    assert_eq!((connecting(client), readiness(client).as_deref()), (None, Some("200")));
    assert_eq!(kept.name, "b1");

    pod.set_ready(false).unwrap();
    assert_eq!((connecting(client), readiness(client).as_deref()), (None, Some("503")));
    pod.set_ready(true).unwrap();

    pod.break_by(Fault::Hangs).unwrap();
    assert_eq!((connecting(client), readiness(client)), (Some(ErrorKind::TimedOut), None));
    kept.check().unwrap();
    pod.mend().unwrap();

    pod.break_by(Fault::Refuses).unwrap();
    let refused = Some(ErrorKind::ConnectionRefused);
    assert_eq!((connecting(client), readiness(client).as_deref()), (refused, Some("200")));
    kept.check().unwrap();
    pod.mend().unwrap();

    assert_eq!((connecting(client), readiness(client).as_deref()), (None, Some("200")));
    wait_open(&pod, 1);
    pod.quit().unwrap();
    assert!(kept.check().unwrap_err().is::<Unanswered>(), "an idle connection is closed");
    assert_eq!((connecting(client), readiness(client)), (refused, None));
    pod.launch().unwrap();
    assert_eq!((connecting(client), readiness(client).as_deref()), (None, Some("503")), "it starts anew");

    let clients = Clients { held: 2, keep_alive: 0, one_shot: 2 };
    let load = Load::start_with(client, Family::V4.backend(1), clients, Ended::IsRetried).unwrap();
    wait_for("the load is on", Duration::from_secs(10), || {
        ensure!(load.record().requests() > 100, "{:?}", load.record());
        Ok(())
    })
    .unwrap();
    pod.freeze().unwrap();
    // Every client waits for its answer.
    wait_open(&pod, 4);
    pod.die().unwrap();
    assert_eq!((connecting(client), pod.open_connections().unwrap()), (refused, 0));
    let record = load.stop().unwrap();
    assert_eq!(record.retried, 2, "{record:?}");
}

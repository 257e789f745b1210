//! Requests from the client to nginx on every rung: each answered, spread evenly, counted on the rung that carried
//! them and on no other.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::net::SocketAddr;

use lb_tests::curl;
use lb_tests::http::{Connection, Outcome, concurrent, sequential};
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::Family;

#[test]
fn requests_on_xdp() {
    requests(Setup::Xdp);
}

#[test]
fn requests_on_tc() {
    requests(Setup::Tc);
}

#[test]
fn requests_on_tc_with_software_checksums() {
    requests(Setup::TcEgressTxOff);
}

#[test]
fn requests_on_proxy() {
    requests(Setup::Proxy);
}

/// One-shot and keep-alive curl.
fn requests(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    let client = &scenario.topology.client;
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        let mut outcome = Outcome::default();
        for _ in 0..60 {
            outcome.record(curl::get(client, family.vip()));
        }
        outcome.require(60).unwrap();
        let before_kept = scenario.agent.require_carried(&before, setup.rung(), 60).unwrap();
        scenario.require_served(family, &before, &outcome).unwrap();
        require_even(&outcome);

        let (bodies, connections) = curl::get_kept_alive(client, family.vip(), 20).unwrap();
        assert_eq!(connections, 1, "{family}");
        assert!(
            bodies.iter().all(|body| *body == bodies[0]),
            "{family}: one connection, one backend: {bodies:?}"
        );
        scenario.agent.require_carried(&before_kept, setup.rung(), 1).unwrap();
    }
}

#[test]
fn many_connections_on_xdp() {
    many_connections(Setup::Xdp);
}

#[test]
fn many_connections_on_tc() {
    many_connections(Setup::Tc);
}

#[test]
fn many_connections_on_tc_with_software_checksums() {
    many_connections(Setup::TcEgressTxOff);
}

#[test]
fn many_connections_on_proxy() {
    many_connections(Setup::Proxy);
}

/// 1,000 connections at once, then 20,000 one after the other.
fn many_connections(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    let client = &scenario.topology.client;
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        let outcome = concurrent(client, family.vip(), 1000, 5).unwrap();
        outcome.require(1000).unwrap();
        let between = scenario.agent.require_carried(&before, setup.rung(), 1000).unwrap();
        scenario.require_served(family, &before, &outcome).unwrap();
        require_even(&outcome);

        let outcome = sequential(client, family.vip(), 20_000).unwrap();
        outcome.require(20_000).unwrap();
        scenario.agent.require_carried(&between, setup.rung(), 20_000).unwrap();
        scenario.require_served(family, &between, &outcome).unwrap();
        require_even(&outcome);
    }
}

#[test]
fn flows_are_shown_on_xdp() {
    flows_are_shown(Setup::Xdp);
}

#[test]
fn flows_are_shown_on_tc() {
    flows_are_shown(Setup::Tc);
}

/// `headgate flows` and `headgate explain` of an open connection.
fn flows_are_shown(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    for family in Family::ALL {
        let mut connection = Connection::open_in(&scenario.topology.client, family.vip()).unwrap();
        let name = connection.get().unwrap();
        let number: usize = name.strip_prefix('b').unwrap().parse().unwrap();
        let client = connection.local().unwrap().to_string();

        let flows = scenario.agent.flows().unwrap();
        let flow =
            flows.iter().find(|flow| flow["client"] == *client).unwrap_or_else(|| panic!("{flows:#?}"));
        assert_eq!(flow["vip"], family.vip().to_string());
        assert_eq!(flow["backend"], family.backend(number).to_string());
        assert_eq!(flow["state"], "established");
        assert_eq!(flow["rung"], setup.rung().name());
        assert!(flow["bytes_in"].as_u64().unwrap() > 0 && flow["bytes_out"].as_u64().unwrap() > 0, "{flow}");
        let snat: SocketAddr = flow["snat"].as_str().unwrap().parse().unwrap();
        assert_eq!(snat.ip(), family.lb(number), "the balancer's address towards that backend");
        assert!((1024..30_000).contains(&snat.port()), "{flow}");

        let vip = family.vip().to_string();
        let existing = scenario.agent.headgate(&["explain", "--from", &client, "--to", &vip]).unwrap();
        assert!(existing.contains(&family.backend(number).to_string()), "{existing}");
        let elsewhere = SocketAddr::new(family.lb(0), 81).to_string();
        let foreign = scenario.agent.headgate(&["explain", "--from", &client, "--to", &elsewhere]).unwrap();
        assert!(!foreign.contains(&family.backend(number).to_string()), "{foreign}");
        assert_eq!(connection.get().unwrap(), name, "looking changes nothing");
    }
}

/// Round robin: each CPU walks the backends for itself, so each may be one connection ahead somewhere.
fn require_even(outcome: &Outcome) {
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let fair = outcome.total() / 3;
    assert_eq!(outcome.served.len(), 3, "{:?}", outcome.served);
    for (name, &count) in &outcome.served {
        assert!(
            count.abs_diff(fair) <= cpus + 1,
            "{name}: {count} of {}: {:?}",
            outcome.total(),
            outcome.served
        );
    }
}

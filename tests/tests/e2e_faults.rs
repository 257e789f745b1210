//! Packets lost and overtaken between the hosts: everything still arrives, whole, on the rung it belongs to.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use lb_tests::faults::{Faults, casualties, install};
use lb_tests::http::parallel;
use lb_tests::payload::Payload;
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::Family;

const FAULTS: Faults = Faults { dropped_per_mille: 3, late_per_mille: 10 };

#[test]
fn loss_and_reordering_on_xdp() {
    loss_and_reordering(Setup::Xdp);
}

#[test]
fn loss_and_reordering_on_tc() {
    loss_and_reordering(Setup::Tc);
}

#[test]
fn loss_and_reordering_on_tc_with_software_checksums() {
    loss_and_reordering(Setup::TcEgressTxOff);
}

#[test]
fn loss_and_reordering_on_proxy() {
    loss_and_reordering(Setup::Proxy);
}

fn loss_and_reordering(setup: Setup) {
    let payload = Payload::random(64).unwrap();
    let scenario = Scenario::start(setup, Some(&payload)).unwrap();
    install(&scenario.topology, FAULTS).unwrap();
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        scenario.transfer(family.vip(), &payload).unwrap_or_else(|error| {
            panic!("{setup:?} {family}: {error:#}; {}", scenario.agent.status().unwrap()["reasons"])
        });
        let between = scenario.agent.require_carried(&before, setup.rung(), 2).unwrap();

        // Short connections: here it is the handshakes and the ends that get lost.
        let outcome = parallel(&scenario.topology.client, family.vip(), 400, 8).unwrap();
        outcome.require(400).unwrap();
        scenario.agent.require_carried(&between, setup.rung(), 400).unwrap();
        scenario.require_served(family, &between, &outcome).unwrap();
    }
    let seen = casualties(&scenario.topology).unwrap();
    println!("{setup:?}: {seen:?}");
    assert!(seen.dropped > 0 && seen.late > 0 && seen.out_of_order > 0, "{seen:?}");
}

//! A small job on every rung, for kernels of any age, also on a slow machine: attach, answer requests, move some
//! mebibytes each way, detach.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::time::Duration;

use lb_tests::http::sequential;
use lb_tests::payload::Payload;
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::Family;

/// Connections, and as many again as a transfer takes.
const REQUESTS: u64 = 30;
const TRANSFERS: u64 = 2;
const MIB: u64 = 4;

#[test]
fn small_job_on_xdp() {
    small_job(Setup::Xdp);
}

#[test]
fn small_job_on_tc() {
    small_job(Setup::Tc);
}

#[test]
fn small_job_on_tc_with_software_checksums() {
    small_job(Setup::TcEgressTxOff);
}

#[test]
fn small_job_on_proxy() {
    small_job(Setup::Proxy);
}

fn small_job(setup: Setup) {
    let payload = Payload::random(MIB).unwrap();
    // That the rung's programs are attached, and natively, is part of the start.
    let mut scenario = Scenario::start(setup, Some(&payload)).unwrap();
    let carrier = setup.carrier();
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        let outcome = sequential(&scenario.topology.client, family.vip(), REQUESTS).unwrap();
        outcome.require(REQUESTS).unwrap();
        let between = scenario.agent.require_carried(&before, carrier, REQUESTS).unwrap();
        scenario.require_served(family, &before, &outcome).unwrap();

        scenario.transfer(family.vip(), &payload).unwrap();
        scenario.agent.require_carried(&between, carrier, TRANSFERS).unwrap();
    }
    let handed_over = scenario.agent.reason("to_tc").unwrap();
    if setup.rung() == carrier {
        assert_eq!(handed_over, 0);
    } else {
        // Both directions of every connection.
        assert!(handed_over >= 2 * 2 * (REQUESTS + TRANSFERS), "{handed_over} packets");
    }

    scenario.agent.terminate().unwrap();
    scenario.agent.require_exit(Duration::from_secs(30)).unwrap();
    assert!(scenario.topology.lb_xdp_modes().unwrap().is_empty(), "XDP is detached");
    for device in scenario.topology.lb_devices() {
        let filters = scenario.topology.lb.run("tc", &["filter", "show", "dev", &device, "ingress"]).unwrap();
        assert!(!filters.contains("headgate"), "{device}: {filters}");
    }
}

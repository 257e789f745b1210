//! 1 GiB each way on every rung, what arrives compared by its hash; and a narrow link on the way.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::sync::{Mutex, PoisonError};

use lb_tests::payload::Payload;
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::{Family, Options};

/// One transfer at a time: two would only share the machine's CPUs, and hold twice the memory.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn gibibytes_on_xdp() {
    transfer(Setup::Xdp, &Setup::Xdp.options(), 1024);
}

#[test]
fn gibibytes_on_tc() {
    transfer(Setup::Tc, &Setup::Tc.options(), 1024);
}

#[test]
fn gibibytes_on_tc_with_software_checksums() {
    transfer(Setup::TcEgressTxOff, &Setup::TcEgressTxOff.options(), 1024);
}

#[test]
fn gibibytes_on_proxy() {
    transfer(Setup::Proxy, &Setup::Proxy.options(), 1024);
}

/// Client and backends believe in 1,500 bytes; the balancer's links carry less. Only the segment size that the
/// balancer lets them agree on makes them send less.
#[test]
fn narrow_links_on_xdp() {
    narrow_links(Setup::Xdp);
}

#[test]
fn narrow_links_on_tc() {
    narrow_links(Setup::Tc);
}

#[test]
fn narrow_links_on_tc_with_software_checksums() {
    narrow_links(Setup::TcEgressTxOff);
}

fn narrow_links(setup: Setup) {
    transfer(setup, &Options { backend_mtu: 1400, ..setup.options() }, 16);
    transfer(setup, &Options { client_mtu: 1400, ..setup.options() }, 16);
}

fn transfer(setup: Setup, options: &Options, mib: u64) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let payload = Payload::random(mib).unwrap();
    let scenario = Scenario::start_on(setup, options, Some(&payload)).unwrap();
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        scenario.transfer(family.vip(), &payload).unwrap_or_else(|error| {
            panic!("{setup:?} {family}: {error:#}; {}", scenario.agent.status().unwrap()["reasons"])
        });
        scenario.agent.require_carried(&before, setup.rung(), 2).unwrap();
    }
}

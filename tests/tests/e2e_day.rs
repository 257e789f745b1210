//! A day of trouble on every rung, from the clients' side: under load without a pause the gateways are restarted, hang,
//! refuse, are not ready and die, DNS fails, a backend and the node are drained. No request fails, but for those that a
//! gateway took with it. Prints what the agent decided, why, and how long it took.
//!
//! The clients are as real ones: a request on a kept connection that ends before an answer begins is sent once more. The
//! gateways are restarted as Kubernetes does it, by the clock: nobody waits for the balancer there.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod day;

use std::thread::sleep;
use std::time::{Duration, Instant};

use day::{Day, OUT};
use lb_tests::discovery::{SILENCE, require_endpoints, wait_endpoints, wait_why};
use lb_tests::dnsmasq::Unknown;
use lb_tests::pod::Fault;
use lb_tests::scenario::Setup;
use lb_tests::timeline::ms;

/// How long the load goes on after a change before the next one.
const A_WHILE: Duration = Duration::from_secs(2);
/// From a gateway's "not ready" until its name is out of DNS.
const ENDPOINTS_LAG: Duration = Duration::from_millis(500);
/// From there to the end of its process.
const GRACE: Duration = Duration::from_secs(3);
/// From its next start until it is ready.
const START: Duration = Duration::from_secs(1);
/// How long a gateway about to die stands still with what it was sent.
const AGONY: Duration = Duration::from_millis(50);

const REFUSED: [&str; 4] = ["refused", "connections in a row failed", "reset", "closed"];

#[test]
fn a_day_of_trouble_on_xdp() {
    a_day_of_trouble(Setup::Xdp);
}

#[test]
fn a_day_of_trouble_on_tc() {
    a_day_of_trouble(Setup::Tc);
}

#[test]
fn a_day_of_trouble_on_proxy() {
    a_day_of_trouble(Setup::Proxy);
}

fn a_day_of_trouble(setup: Setup) {
    let (cluster, pods) = day::hosts(setup);
    let mut day = Day::begin(setup, &cluster, pods(&cluster));
    for number in 1..=3 {
        rolling_restart(&mut day, number);
    }
    hanging(&mut day);
    refusing(&mut day);
    not_ready(&mut day);
    dying(&mut day);
    dns_in_trouble(&mut day);
    drained_backend(&mut day);
    drained_node(&mut day);
    day.end();
}

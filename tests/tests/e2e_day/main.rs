//! A day of trouble on every rung, from the clients' side: under load without a pause the gateways are restarted, hang,
//! refuse, are not ready and die, DNS fails, a backend and the node are drained. No request fails, but for those that a
//! gateway took with it. Prints what the agent decided, why, and how long it took.
//!
//! The clients are as real ones: a request on a kept connection that ends before an answer begins is sent once more.
//! The gateways are restarted as Kubernetes does it, by the clock: nobody waits for the balancer there.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod day;
mod drains;

use std::thread::sleep;
use std::time::{Duration, Instant};

use day::{Day, OUT};
use lb_tests::discovery::{Cluster, SILENCE, require_endpoints, wait_endpoints, wait_why};
use lb_tests::dnsmasq::Unknown;
use lb_tests::pod::{Fault, Pod};
use lb_tests::scenario::Setup;
use lb_tests::timeline::INDENT;

/// How long the load goes on after a change before the next one.
const A_WHILE: Duration = Duration::from_secs(2);
/// From a gateway's "not ready" until its name is out of DNS.
const ENDPOINTS_LAG: Duration = Duration::from_millis(500);
/// From there to the end of its process.
const GRACE: Duration = Duration::from_secs(3);
/// From its next start until it is ready.
const START: Duration = Duration::from_secs(1);
/// How long a gateway that is about to die stands still with what it was sent.
const AGONY: Duration = Duration::from_millis(50);

/// What events may say of a gateway that takes no connections.
const REFUSED: [&str; 3] = ["refused", "in a row have failed", "reset"];

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

/// One fault at a time, each undone before the next.
fn a_day_of_trouble(setup: Setup) {
    println!("a day of trouble on {}", setup.rung());
    let cluster = Cluster::without_servers(setup).unwrap();
    let gateways = cluster.topology.backends.iter().zip(1..);
    let pods = gateways.map(|(namespace, number)| Pod::start(namespace, &format!("b{number}")).unwrap());
    let mut day = Day::begin(setup, &cluster, pods.collect());
    (1..=3).for_each(|number| rolling_restart(&mut day, number));
    hanging(&mut day);
    refusing(&mut day);
    not_ready(&mut day);
    dying(&mut day);
    dns_in_trouble(&mut day);
    drains::backend(&mut day);
    drains::node(&mut day);
    day.end();
}

/// By the clock alone.
fn rolling_restart(day: &mut Day<'_>, number: usize) {
    day.phase(&format!("rolling restart: b{number} is not ready, leaves DNS, quits"), |day| {
        let others: Vec<usize> = (1..=3).filter(|other| *other != number).collect();
        day.pod(number).set_ready(false).unwrap();
        sleep(ENDPOINTS_LAG);
        day.cluster.publish(&others, Unknown::Absent).unwrap();
        sleep(GRACE);
        day.pod(number).quit().unwrap();
        day.require_decided(number, &["unhealthy", "draining"], &["503", "not in the answer"]);
    });
    day.phase(&format!("rolling restart: b{number} starts, is ready, is in DNS again"), |day| {
        day.pod(number).launch().unwrap();
        sleep(START);
        day.pod(number).set_ready(true).unwrap();
        day.cluster.publish(&[1, 2, 3], Unknown::Absent).unwrap();
        sleep(A_WHILE);
        day.wait_used(number);
    });
}

fn hanging(day: &mut Day<'_>) {
    day.phase("b1 hangs: SYNs to it are lost, open connections go on", |day| {
        let mut kept = day.connection_to(1);
        day.pod(1).break_by(Fault::Hangs).unwrap();
        day.require_decided(1, &OUT, &["no answer", "in a row have failed"]);
        day.require_left_out(1);
        kept.check().unwrap();
    });
    day.mended("b1 answers again", 1, |pod| pod.mend().unwrap());
}

fn refusing(day: &mut Day<'_>) {
    day.phase("b2 refuses connections and calls itself ready", |day| {
        let mut kept = day.connection_to(2);
        day.pod(2).break_by(Fault::Refuses).unwrap();
        day.require_decided(2, &["ejected"], &REFUSED);
        day.require_left_out(2);
        kept.check().unwrap();
    });
    day.mended("b2 accepts again", 2, |pod| pod.mend().unwrap());
}

fn not_ready(day: &mut Day<'_>) {
    day.phase("b3 serves and calls itself not ready", |day| {
        let mut kept = day.connection_to(3);
        day.pod(3).set_ready(false).unwrap();
        day.require_decided(3, &["unhealthy"], &["503"]);
        day.require_left_out(3);
        kept.check().unwrap();
    });
    day.mended("b3 is ready again", 3, |pod| pod.set_ready(true).unwrap());
}

/// What fails was on a connection to it, and was begun before its end.
fn dying(day: &mut Day<'_>) {
    day.phase("b1 stands still and is killed, in the midst of requests", |day| {
        let log = day.log_length();
        day.pod(1).freeze().unwrap();
        sleep(AGONY);
        let connections = day.load.record().connections;
        let open = day.pod(1).open_connections().unwrap();
        day.pod(1).die().unwrap();
        let killed = Instant::now();
        let later = day.load.record().connections - connections;
        day.require_decided(1, &OUT, &REFUSED);
        day.require_left_out(1);

        let lost = day.load.take_failures();
        println!("{INDENT}{open} connections were open at b1; {} requests were lost with it", lost.len());
        assert!(lost.len() as u64 <= open as u64 + later, "{lost:#?}");
        for failure in &lost {
            let late = failure.began.saturating_duration_since(killed);
            assert!(late.is_zero(), "begun {late:?} after its end: {failure:?}");
            match failure.client {
                Some(client) => day.require_was_on(1, client, log),
                // Reset between its handshake and the client's look at it: a connect that fails tells no address.
                None => assert!(failure.why.contains("reset by peer"), "{failure:?}"),
            }
        }
    });
    day.mended("b1 is started anew", 1, |pod| {
        pod.launch().unwrap();
        pod.set_ready(true).unwrap();
    });
}

/// Nothing of it takes an endpoint away.
fn dns_in_trouble(day: &mut Day<'_>) {
    let mut fails = |what: &str, words: &[&str], fail: &dyn Fn(&Cluster), mend: &dyn Fn(&Cluster)| {
        day.phase(what, |day| {
            fail(day.cluster);
            wait_why(&day.agent, day.known, words).unwrap();
            sleep(A_WHILE);
            require_endpoints(&day.agent, &[1, 2, 3]).unwrap();
            mend(day.cluster);
            wait_endpoints(&day.agent, &[1, 2, 3]).unwrap();
        });
    };
    let publish = |numbers: &'static [usize], unknown| {
        move |cluster: &Cluster| cluster.publish(numbers, unknown).unwrap()
    };
    let back = publish(&[1, 2, 3], Unknown::Absent);
    fails("DNS is silent", &SILENCE, &|cluster| cluster.dns.freeze().unwrap(), &|cluster| {
        cluster.dns.wake().unwrap();
    });
    fails("DNS says SERVFAIL", &["servfail", "server failure"], &publish(&[], Unknown::ServFail), &back);
    fails("DNS says NXDOMAIN, within hold_nx", &["nxdomain"], &publish(&[], Unknown::Absent), &back);
}

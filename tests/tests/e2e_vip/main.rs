//! A virtual address in front of two balancers, with the real keepalived and the files of `deploy/keepalived`, under load:
//! what moves when, how long new connections fail, and what becomes of the open ones. Prints its timeline.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod site;

use std::time::{Duration, Instant};

use lb_tests::http::Kept;
use lb_tests::load::{Clients, Ended, Load};
use lb_tests::pair::vip;
use lb_tests::scenario::Setup;
use lb_tests::timeline::{INDENT, ms};

use self::site::{A, B, Site};

/// Clients that make connections, and, from another host, such that keep theirs. A balancer remembers a connection that has
/// ended for up to a minute, and takes what comes with the same addresses and ports for its own, also where that belongs to a
/// new connection by the other balancer: so there are not so many that ports come again meanwhile.
pub(crate) const SHORT: Clients = Clients { held: 0, keep_alive: 0, one_shot: 3 };
pub(crate) const HELD: Clients = Clients { held: 4, keep_alive: 0, one_shot: 0 };
/// How long the load goes on after a change before the next one.
const A_WHILE: Duration = Duration::from_secs(2);
/// Within it a node serves in the place of one that died.
const FAILOVER: Duration = Duration::from_secs(2);
/// Connections that are open while the address moves.
const OPEN: usize = 8;

#[test]
fn timeline_on_xdp() {
    timeline(Setup::Xdp);
}

#[test]
fn timeline_on_tc() {
    timeline(Setup::Tc);
}

fn timeline(setup: Setup) {
    let mut site = Site::start(setup);
    let load = site.load(Ended::Fails);
    // First, since SYNs that a drained node has passed to its proxy go there again.
    agent_dies(&mut site, &load);
    moves_on_purpose(&mut site, &load);
    keepalived_ends(&mut site, &load);
    site.stop(load);

    let load = site.load(Ended::IsRetried);
    node_dies(&mut site, &load);
    site.stop(load);
}

/// The proxy's connections are sockets of one node, and go on there all the same.
#[test]
fn proxied_connections_outlive_a_move() {
    let mut site = Site::start(Setup::Proxy);
    let load = site.load(Ended::Fails);
    moves_on_purpose(&mut site, &load);
    keepalived_ends(&mut site, &load);
    site.stop(load);
}

#[test]
fn where_no_node_is_ready_the_address_stays() {
    let site = Site::start(Setup::Tc);
    for number in [A, B] {
        assert_eq!(site.ready(number), Ok("ready\n".into()));
        site.drain(number);
        assert_eq!(site.ready(number), Err("headgate: not ready: the node is drained\n".into()));
    }
    // Both have noticed by then. Of two that are not ready the first has the higher priority.
    std::thread::sleep(3 * A_WHILE);
    site.wait_owner(A);
    Kept::open_in(&site.pair.lan["patient"], vip()).unwrap();
}

/// A drain and its end.
fn moves_on_purpose(site: &mut Site, load: &[Load; 2]) {
    site.printout.begin("steady: node A has the address");
    let mut open: Vec<Kept> =
        (0..OPEN).map(|_| Kept::open_in(&site.pair.lan["patient"], vip()).unwrap()).collect();
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);

    site.printout.begin("node A is drained");
    site.drain(A);
    site.wait_owner(B);
    site.go_on(load, A_WHILE);
    let passed_on = site.established(A);
    println!("{INDENT}node A carries {passed_on} connections to their end");
    assert!(passed_on >= OPEN + HELD.held, "connections of a drained node go on");
    for kept in &mut open {
        kept.check().unwrap();
    }
    require_none_failed(site, load);

    site.printout.begin("connections of the drained node end");
    drop(open);
    site.wait_established(A, HELD.held);
    require_none_failed(site, load);

    site.printout.begin("node A is drained no more");
    let mut open: Vec<Kept> =
        (0..OPEN).map(|_| Kept::open_in(&site.pair.lan["patient"], vip()).unwrap()).collect();
    assert!(site.established(B) >= OPEN, "new connections are node B's");
    site.undrain(A);
    site.wait_owner(A);
    site.go_on(load, A_WHILE);
    for kept in &mut open {
        kept.check().unwrap();
    }
    require_none_failed(site, load);
}

/// Both its flows and the address's go on without it.
fn keepalived_ends(site: &mut Site, load: &[Load; 2]) {
    site.printout.begin("keepalived of node A is stopped");
    site.stop_keepalived(A);
    site.wait_owner(B);
    // Longer than a node that is not heard any more counts as there.
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);

    site.printout.begin("keepalived of node A is started again");
    site.start_keepalived(A);
    site.wait_owner(A);
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);
}

/// The kernel goes on with the flows of an agent that is gone, and takes new ones until the address has moved.
fn agent_dies(site: &mut Site, load: &[Load; 2]) {
    site.printout.begin("the agent of node A is killed");
    site.pair.agents[A].kill().unwrap();
    site.wait_owner(B);
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);

    site.printout.begin("the agent of node A is started again");
    site.pair.agents[A].restart(&[]).unwrap();
    site.wait_owner(A);
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);
}

/// Nothing of it answers any more, and later it boots.
fn node_dies(site: &mut Site, load: &[Load; 2]) {
    site.printout.begin("steady: node A has the address");
    let mut open = Kept::open_in(&site.pair.lan["patient"], vip()).unwrap();
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);

    site.printout.begin("node A dies");
    let died = Instant::now();
    site.kill_node(A);
    let outage = site.wait_connects(died);
    println!("{INDENT}new connections are served again after {}", ms(outage));
    assert!(outage < FAILOVER);
    site.wait_owner(B);
    let error = format!("{:#}", open.check().unwrap_err());
    println!("{INDENT}an open connection: {error}");
    assert!(error.contains("reset"), "the other node knows nothing of it, and says so");
    site.go_on(load, A_WHILE);
    let failures: Vec<_> = load.iter().flat_map(Load::take_failures).collect();
    let last = failures
        .iter()
        .map(|failure| failure.began.saturating_duration_since(died))
        .max()
        .unwrap_or_default();
    println!("{INDENT}the last request that failed began after {}", ms(last));
    assert!(last < FAILOVER, "{failures:#?}");

    site.printout.begin("node A boots");
    site.boot_node(A);
    site.wait_owner(A);
    site.go_on(load, A_WHILE);
    require_none_failed(site, load);
}

fn require_none_failed(site: &Site, load: &[Load; 2]) {
    for load in load {
        load.record().require_no_failure(site.printout.began).unwrap();
    }
}

//! The kernel's state outlives the agent: a crash, an upgrade, and a look at it with nobody running.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::time::{Duration, Instant};

use lb_tests::http::{Connection, sequential};
use lb_tests::load::{Clients, Load};
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::Family;

/// So few that the SNAT ports last: the proxy, which would take the rest, does not outlive its agent.
const CLIENTS: Clients = Clients { held: 4, keep_alive: 4, one_shot: 1 };
const A_WHILE: Duration = Duration::from_secs(2);

#[test]
fn flows_outlive_a_crash_on_xdp() {
    flows_outlive_a_crash(Setup::Xdp);
}

#[test]
fn flows_outlive_a_crash_on_tc() {
    flows_outlive_a_crash(Setup::Tc);
}

/// Killed, the agent leaves programs and maps; open connections go on, for longer than it vouched for their next
/// hops, and the next agent carries on with them.
fn flows_outlive_a_crash(setup: Setup) {
    let mut scenario = Scenario::start(setup, None).unwrap();
    let client = scenario.topology.client.name().to_owned();
    let mut kept = Family::ALL.map(|family| {
        let mut connection = Connection::open_in(&scenario.topology.client, family.vip()).unwrap();
        let name = connection.get().unwrap();
        (connection, name)
    });
    let mut check = || {
        for (connection, name) in &mut kept {
            assert_eq!(connection.get().unwrap(), *name, "through {client}");
        }
    };

    scenario.agent.kill().unwrap();
    check();
    // With nobody running the maps are readable.
    let flows = scenario.agent.headgate(&["maps", "dump", "FLOWS4"]).unwrap();
    assert!(flows.contains(&Family::V4.vip().to_string()), "{flows}");
    let list = scenario.agent.headgate(&["maps", "list"]).unwrap();
    assert!(list.contains("NEXT_HOPS"), "{list}");
    // Next hops are vouched for ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    check();

    scenario.agent.restart(&[]).unwrap();
    scenario.require_attached(setup.rung()).unwrap();
    check();
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        let outcome = sequential(&scenario.topology.client, family.vip(), 30).unwrap();
        outcome.require(30).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 30).unwrap();
    }
    check();
}

#[test]
fn an_upgrade_cuts_no_flow_on_xdp() {
    an_upgrade_cuts_no_flow(Setup::Xdp);
}

#[test]
fn an_upgrade_cuts_no_flow_on_tc() {
    an_upgrade_cuts_no_flow(Setup::Tc);
}

/// With `--leave-datapath` SIGTERM ends the agent at once, and its flows do not notice; several times over.
fn an_upgrade_cuts_no_flow(setup: Setup) {
    let mut scenario = Scenario::start(setup, None).unwrap();
    scenario.agent.terminate().unwrap();
    scenario.agent.require_exit(Duration::from_secs(10)).unwrap();
    scenario.agent.restart(&["--leave-datapath"]).unwrap();

    let mut connection = Connection::open_in(&scenario.topology.client, Family::V4.vip()).unwrap();
    let name = connection.get().unwrap();
    for _ in 0..3 {
        scenario.agent.terminate().unwrap();
        scenario.agent.require_exit(Duration::from_secs(5)).unwrap();
        assert_eq!(connection.get().unwrap(), name);
        scenario.agent.restart(&["--leave-datapath"]).unwrap();
        assert_eq!(connection.get().unwrap(), name);
        let before = scenario.agent.totals().unwrap();
        let outcome = sequential(&scenario.topology.client, Family::V4.vip(), 30).unwrap();
        outcome.require(30).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 30).unwrap();
    }
}

#[test]
fn a_rollout_under_load_cuts_nothing_on_xdp() {
    a_rollout_under_load_cuts_nothing(Setup::Xdp);
}

#[test]
fn a_rollout_under_load_cuts_nothing_on_tc() {
    a_rollout_under_load_cuts_nothing(Setup::Tc);
}

/// As a DaemonSet rolls: the old agent goes, and some time later the new one comes; once only after the next hops are not
/// vouched for any more, as if its image had to be pulled. Old connections go on, new ones are made all the time.
fn a_rollout_under_load_cuts_nothing(setup: Setup) {
    let mut scenario = Scenario::start(setup, None).unwrap();
    scenario.agent.terminate().unwrap();
    scenario.agent.require_exit(Duration::from_secs(10)).unwrap();
    scenario.agent.restart(&["--leave-datapath"]).unwrap();

    let began = Instant::now();
    let load = Load::start(&scenario.topology.client, Family::V4.vip(), CLIENTS).unwrap();
    std::thread::sleep(A_WHILE);
    for gap in [Duration::ZERO, A_WHILE, Duration::from_secs(12)] {
        let before = load.record();
        scenario.agent.terminate().unwrap();
        scenario.agent.require_exit(Duration::from_secs(5)).unwrap();
        std::thread::sleep(gap);
        let alone = load.record();
        scenario.agent.restart(&["--leave-datapath"]).unwrap();
        std::thread::sleep(A_WHILE);
        let after = load.record();
        println!(
            "{:>5.1} s  {:>2} s between the agents: {} connections and {} requests meanwhile, {} and {} with the next one; \
             {} failed",
            began.elapsed().as_secs_f64(),
            gap.as_secs(),
            alone.connections - before.connections,
            alone.requests() - before.requests(),
            after.connections - alone.connections,
            after.requests() - alone.requests(),
            after.failures.len()
        );
        assert!(gap < A_WHILE || alone.connections > before.connections + 50, "new ones with nobody running");
        let carried = scenario.agent.totals().unwrap().sum();
        assert_eq!(carried.proxy, 0, "{carried:?}");
    }
    let record = load.stop().unwrap();
    record.require_no_failure(began).unwrap();
    println!("{} requests on {} connections, none failed", record.requests(), record.connections);
}

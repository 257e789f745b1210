//! What changes while the agent runs: addresses, the agent itself, its end. And the node's own connections.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use lb_tests::agent::{Agent, config};
use lb_tests::cmd::wait_for;
use lb_tests::curl;
use lb_tests::http::{Connection, Kept, sequential};
use lb_tests::rung::{Rung, Totals};
use lb_tests::scenario::{Scenario, Setup, start_nginx};
use lb_tests::topology::{Family, Topology};

#[test]
fn the_node_itself_is_served_beside_xdp() {
    the_node_itself_is_served(Setup::Xdp);
}

#[test]
fn the_node_itself_is_served_beside_tc() {
    the_node_itself_is_served(Setup::Tc);
}

#[test]
fn the_node_itself_is_served_by_the_proxy_alone() {
    the_node_itself_is_served(Setup::Proxy);
}

/// curl in the balancer's own namespace to its VIP: no interface sees these packets, the proxy does.
fn the_node_itself_is_served(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        for _ in 0..9 {
            curl::get(&scenario.topology.lb, family.vip()).unwrap();
        }
        let before_client = scenario.agent.require_carried(&before, Rung::Proxy, 9).unwrap();
        // The client beside it is where it was.
        curl::get(&scenario.topology.client, family.vip()).unwrap();
        scenario.agent.require_carried(&before_client, setup.rung(), 1).unwrap();
    }
}

#[test]
fn an_added_address_is_served_on_xdp() {
    an_added_address_is_served(Setup::Xdp);
}

#[test]
fn an_added_address_is_served_on_tc() {
    an_added_address_is_served(Setup::Tc);
}

#[test]
fn an_added_address_is_served_on_proxy() {
    an_added_address_is_served(Setup::Proxy);
}

fn an_added_address_is_served(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    let client = &scenario.topology.client;
    for family in Family::ALL {
        let address = family.address(0, 77);
        let vip = SocketAddr::new(address, family.vip().port());
        scenario
            .topology
            .lb
            .ip(&["addr", "add", &family.with_prefix(address), "dev", "lc0", "nodad"])
            .unwrap();
        // The first connections may find the proxy alone, or nobody, listening there.
        wait_for(&format!("{vip} is served by {}", setup.rung()), Duration::from_secs(10), || {
            let before = scenario.agent.totals()?;
            Connection::open_in(client, vip)?.get_last()?;
            scenario.agent.require_carried(&before, setup.rung(), 1)
        })
        .unwrap();

        let before = scenario.agent.totals().unwrap();
        sequential(client, vip, 30).unwrap().require(30).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 30).unwrap();
        // What was served before still is.
        let before = scenario.agent.totals().unwrap();
        sequential(client, family.vip(), 30).unwrap().require(30).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 30).unwrap();
    }
}

/// A listener on one address: nothing is served elsewhere, and it is as soon as the address arrives, and no longer
/// than it stays.
#[test]
fn an_explicit_address_is_served_while_it_is_here() {
    let topology = Topology::new(&Setup::Tc.options()).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let address = Family::V4.address(0, 77);
    let vip = SocketAddr::new(address, Family::V4.vip().port());
    let text = config("tc", &topology).replace("\"0.0.0.0:", &format!("\"{address}:"));
    let agent = Agent::start(&topology, &text).unwrap();
    assert!(Connection::open_in(&topology.client, Family::V4.vip()).is_err(), "nobody listens there");

    let prefixed = Family::V4.with_prefix(address);
    for _ in 0..2 {
        topology.lb.ip(&["addr", "add", &prefixed, "dev", "lc0"]).unwrap();
        wait_for(&format!("{vip} is served by tc"), Duration::from_secs(10), || {
            let before = agent.totals()?;
            Connection::open_in(&topology.client, vip)?.get_last()?;
            agent.require_carried(&before, Rung::Tc, 1)
        })
        .unwrap();
        let before = agent.totals().unwrap();
        sequential(&topology.client, vip, 30).unwrap().require(30).unwrap();
        agent.require_carried(&before, Rung::Tc, 30).unwrap();

        topology.lb.ip(&["addr", "del", &prefixed, "dev", "lc0"]).unwrap();
        wait_for(&format!("{vip} is not served any more"), Duration::from_secs(10), || {
            let serves = agent.status()?["listeners"][0]["serves"].as_array().map_or(0, Vec::len);
            ensure!(serves == 0, "it still is");
            Ok(())
        })
        .unwrap();
        let services = agent.headgate(&["maps", "dump", "services4"]).unwrap();
        assert!(!services.contains(&address.to_string()), "{services}");
    }
}

#[test]
fn proxied_connections_outlive_the_change_to_xdp() {
    proxied_connections_outlive_the_change(Setup::Xdp);
}

#[test]
fn proxied_connections_outlive_the_change_to_tc() {
    proxied_connections_outlive_the_change(Setup::Tc);
}

/// A connection through an agent without eBPF stays open while that agent drains and a new one takes the port over
/// with the kernel datapath: its packets have no entry there and go up.
fn proxied_connections_outlive_the_change(setup: Setup) {
    let topology = Topology::new(&setup.options()).unwrap();
    let nginx = start_nginx(&topology, None).unwrap();
    let mut old = Agent::start(&topology, &config("proxy", &topology)).unwrap();
    let mut kept = Family::ALL.map(|family| Kept::open_in(&topology.client, family.vip()).unwrap());
    assert_eq!(old.totals().unwrap().sum(), Totals::only(Rung::Proxy, 2));

    old.terminate().unwrap();
    wait_until_nobody_listens(&topology);
    kept.iter_mut().for_each(|kept| kept.check().unwrap());
    assert!(old.exit_status().unwrap().is_none(), "it waits for its connections");

    let agent = Agent::start(&topology, &config(setup.rung().name(), &topology)).unwrap();
    let scenario = Scenario { agent, nginx, topology };
    scenario.require_attached(setup.rung()).unwrap();
    for family in Family::ALL {
        let before = scenario.agent.totals().unwrap();
        let outcome = sequential(&scenario.topology.client, family.vip(), 30).unwrap();
        outcome.require(30).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 30).unwrap();
        kept.iter_mut().for_each(|kept| kept.check().unwrap());
    }
    assert!(old.exit_status().unwrap().is_none(), "it waits for its connections:\n{}", old.log());
    drop(kept);
    old.require_exit(Duration::from_secs(20)).unwrap();
    drop(old);
    // Its end took nothing from the new one.
    let before = scenario.agent.totals().unwrap();
    curl::get(&scenario.topology.client, Family::V4.vip()).unwrap();
    scenario.agent.require_carried(&before, setup.rung(), 1).unwrap();
}

#[test]
fn sigterm_drains_xdp() {
    sigterm_drains(Setup::Xdp);
}

#[test]
fn sigterm_drains_tc() {
    sigterm_drains(Setup::Tc);
}

#[test]
fn sigterm_drains_proxy() {
    sigterm_drains(Setup::Proxy);
}

/// No new flows, the open ones live, and with the last of them the agent goes and leaves nothing.
fn sigterm_drains(setup: Setup) {
    let mut scenario = Scenario::start(setup, None).unwrap();
    let before = scenario.agent.totals().unwrap();
    let mut kept = Family::ALL.map(|family| Kept::open_in(&scenario.topology.client, family.vip()).unwrap());
    scenario.agent.require_carried(&before, setup.rung(), 2).unwrap();

    scenario.agent.terminate().unwrap();
    wait_until_nobody_listens(&scenario.topology);
    for _ in 0..20 {
        kept.iter_mut().for_each(|kept| kept.check().unwrap());
    }
    assert!(scenario.agent.exit_status().unwrap().is_none(), "it waits for its connections");

    drop(kept);
    scenario.agent.require_exit(Duration::from_secs(30)).unwrap();
    assert_eq!(scenario.topology.lb_xdp_modes().unwrap(), Default::default());
    let pins = std::fs::read_dir(scenario.agent.bpffs()).map_or(0, Iterator::count);
    assert_eq!(pins, 0, "pins stay in {}", scenario.agent.bpffs().display());
}

#[test]
fn sigterm_without_connections_ends_the_agent_at_once() {
    for setup in [Setup::Xdp, Setup::Tc, Setup::Proxy] {
        let mut scenario = Scenario::start(setup, None).unwrap();
        scenario.agent.terminate().unwrap();
        scenario.agent.require_exit(Duration::from_secs(10)).unwrap();
    }
}

fn wait_until_nobody_listens(topology: &Topology) {
    for family in Family::ALL {
        wait_for(&format!("{} refuses new connections", family.vip()), Duration::from_secs(10), || {
            ensure!(Connection::open_in(&topology.client, family.vip()).is_err(), "it still accepts");
            Ok(())
        })
        .unwrap();
    }
}

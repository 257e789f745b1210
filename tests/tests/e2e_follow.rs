//! The node changes under open connections: routes and links to clients, links that come, neighbours that go over to
//! another MAC address without a word.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use lb_tests::agent::{Agent, config};
use lb_tests::cmd::wait_for;
use lb_tests::http::{Connection, sequential};
use lb_tests::scenario::{Scenario, Setup, start_nginx};
use lb_tests::second_link::{self, SECOND, received};
use lb_tests::topology::{Family, Topology};

#[test]
fn flows_follow_the_routes_to_their_clients_on_xdp() {
    flows_follow_the_routes_to_their_clients(Setup::Xdp);
}

#[test]
fn flows_follow_the_routes_to_their_clients_on_tc() {
    flows_follow_the_routes_to_their_clients(Setup::Tc);
}

/// A client behind two links writes by the first; replies leave by whichever the route says at the moment: the same route
/// by another gateway, a more specific one, a less specific one after both are gone.
fn flows_follow_the_routes_to_their_clients(setup: Setup) {
    let topology = Topology::new(&setup.options()).unwrap();
    second_link::join(&topology).unwrap();
    let nginx = start_nginx(&topology, None).unwrap();
    let agent = Agent::start(&topology, &config(setup.rung().name(), &topology)).unwrap();
    let scenario = Scenario { agent, nginx, topology };
    let (client, lb) = (&scenario.topology.client, &scenario.topology.lb);
    for family in Family::ALL {
        let (net, host, default) = match family {
            Family::V4 => ("10.99.0.0/24", "10.99.0.1/32", "default"),
            Family::V6 => ("fd00:99::/64", "fd00:99::1/128", "default"),
        };
        let address = host.split('/').next().unwrap();
        client.ip(&["addr", "add", host, "dev", "lo"]).unwrap();
        let vip = family.lb(0).to_string();
        client.ip(&["route", "add", &vip, "dev", "c0", "src", address]).unwrap();
        let first = family.peer(0).to_string();
        let second = family.peer(SECOND).to_string();
        let by_first = ["via", first.as_str(), "dev", "lc0"];
        let by_second = ["via", second.as_str(), "dev", "lc9"];
        let route = |what: &str, net: &str, way: &[&str]| {
            lb.ip(&[&[family.flag(), "route", what, net], way].concat()).unwrap();
        };
        route("add", net, &by_first);
        let mut connection = wait_for("the way back is known", Duration::from_secs(5), || {
            let before = scenario.agent.totals()?;
            let connection = Connection::open_in(client, family.vip())?;
            scenario.agent.require_carried(&before, setup.rung(), 1)?;
            Ok(connection)
        })
        .unwrap();
        let name = connection.get().unwrap();
        assert_eq!(connection.local().unwrap().ip().to_string(), address);
        let mut comes_by = |device: &str| {
            wait_for(&format!("{family}: replies come by {device}"), Duration::from_secs(5), || {
                let before = received(client, device)?;
                for _ in 0..20 {
                    ensure!(connection.get()? == name, "another backend");
                }
                let came = received(client, device)? - before;
                ensure!(came >= 20, "{came} packets");
                Ok(())
            })
            .unwrap();
        };
        comes_by("c0");
        route("replace", net, &by_second);
        comes_by("c9");
        route("add", host, &by_first);
        comes_by("c0");
        route("add", default, &by_second);
        route("del", host, &[]);
        comes_by("c9");
        route("del", net, &[]);
        comes_by("c9");
        // Many of them, opened and ended while nothing but the default route is there.
        let before = scenario.agent.totals().unwrap();
        sequential(client, family.vip(), 20).unwrap().require(20).unwrap();
        scenario.agent.require_carried(&before, setup.rung(), 20).unwrap();
        route("add", net, &by_first);
        comes_by("c0");
    }
}

#[test]
fn neighbours_are_found_on_another_link_on_xdp() {
    neighbours_are_found_on_another_link(Setup::Xdp);
}

#[test]
fn neighbours_are_found_on_another_link_on_tc() {
    neighbours_are_found_on_another_link(Setup::Tc);
}

/// Clients on the balancer's own link, of which each flow has learned the MAC address: their route moves to the other
/// link, where they have another one.
fn neighbours_are_found_on_another_link(setup: Setup) {
    let topology = Topology::new(&setup.options()).unwrap();
    second_link::join(&topology).unwrap();
    let _nginx = start_nginx(&topology, None).unwrap();
    let agent = Agent::start(&topology, &config(setup.rung().name(), &topology)).unwrap();
    let (client, lb) = (&topology.client, &topology.lb);
    for family in Family::ALL {
        let before = agent.totals().unwrap();
        let mut connection = Connection::open_in(client, family.vip()).unwrap();
        let name = connection.get().unwrap();
        agent.require_carried(&before, setup.rung(), 1).unwrap();
        let net = match family {
            Family::V4 => "10.200.0.0/24",
            Family::V6 => "fd00:200::/64",
        };
        if family == Family::V6 {
            // Neighbour discovery, unlike ARP, is answered for a link's own addresses alone.
            let address = format!("{}/128", family.peer(0));
            client.ip(&["addr", "add", &address, "dev", "c9", "nodad"]).unwrap();
        }
        lb.ip(&[family.flag(), "route", "del", net, "dev", "lc0"]).unwrap();
        lb.ip(&[family.flag(), "route", "add", net, "dev", "lc9"]).unwrap();
        wait_for("replies come by the other link", Duration::from_secs(5), || {
            let before = received(client, "c9")?;
            for _ in 0..20 {
                ensure!(connection.get()? == name, "another backend");
            }
            let came = received(client, "c9")? - before;
            ensure!(came >= 20, "{came} packets");
            Ok(())
        })
        .unwrap();
        sequential(client, family.vip(), 20).unwrap().require(20).unwrap();
    }
}

#[test]
fn a_new_interface_carries_traffic_on_xdp() {
    a_new_interface_carries_traffic(Setup::Xdp);
}

#[test]
fn a_new_interface_carries_traffic_on_tc() {
    a_new_interface_carries_traffic(Setup::Tc);
}

/// A link that comes while the agent runs, goes, and comes again under its old name.
fn a_new_interface_carries_traffic(setup: Setup) {
    let scenario = Scenario::start(setup, None).unwrap();
    let (agent, topology) = (&scenario.agent, &scenario.topology);
    for _ in 0..2 {
        second_link::join(topology).unwrap();
        for family in Family::ALL {
            let vip = SocketAddr::new(family.lb(SECOND), family.vip().port());
            wait_for(&format!("{vip} is served by {}", setup.rung()), Duration::from_secs(10), || {
                let before = agent.totals()?;
                Connection::open_in(&topology.client, vip)?.get_last()?;
                agent.require_carried(&before, setup.rung(), 1)
            })
            .unwrap();
        }
        topology.lb.ip(&["link", "del", "lc9"]).unwrap();
        wait_for("the agent has seen it go", Duration::from_secs(5), || {
            ensure!(!agent.status()?["interfaces"].to_string().contains("lc9"), "it is still there");
            Ok(())
        })
        .unwrap();
    }
    // The others never noticed.
    let before = agent.totals().unwrap();
    for family in Family::ALL {
        sequential(&topology.client, family.vip(), 20).unwrap().require(20).unwrap();
    }
    agent.require_carried(&before, setup.rung(), 40).unwrap();
}

/// A backend that goes over to another MAC address and tells nobody: as long as the kernel trusts the old one, up to 45
/// seconds, it would be unreachable.
#[test]
fn a_neighbour_that_changes_without_a_word_is_found_again() {
    let scenario = Scenario::start(Setup::Tc, None).unwrap();
    let backend = &scenario.topology.backends[0];
    backend.sysctl("net.ipv4.conf.e0.arp_notify", "0").unwrap();
    backend.sysctl("net.ipv6.conf.e0.ndisc_notify", "0").unwrap();
    let mut kept: Vec<(Connection, String)> = Vec::new();
    for family in Family::ALL {
        while !kept.iter().any(|(connection, name)| {
            name == "b1" && connection.local().unwrap().is_ipv4() == (family == Family::V4)
        }) {
            let mut connection = Connection::open_in(&scenario.topology.client, family.vip()).unwrap();
            let name = connection.get().unwrap();
            kept.push((connection, name));
            assert!(kept.len() < 20, "nothing goes to b1");
        }
    }
    backend.ip(&["link", "set", "e0", "address", "02:00:00:00:01:99"]).unwrap();
    // A connection's own patience is 30 seconds.
    for (connection, name) in &mut kept {
        assert_eq!(connection.get().unwrap(), *name);
    }
    for family in Family::ALL {
        sequential(&scenario.topology.client, family.vip(), 9).unwrap().require(9).unwrap();
    }
}

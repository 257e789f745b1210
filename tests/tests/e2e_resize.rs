//! `datapath.max_flows` changes under traffic: other tables, the same flows.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::agent::config;
use lb_tests::cmd::wait_for;
use lb_tests::http::{Kept, allow_descriptors, sequential};
use lb_tests::load::{Clients, Load};
use lb_tests::rung::Rung;
use lb_tests::scenario::{Scenario, Setup};
use lb_tests::topology::Family;

/// Connections of each family that are used from first to last.
const HELD: usize = 20;
/// New connections that show what carries them.
const REQUESTS: u64 = 30;

/// The payload bytes of the held connections' flows, by client.
type Bytes = BTreeMap<String, u64>;

/// An installation, and connections with requests on them all the time.
struct Traffic {
    scenario: Scenario,
    rung: Rung,
    held: Vec<Load>,
}

impl Traffic {
    fn start(setup: Setup) -> Self {
        let scenario = Scenario::start(setup, None).unwrap();
        let clients = Clients { held: HELD, keep_alive: 0, one_shot: 0 };
        let client = &scenario.topology.client;
        for family in Family::ALL {
            let (to, via) = (family.lb(1).to_string(), family.lb(0).to_string());
            client.ip(&["route", "add", &to, "via", &via]).unwrap();
        }
        let held = Family::ALL.map(|family| Load::start(client, family.vip(), clients).unwrap()).into();
        let traffic = Self { scenario, rung: setup.rung(), held };
        wait_for("all connections are open", Duration::from_secs(20), || {
            let flows = traffic.flows()?.len();
            ensure!(flows == HELD * Family::ALL.len(), "{flows} flows");
            Ok(())
        })
        .unwrap();
        traffic
    }

    /// The configuration with tables of this size.
    fn config(&self, max_flows: u32) -> String {
        let text = config(self.rung.name(), &self.scenario.topology);
        let changed = text.replace("max_flows: 65536", &format!("max_flows: {max_flows}"));
        assert!(changed.contains(&format!("max_flows: {max_flows}")));
        changed
    }

    /// Established flows by their client; an error if one is on another rung.
    fn flows(&self) -> Result<Bytes> {
        let mut bytes = Bytes::new();
        for flow in self.scenario.agent.flows()? {
            if flow["state"] == "established" {
                ensure!(flow["rung"] == self.rung.name(), "{flow}");
                bytes.insert(flow["client"].to_string(), flow["bytes_in"].as_u64().unwrap_or(0));
            }
        }
        Ok(bytes)
    }

    /// Clients that make a connection for each request, and some for fifty, from now on.
    fn churn(&self) -> Vec<Load> {
        let clients = Clients { held: 0, keep_alive: 2, one_shot: 2 };
        let client = &self.scenario.topology.client;
        Family::ALL.map(|family| Load::start(client, family.vip(), clients).unwrap()).into()
    }

    /// Fails unless the tables are for so many flows, every held connection is in them with more bytes than `before`, and new
    /// connections are carried by the kernel.
    fn require(&self, max_flows: u32, before: &Bytes) {
        let agent = &self.scenario.agent;
        self.require_held();
        assert_eq!(agent.status().unwrap()["flows"]["max"], max_flows);
        wait_for("each flow goes on", Duration::from_secs(20), || {
            let now = self.flows()?;
            let stalled =
                before.iter().find(|(client, bytes)| now.get(*client).is_none_or(|now| now <= bytes));
            ensure!(stalled.is_none(), "{stalled:?} of {now:?}");
            Ok(())
        })
        .unwrap();
        let totals = agent.totals().unwrap();
        for family in Family::ALL {
            // Another address than that of the churn: a port of the client whose SYN the proxy got a moment ago has its next one
            // go there too.
            let vip = SocketAddr::new(family.lb(1), family.vip().port());
            let outcome = sequential(&self.scenario.topology.client, vip, REQUESTS).unwrap();
            outcome.require(REQUESTS).unwrap();
        }
        agent.require_carried(&totals, self.rung, 2 * REQUESTS).unwrap();
        // The command line reads the pins: no others are left.
        assert!(agent.headgate(&["maps", "list"]).unwrap().contains("FLOWS4"));
        let pins = std::fs::read_dir(agent.bpffs()).unwrap().flatten().next().unwrap().path().join("maps");
        assert!(!pins.join("NEXT_FLOWS4").exists() && !pins.join("NEXT_FLOWS6").exists());
    }

    /// Fails if a held connection was cut, or answered by another backend.
    fn require_held(&self) {
        for load in &self.held {
            let record = load.record();
            assert!(record.failures.is_empty(), "{:?}\n{}", record.failures, self.scenario.agent.log());
            assert_eq!(record.connections, HELD as u64);
        }
    }

    fn end(self) {
        self.require_held();
        for load in self.held {
            println!("the slowest request took {:?}", load.take_slowest());
            assert!(load.stop().unwrap().failures.is_empty());
        }
        let log = self.scenario.agent.log();
        log.lines().filter(|line| line.contains("flow tables")).for_each(|line| println!("{line}"));
    }
}

fn stop(churn: Vec<Load>) {
    for load in churn {
        let record = load.stop().unwrap();
        assert!(record.failures.is_empty(), "{:?}", record.failures);
        println!("{} connections meanwhile, the slowest {:?}", record.connections, record.slowest);
    }
}

#[test]
fn tables_of_other_sizes_on_xdp() {
    tables_of_other_sizes(Setup::Xdp);
}

#[test]
fn tables_of_other_sizes_on_tc() {
    tables_of_other_sizes(Setup::Tc);
}

/// Larger, much smaller, and another size again for an agent that takes over.
fn tables_of_other_sizes(setup: Setup) {
    let mut traffic = Traffic::start(setup);
    for max_flows in [131_072, 16_384] {
        let before = traffic.flows().unwrap();
        let churn = traffic.churn();
        traffic.scenario.agent.reload(&traffic.config(max_flows)).unwrap().unwrap();
        stop(churn);
        traffic.require(max_flows, &before);
    }

    // Left out, it changes nothing.
    let before = traffic.flows().unwrap();
    let unset = traffic.config(16_384).replace(", max_flows: 16384", "");
    traffic.scenario.agent.reload(&unset).unwrap().unwrap();
    traffic.require(16_384, &before);

    // By an agent that follows one that crashed, then one that left by choice.
    for (max_flows, crash) in [(65_536, true), (32_768, false)] {
        let before = traffic.flows().unwrap();
        traffic.scenario.agent.configure(&traffic.config(max_flows)).unwrap();
        if crash {
            traffic.scenario.agent.kill().unwrap();
        } else {
            traffic.scenario.agent.terminate().unwrap();
            traffic.scenario.agent.require_exit(Duration::from_secs(10)).unwrap();
        }
        let churn = traffic.churn();
        traffic.scenario.agent.restart(&["--leave-datapath"]).unwrap();
        stop(churn);
        traffic.scenario.require_attached(setup.rung()).unwrap();
        traffic.require(max_flows, &before);
    }
    traffic.end();
}

/// Tables that cannot hold the open flows are refused, at a reload and where an agent takes over; nothing is lost.
#[test]
fn too_small_tables_are_refused() {
    const OPEN: usize = 1_100;
    const TOO_FEW: u32 = 1024;
    allow_descriptors(4 * OPEN as u64).unwrap();
    let mut traffic = Traffic::start(Setup::Tc);
    let client = &traffic.scenario.topology.client;
    let mut kept: Vec<Kept> = (0..OPEN).map(|_| Kept::open_in(client, Family::V4.vip()).unwrap()).collect();
    let before = traffic.flows().unwrap();
    let refusal = format!("IPv4 flows are open, which tables for {TOO_FEW} cannot hold");

    let error = traffic.scenario.agent.reload(&traffic.config(TOO_FEW)).unwrap().unwrap_err();
    assert!(error.contains("datapath.max_flows") && error.contains(&refusal), "{error}");
    kept.iter_mut().for_each(|kept| kept.check().unwrap());
    traffic.require(65_536, &before);

    traffic.scenario.agent.kill().unwrap();
    traffic.scenario.agent.restart(&["--leave-datapath"]).unwrap();
    assert!(traffic.scenario.agent.log().contains("for 65536 flows and stay so"));
    kept.iter_mut().for_each(|kept| kept.check().unwrap());
    traffic.require(65_536, &before);
    traffic.end();
}

#[test]
fn an_agent_that_dies_half_way_loses_no_flow_on_xdp() {
    an_agent_dies_half_way(Setup::Xdp);
}

#[test]
fn an_agent_that_dies_half_way_loses_no_flow_on_tc() {
    an_agent_dies_half_way(Setup::Tc);
}

/// Killed at any time after it was told of another size, and started again: the flows go on and the size is the new one.
fn an_agent_dies_half_way(setup: Setup) {
    const ROUNDS: u32 = 16;
    /// Later in each round, to beyond the end of a change.
    const STEP: Duration = Duration::from_millis(100);
    let mut traffic = Traffic::start(setup);
    for round in 0..ROUNDS {
        let max_flows = if round % 2 == 0 { 131_072 } else { 65_536 };
        let before = traffic.flows().unwrap();
        traffic.scenario.agent.configure(&traffic.config(max_flows)).unwrap();
        traffic.scenario.agent.hang_up().unwrap();
        std::thread::sleep(round * STEP);
        traffic.scenario.agent.kill().unwrap();
        traffic.require_held();
        traffic.scenario.agent.restart(&["--leave-datapath"]).unwrap();
        traffic.scenario.require_attached(setup.rung()).unwrap();
        traffic.require(max_flows, &before);
    }
    traffic.end();
}

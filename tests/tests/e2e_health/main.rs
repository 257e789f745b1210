//! Health, ejection, selection and draining, on every rung: who gets new connections, what becomes of those that are
//! open, as their two ends see it, and what log, statistics and events say.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod ejection;
mod envoy;
mod leaving;
mod operator;
mod panic;
mod selection;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use lb_tests::cmd::wait_for;
use lb_tests::discovery::events;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;
use lb_tests::world::{PATIENCE, World, sections};
use serde_json::Value;

/// Of the first cluster's listener; those of the others follow.
const LISTENER: u16 = 8100;
/// Where the first cluster's backends are; those of the others follow.
const ECHO: u16 = 7000;
/// Where backends are asked for their health.
const PROBE: u16 = 7100;
/// Fails and recovers with the next probe.
const CHECKED: &str =
    "health_check: { type: tcp, port: 7100, interval: 100ms, timeout: 5s, unhealthy: 1, healthy: 1 }";

/// Each rung, with a family that gives each of them its turn.
const RUNGS: [(Setup, Family); 3] =
    [(Setup::Xdp, Family::V4), (Setup::Tc, Family::V6), (Setup::Proxy, Family::V4)];

/// Each rung with each family.
const ALL: [(Setup, Family); 6] = [
    (Setup::Xdp, Family::V4),
    (Setup::Xdp, Family::V6),
    (Setup::Tc, Family::V4),
    (Setup::Tc, Family::V6),
    (Setup::Proxy, Family::V4),
    (Setup::Proxy, Family::V6),
];

/// A cluster, and a listener of its name.
#[derive(Clone)]
struct Cluster {
    name: &'static str,
    /// As the file has them.
    hosts: Vec<String>,
    /// The other keys.
    keys: String,
}

impl Cluster {
    /// Of these backends at a port.
    fn new(name: &'static str, family: Family, numbers: &[usize], port: u16, keys: &str) -> Self {
        let hosts = numbers.iter().map(|&number| format!("\"{}\"", address(family, number, port)));
        Self { name, hosts: hosts.collect(), keys: keys.to_owned() }
    }
}

fn address(family: Family, number: usize, port: u16) -> SocketAddr {
    SocketAddr::new(family.backend(number).ip(), port)
}

fn config(setup: Setup, family: Family, log: &Path, clusters: &[Cluster]) -> String {
    let any = if family == Family::V4 { "0.0.0.0" } else { "[::]" };
    let mut text = sections(setup, log, "");
    text += "listeners:\n";
    for (Cluster { name, .. }, port) in clusters.iter().zip(LISTENER..) {
        text += &format!("  - {{ name: {name}, address: \"{any}:{port}\", cluster: {name} }}\n");
    }
    text += "clusters:\n";
    for Cluster { name, hosts, keys } in clusters {
        let hosts = hosts.join(", ");
        text += &format!("  - {{ name: {name}, discovery: {{ type: static, hosts: [{hosts}] }}, {keys} }}\n");
    }
    text
}

/// Servers of as many clusters, one where their health is asked for, and an agent.
fn start(setup: Setup, family: Family, clusters: &[Cluster], arguments: &[&str]) -> World {
    eprintln!("{setup:?}, {family}");
    let ports: Vec<u16> = (ECHO..).take(clusters.len()).chain([PROBE]).collect();
    World::start_with(setup, family, &ports, |log| config(setup, family, log, clusters), arguments)
}

/// The row of a backend in `backends --json`.
fn row(world: &World, cluster: &str, number: usize) -> anyhow::Result<Value> {
    let backends = world.agent.backends()?;
    let ip = world.family.backend(number).ip();
    let is_it = |row: &&Value| {
        let address = row["address"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
        row["cluster"] == cluster && address.is_some_and(|address| address.ip() == ip)
    };
    backends.as_array().into_iter().flatten().find(is_it).cloned().context("the backend is not there")
}

fn wait_state(world: &World, cluster: &str, number: usize, state: &str) {
    wait_for(&format!("backend {number} of {cluster} is {state}"), PATIENCE, || {
        let row = row(world, cluster, number)?;
        ensure!(row["state"] == state, "{row}");
        Ok(())
    })
    .unwrap()
}

/// What the events say of a backend, the oldest first: to what, and why.
fn history(world: &World, cluster: &str, number: usize) -> Vec<(String, String)> {
    let ip = world.family.backend(number).ip();
    let is_of = |event: &Value| {
        let endpoint = event["endpoint"].as_str().and_then(|at| at.parse::<SocketAddr>().ok());
        event["cluster"] == cluster && endpoint.is_some_and(|endpoint| endpoint.ip() == ip)
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let events = events(&world.agent).unwrap();
    events
        .iter()
        .filter(|event| is_of(event))
        .map(|event| (text(&event["to"]), text(&event["why"])))
        .collect()
}

/// What `/clusters` says of a backend's health.
fn health_flags(page: &str, cluster: &str, address: SocketAddr) -> anyhow::Result<String> {
    let prefix = format!("{cluster}::{address}::health_flags::");
    let flags = page.lines().find_map(|line| line.strip_prefix(&prefix));
    Ok(flags.with_context(|| format!("no {prefix} in {page}"))?.to_owned())
}

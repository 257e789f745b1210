//! Two balancers beside each other, with the same backends and each with an agent of its own.
//!
//! ```text
//!   client e0 10.200.1.9 ──┐ bridge   bridge  ┌── e1 10.200.2.1 lb1
//!   lb1    e0 10.200.1.1 ──┼ clients  backends┼── e1 10.200.2.2 lb2
//!   lb2    e0 10.200.1.2 ──┘                  └── e0 10.200.2.11 b1, .12 b2
//! ```
//!
//! Or the client is behind a router, which is host 254 there: `client e0 10.200.3.2 ── router c0 10.200.3.1`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::{Agent, headgate};
use crate::cmd::wait_for;
use crate::http::sequential;
use crate::lan::{Lan, backend};
use crate::nginx::Nginx;
use crate::rung::{Rung, Totals};
use crate::scenario::Setup;
use crate::topology::{Family, HTTP};

/// The hosts with an agent.
pub const BALANCERS: [&str; 2] = ["lb1", "lb2"];
/// The hosts behind them.
const BACKENDS: [&str; 2] = ["b1", "b2"];
/// The balancers' interfaces towards clients and towards backends.
pub const CLIENT_SIDE: &str = "e0";
pub const BACKEND_SIDE: &str = "e1";
/// Where clients or their router are, where the backends are, and what is behind the router.
const FRONT: usize = 1;
const BACK: usize = 2;
const FAR: usize = 3;
/// The router on [`FRONT`].
const ROUTER: u8 = 254;

/// The parts, in the order in which they must go.
#[derive(Debug)]
pub struct Pair {
    pub agents: [Agent; 2],
    _nginx: Vec<Nginx>,
    pub lan: Lan,
}

impl Pair {
    /// With the client on the balancers' own network, and another one beside it, the host `patient`, for connections that stay
    /// open.
    pub fn start(setup: Setup) -> Result<Self> {
        let lan = hosts(setup, &["patient"])?;
        plug(&lan, "client", "e0", (FRONT, 9))?;
        plug(&lan, "patient", "e0", (FRONT, 8))?;
        Self::serve(lan, setup)
    }

    /// With the client behind a router, the host `router`.
    pub fn start_behind_router(setup: Setup) -> Result<Self> {
        let lan = hosts(setup, &["router"])?;
        plug(&lan, "router", "e0", (FRONT, ROUTER))?;
        lan.network(FAR, ("router", "c0"), ("client", "e0"))?;
        lan.forward("router")?;
        lan.default_route("client", (FAR, 1))?;
        for host in BALANCERS {
            lan.default_route(host, (FRONT, ROUTER))?;
        }
        Self::serve(lan, setup)
    }

    /// Starts what runs on the hosts, and waits until the rung carries every connection.
    fn serve(lan: Lan, setup: Setup) -> Result<Self> {
        let nginx =
            BACKENDS.iter().map(|host| Nginx::start(&lan[host], host, None)).collect::<Result<_>>()?;
        let start = |host: &str| Agent::start_in(&headgate()?, &lan.name, &lan[host], &config(setup), &[]);
        let agents = [start(BALANCERS[0])?, start(BALANCERS[1])?];
        let pair = Self { agents, _nginx: nginx, lan };
        for number in 0..BALANCERS.len() {
            pair.wait_carried_by(number, setup.carrier())?;
        }
        Ok(pair)
    }

    /// Until a balancer's rung carries every connection to its own address: the first ones to an endpoint whose neighbour is
    /// not known yet are left to a slower one.
    pub fn wait_carried_by(&self, number: usize, rung: Rung) -> Result<()> {
        const CONNECTIONS: u64 = 9;
        let (agent, own) = (&self.agents[number], SocketAddr::new(address(number), HTTP));
        wait_for(&format!("all connections are carried by {rung}"), Duration::from_secs(15), || {
            let before = agent.totals()?;
            sequential(&self.lan["client"], own, CONNECTIONS)?.require(CONNECTIONS)?;
            let carried = agent.totals()?.sum().since(before.sum());
            ensure!(carried == Totals::only(rung, CONNECTIONS), "{carried:?}");
            Ok(())
        })
    }
}

/// A balancer's own address towards clients.
pub fn address(number: usize) -> IpAddr {
    Family::V4.address(FRONT, u8::try_from(number + 1).expect("one of two"))
}

/// The router's address towards the balancers.
pub fn router() -> IpAddr {
    Family::V4.address(FRONT, ROUTER)
}

/// An address that no host has by itself.
pub fn vip() -> SocketAddr {
    SocketAddr::new(Family::V4.address(FRONT, 100), HTTP)
}

/// The hosts, and the cables of balancers and backends.
fn hosts(setup: Setup, more: &[&str]) -> Result<Lan> {
    let lan = Lan::new(&[&["switch", "client", "lb1", "lb2", "b1", "b2"], more].concat())?;
    for network in [FRONT, BACK] {
        lan["switch"].ip(&["link", "add", &bridge(network), "type", "bridge"])?;
        lan["switch"].ip(&["link", "set", &bridge(network), "up"])?;
    }
    for (host, number) in BALANCERS.into_iter().zip(1..) {
        plug(&lan, host, CLIENT_SIDE, (FRONT, number))?;
        plug(&lan, host, BACKEND_SIDE, (BACK, number))?;
        // The switch finishes the checksums of everybody's frames to a balancer.
        for device in [CLIENT_SIDE, BACKEND_SIDE] {
            lan.face_xdp(setup, &[("switch", &port(host, device))])?;
        }
    }
    for (host, number) in BACKENDS.into_iter().zip(11..) {
        plug(&lan, host, "e0", (BACK, number))?;
    }
    Ok(lan)
}

/// Connects a device of a host with the network's bridge on the switch.
fn plug(lan: &Lan, host: &str, device: &str, (network, number): (usize, u8)) -> Result<()> {
    let port = port(host, device);
    lan.cable(("switch", &port), (host, device))?;
    lan["switch"].ip(&["link", "set", &port, "master", &bridge(network)])?;
    lan.address((host, device), network, number)
}

fn bridge(network: usize) -> String {
    format!("net{network}")
}

/// The switch's end of a cable.
fn port(host: &str, device: &str) -> String {
    format!("{host}-{device}")
}

/// Both agents choose alike, so that it makes no difference which of them a new connection comes to.
fn config(setup: Setup) -> String {
    let hosts =
        (11..).take(BACKENDS.len()).map(|number| format!("\"{}\"", backend(Family::V4, BACK, number)));
    let hosts: Vec<_> = hosts.collect();
    format!(
        r#"datapath: {{ mode: {}, max_flows: 65536 }}
listeners:
  - {{ name: http, address: "0.0.0.0:{HTTP}", cluster: web }}
clusters:
  - name: web
    discovery: {{ type: static, hosts: [{}] }}
    lb_policy: maglev
    health_check: {{ type: tcp, interval: 500ms, timeout: 500ms }}
"#,
        setup.rung().name(),
        hosts.join(", ")
    )
}

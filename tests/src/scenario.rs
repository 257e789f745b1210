//! A whole installation under test: hosts, nginx on every backend and an agent with one rung forced.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use crate::agent::{Agent, config};
use crate::cmd::run;
use crate::curl;
use crate::http::Outcome;
use crate::netns::Namespace;
use crate::nginx::Nginx;
use crate::payload::{Payload, sha256_of_file};
use crate::rung::{BackendTotals, Rung};
use crate::topology::{Family, Options, Topology};

/// A rung and the hosts that it is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    Xdp,
    /// veth's defaults: super-packets and partial checksums.
    Tc,
    /// Checksums finished in software as a NIC would: see [`Options::egress_tx_off`].
    TcEgressTxOff,
    Proxy,
}

impl Setup {
    pub fn rung(self) -> Rung {
        match self {
            Self::Xdp => Rung::Xdp,
            Self::Tc | Self::TcEgressTxOff => Rung::Tc,
            Self::Proxy => Rung::Proxy,
        }
    }

    /// What carries connections in the end. A veth sends what XDP redirects to it only while its far end has a program,
    /// and a kernel before 6.3 does not tell: there the XDP program leaves each packet to the TC program behind it.
    pub fn carrier(self) -> Rung {
        let release = run("uname", &["-r"]).expect("every system has uname");
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
        if self == Self::Xdp && version < (Some(6), Some(3)) { Rung::Tc } else { self.rung() }
    }

    pub fn options(self) -> Options {
        Options {
            xdp_peers: self == Self::Xdp,
            egress_tx_off: self == Self::TcEgressTxOff,
            ..Options::default()
        }
    }
}

/// The parts, in the order in which they must go.
#[derive(Debug)]
pub struct Scenario {
    pub agent: Agent,
    pub nginx: Vec<Nginx>,
    pub topology: Topology,
}

impl Scenario {
    pub fn start(setup: Setup, payload: Option<&Payload>) -> Result<Self> {
        Self::start_on(setup, &setup.options(), payload)
    }

    /// The same on other hosts than the setup's own.
    pub fn start_on(setup: Setup, options: &Options, payload: Option<&Payload>) -> Result<Self> {
        let topology = Topology::new(options)?;
        let nginx = start_nginx(&topology, payload)?;
        let agent = Agent::start(&topology, &config(setup.rung().name(), &topology))?;
        let scenario = Self { agent, nginx, topology };
        scenario.require_attached(setup.rung())?;
        Ok(scenario)
    }

    /// Fails unless `status` calls every device of the balancer one of this rung, and exactly the wanted kind of XDP
    /// is on them: native for xdp, none for the others, generic never.
    pub fn require_attached(&self, rung: Rung) -> Result<()> {
        let status = self.agent.status()?;
        let shown = |device: &String| {
            let interfaces = status["interfaces"].as_array()?;
            interfaces.iter().find(|interface| interface["name"] == **device)?["rung"].as_str()
        };
        let devices = self.topology.lb_devices();
        if rung != Rung::Proxy {
            let elsewhere = devices.iter().find(|device| shown(device) != Some(rung.name()));
            ensure!(elsewhere.is_none(), "{elsewhere:?} is not on {rung}: {}", status["interfaces"]);
        }
        let modes = self.topology.lb_xdp_modes()?;
        let wanted: BTreeMap<String, u64> = match rung {
            Rung::Xdp => devices.into_iter().map(|device| (device, 1)).collect(),
            Rung::Tc | Rung::Proxy => BTreeMap::new(),
        };
        ensure!(modes == wanted, "XDP modes (1 = native, 2 = generic) {modes:?} instead of {wanted:?}");
        Ok(())
    }

    /// See [`transfer`].
    pub fn transfer(&self, address: SocketAddr, payload: &Payload) -> Result<()> {
        transfer(&self.topology.client, &self.nginx, address, payload)
    }

    /// Fails unless, since `before`, the counters of each backend say what the clients heard from it.
    pub fn require_served(&self, family: Family, before: &BackendTotals, outcome: &Outcome) -> Result<()> {
        let now = self.agent.totals()?;
        for (nginx, number) in self.nginx.iter().zip(1..) {
            let heard = outcome.served.get(&nginx.name).copied().unwrap_or(0);
            let counted = now.of_since(family.backend(number), before).sum();
            ensure!(heard == counted, "{}: {heard} answers, {counted} connections counted", nginx.name);
        }
        Ok(())
    }
}

/// nginx on every backend, named `b1` and so on.
pub fn start_nginx(topology: &Topology, payload: Option<&Payload>) -> Result<Vec<Nginx>> {
    let backends = topology.backends.iter().zip(1..);
    backends.map(|(namespace, number)| Nginx::start(namespace, &format!("b{number}"), payload)).collect()
}

/// Downloads and uploads the payload from `client`, each on a connection of its own, and compares what arrives.
pub fn transfer(client: &Namespace, nginx: &[Nginx], address: SocketAddr, payload: &Payload) -> Result<()> {
    curl::download(client, address, payload).context("download")?;
    curl::upload(client, address, payload, "copy").context("upload")?;
    require_uploaded(nginx, "copy", payload)
}

/// Fails unless one of the servers was sent exactly the payload as `PUT /upload/NAME`; removes the copy.
pub fn require_uploaded(nginx: &[Nginx], name: &str, payload: &Payload) -> Result<()> {
    let mut uploads = nginx.iter().map(|nginx| nginx.upload(name));
    let path = uploads.find(|path| path.exists()).context("no backend has the uploaded file")?;
    let (bytes, sha256) = sha256_of_file(&path)?;
    fs::remove_file(path)?;
    ensure!(bytes == payload.bytes, "{bytes} bytes were uploaded instead of {}", payload.bytes);
    ensure!(sha256 == payload.sha256, "the upload arrived changed: {sha256} instead of {}", payload.sha256);
    Ok(())
}

//! A cluster whose endpoints come from DNS: balancer, nginx on every backend, dnsmasq beside the agent, and what the
//! agent says of them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::{Agent, headgate};
use crate::cmd::wait_for;
use crate::dnsmasq::{Dnsmasq, Unknown};
use crate::http::sequential;
use crate::nginx::Nginx;
use crate::rung::{Rung, Totals};
use crate::scenario::{Setup, start_nginx};
use crate::topology::{Family, Topology};

/// The name that the backends' addresses are published under.
pub const NAME: &str = "web.test";
/// Far above what any change takes.
pub const SOON: Duration = Duration::from_secs(10);

/// The hosts around an agent, in the order in which they must go.
#[derive(Debug)]
pub struct Cluster {
    /// On 127.0.0.1 of the balancer.
    pub dns: Dnsmasq,
    _nginx: Vec<Nginx>,
    /// Holds resolv.conf.
    pub directory: PathBuf,
    pub topology: Topology,
}

impl Cluster {
    /// With no records yet. resolv.conf names dnsmasq and asks once, for a second.
    pub fn start(setup: Setup) -> Result<Self> {
        let mut cluster = Self::without_servers(setup)?;
        cluster._nginx = start_nginx(&cluster.topology, None)?;
        Ok(cluster)
    }

    /// The same with nothing on the backends.
    pub fn without_servers(setup: Setup) -> Result<Self> {
        let topology = Topology::new(&setup.options())?;
        let dns = Dnsmasq::start(&topology.lb, Ipv4Addr::LOCALHOST.into())?;
        let directory = std::env::temp_dir().join(format!("{}-resolv", topology.name));
        fs::create_dir_all(&directory)?;
        let cluster = Self { dns, _nginx: Vec::new(), directory, topology };
        cluster.write_resolv_conf("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        Ok(cluster)
    }

    pub fn resolv_conf(&self) -> PathBuf {
        self.directory.join("resolv.conf")
    }

    /// At once, as programs do that own this file.
    pub fn write_resolv_conf(&self, text: &str) -> Result<()> {
        let next = self.directory.join("next");
        fs::write(&next, text)?;
        Ok(fs::rename(&next, self.resolv_conf())?)
    }

    /// The IPv4 addresses of these backends (from 1) are those of [`NAME`] from now on.
    pub fn publish(&self, numbers: &[usize], unknown: Unknown) -> Result<()> {
        let addresses = numbers.iter().map(|&number| Family::V4.backend(number).ip());
        let records: Vec<(_, IpAddr)> = addresses.map(|address| (NAME, address)).collect();
        self.dns.set(&records, unknown)
    }

    /// An agent that reads this resolv.conf.
    pub fn start_agent(&self, config: &str) -> Result<Agent> {
        let resolv_conf = self.resolv_conf();
        let resolv_conf = resolv_conf.to_str().context("a path that is not UTF-8")?;
        Agent::start_with(&headgate()?, &self.topology, config, &["--resolv-conf", resolv_conf])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The addresses of the backends that take new connections, sorted as text.
pub fn endpoints(agent: &Agent) -> Result<Vec<String>> {
    let backends = agent.backends()?;
    let backends = backends.as_array().context("backends: no list")?;
    let serving = backends.iter().filter(|backend| backend["state"] == "healthy");
    let mut addresses: Vec<_> =
        serving.filter_map(|backend| Some(backend["address"].as_str()?.to_owned())).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// Fails unless exactly these backends take new connections, by IPv4.
pub fn require_endpoints(agent: &Agent, numbers: &[usize]) -> Result<()> {
    let wanted: Vec<_> = numbers.iter().map(|&number| Family::V4.backend(number).to_string()).collect();
    let now = endpoints(agent)?;
    ensure!(now == wanted, "endpoints {now:?} instead of {wanted:?}; events {:#?}", events(agent)?);
    Ok(())
}

/// Until exactly these do.
pub fn wait_endpoints(agent: &Agent, numbers: &[usize]) -> Result<()> {
    wait_for("the endpoints follow DNS", SOON, || require_endpoints(agent, numbers))
}

/// The row of a backend in `backends --json`.
pub fn backend(agent: &Agent, number: usize) -> Result<Option<Value>> {
    let address = Family::V4.backend(number).to_string();
    let backends = agent.backends()?;
    let backends = backends.as_array().context("backends: no list")?;
    Ok(backends.iter().find(|row| row["address"] == *address).cloned())
}

/// `status.events`, the oldest first.
pub fn events(agent: &Agent) -> Result<Vec<Value>> {
    agent.status()?["events"].as_array().cloned().context("status has no events")
}

/// Until the last event of a backend is that it became `to`.
pub fn wait_becomes(agent: &Agent, number: usize, to: &str) -> Result<()> {
    let endpoint = Family::V4.backend(number).to_string();
    wait_for(&format!("{endpoint} becomes {to}"), SOON, || {
        let events = events(agent)?;
        let last = events.iter().rfind(|event| event["endpoint"] == *endpoint);
        ensure!(last.is_some_and(|event| event["to"] == to), "{events:#?}");
        Ok(())
    })
}

/// Until an event after the first `known` ones has one of these words, in lower case, in its reason.
pub fn wait_why(agent: &Agent, known: usize, words: &[&str]) -> Result<()> {
    wait_for(&format!("an event says one of {words:?}"), SOON, || {
        let events = events(agent)?;
        let said = events.iter().skip(known).any(|event| {
            let why = event["why"].as_str().unwrap_or_default().to_lowercase();
            words.iter().any(|word| why.contains(word))
        });
        ensure!(said, "{events:#?}");
        Ok(())
    })
}

/// What events say of a server that does not answer.
pub const SILENCE: [&str; 1] = ["did not answer"];

/// Until every one of a few new connections, and of what others make meanwhile, is carried by `rung`. On xdp the first ones to a new endpoint may be
/// handed to TC, while its neighbour is not known yet.
pub fn wait_carried_by(cluster: &Cluster, agent: &Agent, rung: Rung) -> Result<()> {
    const CONNECTIONS: u64 = 9;
    wait_for(&format!("all connections are carried by {rung}"), SOON, || {
        let before = agent.totals()?;
        sequential(&cluster.topology.client, Family::V4.vip(), CONNECTIONS)?.require(CONNECTIONS)?;
        let carried = agent.totals()?.sum().since(before.sum());
        ensure!(carried == Totals::only(rung, carried.sum()), "{carried:?}");
        Ok(())
    })
}

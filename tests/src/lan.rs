//! Hosts and cables of any arrangement, for what [`topology`](crate::topology) cannot draw: bridges, tunnels,
//! routers, several links between two hosts.
//!
//! Networks are numbered as there: host H of network N is 10.200.N.H/24 and fd00:200:N::H/64. No host forwards
//! unless told to, and addresses come without duplicate address detection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use crate::agent::{Agent, config_of, headgate};
use crate::bpf::PinnedProgram;
use crate::http::Connection;
use crate::netns::Namespace;
use crate::nginx::Nginx;
use crate::payload::Payload;
use crate::rung::{BackendTotals, Rung};
use crate::scenario::{Setup, transfer};
use crate::topology::{BACKEND_HTTP, Family, HTTP, TEST_PREFIX, unique_name};

/// The host that the agent runs on.
pub const LB: &str = "lb";

/// Requests of one [`Site::job`].
const REQUESTS: u64 = 12;
/// The connections of one: the requests', the download's and the upload's.
pub const JOB: u64 = REQUESTS + 2;

/// The hosts, taken down with everything in them when dropped.
#[derive(Debug)]
pub struct Lan {
    /// Unique on this machine; the namespaces are `NAME-HOST`.
    pub name: String,
    hosts: BTreeMap<String, Namespace>,
}

impl Lan {
    pub fn new(hosts: &[&str]) -> Result<Self> {
        let name = unique_name(TEST_PREFIX);
        let mut lan = Self { name, hosts: BTreeMap::new() };
        for host in hosts {
            let namespace = Namespace::create(&format!("{}-{host}", lan.name))?;
            lan.hosts.insert((*host).to_owned(), namespace);
            // Where a reply comes in by another link than the route goes out by, nothing may look at that.
            for scope in ["all", "default"] {
                lan[host].sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
            }
            lan[host].sysctl("net.ipv4.ip_forward", "0")?;
        }
        Ok(lan)
    }

    /// A cable: a veth pair with both ends up. XDP needs as many receive queues at one end as the other has
    /// transmit queues.
    pub fn cable(&self, (near, near_device): (&str, &str), (far, far_device): (&str, &str)) -> Result<()> {
        #[rustfmt::skip]
        self[near].ip(&[
            "link", "add", near_device, "numrxqueues", "2", "numtxqueues", "2",
            "type", "veth",
            "peer", "name", far_device, "numrxqueues", "2", "numtxqueues", "2", "netns", self[far].name(),
        ])?;
        self[near].ip(&["link", "set", near_device, "up"])?;
        self[far].ip(&["link", "set", far_device, "up"]).map(drop)
    }

    /// A cable with an address of network N at each end: host 1 is near, host 2 far.
    pub fn network(&self, network: usize, near: (&str, &str), far: (&str, &str)) -> Result<()> {
        self.cable(near, far)?;
        self.address(near, network, 1)?;
        self.address(far, network, 2)
    }

    /// Gives a device the addresses of a host of a network.
    pub fn address(&self, (host, device): (&str, &str), network: usize, number: u8) -> Result<()> {
        for family in Family::ALL {
            let address = family.with_prefix(family.address(network, number));
            self[host].ip(&["addr", "add", &address, "dev", device, "nodad"])?;
        }
        Ok(())
    }

    /// A route of a host to a network, by a host of another network.
    pub fn route(&self, host: &str, to: usize, (network, number): (usize, u8)) -> Result<()> {
        for family in Family::ALL {
            let to = family.with_prefix(family.address(to, 0));
            self[host].ip(&["route", "add", &to, "via", &family.address(network, number).to_string()])?;
        }
        Ok(())
    }

    /// The default route of a host, by a host of a network.
    pub fn default_route(&self, host: &str, (network, number): (usize, u8)) -> Result<()> {
        for family in Family::ALL {
            let via = family.address(network, number).to_string();
            self[host].ip(&[family.flag(), "route", "add", "default", "via", &via])?;
        }
        Ok(())
    }

    /// Makes a router of a host.
    pub fn forward(&self, host: &str) -> Result<()> {
        self[host].sysctl("net.ipv4.ip_forward", "1")?;
        self[host].sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    pub fn mtu(&self, (host, device): (&str, &str), bytes: u32) -> Result<()> {
        self[host].ip(&["link", "set", "dev", device, "mtu", &bytes.to_string()]).map(drop)
    }

    /// Prepares these far ends for native XDP at the balancer's, if the setup is that: see
    /// [`Options::xdp_peers`](crate::topology::Options::xdp_peers).
    pub fn face_xdp(&self, setup: Setup, far_ends: &[(&str, &str)]) -> Result<()> {
        if setup.rung() != Rung::Xdp {
            return Ok(());
        }
        let pass = PinnedProgram::xdp_pass()?;
        for (host, device) in far_ends {
            self[host].run("ethtool", &["-K", device, "tx", "off"])?;
            // Not `ip -n`: like `ip netns exec`, it would look for the pin under a /sys of its own.
            self[host].run("ip", &["link", "set", "dev", device, "xdpdrv", "pinned", pass.path()])?;
        }
        Ok(())
    }
}

/// A host by its name.
impl std::ops::Index<&str> for Lan {
    type Output = Namespace;

    fn index(&self, host: &str) -> &Namespace {
        self.hosts.get(host).unwrap_or_else(|| panic!("no host {host}"))
    }
}

/// nginx and the agent on such hosts, in the order in which they must go.
#[derive(Debug)]
pub struct Site {
    pub agent: Agent,
    pub nginx: Vec<Nginx>,
    pub lan: Lan,
}

impl Site {
    /// Starts nginx on the named hosts, and the agent on [`LB`] with the setup's mode forced on the interfaces that
    /// it finds by itself.
    pub fn start(
        lan: Lan,
        setup: Setup,
        servers: &[&str],
        backends: &[SocketAddr],
        payload: &Payload,
    ) -> Result<Self> {
        Self::start_with(lan, &config_of(setup.rung().name(), "auto", backends), servers, payload)
    }

    /// The same with any configuration.
    pub fn start_with(lan: Lan, config: &str, servers: &[&str], payload: &Payload) -> Result<Self> {
        let servers = servers.iter().map(|host| Nginx::start(&lan[host], host, Some(payload)));
        let nginx = servers.collect::<Result<_>>()?;
        let agent = Agent::start_in(&headgate()?, &lan.name, &lan[LB], config, &[])?;
        Ok(Self { agent, nginx, lan })
    }

    /// The rung of one of the balancer's interfaces and why it is that.
    pub fn interface(&self, name: &str) -> Result<(String, String)> {
        let status = self.agent.status()?;
        let mut interfaces = status["interfaces"].as_array().context("interfaces")?.iter();
        let interface = interfaces.find(|interface| interface["name"] == name);
        let interface = interface.with_context(|| format!("no {name} in {}", status["interfaces"]))?;
        let text = |key: &str| interface[key].as_str().map(str::to_owned).context("a string");
        Ok((text("rung")?, text("why")?))
    }

    /// Fails unless these interfaces are on that rung.
    pub fn require_rung(&self, interfaces: &[&str], rung: Rung) -> Result<()> {
        for name in interfaces {
            let (found, why) = self.interface(name)?;
            ensure!(found == rung.name(), "{name} is on {found} ({why}) instead of {rung}");
        }
        Ok(())
    }

    /// Requests and a transfer each way from a host to a VIP: all are answered, by nobody else than `servers`, and
    /// counted on `carrier` alone.
    pub fn job(
        &self,
        client: &str,
        vip: SocketAddr,
        servers: &[&str],
        carrier: Rung,
        payload: &Payload,
    ) -> Result<()> {
        self.try_job(client, vip, servers, carrier, payload).with_context(|| {
            let reasons = self.agent.status().map(|status| status["reasons"].to_string());
            format!("{client} to {vip}; reasons {reasons:?}")
        })
    }

    fn try_job(
        &self,
        client: &str,
        vip: SocketAddr,
        servers: &[&str],
        carrier: Rung,
        payload: &Payload,
    ) -> Result<()> {
        let before = self.agent.totals()?;
        let client = &self.lan[client];
        // The first that fails ends it: each may take half a minute.
        let request = |_| Connection::open(vip).and_then(Connection::get_last);
        let answered: BTreeSet<String> =
            client.within(|| (0..REQUESTS).map(request).collect::<Result<_>>())??;
        ensure!(answered.iter().eq(servers), "answers from {answered:?} instead of {servers:?}");
        transfer(client, &self.nginx, vip, payload)?;
        self.agent.require_carried(&before, carrier, JOB).map(drop)
    }

    /// Fails unless every connection since `before` is counted on these backends, on each some.
    pub fn require_shared(&self, before: &BackendTotals, backends: &[SocketAddr]) -> Result<()> {
        let now = self.agent.totals()?;
        for backend in backends {
            let count = now.of_since(*backend, before).sum();
            ensure!(count > 0, "no connection is counted on {backend}: {now:?}");
        }
        Ok(())
    }
}

/// The backend on a host of a network.
pub fn backend(family: Family, network: usize, number: u8) -> SocketAddr {
    SocketAddr::new(family.address(network, number), BACKEND_HTTP)
}

/// The backends of both families on hosts of networks.
pub fn backends(hosts: &[(usize, u8)]) -> Vec<SocketAddr> {
    let of = |family: Family| hosts.iter().map(move |&(network, number)| backend(family, network, number));
    Family::ALL.into_iter().flat_map(of).collect()
}

/// What a client connects to at the balancer's address on a network, where it is host 1.
pub fn vip(family: Family, network: usize) -> SocketAddr {
    SocketAddr::new(family.address(network, 1), HTTP)
}

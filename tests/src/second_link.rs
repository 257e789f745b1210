//! A second link between the client and the balancer, and a network behind the client that can be reached by both.
//!
//! ```text
//!   client                             lb
//!   lo 10.210.0.2/32
//!   c0 10.200.0.2 (see `topology`) ─── lc0 10.200.0.1
//!   c9 10.200.90.2/24 ──────────────── lc9 10.200.90.1/24
//! ```
//!
//! The client asks the VIP from 10.210.0.2, always over the first link. Which way the answers take is the balancer's
//! route to 10.210.0.0/24: [`SecondLink::route_by`].

use anyhow::{Context as _, Result};

use crate::bpf::PinnedProgram;
use crate::netns::Namespace;
use crate::topology::{Family, Topology};

/// Number of the link among the balancer's, for [`Family::lb`] and [`Family::peer`].
pub const SECOND: usize = 90;
const CLIENT: &str = "10.210.0.2";
const NETWORK: &str = "10.210.0.0/24";

/// Its two ends.
#[derive(Debug)]
pub struct SecondLink<'a> {
    topology: &'a Topology,
}

/// One of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    First,
    Second,
}

impl Way {
    /// The client's device.
    fn client_device(self) -> &'static str {
        match self {
            Self::First => "c0",
            Self::Second => "c9",
        }
    }
}

/// `lc9` at the balancer and `c9` at the client, with addresses like those of the other links. Made for native XDP at the
/// balancer's end, as [`Options::xdp_peers`](crate::topology::Options::xdp_peers) says.
pub fn join(topology: &Topology) -> Result<()> {
    let (lb, client) = (&topology.lb, &topology.client);
    #[rustfmt::skip]
    lb.ip(&[
        "link", "add", "lc9", "address", "02:00:00:00:f0:01", "numrxqueues", "2", "numtxqueues", "2",
        "type", "veth",
        "peer", "name", "c9", "address", "02:00:00:00:f0:02", "numrxqueues", "2", "numtxqueues", "2",
        "netns", client.name(),
    ])?;
    for family in Family::ALL {
        for (host, device, address) in [(lb, "lc9", family.lb(SECOND)), (client, "c9", family.peer(SECOND))] {
            host.ip(&["addr", "add", &family.with_prefix(address), "dev", device])?;
        }
    }
    let pass = PinnedProgram::xdp_pass()?;
    client.run("ethtool", &["-K", "c9", "tx", "off"])?;
    client.run("ip", &["link", "set", "dev", "c9", "xdpdrv", "pinned", pass.path()])?;
    for (host, device) in [(lb, "lc9"), (client, "c9")] {
        host.ip(&["link", "set", device, "up"])?;
    }
    // Answers come in by a link that requests do not leave by.
    for scope in ["all", "c0", "c9"] {
        client.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
    }
    Ok(())
}

impl<'a> SecondLink<'a> {
    /// The link, and the network behind the client.
    pub fn add(topology: &'a Topology) -> Result<Self> {
        let client = &topology.client;
        join(topology)?;
        client.ip(&["addr", "add", &format!("{CLIENT}/32"), "dev", "lo"])?;
        let vip = Family::V4.vip().ip().to_string();
        client.ip(&["route", "add", &vip, "dev", "c0", "src", CLIENT])?;
        let link = Self { topology };
        link.route_by(Way::First)?;
        Ok(link)
    }

    /// Answers take this way from now on.
    pub fn route_by(&self, way: Way) -> Result<()> {
        let (gateway, device) = match way {
            Way::First => (Family::V4.peer(0), "lc0"),
            Way::Second => (Family::V4.peer(SECOND), "lc9"),
        };
        self.topology
            .lb
            .ip(&["route", "replace", NETWORK, "via", &gateway.to_string(), "dev", device])
            .map(drop)
    }

    /// Packets that reached the client this way.
    pub fn arrived_by(&self, way: Way) -> Result<u64> {
        received(&self.topology.client, way.client_device())
    }
}

/// Packets that a device has received.
pub fn received(host: &Namespace, device: &str) -> Result<u64> {
    let text = host.ip(&["-j", "-s", "link", "show", "dev", device])?;
    let links: serde_json::Value = serde_json::from_str(&text).context("ip -j -s link show")?;
    links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| format!("no packet count in {text}"))
}

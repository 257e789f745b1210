//! The hosts: a client, the balancer and a few backends, each in a network namespace of its own.
//!
//! ```text
//!   client                        lb                                b1 … bN
//!   c0 10.200.0.2/24 ─────────── lc0 10.200.0.1/24
//!      fd00:200:0::2/64              fd00:200:0::1/64
//!                                lb1 10.200.1.1/24 ───────────── e0 10.200.1.2/24
//!                                    fd00:200:1::1/64               fd00:200:1::2/64
//! ```
//!
//! Backends know their own link only: with no route to the client they can answer nobody but the balancer's own
//! address, so every reply proves the SNAT. The balancer forwards nothing in either family. MAC addresses are
//! fixed: 02:00:00:00:NN:01 at the balancer's end of link NN (00 = the client's), :02 at the far end.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::bpf::{BPFFS, PinnedProgram};
use crate::netns::{self, Namespace};
use crate::nginx::MEMORY;

/// What the namespaces of tests are named after.
pub(crate) const TEST_PREFIX: &str = "hgt";
/// The port that the listener of every scenario has.
pub const HTTP: u16 = 80;
/// The port that backends listen on, as an Istio ingress gateway does.
pub const BACKEND_HTTP: u16 = 8080;

/// The address family of a test's client and backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The balancer's end of a link (0 = the client's, N = backend N's).
    pub fn lb(self, link: usize) -> IpAddr {
        self.address(link, 1)
    }

    /// The far end of a link.
    pub fn peer(self, link: usize) -> IpAddr {
        self.address(link, 2)
    }

    /// Any host on a link.
    pub fn address(self, link: usize, host: u8) -> IpAddr {
        let link = u8::try_from(link).expect("a handful of links");
        match self {
            Self::V4 => Ipv4Addr::new(10, 200, link, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x200, link.into(), 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// What the client connects to: the balancer's address on the client's link, port 80.
    pub fn vip(self) -> SocketAddr {
        SocketAddr::new(self.lb(0), HTTP)
    }

    /// Backend N as the balancer sees it, N from 1.
    pub fn backend(self, number: usize) -> SocketAddr {
        SocketAddr::new(self.peer(number), BACKEND_HTTP)
    }

    /// The option by which `ip` knows it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    fn prefix_length(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// An address of one of the links as `ip addr add` wants it.
    pub fn with_prefix(self, address: IpAddr) -> String {
        format!("{address}/{}", self.prefix_length())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// How to build the hosts.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the namespaces' names start with; they go on with the process id and a counter.
    pub prefix: &'static str,
    pub backends: usize,
    /// What native XDP on the balancer's devices needs of the far ends: an XDP program there (a veth accepts
    /// redirected frames only then) and no checksum offload (native XDP loses the mark of a partial checksum).
    pub xdp_peers: bool,
    /// No checksum offload on the balancer's devices. The kernel then finishes partial checksums in software as a
    /// NIC would in hardware, which shows a wrong delta that veth's defaults hide.
    pub egress_tx_off: bool,
    /// Bytes, of the balancer's ends of the links. The far ends keep 1,500 and so learn of less only as they would of
    /// a narrow hop on the way.
    pub client_mtu: u16,
    pub backend_mtu: u16,
    /// Plain routing between client and backends through the balancer instead of isolation: proves the harness.
    pub routed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: TEST_PREFIX,
            backends: 3,
            xdp_peers: false,
            egress_tx_off: false,
            client_mtu: 1500,
            backend_mtu: 1500,
            routed: false,
        }
    }
}

/// The hosts, taken down with everything in them when dropped.
#[derive(Debug)]
pub struct Topology {
    /// Unique on this machine; the namespaces are `NAME-client`, `NAME-lb`, `NAME-b1` …
    pub name: String,
    pub client: Namespace,
    pub lb: Namespace,
    pub backends: Vec<Namespace>,
}

impl Topology {
    pub fn new(options: &Options) -> Result<Self> {
        let name = unique_name(options.prefix);
        let namespace = |role: &str| Namespace::create(&format!("{name}-{role}"));
        let topology = Self {
            client: namespace("client")?,
            lb: namespace("lb")?,
            backends: (1..=options.backends).map(|n| namespace(&format!("b{n}"))).collect::<Result<_>>()?,
            name,
        };
        topology.link_up(options).with_context(|| format!("topology {}", topology.name))?;
        Ok(topology)
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = &Namespace> {
        [&self.client, &self.lb].into_iter().chain(&self.backends)
    }

    /// The far end of each link, as (namespace, device): what faces the balancer.
    pub fn far_ends(&self) -> impl Iterator<Item = (&Namespace, &'static str)> {
        let backends = self.backends.iter().map(|backend| (backend, "e0"));
        std::iter::once((&self.client, "c0")).chain(backends)
    }

    /// The balancer's devices.
    pub fn lb_devices(&self) -> Vec<String> {
        (0..=self.backends.len()).map(lb_device).collect()
    }

    /// The balancer's devices with an XDP program and its mode: 1 is native (in the driver), 2 generic, 3 offloaded
    /// (`XDP_ATTACHED_*` of linux/if_link.h).
    pub fn lb_xdp_modes(&self) -> Result<BTreeMap<String, u64>> {
        xdp_modes(&self.lb)
    }

    fn link_up(&self, options: &Options) -> Result<()> {
        let forwarding = if options.routed { "1" } else { "0" };
        self.lb.sysctl("net.ipv4.ip_forward", forwarding)?;
        self.lb.sysctl("net.ipv6.conf.all.forwarding", forwarding)?;
        let pass = if options.xdp_peers { Some(PinnedProgram::xdp_pass()?) } else { None };
        for (link, (peer, device)) in self.far_ends().enumerate() {
            let mtu = if link == 0 { options.client_mtu } else { options.backend_mtu };
            self.connect(link, peer, device, mtu)?;
            if let Some(pass) = &pass {
                peer.run("ethtool", &["-K", device, "tx", "off"])?;
                // Not `ip -n`: like `ip netns exec`, it would look for the pin under a /sys of its own.
                peer.run("ip", &["link", "set", "dev", device, "xdpdrv", "pinned", pass.path()])?;
            }
            if options.egress_tx_off {
                self.lb.run("ethtool", &["-K", &lb_device(link), "tx", "off"])?;
            }
            if options.routed {
                for family in Family::ALL {
                    peer.ip(&["route", "add", "default", "via", &family.lb(link).to_string()])?;
                }
            }
        }
        Ok(())
    }

    fn connect(&self, link: usize, peer: &Namespace, device: &str, mtu: u16) -> Result<()> {
        let lb_device = lb_device(link);
        let mac = |end: u8| format!("02:00:00:00:{link:02x}:{end:02x}");
        // XDP needs as many receive queues at one end as the other has transmit queues. The far end has one: a veth device
        // takes the queue of the CPU that sends, so with two of them two segments of a connection may be handled at once,
        // which a network card that spreads by connection rules out. Linux before 6.19 may then miss the socket that the
        // first one is just making of a half-open one, and reset the connection.
        #[rustfmt::skip]
        self.lb.ip(&[
            "link", "add", &lb_device, "mtu", &mtu.to_string(), "address", &mac(1), "numrxqueues", "2", "numtxqueues", "1",
            "type", "veth",
            "peer", "name", device, "address", &mac(2), "numrxqueues", "1", "numtxqueues", "2",
            "netns", peer.name(),
        ])?;
        for (namespace, device, end) in [(&self.lb, lb_device.as_str(), 1), (peer, device, 2)] {
            for family in Family::ALL {
                let address = family.with_prefix(family.address(link, end));
                namespace.ip(&["addr", "add", &address, "dev", device])?;
            }
            namespace.ip(&["link", "set", device, "up"])?;
        }
        Ok(())
    }
}

/// A name for an installation that no other has; its namespaces are `NAME-ROLE`.
pub(crate) fn unique_name(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    static SWEEP: Once = Once::new();
    SWEEP.call_once(remove_orphans);
    format!("{prefix}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Removes what test processes left that were killed before they could clean up (`hgt-PID-…` of no living process).
fn remove_orphans() {
    let orphans = netns::list(TEST_PREFIX).unwrap_or_default().into_iter().filter(|name| {
        let pid = name.split('-').nth(1);
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    });
    for name in orphans {
        // Another test process may be at the same.
        if let Err(error) = netns::delete(&name) {
            eprintln!("orphaned namespace {name}: {error:#}");
        }
        if let Some((topology, _role)) = name.rsplit_once('-') {
            let _ = remove_left(topology);
        }
    }
}

/// Removes the files and pins of agents and servers on topologies whose names start with `prefix`; their processes
/// must have ended.
pub fn remove_left(prefix: &str) -> Result<()> {
    for directory in [Path::new(BPFFS), Path::new(MEMORY), &std::env::temp_dir()] {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) && entry.path().is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Any host's devices with an XDP program and its mode.
pub fn xdp_modes(host: &Namespace) -> Result<BTreeMap<String, u64>> {
    let text = host.ip(&["-j", "link", "show"])?;
    let links: Vec<Value> = serde_json::from_str(&text).context("ip -j link show")?;
    let modes = links
        .iter()
        .filter_map(|link| Some((link["ifname"].as_str()?.to_owned(), link["xdp"]["mode"].as_u64()?)));
    Ok(modes.collect())
}

fn lb_device(link: usize) -> String {
    if link == 0 { "lc0".to_owned() } else { format!("lb{link}") }
}

//! The agent's hold on the kernel rungs: which interfaces carry the programs, and the maps kept equal to what is
//! desired.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lb_common::Rung;
use lb_common::address::words;
use lb_common::tables::hop;

use crate::agent::Options;
use crate::datapath::contents::{Contents, plan};
use crate::datapath::kernel::Kernel;
use crate::datapath::object::{self, Pins};
use crate::datapath::{attach, bpffs};
use crate::desired::{self, Destination, Indices, Observed};
use crate::model::{Config, Mode};
use crate::net::{self, Link, Resolution, RouteTo, Snapshot};

/// Flows of each family for each GiB of memory, unless configured.
const FLOWS_PER_GIB: u64 = 65_536;

/// An interface, and what carries its packets.
#[derive(Clone, Debug)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// `None`: the proxy alone.
    pub rung: Option<Rung>,
    /// Why not a faster one, or that this is the fastest.
    pub why: String,
}

/// The kernel rungs.
pub struct KernelSide {
    pub kernel: Kernel,
    pub pins: Pins,
    pub interfaces: Vec<Interface>,
    pub max_flows: u32,
    pub snat_ports: Vec<u16>,
    pub paths: HashMap<IpAddr, RouteTo>,
    indices: Indices,
    contents: Contents,
    draining: bool,
    mode: Mode,
}

impl KernelSide {
    /// Loads the programs, with the maps of an earlier agent if there are any. Attaches nothing yet.
    pub fn load(config: &Config, options: &Options, mode: Mode) -> Result<Self> {
        bpffs::prepare(&options.bpffs)?;
        let pins = Pins::new(&options.bpffs);
        let max_flows = match object::pinned_max_flows(&pins)? {
            Some(pinned) => pinned,
            None => config.datapath.max_flows.map_or_else(flows_by_memory, Ok)?,
        };
        let kernel = Kernel::new(object::load(max_flows, Some(&pins))?)?;
        let mut indices = Indices::default();
        let mut contents = Contents::default();
        adopt(&kernel, config, &mut indices, &mut contents)?;
        let snat_ports = desired::snat_ports(config, net::local_port_range()?, &net::reserved_ports()?);
        if snat_ports.is_empty() {
            log::warn!(
                "no SNAT port is left between 1024 and 29999 beside net.ipv4.ip_local_port_range and \
                 ip_local_reserved_ports: every connection goes to the proxy until datapath.snat_ports names a range"
            );
        }
        Ok(Self {
            kernel,
            pins,
            interfaces: Vec::new(),
            max_flows,
            snat_ports,
            paths: HashMap::new(),
            indices,
            contents,
            draining: false,
            mode,
        })
    }

    /// Makes everything equal to what configuration and network ask for.
    pub async fn reconcile(&mut self, config: &Config, network: &Snapshot) -> Result<()> {
        self.find_paths(config, network).await;
        self.update_maps(config, network).await
    }

    /// The same where only neighbours changed.
    pub async fn update_maps(&mut self, config: &Config, network: &Snapshot) -> Result<()> {
        let devices = redirect_targets(network).await;
        let observed = Observed {
            network,
            paths: &self.paths,
            devices: &devices,
            snat_ports: &self.snat_ports,
            max_flows: self.max_flows,
            draining: self.draining,
        };
        let contents = desired::contents(config, &observed, &mut self.indices)?;
        for step in plan(&self.contents, &contents) {
            log::debug!("{step:?}");
            let what = format!("{step:?}");
            self.kernel.apply(step).with_context(|| format!("applying {what}"))?;
        }
        self.contents = contents;
        Ok(())
    }

    /// Takes no new flows from here on.
    pub async fn drain(&mut self, config: &Config, network: &Snapshot) -> Result<()> {
        self.draining = true;
        self.update_maps(config, network).await
    }

    /// Vouches for the next hops, and has their neighbours kept resolved.
    pub fn confirm(&self) {
        self.kernel.confirm(self.contents.hops.keys().copied());
    }

    /// Whether every backend that can be reached by a neighbour has that neighbour's address.
    pub fn is_resolved(&self) -> bool {
        self.contents.backends.values().filter(|backend| backend.hop != 0).all(|backend| {
            self.contents.hops.get(&backend.hop).is_some_and(|hop| hop.flags & hop::RESOLVED != 0)
        })
    }

    /// Index of a backend in the maps.
    pub fn backend_index(&self, cluster: u32, address: std::net::SocketAddr) -> Option<u32> {
        self.indices.backends.find(&(cluster, address))
    }

    /// Whether a backend is left to the proxy, and why.
    pub fn proxy_only(&self, address: IpAddr) -> Option<String> {
        match self.paths.get(&address) {
            Some(RouteTo::Local) => Some("an address of this node".into()),
            Some(RouteTo::Via(path)) if path.encapsulated => Some("behind a route that wraps packets".into()),
            Some(RouteTo::Via(_)) => None,
            Some(RouteTo::Unreachable(why)) => Some(why.to_string()),
            None => Some("no route known yet".into()),
        }
    }

    async fn find_paths(&mut self, config: &Config, network: &Snapshot) {
        let backends: HashSet<IpAddr> = config
            .clusters
            .iter()
            .flat_map(|cluster| cluster.endpoints.iter().map(|endpoint| endpoint.address.ip()))
            .collect();
        let mut paths = HashMap::new();
        let mut neighbours = BTreeSet::new();
        for address in backends {
            match net::route_to(address).await {
                Ok(path) => {
                    if let RouteTo::Via(via) = &path {
                        neighbours.insert((via.link, via.next_hop(address)));
                    }
                    paths.insert(address, path);
                }
                Err(error) => log::warn!("asking for the route to {address}: {error:#}"),
            }
        }
        self.paths = paths;
        for route in &network.routes {
            if let Some(gateway) = route.gateway {
                neighbours.insert((route.link, gateway));
            }
        }
        for (link, address) in neighbours {
            // Only Ethernet has neighbours.
            if network.link_by_index(link).is_some_and(|link| link.ethernet && link.up) {
                match net::resolve(link, address).await {
                    Ok(Resolution::Managed | Resolution::Probed | Resolution::Foreign) => {}
                    Err(error) => log::warn!("resolving {address}: {error:#}"),
                }
            }
        }
    }

    /// Attaches to the interfaces that are to carry traffic and leaves those that are not. With a forced mode, an
    /// interface that cannot have it is an error.
    pub async fn attach(&mut self, config: &Config, network: &Snapshot) -> Result<()> {
        let wanted: Vec<Link> = match &config.datapath.interfaces {
            Some(names) => names.iter().filter_map(|name| network.link_by_name(name)).cloned().collect(),
            None => self.automatic_interfaces(network),
        };
        for index in attach::attached(&self.pins) {
            if !wanted.iter().any(|link| link.index == index) {
                let name = network.link_by_index(index).map(|link| link.name.as_str());
                attach::detach(&self.pins, index, name)?;
            }
        }
        let known = std::mem::take(&mut self.interfaces);
        let mut failure = None;
        for link in wanted {
            if let Some(interface) = known.iter().find(|interface| interface.index == link.index) {
                self.interfaces.push(Interface { name: link.name.clone(), ..interface.clone() });
                continue;
            }
            let interface = match self.attach_one(&link).await {
                Ok(interface) => interface,
                // One interface without a kernel rung costs the others nothing.
                Err(error) if self.mode == Mode::Auto => Interface {
                    index: link.index,
                    name: link.name.clone(),
                    rung: None,
                    why: format!("{error:#}"),
                },
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            log::info!("{}: {} ({})", link.name, rung_name(interface.rung), interface.why);
            self.interfaces.push(interface);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Those with addresses or routes, and those by which a backend is reached.
    fn automatic_interfaces(&self, network: &Snapshot) -> Vec<Link> {
        let mut links: Vec<Link> = network.candidate_interfaces().into_iter().cloned().collect();
        for path in self.paths.values() {
            if let RouteTo::Via(path) = path
                && let Some(link) = network.link_by_index(path.link)
                && link.ethernet
                && !links.iter().any(|other| other.index == link.index)
            {
                links.push(link.clone());
            }
        }
        links
    }

    async fn attach_one(&mut self, link: &Link) -> Result<Interface> {
        let described =
            |rung, why: String| Interface { index: link.index, name: link.name.clone(), rung, why };
        if !link.ethernet {
            return Ok(described(None, "no Ethernet device: not supported yet".into()));
        }
        let tc_reason = match self.mode {
            Mode::Xdp => None,
            Mode::Tc => Some("datapath.mode is tc".to_owned()),
            Mode::Auto | Mode::Proxy => slow_kind(link).await,
        };
        // Beneath XDP as well: it takes what XDP cannot send.
        attach::attach_tc(&mut self.kernel.ebpf, &self.pins, link)
            .with_context(|| format!("attaching the TC program to {}", link.name))?;
        if let Some(why) = tc_reason {
            return Ok(described(Some(Rung::Tc), why));
        }
        match attach::attach_xdp(&mut self.kernel.ebpf, &self.pins, link) {
            Ok(()) => Ok(described(Some(Rung::Xdp), "native XDP".into())),
            Err(error) if self.mode == Mode::Xdp => {
                let _ = attach::detach(&self.pins, link.index, Some(&link.name));
                Err(error).with_context(|| {
                    format!(
                        "datapath.mode is xdp, but {} takes no native XDP program (`mode: auto` would use tc there)",
                        link.name
                    )
                })
            }
            Err(error) => Ok(described(Some(Rung::Tc), format!("no native XDP: {error:#}"))),
        }
    }

    /// Takes the programs off all interfaces and the pins away: what kernel flows there are, end.
    pub fn unload(&self, network: &Snapshot) -> Result<()> {
        unload(&self.pins, network)
    }
}

/// The name of a rung, or of the one that is left.
pub fn rung_name(rung: Option<Rung>) -> &'static str {
    rung.map_or("proxy", Rung::name)
}

/// Takes programs and pins away.
pub fn unload(pins: &Pins, network: &Snapshot) -> Result<()> {
    for index in attach::attached(pins) {
        attach::detach(pins, index, network.link_by_index(index).map(|link| link.name.as_str()))?;
    }
    pins.remove()
}

/// Why TC is better on a link than XDP, if it is.
async fn slow_kind(link: &Link) -> Option<String> {
    if let Some(kind @ ("veth" | "bridge" | "vlan" | "bond" | "vxlan" | "geneve" | "macvlan" | "ipvlan")) =
        link.kind.as_deref()
    {
        return Some(format!("a {kind} device: packets are skbs here, which TC handles faster"));
    }
    match net::xdp_features(link.index).await {
        Ok(Some(features)) if !features.basic => {
            return Some(match net::driver(&link.name) {
                Ok(Some(driver)) => format!("the driver {driver} has no native XDP"),
                _ => "the driver has no native XDP".into(),
            });
        }
        _ => {}
    }
    match net::rx_vlan_offload(&link.name) {
        Ok(true) => Some(format!(
            "VLAN tags are taken off before XDP sees them; `ethtool -K {} rxvlan off` allows XDP",
            link.name
        )),
        _ => None,
    }
}

/// Interfaces whose driver sends what XDP redirects to them.
async fn redirect_targets(network: &Snapshot) -> BTreeSet<u32> {
    let mut targets = BTreeSet::new();
    for link in network.links.iter().filter(|link| link.ethernet && link.up) {
        let sends = match net::xdp_features(link.index).await {
            Ok(Some(features)) => features.ndo_xmit,
            // A kernel before 6.3 does not tell. A veth needs an XDP program at its far end, others mostly send.
            _ => link.kind.is_none(),
        };
        if sends {
            targets.insert(link.index);
        }
    }
    targets
}

fn flows_by_memory() -> Result<u32> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .context("no MemTotal in /proc/meminfo")?;
    Ok((kib * FLOWS_PER_GIB / (1 << 20)).clamp(64 << 10, 4 << 20) as u32)
}

/// Goes on with the indices of an earlier agent, since its flows refer to them.
fn adopt(kernel: &Kernel, config: &Config, indices: &mut Indices, contents: &mut Contents) -> Result<()> {
    for (index, backend) in kernel.backends() {
        let known = config.clusters.iter().enumerate().find_map(|(cluster, of)| {
            let endpoint = of.endpoints.iter().find(|endpoint| {
                words(endpoint.address.ip()) == backend.address
                    && endpoint.address.port().to_be() == backend.port
                    && backend.cluster == cluster as u32
            })?;
            Some((cluster as u32, endpoint.address))
        });
        match known {
            Some(name) => {
                if backend.hop != 0 {
                    indices.hops.adopt(Destination::Backend(name.1.ip()), backend.hop);
                }
                indices.backends.adopt(name, index);
            }
            // Its flows live on; no new ones come.
            None => indices.backends.reserve(index),
        }
    }
    kernel.read_served(contents)?;
    for (&(address, bits), &hop) in &contents.routes4 {
        let IpAddr::V4(address) = IpAddr::from(address) else { bail!("an IPv4 address is one") };
        indices.hops.adopt(Destination::Clients(ipnet::Ipv4Net::new(address, bits)?.into()), hop);
    }
    for (&(address, bits), &hop) in &contents.routes6 {
        let IpAddr::V6(address) = IpAddr::from(address) else { bail!("an IPv6 address is one") };
        indices.hops.adopt(Destination::Clients(ipnet::Ipv6Net::new(address, bits)?.into()), hop);
    }
    for index in kernel.used_hops() {
        indices.hops.reserve(index);
    }
    Ok(())
}

/// How long a start waits for the neighbours of backends to answer.
pub const RESOLUTION: Duration = Duration::from_secs(2);

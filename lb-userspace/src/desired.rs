//! From the configuration and the state of the node to the contents of the maps. Pure: what was observed comes in
//! as data.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use lb_common::address::words;
use lb_common::balance::policy;
use lb_common::maglev::{self, Candidate};
use lb_common::parse::{TCP, Tags};
use lb_common::tables::{
    Backend, MAX_BACKENDS, MAX_NEXT_HOPS, NextHop, Service, ServiceKey, Settings, backend, hop, service,
};
use lb_common::{V4, V6};

use crate::datapath::contents::Contents;
use crate::ids::Ids;
use crate::model::{Cluster, Config, LbPolicy};
use crate::net::{Link, NeighbourState, RouteTo, Snapshot};

/// What a next hop leads to: its index stays while the route to there changes, so flows follow the route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Destination {
    /// One address.
    Backend(IpAddr),
    /// All clients of a route.
    Clients(IpNet),
}

/// Names of map indices, over the life of the agent and of the maps.
pub struct Indices {
    /// Backends: cluster and address.
    pub backends: Ids<(u32, SocketAddr)>,
    /// Next hops.
    pub hops: Ids<Destination>,
}

impl Default for Indices {
    fn default() -> Self {
        Self { backends: Ids::new(MAX_BACKENDS), hops: Ids::new(MAX_NEXT_HOPS) }
    }
}

/// What was observed.
pub struct Observed<'a> {
    /// The node's network.
    pub network: &'a Snapshot,
    /// The kernel's answer to where each backend is.
    pub paths: &'a HashMap<IpAddr, RouteTo>,
    /// Interfaces that XDP may redirect to.
    pub devices: &'a BTreeSet<u32>,
    /// SNAT ports that the host leaves us, host order.
    pub snat_ports: &'a [u16],
    /// Flows of each family that the maps have room for.
    pub max_flows: u32,
    /// The agent is on its way out.
    pub draining: bool,
}

/// The SNAT ports for a configuration: its range or 1024-29999, less what the host itself uses and what listeners
/// listen on. Host order, ascending.
pub fn snat_ports(
    config: &Config,
    local: (u16, u16),
    reserved: &[std::ops::RangeInclusive<u16>],
) -> Vec<u16> {
    let listens: BTreeSet<u16> = config.listeners.iter().map(|listener| listener.address.port()).collect();
    match &config.datapath.snat_ports {
        // What the user names, the user answers for.
        Some(range) => range.clone().filter(|port| !listens.contains(port)).collect(),
        None => (1024..=29_999)
            .filter(|port| !listens.contains(port))
            .filter(|port| !(local.0..=local.1).contains(port))
            .filter(|port| !reserved.iter().any(|range| range.contains(port)))
            .collect(),
    }
}

/// Service id of a listener: its place in the configuration, from 1.
pub fn service_id(listener: usize) -> u32 {
    listener as u32 + 1
}

/// Index of a cluster: its place in the configuration.
pub fn cluster_index(config: &Config, name: &str) -> Option<u32> {
    config.clusters.iter().position(|cluster| cluster.name == name).map(|at| at as u32)
}

/// The addresses that a listener's address stands for on this node.
pub fn served_addresses(network: &Snapshot, address: SocketAddr) -> Vec<IpAddr> {
    if address.ip().is_unspecified() {
        network.serving_addresses(address.is_ipv6())
    } else {
        vec![address.ip()]
    }
}

/// What the maps should hold.
pub fn contents(config: &Config, observed: &Observed<'_>, indices: &mut Indices) -> Result<Contents> {
    let mut contents = Contents { devices: observed.devices.clone(), ..Contents::default() };
    contents.snat_ports = observed.snat_ports.iter().map(|port| port.to_be()).collect();
    contents.settings =
        Settings { max_flows: observed.max_flows, snat_ports: contents.snat_ports.len() as u32 };

    let mut snat = SnatAddresses::new(config);
    for (index, cluster) in config.clusters.iter().enumerate() {
        let slots = cluster_slots(index as u32, cluster, observed, indices, &mut snat, &mut contents)?;
        contents.slots.insert(index as u32, slots);
    }
    contents.snat_addresses = snat.list;

    add_routes(observed, indices, &mut contents)?;

    for (index, listener) in config.listeners.iter().enumerate() {
        let cluster = cluster_index(config, &listener.cluster).context("a listener's cluster exists")?;
        let of = &config.clusters[cluster as usize];
        let service = Service {
            id: service_id(index),
            cluster,
            policy: policy_number(of.lb_policy),
            attempts: of.connect_attempts as u16,
            flags: if observed.draining { service::DRAINING } else { 0 },
        };
        let port = listener.address.port().to_be();
        for address in served_addresses(observed.network, listener.address) {
            // An address that is not here (yet, or any more) is not ours to answer for.
            if !observed.network.is_local(address) {
                continue;
            }
            let protocol = [TCP, 0];
            match address {
                IpAddr::V4(address) => {
                    let key = ServiceKey { address: V4::from(address), port, protocol };
                    contents.services4.insert(key, service);
                }
                IpAddr::V6(address) => {
                    let key = ServiceKey { address: V6::from(address), port, protocol };
                    contents.services6.insert(key, service);
                }
            }
        }
    }
    Ok(contents)
}

fn policy_number(policy: LbPolicy) -> u32 {
    match policy {
        LbPolicy::RoundRobin => policy::ROUND_ROBIN,
        LbPolicy::Random => policy::RANDOM,
        LbPolicy::Maglev => policy::MAGLEV,
        LbPolicy::SourceIp => policy::SOURCE_IP,
    }
}

/// The slots of a cluster, in the order of its policy, of whatever stands for its backends.
pub fn slots(policy: LbPolicy, candidates: &[Candidate]) -> Vec<u32> {
    match policy {
        LbPolicy::RoundRobin | LbPolicy::Random => maglev::order(candidates),
        LbPolicy::Maglev | LbPolicy::SourceIp => maglev::table(candidates),
    }
}

fn cluster_slots(
    index: u32,
    cluster: &Cluster,
    observed: &Observed<'_>,
    indices: &mut Indices,
    snat: &mut SnatAddresses,
    contents: &mut Contents,
) -> Result<Vec<u32>> {
    let mut candidates = Vec::new();
    for endpoint in &cluster.endpoints {
        let address = endpoint.address;
        let id = indices
            .backends
            .get(&(index, address))
            .with_context(|| format!("more than {} backends", MAX_BACKENDS - 1))?;
        let (backend, hop) = backend_entry(index, address, observed, indices, snat)?;
        contents.backends.insert(id, backend);
        if let Some((hop_index, hop)) = hop {
            contents.hops.insert(hop_index, hop);
        }
        candidates.push(Candidate {
            index: id,
            identity: maglev::identity(words(address.ip()), address.port()),
            weight: endpoint.weight,
        });
    }
    Ok(slots(cluster.lb_policy, &candidates))
}

fn backend_entry(
    cluster: u32,
    address: SocketAddr,
    observed: &Observed<'_>,
    indices: &mut Indices,
    snat: &mut SnatAddresses,
) -> Result<(Backend, Option<(u32, NextHop)>)> {
    let ip = address.ip();
    let mut entry = Backend {
        address: words(ip),
        port: address.port().to_be(),
        flags: backend::USED | if ip.is_ipv6() { backend::V6 } else { 0 },
        hop: 0,
        snat_first: 0,
        snat_count: 0,
        cluster,
        zero: 0,
    };
    match observed.paths.get(&ip) {
        Some(RouteTo::Via(path)) if !path.encapsulated => {
            let link = observed.network.link_by_index(path.link);
            let Some(mut hop) = link.and_then(|link| link_hop(link, observed)) else {
                entry.flags |= backend::PROXY_ONLY;
                return Ok((entry, None));
            };
            if let Some(mtu) = path.mtu {
                hop.mtu = hop.mtu.min(mtu);
            }
            set_neighbour(&mut hop, observed.network, path.link, path.next_hop(ip));
            let index = indices
                .hops
                .get(&Destination::Backend(ip))
                .with_context(|| format!("more than {} next hops", MAX_NEXT_HOPS - 1))?;
            entry.hop = index;
            let source = observed.network.stable_source(path.source);
            (entry.snat_first, entry.snat_count) = snat.window(source);
            Ok((entry, Some((index, hop))))
        }
        // An address of the node, or one that only the stack can send to.
        Some(RouteTo::Local | RouteTo::Via(_)) => {
            entry.flags |= backend::PROXY_ONLY;
            Ok((entry, None))
        }
        Some(RouteTo::Unreachable(_)) | None => Ok((entry, None)),
    }
}

/// The device part of a next hop; `None` for a device without an Ethernet header of its own.
fn link_hop(link: &Link, observed: &Observed<'_>) -> Option<NextHop> {
    if !link.ethernet {
        return None;
    }
    let mut tags = Tags::default();
    let mut transmit = link.index;
    if let Some(vlan) = &link.vlan {
        let parent = observed.network.link_by_index(vlan.parent?)?;
        // Tags on tags are left to the stack's own devices.
        if parent.vlan.is_none() {
            transmit = parent.index;
            tags = Tags { tci: [vlan.id, 0], count: 1, in_frame: 0, outer: vlan.protocol };
        }
    }
    let mut flags = hop::USED;
    if observed.devices.contains(&transmit) {
        flags |= hop::XDP;
    }
    Some(NextHop {
        ifindex: transmit,
        device: link.index,
        mtu: link.mtu,
        flags: if link.up { flags } else { 0 },
        mac: [0; 6],
        source_mac: link.mac?,
        tags,
        epoch: 0,
        confirmed: 0,
        zero: [0; 2],
    })
}

fn set_neighbour(hop: &mut NextHop, network: &Snapshot, link: u32, address: IpAddr) {
    let Some(neighbour) = network.neighbour(link, address) else { return };
    let answers = matches!(neighbour.state, NeighbourState::Resolved | NeighbourState::Fixed);
    if let Some(mac) = neighbour.mac
        && answers
    {
        hop.mac = mac;
        hop.flags |= hop::RESOLVED;
    }
}

/// Routes back to clients: the main table, of each prefix the one of least metric.
fn add_routes(observed: &Observed<'_>, indices: &mut Indices, contents: &mut Contents) -> Result<()> {
    let mut best: HashMap<IpNet, &crate::net::Route> = HashMap::new();
    for route in &observed.network.routes {
        match best.get(&route.destination) {
            Some(other) if other.metric <= route.metric => {}
            _ => {
                best.insert(route.destination, route);
            }
        }
    }
    for (destination, route) in best {
        let Some(link) = observed.network.link_by_index(route.link) else { continue };
        let Some(mut hop) = link_hop(link, observed) else { continue };
        match route.gateway {
            Some(gateway) => set_neighbour(&mut hop, observed.network, route.link, gateway),
            None => hop.flags |= hop::ON_LINK,
        }
        let Some(index) = indices.hops.get(&Destination::Clients(destination)) else {
            bail!("more than {} next hops", MAX_NEXT_HOPS - 1);
        };
        contents.hops.insert(index, hop);
        match destination {
            IpNet::V4(net) => {
                contents.routes4.insert((V4::from(net.network()), net.prefix_len()), index);
            }
            IpNet::V6(net) => {
                contents.routes6.insert((V6::from(net.network()), net.prefix_len()), index);
            }
        }
    }
    Ok(())
}

/// The list of SNAT addresses, and where in it each backend's stand.
struct SnatAddresses {
    configured: Option<[(u32, u32); 2]>,
    list: Vec<[u32; 4]>,
}

impl SnatAddresses {
    fn new(config: &Config) -> Self {
        let mut list = Vec::new();
        let configured = config.datapath.snat_addresses.as_ref().map(|addresses| {
            [false, true].map(|v6| {
                let first = list.len() as u32;
                list.extend(addresses.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| words(*ip)));
                (first, list.len() as u32 - first)
            })
        });
        Self { configured, list }
    }

    /// First and count of the addresses to use where the route prefers `source`.
    fn window(&mut self, source: IpAddr) -> (u32, u32) {
        if let Some(windows) = self.configured {
            let (first, count) = windows[source.is_ipv6() as usize];
            if count > 0 {
                return (first, count);
            }
        }
        let source = words(source);
        let first = match self.list.iter().position(|address| *address == source) {
            Some(at) => at,
            None => {
                self.list.push(source);
                self.list.len() - 1
            }
        };
        (first as u32, 1)
    }
}

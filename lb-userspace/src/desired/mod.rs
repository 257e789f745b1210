//! From the configuration, the endpoints and the state of the node to the contents of the maps. Pure: what was
//! observed comes in as data.

mod hops;
mod slots;
mod snat;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::IpNet;
use lb_common::address::words;
use lb_common::balance::policy;
use lb_common::maglev::{self, Candidate};
use lb_common::parse::TCP;
use lb_common::tables::{
    Backend, MAX_BACKENDS, MAX_CLUSTERS, MAX_NEXT_HOPS, MAX_SERVICE_IDS, Service, ServiceKey, Settings,
    backend, service, settings,
};
use lb_common::{V4, V6};

pub use slots::{Slots, slots};
pub use snat::snat_ports;

use crate::datapath::contents::{Contents, Step};
use crate::endpoints::{Endpoints, Member};
use crate::ids::Ids;
use crate::model::{Cluster, Config, DnsFamily, LbPolicy, Listener};
use crate::net::{RouteTo, Snapshot};
use crate::selection::mix;
use snat::SnatAddresses;

/// What a next hop leads to: its index stays while the route to there changes, so flows follow the route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Destination {
    /// One address.
    Backend(IpAddr),
    /// All clients of a route.
    Clients(IpNet),
}

/// Names of map indices, over the life of the agent and of the maps.
#[derive(Clone)]
pub struct Indices {
    /// Clusters by name; each has two windows, see [`window`].
    pub clusters: Ids<String>,
    /// Service ids: listeners by name.
    pub services: Ids<String>,
    /// Backends: index of the cluster (0: of none that is known), and address.
    pub backends: Ids<(u32, SocketAddr)>,
    /// Next hops.
    pub hops: Ids<Destination>,
    /// SNAT addresses; they keep their places.
    pub snat_addresses: Vec<[u32; 4]>,
}

impl Default for Indices {
    fn default() -> Self {
        Self {
            clusters: Ids::new(MAX_CLUSTERS / 2),
            services: Ids::new(MAX_SERVICE_IDS),
            backends: Ids::new(MAX_BACKENDS),
            hops: Ids::new(MAX_NEXT_HOPS),
            snat_addresses: Vec::new(),
        }
    }
}

impl Indices {
    /// Index of the backend for an endpoint.
    pub fn backend(&self, cluster: &str, address: SocketAddr) -> Option<u32> {
        // What an earlier agent left is of no cluster.
        let cluster = if cluster.is_empty() { 0 } else { self.clusters.find(&cluster.to_owned())? };
        self.backends.find(&(cluster, address))
    }
}

/// Index of the slot window of a cluster for all clients, or (`v6`) for those of IPv6 alone.
pub fn window(cluster: u32, v6: bool) -> u32 {
    cluster * 2 + v6 as u32
}

/// Index of the cluster that a slot window belongs to.
pub fn cluster_of_window(window: u32) -> u32 {
    window / 2
}

/// What was observed.
pub struct Observed<'a> {
    /// The endpoints of all clusters.
    pub endpoints: &'a Endpoints,
    /// The node's network.
    pub network: &'a Snapshot,
    /// The kernel's answer to where each backend is.
    pub paths: &'a HashMap<IpAddr, RouteTo>,
    /// Endpoints that only the node's own stack can reach, as far as is known.
    pub left_to_the_stack: &'a BTreeSet<SocketAddr>,
    /// Interfaces that XDP may redirect to, and whether also frames of several buffers.
    pub devices: &'a BTreeMap<u32, bool>,
    /// SNAT ports that the host leaves us, host order.
    pub snat_ports: &'a [u16],
    /// Flows of each family that the maps have room for.
    pub max_flows: u32,
    /// Whether anybody wants to know of completed handshakes.
    pub tell_connected: bool,
    /// The agent is on its way out.
    pub draining: bool,
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
pub fn contents(
    config: &Config,
    observed: &Observed<'_>,
    indices: &mut Indices,
    slots: &mut Slots,
) -> Result<Contents> {
    let mut contents =
        Contents { devices: observed.devices.keys().copied().collect(), ..Contents::default() };
    contents.snat_ports = observed.snat_ports.iter().map(|port| port.to_be()).collect();
    contents.settings = Settings {
        max_flows: observed.max_flows,
        snat_ports: contents.snat_ports.len() as u32,
        seed: 0,
        flags: if observed.tell_connected { settings::TELL_CONNECTED } else { 0 },
    };

    add_backends(config, observed, indices, &mut contents)?;
    contents.snat_addresses.clone_from(&indices.snat_addresses);
    hops::add_routes(observed, indices, &mut contents)?;

    for cluster in &config.clusters {
        let index = cluster_index(&cluster.name, indices)?;
        if let Some(limit) = cluster.max_connections {
            contents.limits.insert(window(index, false), limit.into());
        }
        let shares = [(cluster, 1, candidates(cluster, index, observed.endpoints, indices))];
        let windows = windows(index, &shares, cluster.lb_policy, &contents.backends, slots);
        contents.slots.extend(windows);
    }
    for listener in &config.listeners {
        let cluster = cluster_index(&window_name(listener), indices)?;
        let shares = shares(config, listener)?;
        let lb_policy = common_policy(&shares);
        if shares.len() > 1 {
            let mixed = mixed(&shares, observed.endpoints, indices)?;
            let windows = windows(cluster, &mixed, lb_policy, &contents.backends, slots);
            contents.slots.extend(windows);
        }
        let attempts = listener.connect_attempts.unwrap_or(shares[0].0.connect_attempts);
        // The window of IPv6 exists only where it differs.
        let own = listener.address.is_ipv6() && contents.slots.contains_key(&window(cluster, true));
        let service = Service {
            id: indices.services.get(&listener.name).context("no service id is left")?,
            cluster: window(cluster, own),
            policy: policy_number(lb_policy),
            attempts: attempts as u16,
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

/// The steps by which the maps follow another choice of the endpoints of a cluster, of which `now` holds all: a part of what
/// [`contents`] would lead to. `None`: it takes all of that.
pub fn choice(
    config: &Config,
    cluster: &Cluster,
    endpoints: &Endpoints,
    indices: &mut Indices,
    slots: &mut Slots,
    now: &Contents,
) -> Result<Option<Vec<Step>>> {
    let mut steps = Vec::new();
    for (address, member) in endpoints.of(&cluster.name) {
        let Some(index) = indices.backend(&cluster.name, address) else { return Ok(None) };
        let Some(&old) = now.backends.get(&index) else { return Ok(None) };
        let flags = old.flags & !backend::OUT | out_flag(member);
        if flags != old.flags {
            steps.push(Step::Backend(index, Some(Backend { flags, ..old })));
        }
    }
    let index = cluster_index(&cluster.name, indices)?;
    let shares = [(cluster, 1, candidates(cluster, index, endpoints, indices))];
    let mut all = vec![(index, windows(index, &shares, cluster.lb_policy, &now.backends, slots))];
    let mixing = config.listeners.iter().filter(|listener| {
        listener.clusters.len() > 1 && listener.clusters.iter().any(|share| share.name == cluster.name)
    });
    for listener in mixing {
        let index = cluster_index(&window_name(listener), indices)?;
        let shares = self::shares(config, listener)?;
        let mixed = mixed(&shares, endpoints, indices)?;
        all.push((index, windows(index, &mixed, common_policy(&shares), &now.backends, slots)));
    }
    for (index, windows) in all {
        // Services refer to the window of IPv6 where there is one.
        let split = now.slots.contains_key(&window(index, true));
        if split != (windows.len() > 1) {
            return Ok(None);
        }
        let changed = windows.into_iter().filter(|(index, slots)| now.slots.get(index) != Some(slots));
        steps.extend(changed.map(|(index, slots)| Step::Slots(index, slots)));
    }
    Ok(Some(steps))
}

/// [`backend::OUT`] or not.
fn out_flag(member: &Member) -> u16 {
    if member.share.is_none() { backend::OUT } else { 0 }
}

fn cluster_index(name: &String, indices: &mut Indices) -> Result<u32> {
    let index = indices.clusters.get(name);
    index.with_context(|| format!("more than {} clusters", MAX_CLUSTERS / 2 - 1))
}

/// The name that the slots of a listener have among those of clusters: that of its cluster or, where it has several, one of
/// its own, which no cluster can have.
pub fn window_name(listener: &Listener) -> String {
    match &listener.clusters[..] {
        [one] => one.name.clone(),
        _ => format!("listener {}", listener.name),
    }
}

/// The clusters of a listener, each with its weight.
fn shares<'c>(config: &'c Config, listener: &Listener) -> Result<Vec<(&'c Cluster, u32)>> {
    let clusters = listener.clusters.iter().map(|share| Some((config.cluster(&share.name)?, share.weight)));
    clusters.collect::<Option<_>>().context("a listener's clusters exist")
}

/// The policy of several clusters in one order: their own if it is the same.
fn common_policy(shares: &[(&Cluster, u32)]) -> LbPolicy {
    let first = shares[0].0.lb_policy;
    if shares.iter().all(|(cluster, _)| cluster.lb_policy == first) { first } else { LbPolicy::Random }
}

fn policy_number(policy: LbPolicy) -> u32 {
    match policy {
        LbPolicy::RoundRobin => policy::ROUND_ROBIN,
        LbPolicy::Random => policy::RANDOM,
        LbPolicy::Maglev => policy::MAGLEV,
        LbPolicy::SourceIp => policy::SOURCE_IP,
        LbPolicy::LeastRequest => policy::LEAST_REQUEST,
    }
}

/// Whether clients of the two families get different backends of a cluster.
fn is_split(cluster: &Cluster, mut families: impl Iterator<Item = bool>) -> bool {
    let Some(first) = families.next() else { return false };
    cluster.discovery.family() == Some(DnsFamily::Auto) && families.any(|v6| v6 != first)
}

/// Of the backends of a cluster those for clients of one family: where names have addresses of both, and nothing else
/// is asked for, the ones of that family, since the kernel rungs translate no IPv4 into IPv6. `is_v6` tells the family of one.
pub fn for_clients_of(
    cluster: &Cluster,
    candidates: &[Candidate],
    v6: bool,
    is_v6: impl Fn(&Candidate) -> bool,
) -> Vec<Candidate> {
    if is_split(cluster, candidates.iter().map(&is_v6)) {
        candidates.iter().filter(|candidate| is_v6(candidate) == v6).copied().collect()
    } else {
        candidates.to_vec()
    }
}

/// The endpoints of a cluster that take new connections.
fn candidates(cluster: &Cluster, index: u32, endpoints: &Endpoints, indices: &Indices) -> Vec<Candidate> {
    endpoints
        .active(&cluster.name)
        .filter_map(|(address, weight)| {
            Some(Candidate {
                index: indices.backends.find(&(index, address))?,
                identity: maglev::identity(words(address.ip()), address.port()),
                weight,
            })
        })
        .collect()
}

/// Clusters of a listener, each with its weight and its candidates.
fn mixed<'c>(
    shares: &[(&'c Cluster, u32)],
    endpoints: &Endpoints,
    indices: &mut Indices,
) -> Result<Vec<(&'c Cluster, u32, Vec<Candidate>)>> {
    let mut mixed = Vec::new();
    for &(of, weight) in shares {
        let index = cluster_index(&of.name, indices)?;
        mixed.push((of, weight, candidates(of, index, endpoints, indices)));
    }
    Ok(mixed)
}

/// The windows of a cluster or a listener: slots of the backends of clusters, which share the connections by the weights
/// that stand with them.
fn windows(
    index: u32,
    shares: &[(&Cluster, u32, Vec<Candidate>)],
    policy: LbPolicy,
    backends: &BTreeMap<u32, Backend>,
    slots: &mut Slots,
) -> Vec<(u32, Arc<[u32]>)> {
    let is_v6 = |candidate: &Candidate| backends[&candidate.index].flags & backend::V6 != 0;
    let split = shares.iter().any(|(cluster, _, candidates)| is_split(cluster, candidates.iter().map(is_v6)));
    let families = [false, true].into_iter().filter(|&v6| split || !v6);
    families
        .map(|v6| {
            let of_family = shares.iter().map(|(cluster, weight, candidates)| {
                let candidates = for_clients_of(cluster, candidates, v6, is_v6);
                (*weight, candidates.into_iter().map(|candidate| (candidate, candidate.weight)).collect())
            });
            let mixed = mix(of_family.collect());
            let candidates = mixed.into_iter().map(|(candidate, weight)| Candidate { weight, ..candidate });
            (window(index, v6), slots.get(window(index, v6), policy, candidates.collect()))
        })
        .collect()
}

/// Entries for all endpoints, also those that drain: their flows follow route and neighbour like all others.
fn add_backends(
    config: &Config,
    observed: &Observed<'_>,
    indices: &mut Indices,
    contents: &mut Contents,
) -> Result<()> {
    // Taken out meanwhile, since the other indices are in use.
    let mut addresses = std::mem::take(&mut indices.snat_addresses);
    let result = add_backends_from(config, observed, indices, contents, &mut addresses);
    indices.snat_addresses = addresses;
    result
}

fn add_backends_from(
    config: &Config,
    observed: &Observed<'_>,
    indices: &mut Indices,
    contents: &mut Contents,
    addresses: &mut Vec<[u32; 4]>,
) -> Result<()> {
    let mut snat = SnatAddresses::new(config, addresses)?;
    let mut last = ("", 0);
    for (name, address, member) in observed.endpoints.iter() {
        // The empty name: what an earlier agent left.
        if name != last.0 {
            last = (name, cluster_index(&name.to_owned(), indices)?);
        }
        let id = indices
            .backends
            .get(&(last.1, address))
            .with_context(|| format!("more than {} backends", MAX_BACKENDS - 1))?;
        let mut backend = backend_entry(last.1, address, observed, indices, &mut snat, contents)?;
        backend.flags |= out_flag(member);
        contents.backends.insert(id, backend);
    }
    Ok(())
}

fn backend_entry(
    cluster: u32,
    address: SocketAddr,
    observed: &Observed<'_>,
    indices: &mut Indices,
    snat: &mut SnatAddresses<'_>,
    contents: &mut Contents,
) -> Result<Backend> {
    let ip = address.ip();
    let mut entry = Backend {
        address: words(ip),
        port: address.port().to_be(),
        flags: backend::USED | if ip.is_ipv6() { backend::V6 } else { 0 },
        hop: 0,
        snat_first: 0,
        snat_count: 0,
        cluster: window(cluster, false),
        zero: 0,
    };
    let path = match observed.paths.get(&ip) {
        Some(RouteTo::Via(path)) => path,
        Some(RouteTo::Local) => {
            entry.flags |= backend::PROXY_ONLY;
            return Ok(entry);
        }
        Some(RouteTo::Unreachable(_)) | None => return Ok(entry),
    };
    let Some(hop) = hops::towards(ip, path, observed) else {
        entry.flags |= backend::PROXY_ONLY;
        return Ok(entry);
    };
    if observed.left_to_the_stack.contains(&address) {
        entry.flags |= backend::PROXY_ONLY;
    }
    let index = indices.hops.get(&Destination::Backend(ip));
    entry.hop = index.with_context(|| format!("more than {} next hops", MAX_NEXT_HOPS - 1))?;
    (entry.snat_first, entry.snat_count) = snat.window(observed.network.stable_source(path.source))?;
    contents.hops.insert(entry.hop, hop);
    Ok(entry)
}

//! From the configuration, the endpoints and the state of the node to the contents of the maps. Pure: what was
//! observed comes in as data.

mod hops;
mod snat;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

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

pub use snat::snat_ports;

use crate::datapath::contents::Contents;
use crate::endpoints::Endpoints;
use crate::ids::Ids;
use crate::model::{Cluster, Config, Discovery, DnsFamily, LbPolicy, Listener};
use crate::net::{RouteTo, Snapshot};
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
pub fn contents(config: &Config, observed: &Observed<'_>, indices: &mut Indices) -> Result<Contents> {
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
        let candidates = candidates(cluster, index, observed, indices);
        add_slots(index, &[(cluster, 1, candidates)], cluster.lb_policy, &mut contents);
    }
    for listener in &config.listeners {
        let cluster = cluster_index(&window_name(listener), indices)?;
        let shares = shares(config, listener)?;
        let lb_policy = common_policy(&shares);
        if shares.len() > 1 {
            let mut mixed = Vec::new();
            for &(of, weight) in &shares {
                let index = cluster_index(&of.name, indices)?;
                mixed.push((of, weight, candidates(of, index, observed, indices)));
            }
            add_slots(cluster, &mixed, lb_policy, &mut contents);
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

/// The slots of a cluster, in the order of its policy, of whatever stands for its backends.
pub fn slots(policy: LbPolicy, candidates: &[Candidate]) -> Vec<u32> {
    match policy {
        LbPolicy::RoundRobin | LbPolicy::Random | LbPolicy::LeastRequest => maglev::order(candidates),
        LbPolicy::Maglev | LbPolicy::SourceIp => maglev::table(candidates),
    }
}

/// Whether clients of the two families get different backends of a cluster.
fn is_split(cluster: &Cluster, mut families: impl Iterator<Item = bool>) -> bool {
    let Discovery::StrictDns(dns) = &cluster.discovery else { return false };
    let Some(first) = families.next() else { return false };
    dns.family == DnsFamily::Auto && families.any(|v6| v6 != first)
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
fn candidates(cluster: &Cluster, index: u32, observed: &Observed<'_>, indices: &Indices) -> Vec<Candidate> {
    observed
        .endpoints
        .active(&cluster.name)
        .filter_map(|endpoint| {
            Some(Candidate {
                index: indices.backends.find(&(index, endpoint.address))?,
                identity: maglev::identity(words(endpoint.address.ip()), endpoint.address.port()),
                weight: endpoint.weight,
            })
        })
        .collect()
}

/// The slots of the backends of clusters, which share the connections by the weights that stand with them.
fn add_slots(
    index: u32,
    shares: &[(&Cluster, u32, Vec<Candidate>)],
    policy: LbPolicy,
    contents: &mut Contents,
) {
    let is_v6 = |candidate: &Candidate| contents.backends[&candidate.index].flags & backend::V6 != 0;
    let split = shares.iter().any(|(cluster, _, candidates)| is_split(cluster, candidates.iter().map(is_v6)));
    let windows: Vec<(u32, Vec<u32>)> = [false, true]
        .into_iter()
        .filter(|&v6| split || !v6)
        .map(|v6| {
            let of_family = shares.iter().map(|(cluster, weight, candidates)| {
                (*weight, for_clients_of(cluster, candidates, v6, is_v6))
            });
            (window(index, v6), slots(policy, &mix(of_family.collect())))
        })
        .collect();
    contents.slots.extend(windows);
}

/// The candidates of all shares, weighted so that each share has its weight, however many it has. A share without any
/// leaves the connections to the others.
pub fn mix(shares: Vec<(u32, Vec<Candidate>)>) -> Vec<Candidate> {
    /// What the weights of a mixture add up to: so much for each candidate, within bounds.
    const FOR_EACH: u64 = 100;
    const MOST: u64 = 50_000;
    if shares.len() == 1 {
        return shares.into_iter().flat_map(|(_, candidates)| candidates).collect();
    }
    let used = shares.iter().filter(|(_, candidates)| !candidates.is_empty());
    let all: u64 = used.map(|(weight, _)| u64::from(*weight)).sum();
    let count: usize = shares.iter().map(|(_, candidates)| candidates.len()).sum();
    let total = (FOR_EACH * count as u64).clamp(1_000, MOST);
    let mut mixed = Vec::new();
    for (weight, candidates) in shares {
        let share = (total * u64::from(weight) / all.max(1)).max(1);
        let sum: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
        // Rounded so that they add up to the share; some of very many in a small one have none.
        let (mut before, mut given) = (0, 0);
        for candidate in candidates {
            before += u64::from(candidate.weight);
            let weight = share * before / sum - given;
            given += weight;
            if weight > 0 {
                mixed.push(Candidate { weight: weight as u32, ..candidate });
            }
        }
    }
    mixed
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
    for ((name, address), _) in observed.endpoints.iter() {
        let cluster = match name.as_str() {
            // What an earlier agent left.
            "" => 0,
            name => {
                let index = indices.clusters.get(&name.to_owned());
                index.with_context(|| format!("more than {} clusters", MAX_CLUSTERS / 2 - 1))?
            }
        };
        let id = indices
            .backends
            .get(&(cluster, *address))
            .with_context(|| format!("more than {} backends", MAX_BACKENDS - 1))?;
        let backend = backend_entry(cluster, *address, observed, indices, &mut snat, contents)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(first: u32, weights: &[u32]) -> Vec<Candidate> {
        let of = |(at, &weight): (usize, &u32)| Candidate { index: first + at as u32, identity: 0, weight };
        weights.iter().enumerate().map(of).collect()
    }

    fn sum(mixed: &[Candidate], indices: std::ops::Range<u32>) -> u64 {
        mixed.iter().filter(|of| indices.contains(&of.index)).map(|of| u64::from(of.weight)).sum()
    }

    #[test]
    fn shares_have_their_weights_however_many_they_have() {
        for (many, few, weights) in
            [(1, 1, (1, 3)), (500, 1, (1, 99)), (2_000, 2_000, (90, 10)), (3, 0, (1, 9))]
        {
            let shares = vec![
                (weights.0, candidates(0, &vec![1; many])),
                (weights.1, candidates(10_000, &vec![1; few])),
            ];
            let mixed = mix(shares);
            let (first, second) = (sum(&mixed, 0..10_000), sum(&mixed, 10_000..20_000));
            if few == 0 {
                assert_eq!(second, 0);
                continue;
            }
            let share = first as f64 / (first + second) as f64;
            let wanted = f64::from(weights.0) / f64::from(weights.0 + weights.1);
            assert!((share - wanted).abs() < 0.002, "{share} instead of {wanted}");
        }
    }

    #[test]
    fn within_a_share_weights_hold() {
        let mixed = mix(vec![(1, candidates(0, &[1, 3])), (1, candidates(10, &[1]))]);
        assert_eq!(sum(&mixed, 1..2), 3 * sum(&mixed, 0..1));
        assert_eq!(sum(&mixed, 0..2), sum(&mixed, 10..11));
    }

    #[test]
    fn one_share_is_left_as_it_is() {
        let alone = candidates(0, &[1, 200]);
        assert_eq!(mix(vec![(7, alone.clone())]), alone);
    }
}

//! The kernel rungs, kept equal to configuration, endpoints and network.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lb_common::Rung;
use lb_common::table;
use lb_common::tables::{Failed, Opened, active_of_cluster, hop};

use crate::active::Place;
use crate::agent::Options;
use crate::agent::accounts::{KernelTotals, Open};
use crate::agent::adopt::adopt;
use crate::agent::ends::unknown;
use crate::agent::interfaces::Interfaces;
use crate::agent::trials::Trials;
use crate::datapath::connection::KernelConnection;
use crate::datapath::contents::{Contents, plan};
use crate::datapath::drift::Drift;
use crate::datapath::kernel::{Kernel, monotonic_now};
use crate::datapath::object::{self, Loaded, Pins};
use crate::datapath::resize::{resize, resume};
use crate::datapath::sweep::{Found, Limits, Moved, ServiceLimits, Usage};
use crate::datapath::{attach, bpffs};
use crate::desired::{self, Destination, Indices, Observed};
use crate::endpoints::{Endpoints, Name};
use crate::model::{Config, Mode};
use crate::moved::{MovedRoutes, route_to_client};
use crate::net::{self, Link, NeighbourState, RouteTo, Snapshot};

/// Flows of each family for each GiB of memory, unless configured.
const FLOWS_PER_GIB: u64 = 65_536;
/// How long a start waits for the neighbours of backends to answer.
pub const RESOLUTION: Duration = Duration::from_secs(2);
/// How long a change waits for the first connections to new endpoints.
const TRIAL: Duration = Duration::from_millis(50);
/// How often neighbours are probed: the kernel alone trusts an answer for up to 45 seconds, longer than most clients
/// wait where a neighbour has gone or has another address without a word.
const PROBING: Duration = Duration::from_secs(3);
/// Neighbours that are probed in one go, in turn: a node has few gateways, but may have many backends on its links.
const PROBED: usize = 32;

/// The kernel rungs.
pub struct KernelSide {
    pub kernel: Kernel,
    pub pins: Pins,
    pub interfaces: Interfaces,
    pub max_flows: u32,
    pub snat_ports: Vec<u16>,
    paths: HashMap<IpAddr, RouteTo>,
    trials: Trials,
    /// Interfaces that XDP may redirect to, and whether also frames of several buffers.
    devices: BTreeMap<u32, bool>,
    neighbours: Neighbours,
    indices: Indices,
    contents: Contents,
    moved: MovedRoutes,
    /// What the flows referred to at the last sweep.
    usage: Usage,
    /// Also of listeners and backends that are gone, for as long as they have flows.
    limits: Limits,
    pub names: Names,
    pub totals: KernelTotals,
    /// Whether the flows of an earlier agent are in the totals.
    totals_begun: bool,
    drift: Drift,
    /// By backend index: what was counted there for others before.
    before: HashMap<u32, (Opened, Failed)>,
    /// By backend index: last attempts that the agent found unanswered, which no program counts.
    unanswered: HashMap<u32, u64>,
    /// A change of the maps has failed half-way.
    dirty: bool,
    draining: bool,
}

/// What a sweep has come to.
pub struct Swept {
    pub found: Vec<(Found, KernelConnection)>,
    /// The maps have to be updated.
    pub changed: bool,
}

/// What indices in the maps stand for.
#[derive(Default)]
pub struct Names {
    /// By service id.
    listeners: HashMap<u32, Arc<str>>,
    /// By backend index.
    clusters: HashMap<u32, Arc<str>>,
}

impl Names {
    /// Backend indices, each with its cluster.
    pub fn clusters(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        self.clusters.iter().map(|(&index, name)| (index, name))
    }

    /// Service ids, each with its listener.
    pub fn listeners(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        self.listeners.iter().map(|(&id, name)| (id, name))
    }

    /// The listener that a service id stands for.
    pub fn listener(&self, service: u32) -> Arc<str> {
        self.listeners.get(&service).cloned().unwrap_or_else(unknown)
    }

    /// The cluster of a backend; `None`: it was left by an earlier agent.
    pub fn cluster(&self, backend: u32) -> Option<Arc<str>> {
        self.clusters.get(&backend).cloned()
    }
}

/// Neighbours that the kernel is to keep resolved.
#[derive(Default)]
struct Neighbours {
    wanted: BTreeSet<(u32, IpAddr)>,
    /// The last that was probed, and when.
    probed: Option<((u32, IpAddr), Instant)>,
}

impl KernelSide {
    /// Loads the programs, with the maps of an earlier agent if there are any: endpoints of it that are not ours drain.
    /// Attaches nothing yet, unless the flow tables are to have another size than these.
    pub fn load(
        config: &Config,
        options: &Options,
        mode: Mode,
        endpoints: &mut Endpoints,
        network: &Snapshot,
    ) -> Result<Self> {
        bpffs::prepare(&options.bpffs)?;
        let pins = Pins::new(&options.bpffs);
        refuse_other_versions(&pins)?;
        let adopted = pins.exist();
        let (loaded, max_flows) = match object::pinned_tables(&pins)? {
            Some(_) => take_over(&pins, config.datapath.max_flows, &network.links)?,
            None => {
                let max_flows = config.datapath.max_flows.map_or_else(flows_by_memory, Ok)?;
                (object::load(max_flows, fastrand::u64(..), Some(&pins))?, max_flows)
            }
        };
        let kernel = Kernel::new(loaded)?;
        let mut totals = KernelTotals::default();
        totals.adopt(&pins)?;
        for rejected in kernel.all_rejected() {
            log::warn!("the kernel does not take the program {}: {}", rejected.program, rejected.why);
        }
        let mut indices = Indices::default();
        let mut contents = Contents::default();
        let mut moved = MovedRoutes::default();
        adopt(&kernel, config, endpoints, &mut indices, &mut contents, &mut moved)?;
        Ok(Self {
            kernel,
            pins,
            interfaces: Interfaces::new(mode),
            max_flows,
            snat_ports: snat_ports(config)?,
            paths: HashMap::new(),
            trials: Trials::default(),
            devices: BTreeMap::new(),
            neighbours: Neighbours::default(),
            indices,
            contents,
            moved,
            usage: Usage::default(),
            limits: Limits { last: monotonic_now(), ..Limits::default() },
            names: Names::default(),
            totals,
            totals_begun: !adopted,
            drift: Drift::default(),
            before: HashMap::new(),
            unanswered: HashMap::new(),
            dirty: false,
            draining: false,
        })
    }

    /// Finds out where endpoints are and how they are reached, and has their neighbours resolved.
    pub async fn explore(&mut self, endpoints: &Endpoints, network: &Snapshot) {
        self.devices = redirect_targets(network).await;
        self.find_paths(endpoints, network).await;
        self.try_endpoints(endpoints);
        // One that answers does so within milliseconds; others are left to the proxy meanwhile.
        self.await_trials(TRIAL).await;
    }

    /// Waits for the first connections to new endpoints, but not for long.
    pub async fn await_trials(&mut self, limit: Duration) {
        self.trials.settle(tokio::time::Instant::now() + limit).await;
    }

    /// Waits until more is known of an endpoint, so that the maps have to be updated. Cancel safe.
    pub async fn endpoint_known(&mut self) {
        while !self.trials.next().await {}
    }

    /// Makes the maps equal to what configuration, endpoints and network ask for.
    pub fn update_maps(&mut self, config: &Config, endpoints: &Endpoints, network: &Snapshot) -> Result<()> {
        let observed = Observed {
            endpoints,
            network,
            paths: &self.paths,
            left_to_the_stack: &self.trials.left_to_the_stack(),
            devices: &self.devices,
            snat_ports: &self.snat_ports,
            max_flows: self.max_flows,
            tell_connected: config.listeners.iter().flat_map(|of| &of.access_logs).any(|log| log.on_connect),
            draining: self.draining,
        };
        self.dirty = true;
        let mut contents = desired::contents(config, &observed, &mut self.indices)?;
        self.keep_what_flows_need(&mut contents);
        self.moved.mark(&self.contents, &mut contents, monotonic_now());
        for step in plan(&self.contents, &contents) {
            log::debug!("{step:?}");
            self.kernel.apply(&step).with_context(|| format!("applying {step:?}"))?;
            self.contents.record(step);
        }
        self.dirty = false;
        self.name_all();
        Ok(())
    }

    /// What is not wanted any more stays until its index is released: a flow may refer to it.
    fn keep_what_flows_need(&self, contents: &mut Contents) {
        for (&index, &hop) in &self.contents.hops {
            if self.indices.hops.is_taken(index) {
                contents.hops.entry(index).or_insert(hop);
            }
        }
        for (&index, &backend) in &self.contents.backends {
            if self.indices.backends.is_taken(index) {
                contents.backends.entry(index).or_insert(backend);
            }
        }
    }

    /// Another configuration: what does not come from it stays.
    pub fn reconfigure(&mut self, config: &Config, mode: Mode) -> Result<()> {
        self.snat_ports = snat_ports(config)?;
        self.interfaces.set_mode(mode);
        Ok(())
    }

    /// Gives the flow tables the size that the configuration asks for, under open flows. An error: they stay as they are.
    pub async fn resize(&mut self, config: &Config, endpoints: &Endpoints, network: &Snapshot) -> Result<()> {
        let Some(wanted) = config.datapath.max_flows.filter(|&wanted| wanted != self.max_flows) else {
            return Ok(());
        };
        let mut failed = Vec::new();
        if table::sets(wanted) != self.kernel.v4.flows.sets() {
            // It may take seconds.
            self.confirm();
            let resized = resize(&self.pins, &network.links, wanted)?;
            self.kernel.replace_tables(resized.loaded)?;
            self.kernel.recount_active()?;
            failed = resized.failed;
        }
        self.max_flows = wanted;
        // The tables have changed, and that is not taken back.
        if let Err(error) = self.update_maps(config, endpoints, network) {
            log::error!("updating the maps: {error:#}");
        }
        if !failed.is_empty() {
            self.interfaces.forget(&failed);
            if let Err(error) = self.attach(config, network).await {
                log::error!("attaching again: {error:#}");
            }
        }
        Ok(())
    }

    /// Takes no new flows from here on.
    pub fn drain(&mut self, config: &Config, endpoints: &Endpoints, network: &Snapshot) -> Result<()> {
        self.draining = true;
        self.update_maps(config, endpoints, network)
    }

    /// Attaches to the interfaces that are to carry traffic and leaves those that are not.
    pub async fn attach(&mut self, config: &Config, network: &Snapshot) -> Result<()> {
        self.interfaces.attach(&mut self.kernel, &self.pins, config, network, &self.paths).await
    }

    /// Vouches for the next hops, and looks after neighbours and endpoints.
    pub async fn housekeep(&mut self, endpoints: &Endpoints, network: &Snapshot) {
        self.confirm();
        self.look_after_neighbours(network).await;
        self.try_endpoints(endpoints);
    }

    /// Takes ended flows out, finds those that have reached a limit, and finds out what the others need.
    pub fn sweep(&mut self, config: &Config, endpoints: &Endpoints) -> Result<Swept> {
        self.set_limits(config);
        let now = monotonic_now();
        let mut found = Vec::new();
        self.usage = {
            let route = route_to_client(&self.contents);
            let moved = Moved { hops: self.moved.hops(), route: &route };
            self.kernel.sweep(&self.limits, &moved, &mut |what, of| found.push((what, of)))?
        };
        self.limits.last = now;
        let settled = self.moved.settle(now, |hop| self.usage.is_astray(hop));
        let released = self.release_indices(endpoints);
        self.correct_counts();
        self.begin_totals();
        self.limits.services.retain(|&id, _| self.indices.services.is_taken(id));
        self.limits.connect_timeouts.retain(|&index, _| self.indices.backends.is_taken(index));
        Ok(Swept { found, changed: settled || released || self.dirty })
    }

    /// Counts what has lost its index, which others may have next.
    fn count_released(&mut self) {
        let mut totals = std::mem::take(&mut self.totals);
        let mut backends = self.names.clusters().filter(|(index, _)| !self.indices.backends.is_taken(*index));
        let mut services = self.names.listeners().filter(|(id, _)| !self.indices.services.is_taken(*id));
        let counted = backends
            .try_for_each(|(index, cluster)| totals.add_backend(self, index, cluster))
            .and_then(|()| services.try_for_each(|(id, listener)| totals.add_service(self, id, listener)));
        self.totals = totals;
        if let Err(error) = counted {
            log::warn!("reading the counters of the datapath: {error:#}");
        }
    }

    /// Counts a last attempt that was not answered in time.
    pub fn count_unanswered(&mut self, backend: u32) {
        *self.unanswered.entry(backend).or_default() += 1;
    }

    /// Flows that were opened to a backend, and attempts that failed, since it has its index.
    pub fn of_backend(&self, backend: u32) -> Result<(Opened, Failed)> {
        let (opened, failed) = (self.kernel.opened(backend)?, self.failed(backend)?);
        let (before_opened, before_failed) = self.before.get(&backend).copied().unwrap_or_default();
        let opened = Opened {
            xdp: opened.xdp.saturating_sub(before_opened.xdp),
            tc: opened.tc.saturating_sub(before_opened.tc),
        };
        let failed = Failed {
            refused: failed.refused.saturating_sub(before_failed.refused),
            unanswered: failed.unanswered.saturating_sub(before_failed.unanswered),
        };
        Ok((opened, failed))
    }

    /// Attempts to reach a backend that failed.
    pub fn failed(&self, backend: u32) -> Result<Failed> {
        let counted = self.kernel.failed(backend)?;
        let unanswered = self.unanswered.get(&backend).copied().unwrap_or(0);
        Ok(Failed { unanswered: counted.unanswered + unanswered, ..counted })
    }

    /// Counts what programs and agent have counted of everything that has a name.
    pub fn count_all(&mut self) -> Result<()> {
        let mut totals = std::mem::take(&mut self.totals);
        let counted = totals.add_all(self);
        self.totals = totals;
        counted
    }

    /// SNAT ports in use towards a backend, as of the last sweep.
    pub fn snat_ports_used(&self, backend: u32) -> u64 {
        self.usage.ports(backend)
    }

    /// SNAT ports that there are towards a backend, of all its SNAT addresses.
    pub fn snat_ports_of(&self, backend: u32) -> u64 {
        let addresses = self.contents.backends.get(&backend).map_or(0, |backend| backend.snat_count);
        u64::from(addresses) * self.snat_ports.len() as u64
    }

    /// Where the open connections of a backend or, without an address, a cluster are counted.
    pub fn place(&self, cluster: &str, address: Option<SocketAddr>) -> Option<Place> {
        let index = match address {
            Some(address) => self.indices.backend(cluster, address)?,
            None => active_of_cluster(desired::window(self.cluster_index(cluster)?, false)),
        };
        Some(Place { map: Arc::clone(&self.kernel.active), index })
    }

    /// What open flows carry, added to `open`.
    pub(super) fn add_open(&self, open: &mut Open) {
        for (id, listener) in self.names.listeners() {
            open.listener(listener, self.usage.of_service(id));
        }
        for (index, cluster) in self.names.clusters() {
            open.cluster(cluster, self.usage.of_backend(index));
        }
        for rung in [Rung::Xdp, Rung::Tc] {
            open.rung(rung, self.usage.of_rung(rung));
        }
    }

    /// Corrects counts of open connections that have differed from the tables for long.
    fn correct_counts(&mut self) {
        let mut counted: HashMap<u32, u64> = HashMap::new();
        for (index, _) in self.names.clusters() {
            let flows = self.usage.counted(index);
            *counted.entry(index).or_default() += flows;
            if let Some(backend) = self.contents.backends.get(&index) {
                *counted.entry(active_of_cluster(backend.cluster)).or_default() += flows;
            }
        }
        for (&index, &flows) in &counted {
            let by = self.drift.note(index, flows as i64 - self.kernel.active_flows(index));
            if by != 0 {
                log::debug!("the count of open connections {index} is corrected by {by}");
                self.kernel.correct_active(index, by);
            }
        }
        self.drift.retain(|index| counted.contains_key(&index));
    }

    /// Flows of an earlier agent that are open count as opened now, so that the totals go with their ends.
    fn begin_totals(&mut self) {
        if std::mem::replace(&mut self.totals_begun, true) {
            return;
        }
        for (index, cluster) in self.names.clusters() {
            self.totals.begin_cluster(cluster, self.usage.of_backend(index).flows);
        }
        for (id, listener) in self.names.listeners() {
            self.totals.begin_listener(listener, self.usage.of_service(id).flows);
        }
    }

    fn set_limits(&mut self, config: &Config) {
        for listener in &config.listeners {
            let Some(id) = self.service_id(&listener.name) else { continue };
            let of_cluster =
                config.cluster(&listener.clusters[0].name).map(|cluster| cluster.connect_attempts);
            let limits = ServiceLimits {
                idle: listener.idle_timeout,
                age: listener.max_connection_duration,
                attempts: listener.connect_attempts.or(of_cluster).unwrap_or(1),
                told_every: listener.access_logs.iter().filter_map(|log| log.flush_interval).collect(),
            };
            self.limits.services.insert(id, limits);
        }
        let timeouts: HashMap<u32, Duration> = config
            .clusters
            .iter()
            .filter_map(|cluster| Some((self.cluster_index(&cluster.name)?, cluster.connect_timeout)))
            .collect();
        for (&(cluster, _), index) in self.indices.backends.iter() {
            if let Some(&timeout) = timeouts.get(&cluster) {
                self.limits.connect_timeouts.insert(index, timeout);
            }
        }
    }

    /// What listeners and backends are called now.
    fn name_all(&mut self) {
        let clusters: HashMap<u32, Arc<str>> =
            self.indices.clusters.iter().map(|(name, index)| (index, name.as_str().into())).collect();
        let services = self.indices.services.iter();
        self.names.listeners = services.map(|(name, id)| (id, name.as_str().into())).collect();
        let backends = self.indices.backends.iter();
        self.names.clusters =
            backends.filter_map(|(of, index)| Some((index, Arc::clone(clusters.get(&of.0)?)))).collect();
        let names = &self.names.clusters;
        self.before.retain(|index, _| names.contains_key(index));
        self.unanswered.retain(|index, _| names.contains_key(index));
        for &index in names.keys() {
            let counted = || {
                let (opened, failed) = (self.kernel.opened(index), self.kernel.failed(index));
                (opened.unwrap_or_default(), failed.unwrap_or_default())
            };
            self.before.entry(index).or_insert_with(counted);
        }
    }

    /// Vouches for the next hops.
    pub fn confirm(&self) {
        self.kernel.confirm(self.contents.hops.keys().copied());
    }

    /// Indices of what is neither wanted nor referred to by a flow are free again. Whether there were any.
    fn release_indices(&mut self, endpoints: &Endpoints) -> bool {
        let (usage, contents) = (&self.usage, &self.contents);
        let windows: HashSet<u32> =
            contents.slots.keys().map(|&window| desired::cluster_of_window(window)).collect();
        let services4 = contents.services4.values().map(|service| service.id);
        let served: HashSet<u32> =
            services4.chain(contents.services6.values().map(|service| service.id)).collect();
        let members: HashSet<u32> =
            endpoints.iter().filter_map(|((of, at), _)| self.indices.backend(of, *at)).collect();
        let addresses: HashSet<IpAddr> = endpoints.iter().map(|((_, address), _)| address.ip()).collect();
        let routes: HashSet<u32> =
            contents.routes4.values().chain(contents.routes6.values()).copied().collect();
        let indices = &mut self.indices;
        // A cluster that is gone keeps its index for as long as something of it is left.
        let left: HashSet<&str> = endpoints.iter().map(|((cluster, _), _)| cluster.as_str()).collect();
        let used = indices.backends.iter().filter(|(_, index)| usage.has_backend(*index));
        let used: HashSet<u32> = used.map(|(&(cluster, _), _)| cluster).collect();
        let clusters = indices.clusters.retain(|name, index| {
            let wanted = windows.contains(&index) || used.contains(&index);
            wanted || name.is_some_and(|name| left.contains(name.as_str()))
        });
        let services = indices.services.retain(|_, id| served.contains(&id) || usage.has_service(id));
        let backends =
            indices.backends.retain(|_, index| members.contains(&index) || usage.has_backend(index));
        let moved = self.moved.hops();
        let hops = indices.hops.retain(|destination, index| {
            let wanted = match destination {
                Some(Destination::Backend(address)) => addresses.contains(address),
                _ => routes.contains(&index),
            };
            wanted || moved.contains_key(&index) || usage.has_hop(index)
        });
        let released = clusters || services || backends || hops;
        if released {
            self.count_released();
        }
        released
    }

    /// Whether every backend that can be reached by a neighbour has that neighbour's address.
    pub fn is_resolved(&self) -> bool {
        self.contents.backends.values().filter(|backend| backend.hop != 0).all(|backend| {
            let hop = self.contents.hops.get(&backend.hop);
            hop.is_some_and(|hop| hop.flags & (hop::RESOLVED | hop::L3) != 0)
        })
    }

    /// Index of an endpoint's backend in the maps.
    pub fn backend_index(&self, (cluster, address): &Name) -> Option<u32> {
        self.indices.backend(cluster, *address)
    }

    /// Whether an endpoint has kernel flows that are open, as of the last sweep.
    pub fn has_open_flows(&self, name: &Name) -> bool {
        self.backend_index(name).is_some_and(|index| self.usage.has_open_flows(index))
    }

    /// What stands for a listener in the maps.
    pub fn service_id(&self, listener: &str) -> Option<u32> {
        self.indices.services.find(&listener.to_owned())
    }

    /// What stands for a cluster in the maps.
    pub fn cluster_index(&self, cluster: &str) -> Option<u32> {
        self.indices.clusters.find(&cluster.to_owned())
    }

    /// Whether an endpoint is left to the proxy, and why.
    pub fn proxy_only(&self, address: SocketAddr, network: &Snapshot) -> Option<String> {
        if let Some(why) = self.trials.why(address) {
            return Some(why);
        }
        match self.paths.get(&address.ip()) {
            Some(RouteTo::Local) if network.is_cluster_ip(address.ip()) => Some(
                "a ClusterIP (kube-ipvs0): use a headless Service, whose name has the addresses of the pods"
                    .into(),
            ),
            Some(RouteTo::Local) => Some("an address of this node".into()),
            Some(RouteTo::Via(path)) if path.encapsulated => Some("behind a route that wraps packets".into()),
            Some(RouteTo::Via(_)) => None,
            Some(RouteTo::Unreachable(why)) => Some(why.to_string()),
            None => Some("no route known yet".into()),
        }
    }

    async fn find_paths(&mut self, endpoints: &Endpoints, network: &Snapshot) {
        let backends: BTreeSet<IpAddr> = endpoints.iter().map(|((_, address), _)| address.ip()).collect();
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
        for (address, path) in &paths {
            if let RouteTo::Unreachable(why) = path
                && self.paths.get(address) != Some(path)
            {
                log::warn!("backend {address}: {why}");
            }
        }
        self.paths = paths;
        for route in &network.routes {
            if let Some(gateway) = route.gateway {
                neighbours.insert((route.link, gateway));
            }
        }
        // Only Ethernet has neighbours.
        neighbours
            .retain(|(link, _)| network.link_by_index(*link).is_some_and(|link| link.ethernet && link.up));
        for (link, address) in self.neighbours.wanted.difference(&neighbours) {
            // A link that is gone took its neighbours along.
            if network.link_by_index(*link).is_some()
                && let Err(error) = net::unmanage(*link, *address).await
            {
                log::warn!("{error:#}");
            }
        }
        for &(link, address) in &neighbours {
            resolve(link, address).await;
        }
        self.neighbours.wanted = neighbours;
    }

    /// Has those that do not answer asked for again, and some of the others probed.
    async fn look_after_neighbours(&mut self, network: &Snapshot) {
        let wanted = &self.neighbours.wanted;
        for &(link, address) in wanted {
            if network.neighbour(link, address).is_none_or(|entry| entry.state == NeighbourState::Failed) {
                resolve(link, address).await;
            }
        }
        let last = match self.neighbours.probed {
            Some((_, at)) if at.elapsed() < PROBING => return,
            Some((last, _)) => last,
            None => (0, IpAddr::from([0, 0, 0, 0])),
        };
        let behind = wanted.range((Bound::Excluded(last), Bound::Unbounded));
        let turn: Vec<_> = behind.chain(wanted.range(..=last)).take(PROBED).copied().collect();
        for &(link, address) in &turn {
            if let Err(error) = net::probe(link, address).await {
                log::debug!("{error:#}");
            }
        }
        self.neighbours.probed = turn.last().map(|&last| (last, Instant::now()));
    }

    /// Begins to find out of endpoints, where that is not known, where the node's own connections to them go.
    fn try_endpoints(&mut self, endpoints: &Endpoints) {
        let active = endpoints.iter().filter(|(_, member)| member.draining.is_none());
        let active: BTreeSet<SocketAddr> = active.map(|((_, address), _)| *address).collect();
        let paths = &self.paths;
        self.trials.start(&active, |address| matches!(paths.get(&address.ip()), Some(RouteTo::Via(_))));
    }

    /// Takes the programs off all interfaces and the pins away: what kernel flows there are, end.
    pub fn unload(&self, network: &Snapshot) -> Result<()> {
        unload(&self.pins, network)
    }
}

/// Loads the programs with the maps of an earlier agent, but with flow tables for as many flows as are wanted, if that is
/// another number; and how many they are for.
fn take_over(pins: &Pins, wanted: Option<u32>, links: &[Link]) -> Result<(Loaded, u32)> {
    let mut loaded = match resume(pins, links) {
        Ok(resumed) => resumed.map(|resized| resized.loaded),
        Err(error) => {
            log::warn!("the flow tables keep their size: {error:#}");
            None
        }
    };
    let (mut max_flows, seed) = object::pinned_tables(pins)?.context("there are no flow tables")?;
    if let Some(wanted) = wanted {
        if table::sets(wanted) == table::sets(max_flows) {
            max_flows = wanted;
        } else {
            match resize(pins, links, wanted) {
                Ok(resized) => (loaded, max_flows) = (Some(resized.loaded), wanted),
                Err(error) => log::warn!(
                    "datapath.max_flows: the tables of an earlier agent are for {max_flows} flows and stay so: {error:#}"
                ),
            }
        }
    }
    let loaded = loaded.map_or_else(|| object::load(max_flows, seed, Some(pins)), Ok)?;
    Ok((loaded, max_flows))
}

/// Has a neighbour resolved and kept so.
async fn resolve(link: u32, address: IpAddr) {
    if let Err(error) = net::resolve(link, address).await {
        log::warn!("{error:#}");
    }
}

/// Takes programs and pins away.
pub fn unload(pins: &Pins, network: &Snapshot) -> Result<()> {
    for index in attach::attached(pins) {
        attach::detach(pins, index, network.link_by_index(index).map(|link| link.name.as_str()))?;
    }
    pins.remove()
}

/// The same, and those of other versions.
pub fn unload_all(pins: &Pins, network: &Snapshot) -> Result<()> {
    for other in pins.of_other_versions() {
        unload(&other, network)?;
    }
    unload(pins, network)
}

/// Programs of another version go on without an agent, and would meet packets before ours.
fn refuse_other_versions(pins: &Pins) -> Result<()> {
    match pins.of_other_versions().first() {
        None => Ok(()),
        Some(other) => bail!(
            "another version of Headgate has left its datapath in {}, with flows that this one cannot go on with: let \
             that version end them (SIGTERM without --leave-datapath), or end them with `headgate unload`",
            other.root().display()
        ),
    }
}

fn snat_ports(config: &Config) -> Result<Vec<u16>> {
    let ports = desired::snat_ports(config, net::local_port_range()?, &net::reserved_ports()?);
    if ports.is_empty() {
        log::warn!(
            "no SNAT port is left between 1024 and 29999 beside net.ipv4.ip_local_port_range and \
             ip_local_reserved_ports: every connection goes to the proxy until datapath.snat_ports names a range"
        );
    }
    Ok(ports)
}

/// Interfaces whose driver sends what XDP redirects to them, and whether also frames of several buffers.
async fn redirect_targets(network: &Snapshot) -> BTreeMap<u32, bool> {
    let mut targets = BTreeMap::new();
    for link in network.links.iter().filter(|link| link.ethernet && link.up) {
        let (sends, several) = match net::xdp_features(link.index).await {
            Ok(Some(features)) => (features.ndo_xmit, features.ndo_xmit_sg),
            // A kernel before 6.3 does not tell. A veth needs an XDP program at its far end, others mostly send.
            _ => (link.kind.is_none(), false),
        };
        if sends {
            targets.insert(link.index, several);
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
    Ok((kib * FLOWS_PER_GIB / (1 << 20)).clamp(64 << 10, table::MAX_FLOWS.into()) as u32)
}

//! The kernel rungs, kept equal to configuration, endpoints and network; `sweep` looks at their flows, `counts` at their
//! counters.

mod counts;
mod sweep;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lb_common::table;
use lb_common::tables::{Failed, Opened, hop};
use tokio::time::{Instant as Deadline, sleep_until};

pub use self::counts::Names;
use crate::agent::Options;
use crate::agent::accounts::KernelTotals;
use crate::agent::adopt::adopt;
use crate::agent::interfaces::Interfaces;
use crate::agent::trials::Trials;
use crate::datapath::contents::{Contents, Step, plan};
use crate::datapath::drift::Drift;
use crate::datapath::kernel::{Kernel, monotonic_now};
use crate::datapath::object::{self, Loaded, Pins};
use crate::datapath::resize::{resize, resume};
use crate::datapath::sweep::{Limits, Usage};
use crate::datapath::{attach, bpffs};
use crate::desired::{self, Indices, Observed, Slots};
use crate::endpoints::Endpoints;
use crate::model::{Cluster, Config, Mode};
use crate::moved::MovedRoutes;
use crate::net::{self, Link, NeighbourState, RouteTo, Router, Snapshot};

/// Flows of each family for each GiB of memory, unless configured.
const FLOWS_PER_GIB: u64 = 65_536;
/// How long a start waits for the neighbours of backends to answer.
pub const RESOLUTION: Duration = Duration::from_secs(2);
/// How long a change waits for the first connections to new endpoints.
const TRIAL: Duration = Duration::from_millis(50);
/// How many times as long as an update of the maps took there is none for another endpoint that was found out about.
const KNOWN_PAUSE: u32 = 10;
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
    /// When what trials come to is next followed.
    next_known: Deadline,
    /// Interfaces that XDP may redirect to, and whether also frames of several buffers.
    devices: BTreeMap<u32, bool>,
    neighbours: Neighbours,
    indices: Indices,
    slots: Slots,
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
    /// There may be indices that nothing but flows needs, or nothing at all.
    lingering: bool,
    /// New flows are left to the proxy.
    pub(super) draining: bool,
    /// Routes could not be asked for.
    unexplored: bool,
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
        // Connections of an earlier agent's proxy are gone with it.
        kernel.forget_proxied();
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
            next_known: Deadline::now(),
            devices: BTreeMap::new(),
            neighbours: Neighbours::default(),
            indices,
            slots: Slots::default(),
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
            lingering: true,
            draining: false,
            unexplored: false,
        })
    }

    /// Finds out where endpoints are and how they are reached, and has their neighbours resolved. `anew`: also of those that
    /// this is known of, since the network is another one.
    pub async fn explore(&mut self, endpoints: &Endpoints, network: &Snapshot, anew: bool) {
        self.devices = redirect_targets(network).await;
        self.find_paths(endpoints, network, anew).await;
        self.try_endpoints(endpoints);
        // One that answers does so within milliseconds; others are left to the proxy meanwhile.
        self.await_trials(TRIAL).await;
    }

    /// Waits for the first connections to new endpoints, but not for long.
    pub async fn await_trials(&mut self, limit: Duration) {
        self.trials.settle(Deadline::now() + limit).await;
    }

    /// Waits until more is known of an endpoint, so that the maps have to be updated. Of many at the same time the maps
    /// follow some together, so that this takes a tenth of a CPU at the most. Cancel safe.
    pub async fn endpoint_known(&mut self) {
        sleep_until(self.next_known).await;
        while !self.trials.next().await {}
    }

    /// Makes the maps equal to what configuration, endpoints and network ask for.
    pub fn update_maps(&mut self, config: &Config, endpoints: &Endpoints, network: &Snapshot) -> Result<()> {
        let begin = Instant::now();
        let observed = Observed {
            endpoints,
            network,
            paths: &self.paths,
            left_to_the_stack: &self.trials.left_to_the_stack(),
            devices: &self.devices,
            snat_ports: &self.snat_ports,
            max_flows: self.max_flows,
            tell_connected: config
                .listeners
                .iter()
                .flat_map(|of| &of.access_logs)
                .any(|log| log.on_connect || log.on_start),
            draining: self.draining,
        };
        (self.dirty, self.lingering) = (true, true);
        let mut contents = desired::contents(config, &observed, &mut self.indices, &mut self.slots)?;
        self.keep_what_flows_need(&mut contents);
        self.moved.mark(&self.contents, &mut contents, monotonic_now());
        self.apply(plan(&self.contents, &contents))?;
        self.dirty = false;
        self.next_known = (Instant::now() + begin.elapsed() * KNOWN_PAUSE).into();
        self.slots.retain(|window| contents.slots.contains_key(&window));
        self.name_all();
        self.set_limits(config);
        Ok(())
    }

    /// Follows another choice of a cluster's endpoints: writes what depends on it alone.
    pub fn update_choice(
        &mut self,
        config: &Config,
        cluster: &Cluster,
        endpoints: &Endpoints,
        network: &Snapshot,
    ) -> Result<()> {
        if self.dirty {
            return self.update_maps(config, endpoints, network);
        }
        let steps =
            desired::choice(config, cluster, endpoints, &mut self.indices, &mut self.slots, &self.contents)?;
        let Some(steps) = steps else { return self.update_maps(config, endpoints, network) };
        self.dirty = true;
        self.apply(steps)?;
        self.dirty = false;
        Ok(())
    }

    fn apply(&mut self, steps: Vec<Step>) -> Result<()> {
        for step in steps {
            log::debug!("{step:?}");
            self.kernel.apply(&step).with_context(|| format!("applying {step:?}"))?;
            self.contents.record(step);
        }
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

    /// Whether new flows are left to the proxy from here on.
    pub fn set_draining(
        &mut self,
        draining: bool,
        config: &Config,
        endpoints: &Endpoints,
        network: &Snapshot,
    ) -> Result<()> {
        self.draining = draining;
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

    /// Vouches for the next hops.
    pub fn confirm(&self) {
        self.kernel.confirm(self.contents.hops.keys().copied());
    }

    /// Whether every backend that can be reached by a neighbour has that neighbour's address.
    pub fn is_resolved(&self) -> bool {
        self.contents.backends.values().filter(|backend| backend.hop != 0).all(|backend| {
            let hop = self.contents.hops.get(&backend.hop);
            hop.is_some_and(|hop| hop.flags & (hop::RESOLVED | hop::L3) != 0)
        })
    }

    /// Index of an endpoint's backend in the maps.
    pub fn backend_index(&self, cluster: &str, address: SocketAddr) -> Option<u32> {
        self.indices.backend(cluster, address)
    }

    /// Whether an endpoint has kernel flows that are open, as of the last sweep.
    pub fn has_open_flows(&self, cluster: &str, address: SocketAddr) -> bool {
        self.backend_index(cluster, address).is_some_and(|index| self.usage.has_open_flows(index))
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

    async fn find_paths(&mut self, endpoints: &Endpoints, network: &Snapshot, anew: bool) {
        let anew = anew || self.unexplored;
        self.unexplored = false;
        let paths = match self.ask_for_paths(endpoints, anew).await {
            Ok(paths) => paths,
            Err(error) => {
                self.unexplored = true;
                return log::warn!("asking for routes: {error:#}");
            }
        };
        let mut neighbours: BTreeSet<(u32, IpAddr)> = paths
            .iter()
            .filter_map(|(address, path)| match path {
                RouteTo::Via(via) => Some((via.link, via.next_hop(*address))),
                _ => None,
            })
            .collect();
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
        for &(link, address) in neighbours.iter().filter(|of| anew || !self.neighbours.wanted.contains(of)) {
            resolve(link, address).await;
        }
        self.neighbours.wanted = neighbours;
    }

    async fn ask_for_paths(&self, endpoints: &Endpoints, anew: bool) -> Result<HashMap<IpAddr, RouteTo>> {
        let mut router = Router::new()?;
        let mut paths = HashMap::new();
        for (_, address, _) in endpoints.iter() {
            let Entry::Vacant(entry) = paths.entry(address.ip()) else { continue };
            if let Some(known) = self.paths.get(entry.key()).filter(|_| !anew) {
                entry.insert(*known);
                continue;
            }
            match router.route_to(address.ip()).await {
                Ok(path) => drop(entry.insert(path)),
                Err(error) => log::warn!("asking for the route to {}: {error:#}", address.ip()),
            }
        }
        Ok(paths)
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
        // Also those that the operator has drained, and may want back.
        let active = endpoints.iter().filter(|(.., member)| member.removed.is_none());
        let active: BTreeSet<SocketAddr> = active.map(|(_, address, _)| address).collect();
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

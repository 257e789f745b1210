//! Endpoints from sources that tell by themselves: each is a task that reports whole sets of endpoints, or why it cannot.
//!
//! `state` decides what a report means. The last good endpoints are kept in `endpoints.json` of the state directory, by the
//! cluster's name: `{source, endpoints: [{address, weight, priority, node, zone,
//! ready, probe: {port, address, host, skip}}]}`.

mod state;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::sleep;

use self::state::{State, Step};
use super::resolver::Resolver;
use super::saved::{self, Saver};
use super::{ClusterDiscovery, RefreshCounts, Update, file, kubernetes, phase, srv};
use crate::model::{Cluster, Discovery, Endpoint, KubernetesPort, ProbePlace};

const FILE: &str = "endpoints.json";
/// Reports that wait to be absorbed; a source waits, too, when there are more.
const WAITING: usize = 64;
/// Clusters that are remembered after they were taken out.
const MAX_PARKED: usize = 64;
/// Until a source that broke off by an error of its own is started again.
const RESTART: Duration = Duration::from_secs(5);

/// What a source of endpoints has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Endpoints {
        /// All that there are now.
        endpoints: Vec<Endpoint>,
        /// Why those that are not among them any more have left, where there is something to say.
        left: BTreeMap<SocketAddr, String>,
        /// Where these are, for events: `in FILE`.
        why: String,
    },
    /// The source could not be asked, or what it says is no good. The last good endpoints are kept.
    Failed(String),
}

/// By which a source reports.
#[derive(Clone)]
pub(super) struct Feed {
    /// Tells it from others that the cluster had before.
    id: u64,
    cluster: Arc<str>,
    reports: mpsc::Sender<(u64, Arc<str>, Report)>,
}

impl Feed {
    /// One by itself, and what is told by it.
    #[cfg(test)]
    pub(super) fn alone() -> (Self, mpsc::Receiver<(u64, Arc<str>, Report)>) {
        let (reports, receiver) = mpsc::channel(1);
        (Self { id: 0, cluster: "c".into(), reports }, receiver)
    }

    pub(super) async fn tell(&self, report: Report) {
        // Nobody listens any more when the agent ends.
        let _ = self.reports.send((self.id, Arc::clone(&self.cluster), report)).await;
    }
}

/// The clusters that have such a source.
pub(super) struct Feeds {
    clusters: BTreeMap<String, Fed>,
    next_id: u64,
    sources: JoinSet<()>,
    /// Whose source a task is. A task that is not in here any more counts for nothing.
    tasks: HashMap<Id, String>,
    reports: mpsc::Receiver<(u64, Arc<str>, Report)>,
    report_to: mpsc::Sender<(u64, Arc<str>, Report)>,
    updates: VecDeque<Update>,
    state_dir: Option<PathBuf>,
    saver: Option<Saver<Saved>>,
    resolver: Arc<Resolver>,
    /// Of an earlier run or of clusters that were taken out, and where that is from.
    saved: BTreeMap<String, (SavedCluster, String)>,
    started: Instant,
}

struct Fed {
    /// Where from.
    settings: Discovery,
    /// Whose the endpoints are, until another source has answered.
    source: String,
    id: u64,
    task: AbortHandle,
    state: State,
    counts: RefreshCounts,
    settled: bool,
}

type Saved = BTreeMap<String, SavedCluster>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SavedCluster {
    /// Endpoints of another source are none of this one's.
    source: String,
    endpoints: Vec<SavedEndpoint>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedEndpoint {
    address: SocketAddr,
    weight: u32,
    priority: u32,
    node: Option<String>,
    zone: Option<String>,
    ready: bool,
    probe: SavedProbe,
}

/// See [`ProbePlace`].
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedProbe {
    port: Option<u16>,
    address: Option<IpAddr>,
    host: Option<String>,
    skip: bool,
}

impl Feeds {
    /// Keeps the last good endpoints in `state_dir`.
    pub(super) fn new(resolver: Arc<Resolver>, state_dir: Option<PathBuf>) -> Self {
        let (report_to, reports) = mpsc::channel(WAITING);
        let loaded = state_dir.as_deref().and_then(|dir| saved::load::<Saved>(dir, FILE));
        let (clusters, origin) = loaded.unwrap_or_default();
        let saved = clusters.into_iter().map(|(name, cluster)| (name, (cluster, origin.clone())));
        Self {
            clusters: BTreeMap::new(),
            next_id: 0,
            sources: JoinSet::new(),
            tasks: HashMap::new(),
            reports,
            report_to,
            updates: VecDeque::new(),
            saver: None,
            resolver,
            saved: saved.collect(),
            state_dir,
            started: Instant::now(),
        }
    }

    /// See [`Discovery::apply`](super::Discovery::apply).
    pub(super) fn apply(&mut self, clusters: &[Cluster]) {
        let wanted: BTreeMap<&str, &Discovery> = clusters
            .iter()
            .filter(|cluster| source_of(&cluster.discovery).is_some())
            .map(|cluster| (cluster.name.as_str(), &cluster.discovery))
            .collect();
        let removed: Vec<String> =
            self.clusters.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
        for name in removed {
            let Some(fed) = self.clusters.remove(&name) else { continue };
            fed.task.abort();
            self.tasks.remove(&fed.task.id());
            while self.saved.len() >= MAX_PARKED {
                self.saved.pop_first();
            }
            let origin = format!("the last known of cluster {name}");
            self.saved.insert(name, (fed.to_save(), origin));
        }
        for (name, settings) in wanted {
            match self.clusters.get(name) {
                Some(fed) if fed.settings == *settings => {}
                // What was known stays until the other source has answered.
                Some(_) => self.start(name, settings),
                None => self.add(name, settings),
            }
        }
    }

    fn add(&mut self, name: &str, settings: &Discovery) {
        let mut state = State::new();
        let known = self.saved.remove(name);
        let known = known.filter(|(saved, _)| Some(&saved.source) == source_of(settings).as_ref());
        if let Some((saved, origin)) = known {
            let endpoints = saved.endpoints.into_iter().map(Endpoint::from).collect();
            let step = state.restore(endpoints, origin);
            self.tell(name, step, false);
        }
        let (id, task) = self.spawn(name, settings, Duration::ZERO);
        let fed = Fed {
            settings: settings.clone(),
            source: source_of(settings).unwrap_or_default(),
            id,
            task,
            state,
            counts: RefreshCounts::default(),
            settled: false,
        };
        self.clusters.insert(name.to_owned(), fed);
    }

    /// Another source for a cluster that is watched.
    fn start(&mut self, name: &str, settings: &Discovery) {
        let (id, task) = self.spawn(name, settings, Duration::ZERO);
        let Some(fed) = self.clusters.get_mut(name) else { return };
        let old = std::mem::replace(&mut fed.task, task);
        (fed.settings, fed.id, fed.settled) = (settings.clone(), id, false);
        old.abort();
        self.tasks.remove(&old.id());
    }

    fn spawn(&mut self, name: &str, settings: &Discovery, wait: Duration) -> (u64, AbortHandle) {
        self.next_id += 1;
        let feed = Feed { id: self.next_id, cluster: name.into(), reports: self.report_to.clone() };
        let (settings, resolver) = (settings.clone(), Arc::clone(&self.resolver));
        let task = self.sources.spawn(async move {
            sleep(wait).await;
            run(settings, resolver, feed).await;
        });
        self.tasks.insert(task.id(), name.to_owned());
        (self.next_id, task)
    }

    /// See [`Discovery::changed`](super::Discovery::changed).
    pub(super) async fn changed(&mut self) -> Update {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return update;
            }
            tokio::select! {
                Some((id, cluster, report)) = self.reports.recv() => self.absorb(id, &cluster, report),
                Some(ended) = self.sources.join_next_with_id() => {
                    let task = ended.map_or_else(|error| error.id(), |(task, ())| task);
                    self.restart(task);
                }
            }
        }
    }

    fn absorb(&mut self, id: u64, cluster: &str, report: Report) {
        let Some(fed) = self.clusters.get_mut(cluster).filter(|fed| fed.id == id) else { return };
        let counts = &mut fed.counts;
        counts.attempts += 1;
        match &report {
            Report::Endpoints { endpoints, .. } => {
                fed.source = source_of(&fed.settings).unwrap_or_default();
                counts.answered += 1;
                counts.empty += u64::from(endpoints.is_empty());
            }
            Report::Failed(_) => counts.failed += 1,
        }
        let step = fed.state.absorb(self.started.elapsed(), report);
        fed.counts.unchanged += u64::from(!step.endpoints_changed);
        let first = !std::mem::replace(&mut fed.settled, true);
        let save = step.endpoints_changed;
        self.tell(cluster, step, first);
        if save {
            self.save();
        }
    }

    /// A source has ended that should never.
    fn restart(&mut self, task: Id) {
        let Some(name) = self.tasks.remove(&task) else { return };
        let Some((id, settings)) = self.clusters.get(&name).map(|fed| (fed.id, fed.settings.clone())) else {
            return;
        };
        self.absorb(id, &name, Report::Failed("its source broke off by an error of its own".to_owned()));
        let (id, task) = self.spawn(&name, &settings, RESTART);
        if let Some(fed) = self.clusters.get_mut(&name) {
            (fed.id, fed.task) = (id, task);
        }
    }

    fn tell(&mut self, cluster: &str, step: Step, first: bool) {
        if step.transitions.is_empty() && !step.endpoints_changed && !first {
            return;
        }
        let events = phase::events(cluster, step.transitions);
        let update =
            Update { cluster: cluster.to_owned(), endpoints_changed: step.endpoints_changed, events };
        self.updates.push_back(update);
    }

    fn save(&mut self) {
        let Some(dir) = &self.state_dir else { return };
        let saver = self.saver.get_or_insert_with(|| Saver::start(dir.clone(), FILE));
        saver.save(self.clusters.iter().map(|(name, fed)| (name.clone(), fed.to_save())).collect());
    }

    pub(super) fn endpoints(&self, cluster: &str) -> Option<&[Endpoint]> {
        let state = &self.clusters.get(cluster)?.state;
        state.is_known().then(|| state.endpoints())
    }

    /// See [`Discovery::leaving`](super::Discovery::leaving).
    pub(super) fn leaving(&self, cluster: &str) -> impl Iterator<Item = SocketAddr> {
        // SRV records are there or not, and say no more.
        let fed = self.clusters.get(cluster).filter(|fed| !matches!(fed.settings, Discovery::Srv(_)));
        fed.into_iter().flat_map(|fed| fed.state.left.iter().copied())
    }

    pub(super) fn status(&self, cluster: &str) -> Option<ClusterDiscovery> {
        let state = &self.clusters.get(cluster)?.state;
        let (phase, why) = state.phase();
        Some(ClusterDiscovery {
            state: phase.as_str(),
            why: why.to_owned(),
            last_answer_age_s: state
                .last_answer
                .map(|at| self.started.elapsed().saturating_sub(at).as_secs()),
            next_refresh_s: None,
            last_failure: state.last_failure.clone(),
        })
    }

    pub(super) fn counts(&self, cluster: &str) -> Option<RefreshCounts> {
        Some(self.clusters.get(cluster)?.counts)
    }

    pub(super) fn unsettled(&self) -> usize {
        self.clusters.values().filter(|fed| !fed.settled).count()
    }
}

impl Fed {
    fn to_save(&self) -> SavedCluster {
        let endpoints = self.state.endpoints().iter().map(SavedEndpoint::from).collect();
        SavedCluster { source: self.source.clone(), endpoints }
    }
}

impl From<&Endpoint> for SavedEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.address,
            weight: endpoint.weight,
            priority: endpoint.priority,
            node: endpoint.node.as_deref().map(str::to_owned),
            zone: endpoint.zone.as_deref().map(str::to_owned),
            ready: endpoint.ready,
            probe: SavedProbe {
                port: endpoint.probe.port,
                address: endpoint.probe.address,
                host: endpoint.probe.host.as_deref().map(str::to_owned),
                skip: endpoint.probe.skip,
            },
        }
    }
}

impl From<SavedEndpoint> for Endpoint {
    fn from(saved: SavedEndpoint) -> Self {
        Self {
            priority: saved.priority,
            node: saved.node.map(Arc::from),
            zone: saved.zone.map(Arc::from),
            ready: saved.ready,
            probe: ProbePlace {
                port: saved.probe.port,
                address: saved.probe.address,
                host: saved.probe.host.map(Arc::from),
                skip: saved.probe.skip,
            },
            ..Self::new(saved.address, saved.weight.clamp(1, 256))
        }
    }
}

/// The name of a source, for people and to tell it from others; `None`: it is none of these.
fn source_of(discovery: &Discovery) -> Option<String> {
    match discovery {
        Discovery::Static(_) | Discovery::StrictDns(_) => None,
        Discovery::Srv(srv) => Some(format!("srv {}", srv.name)),
        Discovery::Kubernetes(of) => {
            let port = match &of.port {
                None => String::new(),
                Some(KubernetesPort::Name(name)) => format!(", port {name}"),
                Some(KubernetesPort::Number(number)) => format!(", port {number}"),
            };
            let of_file = of.kubeconfig.as_ref().map(|path| format!(", by {}", path.display()));
            let context = of.context.as_ref().map(|name| format!(", context {name}"));
            let [of_file, context] = [of_file, context].map(Option::unwrap_or_default);
            Some(format!("Service {}/{}{port}{of_file}{context}", of.namespace, of.service))
        }
        Discovery::File(file) => Some(format!("file {}, {}", file.path.display(), file.cluster_name)),
    }
}

/// Watches a source for ever.
async fn run(settings: Discovery, resolver: Arc<Resolver>, feed: Feed) {
    match settings {
        Discovery::Static(_) | Discovery::StrictDns(_) => {}
        Discovery::Srv(settings) => srv::run(settings, resolver, feed).await,
        Discovery::Kubernetes(settings) => kubernetes::run(settings, feed).await,
        Discovery::File(settings) => file::run(settings, feed).await,
    }
}

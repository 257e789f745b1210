//! The health of endpoints, as probes and (in `outliers`) connections show it, and who gets new connections then.

mod outliers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::agent::Agent;
use crate::discovery::Event;
use crate::endpoints::{Choice, Health, Member, State};
use crate::health::outlier::Detector;
use crate::health::{Change, Check, Checker, Endpoint, Prober};
use crate::model::Cluster;

/// Changes that are followed in one go, so that the agent comes to other things.
const CHANGES: usize = 10_000;

/// What is known of the health of all clusters' endpoints, besides what stands with each.
pub(super) struct HealthSide {
    pub(super) checker: Checker,
    pub(super) clusters: BTreeMap<String, ClusterHealth>,
    /// When failures were judged last.
    judged: Instant,
    random: fastrand::Rng,
}

/// Failed and successful attempts of endpoints.
type Totals = HashMap<SocketAddr, (u64, u64)>;

/// Of one cluster.
#[derive(Default)]
pub(super) struct ClusterHealth {
    pub(super) detector: Detector<SocketAddr>,
    /// Levels of priority in panic.
    pub(super) panic: Vec<u32>,
    /// Connections go past the first level of priority, or past the endpoints of this node.
    pub(super) spilling: bool,
    /// Attempts of the cluster before there was one, and those that were made in such times before.
    pub(super) total_before_panic: Option<u64>,
    pub(super) chosen_in_panic: u64,
    /// When weights change next.
    again: Option<Instant>,
    /// How its endpoints are asked.
    check: Option<Arc<Check>>,
    /// It has had a connection.
    traffic: Arc<AtomicBool>,
    /// Endpoints that could not be ejected, since too many are, and when that was told.
    overflow: HashMap<SocketAddr, Instant>,
    /// Failed and successful attempts of each endpoint so far, and as of when.
    totals: Option<(Instant, Totals)>,
}

impl HealthSide {
    pub(super) fn new() -> Self {
        Self {
            checker: Checker::new(),
            clusters: BTreeMap::new(),
            judged: Instant::now(),
            random: fastrand::Rng::new(),
        }
    }
}

impl ClusterHealth {
    /// Has the cluster's check be that of its configuration; one that stays the same stays what it is, with the certificates that
    /// it has read.
    fn set_check(&mut self, cluster: &Cluster) {
        let Some(check) = &cluster.health_check else {
            self.check = None;
            return;
        };
        if self.check.as_ref().is_some_and(|of| of.check == *check) {
            return;
        }
        match Prober::new(&check.probe) {
            Ok(prober) => {
                self.check = Some(Arc::new(Check {
                    cluster: cluster.name.as_str().into(),
                    version: self.check.as_ref().map_or(0, |of| of.version + 1),
                    check: check.clone(),
                    prober,
                    traffic: Arc::clone(&self.traffic),
                }));
            }
            // It was good when the file was read.
            Err(error) => log::error!("the health check of cluster {}: {error:#}", cluster.name),
        }
    }
}

impl Agent {
    /// Has the endpoints of a cluster asked and judged as its configuration says.
    pub(super) fn watch_health(&mut self, cluster: &Cluster) {
        let of = self.health.clusters.entry(cluster.name.clone()).or_default();
        let members = || self.endpoints.of(&cluster.name).filter(|(_, member)| member.removed.is_none());
        if cluster.outlier.is_some() {
            of.detector.set(members().map(|(address, _)| address));
        }
        of.set_check(cluster);
        let Some(check) = &of.check else {
            self.health.checker.forget(&cluster.name);
            return;
        };
        let sources = self.config.datapath.snat_addresses.as_deref().unwrap_or_default();
        let asked = members().filter(|(_, member)| member.health != Health::Unchecked);
        let endpoints = asked.map(|(address, Member { endpoint, id, health, ejected, .. })| {
            let place = &endpoint.probe;
            let ip: IpAddr = place.address.unwrap_or_else(|| address.ip());
            let port = place.port.or(check.check.port).unwrap_or_else(|| address.port());
            Endpoint {
                address,
                id: *id,
                at: SocketAddr::new(ip, port),
                host: place.host.clone(),
                source: sources.iter().find(|of| of.is_ipv4() == ip.is_ipv4()).copied(),
                adopted: match health {
                    Health::Passing => Some(true),
                    Health::Failing { .. } => Some(false),
                    Health::Pending | Health::Unchecked => None,
                },
                tell_of_successes: ejected.is_some(),
            }
        });
        self.health.checker.set(check, endpoints.collect());
    }

    /// Forgets clusters that are not in the configuration any more.
    pub(super) fn forget_health(&mut self) {
        let (config, checker) = (&self.config, &self.health.checker);
        self.health.clusters.retain(|name, _| {
            let stays = config.cluster(name).is_some();
            if !stays {
                checker.forget(name);
            }
            stays
        });
    }

    /// Probes have something to tell: this, and what else there is by now.
    pub(super) fn health_changed(&mut self, change: Change) {
        let mut clusters: BTreeMap<Arc<str>, Cluster> = BTreeMap::new();
        let mut left = BTreeSet::new();
        let mut events: BTreeMap<Arc<str>, Vec<Event>> = BTreeMap::new();
        let mut changes = vec![change];
        while changes.len() < CHANGES
            && let Some(change) = self.health.checker.try_changed()
        {
            changes.push(change);
        }
        for change in changes {
            if !clusters.contains_key(&change.cluster)
                && let Some(cluster) = self.configured(&change.cluster)
            {
                clusters.insert(Arc::clone(&change.cluster), cluster.clone());
            }
            if let Some(cluster) = clusters.get(&change.cluster)
                && self.note_health(&change, cluster, events.entry(Arc::clone(&change.cluster)).or_default())
            {
                left.insert(Arc::clone(&change.cluster));
            }
        }
        for (name, events) in events {
            self.events.add_all(&name, events);
        }
        for (name, cluster) in &clusters {
            if left.contains(name) {
                self.watch_health(cluster);
            }
            self.choose(cluster);
        }
    }

    /// Whether an endpoint leaves.
    fn note_health(&mut self, change: &Change, cluster: &Cluster, events: &mut Vec<Event>) -> bool {
        let now = Instant::now();
        let Some(of) = self.health.clusters.get_mut(&cluster.name) else { return false };
        let Some(member) = self.endpoints.get_mut(&cluster.name, change.endpoint) else { return false };
        // Of another endpoint that had the address, or by another check.
        let version = of.check.as_ref().map(|check| check.version);
        if (member.id, version) != (change.id, Some(change.version)) || member.health == Health::Unchecked {
            return false;
        }
        let before = member.state();
        let health =
            if change.healthy { Health::Passing } else { Health::Failing { timeout: change.timeout } };
        if member.set_health(health, &change.why, cluster, now) {
            let (from, to) = (before.name(), member.state().name());
            events.push(Event::now(&cluster.name, Some(change.endpoint), from, to, &member.why));
        }
        if change.healthy
            && let Some(outlier) = &cluster.outlier
            && let Some(returned) = of.detector.probe_succeeded(&change.endpoint, now, outlier)
        {
            self.follow_outlier(cluster, returned, now);
        }
        let leaves = self.endpoints.let_go(cluster, change.endpoint, now);
        if leaves {
            let why = "it has left discovery, and its health check does not pass any more";
            let (from, to) = (State::Unhealthy.name(), State::Draining.name());
            events.push(Event::now(&cluster.name, Some(change.endpoint), from, to, why));
        }
        leaves
    }

    /// Reads again what probes are made of, such as certificates.
    pub(super) fn renew_probers(&mut self) {
        for cluster in self.config.clusters.clone() {
            let of = self.health.clusters.entry(cluster.name.clone()).or_default();
            if let Some(check) = &of.check
                && let Ok(prober) = Prober::new(&check.check.probe)
            {
                let Check { cluster, version, check, traffic, .. } = &**check;
                of.check = Some(Arc::new(Check {
                    cluster: Arc::clone(cluster),
                    version: *version,
                    check: check.clone(),
                    prober,
                    traffic: Arc::clone(traffic),
                }));
            }
            self.watch_health(&cluster);
        }
    }

    /// A cluster, be it of the configuration that is about to be in force.
    fn configured(&self, name: &str) -> Option<&Cluster> {
        self.config.cluster(name).or_else(|| self.coming.iter().find(|cluster| cluster.name == name))
    }

    /// Decides anew who of a cluster gets new connections, and has proxy and kernel follow.
    pub(super) fn choose(&mut self, cluster: &Cluster) {
        let choice = self.endpoints.choose(cluster, &self.options.locality, Instant::now());
        if choice.changed {
            if let Some(kernel) = &mut self.kernel
                && let Err(error) =
                    kernel.update_choice(&self.config, cluster, &self.endpoints, &self.network)
            {
                log::error!("following a change of cluster {}: {error:#}", cluster.name);
            }
            if let Some(balancer) = self.balancers.get(&cluster.name) {
                balancer.update(cluster, &self.endpoints);
            }
        }
        self.chosen(cluster, choice);
    }

    /// Notes what a choice came to.
    pub(super) fn chosen(&mut self, cluster: &Cluster, choice: Choice) {
        let of = self.health.clusters.entry(cluster.name.clone()).or_default();
        of.again = choice.again.map(|again| Instant::now() + again);
        (of.panic, of.spilling) = (choice.panic, choice.spilling);
        // Before it serves nobody knows of anything that is healthy.
        if self.ready_after.is_some() {
            self.tell_of_panic(cluster);
        }
    }

    /// Notes and logs where panic begins or ends.
    pub(super) fn tell_of_panic(&mut self, cluster: &Cluster) {
        let Some(of) = self.health.clusters.get(&cluster.name) else { return };
        let is_in_panic = !of.panic.is_empty();
        let members =
            self.endpoints.of(&cluster.name).filter(|(_, member)| member.state() != State::Draining);
        let known: Vec<_> = members.filter(|(_, member)| member.health != Health::Pending).collect();
        // That nothing is known yet is none.
        if of.total_before_panic.is_some() == is_in_panic || is_in_panic && known.is_empty() {
            return;
        }
        let healthy = known.iter().filter(|(_, member)| member.state() == State::Healthy).count();
        let all = known.len();
        let total = self.attempts(&cluster.name);
        if let Some(of) = self.health.clusters.get_mut(&cluster.name) {
            if let Some(before) = of.total_before_panic.take() {
                of.chosen_in_panic += total.saturating_sub(before);
            }
            of.total_before_panic = is_in_panic.then_some(total);
        }
        let (from, to, what) = if is_in_panic {
            ("balanced", "panic", "less than panic_threshold: all are used, whatever their health")
        } else {
            ("panic", "balanced", "only these are used again")
        };
        let why = format!("{healthy} of {all} endpoints are healthy: {what}");
        let event = Event::now(&cluster.name, None, from, to, &why);
        log::warn!("{event}");
        self.events.keep(event);
    }

    /// Whether an endpoint has not been asked yet that is to be.
    pub(super) fn is_health_pending(&self) -> bool {
        self.endpoints.iter().any(|(.., member)| member.health == Health::Pending && member.removed.is_none())
    }
}

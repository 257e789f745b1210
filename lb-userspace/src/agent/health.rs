//! The health of endpoints, as probes and connections show it, and who gets new connections then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::agent::kernel_side::KernelSide;
use crate::balancer::ClusterBalancer;
use crate::discovery::Event;
use crate::endpoints::{Choice, Health, Member, State};
use crate::health::outlier::{Cause, Change as OutlierChange, Detector, ReturnedBy, Seen};
use crate::health::{Change, Checker, Endpoint};
use crate::model::{Cluster, Outlier};

/// How often the failures of connections are judged.
const JUDGING: Duration = Duration::from_millis(100);
/// How old the numbers may be that success rates are made of.
const RATES: Duration = Duration::from_secs(1);

/// What is known of the health of all clusters' endpoints, besides what stands with each.
pub(super) struct HealthSide {
    pub(super) checker: Checker,
    pub(super) clusters: BTreeMap<String, ClusterHealth>,
    /// When failures were judged last.
    judged: Instant,
    random: fastrand::Rng,
}

/// Of one cluster.
#[derive(Default)]
pub(super) struct ClusterHealth {
    pub(super) detector: Detector<SocketAddr>,
    /// Levels of priority in panic.
    pub(super) panic: Vec<u32>,
    /// Attempts of the cluster before there was one, and those that were made in such times before.
    pub(super) total_before_panic: Option<u64>,
    pub(super) chosen_in_panic: u64,
    /// When weights change next.
    again: Option<Instant>,
    /// It has had a connection.
    traffic: Arc<AtomicBool>,
    /// Failed and successful attempts of each endpoint so far, and as of when.
    totals: Option<(Instant, HashMap<SocketAddr, (u64, u64)>)>,
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
    /// Whether the numbers that rates are made of are to be read. It takes system calls, hence not at each look.
    fn wants_totals(&mut self, outlier: &Outlier, now: Instant) -> bool {
        if outlier.success_rate.is_none() && outlier.failure_percentage.is_none() {
            self.totals = None;
            return false;
        }
        self.totals.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= RATES)
    }

    /// Judges the endpoints.
    fn look(
        &mut self,
        outlier: &Outlier,
        balancer: &ClusterBalancer,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> Vec<OutlierChange<SocketAddr>> {
        let (attempts, totals) = (balancer.attempts(), self.totals.as_ref().map(|(_, totals)| totals));
        if self.detector.is_at_rest(now, outlier) && !attempts.any_failing() {
            return Vec::new();
        }
        let seen = |address: &SocketAddr| {
            let (failed, succeeded) =
                totals.and_then(|totals| totals.get(address)).copied().unwrap_or_default();
            Seen { consecutive: attempts.failing(*address), failed, succeeded }
        };
        self.detector.look(now, outlier, seen, random)
    }
}

/// Attempts to connect to an endpoint so far: those that failed, and those that did not.
fn totals(
    kernel: Option<&KernelSide>,
    balancer: &ClusterBalancer,
    cluster: &str,
    address: SocketAddr,
) -> (u64, u64) {
    let proxied = balancer.backend(address).map(|backend| backend.totals()).unwrap_or_default();
    let (mut failed, mut succeeded) = (proxied.connect_failures, proxied.connections);
    if let Some(kernel) = kernel
        && let Some(index) = kernel.backend_index(cluster, address)
        && let Ok((opened, failures)) = kernel.of_backend(index)
    {
        succeeded += opened.xdp + opened.tc;
        failed += failures.refused + failures.unanswered;
    }
    (failed, succeeded)
}

impl Agent {
    /// Has the endpoints of a cluster asked and judged as its configuration says.
    pub(super) fn watch_health(&mut self, cluster: &Cluster) {
        let of = self.health.clusters.entry(cluster.name.clone()).or_default();
        let members = || self.endpoints.of(&cluster.name).filter(|(_, member)| member.removed.is_none());
        if cluster.outlier.is_some() {
            of.detector.set(members().map(|(address, _)| address));
        }
        let Some(check) = &cluster.health_check else {
            self.health.checker.forget(&cluster.name);
            return;
        };
        let sources = self.config.datapath.snat_addresses.as_deref().unwrap_or_default();
        let endpoints = members().filter(|(_, member)| member.health != Health::Unchecked).map(
            |(address, Member { endpoint, health, .. })| {
                let place = &endpoint.probe;
                let ip: IpAddr = place.address.unwrap_or(address.ip());
                let port = place.port.or(check.port).unwrap_or(address.port());
                Endpoint {
                    address,
                    at: SocketAddr::new(ip, port),
                    host: place.host.clone(),
                    source: sources.iter().find(|of| of.is_ipv4() == ip.is_ipv4()).copied(),
                    adopted: (*health == Health::Passing).then_some(true),
                }
            },
        );
        if let Err(error) = self.health.checker.set(&cluster.name, check, &of.traffic, endpoints.collect()) {
            log::error!("the health check of cluster {}: {error:#}", cluster.name);
        }
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

    /// A probe has something to tell. Whatever others have told by now is followed with it: each cluster has one choice.
    pub(super) fn health_changed(&mut self, change: Change) {
        let mut clusters = BTreeSet::new();
        let mut next = Some(change);
        while let Some(change) = next {
            if self.note_health(&change) {
                clusters.insert(change.cluster);
            }
            next = self.health.checker.try_changed();
        }
        for name in clusters {
            if let Some(cluster) = self.config.cluster(&name).cloned() {
                self.choose(&cluster);
            }
        }
    }

    /// Whether a choice is to follow.
    fn note_health(&mut self, change: &Change) -> bool {
        let now = Instant::now();
        let Some(cluster) = self.config.cluster(&change.cluster).cloned() else { return false };
        let Some(member) = self.endpoints.get_mut(&cluster.name, change.endpoint) else { return false };
        if member.health == Health::Unchecked {
            return false;
        }
        let before = member.state();
        let health =
            if change.healthy { Health::Passing } else { Health::Failing { timeout: change.timeout } };
        member.set_health(health, &change.why, &cluster, now);
        self.tell_transition(&cluster.name, change.endpoint, before, &change.why);
        if self.endpoints.let_go(&cluster, change.endpoint, now) {
            let why = "it has left discovery, and its health check does not pass any more";
            self.events.endpoint(
                &cluster.name,
                change.endpoint,
                State::Unhealthy.name(),
                State::Draining.name(),
                why,
            );
        }
        if change.healthy
            && let (Some(outlier), Some(of)) = (&cluster.outlier, self.health.clusters.get_mut(&cluster.name))
            && let Some(returned) = of.detector.probe_succeeded(&change.endpoint, now, outlier)
        {
            self.follow_outlier(&cluster, returned, now);
        }
        true
    }

    /// Notes and logs that an endpoint has another state than before.
    fn tell_transition(&mut self, cluster: &str, endpoint: SocketAddr, before: State, why: &str) {
        let Some(member) = self.endpoints.get(cluster, endpoint) else { return };
        if member.state() != before {
            self.events.endpoint(cluster, endpoint, before.name(), member.state().name(), why);
        }
    }

    /// Judges endpoints by what has become of connections to them, and follows slow starts.
    pub(super) fn judge(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.health.judged) < JUDGING {
            return;
        }
        self.health.judged = now;
        let mut found = Vec::new();
        let HealthSide { clusters, random, .. } = &mut self.health;
        for cluster in &self.config.clusters {
            let Some(balancer) = self.balancers.get(&cluster.name) else { continue };
            let Some(of) = clusters.get_mut(&cluster.name) else { continue };
            if !of.traffic.load(Relaxed) && balancer.open_connections() > 0 {
                of.traffic.store(true, Relaxed);
            }
            let changes = match &cluster.outlier {
                Some(outlier) => {
                    if of.wants_totals(outlier, now) {
                        let all = self.endpoints.of(&cluster.name).map(|(address, _)| address);
                        let totals =
                            all.map(|of| (of, totals(self.kernel.as_ref(), balancer, &cluster.name, of)));
                        of.totals = Some((now, totals.collect()));
                    }
                    of.look(outlier, balancer, now, random)
                }
                None => of.detector.clear(),
            };
            let due = of.again.is_some_and(|again| now >= again);
            if due || !changes.is_empty() {
                found.push((cluster.clone(), changes));
            }
        }
        for (cluster, changes) in found {
            for change in changes {
                self.follow_outlier(&cluster, change, now);
            }
            self.choose(&cluster);
        }
    }

    fn follow_outlier(&mut self, cluster: &Cluster, change: OutlierChange<SocketAddr>, now: Instant) {
        let (address, ejected, why) = match change {
            OutlierChange::Ejected { key, cause, until, times } => {
                let time = until.saturating_duration_since(now);
                let time = humantime::format_duration(Duration::from_millis(time.as_millis() as u64));
                let again = if times > 1 { format!(", the {times}th time in a row") } else { String::new() };
                (key, true, format!("{}: left out for {time}{again}", said(&cause)))
            }
            OutlierChange::Returned { key, why } => {
                let why = match why {
                    ReturnedBy::Time => "its ejection is over",
                    ReturnedBy::Probe => "its health check passes",
                    ReturnedBy::TurnedOff => "outlier detection was turned off",
                };
                (key, false, why.to_owned())
            }
            OutlierChange::Overflow { key, cause } => {
                let percent = cluster.outlier.as_ref().map_or(0, |outlier| outlier.max_ejection_percent);
                let why = format!(
                    "{}: not left out, since no more than {percent} % of the endpoints may be \
                     (outlier.max_ejection_percent)",
                    said(&cause)
                );
                let state =
                    self.endpoints.get(&cluster.name, key).map_or("-", |member| member.state().name());
                return self.events.endpoint(&cluster.name, key, state, state, &why);
            }
            OutlierChange::NotEnforced { .. } => return,
        };
        let Some(member) = self.endpoints.get_mut(&cluster.name, address) else { return };
        let before = member.state();
        member.set_ejected(ejected, &why, cluster, now);
        self.health.checker.tell_of_successes(&cluster.name, address, ejected);
        self.tell_transition(&cluster.name, address, before, &why);
    }

    /// Decides anew who of a cluster gets new connections, and has proxy and kernel follow.
    pub(super) fn choose(&mut self, cluster: &Cluster) {
        let choice = self.endpoints.choose(cluster, self.options.node.as_deref(), Instant::now());
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
        let was = std::mem::replace(&mut of.panic, choice.panic);
        let is_in_panic = !of.panic.is_empty();
        // Before it serves nobody knows of anything that is healthy.
        if was.is_empty() != is_in_panic || self.ready_after.is_none() {
            return;
        }
        let total = self.attempts(&cluster.name);
        if let Some(of) = self.health.clusters.get_mut(&cluster.name) {
            if let Some(before) = of.total_before_panic.take() {
                of.chosen_in_panic += total.saturating_sub(before);
            }
            of.total_before_panic = is_in_panic.then_some(total);
        }
        let members =
            self.endpoints.of(&cluster.name).filter(|(_, member)| member.state() != State::Draining);
        let (healthy, all) = members.fold((0u32, 0u32), |(healthy, all), (_, member)| {
            (healthy + u32::from(member.state() == State::Healthy), all + 1)
        });
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

fn said(cause: &Cause) -> String {
    match cause {
        Cause::ConsecutiveFailures(count) => {
            format!("{count} attempts to connect to it in a row have failed")
        }
        Cause::SuccessRate { percent, threshold } => {
            format!("{percent:.0} % of the attempts to connect to it succeed, less than {threshold:.0} %")
        }
        Cause::FailurePercentage { percent } => {
            format!("{percent:.0} % of the attempts to connect to it fail")
        }
    }
}

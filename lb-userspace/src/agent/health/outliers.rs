//! Endpoints that connections cannot be made to: they are left out for a while.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::agent::health::{ClusterHealth, HealthSide};
use crate::agent::kernel_side::KernelSide;
use crate::balancer::ClusterBalancer;
use crate::health::outlier::{Cause, Change as OutlierChange, ReturnedBy, Seen};
use crate::model::{Cluster, Outlier};

/// How often the failures of connections are judged.
const JUDGING: Duration = Duration::from_millis(100);
/// How old the numbers may be that success rates are made of.
const RATES: Duration = Duration::from_secs(1);
/// An endpoint that cannot be ejected, since too many are, is told of again after this long.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

impl ClusterHealth {
    /// Whether the numbers that rates are made of are to be read. It takes system calls, hence not at each look.
    fn wants_totals(&mut self, outlier: &Outlier, now: Instant) -> bool {
        if outlier.success_rate.is_none() && outlier.failure_percentage.is_none() {
            self.totals = None;
            return false;
        }
        self.totals.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= RATES)
    }

    /// Whether a change is to be followed: the same could be said ten times a second of an endpoint that must not be ejected.
    fn is_news(&mut self, change: &OutlierChange<SocketAddr>, now: Instant) -> bool {
        let OutlierChange::Overflow { key, .. } = change else { return true };
        self.overflow.retain(|_, told| now.saturating_duration_since(*told) < TOLD_AGAIN);
        self.overflow.insert(*key, now).is_none()
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
    /// Judges endpoints by what has become of connections to them, and follows slow starts.
    pub(in crate::agent) fn judge(&mut self) {
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
            if !of.traffic.load(Relaxed) && self.connections.has_had_any(&cluster.name, balancer) {
                of.traffic.store(true, Relaxed);
            }
            let changes = match &cluster.outlier {
                Some(outlier) => {
                    if of.wants_totals(outlier, now) {
                        let all = self.endpoints.of(&cluster.name).map(|(address, _)| address);
                        let totals =
                            all.map(|of| (of, totals(self.kernel.as_ref(), balancer, &cluster.name, of)));
                        let totals = totals.collect();
                        if of.totals.replace((now, totals)).is_none() {
                            // What was before them is nobody's fault now.
                            of.detector.restart_rates();
                        }
                    }
                    of.look(outlier, balancer, now, random)
                }
                None => of.detector.clear(),
            };
            let due = of.again.is_some_and(|again| now >= again);
            let changes: Vec<_> = changes.into_iter().filter(|change| of.is_news(change, now)).collect();
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

    pub(super) fn follow_outlier(
        &mut self,
        cluster: &Cluster,
        change: OutlierChange<SocketAddr>,
        now: Instant,
    ) {
        let (address, ejected, why) = match change {
            OutlierChange::Ejected { key, cause, until, times } => {
                let time = until.saturating_duration_since(now);
                let time = humantime::format_duration(Duration::from_millis(time.as_millis() as u64));
                let again =
                    if times > 1 { format!(", its ejection {times} in a row") } else { String::new() };
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
        if member.set_ejected(ejected, &why, cluster, now) {
            let state = member.state();
            self.events.endpoint(&cluster.name, address, before.name(), state.name(), &why);
        }
        self.health.checker.tell_of_successes(&cluster.name, address, ejected);
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

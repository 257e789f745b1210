//! One element of `clusters:`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::discovery;
use super::tree::{Entry, Located, Report};
use crate::model::{Cluster, Discovery, HealthCheck, LbPolicy, OnLeaving, Outlier, SlowStart};

/// Envoy's default.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const CONNECT_ATTEMPTS: u32 = 3;
/// Envoy's default, percent.
pub(super) const PANIC_THRESHOLD: u32 = 50;
/// Envoy's default, percent.
pub(super) const OVERPROVISIONING: u32 = 140;
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10 * 60);

const SUPPORTED: [&str; 11] = [
    "name",
    "discovery",
    "lb_policy",
    "connect_timeout",
    "connect_attempts",
    "max_connections",
    "stat_name",
    "slow_start",
    "on_removed",
    "on_unhealthy",
    "drain_timeout",
];
const LATER: [&str; 3] = ["health_check", "outlier", "panic_threshold"];

pub(super) const POLICIES: [(&str, LbPolicy); 5] = [
    ("round_robin", LbPolicy::RoundRobin),
    ("random", LbPolicy::Random),
    ("maglev", LbPolicy::Maglev),
    ("source_ip", LbPolicy::SourceIp),
    ("least_request", LbPolicy::LeastRequest),
];

/// Backends that one connection may try.
pub(super) const ATTEMPTS: RangeInclusive<u32> = 1..=16;

/// An element as far as it could be read: the name is known to the listeners even if the rest was refused.
#[derive(Default)]
pub(super) struct ClusterDraft {
    pub(super) name: Option<Located<String>>,
    pub(super) discovery: Option<Discovery>,
    pub(super) lb_policy: LbPolicy,
    pub(super) connect_timeout: Duration,
    pub(super) connect_attempts: u32,
    pub(super) max_connections: Option<u32>,
    pub(super) stat_name: Option<String>,
    pub(super) health_check: Option<HealthCheck>,
    pub(super) outlier: Option<Outlier>,
    pub(super) panic_threshold: u32,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) prefer_local_node: bool,
    pub(super) overprovisioning_percent: u32,
    pub(super) keep_while_healthy: bool,
    pub(super) on_removed: OnLeaving,
    pub(super) on_unhealthy: OnLeaving,
    pub(super) drain_timeout: Duration,
}

impl ClusterDraft {
    /// `None` if the name or the discovery was refused.
    pub(super) fn finish(self) -> Option<Cluster> {
        Some(Cluster {
            name: self.name?.value,
            discovery: self.discovery?,
            lb_policy: self.lb_policy,
            connect_timeout: self.connect_timeout,
            connect_attempts: self.connect_attempts,
            max_connections: self.max_connections,
            stat_name: self.stat_name,
            health_check: self.health_check,
            outlier: self.outlier,
            panic_threshold: self.panic_threshold,
            slow_start: self.slow_start,
            prefer_local_node: self.prefer_local_node,
            overprovisioning_percent: self.overprovisioning_percent,
            keep_while_healthy: self.keep_while_healthy,
            on_removed: self.on_removed,
            on_unhealthy: self.on_unhealthy,
            drain_timeout: self.drain_timeout,
        })
    }
}

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> ClusterDraft {
    let Some(fields) = entry.fields(&SUPPORTED, &LATER, report) else { return ClusterDraft::default() };
    if let Some(entry) = fields.get("slow_start")
        && entry.duration(report).is_some_and(|duration| !duration.is_zero())
    {
        entry.refuse("not supported yet; accepted: 0s", report);
    }
    if let Some(entry) = fields.get("on_removed") {
        entry.choice(&[("drain", ())], &["reset"], report);
    }
    if let Some(entry) = fields.get("on_unhealthy") {
        entry.choice(&[("keep", ())], &["reset"], report);
    }
    ClusterDraft {
        name: fields.require("name", "a name for the cluster", report).and_then(|entry| entry.name(report)),
        discovery: fields
            .require("discovery", "where the backends come from", report)
            .and_then(|entry| discovery::read(&entry, report)),
        lb_policy: fields
            .get("lb_policy")
            .and_then(|entry| entry.choice(&POLICIES, &[], report))
            .unwrap_or_default(),
        connect_timeout: fields
            .get("connect_timeout")
            .and_then(|entry| positive_duration(&entry, report))
            .unwrap_or(CONNECT_TIMEOUT),
        connect_attempts: fields
            .get("connect_attempts")
            .and_then(|entry| entry.number("", ATTEMPTS, report))
            .unwrap_or(CONNECT_ATTEMPTS),
        max_connections: fields
            .get("max_connections")
            .and_then(|entry| entry.number("0 (no limit), or ", 0..=u32::MAX, report))
            .filter(|limit| *limit > 0),
        stat_name: fields.get("stat_name").and_then(|entry| entry.stat_name(report)),
        health_check: None,
        outlier: None,
        panic_threshold: PANIC_THRESHOLD,
        slow_start: None,
        prefer_local_node: false,
        overprovisioning_percent: OVERPROVISIONING,
        keep_while_healthy: false,
        on_removed: OnLeaving::Drain,
        on_unhealthy: OnLeaving::Keep,
        drain_timeout: fields
            .get("drain_timeout")
            .and_then(|entry| entry.duration(report))
            .unwrap_or(DRAIN_TIMEOUT),
    }
}

fn positive_duration(entry: &Entry<'_>, report: &mut Report) -> Option<Duration> {
    let duration = entry.duration(report)?;
    if duration.is_zero() {
        entry.refuse("0s leaves no time to connect: write the time to wait for a backend, as in 5s", report);
        return None;
    }
    Some(duration)
}

//! One element of `clusters:`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::tree::{Entry, Fields, Located, Report};
use super::{discovery, health_check, outlier, slow_start};
use crate::model::{Cluster, Discovery, HealthCheck, LbPolicy, OnLeaving, Outlier, PreferLocal, SlowStart};

/// Envoy's default.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const CONNECT_ATTEMPTS: u32 = 3;
/// Envoy's default, percent.
pub(super) const PANIC_THRESHOLD: u32 = 50;
/// Envoy's default, percent.
pub(super) const OVERPROVISIONING: u32 = 140;
pub(super) const ON_REMOVED: OnLeaving = OnLeaving::Drain;
pub(super) const ON_UNHEALTHY: OnLeaving = OnLeaving::Keep;
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10 * 60);

const NO_TIME: &str = "leaves no time to connect: write the time to wait for a backend, as in 5s";

const KEYS: [&str; 17] = [
    "name",
    "discovery",
    "lb_policy",
    "connect_timeout",
    "connect_attempts",
    "max_connections",
    "stat_name",
    "health_check",
    "outlier",
    "panic_threshold",
    "slow_start",
    "prefer_local",
    "overprovisioning_percent",
    "keep_while_healthy",
    "on_removed",
    "on_unhealthy",
    "drain_timeout",
];

pub(super) const POLICIES: [(&str, LbPolicy); 5] = [
    ("round_robin", LbPolicy::RoundRobin),
    ("random", LbPolicy::Random),
    ("maglev", LbPolicy::Maglev),
    ("source_ip", LbPolicy::SourceIp),
    ("least_request", LbPolicy::LeastRequest),
];

const PREFER_LOCAL: [(&str, PreferLocal); 3] =
    [("none", PreferLocal::None), ("node", PreferLocal::Node), ("zone", PreferLocal::Zone)];

pub(super) const ON_LEAVING: [(&str, OnLeaving); 3] =
    [("keep", OnLeaving::Keep), ("drain", OnLeaving::Drain), ("reset", OnLeaving::Reset)];

/// Percent; Envoy takes more, which means no more.
pub(super) const OVERPROVISIONINGS: RangeInclusive<u32> = 1..=100_000;

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
    pub(super) health_check: Option<Located<HealthCheck>>,
    pub(super) outlier: Option<Outlier>,
    pub(super) panic_threshold: u32,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) prefer_local: PreferLocal,
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
            health_check: self.health_check.map(|check| check.value),
            outlier: self.outlier,
            panic_threshold: self.panic_threshold,
            slow_start: self.slow_start,
            prefer_local: self.prefer_local,
            overprovisioning_percent: self.overprovisioning_percent,
            keep_while_healthy: self.keep_while_healthy,
            on_removed: self.on_removed,
            on_unhealthy: self.on_unhealthy,
            drain_timeout: self.drain_timeout,
        })
    }
}

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> ClusterDraft {
    let Some(fields) = entry.fields(&KEYS, report) else { return ClusterDraft::default() };
    let lb_policy =
        fields.get("lb_policy").and_then(|entry| entry.choice(&POLICIES, &[], report)).unwrap_or_default();
    let name = fields.require("name", "a name for the cluster", report).and_then(|entry| entry.name(report));
    let discovery = fields
        .require("discovery", "where the backends come from", report)
        .and_then(|entry| discovery::read(&entry, name.as_ref().map(|name| name.value.as_str()), report));
    ClusterDraft {
        name,
        discovery,
        lb_policy,
        connect_timeout: fields
            .get("connect_timeout")
            .and_then(|entry| entry.positive_duration(NO_TIME, report))
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
        health_check: fields
            .get("health_check")
            .and_then(|entry| health_check::read(&entry, report).map(|check| entry.at(check))),
        outlier: fields.get("outlier").map_or(Some(outlier::DEFAULT), |entry| outlier::read(&entry, report)),
        panic_threshold: fields
            .get("panic_threshold")
            .and_then(|entry| entry.number("", 0..=100, report))
            .unwrap_or(PANIC_THRESHOLD),
        slow_start: fields.get("slow_start").and_then(|entry| slow_start::read(&entry, lb_policy, report)),
        prefer_local: fields
            .get("prefer_local")
            .and_then(|entry| entry.choice(&PREFER_LOCAL, &[], report))
            .unwrap_or_default(),
        overprovisioning_percent: fields
            .get("overprovisioning_percent")
            .and_then(|entry| entry.number("", OVERPROVISIONINGS, report))
            .unwrap_or(OVERPROVISIONING),
        keep_while_healthy: fields
            .get("keep_while_healthy")
            .and_then(|entry| entry.boolean(report))
            .unwrap_or_default(),
        on_removed: on_leaving(&fields, "on_removed", ON_REMOVED, report),
        on_unhealthy: on_leaving(&fields, "on_unhealthy", ON_UNHEALTHY, report),
        drain_timeout: fields
            .get("drain_timeout")
            .and_then(|entry| entry.duration(report))
            .unwrap_or(DRAIN_TIMEOUT),
    }
}

fn on_leaving(fields: &Fields<'_>, key: &str, default: OnLeaving, report: &mut Report) -> OnLeaving {
    fields.get(key).and_then(|entry| entry.choice(&ON_LEAVING, &[], report)).unwrap_or(default)
}

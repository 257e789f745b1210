//! One element of `clusters:`.

use std::time::Duration;

use super::discovery;
use super::tree::{Entry, Located, Report};
use crate::model::{Cluster, Discovery, LbPolicy};

/// Envoy's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_ATTEMPTS: u32 = 3;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10 * 60);

const SUPPORTED: [&str; 10] = [
    "name",
    "discovery",
    "lb_policy",
    "connect_timeout",
    "connect_attempts",
    "max_connections",
    "slow_start",
    "on_removed",
    "on_unhealthy",
    "drain_timeout",
];
const LATER: [&str; 3] = ["health_check", "outlier", "panic_threshold"];

const POLICIES: [(&str, LbPolicy); 4] = [
    ("round_robin", LbPolicy::RoundRobin),
    ("random", LbPolicy::Random),
    ("maglev", LbPolicy::Maglev),
    ("source_ip", LbPolicy::SourceIp),
];

/// An element as far as it could be read: the name is known to the listeners even if the rest was refused.
#[derive(Default)]
pub(super) struct ClusterDraft {
    pub(super) name: Option<Located<String>>,
    discovery: Option<Discovery>,
    lb_policy: LbPolicy,
    connect_timeout: Duration,
    connect_attempts: u32,
    drain_timeout: Duration,
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
            max_connections: None,
            stat_name: None,
            drain_timeout: self.drain_timeout,
        })
    }
}

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> ClusterDraft {
    let Some(fields) = entry.fields(&SUPPORTED, &LATER, report) else { return ClusterDraft::default() };
    if let Some(entry) = fields.get("max_connections") {
        entry.no_limit(report);
    }
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
            .and_then(|entry| entry.choice(&POLICIES, &["least_request"], report))
            .unwrap_or_default(),
        connect_timeout: fields
            .get("connect_timeout")
            .and_then(|entry| positive_duration(&entry, report))
            .unwrap_or(CONNECT_TIMEOUT),
        connect_attempts: fields
            .get("connect_attempts")
            .and_then(|entry| entry.number("", 1..=16, report))
            .unwrap_or(CONNECT_ATTEMPTS),
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

//! One element of `clusters:`.

use std::net::SocketAddr;
use std::time::Duration;

use super::tree::{Entry, Located, Report};
use crate::model::{Cluster, Endpoint, LbPolicy};

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
    endpoints: Vec<Endpoint>,
    lb_policy: LbPolicy,
    connect_timeout: Duration,
    connect_attempts: u32,
    drain_timeout: Duration,
}

impl ClusterDraft {
    /// `None` if the name was refused.
    pub(super) fn finish(self) -> Option<Cluster> {
        Some(Cluster {
            name: self.name?.value,
            endpoints: self.endpoints,
            lb_policy: self.lb_policy,
            connect_timeout: self.connect_timeout,
            connect_attempts: self.connect_attempts,
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
        endpoints: fields
            .require("discovery", "where the backends come from", report)
            .map(|entry| discovery(&entry, report))
            .unwrap_or_default(),
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

fn discovery(entry: &Entry<'_>, report: &mut Report) -> Vec<Endpoint> {
    let known = ["type", "hosts", "refresh_rate", "respect_ttl", "hold_nx"];
    let Some(fields) = entry.fields(&known, &[], report) else { return Vec::new() };
    let kind = fields
        .require("type", "how the backends are found; accepted: static", report)
        .and_then(|entry| entry.choice(&[("static", ())], &["strict_dns"], report));
    // The other keys depend on the type.
    if kind.is_none() {
        return Vec::new();
    }
    for name in ["refresh_rate", "respect_ttl", "hold_nx"] {
        if let Some(entry) = fields.get(name) {
            entry.refuse("belongs to strict_dns, which is not supported yet: remove the key", report);
        }
    }
    fields
        .require("hosts", "the addresses of the backends", report)
        .map(|entry| hosts(&entry, report))
        .unwrap_or_default()
}

fn hosts(entry: &Entry<'_>, report: &mut Report) -> Vec<Endpoint> {
    let mut endpoints: Vec<Located<Endpoint>> = Vec::new();
    for item in entry.items("host", report) {
        let Some(endpoint) = host(&item, report) else { continue };
        match endpoints.iter().find(|earlier| earlier.value.address == endpoint.address) {
            Some(earlier) => {
                let message =
                    format!("{} is {} already: keep one, with a weight", endpoint.address, earlier.path);
                item.refuse(message, report);
            }
            None => endpoints.push(item.at(endpoint)),
        }
    }
    endpoints.into_iter().map(|endpoint| endpoint.value).collect()
}

/// `IP:PORT`, or a mapping of `address` and `weight`.
fn host(entry: &Entry<'_>, report: &mut Report) -> Option<Endpoint> {
    if !entry.is_map() {
        return Some(Endpoint { address: host_address(entry, report)?, weight: 1 });
    }
    let fields = entry.fields(&["address", "weight"], &[], report)?;
    let weight = fields.get("weight").map_or(Some(1), |entry| entry.number("", 1..=256, report));
    let address = fields.require("address", "the host's IP:PORT", report)?;
    Some(Endpoint { address: host_address(&address, report)?, weight: weight? })
}

fn host_address(entry: &Entry<'_>, report: &mut Report) -> Option<SocketAddr> {
    let advice = "static discovery needs IP:PORT; names need strict_dns, which is not supported yet";
    let address = entry.socket_address(advice, report)?;
    if address.ip().is_unspecified() {
        entry.refuse(format!("`{address}`: no host has the unspecified address: write its own"), report);
        return None;
    }
    Some(address)
}

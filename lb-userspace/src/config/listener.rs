//! One element of `listeners:`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::access_log;
use super::cluster::ATTEMPTS;
use super::tree::{Entry, Fields, Located, Report};
use crate::model::{AccessLog, Listener, WeightedCluster};

/// Envoy's default for `tcp_proxy`.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

const KNOWN: [&str; 11] = [
    "name",
    "address",
    "cluster",
    "clusters",
    "stat_prefix",
    "idle_timeout",
    "connect_attempts",
    "max_connection_duration",
    "max_connections",
    "client_address",
    "access_log",
];

/// An element as far as it could be read.
#[derive(Default)]
pub(super) struct ListenerDraft {
    pub(super) name: Option<Located<String>>,
    pub(super) address: Option<Located<SocketAddr>>,
    /// Empty if they were refused.
    pub(super) clusters: Vec<Located<WeightedCluster>>,
    /// `None`: the name.
    pub(super) stat_prefix: Option<String>,
    /// Zero: never.
    pub(super) idle_timeout: Duration,
    pub(super) connect_attempts: Option<u32>,
    /// Zero: never.
    pub(super) max_connection_duration: Duration,
    /// `None`: those of the whole file.
    pub(super) access_logs: Option<Vec<AccessLog>>,
}

impl ListenerDraft {
    /// `None` if something was refused.
    pub(super) fn finish(self, access_logs: &[AccessLog]) -> Option<Listener> {
        let name = self.name?.value;
        Some(Listener {
            address: self.address?.value,
            stat_prefix: self.stat_prefix.unwrap_or_else(|| name.clone()),
            clusters: self.clusters.into_iter().map(|cluster| cluster.value).collect(),
            idle_timeout: unless_zero(self.idle_timeout),
            connect_attempts: self.connect_attempts,
            max_connection_duration: unless_zero(self.max_connection_duration),
            access_logs: self.access_logs.unwrap_or_else(|| access_logs.to_vec()),
            name,
        })
    }
}

fn unless_zero(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> ListenerDraft {
    let Some(fields) = entry.fields(&KNOWN, report) else { return ListenerDraft::default() };
    if let Some(entry) = fields.get("max_connections") {
        entry.no_limit(report);
    }
    if let Some(entry) = fields.get("client_address") {
        entry.choice(&[("none", ())], &["proxy_v1", "proxy_v2", "transparent"], report);
    }
    ListenerDraft {
        name: fields.require("name", "a name for the listener", report).and_then(|entry| entry.name(report)),
        address: fields
            .require("address", "the address to serve, IP:PORT", report)
            .and_then(|entry| Some(entry.at(address(&entry, report)?))),
        clusters: clusters(&fields, report),
        stat_prefix: fields.get("stat_prefix").and_then(|entry| entry.stat_name(report)),
        idle_timeout: fields
            .get("idle_timeout")
            .and_then(|entry| entry.duration(report))
            .unwrap_or(IDLE_TIMEOUT),
        connect_attempts: fields.get("connect_attempts").and_then(|entry| entry.number("", ATTEMPTS, report)),
        max_connection_duration: fields
            .get("max_connection_duration")
            .and_then(|entry| entry.duration(report))
            .unwrap_or_default(),
        access_logs: fields.get("access_log").map(|entry| access_log::read(&entry, report)),
    }
}

fn address(entry: &Entry<'_>, report: &mut Report) -> Option<SocketAddr> {
    entry.socket_address("a listener needs IP:PORT; 0.0.0.0:80 serves every IPv4 address of the node", report)
}

/// `cluster`, or `clusters` with weights.
fn clusters(fields: &Fields<'_>, report: &mut Report) -> Vec<Located<WeightedCluster>> {
    let Some(several) = fields.get("clusters") else {
        return fields
            .require("cluster", "the name of the cluster to send connections to", report)
            .and_then(|entry| entry.name(report))
            .map(|name| Located {
                value: WeightedCluster { name: name.value, weight: 1 },
                place: name.place,
                path: name.path,
            })
            .into_iter()
            .collect();
    };
    if let Some(entry) = fields.get("cluster") {
        entry.refuse("stands beside `clusters`: keep one of the two", report);
    }
    let mut found: Vec<Located<WeightedCluster>> = Vec::new();
    let mut indices = HashMap::new();
    for item in several.items("cluster", report) {
        let Some(cluster) = weighted_cluster(&item, report) else { continue };
        let index = *indices.entry(cluster.value.name.clone()).or_insert(found.len());
        match found.get(index) {
            Some(earlier) => {
                let message =
                    format!("the same cluster as {}: keep one, with the sum of the weights", earlier.path);
                report.add(cluster.place, &cluster.path, message);
            }
            None => found.push(cluster),
        }
    }
    found
}

fn weighted_cluster(entry: &Entry<'_>, report: &mut Report) -> Option<Located<WeightedCluster>> {
    let fields = entry.fields(&["name", "weight"], report)?;
    let weight = fields.get("weight").map_or(Some(1), |entry| entry.number("", 1..=u32::MAX, report));
    let name = fields.require("name", "the name of the cluster", report)?.name(report)?;
    Some(Located {
        value: WeightedCluster { name: name.value, weight: weight? },
        place: name.place,
        path: name.path,
    })
}

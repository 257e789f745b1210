//! One element of `listeners:`.

use std::net::SocketAddr;
use std::time::Duration;

use super::tree::{Entry, Located, Report};
use crate::model::Listener;

/// Envoy's default for `tcp_proxy`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// An element as far as it could be read.
#[derive(Default)]
pub(super) struct ListenerDraft {
    pub(super) name: Option<Located<String>>,
    pub(super) address: Option<Located<SocketAddr>>,
    pub(super) cluster: Option<Located<String>>,
    idle_timeout: Duration,
}

impl ListenerDraft {
    /// `None` if something was refused.
    pub(super) fn finish(self) -> Option<Listener> {
        Some(Listener {
            stat_prefix: self.name.as_ref()?.value.clone(),
            name: self.name?.value,
            address: self.address?.value,
            clusters: vec![crate::model::WeightedCluster { name: self.cluster?.value, weight: 1 }],
            connect_attempts: None,
            max_connection_duration: None,
            access_logs: Vec::new(),
            idle_timeout: Some(self.idle_timeout).filter(|timeout| !timeout.is_zero()),
        })
    }
}

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> ListenerDraft {
    let known = ["name", "address", "cluster", "idle_timeout", "max_connections", "client_address"];
    let Some(fields) = entry.fields(&known, &[], report) else { return ListenerDraft::default() };
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
        cluster: fields
            .require("cluster", "the name of the cluster to send connections to", report)
            .and_then(|entry| entry.name(report)),
        idle_timeout: fields
            .get("idle_timeout")
            .and_then(|entry| entry.duration(report))
            .unwrap_or(IDLE_TIMEOUT),
    }
}

fn address(entry: &Entry<'_>, report: &mut Report) -> Option<SocketAddr> {
    entry.socket_address("a listener needs IP:PORT; 0.0.0.0:80 serves every IPv4 address of the node", report)
}

//! `discovery:` of a cluster. Of its types, `dns` reads those that have names of hosts, `srv`, `file` and
//! `kubernetes` theirs.

mod dns;
mod file;
mod kubernetes;
mod srv;

use std::net::SocketAddr;

pub(super) use self::dns::{BACKOFF_FACTOR, MIN_REFRESH, REFRESH_RATE};
use super::hosts::{self, Host};
use super::tree::{Entry, Fields, Report};
use crate::model::{Discovery, Endpoint};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Static,
    StrictDns,
    LogicalDns,
    Srv,
    File,
    Kubernetes,
}

const KINDS: [(&str, Kind); 6] = [
    ("static", Kind::Static),
    ("strict_dns", Kind::StrictDns),
    ("logical_dns", Kind::LogicalDns),
    ("srv", Kind::Srv),
    ("file", Kind::File),
    ("kubernetes", Kind::Kubernetes),
];

const DNS: &[Kind] = &[Kind::StrictDns, Kind::LogicalDns, Kind::Srv];

/// The keys besides `type`, and the types that have them.
const KEYS: [(&str, &[Kind]); 15] = [
    ("hosts", &[Kind::Static, Kind::StrictDns, Kind::LogicalDns]),
    ("name", &[Kind::Srv]),
    ("path", &[Kind::File]),
    ("cluster_name", &[Kind::File]),
    ("refresh_rate", DNS),
    ("respect_ttl", DNS),
    ("jitter", DNS),
    ("failure_backoff", DNS),
    ("hold_nx", DNS),
    ("family", &[Kind::StrictDns, Kind::LogicalDns, Kind::Srv, Kind::Kubernetes]),
    ("namespace", &[Kind::Kubernetes]),
    ("service", &[Kind::Kubernetes]),
    ("port", &[Kind::Kubernetes]),
    ("kubeconfig", &[Kind::Kubernetes]),
    ("context", &[Kind::Kubernetes]),
];

/// Of the cluster `cluster`, whose name may have been refused. `None` with something in `report`.
pub(super) fn read(entry: &Entry<'_>, cluster: Option<&str>, report: &mut Report) -> Option<Discovery> {
    let known: Vec<&str> = std::iter::once("type").chain(KEYS.map(|(key, _)| key)).collect();
    let fields = entry.fields(&known, report)?;
    let words = KINDS.map(|(word, _)| word).join(", ");
    let kind = fields
        .require("type", &format!("how the backends are found; accepted: {words}"), report)?
        // The other keys depend on the type.
        .choice(&KINDS, &[], report)?;
    refuse_others(&fields, kind, report);
    match kind {
        Kind::Static => {
            let hosts = fields.require("hosts", "the addresses of the backends", report)?;
            Some(Discovery::Static(endpoints(&hosts, report)))
        }
        Kind::StrictDns => dns::read(&fields, false, report).map(Discovery::StrictDns),
        Kind::LogicalDns => dns::read(&fields, true, report).map(Discovery::StrictDns),
        Kind::Srv => srv::read(&fields, report).map(Discovery::Srv),
        Kind::Kubernetes => kubernetes::read(&fields, report).map(Discovery::Kubernetes),
        Kind::File => file::read(&fields, cluster, report).map(Discovery::File),
    }
}

/// Refuses the keys of other types.
fn refuse_others(fields: &Fields<'_>, kind: Kind, report: &mut Report) {
    for (key, kinds) in KEYS.iter().filter(|(_, kinds)| !kinds.contains(&kind)) {
        let Some(entry) = fields.get(key) else { continue };
        let first = KINDS.iter().find(|(_, kind)| kinds.contains(kind)).map_or("", |(word, _)| word);
        entry.refuse(format!("belongs to type: {first}: remove the key, or change the type"), report);
    }
}

fn endpoints(entry: &Entry<'_>, report: &mut Report) -> Vec<Endpoint> {
    // A cluster may be waiting for its first backend.
    if entry.is_empty_list() {
        return Vec::new();
    }
    let kind = hosts::Kind { keys: &["node", "zone"], read: host_address, show: SocketAddr::to_string };
    let endpoint = |Host { at, weight, priority, node, zone, probe }| Endpoint {
        priority,
        node,
        zone,
        probe,
        ..Endpoint::new(at, weight)
    };
    hosts::read(entry, &kind, report).into_iter().map(endpoint).collect()
}

fn host_address(entry: &Entry<'_>, report: &mut Report) -> Option<SocketAddr> {
    let advice = "static discovery needs IP:PORT; names need type: strict_dns";
    let address = entry.socket_address(advice, report)?;
    if address.ip().is_unspecified() {
        entry.refuse(format!("`{address}`: no host has the unspecified address: write its own"), report);
        return None;
    }
    Some(address)
}

//! The checks between sections and between the elements of a list.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::datapath::DatapathDraft;
use super::listener::ListenerDraft;
use super::sections::Sections;
use super::tree::{Located, Report};

/// Cluster names that an error lists.
const LISTED: usize = 20;

pub(super) fn check(sections: &Sections, report: &mut Report) {
    let Sections { datapath, admin, listeners, clusters, .. } = sections;
    let listener_names: Vec<_> = listeners.iter().filter_map(|listener| listener.name.as_ref()).collect();
    let cluster_names: Vec<_> = clusters.iter().filter_map(|cluster| cluster.name.as_ref()).collect();
    unique_names("listener", &listener_names, report);
    unique_names("cluster", &cluster_names, report);
    known_clusters(listeners, &cluster_names, report);
    distinct_addresses(listeners, report);
    snat_ports_apart(datapath, listeners, report);
    if let Some(admin) = admin {
        admin_apart(admin, listeners, report);
    }
}

fn unique_names(what: &str, names: &[&Located<String>], report: &mut Report) {
    let mut first: HashMap<&str, &Located<String>> = HashMap::new();
    for name in names {
        // The place does not tell them apart: an alias has that of its anchor.
        match first.get(name.value.as_str()) {
            Some(earlier) => {
                let message = format!(
                    "a {what} `{}` stands on line {} already: give each its own name",
                    name.value, earlier.place.line
                );
                report.add(name.place, &name.path, message);
            }
            None => {
                first.insert(&name.value, name);
            }
        }
    }
}

fn known_clusters(listeners: &[ListenerDraft], names: &[&Located<String>], report: &mut Report) {
    // Without a single name, the missing clusters are reported already.
    if names.is_empty() {
        return;
    }
    let known: HashSet<&str> = names.iter().map(|name| name.value.as_str()).collect();
    let names: Vec<&str> = names.iter().take(LISTED).map(|name| name.value.as_str()).collect();
    let more = if known.len() > names.len() { ", ..." } else { "" };
    for cluster in listeners.iter().flat_map(|listener| &listener.clusters) {
        let name = cluster.value.name.as_str();
        if !known.contains(name) {
            let hint = report.hint(name, known.iter().copied());
            let listed = names.join(", ");
            let message = format!("no cluster `{name}`{hint}; the clusters: {listed}{more}");
            report.add(cluster.place, &cluster.path, message);
        }
    }
}

fn distinct_addresses(listeners: &[ListenerDraft], report: &mut Report) {
    let addresses: Vec<_> = listeners.iter().filter_map(|listener| listener.address.as_ref()).collect();
    for (index, address) in addresses.iter().enumerate() {
        let Some(earlier) = addresses[..index].iter().find(|earlier| overlap(earlier.value, address.value))
        else {
            continue;
        };
        let (line, other) = (earlier.place.line, earlier.value);
        let message = if other == address.value {
            format!("another listener has {other} on line {line}: give each its own address or port")
        } else {
            format!(
                "{} overlaps with {other} on line {line}: an unspecified address serves every address of its \
                 family, so keep one of the two or change a port",
                address.value
            )
        };
        report.add(address.place, &address.path, message);
    }
}

/// Whether a connection could belong to both.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn snat_ports_apart(datapath: &DatapathDraft, listeners: &[ListenerDraft], report: &mut Report) {
    let Some(range) = &datapath.snat_ports else { return };
    for address in listeners.iter().filter_map(|listener| listener.address.as_ref()) {
        let port = address.value.port();
        if range.value.contains(&port) {
            let message = format!(
                "{}-{} contains port {port} of the listener on line {}: leave it out of the range",
                range.value.start(),
                range.value.end(),
                address.place.line
            );
            report.add(range.place, &range.path, message);
        }
    }
}

fn admin_apart(admin: &Located<SocketAddr>, listeners: &[ListenerDraft], report: &mut Report) {
    let addresses = listeners.iter().filter_map(|listener| listener.address.as_ref());
    for address in addresses.filter(|address| overlap(address.value, admin.value)) {
        let message = format!(
            "{} overlaps with the listener's {} on line {}: give the admin port another port",
            admin.value, address.value, address.place.line
        );
        report.add(admin.place, &admin.path, message);
    }
}

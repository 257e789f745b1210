//! The checks between sections and between the elements of a list.

use std::net::SocketAddr;

use super::cluster::ClusterDraft;
use super::datapath::DatapathDraft;
use super::listener::ListenerDraft;
use super::tree::{Located, Report, did_you_mean};

pub(super) fn check(
    datapath: &DatapathDraft,
    listeners: &[ListenerDraft],
    clusters: &[ClusterDraft],
    report: &mut Report,
) {
    let listener_names: Vec<_> = listeners.iter().filter_map(|listener| listener.name.as_ref()).collect();
    let cluster_names: Vec<_> = clusters.iter().filter_map(|cluster| cluster.name.as_ref()).collect();
    unique_names("listener", &listener_names, report);
    unique_names("cluster", &cluster_names, report);
    known_clusters(listeners, &cluster_names, report);
    distinct_addresses(listeners, report);
    snat_ports_apart(datapath, listeners, report);
}

fn unique_names(what: &str, names: &[&Located<String>], report: &mut Report) {
    for (index, name) in names.iter().enumerate() {
        if let Some(earlier) = names[..index].iter().find(|earlier| earlier.value == name.value) {
            let message = format!(
                "a {what} `{}` stands on line {} already: give each its own name",
                name.value, earlier.place.line
            );
            report.add(name.place, &name.path, message);
        }
    }
}

fn known_clusters(listeners: &[ListenerDraft], names: &[&Located<String>], report: &mut Report) {
    // Without a single name, the missing clusters are reported already.
    if names.is_empty() {
        return;
    }
    let names: Vec<&str> = names.iter().map(|name| name.value.as_str()).collect();
    for cluster in listeners.iter().filter_map(|listener| listener.cluster.as_ref()) {
        if !names.contains(&cluster.value.as_str()) {
            let hint = did_you_mean(&cluster.value, names.iter().copied());
            let known = names.join(", ");
            let message = format!("no cluster `{}`{hint}; the clusters: {known}", cluster.value);
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

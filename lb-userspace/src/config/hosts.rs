//! `hosts:` of a discovery: an address or a name each, alone or with what it has besides.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::tree::{Entry, Located, Report};
use super::yaml::Value;
use crate::model::ProbePlace;

/// Envoy's range.
pub(super) const PRIORITIES: RangeInclusive<u32> = 0..=128;

pub(super) struct Host<T> {
    pub(super) at: T,
    pub(super) weight: u32,
    pub(super) priority: u32,
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
    pub(super) probe: ProbePlace,
}

/// How one kind of host is read.
pub(super) struct Kind<'k, T> {
    /// Keys of the mapping besides those that all have.
    pub(super) keys: &'k [&'k str],
    pub(super) read: fn(&Entry<'_>, &mut Report) -> Option<T>,
    pub(super) show: fn(&T) -> String,
}

/// The elements; what is there twice is refused, and levels of priority with a gap.
pub(super) fn read<T: Clone + Eq + Hash>(
    entry: &Entry<'_>,
    kind: &Kind<'_, T>,
    report: &mut Report,
) -> Vec<Host<T>> {
    let mut hosts: Vec<Located<Host<T>>> = Vec::new();
    let mut indices = HashMap::new();
    for item in entry.items("host", report) {
        let Some(host) = host(&item, kind, report) else { continue };
        let index = *indices.entry(host.at.clone()).or_insert(hosts.len());
        match hosts.get(index) {
            Some(earlier) => {
                let shown = (kind.show)(&host.at);
                let message = format!("{shown} is {} already: keep one, with a weight", earlier.path);
                item.refuse(message, report);
            }
            None => hosts.push(item.at(host)),
        }
    }
    no_gaps(&hosts, report);
    hosts.into_iter().map(|host| host.value).collect()
}

fn host<T>(entry: &Entry<'_>, kind: &Kind<'_, T>, report: &mut Report) -> Option<Host<T>> {
    if !entry.is_map() {
        let at = (kind.read)(entry, report)?;
        return Some(Host {
            at,
            weight: 1,
            priority: 0,
            node: None,
            zone: None,
            probe: ProbePlace::default(),
        });
    }
    let known: Vec<&str> =
        ["address", "weight", "priority", "health_check"].iter().chain(kind.keys).copied().collect();
    let fields = entry.fields(&known, report)?;
    let weight = fields.get("weight").map_or(Some(1), |entry| entry.number("", 1..=256, report));
    let priority = fields.get("priority").map_or(Some(0), |entry| entry.number("", PRIORITIES, report));
    let [node, zone] = ["node", "zone"].map(|key| fields.get(key).and_then(|entry| entry.name(report)));
    let probe = fields.get("health_check").and_then(|entry| probe_place(&entry, report)).unwrap_or_default();
    let address = fields.require("address", "the host's address and port", report)?;
    Some(Host {
        at: (kind.read)(&address, report)?,
        weight: weight?,
        priority: priority?,
        node: node.map(|name| name.value.into()),
        zone: zone.map(|name| name.value.into()),
        probe,
    })
}

/// `health_check:` of a host.
fn probe_place(entry: &Entry<'_>, report: &mut Report) -> Option<ProbePlace> {
    const KEYS: [&str; 3] = ["port", "address", "host"];
    match entry.value() {
        Value::Bool(false) => return Some(ProbePlace { skip: true, ..ProbePlace::default() }),
        Value::Map(_) => {}
        _ => {
            let expected = format!("false (it is not asked), or a mapping with the keys {}", KEYS.join(", "));
            entry.refuse_type(&expected, report);
            return None;
        }
    }
    let fields = entry.fields(&KEYS, report)?;
    Some(ProbePlace {
        port: fields.get("port").and_then(|entry| entry.port(report)),
        address: fields.get("address").and_then(|entry| probe_address(&entry, report)),
        host: fields.get("host").and_then(|entry| entry.header_value(report)).map(Into::into),
        skip: false,
    })
}

fn probe_address(entry: &Entry<'_>, report: &mut Report) -> Option<IpAddr> {
    let address = entry.ip_address(report)?;
    if address.is_unspecified() {
        entry.refuse(format!("`{address}`: nothing answers at the unspecified address"), report);
        return None;
    }
    Some(address)
}

/// Every level up to the highest has to have a host, as a missing one is a slip of the pen.
fn no_gaps<T>(hosts: &[Located<Host<T>>], report: &mut Report) {
    let Some(highest) = hosts.iter().max_by_key(|host| host.value.priority) else { return };
    let missing =
        (0..highest.value.priority).find(|level| hosts.iter().all(|host| host.value.priority != *level));
    if let Some(missing) = missing {
        let message = format!(
            "priority {}, and no host has priority {missing}: levels begin with 0 and have no gaps",
            highest.value.priority
        );
        report.add(highest.place, &highest.path, message);
    }
}

//! The section `datapath:`.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use lb_common::table;

use super::tree::{Entry, Located, Report};
use crate::model::{DatapathConfig, Mode};

/// The limits of the kernel tables, in flows of one address family.
const MAX_FLOWS: RangeInclusive<u32> = 1024..=table::MAX_FLOWS;

/// The section as it was read; what was refused has its default.
#[derive(Default)]
pub(super) struct DatapathDraft {
    pub(super) mode: Option<Located<Mode>>,
    pub(super) interfaces: Option<Vec<Located<String>>>,
    pub(super) snat_ports: Option<Located<RangeInclusive<u16>>>,
    snat_addresses: Option<Vec<Located<IpAddr>>>,
    pub(super) max_flows: Option<Located<u32>>,
}

impl DatapathDraft {
    pub(super) fn finish(self) -> DatapathConfig {
        DatapathConfig {
            mode: self.mode.map(|mode| mode.value).unwrap_or_default(),
            interfaces: self.interfaces.map(values),
            snat_ports: self.snat_ports.map(|range| range.value),
            snat_addresses: self.snat_addresses.map(values),
            max_flows: self.max_flows.map(|flows| flows.value),
        }
    }
}

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> DatapathDraft {
    let known = ["mode", "interfaces", "snat_ports", "snat_addresses", "max_flows"];
    let Some(fields) = entry.fields(&known, report) else { return DatapathDraft::default() };
    let modes = [("auto", Mode::Auto), ("xdp", Mode::Xdp), ("tc", Mode::Tc), ("proxy", Mode::Proxy)];
    // `auto` is the same as leaving the key out.
    let unless_auto = |name| fields.get(name).filter(|entry: &Entry<'_>| !entry.is_auto());
    DatapathDraft {
        mode: fields.get("mode").and_then(|entry| Some(entry.at(entry.choice(&modes, &[], report)?))),
        interfaces: unless_auto("interfaces")
            .map(|entry| list(&entry, "interface", report, |item, report| item.interface_name(report))),
        snat_ports: unless_auto("snat_ports").and_then(|entry| Some(entry.at(entry.port_range(report)?))),
        snat_addresses: unless_auto("snat_addresses").map(|entry| {
            list(&entry, "address", report, |item, report| Some(item.at(item.source_address(report)?)))
        }),
        max_flows: unless_auto("max_flows")
            .and_then(|entry| Some(entry.at(entry.number("auto, or ", MAX_FLOWS, report)?))),
    }
}

/// A list without repetitions.
fn list<T: Clone + Eq + Hash>(
    entry: &Entry<'_>,
    what: &str,
    report: &mut Report,
    read: impl Fn(&Entry<'_>, &mut Report) -> Option<Located<T>>,
) -> Vec<Located<T>> {
    if !entry.is_list() {
        entry.refuse_type(&format!("auto, or a list with at least one {what}"), report);
        return Vec::new();
    }
    let mut found: Vec<Located<T>> = Vec::new();
    let mut indices = HashMap::new();
    for item in entry.items(what, report) {
        let Some(value) = read(&item, report) else { continue };
        let index = *indices.entry(value.value.clone()).or_insert(found.len());
        match found.get(index) {
            Some(earlier) => item.refuse(format!("the same {what} as {}: keep one", earlier.path), report),
            None => found.push(value),
        }
    }
    found
}

fn values<T>(list: Vec<Located<T>>) -> Vec<T> {
    list.into_iter().map(|located| located.value).collect()
}

//! The native form: the top level of the file.

use super::sections::Sections;
use super::tree::{Entry, Report};
use super::{access_log, admin, cluster, datapath, listener};

const KNOWN: [&str; 5] = ["datapath", "listeners", "clusters", "admin", "access_log"];

/// `None` only with something in `report`.
pub(super) fn read(root: &Entry<'_>, report: &mut Report) -> Option<Sections> {
    let fields = root.fields(&KNOWN, report)?;
    Some(Sections {
        datapath: fields.get("datapath").map(|entry| datapath::read(&entry, report)).unwrap_or_default(),
        admin: fields.get("admin").and_then(|entry| admin::read(&entry, report)),
        access_logs: fields
            .get("access_log")
            .map(|entry| access_log::read(&entry, report))
            .unwrap_or_default(),
        listeners: fields
            .require("listeners", "the addresses to serve", report)
            .map(|entry| {
                entry.items("listener", report).iter().map(|item| listener::read(item, report)).collect()
            })
            .unwrap_or_default(),
        clusters: fields
            .require("clusters", "the backends of the listeners", report)
            .map(|entry| {
                entry.items("cluster", report).iter().map(|item| cluster::read(item, report)).collect()
            })
            .unwrap_or_default(),
        imported: false,
    })
}

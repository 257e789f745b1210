//! `type: file`.

use std::path::PathBuf;

use crate::config::tree::{Entry, Fields, Report};
use crate::model::EndpointFile;

/// `cluster`: the name of the cluster that it is the discovery of.
pub(super) fn read(fields: &Fields<'_>, cluster: Option<&str>, report: &mut Report) -> Option<EndpointFile> {
    let name = match fields.get("cluster_name") {
        Some(entry) => cluster_name(&entry, report),
        None => cluster.map(str::to_owned),
    };
    let path =
        fields.require("path", "the file with the endpoints, as in /etc/headgate/endpoints.yaml", report);
    Some(EndpointFile { path: path.and_then(|entry| file_path(&entry, report))?, cluster_name: name? })
}

/// A path of the file system; relative ones begin at the agent's working directory.
fn file_path(entry: &Entry<'_>, report: &mut Report) -> Option<PathBuf> {
    let path = entry.text("a path, as in /etc/headgate/endpoints.yaml", report)?;
    if path.is_empty() || path.contains('\0') {
        entry.refuse("not a path: name a file, as in /etc/headgate/endpoints.yaml", report);
        return None;
    }
    Some(PathBuf::from(path))
}

/// Any name that Envoy takes.
fn cluster_name(entry: &Entry<'_>, report: &mut Report) -> Option<String> {
    let name = entry.text("the cluster's name in the file", report)?;
    if name.is_empty() {
        entry.refuse("empty: write the cluster's name in the file, or leave the key out", report);
        return None;
    }
    Some(name.to_owned())
}

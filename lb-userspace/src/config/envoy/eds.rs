//! A file of endpoints as Envoy's endpoint discovery (EDS) takes it from the file system, and the keys of a cluster
//! that name it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::endpoints::{self, Standing};
use super::import::Import;
use super::message::{self, Message};
use super::schema::{DURATION, Field, Kind, MAPPINGS, ignored, read, refused};
use super::{discovery, extension, value};
use crate::config::tree::{Entry, Report};
use crate::config::yaml::Value;
use crate::model::{Endpoint, EndpointFile};

/// `envoy.service.discovery.v3.DiscoveryResponse`.
const DISCOVERY_RESPONSE: &[Field] = &[
    ignored("version_info", Kind::Text, NO_SERVER),
    read("resources"),
    ignored("canary", Kind::Bool, NO_SERVER),
    ignored("type_url", Kind::Text, "each resource has its type"),
    ignored("nonce", Kind::Text, NO_SERVER),
    ignored("control_plane", Kind::Mapping, NO_SERVER),
    ignored("resource_errors", MAPPINGS, NO_SERVER),
];

const NO_SERVER: &str = "it is for control planes";

const ASSIGNMENTS: [&str; 2] =
    ["envoy.config.endpoint.v3.ClusterLoadAssignment", "envoy.api.v2.ClusterLoadAssignment"];

const EDS_CLUSTER_CONFIG: &[Field] = &[read("eds_config"), read("service_name")];

const NO_CONTROL_PLANE: &str =
    "endpoints from a control plane (EDS) are not supported: only those of a file (path_config_source)";

/// `envoy.config.core.v3.ConfigSource`.
const CONFIG_SOURCE: &[Field] = &[
    ignored("authorities", MAPPINGS, NO_SERVER),
    read("path"),
    read("path_config_source"),
    refused("api_config_source", NO_CONTROL_PLANE),
    refused("ads", NO_CONTROL_PLANE),
    refused("self", NO_CONTROL_PLANE),
    ignored("initial_fetch_timeout", DURATION, "a listener is up before its backends are known"),
    ignored("resource_api_version", Kind::Word(&["AUTO", "V2", "V3"]), "both versions are read"),
];

const PATH_CONFIG_SOURCE: &[Field] =
    &[read("path"), ignored("watched_directory", Kind::Mapping, "whatever the path leads to is watched")];

/// Names of clusters that an error shows.
const MAX_SHOWN: usize = 10;

/// What a file says of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Each once, those that are draining left out.
    pub endpoints: Vec<Endpoint>,
    pub draining: BTreeSet<SocketAddr>,
}

/// Reads a `DiscoveryResponse`, or one `ClusterLoadAssignment` alone. What it says of other clusters is passed over.
/// `None` with something in `report`.
pub(in crate::config) fn read_assignment(
    root: &Entry<'_>,
    cluster: &str,
    report: &mut Report,
) -> Option<Assigned> {
    let mut import = Import::new(report);
    let assigned = assignments(root, &mut import)
        .and_then(|entries| named(root, &entries, cluster, &mut import))
        .map(|entry| assigned(&entry, &mut import));
    import.finish();
    assigned
}

/// The assignments of all clusters.
fn assignments<'a>(root: &Entry<'a>, import: &mut Import<'_>) -> Option<Vec<Entry<'a>>> {
    if !root.is_map() {
        root.refuse_type("a mapping with resources, or with cluster_name and endpoints", import.report);
        return None;
    }
    if !root.members().any(|(key, _)| key.name == "resources") {
        return Some(vec![root.clone()]);
    }
    let response = message::read(root, DISCOVERY_RESPONSE, import)?;
    let resources =
        response.get("resources").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    let mut assignments = Vec::new();
    for resource in resources {
        let extension = extension::any(&resource, import)?;
        if !ASSIGNMENTS.contains(&extension.kind) {
            import.error(&extension.place, format!("{} is no ClusterLoadAssignment", extension.kind));
        }
        assignments.extend(extension.config);
    }
    Some(assignments)
}

/// The assignment of the cluster; another one of it is an error.
fn named<'a>(
    root: &Entry<'_>,
    assignments: &[Entry<'a>],
    cluster: &str,
    import: &mut Import<'_>,
) -> Option<Entry<'a>> {
    let mut names = BTreeSet::new();
    let mut found = None;
    for entry in assignments {
        let name =
            entry.members().find(|(key, _)| matches!(key.name.as_str(), "cluster_name" | "clusterName"));
        match name.as_ref().map(|(_, name)| name.value()) {
            Some(Value::Text(name)) if !name.is_empty() => {
                if !names.insert(name.as_str()) {
                    import.error(entry, format!("the cluster {name} is there already: keep one"));
                }
                if name == cluster {
                    found = Some(entry.clone());
                }
            }
            _ => import.error(entry, "needs a cluster_name"),
        }
    }
    if found.is_none() {
        let hint = import.report.hint(cluster, names.iter().copied());
        let mut shown: Vec<&str> = names.iter().copied().take(MAX_SHOWN).collect();
        shown.extend((names.len() > MAX_SHOWN).then_some("..."));
        shown.extend(names.is_empty().then_some("none"));
        import.error(root, format!("no cluster `{cluster}`{hint}; the clusters here: {}", shown.join(", ")));
    }
    found
}

fn assigned(entry: &Entry<'_>, import: &mut Import<'_>) -> Assigned {
    let members = endpoints::assignment(entry, import).members;
    let (draining, mut members): (Vec<_>, Vec<_>) =
        members.into_iter().partition(|member| member.standing == Standing::Draining);
    endpoints::close_gaps(&mut members);
    let endpoints = discovery::endpoints(&members, import);
    let mut draining: BTreeSet<SocketAddr> =
        discovery::endpoints(&draining, import).iter().map(|endpoint| endpoint.address).collect();
    for endpoint in &endpoints {
        draining.remove(&endpoint.address);
    }
    Assigned { endpoints, draining }
}

/// Of a cluster of `type: EDS`, whose keys are in `fields`: the file that its endpoints are in.
pub(super) fn endpoint_file(
    entry: &Entry<'_>,
    fields: &Message<'_>,
    import: &mut Import<'_>,
) -> Option<EndpointFile> {
    let config =
        fields.get("eds_cluster_config").and_then(|entry| message::read(entry, EDS_CLUSTER_CONFIG, import));
    let Some(source) = config.as_ref().and_then(|config| config.get("eds_config")) else {
        import.error(entry, "EDS needs eds_cluster_config with eds_config");
        return None;
    };
    let mark = import.mark();
    let keys = message::read(source, CONFIG_SOURCE, import)?;
    let nested = keys
        .get("path_config_source")
        .and_then(|entry| message::read(entry, PATH_CONFIG_SOURCE, import)?.get("path").cloned());
    keys.one_of(&["path", "path_config_source"], import);
    let Some(path) = nested.as_ref().or_else(|| keys.get("path")) else {
        if !import.failed_since(mark) {
            import.error(source, "needs path_config_source with the path of a file");
        }
        return None;
    };
    let text = value::nonempty(path, import)?;
    import.honour(path);
    let service = config.as_ref().and_then(|config| config.get("service_name"));
    let service = service.filter(|name| !message::is_empty_text(name)).and_then(|name| {
        import.honour(name);
        value::text(name, import)
    });
    let name = service.or_else(|| value::text(fields.get("name")?, import));
    Some(EndpointFile { path: PathBuf::from(text), cluster_name: name?.to_owned() })
}

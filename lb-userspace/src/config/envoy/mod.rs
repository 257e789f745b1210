//! An Envoy bootstrap, of API v2 or v3, as a configuration of Headgate.
//!
//! `schema` says what the keys of Envoy's messages are, `message` and `value` read them by the rules of protobuf's
//! JSON form, and `import` gathers what becomes of each. The other files each read one kind of message, with its
//! schema at their head. What is read here ends in the same drafts as the native form, so that `cross` checks both.

mod access_log;
mod address;
mod breakers;
mod cluster;
mod common_lb;
mod discovery;
mod dns;
mod eds;
mod endpoints;
mod extension;
mod headers;
mod health;
mod health_check;
mod import;
mod listener;
mod log_flush;
mod message;
mod outlier;
mod payload;
mod percent;
mod policy;
mod probe;
mod schema;
mod slow_start;
mod table_sizes;
mod tcp_proxy;
#[cfg(test)]
mod tests;
mod transport;
mod value;

use std::collections::{HashMap, HashSet};

pub use self::eds::Assigned;
pub(super) use self::eds::read_assignment;
use self::import::Import;
use self::message::Message;
use self::policy::{Hashing, Policy};
use self::schema::{Field, Kind, MAPPINGS, NODE, Rule, SOCKET_OPTIONS, ignored, read, refused};
use super::cluster::ClusterDraft;
use super::finding::Finding;
use super::sections::Sections;
use super::tree::{Entry, Located, Report};

const NO_STATISTICS_SINK: &str = "Headgate's statistics are read from its admin port";
const NO_RUNTIME: &str = "Headgate has no runtime flags";
const NO_EXTENSIONS: &str = "Headgate has no extensions";
const NO_CONTROL_PLANE: &str =
    "configuration from a control plane (xDS) is not supported: only static_resources";
const NO_HTTP: &str = "there are no HTTP filters";

const BOOTSTRAP: &[Field] = &[
    ignored("node", NODE, "it names Envoy to a control plane"),
    ignored("node_context_params", Kind::List(&Kind::Text), "it names Envoy to a control plane"),
    read("static_resources"),
    read("dynamic_resources"),
    ignored("cluster_manager", Kind::Mapping, "it is for zones, event logs and control planes"),
    ignored("hds_config", Kind::Mapping, "Headgate has no control plane to report to"),
    ignored("flags_path", Kind::Text, NO_RUNTIME),
    ignored("stats_sinks", MAPPINGS, NO_STATISTICS_SINK),
    ignored("deferred_stat_options", Kind::Mapping, NO_STATISTICS_SINK),
    ignored("stats_config", Kind::Mapping, "statistics have Envoy's default names"),
    ignored("stats_flush_interval", Kind::Duration { least_ms: 1 }, NO_STATISTICS_SINK),
    ignored("stats_flush_on_admin", Kind::Bool, NO_STATISTICS_SINK),
    ignored("stats_eviction_interval", Kind::Duration { least_ms: 1 }, NO_STATISTICS_SINK),
    ignored("watchdog", Kind::Mapping, "it is for Envoy's threads"),
    ignored("watchdogs", Kind::Mapping, "it is for Envoy's threads"),
    ignored("tracing", Kind::Mapping, NO_HTTP),
    ignored("runtime", Kind::Mapping, NO_RUNTIME),
    ignored("layered_runtime", Kind::Mapping, NO_RUNTIME),
    read("admin"),
    ignored(
        "overload_manager",
        Kind::Mapping,
        "it guards Envoy's memory; datapath.max_flows bounds Headgate's",
    ),
    ignored("enable_dispatcher_stats", Kind::Bool, "it is for Envoy's threads"),
    ignored("header_prefix", Kind::Text, NO_HTTP),
    ignored("stats_server_version_override", Kind::U64, NO_STATISTICS_SINK),
    ignored("use_tcp_for_dns_lookups", Kind::Bool, "the options of /etc/resolv.conf hold"),
    read("dns_resolution_config"),
    read("typed_dns_resolver_config"),
    ignored("bootstrap_extensions", MAPPINGS, NO_EXTENSIONS),
    ignored("fatal_actions", MAPPINGS, NO_EXTENSIONS),
    refused("config_sources", NO_CONTROL_PLANE),
    ignored("default_config_source", Kind::Mapping, "nothing is asked of a control plane"),
    ignored("default_socket_interface", Kind::Text, NO_EXTENSIONS),
    ignored("certificate_provider_instances", Kind::Mapping, "Headgate passes TLS through"),
    ignored("inline_headers", MAPPINGS, NO_HTTP),
    ignored("perf_tracing_file_path", Kind::Text, "it is for Envoy's developers"),
    ignored("default_regex_engine", Kind::Mapping, NO_HTTP),
    ignored("xds_delegate_extension", Kind::Mapping, NO_EXTENSIONS),
    ignored("xds_config_tracker_extension", Kind::Mapping, NO_EXTENSIONS),
    ignored("listener_manager", Kind::Mapping, NO_EXTENSIONS),
    ignored("application_log_config", Kind::Mapping, "Headgate's own log has its own format"),
    ignored("grpc_async_client_manager_config", Kind::Mapping, NO_EXTENSIONS),
    ignored("memory_allocator_manager", Kind::Mapping, "it is for Envoy's memory"),
    ignored("enable_worker_cpu_affinity", Kind::Bool, "it is for Envoy's threads"),
];

const STATIC_RESOURCES: &[Field] = &[
    read("listeners"),
    read("clusters"),
    Field { name: "secrets", rule: Rule::Ignored(MAPPINGS, "Headgate passes TLS through") },
];

const DYNAMIC_RESOURCES: &[Field] = &[
    refused("lds_config", NO_CONTROL_PLANE),
    refused("lds_resources_locator", NO_CONTROL_PLANE),
    refused("cds_config", NO_CONTROL_PLANE),
    refused("cds_resources_locator", NO_CONTROL_PLANE),
    refused("ads_config", NO_CONTROL_PLANE),
];

const ADMIN_LOG: &str = "requests to the admin port are not logged";

const ADMIN: &[Field] = &[
    ignored("access_log", MAPPINGS, ADMIN_LOG),
    ignored("access_log_path", Kind::Text, ADMIN_LOG),
    ignored("profile_path", Kind::Text, "Headgate's admin port has no profiler"),
    read("address"),
    ignored("socket_options", SOCKET_OPTIONS, "Headgate sets up its sockets itself"),
    ignored("ignore_global_conn_limit", Kind::Bool, "there is no limit of all listeners together"),
    ignored("allow_paths", MAPPINGS, "Headgate's admin port only reads"),
];

/// The first keys of a bootstrap that say what it is for.
const MARKS: [&str; 4] = ["static_resources", "staticResources", "dynamic_resources", "dynamicResources"];

/// What an import gives.
pub(super) struct Imported {
    pub(super) sections: Sections,
    pub(super) findings: Vec<Finding>,
    pub(super) warnings: Vec<Located<String>>,
    /// Clusters that have Envoy's default limit of connections because they say nothing about it.
    pub(super) silent_limits: Vec<String>,
}

impl Imported {
    /// A file of the native form, where there is nothing to find.
    pub(super) fn native(sections: Sections) -> Self {
        Self { sections, findings: Vec::new(), warnings: Vec::new(), silent_limits: Vec::new() }
    }
}

pub(super) fn is_bootstrap(root: &Entry<'_>) -> bool {
    root.members().any(|(key, _)| MARKS.contains(&key.name.as_str()))
}

/// What is wrong is in `report`.
pub(super) fn read_bootstrap(root: &Entry<'_>, report: &mut Report) -> Imported {
    let mut import = Import::new(report);
    let (sections, silent_limits) = bootstrap(root, &mut import);
    let (findings, warnings) = import.finish();
    Imported { sections, findings, warnings, silent_limits }
}

fn bootstrap(root: &Entry<'_>, import: &mut Import<'_>) -> (Sections, Vec<String>) {
    let mut sections = Sections { imported: true, ..Sections::default() };
    let Some(fields) = message::read(root, BOOTSTRAP, import) else { return (sections, Vec::new()) };
    if let Some(entry) = fields.get("dynamic_resources") {
        message::read(entry, DYNAMIC_RESOURCES, import);
    }
    dns::check_resolvers(&fields, import);
    sections.admin = fields.get("admin").and_then(|entry| {
        let address = message::read(entry, ADMIN, import)?.get("address")?.clone();
        Some(address.at(address::socket_address(&address, import)?))
    });
    let resources =
        fields.get("static_resources").and_then(|entry| message::read(entry, STATIC_RESOURCES, import));
    let Some(resources) = resources else {
        import.refuse(root, "needs static_resources with the listeners and clusters");
        return (sections, Vec::new());
    };
    let mark = import.mark();
    let read = elements(&resources, "listeners", import);
    let read: Vec<listener::Imported<'_>> =
        read.iter().filter_map(|entry| listener::read_listener(entry, import)).collect();
    if read.is_empty() && !import.failed_since(mark) {
        import.refuse(root, "there are no listeners, so that Headgate would serve nothing");
    }
    let mut clusters = Clusters { hashings: hashings(&read), ..Clusters::default() };
    for entry in elements(&resources, "clusters", import) {
        if let Some(draft) = clusters.read(&entry, import) {
            sections.clusters.push(draft);
        }
    }
    for listener in &read {
        let Some(entry) = &listener.source_ip else { continue };
        if listener.draft.clusters.iter().any(|cluster| clusters.hashed.contains(&cluster.value.name)) {
            import.honour(entry);
        } else {
            import.ignore(entry, "it is for the policies RING_HASH and MAGLEV");
        }
    }
    sections.listeners = read.into_iter().map(|imported| imported.draft).collect();
    (sections, clusters.silent_limits)
}

fn elements<'a>(fields: &Message<'a>, key: &str, import: &mut Import<'_>) -> Vec<Entry<'a>> {
    fields.get(key).map(|entry| message::repeated(entry, import)).unwrap_or_default()
}

/// What the listeners of each cluster say about hashing.
fn hashings(listeners: &[listener::Imported<'_>]) -> HashMap<String, Hashing> {
    let mut hashings: HashMap<String, Hashing> = HashMap::new();
    for listener in listeners {
        for cluster in &listener.draft.clusters {
            let hashing = hashings.entry(cluster.value.name.clone()).or_default();
            match listener.source_ip {
                Some(_) => hashing.by_source_ip = true,
                None => hashing.by_nothing = true,
            }
        }
    }
    hashings
}

/// Reads the clusters, with what the listeners say about them.
#[derive(Default)]
struct Clusters {
    /// Of every cluster that a listener uses.
    hashings: HashMap<String, Hashing>,
    /// Those that choose by a hash.
    hashed: HashSet<String>,
    silent_limits: Vec<String>,
}

impl Clusters {
    /// `None` for a cluster that was refused, and for one that no listener uses and that would have to be refused:
    /// other parts of Envoy have clusters too, which may be what Headgate cannot serve.
    fn read(&mut self, entry: &Entry<'_>, import: &mut Import<'_>) -> Option<ClusterDraft> {
        let mark = import.mark();
        let imported = cluster::read_cluster(entry, import)?;
        let mut draft = imported.draft;
        let name = draft.name.as_ref()?.value.clone();
        let hashing = self.hashings.get(&name).copied();
        if matches!(imported.policy, Policy::Hashed(..)) {
            self.hashed.insert(name.clone());
        }
        draft.lb_policy = policy::resolve(imported.policy, hashing.unwrap_or_default(), import);
        if import.refused_since(mark) && hashing.is_none() {
            import.forgive_since(mark, "no listener uses the cluster");
            let why = "no listener uses it, and it is not supported";
            import.warn(entry, format!("the cluster {name} is left out: {why}"));
            return None;
        }
        if let Some(entry) = &imported.silent_limit {
            let message = format!(
                "the cluster {name} has Envoy's default of {} connections \
                 (circuit_breakers.thresholds.max_connections)",
                breakers::MAX_CONNECTIONS
            );
            import.warn(entry, message);
            self.silent_limits.push(name);
        }
        Some(draft)
    }
}

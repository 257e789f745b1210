//! The network filter `tcp_proxy`.

use std::collections::HashMap;
use std::time::Duration;

use super::import::Import;
use super::log_flush;
use super::message::{self, Message};
use super::schema::{DURATION, Field, Kind, PERCENT, checked, ignored, read, refused};
use super::value;
use crate::config::cluster::ATTEMPTS;
use crate::config::listener::IDLE_TIMEOUT;
use crate::config::tree::{Entry, Located};
use crate::model::{AccessLog, WeightedCluster};

/// Envoy's default.
pub(super) const CONNECT_ATTEMPTS: u32 = 1;

const SUBSETS: &str = "subsets of a cluster by metadata are not supported";
const UNUSED_BY_ENVOY: &str = "Envoy does not use it either";

const TCP_PROXY: &[Field] = &[
    read("stat_prefix"),
    read("cluster"),
    read("weighted_clusters"),
    refused("on_demand", "clusters on demand are not supported: only those of the file"),
    refused("metadata_match", SUBSETS),
    read("idle_timeout"),
    ignored("downstream_idle_timeout", DURATION, UNUSED_BY_ENVOY),
    ignored("upstream_idle_timeout", DURATION, UNUSED_BY_ENVOY),
    read("access_log"),
    read("max_connect_attempts"),
    ignored(
        "backoff_options",
        Kind::Message(&[
            checked("base_interval", Kind::Duration { least_ms: 1 }),
            checked("max_interval", Kind::PositiveDuration),
        ]),
        "the next backend is tried at once",
    ),
    read("hash_policy"),
    refused("tunneling_config", "tunnels in HTTP are not supported"),
    read("max_downstream_connection_duration"),
    ignored(
        "max_downstream_connection_duration_jitter_percentage",
        PERCENT,
        "every connection may last as long as max_downstream_connection_duration says",
    ),
    read("access_log_flush_interval"),
    read("flush_access_log_on_connected"),
    read("access_log_options"),
    refused("proxy_protocol_tlvs", "the PROXY protocol is not supported yet"),
    ignored(
        "proxy_protocol_tlv_merge_policy",
        Kind::Word(&["ADD_IF_ABSENT", "OVERWRITE_BY_TYPE_IF_EXISTS_OR_ADD", "APPEND_IF_EXISTS_OR_ADD"]),
        "the PROXY protocol is not supported yet",
    ),
    read("upstream_connect_mode"),
    ignored(
        "max_early_data_bytes",
        Kind::Range(0, 1 << 20),
        "only for other values of upstream_connect_mode",
    ),
    ignored("check_drain_close", Kind::Bool, "open connections go on while Headgate drains"),
    read("deprecated_v1"),
];

const WEIGHTED_CLUSTERS: &[Field] = &[read("clusters")];
const WEIGHTED_CLUSTER: &[Field] = &[read("name"), read("weight"), refused("metadata_match", SUBSETS)];
const HASH_POLICY: &[Field] = &[read("source_ip"), read("filter_state")];
const V1_ROUTES: &[Field] = &[read("routes")];
const NO_MATCH: &str = "routes by address and port are not supported";
const V1_ROUTE: &[Field] = &[
    read("cluster"),
    refused("destination_ip_list", NO_MATCH),
    refused("destination_ports", NO_MATCH),
    refused("source_ip_list", NO_MATCH),
    refused("source_ports", NO_MATCH),
];

/// The settings of the filter.
pub(super) struct TcpProxy<'a> {
    pub(super) stat_prefix: Option<String>,
    pub(super) clusters: Vec<Located<WeightedCluster>>,
    /// Zero: never.
    pub(super) idle_timeout: Duration,
    pub(super) connect_attempts: u32,
    /// Zero: never.
    pub(super) max_connection_duration: Duration,
    pub(super) access_logs: Vec<AccessLog>,
    /// Where `hash_policy` asks for the client's address.
    pub(super) source_ip: Option<Entry<'a>>,
}

pub(super) fn read_filter<'a>(config: &Entry<'a>, import: &mut Import<'_>) -> Option<TcpProxy<'a>> {
    let fields = message::read(config, TCP_PROXY, import)?;
    let stat_prefix = match fields.get("stat_prefix") {
        None => {
            import.error(config, "needs a stat_prefix");
            None
        }
        Some(entry) => {
            let name = entry.stat_name(import.report);
            import.honour(entry);
            name
        }
    };
    connect_mode(&fields, import);
    Some(TcpProxy {
        stat_prefix,
        clusters: clusters(config, &fields, import),
        idle_timeout: match fields.get("idle_timeout") {
            None => IDLE_TIMEOUT,
            Some(entry) => value::duration(entry, import)
                .map_or(IDLE_TIMEOUT, |duration| value::settle(entry, duration, import)),
        },
        connect_attempts: fields
            .get("max_connect_attempts")
            .map_or(CONNECT_ATTEMPTS, |entry| attempts(entry, import)),
        max_connection_duration: fields
            .get("max_downstream_connection_duration")
            .and_then(|entry| {
                let duration = value::duration_from(entry, 1, import)?;
                Some(value::settle(entry, duration, import))
            })
            .unwrap_or_default(),
        access_logs: log_flush::access_logs(&fields, import),
        source_ip: fields.get("hash_policy").and_then(|entry| source_ip(entry, import)),
    })
}

fn connect_mode(fields: &Message<'_>, import: &mut Import<'_>) {
    let modes = ["IMMEDIATE", "ON_DOWNSTREAM_DATA", "ON_DOWNSTREAM_TLS_HANDSHAKE"];
    let Some(entry) = fields.get("upstream_connect_mode") else { return };
    match value::word(entry, &modes, import) {
        Some(0) => import.honour(entry),
        Some(_) => import.refuse(entry, "Headgate connects at once: only IMMEDIATE is supported"),
        None => {}
    }
}

fn attempts(entry: &Entry<'_>, import: &mut Import<'_>) -> u32 {
    let Some(attempts) = value::u32(entry, 1..=u32::MAX, import) else { return CONNECT_ATTEMPTS };
    let most = *ATTEMPTS.end();
    if attempts > most {
        import.approximate(entry, format!("{most} attempts, the most that Headgate makes"));
        return most;
    }
    import.honour(entry);
    attempts
}

fn clusters(
    config: &Entry<'_>,
    fields: &Message<'_>,
    import: &mut Import<'_>,
) -> Vec<Located<WeightedCluster>> {
    match fields.one_of(&["cluster", "weighted_clusters", "deprecated_v1"], import) {
        None => {
            import.error(config, "needs cluster or weighted_clusters");
            Vec::new()
        }
        Some(entry) if fields.get("cluster").is_some() => cluster(entry, 1, import).into_iter().collect(),
        Some(entry) if fields.get("weighted_clusters").is_some() => weighted(entry, import),
        Some(entry) => only_route(entry, import).into_iter().collect(),
    }
}

fn cluster(entry: &Entry<'_>, weight: u32, import: &mut Import<'_>) -> Option<Located<WeightedCluster>> {
    let name = entry.name(import.report)?.value;
    import.honour(entry);
    Some(entry.at(WeightedCluster { name, weight }))
}

/// The weights of a cluster that is named twice are added.
fn weighted(entry: &Entry<'_>, import: &mut Import<'_>) -> Vec<Located<WeightedCluster>> {
    let Some(fields) = message::read(entry, WEIGHTED_CLUSTERS, import) else { return Vec::new() };
    let items = fields.get("clusters").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    if items.is_empty() {
        import.error(entry, "needs clusters, at least one");
    }
    let mut found: Vec<Located<WeightedCluster>> = Vec::new();
    let mut indices = HashMap::new();
    for item in &items {
        let Some(cluster) = weighted_cluster(item, import) else { continue };
        let index = *indices.entry(cluster.value.name.clone()).or_insert(found.len());
        match found.get_mut(index) {
            Some(earlier) => match earlier.value.weight.checked_add(cluster.value.weight) {
                Some(weight) => earlier.value.weight = weight,
                None => import.error(item, "the weights of this cluster together are above 4294967295"),
            },
            None => found.push(cluster),
        }
    }
    found
}

fn weighted_cluster(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Located<WeightedCluster>> {
    let fields = message::read(entry, WEIGHTED_CLUSTER, import)?;
    let (Some(name), Some(weight)) = (fields.get("name"), fields.get("weight")) else {
        import.error(entry, "needs name and weight");
        return None;
    };
    let number = value::u32(weight, 1..=u32::MAX, import)?;
    import.honour(weight);
    cluster(name, number, import)
}

/// The routes of v1, where they are no more than a cluster.
fn only_route(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Located<WeightedCluster>> {
    import.is_v2(entry);
    let fields = message::read(entry, V1_ROUTES, import)?;
    let routes = fields.get("routes").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    let [route] = routes.as_slice() else {
        import.refuse(entry, "needs exactly one route: routes by address and port are not supported");
        return None;
    };
    let fields = message::read(route, V1_ROUTE, import)?;
    let Some(name) = fields.get("cluster") else {
        import.error(route, "needs cluster");
        return None;
    };
    cluster(name, 1, import)
}

fn source_ip<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Entry<'a>> {
    let policies = message::repeated(entry, import);
    if policies.len() > 1 {
        import.error(entry, "Envoy takes at most one");
    }
    let policy = policies.into_iter().next()?;
    let fields = message::read(&policy, HASH_POLICY, import)?;
    let Some(source) = fields.one_of(&["source_ip", "filter_state"], import) else {
        import.error(&policy, "needs source_ip");
        return None;
    };
    if fields.get("filter_state").is_some() {
        import.refuse(source, "Headgate has no filter state: only source_ip is supported");
        return None;
    }
    message::read(source, &[], import)?;
    Some(source.clone())
}

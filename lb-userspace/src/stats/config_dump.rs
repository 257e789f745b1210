//! `/config_dump`: what is configured, in the shape of Envoy's v3 API, whatever file it came from.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::stats::page::Page;
use crate::stats::query::Query;
use crate::stats::view::{ClusterConfig, ConfigView, EndpointConfig, ListenerConfig};

const BOOTSTRAP: &str = "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump";
const CLUSTERS: &str = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump";
const LISTENERS: &str = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";

/// Envoy's `admin.v3.ConfigDump`. Takes `resource` (`static_clusters` or `static_listeners`), `name_regex`, which has
/// to match a whole name, and of `mask` only `bootstrap`: another one is refused rather than ignored.
pub fn config_dump(config: &ConfigView, query: &Query) -> Page {
    let name_regex = match query.whole_pattern("name_regex") {
        Ok(pattern) => pattern,
        Err(error) => return Page::refusal(400, error),
    };
    let wanted = |name: &str| name_regex.as_ref().is_none_or(|pattern| pattern.matches(name));
    let updated = config.last_updated.map(timestamp);
    let clusters = || {
        let wanted = config.clusters.iter().filter(|of| wanted(&of.name));
        wanted
            .map(|of| dated(json!({ "cluster": typed(CLUSTER, cluster(of)) }), &updated))
            .collect::<Vec<_>>()
    };
    let listeners = || {
        let wanted = config.listeners.iter().filter(|of| wanted(&of.name));
        wanted
            .map(|of| dated(json!({ "listener": typed(LISTENER, listener(of)) }), &updated))
            .collect::<Vec<_>>()
    };
    let bootstrap = || typed(BOOTSTRAP, dated(json!({ "bootstrap": bootstrap(config) }), &updated));
    let configs = match (query.get("resource"), query.get("mask")) {
        (None, None) => vec![
            bootstrap(),
            typed(CLUSTERS, json!({ "static_clusters": clusters() })),
            typed(LISTENERS, json!({ "static_listeners": listeners() })),
        ],
        (None, Some("bootstrap")) => vec![bootstrap()],
        (_, Some(_)) => {
            let why =
                "of mask only `bootstrap` is supported: take other parts from the whole dump, with jq\n";
            return Page::refusal(400, why);
        }
        (Some("static_clusters"), None) => typed_all(&format!("{CLUSTERS}.StaticCluster"), clusters()),
        (Some("static_listeners"), None) => typed_all(&format!("{LISTENERS}.StaticListener"), listeners()),
        (Some("bootstrap"), None) => {
            let why = "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field";
            return Page::refusal(400, why);
        }
        (Some(other), None) => return Page::refusal(404, format!("{other} not found in config dump")),
    };
    Page::json(&json!({ "configs": configs }))
}

fn bootstrap(config: &ConfigView) -> Value {
    let mut bootstrap = json!({
        "static_resources": {
            "listeners": config.listeners.iter().map(listener).collect::<Vec<_>>(),
            "clusters": config.clusters.iter().map(cluster).collect::<Vec<_>>(),
        },
    });
    if let Some(address) = config.admin_address {
        bootstrap["admin"] = json!({ "address": socket_address(&address.ip().to_string(), address.port()) });
    }
    bootstrap
}

fn listener(of: &ListenerConfig) -> Value {
    let mut tcp_proxy = json!({
        "@type": TCP_PROXY,
        "stat_prefix": of.stat_prefix,
        "idle_timeout": duration(of.idle_timeout.unwrap_or_default()),
        "max_connect_attempts": of.max_connect_attempts,
    });
    match of.clusters.as_slice() {
        [(name, _)] => tcp_proxy["cluster"] = json!(name),
        clusters => {
            let clusters: Vec<Value> =
                clusters.iter().map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
            tcp_proxy["weighted_clusters"] = json!({ "clusters": clusters });
        }
    }
    if let Some(limit) = of.max_downstream_connection_duration {
        tcp_proxy["max_downstream_connection_duration"] = json!(duration(limit));
    }
    if !of.access_log_paths.is_empty() {
        let logs = of.access_log_paths.iter().map(|path| {
            json!({ "name": "envoy.access_loggers.file", "typed_config": { "@type": FILE_LOG, "path": path } })
        });
        tcp_proxy["access_log"] = logs.collect();
    }
    json!({
        "name": of.name,
        "address": socket_address(&of.address.ip().to_string(), of.address.port()),
        "filter_chains": [{
            "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": tcp_proxy }],
        }],
    })
}

fn cluster(of: &ClusterConfig) -> Value {
    let endpoints: Vec<Value> = of.endpoints.iter().map(endpoint).collect();
    let mut cluster = json!({
        "name": of.name,
        "type": "STATIC",
        "connect_timeout": duration(of.connect_timeout),
        "lb_policy": of.lb_policy,
        "load_assignment": { "cluster_name": of.name, "endpoints": [{ "lb_endpoints": endpoints }] },
    });
    if let Some(name) = &of.alt_stat_name {
        cluster["alt_stat_name"] = json!(name);
    }
    if let Some(limit) = of.max_connections {
        cluster["circuit_breakers"] = json!({ "thresholds": [{ "max_connections": limit }] });
    }
    if let Some(dns) = &of.dns {
        let (base, max) = dns.failure_refresh_rate;
        cluster["type"] = json!(if dns.logical { "LOGICAL_DNS" } else { "STRICT_DNS" });
        cluster["dns_refresh_rate"] = json!(duration(dns.refresh_rate));
        cluster["dns_failure_refresh_rate"] =
            json!({ "base_interval": duration(base), "max_interval": duration(max) });
        cluster["respect_dns_ttl"] = json!(dns.respect_ttl);
        cluster["dns_jitter"] = json!(duration(dns.jitter));
        cluster["dns_lookup_family"] = json!(dns.lookup_family);
    }
    if let Some(file) = &of.file {
        cluster["type"] = json!("EDS");
        cluster["eds_cluster_config"] = json!({
            "eds_config": { "path_config_source": { "path": file.path } },
            "service_name": file.service_name,
        });
        if let Value::Object(keys) = &mut cluster {
            keys.remove("load_assignment");
        }
    }
    cluster
}

fn endpoint(of: &EndpointConfig) -> Value {
    json!({
        "endpoint": { "address": socket_address(&of.host, of.port) },
        "load_balancing_weight": of.weight,
    })
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// With the type of a message, first as keys are sorted.
fn typed(name: &str, message: Value) -> Value {
    let mut typed = Map::from_iter([("@type".to_owned(), json!(name))]);
    if let Value::Object(message) = message {
        typed.extend(message);
    }
    Value::Object(typed)
}

fn typed_all(name: &str, messages: Vec<Value>) -> Vec<Value> {
    messages.into_iter().map(|message| typed(name, message)).collect()
}

fn dated(mut message: Value, at: &Option<String>) -> Value {
    if let Some(at) = at {
        message["last_updated"] = json!(at);
    }
    message
}

fn timestamp(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// As protobuf's JSON has it: seconds with no, three, six or nine digits behind the point.
fn duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match (nanos, nanos % 1_000_000, nanos % 1_000) {
        (0, _, _) => format!("{seconds}s"),
        (_, 0, _) => format!("{seconds}.{:03}s", nanos / 1_000_000),
        (_, _, 0) => format!("{seconds}.{:06}s", nanos / 1_000),
        _ => format!("{seconds}.{nanos:09}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_protobuf() {
        let texts = [0, 1_000_000_000, 300_000_000, 1_000_001_000, 1].map(Duration::from_nanos).map(duration);
        assert_eq!(texts, ["0s", "1s", "0.300s", "1.000001s", "0.000000001s"]);
    }
}

//! Envoy bootstraps that proptest makes up.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::health_keys::health;

const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";

pub(super) fn optional(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), value]
}

pub(super) fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,8}", "[ -~]{1,12}", "\\PC{1,12}", Just("yes".to_owned()), Just("1e3".to_owned())]
}

fn format() -> impl Strategy<Value = Value> {
    let json = prop::collection::btree_map(
        text(),
        prop_oneof![
            text().prop_map(|text| Value::from(text.replace('%', "%%"))),
            any::<i64>().prop_map(Value::from),
            Just(json!([null, 1.5]))
        ],
        0..4,
    );
    prop_oneof![
        Just(json!({ "path": "/dev/stdout" })),
        (text(), "\n{0,2}", any::<bool>()).prop_map(|(line, end, omits_empty)| {
            let text = format!("{}x{end}", line.replace('%', "%%"));
            let format = json!({ "text_format": text, "omit_empty_values": omits_empty });
            json!({ "path": "/var/log/a b", "log_format": format })
        }),
        json.prop_map(|json| json!({ "path": "/dev/stderr", "json_format": json })),
    ]
}

pub(super) fn duration() -> impl Strategy<Value = Value> {
    (1_u64..40_000_000, 0_u32..1000).prop_map(|(s, ms)| json!(format!("{s}.{ms:03}s")))
}

prop_compose! {
    fn proxy()(
        prefix in "[a-z][a-z0-9 ]{0,9}",
        weights in prop::collection::vec(1_u32.., 1..3),
        idle in optional(prop_oneof![Just(json!("0s")), duration()]),
        attempts in optional((1_u32..40).prop_map(Value::from)),
        age in optional(duration()),
        logs in prop::collection::vec(format(), 0..3),
        interval in optional(duration()),
        (on_connect, on_start) in any::<(bool, bool)>(),
        hash in any::<bool>(),
    ) -> Value {
        let clusters: Vec<Value> = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| json!({ "name": format!("c{index}"), "weight": weight }))
            .collect();
        let logs: Vec<Value> = logs
            .into_iter()
            .map(|mut log| {
                log["@type"] = FILE_LOG.into();
                json!({ "name": "log", "typed_config": log })
            })
            .collect();
        let hash = if hash { json!([{ "source_ip": {} }]) } else { json!([]) };
        json!({
            "@type": TCP_PROXY,
            "stat_prefix": prefix,
            "weighted_clusters": { "clusters": clusters },
            "idle_timeout": idle,
            "max_connect_attempts": attempts,
            "max_downstream_connection_duration": age,
            "access_log": logs,
            "access_log_options": {
                "access_log_flush_interval": interval,
                "flush_access_log_on_connected": on_connect,
                "flush_access_log_on_start": on_start,
            },
            "hash_policy": hash,
        })
    }
}

fn place() -> impl Strategy<Value = Value> {
    let address = json!({ "socket_address": { "address": "::1", "port_value": 7 } });
    (0_u16.., optional(Just(address)), optional(Just(json!("a \"b"))), any::<bool>()).prop_map(
        |(port, address, hostname, skip)| {
            json!({
                "port_value": port,
                "address": address,
                "hostname": hostname,
                "disable_active_health_check": skip,
            })
        },
    )
}

prop_compose! {
    fn cluster(index: usize)(
        kind in prop::sample::select(vec!["STATIC", "STRICT_DNS", "LOGICAL_DNS"]),
        weights in prop::collection::vec(1_u32.., 1..4),
        policy in prop::sample::select(vec!["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "MAGLEV", "RING_HASH"]),
        family in prop::sample::select(vec!["AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL"]),
        timeout in optional(duration()),
        limit in optional((1_u32..).prop_map(Value::from)),
        rate in optional(duration()),
        failure in optional(duration().prop_map(|base| json!({ "base_interval": base }))),
        jitter in optional(duration()),
        ttl in any::<bool>(),
        stat in optional("[a-z;.]{1,9}".prop_map(Value::from)),
        places in prop::collection::vec((0_u32..=128, optional(place())), 3),
        overprovisioning in optional((1_u32..).prop_map(Value::from)),
        health in health(),
    ) -> Value {
        let count = if kind == "LOGICAL_DNS" { 1 } else { weights.len() };
        let localities: Vec<Value> = weights[..count]
            .iter()
            .zip(&places)
            .enumerate()
            .map(|(host, (weight, (priority, place)))| {
                let address = match kind {
                    "STATIC" => format!("2001:db8::{}", host + 1),
                    _ => format!("h{host}.example"),
                };
                let address = json!({ "socket_address": { "address": address, "port_value": 80 } });
                let endpoint = json!({
                    "endpoint": { "address": address, "health_check_config": place },
                    "load_balancing_weight": weight,
                });
                json!({ "priority": priority, "lb_endpoints": [endpoint] })
            })
            .collect();
        let mut cluster = json!({
            "name": format!("c{index}"),
            "type": kind,
            "lb_policy": policy,
            "dns_lookup_family": family,
            "connect_timeout": timeout,
            "circuit_breakers": { "thresholds": [{ "max_connections": limit }] },
            "dns_refresh_rate": rate,
            "dns_failure_refresh_rate": failure,
            "dns_jitter": jitter,
            "respect_dns_ttl": ttl,
            "alt_stat_name": stat,
            "load_assignment": {
                "cluster_name": "c",
                "endpoints": localities,
                "policy": { "overprovisioning_factor": overprovisioning },
            },
        });
        let keys = health.as_object().unwrap().clone();
        cluster.as_object_mut().unwrap().extend(keys);
        cluster
    }
}

prop_compose! {
    pub(super) fn bootstrap()(
        proxy in proxy(),
        clusters in (cluster(0), cluster(1)),
        v6 in any::<bool>(),
        admin in optional(Just(json!({
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": 8001 } },
        }))),
    ) -> String {
        let address = if v6 { "::" } else { "127.0.0.2" };
        json!({
            "admin": admin,
            "static_resources": {
                "listeners": [{
                    "address": { "socket_address": { "address": address, "port_value": 80 } },
                    "filter_chains": [{ "filters": [{ "name": "proxy", "typed_config": proxy }] }],
                }],
                "clusters": [clusters.0, clusters.1],
            },
        })
        .to_string()
    }
}

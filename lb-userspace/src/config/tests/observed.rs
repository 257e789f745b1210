//! What shows the agent to others: the admin port and the access logs; and what a listener says of its clusters.

use std::path::Path;
use std::time::Duration;

use super::{MINIMAL, address, cluster_with, listener_with, ok, refused};
use crate::access_log::Format;
use crate::model::{AccessLog, Admin, LbPolicy, WeightedCluster};

fn file_logs(text: &str) -> Vec<AccessLog> {
    ok(&format!("{MINIMAL}access_log: {text}\n")).config.listeners.remove(0).access_logs
}

#[test]
fn the_admin_port() {
    let admin = |text: &str| ok(&format!("{MINIMAL}{text}\n")).config.admin;
    assert_eq!(admin(""), None);
    assert_eq!(admin("admin: {}"), Some(Admin { address: address("127.0.0.1:8001") }));
    assert_eq!(admin("admin: { address: 0.0.0.0:9901 }"), Some(Admin { address: address("0.0.0.0:9901") }));
    let loaded = ok(&format!("{MINIMAL}admin: {{ address: 127.0.0.1:8001 }}\n"));
    assert_eq!(loaded.places.admin().map(|place| (place.line, place.column)), Some((8, 19)));
    assert!(loaded.warnings.is_empty() && loaded.findings.is_empty());
    let text = format!("{MINIMAL}admin: {{ address: 127.0.0.1:80 }}\n");
    refused(&text, 8, 19, "admin.address", "overlaps with the listener's 0.0.0.0:80 on line 3");
    refused(&format!("{MINIMAL}admin: {{ port: 1 }}\n"), 8, 10, "admin.port", "the keys here: address");
    refused(&format!("{MINIMAL}admin: 8001\n"), 8, 8, "admin", "a mapping with the keys address");
}

#[test]
fn an_access_log_has_defaults() {
    let default = AccessLog {
        path: "/dev/stdout".into(),
        format: Format::envoy_default(),
        flush_interval: None,
        on_connect: false,
        on_start: false,
    };
    assert_eq!(file_logs("{}"), std::slice::from_ref(&default));
    assert_eq!(file_logs("{ format: default, flush_interval: 0s }"), std::slice::from_ref(&default));
    assert_eq!(file_logs("[]"), []);
    let all = file_logs(
        "[{}, { path: /var/log/x, format: \"%DURATION%\", flush_interval: 5s, on_connect: true, on_start: true }]",
    );
    assert_eq!(all[0], default);
    assert_eq!(all[1].path, Path::new("/var/log/x"));
    assert_eq!(all[1].format, Format::text("%DURATION%\n").unwrap());
    assert_eq!(all[1].flush_interval, Some(Duration::from_secs(5)));
    assert!(all[1].on_connect && all[1].on_start);
}

#[test]
fn formats() {
    let format = |text: &str| file_logs(&format!("{{ format: {text} }}")).remove(0).format;
    assert_eq!(format("\"a\\n\""), Format::text("a\n").unwrap());
    assert_eq!(format("\"a\\n\", newline: false"), Format::text("a\n").unwrap());
    assert_eq!(format("\"a\", newline: false"), Format::text("a").unwrap());
    assert_eq!(format("\"a\", omit_empty_values: true"), Format::text("a\n").unwrap().omit_empty(true));
    let json = serde_json::json!({ "ms": "%DURATION%", "n": 5, "f": 1.5, "list": [true, null, -3] });
    assert_eq!(
        format("{ ms: \"%DURATION%\", n: 5, f: 1.5, list: [true, null, -3] }"),
        Format::json(&json).unwrap()
    );
}

#[test]
fn a_listener_has_its_own_logs_in_place_of_the_files() {
    let text = format!("{}\naccess_log: {{ path: /a }}\n", listener_with("access_log: { path: /b }"));
    assert_eq!(ok(&text).config.listeners[0].access_logs[0].path, Path::new("/b"));
    let text = format!("{}\naccess_log: {{ path: /a }}\n", listener_with("access_log: []"));
    assert_eq!(ok(&text).config.listeners[0].access_logs, []);
}

#[test]
fn bad_access_logs() {
    let with = |text: &str| format!("{MINIMAL}access_log: {text}\n");
    refused(&with("{ path: \"\" }"), 8, 21, "access_log.path", "not a path");
    refused(&with("[{ file: /a }]"), 8, 16, "access_log[0].file", "unknown key; the keys here: path,");
    refused(&with("{ format: 5 }"), 8, 23, "access_log.format", "needs default, a text");
    refused(&with("{ on_start: maybe }"), 8, 25, "access_log.on_start", "true or false");
    refused(&with("text"), 8, 13, "access_log", "needs a mapping");
}

#[test]
fn weighted_clusters() {
    let text = MINIMAL
        .replace("cluster: gateway", "clusters: [{ name: gateway, weight: 95 }, { name: next }]")
        + "  - { name: next, discovery: { type: static, hosts: [\"10.0.0.8:8080\"] } }\n";
    let clusters = [("gateway", 95), ("next", 1)]
        .map(|(name, weight)| WeightedCluster { name: name.to_owned(), weight });
    assert_eq!(ok(&text).config.listeners[0].clusters, clusters);

    let with = |clusters: &str| MINIMAL.replace("cluster: gateway", &format!("clusters: {clusters}"));
    refused(&with("[]"), 4, 15, "listeners[0].clusters", "at least one cluster");
    refused(&with("[{ name: a }]"), 4, 24, "listeners[0].clusters[0].name", "no cluster `a`");
    let field = "listeners[0].clusters[0].weight";
    refused(&with("[{ name: gateway, weight: 0 }]"), 4, 41, field, "from 1 to");
    let twice = with("[{ name: gateway }, { name: gateway }]");
    refused(
        &twice,
        4,
        43,
        "listeners[0].clusters[1].name",
        "the same cluster as listeners[0].clusters[0].name",
    );
    let both = with("[{ name: gateway }]\n    cluster: gateway");
    refused(&both, 5, 14, "listeners[0].cluster", "keep one of the two");
}

#[test]
fn other_keys_of_a_listener_and_a_cluster() {
    let listener = |text: &str| ok(&listener_with(text)).config.listeners.remove(0);
    assert_eq!(listener("stat_prefix: ingress http").stat_prefix, "ingress http");
    assert_eq!(listener("connect_attempts: 16").connect_attempts, Some(16));
    let age = listener("max_connection_duration: 1h").max_connection_duration;
    assert_eq!(age, Some(Duration::from_secs(3600)));
    assert_eq!(listener("max_connection_duration: 0s").max_connection_duration, None);
    refused(&listener_with("connect_attempts: 0"), 5, 23, "listeners[0].connect_attempts", "from 1 to 16");
    refused(&listener_with("stat_prefix: \"\""), 5, 18, "listeners[0].stat_prefix", "1 to 128 bytes");

    let cluster = |text: &str| ok(&cluster_with(text)).config.clusters.remove(0);
    assert_eq!(cluster("max_connections: 10").max_connections, Some(10));
    assert_eq!(cluster("max_connections: 0").max_connections, None);
    assert_eq!(cluster("stat_name: edge").stat_name, Some("edge".to_owned()));
    assert_eq!(cluster("lb_policy: least_request").lb_policy, LbPolicy::LeastRequest);
    let field = "clusters[0].max_connections";
    refused(&cluster_with("max_connections: -1"), 8, 22, field, "0 (no limit), or a whole number");
}

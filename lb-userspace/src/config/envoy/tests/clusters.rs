//! Clusters: their policies, discovery, endpoints and limits.

use std::time::Duration;

use super::{Bootstrap, STATIC, approximated, cluster, discovery, ignored, proxy, verdict};
use crate::config::{Verdict, parse};
use crate::model::{
    Backoff, Discovery, DnsFamily, DnsHost, Endpoint, EndpointFile, LbPolicy, StrictDns, WeightedCluster,
};

#[test]
fn clusters_by_weight() {
    let text = Bootstrap { more: &Bootstrap::more_cluster("d", ""), ..Bootstrap::default() }.text();
    let weighted = "weighted_clusters: { clusters: [{ name: c, weight: 2 }, { name: d, weight: 1 }, \
                    { name: c, weight: 3 }] }";
    let loaded = parse(&text.replace("cluster: c\n", &format!("{weighted}\n")), "x").unwrap();
    let expected =
        [("c", 5), ("d", 1)].map(|(name, weight)| WeightedCluster { name: name.to_owned(), weight });
    assert_eq!(loaded.config.listeners[0].clusters, expected);
}

#[test]
fn policies() {
    let fixed = [
        ("ROUND_ROBIN", LbPolicy::RoundRobin),
        ("LEAST_REQUEST", LbPolicy::LeastRequest),
        ("RANDOM", LbPolicy::Random),
        ("3", LbPolicy::Random),
    ];
    for (word, policy) in fixed {
        let loaded = cluster(&format!("lb_policy: {word}"));
        assert_eq!(loaded.config.clusters[0].lb_policy, policy, "{word}");
        assert_eq!(verdict(&loaded, "lb_policy"), Verdict::Honoured);
    }
    for word in ["RING_HASH", "MAGLEV"] {
        let key = format!("lb_policy: {word}");
        let plain = cluster(&key);
        assert_eq!(plain.config.clusters[0].lb_policy, LbPolicy::Maglev);
        approximated(&plain, "lb_policy", "chooses at random");
        let hashed =
            Bootstrap { cluster: &key, proxy: "hash_policy: [{ source_ip: {} }]", ..Bootstrap::default() };
        let hashed = hashed.ok();
        assert_eq!(hashed.config.clusters[0].lb_policy, LbPolicy::SourceIp);
        approximated(&hashed, "lb_policy", "source_ip");
        assert_eq!(verdict(&hashed, "source_ip"), Verdict::Honoured);
    }
    let typed = "load_balancing_policy: { policies: [{ typed_extension_config: { name: x, typed_config: { \"@type\": \
                 type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest } } }] }";
    assert_eq!(cluster(typed).config.clusters[0].lb_policy, LbPolicy::LeastRequest);
    ignored(&proxy("hash_policy: [{ source_ip: {} }]"), "source_ip");
}

#[test]
fn dns_settings() {
    let host = STATIC.replace("10.0.0.7", "A.b");
    let keys = "dns_refresh_rate: 0.05s\n    respect_dns_ttl: true\n    dns_jitter: 1s\n    dns_failure_refresh_rate: \
                { base_interval: 2s }\n    dns_lookup_family: V4_PREFERRED";
    let loaded = discovery(&format!("type: STRICT_DNS\n    {host}\n    {keys}"));
    let expected = StrictDns {
        hosts: vec![DnsHost::new("a.b", 8080, 1)],
        refresh_rate: Duration::from_millis(100),
        respect_ttl: true,
        jitter: Duration::from_secs(1),
        failure_backoff: Backoff { base: Duration::from_secs(2), max: Duration::from_secs(20) },
        hold_nx: Duration::ZERO,
        family: DnsFamily::Auto,
        logical: false,
    };
    assert_eq!(loaded.config.clusters[0].discovery, Discovery::StrictDns(expected));
    approximated(&loaded, "dns_refresh_rate", "100 ms");
    approximated(&loaded, "dns_lookup_family", "both families");
    ignored(&cluster("respect_dns_ttl: true"), "respect_dns_ttl");
}

#[test]
fn endpoints_of_a_file() {
    let eds = |source: &str, more: &str| {
        format!("type: EDS\n    eds_cluster_config: {{ eds_config: {{ {source} }}{more} }}")
    };
    let file = |cluster_name: &str| {
        Discovery::File(EndpointFile { path: "/etc/e.yaml".into(), cluster_name: cluster_name.to_owned() })
    };
    let nested = "path_config_source: { path: /etc/e.yaml, watched_directory: { path: /etc } }, \
                  resource_api_version: V3, initial_fetch_timeout: 0s";
    let loaded = discovery(&eds(nested, ""));
    assert_eq!(loaded.config.clusters[0].discovery, file("c"));
    assert_eq!(verdict(&loaded, "path_config_source.path"), Verdict::Honoured);
    ignored(&loaded, "watched_directory");
    let loaded = discovery(&eds("path: /etc/e.yaml", ", service_name: gateway"));
    assert_eq!(loaded.config.clusters[0].discovery, file("gateway"));
    assert_eq!(verdict(&loaded, "service_name"), Verdict::Honoured);
    ignored(&discovery(&format!("{}\n    {STATIC}", eds("path: a", ""))), "load_assignment");

    let error = |discovery: &str| Bootstrap { discovery: Some(discovery), ..Bootstrap::default() }.error();
    let cases = [
        ("type: EDS".to_owned(), "clusters[0]: EDS needs eds_cluster_config with eds_config"),
        (eds("", ""), "clusters[0].eds_cluster_config.eds_config: needs path_config_source"),
        (eds("path: \"\"", ""), "eds_config.path: empty"),
        (eds("path_config_source: {}", ""), "eds_config: needs path_config_source with the path of a file"),
        (eds("path: a, path_config_source: { path: b }", ""), "only one of path, path_config_source"),
        (format!("{STATIC}\n    eds_cluster_config: {{}}"), "eds_cluster_config: belongs to type: EDS"),
    ];
    for (text, phrase) in cases {
        let error = error(&text);
        assert!(error.contains(phrase), "{text}: {error}");
    }
}

#[test]
fn endpoints_by_weight_and_status() {
    let endpoint = |last: u8, more: &str| {
        let address = format!("{{ socket_address: {{ address: 10.0.0.{last}, port_value: 80 }} }}");
        format!("{{ endpoint: {{ address: {address} }}, {more} }}")
    };
    let all = [
        endpoint(1, "load_balancing_weight: 3000"),
        endpoint(2, "load_balancing_weight: 1000"),
        endpoint(3, "health_status: DRAINING"),
        endpoint(1, "load_balancing_weight: 1000, health_status: degraded"),
    ];
    let endpoints = all.join(", ");
    let loaded = discovery(&format!(
        "load_assignment: {{ cluster_name: c, endpoints: [{{ lb_endpoints: [{endpoints}] }}] }}"
    ));
    let expected = [("10.0.0.1:80", 4), ("10.0.0.2:80", 1)]
        .map(|(address, weight)| Endpoint::new(address.parse().unwrap(), weight));
    assert_eq!(loaded.config.clusters[0].discovery, Discovery::Static(expected.to_vec()));
    assert_eq!(verdict(&loaded, "lb_endpoints[0].load_balancing_weight"), Verdict::Honoured);
    approximated(&loaded, "lb_endpoints[3].endpoint.address.socket_address.address", "the weights are added");
}

#[test]
fn the_limit_of_connections_is_that_of_the_default_priority() {
    let limit = |thresholds: &str| {
        let loaded = cluster(&format!("circuit_breakers: {{ thresholds: [{thresholds}] }}"));
        (loaded.config.clusters[0].max_connections, loaded.warnings.len())
    };
    assert_eq!(limit("{ max_connections: 5 }, { max_connections: 7 }"), (Some(5), 0));
    assert_eq!(limit("{ priority: HIGH, max_connections: 5 }"), (Some(1024), 1));
    assert_eq!(limit("{ max_pending_requests: 5 }"), (Some(1024), 1));
}

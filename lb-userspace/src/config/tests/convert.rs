//! Envoy's files as native ones: what is written means the same.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::MINIMAL;
use crate::config::convert::write;
use crate::config::{Verdict, convert, parse};
use crate::model::Config;

const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";

/// The configuration of an Envoy text, after a look that its native form gives the same.
#[track_caller]
fn converted(text: &str) -> Config {
    let config = parse(text, "envoy.yaml").unwrap_or_else(|errors| panic!("{errors}\n{text}")).config;
    assert!(config.imported);
    let yaml = convert(text, "envoy.yaml").unwrap_or_else(|errors| panic!("{errors}")).yaml;
    let native = parse(&yaml, "native.yaml").unwrap_or_else(|errors| panic!("{errors}\n{yaml}")).config;
    assert!(!native.imported);
    assert_eq!(Config { imported: true, ..native }, config, "{yaml}");
    config
}

fn samples() -> Vec<(String, String)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/envoy");
    let mut samples: Vec<(String, String)> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect();
    samples.sort();
    samples
}

#[test]
fn samples_convert_and_twins_mean_the_same() {
    let samples = samples();
    let mut pairs = 0;
    for (name, text) in samples.iter().filter(|(name, _)| name.contains("-v2.")) {
        let twin = name.replace("-v2.", "-v3.");
        let (_, twin_text) = samples.iter().find(|(other, _)| *other == twin).expect("a twin of v3");
        assert_eq!(converted(text), converted(twin_text), "{name}");
        pairs += 1;
    }
    assert_eq!(2 * pairs, samples.len());
    assert!(pairs >= 5, "{pairs}");
}

#[test]
fn every_rejected_sample_is_rejected() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/envoy/rejected");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# Envoy rejects it: "), "{}", path.display());
        let errors = parse(&text, "x").err().unwrap_or_else(|| panic!("{} is taken", path.display()));
        let error = errors.iter().next().unwrap();
        assert!(error.line > 0 && !error.field.is_empty(), "{error}");
        count += 1;
    }
    assert!(count >= 25, "{count}");
}

#[test]
fn the_front_proxy_as_native_file() {
    let (_, text) = samples().into_iter().find(|(name, _)| name == "front-v2.yaml").unwrap();
    let converted = convert(&text, "front-v2.yaml").unwrap();
    let yaml = "\
# Converted from an Envoy bootstrap by `headgate convert`.
admin:
  address: 0.0.0.0:8001
access_log:
  - path: /dev/stdout
    format: default
listeners:
  - name: \"0.0.0.0_80\"
    address: 0.0.0.0:80
    cluster: istio_80
    stat_prefix: ingress_http
    connect_attempts: 1
";
    assert!(converted.yaml.starts_with(yaml), "{}", converted.yaml);
    let limit = "    # Envoy's default, as the bootstrap says nothing about it; 0 is no limit.\n    \
                 max_connections: 1024\n";
    assert_eq!(converted.yaml.matches(limit).count(), 2, "{}", converted.yaml);
    let shown: Vec<String> = converted.findings.iter().map(ToString::to_string).collect();
    let ignored = "line 37: static_resources.clusters[0].http2_protocol_options: ignored: tcp_proxy speaks no HTTP \
                   to the backends";
    assert!(shown.iter().any(|line| line == ignored), "{shown:#?}");
    assert!(
        shown.iter().any(|line| line == "line 34: static_resources.clusters[0].connect_timeout: honoured")
    );
    let others = converted.findings.iter().filter(|finding| finding.verdict != Verdict::Honoured).count();
    assert_eq!(others, 3, "{shown:#?}");
    let warning = "front-v2.yaml:33:5: static_resources.clusters[0]: the cluster istio_80 has Envoy's default of 1024 \
                   connections (circuit_breakers.thresholds.max_connections)";
    assert_eq!(converted.warnings[0].to_string(), warning);
}

#[test]
fn a_native_file_is_not_converted() {
    let errors = convert(MINIMAL, "native.yaml").unwrap_err().to_string();
    assert!(errors.starts_with("native.yaml: a native configuration already"), "{errors}");
}

#[test]
fn every_key_of_a_native_cluster_is_written() {
    let text = r#"
listeners: [{ name: l, address: 127.0.0.2:80, cluster: a }]
clusters:
  - name: a
    discovery:
      type: static
      hosts:
        - { address: "10.0.0.7:80", weight: 2, priority: 1, node: n1, health_check: { port: 1, address: "::1", host: a } }
        - { address: "10.0.0.8:80", health_check: false }
    health_check:
      { type: https, port: 5, interval: 3s, timeout: 2s, unhealthy: 3, healthy: 4, jitter: 1s, jitter_percent: 5,
        initial_jitter: 2s, no_traffic_interval: 60s, no_traffic_healthy_interval: 70s, unhealthy_interval: 4s,
        unhealthy_edge_interval: 5s, healthy_edge_interval: 6s, path: "/a?b=%20c", host: "a b", method: POST,
        headers: { a!: ["1", x], y: "2" }, send: { hex: "00" }, expect_status: [204, "300-399"],
        retry_status: ["500-599"], expect_body: [a, { hex: ff }], body_limit: 9, http2: true, ca: /a b, sni: c.d,
        verify: false }
    outlier:
      { consecutive_failures: 0, enforcing: 1, interval: 1s, ejection: 2s, max_ejection: 3s, jitter: 4s,
        max_ejection_percent: 5, always_eject_one: true, uneject_by_probe: false,
        success_rate: { minimum_hosts: 1, request_volume: 2, stdev_factor: 0.05, enforcing: 3 },
        failure_percentage: { threshold: 1, minimum_hosts: 2, request_volume: 3, enforcing: 4 } }
    panic_threshold: 0
    slow_start: { window: 1m, aggression: 2.5, min_weight_percent: 3 }
    prefer_local: node
    overprovisioning_percent: 100
    keep_while_healthy: true
    on_removed: keep
    on_unhealthy: reset
    drain_timeout: 1s
  - name: b
    discovery:
      type: strict_dns
      hold_nx: 1s
      hosts: ["a:80", { address: "b:80", priority: 1, health_check: { host: c } }]
    health_check: { type: grpc, service: s, authority: a, headers: { b: c }, tls: true }
    outlier: false
    slow_start: 30s
    on_removed: reset
    on_unhealthy: drain
  - name: c
    discovery: { type: static, hosts: [] }
    health_check: { type: tcp, jitter_percent: 0, send: "a\r\n\tb", receive: [{ hex: "7f" }, "é"] }
  - { name: d, discovery: { type: static, hosts: [] }, health_check: { type: istio } }
"#;
    let config = parse(text, "native.yaml").unwrap_or_else(|errors| panic!("{errors}")).config;
    let written = write(&config, &[]);
    let again = parse(&written, "written.yaml").unwrap_or_else(|errors| panic!("{errors}\n{written}")).config;
    assert_eq!(again, config, "{written}");
}

fn optional(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), value]
}

fn text() -> impl Strategy<Value = String> {
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

fn duration() -> impl Strategy<Value = Value> {
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

fn bytes() -> impl Strategy<Value = Value> {
    prop::collection::vec(any::<u8>(), 1..6).prop_map(|bytes| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "text": digits })
    })
}

fn headers() -> impl Strategy<Value = Value> {
    let header = ("[a-c]", "[!-~]{1,3}", any::<bool>()).prop_map(|(key, value, append)| {
        json!({ "header": { "key": key, "value": value.replace('%', "%%") }, "append": append })
    });
    prop::collection::vec(header, 0..4).prop_map(Value::from)
}

fn probe() -> impl Strategy<Value = (&'static str, Value)> {
    let statuses = || {
        let range = (100_u16..599, 1_u16..50)
            .prop_map(|(start, more)| json!({ "start": start, "end": (start + more).min(600) }));
        prop::collection::vec(range, 0..3).prop_map(Value::from)
    };
    prop_oneof![
        (optional(bytes()), prop::collection::vec(bytes(), 0..3))
            .prop_map(|(send, receive)| ("tcp_health_check", json!({ "send": send, "receive": receive }))),
        (statuses(), statuses(), headers(), bytes(), optional((9_u64..9_000_000_000).prop_map(Value::from)))
            .prop_map(|(expected, retriable, headers, send, buffer)| (
                "http_health_check",
                json!({
                    "path": "/a?b=%20",
                    "response_buffer_size": buffer,
                    "receive": [send],
                    "method": "POST",
                    "send": send,
                    "expected_statuses": expected,
                    "retriable_statuses": retriable,
                    "request_headers_to_add": headers,
                })
            )),
        (text(), headers()).prop_map(|(service, headers)| (
            "grpc_health_check",
            json!({
                "service_name": service,
                "initial_metadata": headers,
            })
        )),
    ]
}

prop_compose! {
    fn health_check()(
        (interval, timeout) in (duration(), duration()),
        (unhealthy, healthy) in (1_u32..200, 1_u32..200),
        percent in 0_u32..2000,
        jitters in (optional(duration()), optional(duration())),
        no_traffic in (optional(duration()), optional(duration())),
        edges in (optional(duration()), optional(duration()), optional(duration())),
        (kind, probe) in probe(),
    ) -> Value {
        json!({
            "interval": interval,
            "timeout": timeout,
            "unhealthy_threshold": unhealthy,
            "healthy_threshold": healthy,
            "interval_jitter_percent": percent,
            "initial_jitter": jitters.0,
            "interval_jitter": jitters.1,
            "no_traffic_interval": no_traffic.0,
            "no_traffic_healthy_interval": no_traffic.1,
            "unhealthy_interval": edges.0,
            "unhealthy_edge_interval": edges.1,
            "healthy_edge_interval": edges.2,
            kind: probe,
        })
    }
}

prop_compose! {
    fn outlier()(
        numbers in prop::collection::vec(optional(any::<u32>().prop_map(Value::from)), 8),
        percents in prop::collection::vec(optional((0_u32..=100).prop_map(Value::from)), 9),
        flags in prop::collection::vec(any::<bool>(), 3),
        durations in (optional(duration()), optional(duration()), optional(duration())),
    ) -> Value {
        json!({
            "interval": durations.0,
            "base_ejection_time": durations.1,
            "max_ejection_time_jitter": durations.2,
            "split_external_local_origin_errors": flags[0],
            "always_eject_one_host": flags[1],
            "successful_active_health_check_uneject_host": flags[2],
            "consecutive_5xx": numbers[0],
            "consecutive_gateway_failure": numbers[1],
            "consecutive_local_origin_failure": numbers[2],
            "success_rate_minimum_hosts": numbers[3],
            "success_rate_request_volume": numbers[4],
            "success_rate_stdev_factor": numbers[5],
            "failure_percentage_minimum_hosts": numbers[6],
            "failure_percentage_request_volume": numbers[7],
            "max_ejection_percent": percents[0],
            "enforcing_consecutive_5xx": percents[1],
            "enforcing_consecutive_gateway_failure": percents[2],
            "enforcing_consecutive_local_origin_failure": percents[3],
            "enforcing_success_rate": percents[4],
            "enforcing_local_origin_success_rate": percents[5],
            "enforcing_failure_percentage": percents[6],
            "enforcing_failure_percentage_local_origin": percents[7],
            "failure_percentage_threshold": percents[8],
        })
    }
}

prop_compose! {
    /// The keys of a cluster about the health of its endpoints.
    fn health()(
        checks in prop::collection::vec(health_check(), 0..2),
        outlier in optional(outlier()),
        panic in optional((0_u32..=1000).prop_map(|tenths| json!({ "value": f64::from(tenths) / 10.0 }))),
        (resets, ignores) in any::<(bool, bool)>(),
        window in optional(duration()),
        aggression in 1_u32..5000,
        weight in 0_u32..=100,
    ) -> Value {
        let slow_start = json!({
            "slow_start_window": window,
            "aggression": { "default_value": f64::from(aggression) / 1000.0 },
            "min_weight_percent": { "value": weight },
        });
        json!({
            "http2_protocol_options": {},
            "health_checks": checks,
            "outlier_detection": outlier,
            "common_lb_config": { "healthy_panic_threshold": panic },
            "close_connections_on_host_health_failure": resets,
            "ignore_health_on_host_removal": ignores,
            "round_robin_lb_config": { "slow_start_config": slow_start },
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
    fn bootstrap()(
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_converted_file_means_the_same(text in bootstrap()) {
        converted(&text);
    }
}

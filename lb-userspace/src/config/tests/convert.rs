//! Envoy's files as native ones: what is written means the same.

use proptest::prelude::*;

use super::MINIMAL;
use super::bootstraps::bootstrap;
use crate::config::convert::write;
use crate::config::{Verdict, convert, parse};
use crate::model::Config;

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
        - { address: "10.0.0.7:80", weight: 2, priority: 1, node: n1,
            health_check: { port: 1, address: "::1", host: a } }
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
        max_ejection_percent: 5, always_eject_one: true, uneject_by_probe: true,
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
  - name: e
    discovery:
      { type: srv, name: _http._tcp.a, refresh_rate: 1s, respect_ttl: true, jitter: 2s,
        failure_backoff: { base: 3s, max: 4s }, hold_nx: 5s, family: all }
  - { name: f, discovery: { type: file, path: "/a b/c.yaml" } }
  - { name: g, discovery: { type: file, path: c.yaml, cluster_name: "outbound|80||f" } }
"#;
    let config = parse(text, "native.yaml").unwrap_or_else(|errors| panic!("{errors}")).config;
    let written = write(&config, &[]);
    let again = parse(&written, "written.yaml").unwrap_or_else(|errors| panic!("{errors}\n{written}")).config;
    assert_eq!(again, config, "{written}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_converted_file_means_the_same(text in bootstrap()) {
        converted(&text);
    }
}

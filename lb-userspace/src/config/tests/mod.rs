//! Whole files; `discovery` has what is of DNS, `kubernetes` what is of EndpointSlices, `health` what is of health checks, `observed` the admin port and the
//! logs, `refused` the classes of bad input, `bounds` what is too large, `convert` what Envoy's files become
//! (`bootstraps` and `health_keys` make some up).

mod bootstraps;
mod bounds;
mod convert;
mod discovery;
mod endpoint_file;
mod health;
mod health_keys;
mod kubernetes;
mod observed;
mod refused;

use std::net::SocketAddr;
use std::time::Duration;

use super::{ConfigError, ConfigErrors, Loaded, Place, load, outlier, parse};
use crate::model::{
    Cluster, DatapathConfig, Discovery, Endpoint, LbPolicy, Listener, Mode, OnLeaving, PreferLocal,
    WeightedCluster,
};

/// One listener and one cluster; each test adds to or changes its lines.
const MINIMAL: &str = "\
listeners:
  - name: http
    address: 0.0.0.0:80
    cluster: gateway
clusters:
  - name: gateway
    discovery: { type: static, hosts: [\"10.0.0.7:8080\"] }
";

fn ok(text: &str) -> Loaded {
    parse(text, "test.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(text: &str) -> Vec<ConfigError> {
    parse(text, "test.yaml").expect_err("a configuration with errors").iter().cloned().collect()
}

/// The text has this one error.
#[track_caller]
fn refused(text: &str, line: u64, column: u64, field: &str, phrase: &str) {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let error = &errors[0];
    assert_eq!((error.line, error.column, error.field.as_str()), (line, column, field), "{error}");
    assert!(error.message.contains(phrase), "{phrase:?} not in {error}");
}

/// `MINIMAL` with one line (from 1) replaced.
fn minimal_with(line: usize, text: &str) -> String {
    let mut lines: Vec<&str> = MINIMAL.lines().collect();
    lines[line - 1] = text;
    lines.join("\n")
}

/// `MINIMAL` with a line added to its listener.
fn listener_with(text: &str) -> String {
    minimal_with(4, &format!("    cluster: gateway\n    {text}"))
}

/// `MINIMAL` with a line added to its cluster, which becomes line 8.
fn cluster_with(text: &str) -> String {
    format!("{MINIMAL}    {text}\n")
}

/// `MINIMAL` with `datapath:` and a line of it, lines 8 and 9.
fn datapath_with(text: &str) -> String {
    format!("{MINIMAL}datapath:\n  {text}\n")
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn minimal_file_has_the_defaults() {
    let config = ok(MINIMAL).config;
    assert_eq!(config.datapath, DatapathConfig::default());
    let listener = Listener {
        name: "http".into(),
        address: address("0.0.0.0:80"),
        stat_prefix: "http".into(),
        clusters: vec![WeightedCluster { name: "gateway".into(), weight: 1 }],
        idle_timeout: Some(Duration::from_secs(3600)),
        connect_attempts: None,
        max_connection_duration: None,
        access_logs: vec![],
    };
    assert_eq!(config.listeners, [listener]);
    let cluster = Cluster {
        name: "gateway".into(),
        discovery: Discovery::Static(vec![Endpoint::new(address("10.0.0.7:8080"), 1)]),
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: Duration::from_secs(5),
        connect_attempts: 3,
        max_connections: None,
        stat_name: None,
        health_check: None,
        outlier: Some(outlier::DEFAULT),
        panic_threshold: 50,
        slow_start: None,
        prefer_local: PreferLocal::None,
        overprovisioning_percent: 140,
        keep_while_healthy: false,
        on_removed: OnLeaving::Drain,
        on_unhealthy: OnLeaving::Keep,
        drain_timeout: Duration::from_secs(600),
    };
    assert_eq!(config.clusters, [cluster]);
}

#[test]
fn full_file_is_read() {
    let loaded = ok("\
datapath:
  mode: tc
  interfaces: [eth0, eth1]
  snat_ports: 20000-29999
  snat_addresses: [192.0.2.1, \"2001:db8::1\"]
  max_flows: 65536
listeners:
  - name: http
    address: 192.0.2.10:80
    cluster: blue
    idle_timeout: 1h30m
    max_connections: 0
    client_address: none
  - name: https
    address: \"[::]:443\"
    cluster: green
    idle_timeout: 0s
clusters:
  - name: blue
    discovery:
      type: static
      hosts:
        - 10.0.0.7:8080
        - { address: \"10.0.0.8:8080\", weight: 256 }
    lb_policy: maglev
    connect_timeout: 250ms
    connect_attempts: 16
    max_connections: 0
    slow_start: 0s
    on_removed: drain
    on_unhealthy: keep
    drain_timeout: 0s
  - name: green
    discovery: { type: static, hosts: [\"[2001:db8::7]:8443\"] }
    lb_policy: source_ip
");
    let datapath = DatapathConfig {
        mode: Mode::Tc,
        interfaces: Some(vec!["eth0".into(), "eth1".into()]),
        snat_ports: Some(20000..=29999),
        snat_addresses: Some(vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]),
        max_flows: Some(65536),
    };
    assert_eq!(loaded.config.datapath, datapath);
    assert_eq!(loaded.config.listeners[0].idle_timeout, Some(Duration::from_secs(5400)));
    assert_eq!(loaded.config.listeners[1].idle_timeout, None);
    assert_eq!(loaded.config.listeners[1].address, address("[::]:443"));
    let blue = loaded.config.cluster("blue").unwrap();
    let Discovery::Static(endpoints) = &blue.discovery else { panic!("{:?}", blue.discovery) };
    assert_eq!(endpoints[1], Endpoint::new(address("10.0.0.8:8080"), 256));
    assert_eq!((blue.lb_policy, blue.connect_attempts), (LbPolicy::Maglev, 16));
    assert_eq!((blue.connect_timeout, blue.drain_timeout), (Duration::from_millis(250), Duration::ZERO));
    assert_eq!(loaded.config.cluster("green").unwrap().lb_policy, LbPolicy::SourceIp);

    assert_eq!(loaded.places.interface("eth1"), Some(Place { line: 3, column: 22 }));
    assert_eq!(loaded.places.interface("eth2"), None);
    assert_eq!(loaded.places.snat_ports(), Some(Place { line: 4, column: 15 }));
    assert_eq!(loaded.places.listener("https"), Some(Place { line: 15, column: 14 }));
    let place = loaded.places.interface("eth1").unwrap();
    let error = loaded.error_at(place, "datapath.interfaces[1]", "no such interface");
    assert_eq!(error.to_string(), "test.yaml:3:22: datapath.interfaces[1]: no such interface");
}

#[test]
fn auto_is_the_same_as_nothing() {
    let auto =
        "mode: auto\n  interfaces: auto\n  snat_ports: auto\n  snat_addresses: auto\n  max_flows: auto";
    assert_eq!(ok(&datapath_with(auto)).config.datapath, DatapathConfig::default());
    assert_eq!(ok(&datapath_with(auto)).places.snat_ports(), None);
}

#[test]
fn every_policy_and_mode_is_known() {
    let policies = [
        ("round_robin", LbPolicy::RoundRobin),
        ("random", LbPolicy::Random),
        ("maglev", LbPolicy::Maglev),
        ("source_ip", LbPolicy::SourceIp),
        ("least_request", LbPolicy::LeastRequest),
    ];
    for (word, policy) in policies {
        assert_eq!(ok(&cluster_with(&format!("lb_policy: {word}"))).config.clusters[0].lb_policy, policy);
    }
    for (word, mode) in [("auto", Mode::Auto), ("xdp", Mode::Xdp), ("tc", Mode::Tc), ("proxy", Mode::Proxy)] {
        assert_eq!(ok(&datapath_with(&format!("mode: {word}"))).config.datapath.mode, mode);
    }
}

#[test]
fn both_families_may_have_the_same_port() {
    let text = MINIMAL
        .replace("clusters:", "  - { name: http6, address: \"[::]:80\", cluster: gateway }\nclusters:");
    assert_eq!(ok(&text).config.listeners.len(), 2);
}

#[test]
fn the_example_in_docs_is_valid() {
    let text = include_str!("../../../../docs/headgate.yaml");
    let config = parse(text, "headgate.yaml").unwrap_or_else(|errors| panic!("{errors}")).config;
    let addresses: Vec<String> =
        config.listeners.iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["0.0.0.0:80", "[::]:80", "0.0.0.0:443", "[::]:443"]);
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_file() {
    let errors = parse(
        "\
listeners:
  - name: http
    address: gateway.example:80
    cluster: gatewai
    idle_timeout: 5
clusters:
  - name: gateway
    discovery: { type: static, hosts: [7] }
    health_check: { type: udp }
",
        "bad.yaml",
    )
    .unwrap_err();
    let shown = errors.to_string();
    let begins: Vec<&str> = shown.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let places = ["bad.yaml:3:14", "bad.yaml:4:14", "bad.yaml:5:19", "bad.yaml:8:40", "bad.yaml:9:27"];
    assert_eq!(begins, places, "{shown}");
}

#[test]
fn text_that_is_no_yaml() {
    refused("listeners: [\n", 1, 12, "", "not YAML");
    refused(&minimal_with(3, "    address: [::]:80"), 3, 18, "", "in quotes: \"[::]:80\"");
    refused(&format!("{MINIMAL}---\na: b\n"), 9, 1, "", "a second YAML document");
}

#[test]
fn empty_file() {
    refused(
        "",
        1,
        1,
        "",
        "needs a mapping with the keys datapath, listeners, clusters, admin, access_log; found nothing",
    );
}

#[test]
fn file_that_cannot_be_read() {
    let path = std::env::temp_dir().join("headgate-no-such-file.yaml");
    let errors = load(&path).unwrap_err().to_string();
    assert!(errors.starts_with(&format!("{}: cannot read: ", path.display())), "{errors}");
}

#[test]
fn errors_are_shown_one_a_line() {
    let place = Place { line: 4, column: 14 };
    let errors = ConfigErrors::from(vec![
        ConfigError::new("a.yaml", place, "listeners[0].cluster", "no cluster `x`"),
        ConfigError::new("a.yaml", Place::START, "", "not YAML"),
    ]);
    let shown = "a.yaml:1:1: not YAML\na.yaml:4:14: listeners[0].cluster: no cluster `x`";
    assert_eq!(errors.to_string(), shown);
}

//! What becomes of the keys of an Envoy bootstrap; `clusters` has those of a cluster, `health` those of
//! its health, `refused` what is unsafe to ignore.

mod clusters;
mod health;
mod refused;

use std::time::Duration;

use crate::access_log::Format;
use crate::config::{Loaded, Verdict, parse};
use crate::model::{Discovery, LbPolicy};

/// A bootstrap with a listener and a cluster, both named; each test adds lines to one of its messages.
#[derive(Clone, Copy, Default)]
struct Bootstrap<'t> {
    top: &'t str,
    listener: &'t str,
    chain: &'t str,
    proxy: &'t str,
    cluster: &'t str,
    /// In place of the cluster's type and endpoints.
    discovery: Option<&'t str>,
    more: &'t str,
}

const STATIC: &str = "load_assignment: { cluster_name: c, endpoints: [{ lb_endpoints: [{ endpoint: { address: \
                      { socket_address: { address: 10.0.0.7, port_value: 8080 } } } }] }] }";

impl Bootstrap<'_> {
    fn text(&self) -> String {
        let Self { top, listener, chain, proxy, cluster, discovery, more } = self;
        let discovery = discovery.unwrap_or(STATIC);
        format!(
            "\
{top}
static_resources:
  listeners:
  - name: l
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 80 }} }}
    {listener}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: p
          cluster: c
          {proxy}
      {chain}
  clusters:
  - name: c
    {discovery}
    {cluster}
{more}
"
        )
    }

    #[track_caller]
    fn ok(&self) -> Loaded {
        parse(&self.text(), "envoy.yaml").unwrap_or_else(|errors| panic!("{errors}\n{}", self.text()))
    }

    /// The one error, as `PATH: MESSAGE`.
    #[track_caller]
    fn error(&self) -> String {
        let errors = parse(&self.text(), "envoy.yaml").expect_err("a bootstrap with errors");
        let errors: Vec<_> = errors.iter().collect();
        assert_eq!(errors.len(), 1, "{errors:#?}\n{}", self.text());
        assert!(errors[0].line > 0);
        format!("{}: {}", errors[0].field, errors[0].message)
    }
}

#[track_caller]
fn verdict(loaded: &Loaded, path: &str) -> Verdict {
    let found = loaded.findings.iter().find(|finding| finding.path.ends_with(path));
    found.unwrap_or_else(|| panic!("{path} is not in {:#?}", loaded.findings)).verdict.clone()
}

#[track_caller]
fn approximated(loaded: &Loaded, path: &str, phrase: &str) {
    match verdict(loaded, path) {
        Verdict::Approximated(why) if why.contains(phrase) => {}
        other => panic!("{path}: {other}"),
    }
}

#[track_caller]
fn ignored(loaded: &Loaded, path: &str) {
    let verdict = verdict(loaded, path);
    assert!(matches!(verdict, Verdict::Ignored(_)), "{path}: {verdict}");
}

impl Bootstrap<'_> {
    fn more_cluster(name: &str, lines: &str) -> String {
        format!("  - name: {name}\n    {STATIC}\n    {lines}\n")
    }
}

fn proxy(proxy: &str) -> Loaded {
    Bootstrap { proxy, ..Bootstrap::default() }.ok()
}

fn cluster(cluster: &str) -> Loaded {
    Bootstrap { cluster, ..Bootstrap::default() }.ok()
}

fn discovery(discovery: &str) -> Loaded {
    Bootstrap { discovery: Some(discovery), ..Bootstrap::default() }.ok()
}

#[test]
fn envoys_defaults() {
    let loaded = Bootstrap::default().ok();
    let config = &loaded.config;
    assert!(config.imported);
    assert_eq!(config.admin, None);
    let listener = &config.listeners[0];
    assert_eq!((listener.name.as_str(), listener.stat_prefix.as_str()), ("l", "p"));
    assert_eq!(listener.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((listener.connect_attempts, listener.max_connection_duration), (Some(1), None));
    assert!(listener.access_logs.is_empty());
    let cluster = &config.clusters[0];
    assert_eq!((cluster.connect_timeout, cluster.connect_attempts), (Duration::from_secs(5), 1));
    assert_eq!((cluster.max_connections, cluster.lb_policy), (Some(1024), LbPolicy::RoundRobin));
    assert_eq!(cluster.drain_timeout, Duration::from_secs(600));
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].message.contains("the cluster c has Envoy's default of 1024 connections"));
}

#[test]
fn a_listener_without_a_name_is_named_by_its_address() {
    for (address, name) in [("0.0.0.0", "0.0.0.0_80"), ("\"::\"", "[__]_80")] {
        let text =
            Bootstrap::default().text().replace("name: l\n", "name: \"\"\n").replace("127.0.0.1", address);
        assert_eq!(parse(&text, "x").unwrap().config.listeners[0].name, name);
    }
}

#[test]
fn durations_are_those_of_protobuf() {
    let idle = |text: &str| proxy(&format!("idle_timeout: {text}")).config.listeners[0].idle_timeout;
    assert_eq!(idle("0.25s"), Some(Duration::from_millis(250)));
    assert_eq!(idle("{ seconds: 5, nanos: 500000000 }"), Some(Duration::from_millis(5500)));
    assert_eq!(idle("0s"), None);
    assert_eq!(idle("null"), Some(Duration::from_secs(3600)));
    // Envoy counts in milliseconds.
    assert_eq!(idle("0.0005s"), None);
    let loaded = proxy("idle_timeout: 400000000s");
    approximated(&loaded, "idle_timeout", "365 days");
    for bad in ["5", "1h", "-1s", ".5s", "5.s", "1e3s", "\"\"", "0.0000000001s", "9999999999999s", "[]"] {
        let text = format!("idle_timeout: {bad}");
        let error = Bootstrap { proxy: &text, ..Bootstrap::default() }.error();
        assert!(error.contains("typed_config.idle_timeout: "), "{error}");
    }
}

#[test]
fn numbers_words_and_keys_have_several_forms() {
    for attempts in ["3", "\"3\"", "3.0", "{ value: 3 }"] {
        let loaded = proxy(&format!("maxConnectAttempts: {attempts}"));
        assert_eq!(loaded.config.listeners[0].connect_attempts, Some(3), "{attempts}");
    }
    for kind in ["STRICT_DNS", "strict_dns", "1", "\"1\""] {
        let text = format!("type: {kind}\n    {}", STATIC.replace("10.0.0.7", "a.b"));
        assert!(matches!(discovery(&text).config.clusters[0].discovery, Discovery::StrictDns(_)), "{kind}");
    }
    for flag in ["true", "yes", "\"true\"", "{ value: true }"] {
        let text = format!("access_log_options: {{ flush_access_log_on_start: {flag} }}\n          {}", LOG);
        assert!(proxy(&text).config.listeners[0].access_logs[0].on_start, "{flag}");
    }
    let twice = Bootstrap { proxy: "idle_timeout: 1s\n          idleTimeout: 2s", ..Bootstrap::default() };
    assert!(
        twice.error().ends_with("idleTimeout: written twice, first on line 14: keep one"),
        "{}",
        twice.error()
    );
    let unknown = Bootstrap { cluster: "lbPolcy: MAGLEV", ..Bootstrap::default() };
    assert!(unknown.error().contains("unknown key, did you mean `lb_policy`?"), "{}", unknown.error());
}

const LOG: &str = "access_log: [{ name: a, typed_config: { \"@type\": \
                   type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/stdout } }]";

#[test]
fn access_logs_of_tcp_proxy_and_of_the_listener() {
    let options =
        "access_log_options: { access_log_flush_interval: 1s, flush_access_log_on_connected: true }";
    let text = format!("{LOG}\n          {options}");
    let loaded = Bootstrap { proxy: &text, listener: LOG, ..Bootstrap::default() }.ok();
    let logs = &loaded.config.listeners[0].access_logs;
    assert_eq!(logs[0].flush_interval, Some(Duration::from_secs(1)));
    assert!(logs[0].on_connect && !logs[0].on_start);
    assert_eq!((logs[1].flush_interval, logs[1].on_connect), (None, false));
    approximated(&loaded, "listeners[0].access_log", "with the access logs of tcp_proxy");

    let old = proxy(&format!("{LOG}\n          access_log_flush_interval: 2s"));
    assert_eq!(old.config.listeners[0].access_logs[0].flush_interval, Some(Duration::from_secs(2)));
    let formats = [
        ("log_format: { text_format: \"a\" }", Format::text("a").unwrap()),
        ("log_format: { text_format_source: { inline_string: \"a\\n\" } }", Format::text("a\n").unwrap()),
        (
            "log_format: { omit_empty_values: true, text_format: \"a\\n\" }",
            Format::text("a\n").unwrap().omit_empty(true),
        ),
        ("format: \"\"", Format::envoy_default()),
        ("json_format: { a: b }", Format::json(&serde_json::json!({ "a": "b" })).unwrap()),
    ];
    for (key, format) in formats {
        let loaded = proxy(&LOG.replace("path:", &format!("{key}, path:")));
        assert_eq!(loaded.config.listeners[0].access_logs[0].format, format, "{key}");
        let warned = loaded.warnings.iter().any(|warning| warning.message.contains("one line"));
        assert_eq!(warned, key.ends_with("\"a\" }"), "{key}");
    }
}

#[test]
fn what_has_no_effect_is_ignored() {
    let bootstrap = Bootstrap {
        top: "node: { id: a }\nlayered_runtime: { layers: [] }\nstats_flush_interval: 5s",
        listener: "per_connection_buffer_limit_bytes: 32768\n    socket_options: []\n    transparent: false",
        cluster: "typed_extension_protocol_options: {}\n    health_checks: []",
        chain: "filter_chain_match: {}",
        ..Bootstrap::default()
    };
    let loaded = bootstrap.ok();
    for path in [
        "node",
        "layered_runtime",
        "stats_flush_interval",
        "per_connection_buffer_limit_bytes",
        "socket_options",
        "transparent",
        "typed_extension_protocol_options",
        "health_checks",
    ] {
        ignored(&loaded, path);
    }
    let places: Vec<_> = loaded.findings.iter().map(|finding| finding.place).collect();
    assert!(places.is_sorted());
    let bad = Bootstrap { listener: "per_connection_buffer_limit_bytes: much", ..Bootstrap::default() };
    assert!(bad.error().contains("a whole number from 0 to 4294967295"), "{}", bad.error());
}

#[test]
fn a_cluster_that_no_listener_uses_may_be_what_is_not_supported() {
    let more = Bootstrap::more_cluster(
        "xds",
        "health_checks: [{ timeout: 1s, interval: 1s, unhealthy_threshold: 1, \
                                          healthy_threshold: 1, custom_health_check: { name: a } }]\n    type: EDS\n    \
                                          eds_cluster_config: { eds_config: { ads: {} } }",
    );
    let loaded = Bootstrap { more: &more, ..Bootstrap::default() }.ok();
    assert_eq!(loaded.config.clusters.len(), 1);
    ignored(&loaded, "clusters[1].health_checks[0].custom_health_check");
    assert!(loaded.warnings.iter().any(|warning| warning.message.contains("the cluster xds is left out")));
    // But not what Envoy rejects.
    let more = Bootstrap::more_cluster("xds", "connect_timeout: 0s");
    let error = Bootstrap { more: &more, ..Bootstrap::default() }.error();
    assert!(error.starts_with("static_resources.clusters[1].connect_timeout: 0s"), "{error}");
}

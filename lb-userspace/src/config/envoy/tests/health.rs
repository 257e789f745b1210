//! Health checks, ejection, priorities, slow start, and connections of backends that go.

use std::time::Duration;

use super::{Bootstrap, STATIC, approximated, cluster, discovery, ignored, verdict};
use crate::config::{Verdict, parse};
use crate::model::{
    Config, Discovery, Endpoint, FailurePercentage, GrpcProbe, HealthCheck, HttpProbe, Jitter, OnLeaving,
    Outlier, Pace, Probe, ProbePlace, SlowStart, SuccessRate, TcpProbe,
};

const S: Duration = Duration::from_secs(1);

/// `health_checks:` with one of these further keys.
fn checks(more: &str) -> String {
    format!(
        "health_checks: [{{ timeout: 1s, interval: 5s, unhealthy_threshold: 3, healthy_threshold: 2, {more} }}]"
    )
}

fn check(more: &str) -> HealthCheck {
    cluster(&checks(more)).config.clusters.remove(0).health_check.unwrap()
}

fn http(more: &str) -> HttpProbe {
    match check(&format!("http_health_check: {{ path: /, {more} }}")).probe {
        Probe::Http(http) => http,
        other => panic!("{other:?}"),
    }
}

/// The one error of a cluster with these lines.
#[track_caller]
fn error(cluster: &str, path: &str, phrase: &str) {
    let error = Bootstrap { cluster, ..Bootstrap::default() }.error();
    assert!(error.contains(path) && error.contains(phrase), "{error}");
}

#[track_caller]
fn bad(more: &str, path: &str, phrase: &str) {
    error(&checks(more), path, phrase);
}

fn in_v2(bootstrap: Bootstrap<'_>) -> Config {
    let text = bootstrap.text();
    let text = text.replace("extensions.filters.network.tcp_proxy.v3", "config.filter.network.tcp_proxy.v2");
    parse(&text, "x").unwrap_or_else(|errors| panic!("{errors}")).config
}

#[test]
fn envoys_defaults_of_a_health_check() {
    let loaded = cluster(&checks("tcp_health_check: {}"));
    let expected = HealthCheck {
        probe: Probe::Tcp(TcpProbe::default()),
        port: None,
        interval: S * 5,
        timeout: S,
        unhealthy: 3,
        healthy: 2,
        jitter: Jitter::default(),
        pace: Pace { no_traffic: Some(S * 60), no_traffic_healthy: Some(S * 60), ..Pace::default() },
    };
    let cluster = &loaded.config.clusters[0];
    assert_eq!(cluster.health_check, Some(expected));
    assert!(cluster.keep_while_healthy);
    assert_eq!((cluster.on_removed, cluster.on_unhealthy), (OnLeaving::Keep, OnLeaving::Keep));
    assert_eq!(cluster.outlier, None);
    let (_, path) = loaded.places.health_check("c").unwrap();
    assert_eq!(path, "static_resources.clusters[0].health_checks[0]");
    let expected = HttpProbe {
        method: "GET".into(),
        path: "/".into(),
        host: Some("c".into()),
        headers: vec![],
        send: vec![],
        expected: vec![200..=200],
        retriable: vec![],
        receive: vec![],
        body_limit: 1024,
        http2: false,
        tls: None,
    };
    assert_eq!(http(""), expected);
}

#[test]
fn when_to_ask() {
    let found = check(
        "tcp_health_check: {}, initial_jitter: 1s, interval_jitter: 2s, interval_jitter_percent: 30, \
         no_traffic_interval: 10s, no_traffic_healthy_interval: 11s, unhealthy_interval: 12s, \
         unhealthy_edge_interval: 13s, healthy_edge_interval: 14s",
    );
    assert_eq!(found.jitter, Jitter { initial: S, interval: S * 2, percent: 30 });
    let pace = Pace {
        no_traffic: Some(S * 10),
        no_traffic_healthy: Some(S * 11),
        unhealthy: Some(S * 12),
        unhealthy_edge: Some(S * 13),
        healthy_edge: Some(S * 14),
    };
    assert_eq!(found.pace, pace);
    assert_eq!(check("tcp_health_check: {}, unhealthy_interval: 9s").pace.unhealthy_edge, Some(S * 9));
    let loaded = cluster(&checks(
        "tcp_health_check: {}, unhealthy_interval: 0.01s, interval_jitter_percent: 5000, alt_port: 5, \
         reuse_connection: true, event_log_path: /a, name: a",
    ));
    approximated(&loaded, "unhealthy_interval", "100ms");
    approximated(&loaded, "interval_jitter_percent", "1000 %");
    approximated(&loaded, "reuse_connection", "every probe opens a connection");
    ignored(&loaded, "alt_port");
    ignored(&loaded, "event_log_path");
    let many = checks("tcp_health_check: {}").replace("unhealthy_threshold: 3", "unhealthy_threshold: 300");
    approximated(&cluster(&many), "unhealthy_threshold", "100, the most");
}

#[test]
fn what_to_ask() {
    let tcp =
        "tcp_health_check: { send: { text: 50494E470a }, receive: [{ text: \"2b\" }, { binary: AP8= }] }";
    let expected = TcpProbe { send: b"PING\n".to_vec(), receive: vec![b"+".to_vec(), vec![0, 0xff]] };
    assert_eq!(check(tcp).probe, Probe::Tcp(expected));
    let found = http(
        "host: a.b, method: POST, send: { text: \"00\" }, receive: { text: \"01\" }, response_buffer_size: 0, \
         codec_client_type: HTTP2, expected_statuses: [{ start: 200, end: 201 }, { start: 300, end: 400 }], \
         retriable_statuses: [{ start: \"500\", end: 600 }], request_headers_to_remove: [x], \
         request_headers_to_add: [{ header: { key: X-A, value: \"1%%\" } }, { header: { key: b, value: \"2\" } }, \
         { header: { key: x-a, value: \"3\" } }, { header: { key: b, value: \"4\" }, append: false }, \
         { header: { key: b, value: \"5\" }, append_action: ADD_IF_ABSENT }, { header: { key: c } }]",
    );
    let headers = [("x-a", "1%"), ("x-a", "3"), ("b", "4")];
    let expected = HttpProbe {
        method: "POST".into(),
        path: "/".into(),
        host: Some("a.b".into()),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        send: vec![0],
        expected: vec![200..=200, 300..=399],
        retriable: vec![500..=599],
        receive: vec![vec![1]],
        body_limit: 0,
        http2: true,
        tls: None,
    };
    assert_eq!(found, expected);
    let grpc = checks(
        "grpc_health_check: { service_name: s, initial_metadata: [{ header: { key: a, value: b } }] }",
    );
    let grpc = cluster(&format!("http2_protocol_options: {{}}\n    {grpc}"));
    let expected = GrpcProbe {
        service: "s".into(),
        authority: Some("c".into()),
        metadata: vec![("a".into(), "b".into())],
        tls: None,
    };
    let found = grpc.config.clusters[0].health_check.as_ref().unwrap();
    assert_eq!(found.probe, Probe::Grpc(expected));
}

#[test]
fn what_envoy_rejects_of_health_checks() {
    bad("name: a", "health_checks[0]", "needs one of http_health_check");
    error(
        "health_checks: [{ tcp_health_check: {}, timeout: 1s, healthy_threshold: 1 }]",
        "health_checks[0]",
        "needs interval, unhealthy_threshold",
    );
    bad("tcp_health_check: {}, no_traffic_interval: 0s", ".no_traffic_interval", "more than that");
    bad("tcp_health_check: {}, http_health_check: { path: / }", "", "only one of");
    bad("tcp_health_check: { send: { text: \"0\" } }", ".tcp_health_check.send.text", "hexadecimal");
    bad("tcp_health_check: { send: {} }", ".tcp_health_check.send", "needs text or binary");
    bad("tcp_health_check: { receive: [{ binary: \"=!\" }] }", ".receive[0].binary", "base64");
    bad("http_health_check: {}", ".http_health_check", "needs path");
    let http = |more: &str, path: &str, phrase: &str| {
        bad(&format!("http_health_check: {{ path: /, {more} }}"), path, phrase);
    };
    http("expected_statuses: [{ start: 200, end: 200 }]", ".expected_statuses[0].end", "write 201");
    http("expected_statuses: [{ start: 99, end: 200 }]", ".start", "from 100");
    http("expected_statuses: [{ end: 200 }]", ".expected_statuses[0]", "needs start and end");
    http("retriable_statuses: [{ start: 500, end: 601 }]", ".end", "to 600");
    http("method: CONNECT", ".method", "not accepted");
    http("send: { text: \"00\" }", ".send", "has no body");
    http("receive: { text: \"0000\" }, response_buffer_size: 1", ".response_buffer_size", "2 bytes");
    http("request_headers_to_add: [{ header: { key: Host, value: a } }]", ".key", "lets nobody add host");
    http(
        "request_headers_to_add: [{ header: { key: a }, append: true, append_action: ADD_IF_ABSENT }]",
        "",
        "only one of",
    );
    bad("grpc_health_check: {}", ".grpc_health_check", "http2_protocol_options");
}

#[test]
fn what_headgate_refuses_of_health_checks() {
    let one =
        "{ timeout: 1s, interval: 5s, unhealthy_threshold: 3, healthy_threshold: 2, tcp_health_check: {} }";
    error(&format!("health_checks: [{one}, {one}]"), "health_checks[1]", "refused: a cluster has one");
    bad("custom_health_check: { name: a }", ".custom_health_check", "refused: custom");
    bad("tcp_health_check: { proxy_protocol_config: {} }", ".proxy_protocol_config", "refused: the PROXY");
    let http = |more: &str, path: &str, phrase: &str| {
        bad(&format!("http_health_check: {{ path: /, {more} }}"), path, phrase);
    };
    bad("http_health_check: { path: a }", ".path", "refused: `a` is no path");
    http("service_name_matcher: { exact: a }", ".service_name_matcher", "refused: the name");
    http("codec_client_type: HTTP3", ".codec_client_type", "refused: HTTP/3");
    http("host: ä", ".host", "refused: a host is ASCII");
    http("request_headers_to_add: [{ header: { key: a, value: \"%X%\" } }]", ".value", "refused: operators");
    let zero = checks("tcp_health_check: {}").replace("unhealthy_threshold: 3", "unhealthy_threshold: 0");
    error(&zero, "unhealthy_threshold", "refused: 0 probes in a row never happen");
}

#[test]
fn outliers_by_envoys_defaults() {
    let loaded = cluster("outlier_detection: {}");
    let expected = Outlier {
        consecutive_failures: Some(5),
        enforcing_consecutive: 100,
        interval: S * 10,
        base_ejection: S * 30,
        max_ejection: S * 300,
        ejection_jitter: Duration::ZERO,
        max_ejection_percent: 10,
        always_eject_one: false,
        success_rate: Some(SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
            enforcing: 100,
        }),
        failure_percentage: None,
        uneject_by_probe: true,
    };
    assert_eq!(loaded.config.clusters[0].outlier, Some(expected));
}

fn outlier(keys: &str) -> Outlier {
    cluster(&format!("outlier_detection: {{ {keys} }}")).config.clusters.remove(0).outlier.unwrap()
}

#[test]
fn outliers_by_every_key() {
    let found = outlier(
        "interval: 1s, base_ejection_time: 400s, max_ejection_time_jitter: 2s, max_ejection_percent: 20, \
         always_eject_one_host: true, successful_active_health_check_uneject_host: false, \
         enforcing_success_rate: 0, failure_percentage_threshold: 1, failure_percentage_minimum_hosts: 2, \
         failure_percentage_request_volume: 3, enforcing_failure_percentage: 4",
    );
    assert_eq!((found.interval, found.base_ejection, found.max_ejection), (S, S * 400, S * 400));
    assert_eq!((found.ejection_jitter, found.max_ejection_percent), (S * 2, 20));
    assert!(found.always_eject_one && !found.uneject_by_probe);
    assert_eq!(found.success_rate, None);
    let failure_percentage =
        FailurePercentage { threshold: 1, minimum_hosts: 2, request_volume: 3, enforcing: 4 };
    assert_eq!(found.failure_percentage, Some(failure_percentage));
    let loaded = cluster("outlier_detection: { failure_percentage_threshold: 1 }");
    ignored(&loaded, "failure_percentage_threshold");
    error("outlier_detection: { max_ejection_percent: 101 }", ".max_ejection_percent", "from 0 to 100");
    error("outlier_detection: { interval: 0s }", ".interval", "more than that");
    let short = "outlier_detection: { base_ejection_time: 10s, max_ejection_time: 5s }";
    error(short, ".max_ejection_time", "below base_ejection_time");
}

#[test]
fn failures_in_a_row_by_the_rule_that_holds() {
    let rule = |keys: &str| {
        let found = outlier(keys);
        (found.consecutive_failures, found.enforcing_consecutive)
    };
    assert_eq!(rule("consecutive_5xx: 7"), (Some(7), 100));
    assert_eq!(rule("consecutive_5xx: 0"), (None, 100));
    assert_eq!(rule("consecutive_gateway_failure: 3"), (Some(5), 100));
    let gateway = "consecutive_gateway_failure: 3, enforcing_consecutive_gateway_failure: 100";
    assert_eq!(rule(gateway), (Some(3), 100));
    assert_eq!(rule("enforcing_consecutive_5xx: 0"), (None, 100));
    assert_eq!(rule("enforcing_consecutive_5xx: 50"), (Some(5), 50));
    let both = "enforcing_consecutive_5xx: 50, enforcing_consecutive_gateway_failure: 60";
    assert_eq!(rule(both), (Some(5), 60));
    let loaded = cluster(&format!("outlier_detection: {{ {both} }}"));
    approximated(&loaded, "enforcing_consecutive_gateway_failure", "5 failures in a row eject in 60 %");
    let split = "split_external_local_origin_errors: true, consecutive_5xx: 1, consecutive_local_origin_failure: 2, \
                 enforcing_local_origin_success_rate: 0, enforcing_success_rate: 9";
    assert_eq!(rule(split), (Some(2), 100));
    assert_eq!(outlier(split).success_rate, None);
    let loaded = cluster(&format!("outlier_detection: {{ {split} }}"));
    ignored(&loaded, "consecutive_5xx");
    assert_eq!(verdict(&loaded, "consecutive_local_origin_failure"), Verdict::Honoured);
    ignored(
        &cluster("outlier_detection: { consecutive_local_origin_failure: 1 }"),
        "consecutive_local_origin_failure",
    );
}

#[test]
fn one_endpoint_may_always_be_ejected_in_v2() {
    let config = in_v2(Bootstrap { cluster: "outlier_detection: {}", ..Bootstrap::default() });
    assert!(config.clusters[0].outlier.as_ref().unwrap().always_eject_one);
}

/// `load_assignment` with a locality of one endpoint for each, with its keys and those of its endpoint.
fn localities(policy: &str, localities: &[(&str, &str)]) -> String {
    let locality = |(index, (keys, endpoint)): (usize, &(&str, &str))| {
        let address = format!("{{ socket_address: {{ address: 10.0.0.{}, port_value: 80 }} }}", index + 1);
        format!("{{ {keys} lb_endpoints: [{{ endpoint: {{ {endpoint} address: {address} }} }}] }}")
    };
    let localities: Vec<String> = localities.iter().enumerate().map(locality).collect();
    format!("load_assignment: {{ cluster_name: c, {policy} endpoints: [{}] }}", localities.join(", "))
}

#[test]
fn priorities_and_places_of_probes() {
    let config_of = "health_check_config: { port_value: 81, hostname: h },";
    let with_address =
        "health_check_config: { address: { socket_address: { address: \"::1\", port_value: 82 } } },";
    let skipped = "health_check_config: { disable_active_health_check: true, port_value: 83 },";
    let text = localities(
        "policy: { overprovisioning_factor: 120 },",
        &[("priority: 5,", config_of), ("", with_address), ("priority: 2,", skipped)],
    );
    let loaded = discovery(&text);
    let endpoint = |last: u8, priority, probe| Endpoint {
        priority,
        probe,
        ..Endpoint::new(format!("10.0.0.{last}:80").parse().unwrap(), 1)
    };
    let none = ProbePlace::default;
    let expected = vec![
        endpoint(1, 2, ProbePlace { port: Some(81), host: Some("h".into()), ..none() }),
        endpoint(2, 0, ProbePlace { port: Some(82), address: Some("::1".parse().unwrap()), ..none() }),
        endpoint(3, 1, ProbePlace { skip: true, ..none() }),
    ];
    assert_eq!(loaded.config.clusters[0].discovery, Discovery::Static(expected));
    assert_eq!(loaded.config.clusters[0].overprovisioning_percent, 120);
    assert_eq!(verdict(&loaded, "endpoints[0].priority"), Verdict::Honoured);
    let off = localities("policy: { disable_overprovisioning: true },", &[("", "")]);
    let off = in_v2(Bootstrap { discovery: Some(&off), ..Bootstrap::default() });
    assert_eq!(off.clusters[0].overprovisioning_percent, 100);
    let much = discovery(&localities("policy: { overprovisioning_factor: 4000000000 },", &[("", "")]));
    approximated(&much, "overprovisioning_factor", "100000");

    let twice = localities("", &[("", ""), ("priority: 1,", "")]).replace("10.0.0.2", "10.0.0.1");
    let error = Bootstrap { discovery: Some(&twice), ..Bootstrap::default() }.error();
    assert!(error.contains("refused: the same as before with another priority"), "{error}");
    let name = localities("", &[("", &with_address.replace("::1", "a.b"))]);
    let error = Bootstrap { discovery: Some(&name), ..Bootstrap::default() }.error();
    assert!(error.contains("health_check_config.address") && error.contains("no IP address"), "{error}");
    let dns = STATIC.replace("[{ lb", "[{ priority: 1, lb").replace("10.0.0.7", "a.b");
    let dns = discovery(&format!("type: STRICT_DNS\n    {dns}"));
    let Discovery::StrictDns(found) = &dns.config.clusters[0].discovery else { panic!("static") };
    assert_eq!(found.hosts[0].priority, 0);
}

#[test]
fn slow_start_of_the_policy_that_holds() {
    let config = "{ slow_start_window: 30s, aggression: { default_value: 1.5, runtime_key: a }, min_weight_percent: \
                  { value: 25 } }";
    let expected = SlowStart { window: S * 30, aggression: 1500, min_weight_percent: 25 };
    let slow_start = |lines: &str| cluster(lines).config.clusters[0].slow_start;
    let round_robin = format!("round_robin_lb_config: {{ slow_start_config: {config} }}");
    assert_eq!(slow_start(&round_robin), Some(expected));
    let least = round_robin.replace("round_robin", "least_request");
    assert_eq!(slow_start(&format!("lb_policy: LEAST_REQUEST\n    {least}")), Some(expected));
    let other = cluster(&format!("lb_policy: MAGLEV\n    {round_robin}"));
    assert_eq!(other.config.clusters[0].slow_start, None);
    ignored(&other, "slow_start_config");
    let typed = format!(
        "load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: x, typed_config: {{ \"@type\": \
         type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin, \
         slow_start_config: {config} }} }} }}] }}"
    );
    assert_eq!(slow_start(&typed), Some(expected));
    assert_eq!(slow_start("round_robin_lb_config: { slow_start_config: {} }"), None);
    let short = SlowStart { window: S, aggression: 1000, min_weight_percent: 10 };
    assert_eq!(
        slow_start("round_robin_lb_config: { slow_start_config: { slow_start_window: 1s } }"),
        Some(short)
    );
    let fine = cluster(&round_robin.replace("25", "0.4").replace("1.5", "0.12345"));
    approximated(&fine, "min_weight_percent", "0 %: whole percents");
    approximated(&fine, "aggression", "0.123");
    error(&round_robin.replace("1.5", "-1"), ".aggression", "more than 0");
}

#[test]
fn panic_and_draining() {
    let keys = "common_lb_config: { healthy_panic_threshold: { value: 33.9 }, ignore_new_hosts_until_first_hc: true }\
                \n    close_connections_on_host_health_failure: true\n    ignore_health_on_host_removal: true";
    let loaded = cluster(&format!("{keys}\n    {}", checks("tcp_health_check: {}")));
    let found = &loaded.config.clusters[0];
    assert_eq!(found.panic_threshold, 33);
    assert_eq!((found.on_unhealthy, found.keep_while_healthy), (OnLeaving::Reset, false));
    assert_eq!(verdict(&loaded, "ignore_new_hosts_until_first_hc"), Verdict::Honoured);
    assert_eq!(verdict(&loaded, "healthy_panic_threshold"), Verdict::Honoured);

    let loaded = cluster(keys);
    let found = &loaded.config.clusters[0];
    assert_eq!((found.on_unhealthy, found.keep_while_healthy), (OnLeaving::Keep, false));
    for key in [
        "ignore_new_hosts_until_first_hc",
        "close_connections_on_host_health_failure",
        "ignore_health_on_host_removal",
    ] {
        ignored(&loaded, key);
    }
    let outlier = cluster("close_connections_on_host_health_failure: true\n    outlier_detection: {}");
    assert_eq!(outlier.config.clusters[0].on_unhealthy, OnLeaving::Reset);
    error("common_lb_config: { healthy_panic_threshold: { value: 101 } }", ".value", "from 0 to 100");
}

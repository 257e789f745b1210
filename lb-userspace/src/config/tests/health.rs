//! Health checks, ejection, priorities and draining.

use std::time::Duration;

use super::{MINIMAL, cluster_with, errors, load, minimal_with, ok, refused};
use crate::config::parse;
use crate::model::{
    Cluster, Discovery, Endpoint, FailurePercentage, GrpcProbe, HealthCheck, HttpProbe, Jitter, LbPolicy,
    OnLeaving, Outlier, Pace, PreferLocal, Probe, ProbePlace, ProbeTls, SlowStart, SuccessRate, TcpProbe,
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// `MINIMAL` with a line added to its cluster.
fn cluster(line: &str) -> Cluster {
    ok(&cluster_with(line)).config.clusters.remove(0)
}

fn check(keys: &str) -> HealthCheck {
    cluster(&format!("health_check: {{ {keys} }}")).health_check.unwrap()
}

fn http(keys: &str) -> HttpProbe {
    match check(keys).probe {
        Probe::Http(http) => http,
        other => panic!("{other:?}"),
    }
}

fn default_http() -> HttpProbe {
    HttpProbe {
        method: "GET".into(),
        path: "/".into(),
        host: None,
        headers: vec![],
        send: vec![],
        expected: vec![200..=200],
        retriable: vec![],
        receive: vec![],
        body_limit: 0,
        http2: false,
        tls: None,
    }
}

/// The one error of a health check, by its field below `health_check` and a phrase.
#[track_caller]
fn bad(keys: &str, field: &str, phrase: &str) {
    let errors = errors(&cluster_with(&format!("health_check: {{ {keys} }}")));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].field, format!("clusters[0].health_check{field}"), "{}", errors[0]);
    assert!(errors[0].message.contains(phrase), "{phrase:?} not in {}", errors[0]);
}

/// The one error of a key of the cluster.
#[track_caller]
fn bad_key(line: &str, field: &str, phrase: &str) {
    let errors = errors(&cluster_with(line));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].field, format!("clusters[0].{field}"), "{}", errors[0]);
    assert!(errors[0].message.contains(phrase), "{phrase:?} not in {}", errors[0]);
}

#[test]
fn a_type_alone_has_the_defaults() {
    let expected = HealthCheck {
        probe: Probe::Tcp(TcpProbe::default()),
        port: None,
        interval: S * 2,
        timeout: S,
        unhealthy: 2,
        healthy: 2,
        jitter: Jitter { percent: 10, ..Jitter::default() },
        pace: Pace::default(),
    };
    assert_eq!(check("type: tcp"), expected);
    assert_eq!(http("type: http"), default_http());
    assert_eq!(http("type: https"), HttpProbe { tls: Some(ProbeTls::default()), ..default_http() });
    assert_eq!(check("type: grpc").probe, Probe::Grpc(GrpcProbe::default()));
    let istio = check("type: istio");
    assert_eq!(istio.port, Some(15021));
    let path = "/healthz/ready".to_owned();
    assert_eq!(istio.probe, Probe::Http(HttpProbe { path, ..default_http() }));
    let istio = check("type: istio, port: 80, path: /a?b, expect_status: 204");
    assert_eq!(istio.port, Some(80));
    let Probe::Http(probe) = istio.probe else { panic!("{:?}", istio.probe) };
    assert_eq!((probe.path.as_str(), probe.expected), ("/a?b", vec![204..=204]));
}

#[test]
fn when_to_ask() {
    let found = check(
        "type: tcp, port: 1, interval: 100ms, timeout: 3s, unhealthy: 100, healthy: 1, jitter: 5ms, \
         initial_jitter: 1s, no_traffic_interval: 60s, unhealthy_interval: 4s, healthy_edge_interval: 5s",
    );
    let expected = HealthCheck {
        probe: Probe::Tcp(TcpProbe::default()),
        port: Some(1),
        interval: MS * 100,
        timeout: S * 3,
        unhealthy: 100,
        healthy: 1,
        jitter: Jitter { initial: S, interval: MS * 5, percent: 0 },
        pace: Pace {
            no_traffic: Some(S * 60),
            no_traffic_healthy: Some(S * 60),
            unhealthy: Some(S * 4),
            unhealthy_edge: Some(S * 4),
            healthy_edge: Some(S * 5),
        },
    };
    assert_eq!(found, expected);
    let both = check("type: tcp, jitter: 1s, jitter_percent: 20").jitter;
    assert_eq!(both, Jitter { initial: Duration::ZERO, interval: S, percent: 20 });
    let pace = check("type: tcp, no_traffic_healthy_interval: 9s, unhealthy_edge_interval: 1s").pace;
    assert_eq!((pace.no_traffic, pace.no_traffic_healthy), (None, Some(S * 9)));
    assert_eq!((pace.unhealthy, pace.unhealthy_edge), (None, Some(S)));
}

#[test]
fn what_to_ask() {
    let tcp = TcpProbe { send: b"PING\r\n".to_vec(), receive: vec![b"+".to_vec(), vec![0, 0xff]] };
    let keys = r#"type: tcp, send: "PING\r\n", receive: ["+", { hex: "00fF" }]"#;
    assert_eq!(check(keys).probe, Probe::Tcp(tcp));
    let found = http(
        r#"type: https, path: /a, host: a.b, method: POST, headers: { X-A: [b, c], x-d: "1" }, send: body,
           expect_status: [200, "300-399"], retry_status: "500-599", expect_body: ok, body_limit: 10,
           http2: true, ca: /ca.pem, sni: A.b, verify: false"#,
    );
    let headers = [("x-a", "b"), ("x-a", "c"), ("x-d", "1")];
    let expected = HttpProbe {
        method: "POST".into(),
        path: "/a".into(),
        host: Some("a.b".into()),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        send: b"body".to_vec(),
        expected: vec![200..=200, 300..=399],
        retriable: vec![500..=599],
        receive: vec![b"ok".to_vec()],
        body_limit: 10,
        http2: true,
        tls: Some(ProbeTls { ca: Some("/ca.pem".into()), sni: Some("a.b".into()), insecure: true }),
    };
    assert_eq!(found, expected);
    let grpc = GrpcProbe {
        service: "a.B".into(),
        authority: Some("c".into()),
        metadata: vec![("d".into(), "e".into())],
        tls: Some(ProbeTls::default()),
    };
    let keys = "type: grpc, service: a.B, authority: c, headers: { D: e }, tls: true, verify: true";
    assert_eq!(check(keys).probe, Probe::Grpc(grpc));
}

#[test]
fn bad_health_checks() {
    bad("port: 1", ".type", "what the endpoints are asked; accepted: tcp, http, https, grpc, istio");
    bad("type: udp", ".type", "`udp` is not accepted; accepted: tcp, http");
    bad("type: tcp, colour: red", ".colour", "unknown key; the keys here: type, port");
    bad("type: tcp, port: 0", ".port", "from 1 to 65535");
    bad("type: tcp, interval: 99ms", ".interval", "at least 100ms, so that the endpoints");
    bad("type: tcp, unhealthy_interval: 0s", ".unhealthy_interval", "at least 100ms");
    bad("type: tcp, timeout: 0s", ".timeout", "leaves no time to answer");
    bad("type: tcp, unhealthy: 0", ".unhealthy", "from 1 to 100");
    bad("type: tcp, healthy: 101", ".healthy", "from 1 to 100");
    bad("type: tcp, jitter: 10", ".jitter", "10 has no unit");
    bad("type: tcp, jitter_percent: 1001", ".jitter_percent", "from 0 to 1000");
    bad("type: tcp, path: /", ".path", "belongs to type: http, https, istio");
    bad("type: http, receive: a", ".receive", "belongs to type: tcp");
    bad("type: http, ca: /a", ".ca", "belongs to type: https, grpc");
    bad("type: istio, service: a", ".service", "belongs to type: grpc");
    bad("type: grpc, sni: a", ".sni", "belongs to tls: true");
    bad("type: grpc, send: a", ".send", "belongs to type: tcp, http, https, istio");
    bad("type: tcp, send: \"\"", ".send", "empty");
    bad("type: tcp, send: { hex: \"0\" }", ".send.hex", "two hexadecimal digits");
    bad("type: tcp, send: { hex: \"0g\" }", ".send.hex", "two hexadecimal digits");
    bad("type: tcp, receive: []", ".receive", "at least one text");
    bad("type: http, path: healthz", ".path", "begins with /");
    bad("type: http, path: \"/a b\"", ".path", "` ` in the path");
    bad("type: http, path: /ä", ".path", "%XX");
    bad("type: http, method: CONNECT", ".method", "accepted: GET, HEAD, POST");
    bad("type: http, send: a", ".send", "a request GET has no body");
    bad("type: http, host: \"\"", ".host", "ASCII");
    bad("type: http, headers: { Host: a }", ".headers.Host", "`host` is written by the probe itself");
    bad("type: http, headers: { \"a b\": c }", ".headers.a b", "no name of a header");
    bad("type: http, headers: { a: b, A: c }", ".headers.A", "a list of values");
    bad("type: http, expect_status: 99", ".expect_status", "from 100 to 599");
    bad("type: http, expect_status: [\"300-299\"]", ".expect_status[0]", "from 100 to 599");
    bad("type: http, retry_status: 600", ".retry_status", "from 100 to 599");
    bad("type: http, expect_body: long, body_limit: 3", ".body_limit", "expect_body has 4 bytes");
    bad("type: https, sni: \"a b\"", ".sni", "host name");
    bad("type: https, ca: \"\"", ".ca", "the path of a PEM file");
    bad_key("health_check: false", "health_check", "a mapping");
}

#[test]
fn a_ca_that_cannot_be_read_is_an_error_of_its_place() {
    let directory = std::env::temp_dir();
    let path = directory.join(format!("headgate-probe-{}.yaml", std::process::id()));
    let ca = directory.join("headgate-no-such-ca.pem");
    let text = cluster_with(&format!("health_check: {{ type: https, ca: {} }}", ca.display()));
    std::fs::write(&path, &text).unwrap();
    let errors = load(&path).unwrap_err().to_string();
    std::fs::write(&path, text.replace(ca.to_str().unwrap(), "/dev/null")).unwrap();
    let empty = load(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    let begin = format!("{}:8:19: clusters[0].health_check: ", path.display());
    let missing = format!("{begin}reading certificates from {}: ", ca.display());
    assert!(errors.starts_with(&missing), "{errors}");
    assert_eq!(empty.trim_end(), format!("{begin}/dev/null has no certificate in PEM"));
    assert!(parse(&text, "x").is_ok());
}

#[test]
fn the_place_of_a_health_check() {
    let places = ok(&cluster_with("health_check: { type: tcp }")).places;
    let (place, path) = places.health_check("gateway").unwrap();
    assert_eq!((place.line, place.column, path), (8, 19, "clusters[0].health_check"));
    assert_eq!(places.health_check("other"), None);
    assert_eq!(ok(MINIMAL).places.health_check("gateway"), None);
}

#[test]
fn outliers() {
    let default = Outlier {
        consecutive_failures: Some(5),
        enforcing_consecutive: 100,
        interval: S * 10,
        base_ejection: S * 30,
        max_ejection: S * 300,
        ejection_jitter: Duration::ZERO,
        max_ejection_percent: 50,
        always_eject_one: false,
        success_rate: None,
        failure_percentage: None,
        uneject_by_probe: false,
    };
    assert_eq!(ok(MINIMAL).config.clusters[0].outlier, Some(default.clone()));
    assert_eq!(cluster("outlier: {}").outlier, Some(default.clone()));
    assert_eq!(cluster("outlier: false").outlier, None);
    let found = cluster(
        "outlier: { consecutive_failures: 0, enforcing: 5, interval: 1s, ejection: 400s, jitter: 2s, \
         max_ejection_percent: 0, always_eject_one: true, success_rate: { stdev_factor: 2.25 }, \
         failure_percentage: {}, uneject_by_probe: true }",
    );
    let expected = Outlier {
        consecutive_failures: None,
        enforcing_consecutive: 5,
        interval: S,
        base_ejection: S * 400,
        max_ejection: S * 400,
        ejection_jitter: S * 2,
        max_ejection_percent: 0,
        always_eject_one: true,
        success_rate: Some(SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 2250,
            enforcing: 100,
        }),
        failure_percentage: Some(FailurePercentage {
            threshold: 85,
            minimum_hosts: 5,
            request_volume: 50,
            enforcing: 100,
        }),
        uneject_by_probe: true,
    };
    assert_eq!(found.outlier, Some(expected));
    bad_key("outlier: off", "outlier", "needs false (nothing is ejected), or a mapping");
    bad_key("outlier: true", "outlier", "needs false (nothing is ejected), or a mapping");
    bad_key("outlier: { interval: 1ms }", "outlier.interval", "at least 100ms");
    bad_key("outlier: { ejection: 0s }", "outlier.ejection", "write outlier: false");
    bad_key("outlier: { max_ejection: 29s }", "outlier.max_ejection", "write 30s or more");
    bad_key("outlier: { max_ejection_percent: 101 }", "outlier.max_ejection_percent", "from 0 to 100");
    let field = "outlier.success_rate.stdev_factor";
    for factor in ["0", "-1", "1.2345", "2000000"] {
        bad_key(
            &format!("outlier: {{ success_rate: {{ stdev_factor: {factor} }} }}"),
            field,
            "three decimals",
        );
    }
}

#[test]
fn panic_slow_start_and_draining() {
    let found = cluster(
        "panic_threshold: 0\n    slow_start: 30s\n    prefer_local: node\n    overprovisioning_percent: 100\n    \
         keep_while_healthy: true\n    on_removed: reset\n    on_unhealthy: drain",
    );
    assert_eq!((found.panic_threshold, found.overprovisioning_percent), (0, 100));
    let slow_start = SlowStart { window: S * 30, aggression: 1000, min_weight_percent: 10 };
    assert_eq!(found.slow_start, Some(slow_start));
    assert!(found.prefer_local == PreferLocal::Node && found.keep_while_healthy);
    assert_eq!((found.on_removed, found.on_unhealthy), (OnLeaving::Reset, OnLeaving::Drain));
    let found = cluster("slow_start: { window: 1m, aggression: 1.5, min_weight_percent: 0 }");
    let slow_start = SlowStart { window: S * 60, aggression: 1500, min_weight_percent: 0 };
    assert_eq!(found.slow_start, Some(slow_start));
    assert_eq!(cluster("prefer_local: none").slow_start, None);
    assert_eq!(cluster("slow_start: 0s\n    lb_policy: maglev").slow_start, None);
    assert_eq!(cluster("slow_start: 1s\n    lb_policy: random").lb_policy, LbPolicy::Random);
    for policy in ["maglev", "source_ip"] {
        let text = format!("lb_policy: {policy}\n    slow_start: 1s");
        bad_key(&text, "slow_start", "use round_robin, least_request or random");
    }
    bad_key("slow_start: { aggression: 1 }", "slow_start.window", "missing");
    bad_key("panic_threshold: 101", "panic_threshold", "from 0 to 100");
    bad_key("prefer_local: region", "prefer_local", "accepted: none, node, zone");
    bad_key("on_removed: close", "on_removed", "accepted: keep, drain, reset");
    bad_key("overprovisioning_percent: 0", "overprovisioning_percent", "from 1 to 100000");
}

#[test]
fn hosts_with_more_than_an_address() {
    let text = minimal_with(
        7,
        "    discovery: { type: static, hosts: [{ address: \"10.0.0.7:80\", priority: 1, node: n1, health_check: \
         { port: 81, address: \"::1\", host: a.b } }, { address: \"10.0.0.8:80\", health_check: false }] }",
    );
    let probe = ProbePlace {
        port: Some(81),
        address: Some("::1".parse().unwrap()),
        host: Some("a.b".into()),
        skip: false,
    };
    let first = Endpoint {
        priority: 1,
        node: Some("n1".into()),
        probe,
        ..Endpoint::new("10.0.0.7:80".parse().unwrap(), 1)
    };
    let second = Endpoint {
        probe: ProbePlace { skip: true, ..ProbePlace::default() },
        ..Endpoint::new("10.0.0.8:80".parse().unwrap(), 1)
    };
    assert_eq!(ok(&text).config.clusters[0].discovery, Discovery::Static(vec![first, second]));

    let dns = |host: &str| {
        let hosts = format!("\"a:80\", {{ address: \"b:80\", {host} }}");
        minimal_with(7, &format!("    discovery: {{ type: strict_dns, hosts: [{hosts}] }}"))
    };
    let config = ok(&dns("priority: 1, health_check: { port: 5 }")).config;
    let Discovery::StrictDns(found) = &config.clusters[0].discovery else { panic!("static") };
    assert_eq!((found.hosts[1].priority, found.hosts[1].probe.port), (1, Some(5)));
    let field = "clusters[0].discovery.hosts[1]";
    refused(&dns("priority: 2"), 7, 52, field, "priority 2, and no host has priority 1");
    refused(&dns("priority: 129"), 7, 81, &format!("{field}.priority"), "from 0 to 128");
    refused(&dns("node: n"), 7, 71, &format!("{field}.node"), "unknown key");
    refused(&dns("health_check: true"), 7, 85, &format!("{field}.health_check"), "false (it is not asked)");
    let unspecified = dns("health_check: { address: 0.0.0.0 }");
    refused(&unspecified, 7, 96, &format!("{field}.health_check.address"), "unspecified");
}

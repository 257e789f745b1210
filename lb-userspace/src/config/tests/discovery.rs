//! `discovery:` of the types that ask DNS, or read a file.

use std::time::Duration;

use super::{minimal_with, ok, refused};
use crate::model::{Backoff, Discovery, DnsFamily, DnsHost, DnsRefresh, EndpointFile, Srv, StrictDns};

/// `MINIMAL` with this discovery in line 7.
fn with(discovery: &str) -> String {
    minimal_with(7, &format!("    discovery: {discovery}"))
}

fn read(discovery: &str) -> StrictDns {
    match ok(&with(discovery)).config.clusters.remove(0).discovery {
        Discovery::StrictDns(settings) => settings,
        other => panic!("{other:?}"),
    }
}

fn host(name: &str, port: u16, weight: u32) -> DnsHost {
    DnsHost::new(name, port, weight)
}

const S: Duration = Duration::from_secs(1);

#[test]
fn a_host_alone_has_the_defaults() {
    let expected = StrictDns {
        hosts: vec![host("gateway.istio-system", 80, 1)],
        refresh_rate: S * 5,
        respect_ttl: false,
        jitter: Duration::ZERO,
        failure_backoff: Backoff { base: S * 5, max: S * 5 },
        hold_nx: Duration::ZERO,
        family: DnsFamily::Auto,
        logical: false,
    };
    assert_eq!(read("{ type: strict_dns, hosts: [\"gateway.istio-system:80\"] }"), expected);
}

#[test]
fn every_key_is_read() {
    let settings = read(
        "
      type: strict_dns
      hosts:
        - Gateway_1.Example.:65535
        - { address: \"a.b:80\", weight: 256 }
        - 10.0.0.7:80
        - \"[2001:DB8::7]:80\"
        - a.b:81
      refresh_rate: 100ms
      respect_ttl: true
      jitter: 250ms
      failure_backoff: { base: 1s, max: 8s }
      hold_nx: 30s
      family: v6",
    );
    let hosts = [
        host("gateway_1.example.", 65535, 1),
        host("a.b", 80, 256),
        host("10.0.0.7", 80, 1),
        host("2001:db8::7", 80, 1),
        host("a.b", 81, 1),
    ];
    assert_eq!(settings.hosts, hosts);
    assert_eq!((settings.refresh_rate, settings.jitter), (S / 10, S / 4));
    assert_eq!(settings.failure_backoff, Backoff { base: S, max: S * 8 });
    assert!(settings.respect_ttl);
    assert_eq!((settings.hold_nx, settings.family), (S * 30, DnsFamily::V6));
    let settings =
        read("{ type: strict_dns, hosts: [\"a:80\"], failure_backoff: { base: 2s }, family: all }");
    assert_eq!(settings.failure_backoff, Backoff { base: S * 2, max: S * 20 });
    assert_eq!(settings.family, DnsFamily::All);
}

#[test]
fn names_that_are_none() {
    let label = "x".repeat(64);
    let long = [["abcdefg"; 32].join("."), "test".to_owned()].join(".");
    let cases = [
        ("gateway", "the port is missing: write NAME:PORT, as in gateway:80"),
        ("gateway:0", "`0` is no port"),
        ("gateway:http", "`http` is no port"),
        ("gateway:70000", "`70000` is no port"),
        (":80", "an empty label"),
        ("a..b:80", "an empty label"),
        (".:80", "an empty label"),
        (".a:80", "an empty label"),
        ("two words:80", "` ` is not accepted"),
        ("http://a:80", "not an address"),
        ("a/b:80", "`/` is not accepted"),
        ("*.a:80", "`*` is not accepted"),
        ("-a.b:80", "`-a` begins or ends with -"),
        ("a-.b:80", "`a-` begins or ends with -"),
        ("b\u{fc}cher.example:80", "its xn-- form"),
        ("10.0.0.300:80", "neither an IP address"),
        ("10.0.0.7", "the port is missing: write IP:PORT"),
        ("0.0.0.0:80", "unspecified"),
        ("[::ffff:10.0.0.1]:80", "IPv4 in IPv6"),
        ("224.0.0.1:80", "multicast"),
        (&format!("{label}:80"), "a label has at most 63 characters"),
        (&format!("{long}:80"), "a host name has at most 253 characters, this has 260"),
    ];
    for (bad, phrase) in cases {
        let text = with(&format!("{{ type: strict_dns, hosts: [\"{bad}\"] }}"));
        refused(&text, 7, 44, "clusters[0].discovery.hosts[0]", phrase);
    }
    let text = with("{ type: strict_dns, hosts: [80] }");
    refused(&text, 7, 44, "clusters[0].discovery.hosts[0]", "needs a host NAME:PORT, as text");
    let text = with("{ type: strict_dns, hosts: [\"A.b:80\", \"a.B:80\"] }");
    let phrase = "a.b:80 is clusters[0].discovery.hosts[0] already: keep one, with a weight";
    refused(&text, 7, 54, "clusters[0].discovery.hosts[1]", phrase);
}

#[test]
fn settings_that_are_refused() {
    let text = |more: &str| with(&format!("{{ type: strict_dns, hosts: [\"a:80\"], {more} }}"));
    let cases = [
        ("refresh_rate: 0s", "refresh_rate", 67, "at least 100ms"),
        ("refresh_rate: 99ms", "refresh_rate", 67, "at least 100ms"),
        ("respect_ttl: 1", "respect_ttl", 66, "needs true or false; found a number"),
        ("respect_ttl: yes", "respect_ttl", 66, "needs true or false; found text"),
        ("jitter: 5", "jitter", 61, "5 has no unit"),
        ("hold_nx: -1s", "hold_nx", 62, "is no duration"),
        ("family: ipv4", "family", 61, "accepted: auto, v4, v6, all"),
        ("failure_backoff: 5s", "failure_backoff", 70, "a mapping with the keys base, max"),
        ("failure_backoff: { max: 5s }", "failure_backoff.base", 70, "missing"),
        ("failure_backoff: { base: 1ms }", "failure_backoff.base", 78, "at least 100ms"),
        ("failure_backoff: { base: 5s, max: 4s }", "failure_backoff.max", 87, "write 5s or more"),
    ];
    for (more, field, column, phrase) in cases {
        refused(&text(more), 7, column, &format!("clusters[0].discovery.{field}"), phrase);
    }
    let no_hosts = with("{ type: strict_dns, hosts: [] }");
    refused(&no_hosts, 7, 43, "clusters[0].discovery.hosts", "give at least one host");
}

#[test]
fn static_discovery_takes_no_settings_of_dns() {
    for key in ["refresh_rate: 5s", "respect_ttl: true", "jitter: 1s", "hold_nx: 1s", "family: v4"] {
        let text = with(&format!("{{ type: static, hosts: [\"10.0.0.7:80\"], {key} }}"));
        let name = key.split(':').next().unwrap();
        let column = 56 + name.len() as u64 + 2;
        let field = format!("clusters[0].discovery.{name}");
        refused(&text, 7, column, &field, "belongs to type: strict_dns: remove the key, or change the type");
    }
}

#[test]
fn logical_dns_has_one_host() {
    let settings = read("{ type: logical_dns, hosts: [\"a.b:80\"], family: v4 }");
    assert!(settings.logical);
    assert_eq!((settings.hosts, settings.family), (vec![host("a.b", 80, 1)], DnsFamily::V4));
    let two = with("{ type: logical_dns, hosts: [\"a.b:80\", \"c.d:80\"] }");
    refused(&two, 7, 44, "clusters[0].discovery.hosts", "logical_dns has one host");
}

fn discovery(text: &str) -> Discovery {
    ok(&with(text)).config.clusters.remove(0).discovery
}

#[test]
fn srv_has_a_name_and_the_settings_of_dns() {
    let refresh = DnsRefresh {
        rate: S * 5,
        respect_ttl: false,
        jitter: Duration::ZERO,
        failure_backoff: Backoff { base: S * 5, max: S * 5 },
        hold_nx: Duration::ZERO,
        family: DnsFamily::Auto,
    };
    let expected = Srv { name: "_http2._tcp.gw.istio-system.svc".into(), refresh };
    assert_eq!(discovery("{ type: srv, name: _http2._TCP.gw.istio-system.svc }"), Discovery::Srv(expected));
    let keys = "refresh_rate: 1s, respect_ttl: true, jitter: 2s, failure_backoff: { base: 3s, max: 4s }, \
                hold_nx: 6s, family: v6";
    let refresh = DnsRefresh {
        rate: S,
        respect_ttl: true,
        jitter: S * 2,
        failure_backoff: Backoff { base: S * 3, max: S * 4 },
        hold_nx: S * 6,
        family: DnsFamily::V6,
    };
    let expected = Srv { name: "gw.".into(), refresh };
    assert_eq!(discovery(&format!("{{ type: srv, name: gw., {keys} }}")), Discovery::Srv(expected));
}

#[test]
fn names_of_services_that_are_none() {
    let cases = [
        ("\"\"", "an empty label"),
        ("_http._tcp..gw", "an empty label"),
        ("two words", "` ` is not accepted"),
        ("gw:80", "the port comes from DNS: write the name alone, gw"),
        ("10.0.0.7", "an address has no SRV records"),
        ("\"[::1]:80\"", "an address has no SRV records"),
        ("\"::1\"", "an address has no SRV records"),
        ("80", "needs a name, as in _http._tcp.gateway.example"),
    ];
    for (bad, phrase) in cases {
        let text = with(&format!("{{ type: srv, name: {bad} }}"));
        refused(&text, 7, 35, "clusters[0].discovery.name", phrase);
    }
    refused(&with("{ type: srv }"), 7, 16, "clusters[0].discovery.name", "missing: the name to ask for");
}

#[test]
fn a_file_has_a_path_and_the_clusters_name_in_it() {
    let file = |cluster_name: &str| {
        Discovery::File(EndpointFile { path: "/etc/e.yaml".into(), cluster_name: cluster_name.into() })
    };
    assert_eq!(discovery("{ type: file, path: /etc/e.yaml }"), file("gateway"));
    let name = "outbound|80||gw.istio-system";
    let text = format!("{{ type: file, path: /etc/e.yaml, cluster_name: \"{name}\" }}");
    assert_eq!(discovery(&text), file(name));
    let field = "clusters[0].discovery";
    refused(&with("{ type: file }"), 7, 16, &format!("{field}.path"), "missing: the file with the endpoints");
    refused(&with("{ type: file, path: \"\" }"), 7, 36, &format!("{field}.path"), "not a path");
    let text = with("{ type: file, path: a, cluster_name: \"\" }");
    refused(&text, 7, 53, &format!("{field}.cluster_name"), "leave the key out");
}

#[test]
fn keys_of_other_types_are_refused() {
    let cases = [
        ("type: srv, name: a.b, hosts: []", "hosts", "static"),
        ("type: srv, name: a.b, path: a", "path", "file"),
        ("type: file, path: a, name: b", "name", "srv"),
        ("type: file, path: a, hold_nx: 1s", "hold_nx", "strict_dns"),
        ("type: strict_dns, hosts: [\"a:80\"], cluster_name: a", "cluster_name", "file"),
    ];
    for (text, key, kind) in cases {
        let column = 17 + text.find(&format!("{key}: ")).unwrap() + key.len() + 3;
        let field = format!("clusters[0].discovery.{key}");
        refused(
            &with(&format!("{{ {text} }}")),
            7,
            column as u64,
            &field,
            &format!("belongs to type: {kind}:"),
        );
    }
    let accepted = "accepted: static, strict_dns, logical_dns, srv, file";
    refused(&with("{ type: eds }"), 7, 24, "clusters[0].discovery.type", accepted);
    let missing = "how the backends are found; accepted: static, strict_dns, logical_dns, srv, file";
    refused(&with("{ hosts: [] }"), 7, 16, "clusters[0].discovery.type", missing);
}

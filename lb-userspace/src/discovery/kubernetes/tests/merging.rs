//! Endpoints of slices.

use serde_json::{Value, json};

use super::super::slices::{Found, Slices};
use super::{at, endpoint, parsed, ready, settings, slice, with};
use crate::model::{DnsFamily, Endpoint, Kubernetes, KubernetesPort};

fn slices(slices: &[Value]) -> Slices {
    let mut all = Slices::default();
    all.replace(slices.iter().cloned().map(parsed).collect());
    all
}

fn found(all: &[Value], of: &Kubernetes) -> Found {
    slices(all).endpoints(of).expect("endpoints")
}

fn refused(all: &[Value], of: &Kubernetes) -> String {
    slices(all).endpoints(of).expect_err("no endpoints")
}

/// `ADDRESS`, or `ADDRESS off` where it is not ready.
fn shown(found: &Found) -> Vec<String> {
    let show = |Endpoint { address, ready, .. }: &Endpoint| {
        if *ready { address.to_string() } else { format!("{address} off") }
    };
    found.endpoints.iter().map(show).collect()
}

fn left(found: &Found) -> Vec<String> {
    found.left.iter().map(|(address, why)| format!("{address} {why}")).collect()
}

#[test]
fn conditions_decide_who_takes_connections() {
    let no = json!(null);
    // ready, serving, terminating; what becomes of the endpoint beside one that is ready.
    let cases = [
        (json!(true), json!(true), json!(false), "used"),
        (no.clone(), no.clone(), no.clone(), "used"),
        (json!(true), no.clone(), no.clone(), "used"),
        (json!(false), no.clone(), no.clone(), "off"),
        (json!(false), json!(false), json!(false), "off"),
        (json!(false), json!(true), json!(false), "off"),
        (json!(false), json!(true), json!(true), "left"),
        (json!(false), json!(false), json!(true), "left"),
        // A Service with publishNotReadyAddresses.
        (json!(true), json!(true), json!(true), "left"),
        (no.clone(), no.clone(), json!(true), "left"),
    ];
    for (ready_, serving, terminating, fate) in cases {
        let conditions = json!({ "ready": ready_, "serving": serving, "terminating": terminating });
        let all = [slice("a", 1, &[ready("10.0.0.1"), endpoint("10.0.0.2", conditions.clone())])];
        let found = found(&all, &settings());
        let mut expected = vec!["10.0.0.1:8080".to_owned()];
        match fate {
            "used" => expected.push("10.0.0.2:8080".to_owned()),
            "off" => expected.push("10.0.0.2:8080 off".to_owned()),
            _ => assert_eq!(left(&found), ["10.0.0.2:8080 terminating"], "{conditions}"),
        }
        assert_eq!(shown(&found), expected, "{conditions}");
        assert_eq!(found.left.is_empty(), fate != "left", "{conditions}");
        assert_eq!(found.why, "in EndpointSlices of istio-system/gateway");
    }
    let without = json!({ "addresses": ["10.0.0.1"] });
    assert_eq!(shown(&found(&[slice("a", 1, &[without])], &settings())), ["10.0.0.1:8080"]);
}

#[test]
fn terminating_endpoints_that_serve_are_the_last_resort() {
    let serving =
        |address| endpoint(address, json!({ "ready": false, "serving": true, "terminating": true }));
    let ended = |address| endpoint(address, json!({ "ready": false, "serving": false, "terminating": true }));
    let starting = |address| endpoint(address, json!({ "ready": false }));
    let all = [slice("a", 1, &[serving("10.0.0.1"), ended("10.0.0.2"), starting("10.0.0.3")])];
    let last = found(&all, &settings());
    assert_eq!(shown(&last), ["10.0.0.1:8080", "10.0.0.3:8080 off"]);
    assert_eq!(left(&last), ["10.0.0.2:8080 terminating"]);
    assert_eq!(last.why, "terminating but serving, while no endpoint of istio-system/gateway is ready");

    let none = found(&[slice("a", 1, &[ended("10.0.0.2")])], &settings());
    assert_eq!((shown(&none), left(&none)), (vec![], vec!["10.0.0.2:8080 terminating".to_owned()]));

    // Another slice has one that is ready.
    let both = [all[0].clone(), slice("b", 2, &[ready("10.0.1.1")])];
    let normal = found(&both, &settings());
    assert_eq!(shown(&normal), ["10.0.0.3:8080 off", "10.0.1.1:8080"]);
    assert_eq!(left(&normal), ["10.0.0.1:8080 terminating", "10.0.0.2:8080 terminating"]);
}

#[test]
fn slices_are_merged_and_the_best_condition_of_an_address_wins() {
    let off = |address| endpoint(address, json!({ "ready": false }));
    let gone = |address| endpoint(address, json!({ "ready": false, "terminating": true }));
    let on_node = with(ready("10.0.0.2"), json!({ "nodeName": "n2", "zone": "z2" }));
    let one = slice("a", 1, &[ready("10.0.0.1"), off("10.0.0.2"), gone("10.0.0.3"), ready("10.0.0.9")]);
    let two = slice("b", 1, &[gone("10.0.0.1"), on_node, off("10.0.0.3")]);
    for all in [[one.clone(), two.clone()], [two, one]] {
        let found = found(&all, &settings());
        assert_eq!(shown(&found), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080 off", "10.0.0.9:8080"]);
        assert!(found.left.is_empty());
        let moved = &found.endpoints[1];
        assert_eq!((moved.node.as_deref(), moved.zone.as_deref()), (Some("n2"), Some("z2")));
    }
}

#[test]
fn node_and_zone_are_carried_and_the_old_topology_is_not() {
    let whole = with(
        ready("10.0.0.1"),
        json!({
            "nodeName": "worker-1",
            "zone": "eu-1a",
            "hints": { "forZones": [{ "name": "eu-1b" }] },
            "targetRef": { "kind": "Pod", "name": "gateway-0", "namespace": "istio-system" },
        }),
    );
    let old = with(
        ready("10.0.0.2"),
        json!({ "nodeName": "", "deprecatedTopology": { "topology.kubernetes.io/zone": "eu-1c" } }),
    );
    let found = found(&[slice("a", 1, &[whole, old])], &settings());
    let expected = Endpoint {
        node: Some("worker-1".into()),
        zone: Some("eu-1a".into()),
        ..Endpoint::new(at("10.0.0.1:8080"), 1)
    };
    assert_eq!(found.endpoints, [expected, Endpoint::new(at("10.0.0.2:8080"), 1)]);
}

#[test]
fn families_are_chosen() {
    let six = with(slice("six", 1, &[ready("2001:db8::1")]), json!({ "addressType": "IPv6" }));
    let all = [slice("four", 1, &[ready("10.0.0.1")]), six];
    let cases: [(DnsFamily, &[&str]); 4] = [
        (DnsFamily::Auto, &["10.0.0.1:8080", "[2001:db8::1]:8080"]),
        (DnsFamily::All, &["10.0.0.1:8080", "[2001:db8::1]:8080"]),
        (DnsFamily::V4, &["10.0.0.1:8080"]),
        (DnsFamily::V6, &["[2001:db8::1]:8080"]),
    ];
    for (family, expected) in cases {
        assert_eq!(shown(&found(&all, &Kubernetes { family, ..settings() })), expected);
    }
    let none = found(&all[..1], &Kubernetes { family: DnsFamily::V6, ..settings() });
    assert_eq!(shown(&none), [""; 0]);
    assert_eq!(none.why, "no endpoint in the EndpointSlices of istio-system/gateway");
}

#[test]
fn names_are_no_addresses() {
    let names = with(slice("names", 1, &[ready("gateway.example")]), json!({ "addressType": "FQDN" }));
    let text = refused(std::slice::from_ref(&names), &settings());
    assert!(text.contains("have names (addressType FQDN) and no addresses: use type: strict_dns"), "{text}");
    let beside = found(&[names, slice("a", 1, &[ready("10.0.0.1")])], &settings());
    assert_eq!(shown(&beside), ["10.0.0.1:8080"]);
}

#[test]
fn ports_by_name_by_number_and_alone() {
    let two = json!({ "ports": [{ "name": "http", "port": 8080 }, { "name": "https", "port": 8443, "protocol": "TCP" }] });
    let both = with(slice("a", 1, &[ready("10.0.0.1")]), two);
    // Pods of a rollout, where the new ones listen elsewhere.
    let moved = json!({ "ports": [{ "name": "http", "port": 9080 }, { "name": "https", "port": 9443 }] });
    let moved = with(slice("b", 1, &[ready("10.0.0.2")]), moved);
    let all = [both, moved];
    let of = |port: Option<KubernetesPort>| Kubernetes { port, ..settings() };
    let name = |name: &str| of(Some(KubernetesPort::Name(name.to_owned())));
    assert_eq!(shown(&found(&all, &name("https"))), ["10.0.0.1:8443", "10.0.0.2:9443"]);
    let number = of(Some(KubernetesPort::Number(9080)));
    assert_eq!(shown(&found(&all, &number)), ["10.0.0.2:9080"]);
    let listed = "http (8080), http (9080), https (8443), https (9443)";
    assert_eq!(
        refused(&all, &settings()),
        format!("port `http2` not found in the EndpointSlices of istio-system/gateway: they have {listed}")
    );
    assert_eq!(
        refused(&all, &of(Some(KubernetesPort::Number(80)))),
        format!("port 80 not found in the EndpointSlices of istio-system/gateway: they have {listed}")
    );
    assert_eq!(
        refused(&all, &of(None)),
        format!(
            "the EndpointSlices of istio-system/gateway have several ports, {listed}: say which one with `port`"
        )
    );

    let unnamed = |port| with(slice("a", 1, &[ready("10.0.0.1")]), json!({ "ports": [port] }));
    for port in [json!({ "port": 80 }), json!({ "name": "", "port": 80 }), json!({ "name": "x", "port": 80 })]
    {
        assert_eq!(shown(&found(&[unnamed(port)], &of(None))), ["10.0.0.1:80"]);
    }
    let text = refused(&[unnamed(json!({ "port": 80 }))], &name("http"));
    assert!(text.ends_with("they have 80"), "{text}");
}

#[test]
fn what_is_no_tcp_port_does_not_count() {
    let ports = [
        json!([{ "name": "http2", "port": 8080, "protocol": "UDP" }]),
        json!([{ "name": "http2", "port": 8080, "protocol": "SCTP" }]),
        json!([{ "name": "http2" }]),
        json!([{ "name": "http2", "port": 0 }]),
        json!([{ "name": "http2", "port": 70000 }]),
        json!([{ "name": "http2", "port": -1 }]),
        json!([]),
        json!(null),
    ];
    for ports in ports {
        let all = [with(slice("a", 1, &[ready("10.0.0.1")]), json!({ "ports": ports }))];
        let text = refused(&all, &settings());
        assert_eq!(text, "the EndpointSlices of istio-system/gateway have no TCP port", "{ports}");
    }
    let dns =
        json!({ "ports": [{ "name": "udp", "port": 53, "protocol": "UDP" }, { "name": "tcp", "port": 53 }] });
    let all = [with(slice("a", 1, &[ready("10.0.0.1")]), dns)];
    assert_eq!(shown(&found(&all, &Kubernetes { port: None, ..settings() })), ["10.0.0.1:53"]);
}

#[test]
fn a_service_without_endpoints_has_none_and_no_port_is_missed() {
    let placeholder = with(slice("a", 1, &[]), json!({ "endpoints": null, "ports": null }));
    for all in [vec![placeholder.clone()], vec![placeholder, slice("b", 1, &[])]] {
        let found = found(&all, &settings());
        assert!(found.endpoints.is_empty() && found.left.is_empty());
        assert_eq!(found.why, "no endpoint in the EndpointSlices of istio-system/gateway");
    }
}

#[test]
fn addresses_that_are_none_are_passed_over() {
    let several = json!({ "addresses": ["10.0.0.1", "10.0.0.2"] });
    let endpoints = [
        several,
        json!({ "addresses": [] }),
        ready("garbage"),
        ready("2001:db8::1"),
        ready("0.0.0.0"),
        ready("224.0.0.1"),
        ready("255.255.255.255"),
    ];
    assert_eq!(shown(&found(&[slice("a", 1, &endpoints)], &settings())), ["10.0.0.1:8080"]);
    let endpoints = [ready("fe80::1"), ready("::ffff:10.0.0.1"), ready("10.0.0.1"), ready("2001:db8::1")];
    let six = with(slice("a", 1, &endpoints), json!({ "addressType": "IPv6" }));
    assert_eq!(shown(&found(&[six], &settings())), ["[2001:db8::1]:8080"]);
}

#[test]
fn slices_come_change_and_go() {
    let mut all = slices(&[slice("a", 1, &[ready("10.0.0.1")])]);
    all.apply(parsed(slice("b", 2, &[ready("10.0.0.2")])));
    assert_eq!(shown(&all.endpoints(&settings()).unwrap()), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    all.apply(parsed(slice("b", 3, &[ready("10.0.0.3")])));
    assert_eq!(shown(&all.endpoints(&settings()).unwrap()), ["10.0.0.1:8080", "10.0.0.3:8080"]);
    all.remove(&parsed(slice("a", 4, &[])));
    assert_eq!(shown(&all.endpoints(&settings()).unwrap()), ["10.0.0.3:8080"]);
    all.replace(Vec::new());
    assert!(all.is_empty());
}

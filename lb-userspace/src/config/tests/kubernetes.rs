//! `discovery: { type: kubernetes }`.

use super::{errors, minimal_with, ok, refused};
use crate::config::convert;
use crate::model::{Discovery, DnsFamily, Kubernetes, KubernetesPort};

/// `MINIMAL` with this discovery in line 7.
fn with(discovery: &str) -> String {
    minimal_with(7, &format!("    discovery: {discovery}"))
}

fn read(text: &str) -> Kubernetes {
    match ok(text).config.clusters.remove(0).discovery {
        Discovery::Kubernetes(settings) => settings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_alone_has_the_defaults() {
    let expected = Kubernetes {
        namespace: "istio-system".to_owned(),
        service: "istio-ingressgateway".to_owned(),
        port: None,
        family: DnsFamily::Auto,
        kubeconfig: None,
        context: None,
    };
    let text = with("{ type: kubernetes, namespace: istio-system, service: istio-ingressgateway }");
    assert_eq!(read(&text), expected);
}

#[test]
fn every_key_is_read_and_written() {
    let texts = [
        "{ type: kubernetes, namespace: a, service: b-2, port: http2, family: v6, kubeconfig: /etc/k, context: \"a b\" }",
        "{ type: kubernetes, namespace: \"1\", service: x, port: \"8080\", family: v4 }",
        "{ type: kubernetes, namespace: a, service: x, port: 8080, family: all, kubeconfig: kubeconfig }",
    ];
    let expected = [
        Kubernetes {
            namespace: "a".to_owned(),
            service: "b-2".to_owned(),
            port: Some(KubernetesPort::Name("http2".to_owned())),
            family: DnsFamily::V6,
            kubeconfig: Some("/etc/k".into()),
            context: Some("a b".to_owned()),
        },
        Kubernetes {
            namespace: "1".to_owned(),
            service: "x".to_owned(),
            port: Some(KubernetesPort::Name("8080".to_owned())),
            family: DnsFamily::V4,
            kubeconfig: None,
            context: None,
        },
        Kubernetes {
            namespace: "a".to_owned(),
            service: "x".to_owned(),
            port: Some(KubernetesPort::Number(8080)),
            family: DnsFamily::All,
            kubeconfig: Some("kubeconfig".into()),
            context: None,
        },
    ];
    for (text, expected) in texts.iter().zip(expected) {
        let loaded = ok(&with(text));
        assert_eq!(loaded.config.clusters[0].discovery, Discovery::Kubernetes(expected.clone()));
        let written = convert::write(&loaded.config, &[]);
        assert_eq!(read(&written), expected, "{written}");
    }
}

#[test]
fn values_that_are_refused() {
    let rule = "1 to 63 of a-z, 0-9 and -, with - neither first nor last";
    let long = "x".repeat(64);
    let cases = [
        ("namespace: Istio", "namespace", format!("`Istio` is not a namespace: {rule}")),
        ("namespace: a.b", "namespace", format!("`a.b` is not a namespace: {rule}")),
        ("namespace: \"\"", "namespace", format!("`` is not a namespace: {rule}")),
        ("namespace: 1", "namespace", "needs a namespace, as text (in quotes); found a number".to_owned()),
        ("service: -a", "service", format!("`-a` is not the name of a Service: {rule}")),
        ("service: a-", "service", format!("`a-` is not the name of a Service: {rule}")),
        ("service: a_b", "service", format!("`a_b` is not the name of a Service: {rule}")),
        (&format!("service: {long}"), "service", format!("is not the name of a Service: {rule}")),
        ("port: HTTP", "port", format!("`HTTP` is not the name of a port: {rule}")),
        ("port: 0", "port", "a whole number from 1 to 65535".to_owned()),
        ("port: 65536", "port", "a whole number from 1 to 65535".to_owned()),
        ("port: [80]", "port", "needs the name of a port of the EndpointSlices, or its number".to_owned()),
        ("family: ipv4", "family", "accepted: auto, v4, v6, all".to_owned()),
        ("kubeconfig: \"\"", "kubeconfig", "not a path: name a file".to_owned()),
        ("context: \"\"", "context", "a context has 1 to 256 bytes".to_owned()),
        ("context: \"a\\nb\"", "context", "none of them a control character".to_owned()),
    ];
    for (line, field, phrase) in cases {
        let mut keys = vec!["namespace: a", "service: b"];
        keys.retain(|key| !line.starts_with(key.split(':').next().unwrap_or_default()));
        let keys = keys.iter().map(|key| format!("      {key}")).collect::<Vec<_>>().join("\n");
        // The line in question is the last, 8 and more.
        let text = with(&format!("\n      type: kubernetes\n{keys}\n      {line}"));
        let number = text.lines().position(|of| of.trim() == line).unwrap() as u64 + 1;
        let column = 6 + line.find(": ").unwrap() as u64 + 3;
        refused(&text, number, column, &format!("clusters[0].discovery.{field}"), &phrase);
    }
}

#[test]
fn keys_that_are_missing_or_of_another_type() {
    let missing = errors(&with("{ type: kubernetes }"));
    let fields: Vec<&str> = missing.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["clusters[0].discovery.namespace", "clusters[0].discovery.service"]);
    assert!(missing.iter().all(|error| error.message.starts_with("missing: the name")), "{missing:#?}");

    let foreign =
        |keys: &str| errors(&with(&format!("{{ type: kubernetes, namespace: a, service: b, {keys} }}")));
    let found = foreign("hosts: [\"10.0.0.1:80\"], refresh_rate: 5s");
    let messages: Vec<&str> = found.iter().map(|error| error.message.as_str()).collect();
    let expected = [
        "belongs to type: static: remove the key, or change the type",
        "belongs to type: strict_dns: remove the key, or change the type",
    ];
    assert_eq!(messages, expected);
    for kind in ["static", "strict_dns"] {
        for key in ["namespace: a", "service: a", "port: 80", "kubeconfig: /k", "context: c"] {
            let found = errors(&with(&format!("{{ type: {kind}, hosts: [\"10.0.0.1:80\"], {key} }}")));
            let phrase = "belongs to type: kubernetes: remove the key, or change the type";
            assert_eq!(found.iter().map(|error| error.message.as_str()).collect::<Vec<_>>(), [phrase]);
        }
    }
}

//! The slices by themselves, and the rest against an API server of this process.

mod api;
mod following;
mod merging;

use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::model::{DnsFamily, Kubernetes, KubernetesPort};

fn settings() -> Kubernetes {
    Kubernetes {
        namespace: "istio-system".to_owned(),
        service: "gateway".to_owned(),
        port: Some(KubernetesPort::Name("http2".to_owned())),
        family: DnsFamily::Auto,
        kubeconfig: None,
        context: None,
    }
}

/// An IPv4 slice with port `http2` (8080), as the API server has it.
fn slice(name: &str, version: u32, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "istio-system",
            "resourceVersion": version.to_string(),
            "labels": { "kubernetes.io/service-name": "gateway" },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http2", "port": 8080, "protocol": "TCP" }],
    })
}

/// With other members in the place of its own.
fn with(mut object: Value, members: Value) -> Value {
    for (name, value) in members.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

fn ready(address: &str) -> Value {
    endpoint(address, json!({ "ready": true, "serving": true, "terminating": false }))
}

fn endpoint(address: &str, conditions: Value) -> Value {
    json!({ "addresses": [address], "conditions": conditions })
}

fn parsed(slice: Value) -> EndpointSlice {
    serde_json::from_value(slice).unwrap()
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

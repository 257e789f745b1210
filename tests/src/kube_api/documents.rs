//! What the server says of itself: its version, groups and resources. kubectl reads these before anything else.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::resource::Resource;

/// The release that it claims to be.
const MAJOR: &str = "1";
const MINOR: &str = "32";

/// The document of a path, if it is one of these.
pub(super) fn document(path: &str, address: SocketAddr) -> Option<Value> {
    let group = "discovery.k8s.io";
    Some(match path.trim_end_matches('/') {
        "/version" => json!({
            "major": MAJOR,
            "minor": MINOR,
            "gitVersion": format!("v{MAJOR}.{MINOR}.0"),
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "2024-12-11T18:01:31Z",
            "goVersion": "go1.23.3",
            "compiler": "gc",
            "platform": "linux/amd64",
        }),
        "/api" => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [
                { "clientCIDR": "0.0.0.0/0", "serverAddress": address.to_string() },
            ],
        }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [api_group(group)] }),
        "/apis/discovery.k8s.io" => {
            let mut document = api_group(group);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            document
        }
        "/api/v1" => resources("v1"),
        "/apis/discovery.k8s.io/v1" => resources("discovery.k8s.io/v1"),
        _ => return None,
    })
}

fn api_group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn resources(version: &str) -> Value {
    let resources: Vec<_> = Resource::ALL
        .into_iter()
        .filter(|resource| resource.api_version() == version)
        .map(|resource| {
            json!({
                "name": resource.plural(),
                "singularName": resource.kind().to_lowercase(),
                "shortNames": resource.short_names(),
                "namespaced": resource.namespaced(),
                "kind": resource.kind(),
                "verbs": ["get", "list", "watch"],
            })
        })
        .collect();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources })
}

//! `/config_dump`.

use serde_json::Value;

use crate::stats::tests::sample::sample;
use crate::stats::tests::{assert_within, json, query};
use crate::stats::*;

#[test]
fn config_dump_is_in_envoys_shape() {
    let config = sample().config;
    let dump = json(config_dump(&config, &query("")));
    let types = ["Bootstrap", "Clusters", "Listeners"]
        .map(|kind| format!("type.googleapis.com/envoy.admin.v3.{kind}ConfigDump"));
    for (index, name) in types.iter().enumerate() {
        assert_eq!(dump["configs"][index]["@type"], *name);
    }
    let bootstrap = &dump["configs"][0]["bootstrap"];
    assert_eq!(bootstrap["admin"]["address"]["socket_address"]["port_value"], 18901);
    assert_eq!(dump["configs"][0]["last_updated"], "1970-01-01T00:00:00.000Z");
    let filter = &bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    assert_eq!(filter["typed_config"]["cluster"], "web");
    assert_eq!(filter["typed_config"]["idle_timeout"], "3600s");
    assert_eq!(dump["configs"][2]["static_listeners"][0]["listener"]["name"], "http");
}

/// What Envoy has in its dump of the same clusters is in ours; ours has the defaults as well.
#[test]
fn config_dump_of_clusters_has_what_envoys_has() {
    let envoys: Value =
        serde_json::from_str(include_str!("fixtures/config_dump_static_clusters.json")).unwrap();
    let ours = json(config_dump(&sample().config, &query("resource=static_clusters")));
    for name in ["web", "dead", "breaker"] {
        let find = |of: &Value| {
            let configs = of["configs"].as_array().unwrap().iter();
            let mut found =
                configs.filter(|config| config["cluster"]["name"] == name).cloned().collect::<Vec<_>>();
            assert_eq!(found.len(), 1, "{name}");
            found.remove(0)
        };
        let (mut ours, mut envoys) = (find(&ours), find(&envoys));
        ours["last_updated"] = envoys["last_updated"].clone();
        // Neither is configured here.
        let endpoints = &mut envoys["cluster"]["load_assignment"]["endpoints"][0];
        endpoints.as_object_mut().unwrap().remove("locality");
        for endpoint in endpoints["lb_endpoints"].as_array_mut().unwrap() {
            endpoint["endpoint"].as_object_mut().unwrap().remove("hostname");
        }
        if let Some(thresholds) = envoys["cluster"].pointer_mut("/circuit_breakers/thresholds/0") {
            thresholds.as_object_mut().unwrap().remove("track_remaining");
        }
        assert_within(&envoys, &ours, name);
    }
}

#[test]
fn config_dump_is_narrowed() {
    let config = sample().config;
    let dump = json(config_dump(&config, &query("name_regex=we.")));
    assert_eq!(dump["configs"][1]["static_clusters"].as_array().unwrap().len(), 1);
    assert_eq!(dump["configs"][2]["static_listeners"].as_array().unwrap().len(), 0);
    let none = json(config_dump(&config, &query("name_regex=we&resource=static_clusters")));
    assert!(none["configs"].as_array().unwrap().is_empty());
    assert_eq!(json(config_dump(&config, &query("mask=bootstrap")))["configs"].as_array().unwrap().len(), 1);
    let page = config_dump(&config, &query("resource=x"));
    assert_eq!((page.status, page.body.as_str()), (404, "x not found in config dump"));
    for bad in ["mask=clusters", "resource=bootstrap", "name_regex=*"] {
        assert_eq!(config_dump(&config, &query(bad)).status, 400, "{bad}");
    }
}

#[test]
fn weighted_clusters_are_in_the_dump() {
    let mut config = sample().config;
    config.listeners[0].clusters = vec![("web".to_owned(), 9), ("dead".to_owned(), 1)];
    config.listeners[0].idle_timeout = None;
    let dump = json(config_dump(&config, &query("resource=static_listeners")));
    let tcp_proxy = &dump["configs"][0]["listener"]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(
        tcp_proxy["weighted_clusters"]["clusters"][0],
        serde_json::json!({ "name": "web", "weight": 9 })
    );
    assert_eq!((&tcp_proxy["cluster"], &tcp_proxy["idle_timeout"]), (&Value::Null, &Value::from("0s")));
}

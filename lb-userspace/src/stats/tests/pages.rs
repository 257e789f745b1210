//! `/clusters`, `/listeners`, `/server_info`, `/ready`.

use serde_json::Value;

use crate::stats::tests::sample::{endpoint, listener, sample};
use crate::stats::tests::{assert_in_order, assert_within, body, by_name, json, query};
use crate::stats::*;

#[test]
fn clusters_are_lines_of_envoys_page() {
    let page = body(clusters(&sample(), &query("")));
    for name in ["web", "dead", "breaker"] {
        let prefix = format!("{name}::");
        let ours: Vec<&str> = page.lines().filter(|line| line.starts_with(&prefix)).collect();
        assert!(ours.len() >= 3 + 14, "{name}: {}", ours.len());
        assert_in_order(&ours, include_str!("fixtures/clusters.txt"));
    }
    assert!(body(clusters(&sample(), &query("filter=^w"))).starts_with("web::observability_name::web\n"));
    assert_eq!(clusters(&sample(), &query("filter=*")).status, 400);
}

#[test]
fn clusters_as_json_are_within_envoys() {
    let mut envoys: Value = serde_json::from_str(include_str!("fixtures/clusters.json")).unwrap();
    // Of HTTP, and of a priority that connections never have.
    for cluster in envoys["cluster_statuses"].as_array_mut().unwrap() {
        cluster["circuit_breakers"]["thresholds"].as_array_mut().unwrap().truncate(1);
        for host in cluster["host_statuses"].as_array_mut().into_iter().flatten() {
            let absent = ["rq_error", "rq_success", "rq_timeout"];
            let stats = host["stats"].as_array_mut().unwrap();
            stats.retain(|stat| !absent.contains(&stat["name"].as_str().unwrap()));
        }
    }
    let page = clusters(&sample(), &query("format=json"));
    assert!(
        page.body.starts_with("{\n \"cluster_statuses\": [\n  {\n   \"name\": \"web\",\n")
            && page.body.ends_with("}\n")
    );
    let ours = json(page);
    for name in ["web", "dead", "breaker"] {
        let ours = by_name(&ours["cluster_statuses"], "name", name);
        assert_within(ours, by_name(&envoys["cluster_statuses"], "name", name), name);
    }
}

#[test]
fn health_is_in_envoys_words() {
    let health = HealthFlags { failed_active_hc: true, eds_status_draining: true, ..HealthFlags::default() };
    let host = EndpointView { health, priority: 1, ..endpoint("[::1]:18191", "") };
    let cluster = ClusterView { name: "x.y".to_owned(), endpoints: vec![host], ..ClusterView::default() };
    let view = View { clusters: vec![cluster], ..View::default() };
    let page = body(clusters(&view, &query("")));
    assert!(
        page.contains("\nx.y::[::1]:18191::health_flags::/failed_active_hc/eds_status_draining\n"),
        "{page}"
    );
    assert!(page.contains("\nx.y::default_priority::max_connections::4294967295\n"), "{page}");
    let page = json(clusters(&view, &query("format=json")));
    let mut host = page["cluster_statuses"][0]["host_statuses"][0].clone();
    host.as_object_mut().unwrap().remove("stats");
    let envoys = r#"{"address": {"socket_address": {"address": "::1", "port_value": 18191}}, "health_status":
        {"failed_active_health_check": true, "eds_health_status": "DRAINING"}, "weight": 1, "priority": 1,
        "locality": {}}"#;
    assert_eq!(host, serde_json::from_str::<Value>(envoys).unwrap());
}

#[test]
fn listeners_are_envoys() {
    let mut view = sample();
    view.listeners.insert(2, listener("empty", "127.0.0.1:18444", "empty.dotted"));
    // Envoy ends the text with an empty line in its own chunk's end only.
    assert_eq!(body(listeners(&view, &query(""))), include_str!("fixtures/listeners.txt"));
    assert_eq!(body(listeners(&view, &query("format=json"))), include_str!("fixtures/listeners.json"));
}

#[test]
fn server_info_is_within_envoys() {
    let mut envoys: Value = serde_json::from_str(include_str!("fixtures/server_info.json")).unwrap();
    envoys["version"] = "headgate/0.1.0".into();
    envoys["node"]["user_agent_name"] = "headgate".into();
    envoys["node"]["user_agent_build_version"]["version"] =
        serde_json::json!({ "major_number": 0, "minor_number": 1, "patch": 0 });
    let page = server_info(&sample().server);
    assert!(page.body.starts_with("{\n \"version\": \"headgate/0.1.0\",\n \"state\": \"LIVE\",\n"));
    assert_within(&json(page), &envoys, "");
}

#[test]
fn ready_says_the_state() {
    let page = |state| ready(&ServerView { state, ..ServerView::default() });
    let texts = [ServerState::Live, ServerState::Draining, ServerState::Initializing].map(page);
    assert_eq!(texts.each_ref().map(|page| page.status), [200, 503, 503]);
    assert_eq!(texts.each_ref().map(|page| page.body.as_str()), ["LIVE\n", "DRAINING\n", "INITIALIZING\n"]);
}

#[test]
fn an_empty_view_has_all_pages() {
    let view = View::default();
    let none = query("");
    assert!(body(stats(&view, &none)).contains("\nserver.live: 0\n"));
    assert!(body(prometheus(&view, &none)).contains("\nenvoy_server_state{} 3\n"));
    assert_eq!(body(clusters(&view, &none)) + &body(listeners(&view, &none)), "");
    assert_eq!(body(clusters(&view, &query("format=json"))), "{}\n");
    assert_eq!(body(listeners(&view, &query("format=json"))), "{}\n");
    assert_eq!(json(server_info(&view.server))["state"], "INITIALIZING");
    assert_eq!(json(config_dump(&view.config, &none))["configs"].as_array().unwrap().len(), 3);
}

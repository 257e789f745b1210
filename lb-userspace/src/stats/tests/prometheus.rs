//! `/stats/prometheus`.

use std::collections::BTreeSet;

use crate::stats::tests::sample::sample;
use crate::stats::tests::{assert_in_order, body, query, without_ours};
use crate::stats::*;

const PROMETHEUS: &str = include_str!("fixtures/prometheus.txt");

#[test]
fn prometheus_page_is_lines_of_envoys() {
    let view = sample();
    let filter = "filter=web|brk|server|manager|ingress|tcp.breaker|18080|18445";
    let page = body(prometheus(&view, &query(filter)));
    // Envoy's sums are not exact, and its lines of this prefix are not in the fixture.
    let known = |line: &&str| !line.contains("_sum{") && !line.contains("ingress_https");
    let ours: Vec<&str> = without_ours(&page).into_iter().filter(known).collect();
    assert!(ours.len() > 150, "{}", ours.len());
    assert_in_order(&ours, PROMETHEUS);
    assert_eq!(stats(&view, &query(&format!("{filter}&format=prometheus"))).body, page);
}

#[test]
fn own_metrics_have_help_and_type() {
    let page = body(prometheus(&sample(), &query("filter=headgate")));
    assert!(!page.contains("envoy_"));
    assert!(page.contains("\nheadgate_payload_bytes_total{rung=\"xdp\",direction=\"from_clients\"} 1000\n"));
    assert!(page.contains("\nheadgate_last_reload_success_timestamp_seconds 1700000000\n"));
    let mut last = "";
    let mut described = BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(text.ends_with('.') && name > last, "{line}");
            last = name;
        } else if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(described.insert(name), "{line}");
        } else {
            assert!(described.contains(line.split(['{', ' ']).next().unwrap()), "{line}");
        }
    }
}

/// A label's value is quoted; a name that Prometheus cannot hold is not on its page twice.
#[test]
fn strange_names_do_not_spoil_the_prometheus_page() {
    let cluster = |name: &str| ClusterView { name: name.to_owned(), ..ClusterView::default() };
    let names = ["a\"b\\c\nd", "x.y-z", "x.y_z", "v.y_z", "outbound|80||x.y", ""];
    let view = View { clusters: names.map(cluster).into(), ..View::default() };
    let page = body(prometheus(&view, &query("filter=upstream_cx_total")));
    assert_eq!(
        page,
        "# TYPE envoy_cluster_upstream_cx_total counter\n\
         envoy_cluster_upstream_cx_total{envoy_cluster_name=\"\"} 0\n\
         envoy_cluster_upstream_cx_total{envoy_cluster_name=\"a\\\"b\\\\c\\nd\"} 0\n\
         # TYPE envoy_cluster_y_upstream_cx_total counter\n\
         envoy_cluster_y_upstream_cx_total{envoy_cluster_name=\"outbound|80||x\"} 0\n\
         # TYPE envoy_cluster_y_z_upstream_cx_total counter\n\
         envoy_cluster_y_z_upstream_cx_total{envoy_cluster_name=\"v\"} 0\n\
         envoy_cluster_y_z_upstream_cx_total{envoy_cluster_name=\"x\"} 0\n"
    );
}

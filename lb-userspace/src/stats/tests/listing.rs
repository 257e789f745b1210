//! `/stats`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::stats::tests::sample::{listener, sample};
use crate::stats::tests::{assert_in_order, body, json, query, without_ours};
use crate::stats::*;

const STATS: &str = include_str!("fixtures/stats.txt");
const USED_ONLY: &str = include_str!("fixtures/stats.usedonly.txt");

#[test]
fn stats_are_lines_of_envoys_page() {
    let page = body(stats(&sample(), &query("")));
    let ours = without_ours(&page);
    assert!(ours.len() > 120, "{}", ours.len());
    assert_in_order(&ours, STATS);
    let no_values = "cluster.brk_1.upstream_cx_length_ms: No recorded values";
    assert!(ours.contains(&no_values) && page.ends_with('\n'));
}

/// Of the statistics that there are, exactly those that Envoy calls used.
#[test]
fn used_ones_are_those_that_envoy_calls_used() {
    let view = sample();
    let (all, used) = (body(stats(&view, &query(""))), body(stats(&view, &query("usedonly"))));
    let used: BTreeSet<&str> = without_ours(&used).into_iter().collect();
    let envoys: BTreeSet<&str> = USED_ONLY.lines().collect();
    let all: BTreeSet<&str> = without_ours(&all).into_iter().filter(|line| envoys.contains(line)).collect();
    assert_eq!(used, all);
}

#[test]
fn stats_are_filtered() {
    let view = sample();
    let page = |text: &str| body(stats(&view, &query(text)));
    assert_eq!(page("filter=web.*cx_total"), "cluster.web.upstream_cx_total: 31\n");
    assert_eq!(page("filter=^tcp.breaker.downstream_cx_tx&usedonly&type=Counters").lines().count(), 1);
    assert_eq!(page("type=Histograms&filter=web").lines().count(), 2);
    assert_eq!(page("filter=.&invert_filter"), "");
    assert_eq!(page("type=TextReadouts"), "");
    assert_eq!(page("type=Gauges&filter=cx_total"), "");
    assert_eq!(page("filter=headgate.packets&usedonly"), "headgate.packets_total.forward: 812\n");
    for bad in ["filter=*", "type=x", "format=html", "histogram_buckets=x"] {
        assert_eq!(stats(&view, &query(bad)).status, 400, "{bad}");
    }
    assert_eq!(stats(&view, &query("type=x")).body, "invalid &type= param");
}

#[test]
fn histogram_buckets_are_envoys() {
    let view = sample();
    let web = "filter=web.*cx_length";
    let page = |buckets: &str| body(stats(&view, &query(&format!("{web}&histogram_buckets={buckets}"))));
    assert_eq!(page("cumulative"), include_str!("fixtures/stats_cumulative.txt"));
    assert_eq!(page("disjoint"), include_str!("fixtures/stats_disjoint.txt"));
    assert_eq!(page("summary"), page("none"));
    // The numbers may be written differently, 3e+05 and 300000.
    let envoys: Value = serde_json::from_str(include_str!("fixtures/stats_cumulative.json")).unwrap();
    let ours = json(stats(&view, &query(&format!("{web}&histogram_buckets=cumulative&format=json"))));
    let bounds = |of: &Value| -> Vec<(Option<f64>, Option<u64>)> {
        let buckets = of["stats"][0]["histograms"][0]["buckets"].as_array().unwrap();
        buckets.iter().map(|at| (at["upper_bound"].as_f64(), at["cumulative"].as_u64())).collect()
    };
    assert_eq!(bounds(&ours), bounds(&envoys));
    assert_eq!(ours["stats"][0]["histograms"][0]["name"], envoys["stats"][0]["histograms"][0]["name"]);
}

#[test]
fn stats_as_json_are_envoys() {
    let view = sample();
    let page = stats(&view, &query("format=json&usedonly&filter=web.*cx_length"));
    assert_eq!(page.body, include_str!("fixtures/stats_histogram.json").trim_end());
    let one = stats(&view, &query("format=json&filter=web.*cx_total"));
    assert_eq!(one.body, r#"{"stats":[{"name":"cluster.web.upstream_cx_total","value":31}]}"#);
    assert_eq!(stats(&view, &query("format=json&filter=zzz")).body, r#"{"stats":[]}"#);
    let all = json(stats(&view, &query("format=json")));
    let names = all["stats"].as_array().unwrap().iter().filter_map(|item| item["name"].as_str());
    assert!(names.is_sorted());
}

/// The names that Envoy 1.40 has for clusters with health checks and outlier detection, as far as they exist here.
#[test]
fn checks_and_ejections_have_envoys_names() {
    let cluster = ClusterView {
        name: "x.y".to_owned(),
        health_check: Some(HealthCheckView {
            attempt: 3,
            failure: 3,
            network_failure: 3,
            ..Default::default()
        }),
        outlier_detection: Some(OutlierDetectionView::default()),
        ..ClusterView::default()
    };
    let view = View { clusters: vec![cluster], ..View::default() };
    let page = body(stats(&view, &query("filter=health_check|outlier")));
    assert_eq!(
        page,
        "cluster.x.y.health_check.attempt: 3\n\
         cluster.x.y.health_check.failure: 3\n\
         cluster.x.y.health_check.healthy: 0\n\
         cluster.x.y.health_check.network_failure: 3\n\
         cluster.x.y.health_check.success: 0\n\
         cluster.x.y.outlier_detection.ejections_active: 0\n\
         cluster.x.y.outlier_detection.ejections_detected_consecutive_5xx: 0\n\
         cluster.x.y.outlier_detection.ejections_detected_consecutive_local_origin_failure: 0\n\
         cluster.x.y.outlier_detection.ejections_detected_local_origin_failure_percentage: 0\n\
         cluster.x.y.outlier_detection.ejections_detected_local_origin_success_rate: 0\n\
         cluster.x.y.outlier_detection.ejections_enforced_consecutive_5xx: 0\n\
         cluster.x.y.outlier_detection.ejections_enforced_consecutive_local_origin_failure: 0\n\
         cluster.x.y.outlier_detection.ejections_enforced_local_origin_failure_percentage: 0\n\
         cluster.x.y.outlier_detection.ejections_enforced_local_origin_success_rate: 0\n\
         cluster.x.y.outlier_detection.ejections_enforced_total: 0\n\
         cluster.x.y.outlier_detection.ejections_overflow: 0\n"
    );
}

/// Listeners of one prefix share its counters, as in Envoy.
#[test]
fn a_shared_prefix_is_counted_once() {
    let one = ListenerView { downstream_cx_total: 3, ..listener("a", "127.0.0.1:80", "edge") };
    let other = ListenerView { downstream_cx_total: 4, ..listener("b", "127.0.0.1:443", "edge") };
    let view = View { listeners: vec![one, other], ..View::default() };
    assert_eq!(body(stats(&view, &query("filter=^tcp.*cx_total"))), "tcp.edge.downstream_cx_total: 7\n");
}

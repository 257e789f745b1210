//! The statistics that Envoy has as well, under its names.

use crate::stats::stat::{Scope, Stats};
use crate::stats::view::{
    ClusterView, HealthCheckView, ListenerView, OutlierDetectionView, ServerView, View,
};

/// All that are known at this moment.
pub(super) fn stats(view: &View) -> Stats {
    let mut stats = Stats::default();
    server(&mut stats, &view.server);
    managers(&mut stats, view);
    for of in &view.listeners {
        listener(&mut stats, of);
        tcp(&mut stats, of);
    }
    for of in &view.clusters {
        cluster(&mut stats, of);
    }
    stats
}

fn server(stats: &mut Stats, of: &ServerView) {
    let scope = Scope::plain("server");
    stats.gauge(&scope, "concurrency", true, of.concurrency);
    stats.gauge(&scope, "live", true, u64::from(of.state.number() == 0));
    stats.gauge(&scope, "state", true, of.state.number());
    stats.gauge(&scope, "total_connections", true, of.total_connections);
    stats.gauge(&scope, "uptime", true, of.uptime.as_secs());
    if let Some(bytes) = of.memory_physical_size {
        stats.gauge(&scope, "memory_physical_size", true, bytes);
    }
    if let Some(time) = of.initialization_time_ms {
        stats.histogram(&scope, "initialization_time_ms", &super::HistogramSnapshot::of(time));
    }
}

fn managers(stats: &mut Stats, view: &View) {
    let (scope, of) = (Scope::plain("listener_manager"), &view.listener_manager);
    stats.counter(&scope, "listener_added", of.listener_added);
    stats.counter(&scope, "listener_modified", of.listener_modified);
    stats.counter(&scope, "listener_removed", of.listener_removed);
    stats.counter(&scope, "listener_create_success", of.listener_create_success);
    stats.gauge(&scope, "total_listeners_active", true, of.total_listeners_active);
    let (scope, of) = (Scope::plain("cluster_manager"), &view.cluster_manager);
    stats.counter(&scope, "cluster_added", of.cluster_added);
    stats.counter(&scope, "cluster_modified", of.cluster_modified);
    stats.counter(&scope, "cluster_removed", of.cluster_removed);
    stats.gauge(&scope, "active_clusters", true, of.active_clusters);
    stats.gauge(&scope, "warming_clusters", true, of.warming_clusters);
}

fn listener(stats: &mut Stats, of: &ListenerView) {
    let scope = Scope::addressed("listener", "envoy_listener_address", &of.address.to_string());
    let used = of.downstream_cx_total > 0;
    stats.counter(&scope, "downstream_cx_total", of.downstream_cx_total);
    stats.gauge(&scope, "downstream_cx_active", used, of.downstream_cx_active);
    stats.counter(&scope, "downstream_cx_destroy", of.downstream_cx_destroy);
    if let Some(lengths) = &of.downstream_cx_length_ms {
        stats.histogram(&scope, "downstream_cx_length_ms", lengths);
    }
}

fn tcp(stats: &mut Stats, of: &ListenerView) {
    let scope = Scope::named("tcp", "envoy_tcp_prefix", &of.stat_prefix);
    stats.counter(&scope, "downstream_cx_total", of.downstream_cx_total);
    stats.counter(&scope, "downstream_cx_no_route", of.downstream_cx_no_route);
    stats.counter(&scope, "downstream_cx_rx_bytes_total", of.downstream_cx_rx_bytes_total);
    stats.counter(&scope, "downstream_cx_tx_bytes_total", of.downstream_cx_tx_bytes_total);
    stats.counter(&scope, "idle_timeout", of.idle_timeout);
    stats.counter(&scope, "max_downstream_connection_duration", of.max_downstream_connection_duration);
    if let Some(count) = of.upstream_flush_total {
        stats.counter(&scope, "upstream_flush_total", count);
    }
    if let Some(count) = of.upstream_flush_active {
        stats.gauge(&scope, "upstream_flush_active", of.upstream_flush_total > Some(0), count);
    }
}

fn cluster(stats: &mut Stats, of: &ClusterView) {
    let scope = Scope::named("cluster", "envoy_cluster_name", of.stat_name());
    let counters = [
        ("lb_healthy_panic", of.lb_healthy_panic),
        ("membership_change", of.membership_change),
        ("upstream_cx_total", of.upstream_cx_total),
        ("upstream_cx_connect_fail", of.upstream_cx_connect_fail),
        ("upstream_cx_connect_timeout", of.upstream_cx_connect_timeout),
        ("upstream_cx_connect_attempts_exceeded", of.upstream_cx_connect_attempts_exceeded),
        ("upstream_cx_overflow", of.upstream_cx_overflow),
        ("upstream_cx_none_healthy", of.upstream_cx_none_healthy),
        ("upstream_cx_destroy", of.upstream_cx_destroy),
        ("upstream_cx_destroy_local", of.upstream_cx_destroy_local),
        ("upstream_cx_destroy_remote", of.upstream_cx_destroy_remote),
        ("upstream_cx_destroy_with_active_rq", of.upstream_cx_destroy_with_active_rq),
        ("upstream_cx_destroy_local_with_active_rq", of.upstream_cx_destroy_local_with_active_rq),
        ("upstream_cx_destroy_remote_with_active_rq", of.upstream_cx_destroy_remote_with_active_rq),
        ("upstream_cx_rx_bytes_total", of.upstream_cx_rx_bytes_total),
        ("upstream_cx_tx_bytes_total", of.upstream_cx_tx_bytes_total),
        ("upstream_rq_total", of.upstream_rq_total),
        ("upstream_rq_pending_total", of.upstream_rq_pending_total),
        ("upstream_rq_pending_failure_eject", of.upstream_rq_pending_failure_eject),
    ];
    for (name, value) in counters {
        stats.counter(&scope, name, value);
    }
    let (filled, connected) = (of.membership_change > 0, of.upstream_cx_total > 0);
    let gauges = [
        ("membership_total", filled, of.membership_total),
        ("membership_healthy", filled, of.membership_healthy),
        ("membership_degraded", filled, of.membership_degraded),
        ("membership_excluded", filled, of.membership_excluded),
        ("upstream_cx_active", connected, of.upstream_cx_active),
        ("upstream_rq_active", of.upstream_rq_total > 0, of.upstream_rq_active),
        ("upstream_rq_pending_active", connected, of.upstream_rq_pending_active),
    ];
    for (name, used, value) in gauges {
        stats.gauge(&scope, name, used, value);
    }
    let histograms = [
        ("upstream_cx_connect_ms", &of.upstream_cx_connect_ms),
        ("upstream_cx_length_ms", &of.upstream_cx_length_ms),
    ];
    for (name, snapshot) in histograms {
        if let Some(snapshot) = snapshot {
            stats.histogram(&scope, name, snapshot);
        }
    }
    if let Some(update) = &of.update {
        stats.counter(&scope, "update_attempt", update.attempt);
        stats.counter(&scope, "update_success", update.success);
        stats.counter(&scope, "update_failure", update.failure);
        stats.counter(&scope, "update_empty", update.empty);
        stats.counter(&scope, "update_no_rebuild", update.no_rebuild);
    }
    let breaker = scope.below("circuit_breakers.default");
    stats.gauge(&breaker, "cx_open", connected, u64::from(of.circuit_breakers.cx_open));
    if let Some(remaining) = of.circuit_breakers.remaining_cx {
        stats.gauge(&breaker, "remaining_cx", true, remaining);
    }
    if let Some(of) = &of.health_check {
        health_check(stats, &scope.below("health_check"), of);
    }
    if let Some(of) = &of.outlier_detection {
        outlier_detection(stats, &scope.below("outlier_detection"), of);
    }
}

fn health_check(stats: &mut Stats, scope: &Scope, of: &HealthCheckView) {
    stats.counter(scope, "attempt", of.attempt);
    stats.counter(scope, "success", of.success);
    stats.counter(scope, "failure", of.failure);
    stats.counter(scope, "network_failure", of.network_failure);
    stats.gauge(scope, "healthy", of.attempt > 0, of.healthy);
}

fn outlier_detection(stats: &mut Stats, scope: &Scope, of: &OutlierDetectionView) {
    stats.gauge(scope, "ejections_active", of.ejections_enforced_total > 0, of.ejections_active);
    stats.counter(scope, "ejections_enforced_total", of.ejections_enforced_total);
    stats.counter(scope, "ejections_overflow", of.ejections_overflow);
    let causes = [
        // Which name Envoy has for failed connections depends on split_external_local_origin_errors.
        ("consecutive_5xx", of.consecutive_local_origin_failure),
        ("consecutive_local_origin_failure", of.consecutive_local_origin_failure),
        ("local_origin_success_rate", of.local_origin_success_rate),
        ("local_origin_failure_percentage", of.local_origin_failure_percentage),
    ];
    for (cause, (detected, enforced)) in causes {
        stats.counter(scope, &format!("ejections_detected_{cause}"), detected);
        stats.counter(scope, &format!("ejections_enforced_{cause}"), enforced);
    }
}

impl ClusterView {
    /// What its statistics are named by.
    pub fn stat_name(&self) -> &str {
        self.alt_stat_name.as_deref().unwrap_or(&self.name)
    }
}

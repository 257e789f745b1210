//! What is on Envoy's pages and not on Headgate's.

use super::Page;
use super::accepted::{ALL, Accepted, Topic, Value};

const fn statistics(items: &'static [&'static str], reason: &'static str) -> Accepted {
    absent(Page::Stats, items, reason)
}

const fn absent(page: Page, items: &'static [&'static str], reason: &'static str) -> Accepted {
    Accepted {
        topic: Topic::Absent,
        page,
        items,
        rungs: ALL,
        envoy: Value::Some,
        headgate: Value::Nothing,
        reason,
    }
}

pub(super) const ABSENT: &[Accepted] = &[
    statistics(
        &[
            "envoy_cluster_upstream_cx_*_bytes_buffered",
            "envoy_tcp_downstream_cx_*_bytes_buffered",
            "envoy_cluster_upstream_flow_control_*",
            "envoy_tcp_downstream_flow_control_*",
            "envoy_cluster_upstream_queue_overloaded",
        ],
        "packets are not buffered, and the proxy's bytes stay in the kernel",
    ),
    statistics(
        &[
            "envoy_cluster_upstream_cx_http*",
            "envoy_cluster_upstream_http3_broken",
            "envoy_cluster_upstream_cx_close_notify",
            "envoy_cluster_upstream_cx_connect_with_0_rtt",
            "envoy_cluster_upstream_cx_max_requests",
            "envoy_cluster_upstream_cx_protocol_error",
            "envoy_cluster_upstream_internal_redirect_*",
            "envoy_cluster_upstream_rq_0rtt",
            "envoy_cluster_upstream_rq_active_overflow",
            "envoy_cluster_upstream_rq_cancelled",
            "envoy_cluster_upstream_rq_completed",
            "envoy_cluster_upstream_rq_maintenance_mode",
            "envoy_cluster_upstream_rq_max_duration_reached",
            "envoy_cluster_upstream_rq_pending_overflow",
            "envoy_cluster_upstream_rq_per_*",
            "envoy_cluster_upstream_rq_retry*",
            "envoy_cluster_upstream_rq_rx_reset*",
            "envoy_cluster_upstream_rq_timeout",
            "envoy_cluster_upstream_rq_tx_reset",
            "envoy_cluster_retry_or_shadow_abandoned",
        ],
        "of HTTP, always 0 for TCP",
    ),
    statistics(
        &[
            "envoy_cluster_upstream_cx_idle_timeout",
            "envoy_cluster_upstream_cx_max_duration_reached",
            "envoy_cluster_upstream_cx_pool_overflow",
            "envoy_cluster_upstream_cx_preconnect_skipped",
            "envoy_cluster_circuit_breakers_default_cx_pool_open",
            "envoy_cluster_circuit_breakers_default_rq_*",
        ],
        "there is no pool of connections, and no breaker but that of connections",
    ),
    statistics(&["envoy_cluster_circuit_breakers_high_*"], "connections have no priority"),
    statistics(
        &[
            "envoy_cluster_lb_local_cluster_not_ok",
            "envoy_cluster_lb_recalculate_zone_structures",
            "envoy_cluster_lb_subsets_*",
            "envoy_cluster_lb_zone_*",
            "envoy_cluster_default_total_match_count",
            "envoy_cluster_original_dst_host_invalid",
        ],
        "no subsets, zones, transport sockets or original-destination clusters",
    ),
    statistics(
        &[
            "envoy_cluster_assignment_*",
            "envoy_cluster_version",
            "envoy_cluster_warming_state",
            "envoy_cluster_manager_cluster_updated*",
            "envoy_cluster_manager_update_*",
        ],
        "of xDS",
    ),
    statistics(
        &["envoy_cluster_max_host_weight"],
        "what Envoy shows does not follow the weights, which are in `/clusters`",
    ),
    statistics(&["envoy_cluster_bind_errors"], "in `headgate_proxy_events_total`, not by cluster"),
    statistics(
        &[
            "envoy_listener_connections_accepted_per_socket_event_count",
            "envoy_listener_worker_*",
            "envoy_listener_manager_workers_*",
            "envoy_*watchdog_*",
            "envoy_thread_local_cluster_manager_*",
        ],
        "no workers accept connections: the kernel does",
    ),
    statistics(
        &[
            "envoy_listener_downstream_cx_transport_socket_connect_timeout",
            "envoy_listener_downstream_listener_filter_*",
            "envoy_listener_downstream_pre_cx_*",
            "envoy_listener_*extension_config_missing",
            "envoy_listener_no_filter_chain_match",
            "envoy_listener_manager_listener_in_place_updated",
            "envoy_listener_manager_total_filter_chains_draining",
        ],
        "no listener filters, TLS, or filter chains to match",
    ),
    statistics(
        &[
            "envoy_listener_downstream_cx_overload_reject",
            "envoy_listener_downstream_global_cx_overflow",
            "envoy_tcp_downstream_cx_overload_close",
            "envoy_overload_*",
            "envoy_envoy_overload_*",
        ],
        "no overload manager: a full flow table sends connections to the proxy",
    ),
    statistics(
        &[
            "envoy_listener_manager_listener_create_failure",
            "envoy_listener_manager_total_listeners_draining",
            "envoy_listener_manager_total_listeners_warming",
        ],
        "a listener is there at once or its file is refused",
    ),
    statistics(&["envoy_listener_downstream_cx_overflow"], "listeners have no limit of connections"),
    statistics(
        &[
            "envoy_tcp_downstream_cx_drain_close",
            "envoy_tcp_early_data_received_count_total",
            "envoy_tcp_route_delayed_total",
        ],
        "features of `tcp_proxy` that do not exist here",
    ),
    statistics(
        &["envoy_tcp_upstream_flush_*"],
        "what a client has sent before it closed is the kernel's to deliver, so there is no flushing to count",
    ),
    statistics(&["envoy_listener_manager_listener_stopped"], "listeners end with the agent"),
    statistics(
        &["envoy_server_memory_allocated", "envoy_server_memory_heap_size"],
        "another allocator; `envoy_server_memory_physical_size` is there",
    ),
    statistics(
        &[
            "envoy_server_compilation_settings_fips_mode",
            "envoy_server_days_until_first_cert_expiring",
            "envoy_server_debug_assertion_failures",
            "envoy_server_dropped_stat_flushes",
            "envoy_server_*_unknown_fields",
            "envoy_server_envoy_*",
            "envoy_server_hot_restart_epoch",
            "envoy_server_parent_connections",
            "envoy_server_seconds_until_first_ocsp_response_expiring",
            "envoy_server_stats_recent_lookups",
            "envoy_server_version",
            "envoy_server_wip_protos",
        ],
        "of Envoy's build, protobuf, TLS or hot restart",
    ),
    statistics(
        &["envoy_http_*", "envoy_http1_*", "envoy_listener_admin_*", "envoy_filesystem_*", "envoy_runtime_*"],
        "the admin port's own connections, Envoy's file writer and runtime",
    ),
    absent(
        Page::Clusters,
        &[
            "default_priority::max_pending_requests",
            "default_priority::max_requests",
            "default_priority::max_retries",
            "endpoint::rq_error",
            "endpoint::rq_success",
            "endpoint::rq_timeout",
        ],
        "of HTTP",
    ),
    absent(Page::Clusters, &["high_priority::*"], "connections have no priority"),
    absent(
        Page::Clusters,
        &["endpoint::success_rate", "endpoint::local_origin_success_rate"],
        "no detector of success rates, and -1 in Envoy as well without it",
    ),
];

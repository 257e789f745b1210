//! The state in which Envoy 1.40 was when it printed the pages in `fixtures/`.

use std::time::{Duration, SystemTime};

use crate::stats::*;

pub(super) fn sample() -> View {
    View {
        server: ServerView {
            version: "0.1.0".to_owned(),
            uptime: Duration::from_secs(11),
            state: ServerState::Live,
            concurrency: 1,
            config_path: "fixtures/envoy.yaml".to_owned(),
            drain_time: Duration::from_secs(600),
            node_id: "edge-1".to_owned(),
            node_cluster: "edge".to_owned(),
            total_connections: 2,
            memory_physical_size: Some(13_560_638),
            initialization_time_ms: Some(15),
        },
        listener_manager: ListenerManagerView {
            listener_added: 4,
            listener_create_success: 4,
            total_listeners_active: 4,
            ..ListenerManagerView::default()
        },
        cluster_manager: ClusterManagerView {
            cluster_added: 4,
            active_clusters: 4,
            ..ClusterManagerView::default()
        },
        listeners: listeners(),
        clusters: vec![web(), dead(), breaker()],
        headgate: headgate(),
        config: config(),
    }
}

fn listeners() -> Vec<ListenerView> {
    vec![
        ListenerView {
            downstream_cx_total: 31,
            downstream_cx_active: 1,
            downstream_cx_destroy: 30,
            downstream_cx_rx_bytes_total: 3436,
            downstream_cx_tx_bytes_total: 3436,
            ..listener("http", "127.0.0.1:18080", "ingress_http")
        },
        ListenerView {
            downstream_cx_total: 3,
            downstream_cx_destroy: 3,
            downstream_cx_length_ms: Some(histogram(&[0; 3])),
            ..listener("https", "127.0.0.1:18443", "ingress_https")
        },
        ListenerView {
            downstream_cx_total: 3,
            downstream_cx_active: 1,
            downstream_cx_destroy: 2,
            downstream_cx_rx_bytes_total: 1,
            downstream_cx_tx_bytes_total: 1,
            downstream_cx_length_ms: Some(histogram(&[0; 2])),
            ..listener("76bb1b72-df43-4099-938a-0785a73e7d31", "[::1]:18445", "breaker")
        },
    ]
}

pub(super) fn listener(name: &str, address: &str, stat_prefix: &str) -> ListenerView {
    ListenerView {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        stat_prefix: stat_prefix.to_owned(),
        downstream_cx_total: 0,
        downstream_cx_active: 0,
        downstream_cx_destroy: 0,
        downstream_cx_rx_bytes_total: 0,
        downstream_cx_tx_bytes_total: 0,
        downstream_cx_no_route: 0,
        idle_timeout: 0,
        max_downstream_connection_duration: 0,
        upstream_flush_total: Some(0),
        upstream_flush_active: Some(0),
        downstream_cx_length_ms: None,
    }
}

fn web() -> ClusterView {
    ClusterView {
        name: "web".to_owned(),
        upstream_cx_total: 31,
        upstream_cx_active: 1,
        upstream_cx_destroy: 30,
        upstream_cx_destroy_remote: 30,
        upstream_cx_destroy_with_active_rq: 30,
        upstream_cx_destroy_remote_with_active_rq: 30,
        upstream_cx_rx_bytes_total: 3436,
        upstream_cx_tx_bytes_total: 3436,
        upstream_rq_total: 31,
        upstream_rq_active: 1,
        upstream_rq_pending_total: 31,
        upstream_cx_connect_ms: Some(histogram(&[0; 31])),
        upstream_cx_length_ms: Some(histogram(&[
            0, 4, 6, 9, 13, 16, 19, 22, 25, 28, 31, 34, 37, 41, 43, 46, 49, 53, 55, 58, 61, 64, 68, 71, 73,
            77, 80, 83, 85, 89,
        ])),
        membership_total: 2,
        membership_healthy: 2,
        membership_change: 2,
        update: Some(UpdateView { attempt: 6, success: 6, no_rebuild: 4, ..UpdateView::default() }),
        circuit_breakers: limit(1024),
        endpoints: vec![
            EndpointView {
                cx_active: 1,
                cx_total: 8,
                rq_total: 8,
                region: "r1".to_owned(),
                zone: "z1".to_owned(),
                ..endpoint("127.0.0.1:18101", "localhost")
            },
            EndpointView {
                cx_total: 23,
                rq_total: 23,
                weight: 3,
                region: "r1".to_owned(),
                zone: "z1".to_owned(),
                ..endpoint("127.0.0.1:18102", "localhost")
            },
        ],
        ..ClusterView::default()
    }
}

fn dead() -> ClusterView {
    ClusterView {
        name: "dead".to_owned(),
        upstream_cx_total: 3,
        upstream_cx_connect_fail: 3,
        upstream_cx_connect_attempts_exceeded: 3,
        upstream_cx_destroy: 3,
        upstream_cx_destroy_remote: 3,
        upstream_rq_pending_total: 3,
        upstream_rq_pending_failure_eject: 3,
        upstream_cx_connect_ms: Some(HistogramSnapshot::default()),
        upstream_cx_length_ms: Some(histogram(&[0; 3])),
        membership_total: 1,
        membership_healthy: 1,
        membership_change: 1,
        circuit_breakers: limit(1024),
        endpoints: vec![EndpointView {
            cx_connect_fail: 3,
            cx_total: 3,
            ..endpoint("127.0.0.1:18199", "gone.example")
        }],
        ..ClusterView::default()
    }
}

fn breaker() -> ClusterView {
    ClusterView {
        name: "breaker".to_owned(),
        alt_stat_name: Some("brk:1".to_owned()),
        upstream_cx_total: 1,
        upstream_cx_active: 1,
        upstream_cx_overflow: 2,
        upstream_cx_rx_bytes_total: 1,
        upstream_cx_tx_bytes_total: 1,
        upstream_rq_total: 1,
        upstream_rq_active: 1,
        upstream_rq_pending_total: 1,
        upstream_cx_connect_ms: Some(histogram(&[0])),
        upstream_cx_length_ms: Some(HistogramSnapshot::default()),
        membership_total: 1,
        membership_healthy: 1,
        membership_change: 1,
        circuit_breakers: CircuitBreakersView { cx_open: true, remaining_cx: Some(0), ..limit(1) },
        endpoints: vec![EndpointView {
            cx_active: 1,
            cx_total: 1,
            rq_total: 1,
            ..endpoint("127.0.0.1:18101", "")
        }],
        ..ClusterView::default()
    }
}

fn limit(max_connections: u64) -> CircuitBreakersView {
    CircuitBreakersView { max_connections: Some(max_connections), ..CircuitBreakersView::default() }
}

pub(super) fn endpoint(address: &str, hostname: &str) -> EndpointView {
    EndpointView {
        address: address.parse().unwrap(),
        hostname: hostname.to_owned(),
        cx_active: 0,
        cx_connect_fail: 0,
        cx_total: 0,
        rq_pending_active: 0,
        rq_total: 0,
        weight: 1,
        priority: 0,
        region: String::new(),
        zone: String::new(),
        sub_zone: String::new(),
        health: HealthFlags::default(),
    }
}

fn histogram(values: &[u64]) -> HistogramSnapshot {
    let histogram = Histogram::default();
    values.iter().for_each(|value| histogram.record(*value));
    histogram.snapshot()
}

fn headgate() -> HeadgateView {
    let counts = |counts: &[(&str, u64)]| counts.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    HeadgateView {
        mode: "auto".to_owned(),
        rungs: vec![
            RungView {
                rung: "xdp".to_owned(),
                connections: 20,
                bytes_from_clients: Some(1000),
                bytes_to_clients: Some(2000),
            },
            RungView { rung: "proxy".to_owned(), connections: 17, ..RungView::default() },
        ],
        flow_tables: vec![FlowTableView { family: "ipv4".to_owned(), live: 2, max: 65536, bytes: 1 << 24 }],
        reasons: counts(&[("forward", 812), ("no_port", 0)]),
        proxy: counts(&[("accepted", 17), ("closed", 16)]),
        snat: vec![SnatView {
            cluster: "web".to_owned(),
            backend: "127.0.0.1:18101".to_owned(),
            ports_used: 3,
            ports: 28_976,
        }],
        dns: vec![DnsView { cluster: "web".to_owned(), events: counts(&[("answered", 6), ("timeout", 0)]) }],
        reloads_applied: 1,
        reloads_refused: 2,
        last_reload_success: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        panic: vec![PanicView { cluster: "web".into(), panic: true }],
        access_log_dropped: Some(0),
    }
}

fn config() -> ConfigView {
    let cluster = |name: &str, host: &str, port| ClusterConfig {
        name: name.to_owned(),
        connect_timeout: Duration::from_millis(300),
        lb_policy: "ROUND_ROBIN".to_owned(),
        endpoints: vec![EndpointConfig { host: host.to_owned(), port, weight: 1 }],
        ..ClusterConfig::default()
    };
    let mut web = cluster("web", "localhost", 18101);
    web.endpoints.push(EndpointConfig { host: "localhost".to_owned(), port: 18102, weight: 3 });
    web.connect_timeout = Duration::from_secs(1);
    web.dns = Some(DnsConfig {
        refresh_rate: Duration::from_secs(5),
        failure_refresh_rate: (Duration::from_secs(5), Duration::from_secs(50)),
        lookup_family: "V4_ONLY".to_owned(),
        ..DnsConfig::default()
    });
    let mut breaker = cluster("breaker", "127.0.0.1", 18101);
    breaker.alt_stat_name = Some("brk:1".to_owned());
    breaker.max_connections = Some(1);
    ConfigView {
        admin_address: Some("127.0.0.1:18901".parse().unwrap()),
        last_updated: Some(SystemTime::UNIX_EPOCH),
        listeners: vec![ListenerConfig {
            name: "http".to_owned(),
            address: "127.0.0.1:18080".parse().unwrap(),
            stat_prefix: "ingress_http".to_owned(),
            clusters: vec![("web".to_owned(), 1)],
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connect_attempts: 1,
            max_downstream_connection_duration: None,
            access_log_paths: vec!["/dev/stdout".to_owned()],
        }],
        clusters: vec![breaker, cluster("dead", "127.0.0.1", 18199), web],
    }
}

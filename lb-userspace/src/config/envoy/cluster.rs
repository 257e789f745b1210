//! One element of `static_resources.clusters`.

use std::time::Duration;

use super::health::Health;
use super::import::Import;
use super::message;
use super::policy::{self, Policy};
use super::schema::{DURATION, Field, KEEPALIVE, Kind, checked, ignored, read, refused};
use super::{breakers, common_lb, discovery, tcp_proxy, transport, value};
use crate::config::cluster::{CONNECT_TIMEOUT, ClusterDraft, DRAIN_TIMEOUT, OVERPROVISIONING};
use crate::config::tree::Entry;
use crate::model::{LbPolicy, OnLeaving, PreferLocal};

pub(super) const NO_HTTP: &str = "tcp_proxy speaks no HTTP to the backends";
const NO_CONTROL_PLANE: &str = "Headgate has no control plane to report to";

const CLUSTER: &[Field] = &[
    refused("transport_socket_matches", transport::TLS),
    refused("transport_socket_matcher", transport::TLS),
    read("name"),
    read("alt_stat_name"),
    ignored("stats_matcher", Kind::Mapping, "every statistic is shown"),
    read("type"),
    read("cluster_type"),
    read("eds_cluster_config"),
    read("connect_timeout"),
    ignored(
        "per_connection_buffer_limit_bytes",
        Kind::U32,
        "the kernel path buffers nothing, and the proxy leaves buffers to the kernel",
    ),
    ignored(
        "per_connection_buffer_high_watermark_timeout",
        DURATION,
        "the kernel path buffers nothing, and the proxy leaves buffers to the kernel",
    ),
    read("lb_policy"),
    read("hosts"),
    read("load_assignment"),
    read("health_checks"),
    ignored("max_requests_per_connection", Kind::U32, NO_HTTP),
    read("circuit_breakers"),
    refused("tls_context", transport::TLS),
    ignored("upstream_http_protocol_options", Kind::Mapping, NO_HTTP),
    ignored("common_http_protocol_options", Kind::Mapping, NO_HTTP),
    ignored("http_protocol_options", Kind::Mapping, NO_HTTP),
    ignored("http2_protocol_options", Kind::Mapping, NO_HTTP),
    ignored("extension_protocol_options", Kind::Mapping, NO_HTTP),
    ignored("typed_extension_protocol_options", Kind::Mapping, NO_HTTP),
    read("dns_refresh_rate"),
    read("dns_jitter"),
    read("dns_failure_refresh_rate"),
    read("respect_dns_ttl"),
    read("dns_lookup_family"),
    refused("dns_resolvers", "Headgate asks the servers of /etc/resolv.conf: write them there"),
    ignored("use_tcp_for_dns_lookups", Kind::Bool, "the options of /etc/resolv.conf hold"),
    read("dns_resolution_config"),
    read("typed_dns_resolver_config"),
    ignored("wait_for_warm_on_init", Kind::Bool, "a listener is up before its backends are known"),
    read("outlier_detection"),
    ignored("cleanup_interval", Kind::PositiveDuration, "only ORIGINAL_DST clusters use it"),
    refused("upstream_bind_config", "source addresses are those of datapath.snat_addresses in a native file"),
    refused("lb_subset_config", "subsets of a cluster by metadata are not supported"),
    read("ring_hash_lb_config"),
    read("maglev_lb_config"),
    refused("original_dst_lb_config", "redirected connections are not supported"),
    read("least_request_lb_config"),
    read("round_robin_lb_config"),
    read("common_lb_config"),
    read("transport_socket"),
    ignored("metadata", Kind::Mapping, "nothing reads it"),
    ignored(
        "protocol_selection",
        Kind::Word(&["USE_CONFIGURED_PROTOCOL", "USE_DOWNSTREAM_PROTOCOL"]),
        NO_HTTP,
    ),
    ignored(
        "upstream_connection_options",
        Kind::Message(&[
            checked("tcp_keepalive", KEEPALIVE),
            checked("set_local_interface_name_on_upstream_connections", Kind::Bool),
            checked("happy_eyeballs_config", Kind::Mapping),
        ]),
        "Headgate sets up its sockets itself",
    ),
    read("close_connections_on_host_health_failure"),
    read("ignore_health_on_host_removal"),
    read("drain_connections_on_host_removal"),
    refused("filters", "filters of backend connections are not supported"),
    read("load_balancing_policy"),
    ignored("lrs_server", Kind::Mapping, NO_CONTROL_PLANE),
    ignored("lrs_report_endpoint_metrics", Kind::List(&Kind::Text), NO_CONTROL_PLANE),
    ignored("track_timeout_budgets", Kind::Bool, NO_HTTP),
    refused("upstream_config", "upstreams of other kinds are not supported"),
    ignored("track_cluster_stats", Kind::Mapping, NO_HTTP),
    ignored("preconnect_policy", Kind::Mapping, "a backend is connected when a client is there"),
    ignored("connection_pool_per_downstream_connection", Kind::Bool, "each client has its own connection"),
    ignored("queuing_policies", Kind::Mapping, NO_HTTP),
];

/// A cluster whose policy may depend on the listeners.
pub(super) struct Imported<'a> {
    pub(super) draft: ClusterDraft,
    pub(super) policy: Policy<'a>,
    /// Where the limit of connections could be said and is not, so that Envoy's default holds.
    pub(super) silent_limit: Option<Entry<'a>>,
}

pub(super) fn read_cluster<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Imported<'a>> {
    let fields = message::read(entry, CLUSTER, import)?;
    let name = match fields.get("name") {
        None => {
            import.error(entry, "needs a name");
            None
        }
        Some(name) => {
            import.honour(name);
            name.name(import.report)
        }
    };
    let stat_name =
        fields.get("alt_stat_name").filter(|entry| !message::is_empty_text(entry)).and_then(|entry| {
            import.honour(entry);
            entry.stat_name(import.report)
        });
    if let Some(socket) = fields.get("transport_socket") {
        transport::check(socket, import);
    }
    let connect_timeout = fields.get("connect_timeout").and_then(|entry| {
        let timeout = value::positive_duration(entry, import)?;
        // Less is no time to connect at all.
        Some(value::settle(entry, timeout, import).max(Duration::from_millis(1)))
    });
    let chosen = policy::read_policy(&fields, import);
    let limit = fields.get("circuit_breakers").and_then(|entry| breakers::max_connections(entry, import));
    let silent_limit = match limit {
        None => Some(fields.get("circuit_breakers").unwrap_or(entry).clone()),
        Some(_) => None,
    };
    let found = discovery::read_discovery(entry, &fields, import);
    let overprovisioning = found.as_ref().map_or(OVERPROVISIONING, |found| found.overprovisioning);
    let health = Health::read(entry, &fields, name.as_ref(), import);
    let panic_threshold =
        common_lb::panic_threshold(fields.get("common_lb_config"), health.check.is_some(), import);
    Some(Imported {
        draft: ClusterDraft {
            name,
            discovery: found.map(|found| found.discovery),
            lb_policy: LbPolicy::default(),
            connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            connect_attempts: tcp_proxy::CONNECT_ATTEMPTS,
            max_connections: limit.or(Some(breakers::MAX_CONNECTIONS)),
            stat_name,
            health_check: health.check,
            outlier: health.outlier,
            panic_threshold,
            slow_start: chosen.as_ref().and_then(|chosen| chosen.slow_start),
            prefer_local: PreferLocal::None,
            overprovisioning_percent: overprovisioning,
            keep_while_healthy: health.keep_while_healthy,
            on_removed: OnLeaving::Keep,
            on_unhealthy: health.on_unhealthy,
            drain_timeout: DRAIN_TIMEOUT,
        },
        policy: chosen.map_or(Policy::Fixed(LbPolicy::RoundRobin), |chosen| chosen.policy),
        silent_limit,
    })
}

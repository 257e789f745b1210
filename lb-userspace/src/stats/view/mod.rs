//! What the pages show, at one moment, as the agent fills it in. Names are Envoy's where Envoy has the thing; a value
//! that the agent cannot know is `None`, and is then on no page.

mod config;
mod headgate;

use std::net::SocketAddr;
use std::time::Duration;

use crate::stats::histogram::HistogramSnapshot;

pub use config::{ClusterConfig, ConfigView, DnsConfig, EndpointConfig, EndpointFileConfig, ListenerConfig};
pub use headgate::{Counts, DnsView, FlowTableView, HeadgateView, PanicView, RungView, SnatView};

/// Everything, at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub server: ServerView,
    pub listener_manager: ListenerManagerView,
    pub cluster_manager: ClusterManagerView,
    pub listeners: Vec<ListenerView>,
    pub clusters: Vec<ClusterView>,
    pub headgate: HeadgateView,
    pub config: ConfigView,
}

/// The state of the agent, as `/ready` and `/server_info` tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerState {
    /// No listener serves yet.
    #[default]
    Initializing,
    Live,
    /// Takes no new connections.
    Draining,
}

impl ServerState {
    /// The name of Envoy's `admin.v3.ServerInfo.State`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::Initializing => "INITIALIZING",
        }
    }

    /// Its number there, the gauge `server.state`.
    pub const fn number(self) -> u64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::Initializing => 3,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct ServerView {
    /// `MAJOR.MINOR.PATCH`.
    pub version: String,
    pub uptime: Duration,
    pub state: ServerState,
    /// Threads of the proxy.
    pub concurrency: u64,
    pub config_path: String,
    /// How long a drain may take.
    pub drain_time: Duration,
    /// Empty: `node` of an Envoy file is not read.
    pub node_id: String,
    pub node_cluster: String,
    /// Connections that are open, of all listeners.
    pub total_connections: u64,
    /// The agent's resident memory, bytes.
    pub memory_physical_size: Option<u64>,
    /// From the start of the process until the listeners served, once they do.
    pub initialization_time_ms: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct ListenerManagerView {
    pub listener_added: u64,
    pub listener_modified: u64,
    pub listener_removed: u64,
    pub listener_create_success: u64,
    pub total_listeners_active: u64,
}

#[derive(Clone, Debug, Default)]
pub struct ClusterManagerView {
    pub cluster_added: u64,
    pub cluster_modified: u64,
    pub cluster_removed: u64,
    pub active_clusters: u64,
    /// Clusters whose first DNS answer is outstanding.
    pub warming_clusters: u64,
}

/// A listener, and what its `tcp_proxy` counts. Listeners of one `stat_prefix` share its counters, as in Envoy.
#[derive(Clone, Debug)]
pub struct ListenerView {
    pub name: String,
    pub address: SocketAddr,
    pub stat_prefix: String,
    pub downstream_cx_total: u64,
    pub downstream_cx_active: u64,
    pub downstream_cx_destroy: u64,
    /// Payload from the clients.
    pub downstream_cx_rx_bytes_total: u64,
    /// Payload to the clients.
    pub downstream_cx_tx_bytes_total: u64,
    pub downstream_cx_no_route: u64,
    pub idle_timeout: u64,
    pub max_downstream_connection_duration: u64,
    /// Connections whose client had closed while bytes to the backend were outstanding.
    pub upstream_flush_total: Option<u64>,
    pub upstream_flush_active: Option<u64>,
    pub downstream_cx_length_ms: Option<HistogramSnapshot>,
}

/// A cluster. For a connection Envoy counts a request (`rq`) as well: pending while it connects, active when
/// connected.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    pub name: String,
    /// Envoy's `alt_stat_name`: the name in statistics, if it is another.
    pub alt_stat_name: Option<String>,
    /// Attempts to connect, also those that failed.
    pub upstream_cx_total: u64,
    pub upstream_cx_active: u64,
    /// Refused, unreachable, or timed out.
    pub upstream_cx_connect_fail: u64,
    pub upstream_cx_connect_timeout: u64,
    pub upstream_cx_connect_attempts_exceeded: u64,
    /// Connections that the breaker refused.
    pub upstream_cx_overflow: u64,
    pub upstream_cx_none_healthy: u64,
    /// Connections and failed attempts that are over. Of these `local` are those that the client or Headgate ended last
    /// (also by a reset, a timeout, or a FIN after the backend's), and `remote` those that the backend ended last, or
    /// refused. `with_active_rq` leaves out attempts that never connected.
    pub upstream_cx_destroy: u64,
    pub upstream_cx_destroy_local: u64,
    pub upstream_cx_destroy_remote: u64,
    pub upstream_cx_destroy_with_active_rq: u64,
    pub upstream_cx_destroy_local_with_active_rq: u64,
    pub upstream_cx_destroy_remote_with_active_rq: u64,
    /// Payload from the backends.
    pub upstream_cx_rx_bytes_total: u64,
    /// Payload to the backends.
    pub upstream_cx_tx_bytes_total: u64,
    /// Attempts that have connected.
    pub upstream_rq_total: u64,
    pub upstream_rq_active: u64,
    /// Attempts; `upstream_rq_pending_active` are those under way.
    pub upstream_rq_pending_total: u64,
    pub upstream_rq_pending_active: u64,
    /// Attempts that failed.
    pub upstream_rq_pending_failure_eject: u64,
    /// Of attempts that have connected.
    pub upstream_cx_connect_ms: Option<HistogramSnapshot>,
    /// Of all that `upstream_cx_destroy` counts, failed attempts as well.
    pub upstream_cx_length_ms: Option<HistogramSnapshot>,
    pub membership_total: u64,
    pub membership_healthy: u64,
    pub membership_degraded: u64,
    pub membership_excluded: u64,
    pub membership_change: u64,
    /// DNS lookups; none of a static cluster.
    pub update: Option<UpdateView>,
    /// Choices made among all endpoints since too few were healthy.
    pub lb_healthy_panic: u64,
    pub circuit_breakers: CircuitBreakersView,
    /// With active health checks.
    pub health_check: Option<HealthCheckView>,
    /// With outlier detection.
    pub outlier_detection: Option<OutlierDetectionView>,
    pub endpoints: Vec<EndpointView>,
}

#[derive(Clone, Debug, Default)]
pub struct UpdateView {
    pub attempt: u64,
    pub success: u64,
    pub failure: u64,
    pub empty: u64,
    pub no_rebuild: u64,
}

#[derive(Clone, Debug, Default)]
pub struct CircuitBreakersView {
    /// The limit; none if there is none.
    pub max_connections: Option<u64>,
    /// The limit is reached.
    pub cx_open: bool,
    /// With `track_remaining`.
    pub remaining_cx: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct HealthCheckView {
    pub attempt: u64,
    pub success: u64,
    pub failure: u64,
    pub network_failure: u64,
    /// Endpoints that the checks call healthy.
    pub healthy: u64,
}

#[derive(Clone, Debug, Default)]
pub struct OutlierDetectionView {
    pub ejections_active: u64,
    pub ejections_enforced_total: u64,
    pub ejections_overflow: u64,
    /// Detected and enforced, by cause.
    pub consecutive_local_origin_failure: (u64, u64),
    pub local_origin_success_rate: (u64, u64),
    pub local_origin_failure_percentage: (u64, u64),
}

#[derive(Clone, Debug)]
pub struct EndpointView {
    pub address: SocketAddr,
    /// The name that it was resolved from, or that the file gives it.
    pub hostname: String,
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    /// Attempts under way.
    pub rq_pending_active: u64,
    /// Attempts that have connected.
    pub rq_total: u64,
    pub weight: u32,
    pub priority: u32,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    pub health: HealthFlags,
}

/// Why an endpoint gets no new connections; healthy if nothing is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthFlags {
    pub failed_active_hc: bool,
    pub failed_outlier_check: bool,
    /// Its source says that it is not ready.
    pub failed_eds_health: bool,
    /// Gone from DNS, and drains.
    pub pending_dynamic_removal: bool,
    /// Not checked yet.
    pub pending_active_hc: bool,
    /// The last check timed out.
    pub active_hc_timeout: bool,
    /// Taken out by hand.
    pub eds_status_draining: bool,
}

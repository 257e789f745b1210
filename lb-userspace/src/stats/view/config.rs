//! What is configured, for `/config_dump`.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

#[derive(Clone, Debug, Default)]
pub struct ConfigView {
    pub admin_address: Option<SocketAddr>,
    /// When it was taken on.
    pub last_updated: Option<SystemTime>,
    pub listeners: Vec<ListenerConfig>,
    pub clusters: Vec<ClusterConfig>,
}

#[derive(Clone, Debug)]
pub struct ListenerConfig {
    pub name: String,
    pub address: SocketAddr,
    pub stat_prefix: String,
    /// Names and weights.
    pub clusters: Vec<(String, u32)>,
    /// None is never.
    pub idle_timeout: Option<Duration>,
    pub max_connect_attempts: u32,
    pub max_downstream_connection_duration: Option<Duration>,
    pub access_log_paths: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct ClusterConfig {
    pub name: String,
    pub alt_stat_name: Option<String>,
    pub connect_timeout: Duration,
    /// Envoy's name, such as `ROUND_ROBIN`.
    pub lb_policy: String,
    pub max_connections: Option<u64>,
    /// Of a cluster that is resolved by DNS.
    pub dns: Option<DnsConfig>,
    /// Of a cluster whose endpoints are in a file.
    pub file: Option<EndpointFileConfig>,
    pub endpoints: Vec<EndpointConfig>,
}

#[derive(Clone, Debug, Default)]
pub struct DnsConfig {
    /// One address of each name at a time: `LOGICAL_DNS`.
    pub logical: bool,
    pub refresh_rate: Duration,
    pub respect_ttl: bool,
    pub jitter: Duration,
    /// `dns_failure_refresh_rate`: base and maximum.
    pub failure_refresh_rate: (Duration, Duration),
    /// Envoy's name, such as `V4_ONLY`.
    pub lookup_family: String,
}

/// `eds_cluster_config`.
#[derive(Clone, Debug, Default)]
pub struct EndpointFileConfig {
    pub path: String,
    pub service_name: String,
}

#[derive(Clone, Debug, Default)]
pub struct EndpointConfig {
    /// An IP address or a name.
    pub host: String,
    pub port: u16,
    pub weight: u32,
}

//! `/clusters`: the clusters, their limits, their endpoints and these endpoints' counts.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::stats::page::Page;
use crate::stats::query::Query;
use crate::stats::view::{ClusterView, EndpointView, HealthFlags, View};

/// What Envoy shows for a limit that is none.
const NO_LIMIT: u64 = u32::MAX as u64;

/// Lines of `cluster::[address::]key::value`, or with `format=json` Envoy's `admin.v3.Clusters`, both without the
/// limits and counts that only HTTP has. `filter` is a regular expression for the cluster's name.
pub fn clusters(view: &View, query: &Query) -> Page {
    let filter = match query.pattern("filter") {
        Ok(filter) => filter,
        Err(error) => return Page::refusal(400, error),
    };
    let chosen = view
        .clusters
        .iter()
        .filter(|cluster| filter.as_ref().is_none_or(|filter| filter.matches(&cluster.name)));
    if query.get("format") == Some("json") {
        return Page::json(&Clusters { cluster_statuses: chosen.map(status).collect() });
    }
    let mut text = String::new();
    for cluster in chosen {
        let name = &cluster.name;
        let _ = writeln!(text, "{name}::observability_name::{}", cluster.stat_name());
        let limit = cluster.circuit_breakers.max_connections.unwrap_or(NO_LIMIT);
        let _ = writeln!(text, "{name}::default_priority::max_connections::{limit}");
        let _ = writeln!(text, "{name}::added_via_api::false");
        for endpoint in &cluster.endpoints {
            for (key, value) in lines(endpoint) {
                let _ = writeln!(text, "{name}::{}::{key}::{value}", endpoint.address);
            }
        }
    }
    Page::text(text)
}

fn lines(of: &EndpointView) -> [(&'static str, String); 14] {
    [
        ("cx_active", of.cx_active.to_string()),
        ("cx_connect_fail", of.cx_connect_fail.to_string()),
        ("cx_total", of.cx_total.to_string()),
        ("rq_active", of.cx_active.to_string()),
        ("rq_pending_active", of.rq_pending_active.to_string()),
        ("rq_total", of.rq_total.to_string()),
        ("hostname", of.hostname.clone()),
        ("health_flags", of.health.text()),
        ("weight", of.weight.to_string()),
        ("region", of.region.clone()),
        ("zone", of.zone.clone()),
        ("sub_zone", of.sub_zone.clone()),
        ("canary", "false".to_owned()),
        ("priority", of.priority.to_string()),
    ]
}

impl HealthFlags {
    /// `healthy`, or each flag after a slash, in Envoy's order.
    pub fn text(self) -> String {
        let flags = [
            (self.failed_active_hc, "/failed_active_hc"),
            (self.failed_outlier_check, "/failed_outlier_check"),
            (self.failed_eds_health, "/failed_eds_health"),
            (self.pending_dynamic_removal, "/pending_dynamic_removal"),
            (self.pending_active_hc, "/pending_active_hc"),
            (self.active_hc_timeout, "/active_hc_timeout"),
            (self.eds_status_draining, "/eds_status_draining"),
        ];
        let text: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, text)| text).collect();
        if text.is_empty() { "healthy".to_owned() } else { text }
    }
}

#[derive(Serialize)]
struct Clusters<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cluster_statuses: Vec<ClusterStatus<'a>>,
}

#[derive(Serialize)]
struct ClusterStatus<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    host_statuses: Vec<HostStatus<'a>>,
    circuit_breakers: CircuitBreakers,
    observability_name: &'a str,
}

#[derive(Serialize)]
struct HostStatus<'a> {
    address: Address,
    stats: [SimpleMetric; 6],
    health_status: HealthStatus,
    weight: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    priority: u32,
    locality: Locality<'a>,
}

/// An address as the v3 API has it.
#[derive(Serialize)]
pub(super) struct Address {
    socket_address: SocketAddress,
}

#[derive(Serialize)]
struct SocketAddress {
    address: IpAddr,
    port_value: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { socket_address: SocketAddress { address: address.ip(), port_value: address.port() } }
    }
}

/// Zero and `COUNTER` are the defaults of their fields and not printed; 64-bit numbers are strings in protobuf's JSON.
#[derive(Serialize)]
struct SimpleMetric {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    name: &'static str,
}

#[derive(Serialize)]
struct HealthStatus {
    #[serde(skip_serializing_if = "is_false")]
    failed_active_health_check: bool,
    #[serde(skip_serializing_if = "is_false")]
    failed_outlier_check: bool,
    #[serde(skip_serializing_if = "is_false")]
    pending_dynamic_removal: bool,
    #[serde(skip_serializing_if = "is_false")]
    pending_active_hc: bool,
    #[serde(skip_serializing_if = "is_false")]
    active_hc_timeout: bool,
    eds_health_status: &'static str,
}

#[derive(Serialize)]
struct Locality<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    region: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub_zone: &'a str,
}

#[derive(Serialize)]
struct CircuitBreakers {
    thresholds: [Thresholds; 1],
}

#[derive(Serialize)]
struct Thresholds {
    max_connections: u64,
}

fn status(of: &ClusterView) -> ClusterStatus<'_> {
    ClusterStatus {
        name: &of.name,
        host_statuses: of.endpoints.iter().map(host_status).collect(),
        circuit_breakers: CircuitBreakers {
            thresholds: [Thresholds {
                max_connections: of.circuit_breakers.max_connections.unwrap_or(NO_LIMIT),
            }],
        },
        observability_name: of.stat_name(),
    }
}

fn host_status(of: &EndpointView) -> HostStatus<'_> {
    let metric = |kind, name, value: u64| SimpleMetric {
        kind,
        value: Some(value.to_string()).filter(|_| value > 0),
        name,
    };
    let gauge = Some("GAUGE");
    HostStatus {
        address: of.address.into(),
        stats: [
            metric(None, "cx_connect_fail", of.cx_connect_fail),
            metric(None, "cx_total", of.cx_total),
            metric(None, "rq_total", of.rq_total),
            metric(gauge, "cx_active", of.cx_active),
            metric(gauge, "rq_active", of.cx_active),
            metric(gauge, "rq_pending_active", of.rq_pending_active),
        ],
        health_status: HealthStatus {
            failed_active_health_check: of.health.failed_active_hc,
            failed_outlier_check: of.health.failed_outlier_check,
            pending_dynamic_removal: of.health.pending_dynamic_removal,
            pending_active_hc: of.health.pending_active_hc,
            active_hc_timeout: of.health.active_hc_timeout,
            eds_health_status: if of.health.failed_eds_health {
                "UNHEALTHY"
            } else if of.health.eds_status_draining {
                "DRAINING"
            } else {
                "HEALTHY"
            },
        },
        weight: of.weight,
        hostname: &of.hostname,
        priority: of.priority,
        locality: Locality { region: &of.region, zone: &of.zone, sub_zone: &of.sub_zone },
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !value
}

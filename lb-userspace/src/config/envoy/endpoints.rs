//! The members of a cluster: `load_assignment`, or `hosts` in v2.

use super::address::{self, HostPort};
use super::import::Import;
use super::message;
use super::schema::{Field, Kind, LOCALITY, checked, ignored, read, refused};
use super::value;
use crate::config::tree::Entry;

const LOAD_ASSIGNMENT: &[Field] = &[
    read("cluster_name"),
    read("endpoints"),
    refused("named_endpoints", "write the endpoints in their places"),
    ignored(
        "policy",
        Kind::Message(&[
            refused("drop_overloads", "dropping a share of the connections is not supported"),
            checked("overprovisioning_factor", Kind::Range(1, u32::MAX as u64)),
            checked("endpoint_stale_after", Kind::PositiveDuration),
            checked("weighted_priority_health", Kind::Bool),
            checked("disable_overprovisioning", Kind::Bool),
        ]),
        "it is for priorities and for endpoints from a control plane",
    ),
];

const LOCALITY_ENDPOINTS: &[Field] = &[
    ignored("locality", LOCALITY, "all localities are served alike"),
    ignored("metadata", Kind::Mapping, "nothing reads it"),
    read("lb_endpoints"),
    refused("load_balancer_endpoints", "write them as lb_endpoints"),
    refused("leds_cluster_locality_config", "only endpoints of the file and of DNS are supported"),
    ignored(
        "load_balancing_weight",
        Kind::Range(1, u32::MAX as u64),
        "without locality_weighted_lb_config it has no effect in Envoy either",
    ),
    read("priority"),
    ignored("proximity", Kind::U32, "Envoy does not use it either"),
];

const LB_ENDPOINT: &[Field] = &[
    read("endpoint"),
    refused("endpoint_name", "write the endpoint in its place"),
    read("health_status"),
    ignored("metadata", Kind::Mapping, "nothing reads it"),
    read("load_balancing_weight"),
];

const ENDPOINT: &[Field] = &[
    read("address"),
    ignored("health_check_config", Kind::Mapping, "there are no health checks in this file"),
    ignored("hostname", Kind::Text, "it is for health checks and TLS"),
    refused("additional_addresses", "give each address an endpoint of its own"),
    ignored("observability_name", Kind::Text, "endpoints are shown by their addresses"),
];

const STATUSES: [&str; 6] = ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED"];

/// A host of a cluster.
pub(super) struct Member<'a> {
    pub(super) at: HostPort<'a>,
    pub(super) weight: u32,
    /// Where the weight stands, if it does.
    pub(super) weight_entry: Option<Entry<'a>>,
}

/// `hosts:`, a list of addresses.
pub(super) fn hosts<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Vec<Member<'a>> {
    let hosts = message::repeated(entry, import);
    let members = hosts.iter().filter_map(|host| {
        let at = address::host_port(host, import)?;
        Some(Member { at, weight: 1, weight_entry: None })
    });
    members.collect()
}

/// `load_assignment:`.
pub(super) fn assignment<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Vec<Member<'a>> {
    let Some(fields) = message::read(entry, LOAD_ASSIGNMENT, import) else { return Vec::new() };
    match fields.get("cluster_name") {
        None => import.error(entry, "needs a cluster_name"),
        Some(name) => {
            if value::nonempty(name, import).is_some() {
                import.ignore(name, "the cluster has its name already");
            }
        }
    }
    let localities =
        fields.get("endpoints").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    localities.iter().flat_map(|entry| locality(entry, import)).collect()
}

fn locality<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Vec<Member<'a>> {
    let Some(fields) = message::read(entry, LOCALITY_ENDPOINTS, import) else { return Vec::new() };
    if let Some(priority) = fields.get("priority") {
        match value::number(priority, 0..=128, import) {
            Some(0) => import.honour(priority),
            Some(_) => import.refuse(priority, "priorities are not supported yet"),
            None => {}
        }
    }
    let endpoints =
        fields.get("lb_endpoints").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    endpoints.iter().filter_map(|entry| member(entry, import)).collect()
}

/// `None` also for an endpoint that its status takes out.
fn member<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Member<'a>> {
    let fields = message::read(entry, LB_ENDPOINT, import)?;
    let weight_entry = fields.get("load_balancing_weight").cloned();
    let weight = match &weight_entry {
        None => 1,
        Some(weight) => value::u32(weight, 1..=u32::MAX, import)?,
    };
    let in_use = fields.get("health_status").is_none_or(|status| is_in_use(status, import));
    let Some(endpoint) = fields.get("endpoint") else {
        import.error(entry, "needs endpoint");
        return None;
    };
    let fields = message::read(endpoint, ENDPOINT, import)?;
    let Some(at) = fields.get("address") else {
        import.error(endpoint, "needs address");
        return None;
    };
    let at = address::host_port(at, import)?;
    in_use.then_some(Member { at, weight, weight_entry })
}

fn is_in_use(status: &Entry<'_>, import: &mut Import<'_>) -> bool {
    let Some(index) = value::word(status, &STATUSES, import) else { return true };
    import.honour(status);
    !matches!(STATUSES[index], "UNHEALTHY" | "DRAINING" | "TIMEOUT")
}

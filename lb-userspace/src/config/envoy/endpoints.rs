//! The members of a cluster: `load_assignment`, or `hosts` in v2.

use std::collections::BTreeSet;

use super::address::{self, HostPort};
use super::import::Import;
use super::message;
use super::schema::{Field, Kind, checked, ignored, read, refused};
use super::value;
use crate::config::cluster::{OVERPROVISIONING, OVERPROVISIONINGS};
use crate::config::hosts::PRIORITIES;
use crate::config::http::is_header_value;
use crate::config::tree::Entry;
use crate::model::ProbePlace;

const LOAD_ASSIGNMENT: &[Field] = &[
    read("cluster_name"),
    read("endpoints"),
    refused("named_endpoints", "write the endpoints in their places"),
    read("policy"),
];

const POLICY: &[Field] = &[
    refused("drop_overloads", "dropping a share of the connections is not supported"),
    read("overprovisioning_factor"),
    ignored("endpoint_stale_after", Kind::PositiveDuration, "it is for endpoints from a control plane"),
    refused(
        "weighted_priority_health",
        "the health of a priority is a share of its backends, not of their weight",
    ),
    read("disable_overprovisioning"),
];

const LOCALITY_ENDPOINTS: &[Field] = &[
    read("locality"),
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

const LOCALITY: &[Field] = &[checked("region", Kind::Text), read("zone"), checked("sub_zone", Kind::Text)];

const LB_ENDPOINT: &[Field] = &[
    read("endpoint"),
    refused("endpoint_name", "write the endpoint in its place"),
    read("health_status"),
    ignored("metadata", Kind::Mapping, "nothing reads it"),
    read("load_balancing_weight"),
];

const ENDPOINT: &[Field] = &[
    read("address"),
    read("health_check_config"),
    ignored("hostname", Kind::Text, "it is for HTTP and TLS"),
    refused("additional_addresses", "give each address an endpoint of its own"),
    ignored("observability_name", Kind::Text, "endpoints are shown by their addresses"),
];

const HEALTH_CHECK_CONFIG: &[Field] =
    &[read("port_value"), read("hostname"), read("address"), read("disable_active_health_check")];

const STATUSES: [&str; 6] = ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED"];

/// What its `health_status` makes of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    InUse,
    NotReady,
    Draining,
}

/// A host of a cluster.
pub(super) struct Member<'a> {
    pub(super) at: HostPort<'a>,
    pub(super) weight: u32,
    /// Where the weight stands, if it does.
    pub(super) weight_entry: Option<Entry<'a>>,
    pub(super) priority: u32,
    pub(super) zone: Option<&'a str>,
    pub(super) standing: Standing,
    pub(super) probe: ProbePlace,
}

impl<'a> Member<'a> {
    /// One with nothing special about it.
    fn new(at: HostPort<'a>) -> Self {
        Self {
            at,
            weight: 1,
            weight_entry: None,
            priority: 0,
            zone: None,
            standing: Standing::InUse,
            probe: ProbePlace::default(),
        }
    }
}

/// What a `load_assignment` says.
pub(super) struct Assignment<'a> {
    pub(super) members: Vec<Member<'a>>,
    /// Percent.
    pub(super) overprovisioning: u32,
}

/// `hosts:`, a list of addresses.
pub(super) fn hosts<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Vec<Member<'a>> {
    let hosts = message::repeated(entry, import);
    hosts.iter().filter_map(|host| address::host_port(host, import)).map(Member::new).collect()
}

/// `load_assignment:` of a file that is read once, so that only what is in use now counts.
pub(super) fn load_assignment<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Assignment<'a> {
    let mut assignment = assignment(entry, import);
    assignment.members.retain(|member| member.standing == Standing::InUse);
    // A native file, which it may be written as, has no key for it.
    assignment.members.iter_mut().for_each(|member| member.zone = None);
    close_gaps(&mut assignment.members);
    assignment
}

/// A `ClusterLoadAssignment`, of whatever cluster it names.
pub(super) fn assignment<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Assignment<'a> {
    let nothing = Assignment { members: Vec::new(), overprovisioning: OVERPROVISIONING };
    let Some(fields) = message::read(entry, LOAD_ASSIGNMENT, import) else { return nothing };
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
    let members = localities.iter().flat_map(|entry| locality(entry, import)).collect();
    let overprovisioning = fields.get("policy").and_then(|entry| overprovisioning(entry, import));
    Assignment { members, overprovisioning: overprovisioning.unwrap_or(OVERPROVISIONING) }
}

/// Envoy passes over a priority without endpoints, so that the next one may as well have its number.
pub(super) fn close_gaps(members: &mut [Member<'_>]) {
    let levels: BTreeSet<u32> = members.iter().map(|member| member.priority).collect();
    for member in members {
        let below = levels.range(..member.priority).count();
        member.priority = u32::try_from(below).unwrap_or(member.priority);
    }
}

fn overprovisioning(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<u32> {
    let fields = message::read(entry, POLICY, import)?;
    let is_off = fields.get("disable_overprovisioning").and_then(|entry| {
        import.honour(entry);
        value::boolean(entry, import)
    });
    let factor = fields.get("overprovisioning_factor").and_then(|entry| {
        let factor = value::u32(entry, 1..=u32::MAX, import)?;
        let most = *OVERPROVISIONINGS.end();
        if factor > most {
            import.approximate(entry, format!("{most}: one healthy backend of a thousand is enough for all"));
        } else {
            import.honour(entry);
        }
        Some(factor.min(most))
    });
    if is_off == Some(true) { Some(100) } else { factor }
}

fn locality<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Vec<Member<'a>> {
    let Some(fields) = message::read(entry, LOCALITY_ENDPOINTS, import) else { return Vec::new() };
    let priority = fields.get("priority").and_then(|entry| {
        import.honour(entry);
        value::u32(entry, PRIORITIES, import)
    });
    let priority = priority.unwrap_or(0);
    let zone = fields.get("locality").and_then(|entry| zone(entry, import));
    let endpoints =
        fields.get("lb_endpoints").map(|entry| message::repeated(entry, import)).unwrap_or_default();
    let members = endpoints.iter().filter_map(|entry| member(entry, import));
    members.map(|member| Member { priority, zone, ..member }).collect()
}

fn zone<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<&'a str> {
    let zone = message::read(entry, LOCALITY, import)?.get("zone").and_then(|zone| value::text(zone, import));
    import.ignore(entry, "all localities are served alike");
    zone.filter(|zone| !zone.is_empty())
}

fn member<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<Member<'a>> {
    let fields = message::read(entry, LB_ENDPOINT, import)?;
    let weight_entry = fields.get("load_balancing_weight").cloned();
    let weight = match &weight_entry {
        None => 1,
        Some(weight) => value::u32(weight, 1..=u32::MAX, import)?,
    };
    let standing = fields.get("health_status").map_or(Standing::InUse, |status| standing(status, import));
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
    let probe = fields.get("health_check_config").and_then(|entry| probe_place(entry, import));
    Some(Member { weight, weight_entry, standing, probe: probe.unwrap_or_default(), ..Member::new(at) })
}

/// Where the endpoint is asked for its health.
fn probe_place(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<ProbePlace> {
    let fields = message::read(entry, HEALTH_CHECK_CONFIG, import)?;
    import.honour(entry);
    let port = fields.get("port_value").and_then(|entry| value::u32(entry, 0..=u32::from(u16::MAX), import));
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let address = fields.get("address").and_then(|entry| {
        let found = address::host_port(entry, import)?;
        address::backend(address::ip_address(&found, import)?, &found.entry, import)
    });
    let host = fields.get("hostname").filter(|entry| !message::is_empty_text(entry)).and_then(|entry| {
        let host = value::text(entry, import)?;
        if !is_header_value(host) {
            import.refuse(entry, "a host is ASCII without control characters");
        }
        Some(host)
    });
    let skip = fields.get("disable_active_health_check").and_then(|entry| value::boolean(entry, import));
    if skip == Some(true) {
        return Some(ProbePlace { skip: true, ..ProbePlace::default() });
    }
    Some(ProbePlace {
        port: port.or_else(|| Some(address?.port())),
        address: address.map(|address| address.ip()),
        host: host.map(Into::into),
        skip: false,
    })
}

fn standing(status: &Entry<'_>, import: &mut Import<'_>) -> Standing {
    let Some(index) = value::word(status, &STATUSES, import) else { return Standing::InUse };
    import.honour(status);
    match STATUSES[index] {
        "UNHEALTHY" | "TIMEOUT" => Standing::NotReady,
        "DRAINING" => Standing::Draining,
        // DEGRADED is to be used where nothing better is left, which Headgate has no level for.
        _ => Standing::InUse,
    }
}

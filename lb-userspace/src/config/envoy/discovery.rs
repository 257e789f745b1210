//! Where the endpoints of a cluster come from: its `type` or `cluster_type`, and its members.

use std::collections::HashMap;
use std::hash::Hash;

use super::dns::{self, CLUSTER_FAMILIES, DNS_CLUSTER, DNS_CLUSTER_FAMILIES};
use super::endpoints::{self, Assignment, Member, Standing};
use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, read};
use super::{address, eds, extension, value};
use crate::config::cluster::OVERPROVISIONING;
use crate::config::tree::Entry;
use crate::model::{Discovery, DnsHost, Endpoint, EndpointFile, StrictDns, fit_weights};

/// Keys that are for discovery by DNS.
const DNS_KEYS: [&str; 7] = [
    "dns_refresh_rate",
    "dns_jitter",
    "dns_failure_refresh_rate",
    "respect_dns_ttl",
    "dns_lookup_family",
    "dns_resolution_config",
    "typed_dns_resolver_config",
];

const NO_DNS: &str = "the cluster does not ask DNS by it";

const CLUSTER_TYPE: &[Field] = &[read("name"), read("typed_config"), read("config")];

/// In the order of their numbers.
const TYPES: [&str; 5] = ["STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS", "ORIGINAL_DST"];

/// How the endpoints are found.
enum Method {
    Static,
    /// The hosts are still missing.
    Dns(StrictDns),
    File(EndpointFile),
}

/// What the cluster says of its endpoints.
pub(super) struct Found {
    pub(super) discovery: Discovery,
    /// Percent.
    pub(super) overprovisioning: u32,
}

/// Of the cluster at `entry`. `None` with something reported.
pub(super) fn read_discovery(
    entry: &Entry<'_>,
    fields: &Message<'_>,
    import: &mut Import<'_>,
) -> Option<Found> {
    let method = match fields.one_of(&["type", "cluster_type"], import) {
        None => Method::Static,
        Some(kind) if fields.get("type").is_some() => old_type(entry, kind, fields, import)?,
        Some(kind) => cluster_type(kind, fields, import)?,
    };
    if !matches!(method, Method::Dns(_)) || fields.get("cluster_type").is_some_and(has_config) {
        for entry in DNS_KEYS.iter().filter_map(|key| fields.get(key)) {
            import.ignore(entry, NO_DNS);
        }
    }
    match method {
        Method::File(file) => {
            for entry in ["load_assignment", "hosts"].iter().filter_map(|key| fields.get(key)) {
                import.ignore(entry, "the endpoints of EDS are those of its file");
            }
            Some(Found { discovery: Discovery::File(file), overprovisioning: OVERPROVISIONING })
        }
        Method::Static => with_members(entry, fields, None, import),
        Method::Dns(settings) => with_members(entry, fields, Some(settings), import),
    }
}

/// A cluster with members of its own: names for DNS, if `dns` says how it is asked, or addresses.
fn with_members(
    entry: &Entry<'_>,
    fields: &Message<'_>,
    dns: Option<StrictDns>,
    import: &mut Import<'_>,
) -> Option<Found> {
    if let Some(entry) = fields.get("eds_cluster_config") {
        import.error(entry, "belongs to type: EDS");
    }
    let mark = import.mark();
    let source = fields.one_of(&["load_assignment", "hosts"], import).unwrap_or(entry);
    let Assignment { members, overprovisioning } = match (fields.get("load_assignment"), fields.get("hosts"))
    {
        (Some(assignment), _) => endpoints::load_assignment(assignment, import),
        (None, hosts) => Assignment {
            members: hosts.map(|hosts| endpoints::hosts(hosts, import)).unwrap_or_default(),
            overprovisioning: OVERPROVISIONING,
        },
    };
    if members.is_empty() {
        if import.failed_since(mark) {
            return None;
        }
        if dns.is_some() {
            import.refuse(source, "no name to ask for: give one, or remove the cluster and its listeners");
            return None;
        }
        import.warn(source, "no endpoint that can be used: its connections are closed at once");
    }
    let discovery = match dns {
        None => Discovery::Static(endpoints(&members, import)),
        Some(settings) => Discovery::StrictDns(with_hosts(settings, source, &members, import)?),
    };
    Some(Found { discovery, overprovisioning })
}

/// Of the cluster at `cluster`, whose type is at `entry`.
fn old_type(
    cluster: &Entry<'_>,
    entry: &Entry<'_>,
    fields: &Message<'_>,
    import: &mut Import<'_>,
) -> Option<Method> {
    let method = match TYPES[value::word(entry, &TYPES, import)?] {
        "STATIC" => Method::Static,
        "STRICT_DNS" => Method::Dns(dns::settings(fields, CLUSTER_FAMILIES, import)),
        "LOGICAL_DNS" => Method::Dns(logical(dns::settings(fields, CLUSTER_FAMILIES, import))),
        "EDS" => Method::File(eds::endpoint_file(cluster, fields, import)?),
        other => {
            let supported = "STATIC, STRICT_DNS, LOGICAL_DNS and EDS from a file";
            import.refuse(entry, format!("{other}: only {supported} are supported"));
            return None;
        }
    };
    import.honour(entry);
    Some(method)
}

fn cluster_type(entry: &Entry<'_>, fields: &Message<'_>, import: &mut Import<'_>) -> Option<Method> {
    let message = message::read(entry, CLUSTER_TYPE, import)?;
    if message.get("name").is_none() {
        import.error(entry, "needs a name");
        return None;
    }
    let extension = extension::read(entry, &message, import)?;
    let method = match (extension.kind, &extension.config) {
        ("envoy.extensions.clusters.dns.v3.DnsCluster", Some(config)) => {
            let fields = message::read(config, DNS_CLUSTER, import)?;
            Method::Dns(dns::settings(&fields, DNS_CLUSTER_FAMILIES, import))
        }
        ("envoy.cluster.static", None) => Method::Static,
        ("envoy.cluster.strict_dns", None) => Method::Dns(dns::settings(fields, CLUSTER_FAMILIES, import)),
        ("envoy.cluster.logical_dns", None) => {
            Method::Dns(logical(dns::settings(fields, CLUSTER_FAMILIES, import)))
        }
        (other, _) => {
            import.refuse(
                &extension.place,
                format!("the cluster type {other} is not supported: DnsCluster is"),
            );
            return None;
        }
    };
    import.honour(&extension.place);
    Some(method)
}

/// Whether the cluster type has settings, which take the place of the cluster's own.
fn has_config(entry: &Entry<'_>) -> bool {
    entry.members().any(|(key, _)| matches!(key.name.as_str(), "typed_config" | "typedConfig"))
}

fn logical(settings: StrictDns) -> StrictDns {
    StrictDns { logical: true, ..settings }
}

/// The members as endpoints whose addresses are known.
pub(super) fn endpoints(members: &[Member<'_>], import: &mut Import<'_>) -> Vec<Endpoint> {
    let read = |member: &Member<'_>, import: &mut Import<'_>| {
        let at = &member.at;
        address::ip_address(at, import).and_then(|address| address::backend(address, &at.entry, import))
    };
    let merged = merged(members, read, import);
    let endpoint = |Merged { at, first, weight }| Endpoint {
        priority: first.priority,
        zone: first.zone.map(Into::into),
        ready: first.standing == Standing::InUse,
        probe: first.probe.clone(),
        ..Endpoint::new(at, weight)
    };
    merged.into_iter().map(endpoint).collect()
}

fn with_hosts(
    settings: StrictDns,
    source: &Entry<'_>,
    members: &[Member<'_>],
    import: &mut Import<'_>,
) -> Option<StrictDns> {
    if settings.logical && members.len() > 1 {
        import.error(source, "LOGICAL_DNS has exactly one endpoint: keep one, or use STRICT_DNS");
        return None;
    }
    let host = |Merged { at: (name, port), first, weight }| DnsHost {
        name,
        port,
        weight,
        priority: first.priority,
        probe: first.probe.clone(),
    };
    let hosts = merged(members, dns::host, import).into_iter().map(host).collect();
    Some(StrictDns { hosts, ..settings })
}

/// An endpoint, which may be there more than once.
struct Merged<'m, 'a, T> {
    at: T,
    first: &'m Member<'a>,
    weight: u32,
}

/// The endpoints, those that are the same as one with the sum of the weights.
fn merged<'m, 'a, T: Clone + Eq + Hash>(
    members: &'m [Member<'a>],
    read: impl Fn(&Member<'_>, &mut Import<'_>) -> Option<T>,
    import: &mut Import<'_>,
) -> Vec<Merged<'m, 'a, T>> {
    let mut found: Vec<(T, &Member<'_>, u64)> = Vec::new();
    let mut indices = HashMap::new();
    for member in members {
        let Some(at) = read(member, import) else { continue };
        let entry = &member.at.entry;
        let index = *indices.entry(at.clone()).or_insert(found.len());
        match found.get_mut(index) {
            None => found.push((at, member, u64::from(member.weight))),
            Some((_, first, _)) if (first.priority, &first.probe) != (member.priority, &member.probe) => {
                import.refuse(
                    entry,
                    "the same as before with another priority or health_check_config: keep one",
                );
            }
            Some((_, _, weight)) => {
                *weight += u64::from(member.weight);
                import.approximate(entry, "the same as before: the weights are added");
            }
        }
    }
    let weights = fitted(members, found.iter().map(|(_, _, weight)| *weight), import);
    let merged = found.into_iter().zip(weights);
    merged.map(|((at, first, _), weight)| Merged { at, first, weight }).collect()
}

/// The weights in Headgate's range; the keys that gave them are judged.
fn fitted(members: &[Member<'_>], weights: impl Iterator<Item = u64>, import: &mut Import<'_>) -> Vec<u32> {
    let weights: Vec<u64> = weights.collect();
    let (fitted, exact) = fit_weights(&weights);
    for entry in members.iter().filter_map(|member| member.weight_entry.as_ref()) {
        if exact {
            import.honour(entry);
        } else {
            import.approximate(entry, "scaled to 1 to 256, the largest of the cluster to 256");
        }
    }
    fitted
}

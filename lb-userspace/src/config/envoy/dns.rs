//! How a cluster asks DNS: `dns_*` keys of the cluster, or a `DnsCluster`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address;
use super::endpoints::Member;
use super::extension;
use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, Kind, checked, ignored, read, refused};
use super::value;
use crate::config::discovery::{BACKOFF_FACTOR, MIN_REFRESH, REFRESH_RATE};
use crate::config::dns_name;
use crate::config::scalar::MAX_DURATION;
use crate::config::tree::Entry;
use crate::model::{Backoff, DnsFamily, StrictDns};

const SERVERS: &str = "Headgate asks the servers of /etc/resolv.conf: write them there";

/// Of the type `DnsCluster`.
pub(super) const DNS_CLUSTER: &[Field] = &[
    read("dns_refresh_rate"),
    read("dns_failure_refresh_rate"),
    read("respect_dns_ttl"),
    read("dns_jitter"),
    read("typed_dns_resolver_config"),
    read("dns_lookup_family"),
    read("all_addresses_in_single_endpoint"),
    ignored(
        "dns_min_refresh_rate",
        Kind::Duration { least_ms: 1 },
        "with respect_dns_ttl Headgate asks at most every 100 ms",
    ),
];

const REFRESH: &[Field] = &[read("base_interval"), read("max_interval")];

const TYPED_RESOLVER: &[Field] = &[read("name"), read("typed_config")];

const RESOLVER_OPTIONS: Kind = Kind::Message(&[
    checked("use_tcp_for_dns_lookups", Kind::Bool),
    checked("no_default_search_domain", Kind::Bool),
]);

const CARES: &[Field] = &[
    refused("resolvers", SERVERS),
    ignored("use_resolvers_as_fallback", Kind::Bool, SERVERS),
    ignored("filter_unroutable_families", Kind::Bool, "a backend that cannot be reached is not chosen twice"),
    ignored("dns_resolver_options", RESOLVER_OPTIONS, "the options of /etc/resolv.conf hold"),
    ignored("udp_max_queries", Kind::U32, "it is c-ares' own"),
    ignored("query_timeout_seconds", Kind::U64, "the options of /etc/resolv.conf hold"),
    ignored("query_tries", Kind::U32, "the options of /etc/resolv.conf hold"),
    ignored("rotate_nameservers", Kind::Bool, "the options of /etc/resolv.conf hold"),
    ignored("edns0_max_payload_size", Kind::Range(512, 4096), "it is c-ares' own"),
    ignored("max_udp_channel_duration", Kind::Duration { least_ms: 0 }, "it is c-ares' own"),
    ignored("reinit_channel_on_timeout", Kind::Bool, "it is c-ares' own"),
    ignored("qcache_max_ttl", Kind::U32, "nothing is cached"),
];

const RESOLUTION_CONFIG: &[Field] = &[
    refused("resolvers", SERVERS),
    ignored("dns_resolver_options", RESOLVER_OPTIONS, "the options of /etc/resolv.conf hold"),
];

/// The keys about resolvers, which the bootstrap has too.
pub(super) fn check_resolvers(fields: &Message<'_>, import: &mut Import<'_>) {
    if let Some(entry) = fields.get("typed_dns_resolver_config") {
        typed_resolver(entry, import);
    }
    if let Some(entry) = fields.get("dns_resolution_config") {
        message::read(entry, RESOLUTION_CONFIG, import);
    }
}

fn typed_resolver(entry: &Entry<'_>, import: &mut Import<'_>) {
    let Some(fields) = message::read(entry, TYPED_RESOLVER, import) else { return };
    let Some(resolver) = extension::read(entry, &fields, import) else { return };
    match (resolver.kind, &resolver.config) {
        ("envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig", Some(config)) => {
            message::read(config, CARES, import);
            import.approximate(&resolver.place, "Headgate's own resolver, with /etc/resolv.conf");
        }
        (kind, _) if kind.starts_with("envoy.extensions.network.dns_resolver.") => {
            import.approximate(&resolver.place, "Headgate's own resolver, with /etc/resolv.conf");
        }
        (kind, _) => import.refuse(&resolver.place, format!("the resolver {kind} is not supported")),
    }
}

/// The words for address families, in the order of their numbers, which `Cluster` and `DnsCluster` have apart.
pub(super) const CLUSTER_FAMILIES: &[&str] = &["AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL"];
pub(super) const DNS_CLUSTER_FAMILIES: &[&str] =
    &["UNSPECIFIED", "AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL"];

/// The settings, with no hosts yet.
pub(super) fn settings(fields: &Message<'_>, families: &[&str], import: &mut Import<'_>) -> StrictDns {
    check_resolvers(fields, import);
    let refresh_rate =
        fields.get("dns_refresh_rate").and_then(|entry| interval(entry, import)).unwrap_or(REFRESH_RATE);
    let failure_backoff = fields
        .get("dns_failure_refresh_rate")
        .and_then(|entry| backoff(entry, import))
        .unwrap_or(Backoff { base: refresh_rate, max: refresh_rate });
    StrictDns {
        hosts: Vec::new(),
        refresh_rate,
        respect_ttl: fields.get("respect_dns_ttl").is_some_and(|entry| flag(entry, import)),
        jitter: fields
            .get("dns_jitter")
            .and_then(|entry| {
                let jitter = value::duration(entry, import)?;
                Some(value::settle(entry, jitter, import))
            })
            .unwrap_or_default(),
        failure_backoff,
        hold_nx: Duration::ZERO,
        family: fields
            .get("dns_lookup_family")
            .and_then(|entry| family(entry, families, import))
            .unwrap_or_default(),
        logical: fields.get("all_addresses_in_single_endpoint").is_some_and(|entry| flag(entry, import)),
    }
}

fn flag(entry: &Entry<'_>, import: &mut Import<'_>) -> bool {
    let flag = value::boolean(entry, import);
    import.honour(entry);
    flag.unwrap_or(false)
}

/// More than a millisecond to Envoy, and no less than Headgate's least.
fn interval(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Duration> {
    let duration = value::duration(entry, import)?;
    if duration <= Duration::from_millis(1) {
        import.error(entry, "too short: Envoy takes only more than 1 ms");
        return None;
    }
    if duration < MIN_REFRESH {
        import.approximate(entry, "100 ms, so that the DNS servers are not flooded");
        return Some(MIN_REFRESH);
    }
    Some(value::settle(entry, duration, import))
}

fn backoff(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Backoff> {
    let fields = message::read(entry, REFRESH, import)?;
    let Some(base_entry) = fields.get("base_interval") else {
        import.error(entry, "needs base_interval");
        return None;
    };
    let base = interval(base_entry, import)?;
    let Some(max_entry) = fields.get("max_interval") else {
        return Some(Backoff { base, max: base.saturating_mul(BACKOFF_FACTOR).min(MAX_DURATION) });
    };
    let max = interval(max_entry, import)?;
    if max < base {
        import.error(max_entry, "below base_interval: write as much or more");
        return None;
    }
    Some(Backoff { base, max })
}

fn family(entry: &Entry<'_>, families: &[&str], import: &mut Import<'_>) -> Option<DnsFamily> {
    const AUTO: &str = "both families are asked, and a listener uses the backends of its own";
    let index = value::word(entry, families, import)?;
    Some(match families[index] {
        "V4_ONLY" => {
            import.honour(entry);
            DnsFamily::V4
        }
        "V6_ONLY" => {
            import.honour(entry);
            DnsFamily::V6
        }
        "ALL" => {
            import.honour(entry);
            DnsFamily::All
        }
        _ => {
            import.approximate(entry, AUTO);
            DnsFamily::Auto
        }
    })
}

/// The name and port to ask for.
pub(super) fn host(member: &Member<'_>, import: &mut Import<'_>) -> Option<(String, u16)> {
    let at = &member.at;
    if let Ok(ip) = at.host.parse::<IpAddr>() {
        let address = address::backend(SocketAddr::new(ip, at.port), &at.entry, import)?;
        return Some((address.ip().to_string(), at.port));
    }
    if let Some(problem) = dns_name::problem(at.host) {
        import.error(&at.entry, format!("`{}`: {problem}", at.host));
        return None;
    }
    Some((at.host.to_ascii_lowercase(), at.port))
}

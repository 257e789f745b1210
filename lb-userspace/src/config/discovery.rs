//! `discovery:` of a cluster.

use std::net::SocketAddr;
use std::time::Duration;

use super::dns_name;
use super::hosts::{self, Host};
use super::tree::{Entry, Fields, Report};
use crate::model::{Backoff, Discovery, DnsFamily, DnsHost, Endpoint, StrictDns};

/// Envoy's default.
pub(super) const REFRESH_RATE: Duration = Duration::from_secs(5);

/// Waits between refreshes are no shorter, so that no configuration floods a DNS server.
pub(super) const MIN_REFRESH: Duration = Duration::from_millis(100);

/// Envoy's default of the longest wait after failures, in base intervals.
pub(super) const BACKOFF_FACTOR: u32 = 10;

const DNS_KEYS: [&str; 6] = ["refresh_rate", "respect_ttl", "jitter", "failure_backoff", "hold_nx", "family"];

const FAMILIES: [(&str, DnsFamily); 4] =
    [("auto", DnsFamily::Auto), ("v4", DnsFamily::V4), ("v6", DnsFamily::V6), ("all", DnsFamily::All)];

#[derive(Clone, Copy)]
enum Kind {
    Static,
    StrictDns,
    LogicalDns,
}

const KINDS: [(&str, Kind); 3] =
    [("static", Kind::Static), ("strict_dns", Kind::StrictDns), ("logical_dns", Kind::LogicalDns)];

/// `None` with something in `report`.
pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> Option<Discovery> {
    let known: Vec<&str> = ["type", "hosts"].into_iter().chain(DNS_KEYS).collect();
    let fields = entry.fields(&known, report)?;
    let kind = fields
        .require("type", "how the backends are found; accepted: static, strict_dns, logical_dns", report)?
        // The other keys depend on the type.
        .choice(&KINDS, &[], report)?;
    match kind {
        Kind::Static => {
            for name in DNS_KEYS {
                if let Some(entry) = fields.get(name) {
                    entry.refuse("belongs to type: strict_dns: remove the key, or change the type", report);
                }
            }
            let hosts = fields.require("hosts", "the addresses of the backends", report)?;
            Some(Discovery::Static(endpoints(&hosts, report)))
        }
        Kind::StrictDns => dns(&fields, false, report).map(Discovery::StrictDns),
        Kind::LogicalDns => dns(&fields, true, report).map(Discovery::StrictDns),
    }
}

fn dns(fields: &Fields<'_>, logical: bool, report: &mut Report) -> Option<StrictDns> {
    let refresh_rate =
        fields.get("refresh_rate").map_or(Some(REFRESH_RATE), |entry| refresh_interval(&entry, report));
    let respect_ttl = fields.get("respect_ttl").map_or(Some(false), |entry| entry.boolean(report));
    let jitter = fields.get("jitter").map_or(Some(Duration::ZERO), |entry| entry.duration(report));
    let hold_nx = fields.get("hold_nx").map_or(Some(Duration::ZERO), |entry| entry.duration(report));
    let family =
        fields.get("family").map_or(Some(DnsFamily::Auto), |entry| entry.choice(&FAMILIES, &[], report));
    let failure_backoff = match fields.get("failure_backoff") {
        // As in Envoy: without one, a failure changes nothing in the rate.
        None => refresh_rate.map(|rate| Backoff { base: rate, max: rate }),
        Some(entry) => backoff(&entry, report),
    };
    let entry = fields.require("hosts", "the names to ask for", report)?;
    let hosts = dns_hosts(&entry, report);
    if logical && hosts.len() > 1 {
        entry.refuse("logical_dns has one host: keep one, or use type: strict_dns", report);
    }
    Some(StrictDns {
        hosts,
        refresh_rate: refresh_rate?,
        respect_ttl: respect_ttl?,
        jitter: jitter?,
        failure_backoff: failure_backoff?,
        hold_nx: hold_nx?,
        family: family?,
        logical,
    })
}

fn refresh_interval(entry: &Entry<'_>, report: &mut Report) -> Option<Duration> {
    entry.duration_from(MIN_REFRESH, "so that the DNS servers are not flooded", report)
}

fn backoff(entry: &Entry<'_>, report: &mut Report) -> Option<Backoff> {
    let fields = entry.fields(&["base", "max"], report)?;
    let base = fields.require("base", "the wait after a first failure", report)?;
    let base = refresh_interval(&base, report)?;
    let Some(entry) = fields.get("max") else {
        return Some(Backoff { base, max: base * BACKOFF_FACTOR });
    };
    let max = entry.duration(report)?;
    if max < base {
        let base = humantime::format_duration(base);
        entry.refuse(format!("below the base: write {base} or more"), report);
        return None;
    }
    Some(Backoff { base, max })
}

fn endpoints(entry: &Entry<'_>, report: &mut Report) -> Vec<Endpoint> {
    // A cluster may be waiting for its first backend.
    if entry.is_empty_list() {
        return Vec::new();
    }
    let kind = hosts::Kind { keys: &["node", "zone"], read: host_address, show: SocketAddr::to_string };
    let endpoint = |Host { at, weight, priority, node, zone, probe }| Endpoint {
        priority,
        node,
        zone,
        probe,
        ..Endpoint::new(at, weight)
    };
    hosts::read(entry, &kind, report).into_iter().map(endpoint).collect()
}

fn dns_hosts(entry: &Entry<'_>, report: &mut Report) -> Vec<DnsHost> {
    let kind = hosts::Kind { keys: &[], read: dns_host, show: |(name, port)| format!("{name}:{port}") };
    let host = |Host { at: (name, port), weight, priority, probe, .. }| DnsHost {
        name,
        port,
        weight,
        priority,
        probe,
    };
    hosts::read(entry, &kind, report).into_iter().map(host).collect()
}

fn host_address(entry: &Entry<'_>, report: &mut Report) -> Option<SocketAddr> {
    let advice = "static discovery needs IP:PORT; names need type: strict_dns";
    let address = entry.socket_address(advice, report)?;
    if address.ip().is_unspecified() {
        entry.refuse(format!("`{address}`: no host has the unspecified address: write its own"), report);
        return None;
    }
    Some(address)
}

/// `NAME:PORT`, in lower case, or an address as in static discovery.
fn dns_host(entry: &Entry<'_>, report: &mut Report) -> Option<(String, u16)> {
    let text = entry.text("a host NAME:PORT", report)?;
    let looks_like_address = text.starts_with('[')
        || text.matches(':').count() > 1
        || text.parse::<SocketAddr>().is_ok()
        || text.parse::<std::net::IpAddr>().is_ok();
    if looks_like_address {
        let address = host_address(entry, report)?;
        return Some((address.ip().to_string(), address.port()));
    }
    let problem = match text.rsplit_once(':') {
        None => format!("the port is missing: write NAME:PORT, as in {text}:80"),
        Some((name, port)) => match (dns_name::problem(name), port.parse::<u16>()) {
            (Some(problem), _) => problem,
            (None, Ok(port)) if port != 0 => return Some((name.to_ascii_lowercase(), port)),
            (None, _) => format!("`{port}` is no port: give one from 1 to 65535"),
        },
    };
    entry.refuse(format!("`{text}`: {problem}"), report);
    None
}

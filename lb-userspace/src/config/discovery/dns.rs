//! `type: strict_dns` and `type: logical_dns`; and the keys of all types that ask DNS.

use std::net::SocketAddr;
use std::time::Duration;

use super::host_address;
use crate::config::dns_name;
use crate::config::hosts::{self, Host};
use crate::config::tree::{Entry, Fields, Report};
use crate::model::{Backoff, DnsFamily, DnsHost, DnsRefresh, StrictDns};

/// Envoy's default.
pub(in crate::config) const REFRESH_RATE: Duration = Duration::from_secs(5);

/// Waits between refreshes are no shorter, so that no configuration floods a DNS server.
pub(in crate::config) const MIN_REFRESH: Duration = Duration::from_millis(100);

/// Envoy's default of the longest wait after failures, in base intervals.
pub(in crate::config) const BACKOFF_FACTOR: u32 = 10;

pub(super) const FAMILIES: [(&str, DnsFamily); 4] =
    [("auto", DnsFamily::Auto), ("v4", DnsFamily::V4), ("v6", DnsFamily::V6), ("all", DnsFamily::All)];

pub(super) fn read(fields: &Fields<'_>, logical: bool, report: &mut Report) -> Option<StrictDns> {
    let refresh = refresh(fields, report);
    let entry = fields.require("hosts", "the names to ask for", report)?;
    let hosts = dns_hosts(&entry, report);
    if logical && hosts.len() > 1 {
        entry.refuse("logical_dns has one host: keep one, or use type: strict_dns", report);
    }
    let DnsRefresh { rate, respect_ttl, jitter, failure_backoff, hold_nx, family } = refresh?;
    Some(StrictDns {
        hosts,
        refresh_rate: rate,
        respect_ttl,
        jitter,
        failure_backoff,
        hold_nx,
        family,
        logical,
    })
}

/// How DNS is asked.
pub(super) fn refresh(fields: &Fields<'_>, report: &mut Report) -> Option<DnsRefresh> {
    let rate =
        fields.get("refresh_rate").map_or(Some(REFRESH_RATE), |entry| refresh_interval(&entry, report));
    let respect_ttl = fields.get("respect_ttl").map_or(Some(false), |entry| entry.boolean(report));
    let jitter = fields.get("jitter").map_or(Some(Duration::ZERO), |entry| entry.duration(report));
    let hold_nx = fields.get("hold_nx").map_or(Some(Duration::ZERO), |entry| entry.duration(report));
    let family =
        fields.get("family").map_or(Some(DnsFamily::Auto), |entry| entry.choice(&FAMILIES, &[], report));
    let failure_backoff = match fields.get("failure_backoff") {
        // As in Envoy: without one, a failure changes nothing in the rate.
        None => rate.map(|rate| Backoff { base: rate, max: rate }),
        Some(entry) => backoff(&entry, report),
    };
    Some(DnsRefresh {
        rate: rate?,
        respect_ttl: respect_ttl?,
        jitter: jitter?,
        failure_backoff: failure_backoff?,
        hold_nx: hold_nx?,
        family: family?,
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

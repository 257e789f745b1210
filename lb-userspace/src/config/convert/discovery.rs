//! `discovery:` of a cluster.

use std::time::Duration;

use super::writer::{Writer, quoted};
use crate::config::discovery::REFRESH_RATE;
use crate::model::{Backoff, Discovery, DnsFamily, DnsHost, Endpoint, ProbePlace, StrictDns};

pub(super) fn write(writer: &mut Writer, discovery: &Discovery) {
    match discovery {
        Discovery::Static(endpoints) => {
            writer.text("type", "static");
            let hosts: Vec<String> = endpoints.iter().map(endpoint).collect();
            writer.lines("hosts", &hosts);
        }
        Discovery::StrictDns(dns) => {
            writer.text("type", if dns.logical { "logical_dns" } else { "strict_dns" });
            write_dns(writer, dns);
        }
    }
}

fn write_dns(writer: &mut Writer, dns: &StrictDns) {
    let hosts: Vec<String> = dns.hosts.iter().map(dns_host).collect();
    writer.lines("hosts", &hosts);
    if dns.refresh_rate != REFRESH_RATE {
        writer.duration("refresh_rate", dns.refresh_rate);
    }
    if dns.respect_ttl {
        writer.boolean("respect_ttl", true);
    }
    if dns.jitter != Duration::ZERO {
        writer.duration("jitter", dns.jitter);
    }
    let Backoff { base, max } = dns.failure_backoff;
    if (base, max) != (dns.refresh_rate, dns.refresh_rate) {
        writer.mapping("failure_backoff", |writer| {
            writer.duration("base", base);
            writer.duration("max", max);
        });
    }
    if dns.hold_nx != Duration::ZERO {
        writer.duration("hold_nx", dns.hold_nx);
    }
    match dns.family {
        DnsFamily::Auto => {}
        DnsFamily::V4 => writer.text("family", "v4"),
        DnsFamily::V6 => writer.text("family", "v6"),
        DnsFamily::All => writer.text("family", "all"),
    }
}

fn endpoint(endpoint: &Endpoint) -> String {
    let Endpoint { address, weight, priority, node, zone, probe, ready: _ } = endpoint;
    let mut more = shares(*weight, *priority);
    if let Some(node) = node {
        more.push(format!("node: {}", quoted(node)));
    }
    if let Some(zone) = zone {
        more.push(format!("zone: {}", quoted(zone)));
    }
    host(&address.to_string(), more, probe)
}

fn dns_host(dns: &DnsHost) -> String {
    let DnsHost { name, port, weight, priority, probe } = dns;
    let address = match name.contains(':') {
        true => format!("[{name}]:{port}"),
        false => format!("{name}:{port}"),
    };
    host(&address, shares(*weight, *priority), probe)
}

fn shares(weight: u32, priority: u32) -> Vec<String> {
    let shares = [
        (weight != 1).then(|| format!("weight: {weight}")),
        (priority != 0).then(|| format!("priority: {priority}")),
    ];
    shares.into_iter().flatten().collect()
}

/// The address alone, or a mapping where there is more to say.
fn host(address: &str, mut more: Vec<String>, probe: &ProbePlace) -> String {
    let address = quoted(address);
    more.extend(probe_place(probe).map(|place| format!("health_check: {place}")));
    match more.is_empty() {
        true => address,
        false => format!("{{ address: {address}, {} }}", more.join(", ")),
    }
}

fn probe_place(probe: &ProbePlace) -> Option<String> {
    let ProbePlace { port, address, host, skip } = probe;
    if *skip {
        return Some("false".to_owned());
    }
    let keys = [
        port.map(|port| format!("port: {port}")),
        address.map(|address| format!("address: {}", quoted(&address.to_string()))),
        host.as_ref().map(|host| format!("host: {}", quoted(host))),
    ];
    let keys: Vec<String> = keys.into_iter().flatten().collect();
    (!keys.is_empty()).then(|| format!("{{ {} }}", keys.join(", ")))
}

//! `discovery:` of a cluster.

use std::time::Duration;

use super::writer::{Writer, quoted};
use crate::config::discovery::REFRESH_RATE;
use crate::model::{
    Backoff, Cluster, Discovery, DnsFamily, DnsHost, DnsRefresh, Endpoint, Kubernetes, KubernetesPort,
    ProbePlace,
};

pub(super) fn write(writer: &mut Writer, cluster: &Cluster) {
    match &cluster.discovery {
        Discovery::Static(endpoints) => {
            writer.text("type", "static");
            let hosts: Vec<String> = endpoints.iter().map(endpoint).collect();
            writer.lines("hosts", &hosts);
        }
        Discovery::StrictDns(dns) => {
            writer.text("type", if dns.logical { "logical_dns" } else { "strict_dns" });
            let hosts: Vec<String> = dns.hosts.iter().map(dns_host).collect();
            writer.lines("hosts", &hosts);
            refresh(writer, &dns.refresh());
        }
        Discovery::Srv(srv) => {
            writer.text("type", "srv");
            writer.text("name", &srv.name);
            refresh(writer, &srv.refresh);
        }
        Discovery::File(file) => {
            writer.text("type", "file");
            writer.text("path", &file.path.display().to_string());
            if file.cluster_name != cluster.name {
                writer.text("cluster_name", &file.cluster_name);
            }
        }
        Discovery::Kubernetes(kubernetes) => write_kubernetes(writer, kubernetes),
    }
}

fn refresh(writer: &mut Writer, refresh: &DnsRefresh) {
    let DnsRefresh { rate, respect_ttl, jitter, failure_backoff, hold_nx, family } = refresh;
    if *rate != REFRESH_RATE {
        writer.duration("refresh_rate", *rate);
    }
    if *respect_ttl {
        writer.boolean("respect_ttl", true);
    }
    if *jitter != Duration::ZERO {
        writer.duration("jitter", *jitter);
    }
    let Backoff { base, max } = *failure_backoff;
    if (base, max) != (*rate, *rate) {
        writer.mapping("failure_backoff", |writer| {
            writer.duration("base", base);
            writer.duration("max", max);
        });
    }
    if *hold_nx != Duration::ZERO {
        writer.duration("hold_nx", *hold_nx);
    }
    write_family(writer, *family);
}

fn write_kubernetes(writer: &mut Writer, kubernetes: &Kubernetes) {
    let Kubernetes { namespace, service, port, family, kubeconfig, context } = kubernetes;
    writer.text("type", "kubernetes");
    writer.text("namespace", namespace);
    writer.text("service", service);
    match port {
        None => {}
        Some(KubernetesPort::Name(name)) => writer.text("port", name),
        Some(KubernetesPort::Number(number)) => writer.number("port", u32::from(*number)),
    }
    write_family(writer, *family);
    if let Some(path) = kubeconfig {
        writer.text("kubeconfig", &path.to_string_lossy());
    }
    if let Some(context) = context {
        writer.text("context", context);
    }
}

fn write_family(writer: &mut Writer, family: DnsFamily) {
    match family {
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

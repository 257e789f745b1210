//! An Envoy bootstrap written as a native file of the same meaning.

mod writer;

use std::time::Duration;

use self::writer::Writer;
use super::cluster::{CONNECT_ATTEMPTS, CONNECT_TIMEOUT, POLICIES};
use super::discovery::REFRESH_RATE;
use super::listener::IDLE_TIMEOUT;
use super::{ConfigError, ConfigErrors, Finding, parse};
use crate::access_log::Source;
use crate::model::{
    AccessLog, Backoff, Cluster, Config, Discovery, DnsFamily, LbPolicy, Listener, StrictDns,
};

/// A native file, and what became of each key of the Envoy file.
#[derive(Clone, Debug)]
pub struct Converted {
    pub yaml: String,
    /// What is worth a look, as `headgate check` says it of the Envoy file.
    pub warnings: Vec<ConfigError>,
    pub findings: Vec<Finding>,
}

/// Converts the Envoy bootstrap `text`; `file` names it in the errors, of which a native text is one.
pub fn convert(text: &str, file: &str) -> Result<Converted, ConfigErrors> {
    let loaded = parse(text, file)?;
    if !loaded.config.imported {
        let message =
            "a native configuration already: only Envoy bootstraps (with static_resources) are converted";
        return Err(ConfigError::unreadable(file, message.to_owned()).into());
    }
    let yaml = write(&loaded.config, &loaded.silent_limits);
    Ok(Converted { yaml, warnings: loaded.warnings, findings: loaded.findings })
}

/// `silent_limits` are the clusters whose limit of connections is Envoy's default.
fn write(config: &Config, silent_limits: &[String]) -> String {
    let mut writer = Writer::default();
    writer.comment("Converted from an Envoy bootstrap by `headgate convert`.");
    if let Some(admin) = &config.admin {
        writer.mapping("admin", |writer| writer.text("address", &admin.address.to_string()));
    }
    let logs = common_logs(&config.listeners);
    if !logs.is_empty() {
        write_logs(&mut writer, logs);
    }
    writer.list("listeners", &config.listeners, |writer, listener| {
        write_listener(writer, listener, logs);
    });
    writer.list("clusters", &config.clusters, |writer, cluster| {
        write_cluster(writer, cluster, silent_limits.contains(&cluster.name));
    });
    writer.finish()
}

/// The logs that all listeners have; none if they differ.
fn common_logs(listeners: &[Listener]) -> &[AccessLog] {
    match listeners.split_first() {
        Some((first, others)) if others.iter().all(|other| other.access_logs == first.access_logs) => {
            &first.access_logs
        }
        _ => &[],
    }
}

fn write_listener(writer: &mut Writer, listener: &Listener, common_logs: &[AccessLog]) {
    writer.text("name", &listener.name);
    writer.text("address", &listener.address.to_string());
    match listener.clusters.as_slice() {
        [only] if only.weight == 1 => writer.text("cluster", &only.name),
        several => writer.list("clusters", several, |writer, cluster| {
            writer.text("name", &cluster.name);
            writer.number("weight", cluster.weight);
        }),
    }
    if listener.stat_prefix != listener.name {
        writer.text("stat_prefix", &listener.stat_prefix);
    }
    if listener.idle_timeout != Some(IDLE_TIMEOUT) {
        writer.duration("idle_timeout", listener.idle_timeout.unwrap_or_default());
    }
    if let Some(attempts) = listener.connect_attempts {
        writer.number("connect_attempts", attempts);
    }
    if let Some(duration) = listener.max_connection_duration {
        writer.duration("max_connection_duration", duration);
    }
    if listener.access_logs != common_logs {
        write_logs(writer, &listener.access_logs);
    }
}

fn write_logs(writer: &mut Writer, logs: &[AccessLog]) {
    writer.list("access_log", logs, |writer, log| {
        let path = log.path.to_string_lossy();
        writer.text("path", &path);
        match log.format.source() {
            Source::Default => writer.text("format", "default"),
            Source::Text(text) => match text.strip_suffix('\n') {
                // The word would be taken for the default format.
                Some(line) if line != "default" && !line.ends_with('\n') => writer.text("format", line),
                Some(_) => writer.text("format", text),
                None => {
                    writer.text("format", text);
                    writer.boolean("newline", false);
                }
            },
            Source::Json(value) => writer.json("format", value),
        }
        if log.format.omits_empty() {
            writer.boolean("omit_empty_values", true);
        }
        if let Some(interval) = log.flush_interval {
            writer.duration("flush_interval", interval);
        }
        if log.on_connect {
            writer.boolean("on_connect", true);
        }
        if log.on_start {
            writer.boolean("on_start", true);
        }
    });
}

fn write_cluster(writer: &mut Writer, cluster: &Cluster, silent_limit: bool) {
    writer.text("name", &cluster.name);
    writer.mapping("discovery", |writer| write_discovery(writer, &cluster.discovery));
    if cluster.lb_policy != LbPolicy::default() {
        let word = POLICIES.iter().find(|(_, policy)| *policy == cluster.lb_policy).map(|(word, _)| *word);
        writer.text("lb_policy", word.unwrap_or_default());
    }
    if cluster.connect_timeout != CONNECT_TIMEOUT {
        writer.duration("connect_timeout", cluster.connect_timeout);
    }
    if cluster.connect_attempts != CONNECT_ATTEMPTS {
        writer.number("connect_attempts", cluster.connect_attempts);
    }
    if let Some(limit) = cluster.max_connections {
        if silent_limit {
            writer.comment("Envoy's default, as the bootstrap says nothing about it; 0 is no limit.");
        }
        writer.number("max_connections", limit);
    }
    if let Some(name) = &cluster.stat_name {
        writer.text("stat_name", name);
    }
}

fn write_discovery(writer: &mut Writer, discovery: &Discovery) {
    match discovery {
        Discovery::Static(endpoints) => {
            writer.text("type", "static");
            let hosts = endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.weight));
            writer.hosts(hosts);
        }
        Discovery::StrictDns(dns) => {
            writer.text("type", if dns.logical { "logical_dns" } else { "strict_dns" });
            write_dns(writer, dns);
        }
    }
}

fn write_dns(writer: &mut Writer, dns: &StrictDns) {
    let hosts = dns.hosts.iter().map(|host| {
        let address = match host.name.contains(':') {
            true => format!("[{}]:{}", host.name, host.port),
            false => format!("{}:{}", host.name, host.port),
        };
        (address, host.weight)
    });
    writer.hosts(hosts);
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
    match dns.family {
        DnsFamily::Auto => {}
        DnsFamily::V4 => writer.text("family", "v4"),
        DnsFamily::V6 => writer.text("family", "v6"),
        DnsFamily::All => writer.text("family", "all"),
    }
}

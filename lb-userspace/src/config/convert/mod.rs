//! An Envoy bootstrap written as a native file of the same meaning.

mod cluster;
mod discovery;
mod health_check;
mod outlier;
mod probe;
mod writer;

use self::writer::Writer;
use super::listener::IDLE_TIMEOUT;
use super::{ConfigError, ConfigErrors, Finding, parse};
use crate::access_log::Source;
use crate::model::{AccessLog, Config, Listener};

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
pub(super) fn write(config: &Config, silent_limits: &[String]) -> String {
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
        cluster::write(writer, cluster, silent_limits.contains(&cluster.name));
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

//! `health_checks:` of a cluster: when its endpoints are asked; `probe` has what they are asked.

use std::time::Duration;

use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, Kind, MAPPINGS, ignored, read};
use super::{probe, value};
use crate::config::health_check::{JITTER_PERCENTS, MIN_INTERVAL, THRESHOLDS, pace};
use crate::config::tree::{Entry, Located};
use crate::model::{HealthCheck, Jitter, Pace};

/// Envoy's default.
const NO_TRAFFIC: Duration = Duration::from_secs(60);

const EVENTS: &str = "changes of health are in Headgate's own log and status";
const NO_TLS: &str = "without TLS to the backends it has no effect in Envoy either";

const HEALTH_CHECK: &[Field] = &[
    ignored("name", Kind::Text, "it is for Envoy's statistics"),
    read("timeout"),
    read("interval"),
    read("initial_jitter"),
    read("interval_jitter"),
    read("interval_jitter_percent"),
    read("unhealthy_threshold"),
    read("healthy_threshold"),
    ignored("alt_port", Kind::U32, "Envoy does not use it either"),
    read("reuse_connection"),
    read("http_health_check"),
    read("tcp_health_check"),
    read("grpc_health_check"),
    read("custom_health_check"),
    read("no_traffic_interval"),
    read("no_traffic_healthy_interval"),
    read("unhealthy_interval"),
    read("unhealthy_edge_interval"),
    read("healthy_edge_interval"),
    ignored("event_log_path", Kind::Text, EVENTS),
    ignored("event_logger", MAPPINGS, EVENTS),
    ignored("event_service", Kind::Mapping, EVENTS),
    ignored("always_log_health_check_failures", Kind::Bool, EVENTS),
    ignored("always_log_health_check_success", Kind::Bool, EVENTS),
    ignored("tls_options", Kind::Mapping, NO_TLS),
    ignored("transport_socket_match_criteria", Kind::Mapping, NO_TLS),
];

/// Of the cluster `name`, whose backends speak HTTP/2 as far as the file says.
pub(super) fn read_checks(
    entry: &Entry<'_>,
    name: &str,
    is_http2: bool,
    import: &mut Import<'_>,
) -> Option<Located<HealthCheck>> {
    let checks = message::repeated(entry, import);
    match checks.as_slice() {
        [] => {
            import.ignore(entry, "there are none in it");
            None
        }
        [check] => {
            let found = read_check(check, name, is_http2, import)?;
            Some(check.at(found))
        }
        [_, second, ..] => {
            import.refuse(second, "a cluster has one health check: keep the one that says most");
            None
        }
    }
}

fn read_check(entry: &Entry<'_>, name: &str, is_http2: bool, import: &mut Import<'_>) -> Option<HealthCheck> {
    let fields = message::read(entry, HEALTH_CHECK, import)?;
    if let Some(entry) = fields.get("reuse_connection")
        && let Some(reuses) = value::boolean(entry, import)
    {
        match reuses {
            false => import.honour(entry),
            true => import.approximate(
                entry,
                "every probe opens a connection, so that it sees a backend that takes no new ones",
            ),
        }
    }
    let probe = probe::read_probe(entry, &fields, name, is_http2, import);
    let required = ["timeout", "interval", "unhealthy_threshold", "healthy_threshold"];
    let missing: Vec<&str> = required.into_iter().filter(|key| fields.get(key).is_none()).collect();
    if !missing.is_empty() {
        import.error(entry, format!("needs {}", missing.join(", ")));
    }
    let timeout = positive(&fields, "timeout", Duration::from_millis(1), import);
    let interval = positive(&fields, "interval", MIN_INTERVAL, import);
    let unhealthy = threshold(&fields, "unhealthy_threshold", import);
    let healthy = threshold(&fields, "healthy_threshold", import);
    let jitter = Jitter {
        initial: duration(&fields, "initial_jitter", import),
        interval: duration(&fields, "interval_jitter", import),
        percent: jitter_percent(&fields, import),
    };
    let pace = pace(Pace {
        no_traffic: positive(&fields, "no_traffic_interval", MIN_INTERVAL, import).or(Some(NO_TRAFFIC)),
        no_traffic_healthy: positive(&fields, "no_traffic_healthy_interval", MIN_INTERVAL, import),
        unhealthy: positive(&fields, "unhealthy_interval", MIN_INTERVAL, import),
        unhealthy_edge: positive(&fields, "unhealthy_edge_interval", MIN_INTERVAL, import),
        healthy_edge: positive(&fields, "healthy_edge_interval", MIN_INTERVAL, import),
    });
    Some(HealthCheck {
        probe: probe?,
        port: None,
        interval: interval?,
        timeout: timeout?,
        unhealthy: unhealthy?,
        healthy: healthy?,
        jitter,
        pace,
    })
}

fn positive(fields: &Message<'_>, key: &str, least: Duration, import: &mut Import<'_>) -> Option<Duration> {
    let entry = fields.get(key)?;
    let duration = value::positive_duration(entry, import)?;
    Some(value::settle_from(entry, duration, least, import))
}

fn duration(fields: &Message<'_>, key: &str, import: &mut Import<'_>) -> Duration {
    let found = fields.get(key).and_then(|entry| {
        let duration = value::duration(entry, import)?;
        Some(value::settle(entry, duration, import))
    });
    found.unwrap_or_default()
}

fn threshold(fields: &Message<'_>, key: &str, import: &mut Import<'_>) -> Option<u32> {
    let entry = fields.get(key)?;
    let number = value::u32(entry, 0..=u32::MAX, import)?;
    let most = *THRESHOLDS.end();
    if number == 0 {
        import.refuse(entry, "0 probes in a row never happen, so that nothing would change: write 1 or more");
        return None;
    }
    if number > most {
        import.approximate(entry, format!("{most}, the most that Headgate takes"));
        return Some(most);
    }
    import.honour(entry);
    Some(number)
}

fn jitter_percent(fields: &Message<'_>, import: &mut Import<'_>) -> u32 {
    let Some(entry) = fields.get("interval_jitter_percent") else { return 0 };
    let Some(percent) = value::u32(entry, 0..=u32::MAX, import) else { return 0 };
    let most = *JITTER_PERCENTS.end();
    if percent > most {
        import.approximate(entry, format!("{most} %, the most that Headgate takes"));
        return most;
    }
    import.honour(entry);
    percent
}

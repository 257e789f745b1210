//! `health_check:` of a cluster: when its endpoints are asked. `probe` has what they are asked.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::probe;
use super::tree::{Entry, Fields, Report};
use crate::model::{HealthCheck, Jitter, Pace};

pub(super) const INTERVAL: Duration = Duration::from_secs(2);
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
/// Of probes in a row that change the state of an endpoint.
pub(super) const THRESHOLD: u32 = 2;
pub(super) const THRESHOLDS: RangeInclusive<u32> = 1..=100;
/// Of the interval, where the file has no jitter of its own.
pub(super) const JITTER_PERCENT: u32 = 10;
pub(super) const JITTER_PERCENTS: RangeInclusive<u32> = 0..=1000;

/// Waits between probes are no shorter, so that no configuration floods the endpoints.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);

const KEYS: [&str; 14] = [
    "type",
    "port",
    "interval",
    "timeout",
    "unhealthy",
    "healthy",
    "jitter",
    "jitter_percent",
    "initial_jitter",
    "no_traffic_interval",
    "no_traffic_healthy_interval",
    "unhealthy_interval",
    "unhealthy_edge_interval",
    "healthy_edge_interval",
];

/// `None` with something in `report`.
pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> Option<HealthCheck> {
    let known: Vec<&str> = KEYS.into_iter().chain(probe::KEYS.iter().map(|(key, _)| *key)).collect();
    let fields = entry.fields(&known, report)?;
    let words = probe::KINDS.map(|(word, _)| word).join(", ");
    let kind = fields
        .require("type", &format!("what the endpoints are asked; accepted: {words}"), report)?
        .choice(&probe::KINDS, &[], report)?;
    let timeout = fields
        .get("timeout")
        .map_or(Some(TIMEOUT), |entry| entry.positive_duration("leaves no time to answer", report));
    Some(HealthCheck {
        port: fields.get("port").map_or_else(|| kind.port(), |entry| entry.port(report)),
        interval: interval(&fields, "interval", report).unwrap_or(INTERVAL),
        timeout: timeout?,
        unhealthy: threshold(&fields, "unhealthy", report),
        healthy: threshold(&fields, "healthy", report),
        jitter: jitter(&fields, report),
        pace: pace(Pace {
            no_traffic: interval(&fields, "no_traffic_interval", report),
            no_traffic_healthy: interval(&fields, "no_traffic_healthy_interval", report),
            unhealthy: interval(&fields, "unhealthy_interval", report),
            unhealthy_edge: interval(&fields, "unhealthy_edge_interval", report),
            healthy_edge: interval(&fields, "healthy_edge_interval", report),
        }),
        probe: probe::read(kind, &fields, report)?,
    })
}

/// The intervals as they are in effect: those of a state that is a case of another one have that one's by default.
pub(super) fn pace(pace: Pace) -> Pace {
    Pace {
        no_traffic_healthy: pace.no_traffic_healthy.or(pace.no_traffic),
        unhealthy_edge: pace.unhealthy_edge.or(pace.unhealthy),
        ..pace
    }
}

fn interval(fields: &Fields<'_>, key: &str, report: &mut Report) -> Option<Duration> {
    fields.get(key)?.duration_from(MIN_INTERVAL, "so that the endpoints are not flooded", report)
}

fn threshold(fields: &Fields<'_>, key: &str, report: &mut Report) -> u32 {
    fields.get(key).and_then(|entry| entry.number("", THRESHOLDS, report)).unwrap_or(THRESHOLD)
}

fn jitter(fields: &Fields<'_>, report: &mut Report) -> Jitter {
    let interval = fields.get("jitter").and_then(|entry| entry.duration(report));
    let percent = fields.get("jitter_percent").and_then(|entry| entry.number("", JITTER_PERCENTS, report));
    let default = if interval.is_some() { 0 } else { JITTER_PERCENT };
    Jitter {
        initial: fields.get("initial_jitter").and_then(|entry| entry.duration(report)).unwrap_or_default(),
        interval: interval.unwrap_or_default(),
        percent: percent.unwrap_or(default),
    }
}

//! `health_check:` of a cluster: when to ask; `probe` has what.

use std::time::Duration;

use super::probe;
use super::writer::Writer;
use crate::config::health_check::{INTERVAL, JITTER_PERCENT, THRESHOLD, TIMEOUT};
use crate::model::{HealthCheck, Jitter, Pace};

pub(super) fn write(writer: &mut Writer, check: &HealthCheck) {
    let HealthCheck { probe, port, interval, timeout, unhealthy, healthy, jitter, pace } = check;
    probe::write_type(writer, probe);
    if let Some(port) = port {
        writer.number("port", u32::from(*port));
    }
    if *interval != INTERVAL {
        writer.duration("interval", *interval);
    }
    if *timeout != TIMEOUT {
        writer.duration("timeout", *timeout);
    }
    if *unhealthy != THRESHOLD {
        writer.number("unhealthy", *unhealthy);
    }
    if *healthy != THRESHOLD {
        writer.number("healthy", *healthy);
    }
    write_jitter(writer, *jitter);
    write_pace(writer, *pace);
    probe::write(writer, probe);
}

fn write_jitter(writer: &mut Writer, jitter: Jitter) {
    let Jitter { initial, interval, percent } = jitter;
    if interval != Duration::ZERO {
        writer.duration("jitter", interval);
    }
    let default = if interval == Duration::ZERO { JITTER_PERCENT } else { 0 };
    if percent != default {
        writer.number("jitter_percent", percent);
    }
    if initial != Duration::ZERO {
        writer.duration("initial_jitter", initial);
    }
}

fn write_pace(writer: &mut Writer, pace: Pace) {
    let Pace { no_traffic, no_traffic_healthy, unhealthy, unhealthy_edge, healthy_edge } = pace;
    let intervals = [
        ("no_traffic_interval", no_traffic),
        ("no_traffic_healthy_interval", no_traffic_healthy.filter(|_| no_traffic_healthy != no_traffic)),
        ("unhealthy_interval", unhealthy),
        ("unhealthy_edge_interval", unhealthy_edge.filter(|_| unhealthy_edge != unhealthy)),
        ("healthy_edge_interval", healthy_edge),
    ];
    for (key, interval) in intervals {
        if let Some(interval) = interval {
            writer.duration(key, interval);
        }
    }
}

//! An element of `clusters:`, less what has its default.

use super::writer::Writer;
use super::{discovery, health_check, outlier};
use crate::config::cluster::{
    CONNECT_ATTEMPTS, CONNECT_TIMEOUT, DRAIN_TIMEOUT, ON_LEAVING, ON_REMOVED, ON_UNHEALTHY, OVERPROVISIONING,
    PANIC_THRESHOLD, POLICIES,
};
use crate::config::slow_start::{AGGRESSION, MIN_WEIGHT_PERCENT};
use crate::model::{Cluster, LbPolicy, OnLeaving, PreferLocal, SlowStart};

/// `silent_limit`: its limit of connections is Envoy's default.
pub(super) fn write(writer: &mut Writer, cluster: &Cluster, silent_limit: bool) {
    writer.text("name", &cluster.name);
    writer.mapping("discovery", |writer| discovery::write(writer, cluster));
    if cluster.lb_policy != LbPolicy::default() {
        writer.text("lb_policy", word(&POLICIES, cluster.lb_policy));
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
    if let Some(check) = &cluster.health_check {
        writer.mapping("health_check", |writer| health_check::write(writer, check));
    }
    outlier::write(writer, cluster.outlier.as_ref());
    if cluster.panic_threshold != PANIC_THRESHOLD {
        writer.number("panic_threshold", cluster.panic_threshold);
    }
    if let Some(slow_start) = &cluster.slow_start {
        write_slow_start(writer, slow_start);
    }
    match cluster.prefer_local {
        PreferLocal::None => {}
        PreferLocal::Node => writer.text("prefer_local", "node"),
        PreferLocal::Zone => writer.text("prefer_local", "zone"),
    }
    if cluster.overprovisioning_percent != OVERPROVISIONING {
        writer.number("overprovisioning_percent", cluster.overprovisioning_percent);
    }
    if cluster.keep_while_healthy {
        writer.boolean("keep_while_healthy", true);
    }
    write_on_leaving(writer, "on_removed", cluster.on_removed, ON_REMOVED);
    write_on_leaving(writer, "on_unhealthy", cluster.on_unhealthy, ON_UNHEALTHY);
    if cluster.drain_timeout != DRAIN_TIMEOUT {
        writer.duration("drain_timeout", cluster.drain_timeout);
    }
}

fn write_slow_start(writer: &mut Writer, slow_start: &SlowStart) {
    let SlowStart { window, aggression, min_weight_percent } = *slow_start;
    if (aggression, min_weight_percent) == (AGGRESSION, MIN_WEIGHT_PERCENT) {
        writer.duration("slow_start", window);
        return;
    }
    writer.mapping("slow_start", |writer| {
        writer.duration("window", window);
        writer.thousandths("aggression", aggression);
        writer.number("min_weight_percent", min_weight_percent);
    });
}

fn write_on_leaving(writer: &mut Writer, key: &str, value: OnLeaving, default: OnLeaving) {
    if value != default {
        writer.text(key, word(&ON_LEAVING, value));
    }
}

fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| *word)
}
